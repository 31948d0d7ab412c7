"""Folders that one process at a time writes into."""

import errno
import fcntl
import os
from pathlib import Path
from typing import TextIO

from diva.errors import UserError

_LOCK = ".taken"
_IN_USE = (errno.EACCES, errno.EAGAIN)
# Never closed: the system gives a file's lock back when the process closes it, or ends, however it ends.
_held: dict[Path, TextIO] = {}


def take(folder: Path) -> None:
    """Make `folder`, and let no other process take it until this one has ended.

    The lock is the process's own: forks (DataLoader workers) do not have it, and NFS knows it on every node. On a disk
    without locks nothing is checked. Raises UserError where another process has the folder; OSError where it cannot be
    written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (path := folder.resolve()) in _held:
        return
    file = (folder / _LOCK).open("a", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _IN_USE:
            file.close()
            raise UserError(
                f"{folder} is in use: another process writes into it; wait for its end, or choose another folder"
            ) from error
    _held[path] = file


def take_new(folder: Path) -> Path:
    """Take `folder`, or where another process has it, the first of FOLDER_2, FOLDER_3, ... that none has."""
    number, candidate = 1, folder
    while True:
        try:
            take(candidate)
            return candidate
        except UserError:
            number += 1
            candidate = folder.with_name(f"{folder.name}_{number}")


def is_first_process(environ: "os._Environ[str] | dict[str, str]" = os.environ) -> bool:
    """Whether this process is the one of its run that writes, by what torchrun, SLURM or Lightning have told it."""
    ranks = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    rank = next((environ[name] for name in ranks if name in environ), "0")
    node = environ.get("NODE_RANK", environ.get("GROUP_RANK", "0"))
    return int(rank) == 0 and ("RANK" in environ or int(node) == 0)
