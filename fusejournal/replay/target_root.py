"""The directory that is to be a target: opened, made, and looked at."""

import os
from contextlib import suppress
from pathlib import Path

from fusejournal.errors import TargetError
from fusejournal.replay.scratch import Scratch, Spot


def open_root(spot: Spot, from_seq: int | None, scratch: Scratch | None) -> int:
    """Returns a descriptor of the target at *spot*, made if it may be: for a replay that begins
    with *from_seq* 1 and is not gone on with in *scratch*. Raises TargetError."""
    path = spot.path
    try:
        if from_seq == 1 and scratch is None:
            with suppress(FileExistsError):
                os.mkdir(spot.name, 0o700, dir_fd=spot.fd)
        fd = spot.open_directory()
    except FileNotFoundError:
        if scratch is not None:
            reason = f"is not there any more: to begin again, delete {scratch.path}"
        elif from_seq is not None:
            reason = f"does not exist: it must hold the tree as of seq {from_seq - 1}"
        else:
            reason = "does not exist"
        raise TargetError(path, reason) from None
    except NotADirectoryError:
        raise TargetError(path, "is no directory") from None
    except OSError as error:
        raise TargetError(path, error.strerror or "cannot be used") from None
    # Also of one that was made just now: by its name there may be another by then.
    if from_seq == 1 and scratch is None and not is_empty(fd):
        os.close(fd)
        raise not_empty(path)
    return fd


def not_empty(path: Path) -> TargetError:
    """Returns the error for a directory that has names already."""
    return TargetError(path, "is not empty: a replay from seq 1 needs an empty directory")


def is_empty(fd: int) -> bool:
    """Returns whether the directory holds nothing (``lost+found`` of a new file system aside)."""
    return all(name == "lost+found" for name in os.listdir(fd))
