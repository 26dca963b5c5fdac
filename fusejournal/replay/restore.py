"""Restore: the tree, a directory or one file as it was at a moment, in a new directory.

It is made aside, in a scratch directory next to where it belongs, which only root can enter, looked
over, flushed, and only then renamed into its place, so that there is either nothing or all of it.
The whole tree is replayed, where the journal has all entries; a part of it, and what begins with a
base, is folded from its own entries."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_IFDIR, S_IFMT
from typing import NamedTuple

from fusejournal.backing.catalog import Catalog
from fusejournal.disk import syscalls
from fusejournal.errors import JournalError, PrivilegeError, TargetError
from fusejournal.history.lookup import Lookup
from fusejournal.history.query import Criteria
from fusejournal.operations import RENAME_NOREPLACE
from fusejournal.replay.fold import Fold, carry_out, find_file
from fusejournal.replay.replay import Replay
from fusejournal.replay.scratch import TREE, Scratch, Spot, find_spot
from fusejournal.replay.target import Target, can_go_on
from fusejournal.types import ROOT_FID, Fid, Progress, Seq

_RESTORE = "fusejournal-restore"


class Restored(NamedTuple):
    """The result of a restore: the number of names, and where the file or directory asked for
    is."""

    names: int
    path: Path


class Filled(NamedTuple):
    """A target that has all that it is to have."""

    name: str
    """The name in it of what was asked for, or "" for all."""
    names: int
    """The number of names, all looked over."""
    lock: Callable[[], None]
    """Makes files immutable and append-only that are to be: see Target.lock."""
    is_flushed: bool = False
    """True if the files in it are on the disk."""


def restore(
    lookup: Lookup, path: bytes, before_seq: Seq, target: Path, progress: Progress
) -> Restored:
    """Restore *path* (``b""``: the whole tree) as it was before *before_seq* as the new directory
    *target*; one file lies in it by its name. The same restore goes on where it was stopped.

    Raises TargetError (there is something already), PathNotFoundError, JournalError,
    JournalDamagedError, and what Target.apply raises; *target* is not there then."""
    fid = find_file(lookup, path, before_seq)
    purpose = {
        "restore": path.decode("utf-8", "surrogateescape"),
        "volume": str(lookup.reader.uuid),
        "before_seq": before_seq,
    }

    def fill(stage: Target) -> Filled:
        name = ""
        if not path and lookup.base is None:
            criteria = Criteria(from_seq=Seq(1), to_seq=before_seq)
            for _ in Replay(lookup, criteria).run(stage, progress):
                pass
        else:
            stage.clear_acls()
            name = _fold(lookup, fid, path.rpartition(b"/")[2], before_seq, stage, progress)
        return Filled(name, check(stage), stage.lock)

    return restore_into(target, purpose, fill)


def restore_into(
    target: Path, purpose: dict[str, object], fill: Callable[[Target], Filled]
) -> Restored:
    """Makes the new directory *target*, with what *fill* puts into the target that it is given:
    aside, and in its place once it is whole. Where one with the same *purpose* was stopped, it goes
    on.

    Raises TargetError (there is something already), PrivilegeError, and what *fill* and
    Target.apply raise; *target* is not there then."""
    with find_spot(target) as spot:
        if spot.is_there():
            raise TargetError(spot.path, "is there already: a restore goes into a new directory")
        if os.geteuid() != 0:
            raise PrivilegeError("restoring owners and devices needs root: try sudo")
        scratch = _find_or_make(spot, purpose)
        with Target(spot.path, purpose, scratch=scratch) as stage:
            try:
                filled = fill(stage)
                stage.finish(is_flushed=filled.is_flushed)
            except JournalError:
                stage.discard(spot)  # it will never be whole
                raise
            unflushed = _put_in_place(scratch, spot)
            try:
                filled.lock()
            except OSError as error:
                raise TargetError(spot.path, f"its file flags: {error.strerror}") from None
            stage.discard(spot)
            if unflushed is not None:
                raise TargetError(
                    spot.path,
                    "is restored, and may be gone after a system crash, because its directory "
                    f"could not be flushed: {unflushed.strerror}",
                )
    return Restored(filled.names, spot.path / filled.name)


def _find_or_make(spot: Spot, purpose: dict[str, object]) -> Scratch:
    """The scratch directory with a tree in it, begun or new. Raises TargetError."""
    scratch = Scratch.find(spot, _RESTORE)
    if scratch is None:
        scratch = Scratch.make(spot, _RESTORE)
    elif can_go_on(scratch, purpose):
        return scratch
    try:
        scratch.empty()
        os.mkdir(TREE, 0o700, dir_fd=scratch.fd)
    except OSError as error:
        scratch.close()
        raise TargetError(scratch.path, error.strerror or "cannot be made") from None
    return scratch


def _put_in_place(scratch: Scratch, spot: Spot) -> OSError | None:
    """Give the tree its name, unless something else has it by now. Returns the error of a flush
    that failed then. Raises TargetError where it has no name."""
    try:
        syscalls.rename(
            scratch.fd, TREE.encode(), spot.fd, os.fsencode(spot.name), RENAME_NOREPLACE
        )
    except OSError as error:
        raise TargetError(
            spot.path, f"{error.strerror}; what was restored is in {scratch.path / TREE}"
        ) from None
    try:
        spot.sync()
    except OSError as error:
        return error
    return None


def _fold(
    lookup: Lookup, fid: Fid, name: bytes, before_seq: Seq, stage: Target, progress: Progress
) -> str:
    """Returns what the file asked for is called in the target; empty for the target itself."""
    fold = Fold(lookup, before_seq)
    if fold.is_directory(fid):
        carry_out(stage, fold.tree(fid), progress)
        return ""
    carry_out(stage, fold.file(fid, (ROOT_FID, name)), progress)
    return os.fsdecode(name)


def check(stage: Target) -> int:
    """Look over what was made: every name the catalog has is there, with its type, and no other.
    Returns how many names there are. Raises TargetError."""
    count = 0
    for directory, expected in _directories(stage.catalog):
        found = set(stage.tree.names(directory))
        for name, fid in expected.items():
            node = stage.tree.node(fid)
            if name not in found or S_IFMT(stage.tree.stat_name(directory, name).st_mode) != (
                node.type
            ):
                raise TargetError(
                    stage.path,
                    f"was changed by another process: {os.fsdecode(name)} is not as made",
                )
            count += 1
        if len(found) != len(expected):
            more = os.fsdecode(min(found - expected.keys()))
            raise TargetError(stage.path, f"was changed by another process: {more} is new")
    return count


def _directories(catalog: Catalog) -> Iterator[tuple[Fid, dict[bytes, Fid]]]:
    todo = [ROOT_FID]
    while todo:
        fid = todo.pop()
        names = {entry.name: entry.fid for entry in catalog.list(fid, 0)}
        for child in names.values():
            node = catalog.node(child)
            if node is not None and node.type == S_IFDIR:
                todo.append(child)
        yield fid, names
