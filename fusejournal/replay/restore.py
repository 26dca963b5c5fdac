"""Restore: the tree, a directory or one file as it was at a moment, in a new directory.

It is made aside, in a hidden directory next to where it belongs, looked over, flushed, and only
then renamed into its place, so that there is either nothing or all of it. The whole tree is
replayed; a part of it is folded from its own entries."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from stat import S_IFDIR, S_IFMT
from typing import NamedTuple

from fusejournal.backing import syscalls
from fusejournal.backing.catalog import Catalog
from fusejournal.errors import JournalError, TargetError
from fusejournal.journal.criteria import Criteria
from fusejournal.journal.lookup import Lookup
from fusejournal.operations import RENAME_NOREPLACE
from fusejournal.replay.fold import Fold, carry_out, find_file
from fusejournal.replay.replay import Replay
from fusejournal.replay.target import Progress, Target, beside, can_go_on, lock_scratch, scratch_of
from fusejournal.types import ROOT_FID, Fid, Seq


class Restored(NamedTuple):
    """What was restored: names, and where the file or directory asked for is."""

    names: int
    path: Path


def restore(
    lookup: Lookup, path: bytes, before_seq: Seq, target: Path, progress: Progress
) -> Restored:
    """Restore *path* (``b""``: the whole tree) as it was before *before_seq* as the new directory
    *target*; one file lies in it by its name. The same restore goes on where it was stopped.

    Raises TargetError (there is something already), PathNotFoundError, JournalError,
    JournalDamagedError, and what Target.apply raises; *target* is not there then."""
    target = Path(os.path.abspath(target))
    if os.path.lexists(target):
        raise TargetError(target, "is there already: a restore goes into a new directory")
    if not target.parent.is_dir():
        raise TargetError(target.parent, "no such directory")
    fid = find_file(lookup, path, before_seq)
    staging = beside(target, "fusejournal-restore")
    purpose = {
        "restore": path.decode("utf-8", "surrogateescape"),
        "volume": str(lookup.reader.uuid),
        "before_seq": before_seq,
    }
    if not can_go_on(staging, purpose):
        if scratch_of(staging).exists():
            os.close(lock_scratch(staging))  # not what another process is at
        _discard(staging)
    _make(staging)
    try:
        with Target(staging, purpose) as stage:
            inner = staging
            if not path:
                criteria = Criteria(from_seq=Seq(1), to_seq=before_seq)
                for _ in Replay(lookup, criteria).run(stage, progress):
                    pass
            else:
                stage.clear_acls()
                inner = _fold(lookup, fid, path.rpartition(b"/")[2], before_seq, stage, progress)
            names = check(stage)
            stage.finish()
    except JournalError:
        _discard(staging)  # it will never be whole
        raise
    try:
        syscalls.rename(
            syscalls.AT_FDCWD, os.fsencode(staging), syscalls.AT_FDCWD, os.fsencode(target),
            RENAME_NOREPLACE,
        )  # fmt: skip
    except OSError as error:
        raise TargetError(target, f"{error.strerror}; what was restored is in {staging}") from None
    return Restored(names, target / inner.relative_to(staging))


def _discard(staging: Path) -> None:
    """Remove what an earlier restore left."""
    for path in (staging, scratch_of(staging)):
        if path.exists():
            # Not by Python: trees can be deeper than it recurses.
            subprocess.run(["rm", "-rf", "--", path], check=True)


def _make(staging: Path) -> None:
    try:
        staging.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise TargetError(staging, error.strerror or "cannot be made") from None


def _fold(
    lookup: Lookup, fid: Fid, name: bytes, before_seq: Seq, stage: Target, progress: Progress
) -> Path:
    fold = Fold(lookup, before_seq)
    if fold.is_directory(fid):
        carry_out(stage, fold.tree(fid), progress)
        return stage.path
    carry_out(stage, fold.file(fid, (ROOT_FID, name)), progress)
    return stage.path / os.fsdecode(name)


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
                    stage.path, f"was changed by somebody else: {os.fsdecode(name)} is not as made"
                )
            count += 1
        if len(found) != len(expected):
            more = os.fsdecode(min(found - expected.keys()))
            raise TargetError(stage.path, f"was changed by somebody else: {more} is new")
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
