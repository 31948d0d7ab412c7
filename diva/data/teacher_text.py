"""What the teacher reads of a clip besides its words: a template over the corpus's columns (`data.teacher_text`)."""

from dataclasses import replace
from string import Formatter

import pyarrow as pa

from diva.data.manifest import TEACHER_TEXT, Manifest
from diva.errors import UserError


def check_template(template: str) -> list[str]:
    """The columns that a template names. Raises UserError if it is no template, or does not name `text`."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(
            f"data.teacher_text={template!r}: {error}; write {{{{ and }}}} for braces of the text"
        ) from error
    names = [name for _, name, _, _ in parts if name is not None]
    plain = all(not form and not conversion for _, name, form, conversion in parts if name is not None)
    if not plain or not all(name.isidentifier() for name in names):
        raise UserError(
            f"data.teacher_text={template!r}: put the name of a column in each pair of braces, no more"
        )
    if "text" not in names:
        raise UserError(f"data.teacher_text={template!r} needs {{text}}, the words of the clip")
    return names


def with_teacher_text(manifest: Manifest, template: str) -> Manifest:
    """The manifest with a column `teacher_text`, made by `template`: "(a {gender} speaker) {text}".

    A clip of which one of these columns is empty has its words alone. Raises UserError if the corpus lacks a column;
    the message lists those that it has.
    """
    names = check_template(template)
    columns = [["" if value is None else str(value) for value in manifest.column(name)] for name in names]
    texts = manifest.clips["text"].to_pylist()
    read = [
        template.format(**dict(zip(names, values, strict=True))) if all(values) else text
        for text, *values in zip(texts, *columns, strict=True)
    ]
    return replace(manifest, clips=manifest.clips.append_column(TEACHER_TEXT, pa.array(read, pa.string())))
