"""The exchange of two names where the file system has none (RENAME_EXCHANGE), as a mirror's or a
replay's target may: by three renames, by way of the hidden directory. No user sees them, because
only the layer reaches the names.

Each step can be taken back, and a process that died between two is known by the name that is
missing. Source: rename(2)."""

import errno
import os
from contextlib import suppress

from fusejournal.backing.apply_results import MustWork
from fusejournal.backing.tree import Tree
from fusejournal.disk import failpoints, syscalls
from fusejournal.operations import RENAME_EXCHANGE, Rename

_REFUSED = MustWork("the names after a refused exchange")
_TRIED = b"one.tried", b"other.tried"


def can_exchange(staging_fd: int) -> bool:
    """Returns whether the file system of directory *staging_fd* exchanges names: two are tried
    there. Raises OSError where that cannot be determined."""
    try:
        for name in _TRIED:
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=staging_fd)
        one, other = _TRIED
        syscalls.rename(staging_fd, one, staging_fd, other, RENAME_EXCHANGE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    finally:
        for name in _TRIED:
            with suppress(OSError):
                os.rmdir(name, dir_fd=staging_fd)
    return True


def exchange_by_steps(
    tree: Tree, operation: Rename, staging_fd: int, *, is_half_done: bool
) -> None:
    """Exchange the names of *operation*, in *tree*, whose hidden directory is open on *staging_fd*.
    *is_half_done*: a process that died has begun it. Raises OSError: nothing is done then, unless
    it was half done; ApplyBrokenError."""
    old, new = tree.pair(operation.parent, operation.new_parent)
    spare = b"%d.exchange" % operation.fid
    moves = [
        (old, operation.name, staging_fd, spare),
        (new, operation.new_name, old, operation.name),
        (staging_fd, spare, new, operation.new_name),
    ]
    if is_half_done:
        moves = moves[1:] if tree.probe_in(new, operation.new_name) is not None else moves[2:]
    done: list[tuple[int, bytes, int, bytes]] = []
    try:
        for move in moves:
            failpoints.reached("apply.exchange.step")
            syscalls.rename_onto_nothing(*move)
            done.append(move)
    except OSError:
        if not is_half_done:
            with _REFUSED:
                for from_dir, name, to_dir, new_name in reversed(done):
                    syscalls.rename_onto_nothing(to_dir, new_name, from_dir, name)
        raise
