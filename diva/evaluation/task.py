"""A benchmark: its clips, its question, its right answers. Each is a YAML file in `configs/task`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import get_args

from diva.data.manifest import Corpus, Manifest
from diva.errors import UserError
from diva.evaluation.metrics import Metric
from diva.evaluation.samples import Instruction, Layout, Sample


@dataclass
class Task:
    """A task with the fields that `configs/task/base.yaml` explains. Raises UserError for contradictory fields."""

    name: str
    version: int  # goes up with every change that moves numbers
    corpus: Callable[[], Corpus] | None  # opened only if the clips are needed; None: there are no clips
    split: str | None
    reference: str | None  # column with the right answers; None: there are none, as for votes
    metrics: Sequence[Metric]  # the first that can be computed is the main one
    separator: str | None = None  # between alternatives in the reference column
    id: str = "clip_id"  # column
    transcript: bool = True  # whether the corpus's text is the transcript
    group: str | None = None  # column; samples with the same value are also scored as a group
    system_prompt: str | None = None
    question: str | None = None
    layout: Layout = "question_last"  # where a DiVA and its LLM get the question
    labels: dict[str, str] | None = None  # the model's word for a class -> the data's name of the class
    max_new_tokens: int = 64
    max_samples: int | None = None
    variant: str | None = None  # which of `variants` this is
    variants: Mapping[str, str] = field(default_factory=dict)  # its name in the data -> a readable one

    def __post_init__(self) -> None:
        if self.variants and self.variant not in self.variants:
            raise UserError(f"task.variant={self.variant} is none of {', '.join(self.variants)}")
        if self.layout not in get_args(Layout):
            raise UserError(f"task.layout={self.layout} is none of {', '.join(get_args(Layout))}")
        if not self.metrics:
            raise UserError(f"the task {self.name} has no metric; name at least one in task.metrics")
        if self.labels is not None and len(set(self.labels.values())) < len(self.labels):
            raise UserError(f"two of the task's labels mean the same: {dict(self.labels)}")

    @property
    def full_name(self) -> str:
        return self.name if self.variant is None else f"{self.name}_{self.variant}"

    @property
    def instruction(self) -> Instruction:
        return Instruction(self.system_prompt, self.question, self.layout)

    def open(self) -> Manifest:
        """The manifest of the task's split. Raises UserError as its corpus does, and if there is no corpus."""
        if self.corpus is None or self.split is None:
            raise UserError(f"{self.full_name} has no clips to ask about: predictions=FILE references=file")
        return self.corpus().manifest(self.split)

    def samples(self, manifest: Manifest) -> list[Sample]:
        """The clips that have a reference, in the corpus's order. Raises UserError for a missing column."""
        assert self.reference is not None
        columns = [manifest.column(name) for name in (self.id, self.reference, self.group or "clip_id")]
        found = []
        for row, (name, reference, group) in enumerate(zip(*columns, strict=True)):
            references = self._alternatives(reference)
            if references:
                said = manifest.text(row) if self.transcript else None
                found.append(Sample(name, row, references, said, group if self.group else None))
        if not found:
            raise UserError(f"no clip of {manifest.origin} has a value in the column {self.reference!r}")
        self._check(found, manifest.origin)
        return found[: self.max_samples]

    def _alternatives(self, cell: str) -> tuple[str, ...]:
        parts = [cell] if self.separator is None else cell.split(self.separator)
        return tuple(part.strip() for part in parts if part.strip())

    def _check(self, samples: Sequence[Sample], origin: str) -> None:
        ids = {sample.id for sample in samples}
        if len(ids) < len(samples):
            raise UserError(
                f"{origin}: the column {self.id!r} names several clips alike; choose another task.id"
            )
        if self.labels is not None:
            unknown = {s.references[0] for s in samples} - set(self.labels.values())
            if unknown:
                raise UserError(
                    f"{origin}: the column {self.reference!r} holds {', '.join(map(repr, sorted(unknown)))}, which"
                    f" task.labels does not know: {dict(self.labels)}"
                )


def data_hash(samples: Sequence[Sample]) -> str:
    """A digest of the samples and their references. Results can be compared if it is the same."""
    digest = sha256()
    for sample in samples:
        digest.update(f"{sample.id}\t{sample.transcript}\t{sample.references}\n".encode())
    return digest.hexdigest()[:12]
