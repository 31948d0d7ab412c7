"""Locks on folders: only one process at a time writes into a folder."""

import errno
import fcntl
import os
from pathlib import Path
from typing import TextIO

from diva.errors import UserError

_LOCK = ".taken"
_IN_USE = (errno.EACCES, errno.EAGAIN)
# Never closed: the system releases the lock when the process closes the file or ends.
_held: dict[Path, TextIO] = {}


def take(folder: Path) -> None:
    """Make `folder` and lock it until this process ends.

    Forked processes (DataLoader workers) do not inherit the lock. It works across nodes on NFS. On a file system
    without locks nothing is checked. Raises UserError if another process has locked the folder, OSError if it is not
    writable.
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
    """Take `folder`. If another process has it, take the first free one of FOLDER_2, FOLDER_3, ..."""
    number, candidate = 1, folder
    while True:
        try:
            take(candidate)
            return candidate
        except UserError:
            number += 1
            candidate = folder.with_name(f"{folder.name}_{number}")


def is_first_process(environ: "os._Environ[str] | dict[str, str]" = os.environ) -> bool:
    """Whether this process writes the files of its run, by the variables of torchrun, SLURM or Lightning."""
    ranks = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    rank = next((environ[name] for name in ranks if name in environ), "0")
    node = environ.get("NODE_RANK", environ.get("GROUP_RANK", "0"))
    return int(rank) == 0 and ("RANK" in environ or int(node) == 0)
