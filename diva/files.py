"""Atomic writes: a file is complete or does not exist."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path to write to, in the folder of `path`. At the end of the block it is renamed to `path`.

    A reader of `path` sees the old file or the new one, never a part. After an error the old file is unchanged.
    """
    unfinished = path.with_name(f"{path.name}.part")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
