"""Restore: the tree, a directory or one file as it was at a moment, in a new directory.

It is made aside (made_aside.py), and looked over before it gets its place. The whole tree is
replayed, where the journal has all entries; a part of it, and what begins with a base, is folded
from its own entries."""

import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_IFDIR, S_IFMT

from fusejournal.backing.catalog import Catalog
from fusejournal.errors import TargetError
from fusejournal.history.lookup import Lookup
from fusejournal.history.query import Criteria
from fusejournal.replay.fold import Fold, carry_out, find_file
from fusejournal.replay.made_aside import Filled, Restored, check_names_directory, make_aside
from fusejournal.replay.replay import Replay
from fusejournal.replay.scratch import Scratch, Spot
from fusejournal.replay.target import Target
from fusejournal.types import ROOT_FID, Fid, Progress, Seq


def restore(
    lookup: Lookup, path: bytes, before_seq: Seq, target: Path, progress: Progress
) -> Restored:
    """Restore *path* (``b""``: the whole tree) as it was before *before_seq* as the new directory
    *target*; one file lies in it by its name. The same restore goes on where it was stopped.

    Raises TargetError (there is something already), PathNotFoundError, JournalError,
    JournalDamagedError, and what Target.apply raises; *target* is not there then."""
    fid = find_file(lookup, path, before_seq)
    name = path.rpartition(b"/")[2]
    if path and not Fold(lookup, before_seq).is_directory(fid):
        check_names_directory(target, name)
    purpose = {
        "restore": path.decode("utf-8", "surrogateescape"),
        "volume": str(lookup.reader.uuid),
        "before_seq": before_seq,
    }

    def open_target(spot: Spot, scratch: Scratch) -> Target:
        return Target(spot.path, purpose, scratch=scratch)

    def fill(made: Target) -> Filled:
        filled = ""
        if not path and lookup.base is None:
            criteria = Criteria(from_seq=Seq(1), to_seq=before_seq)
            for _ in Replay(lookup, criteria).run(made, progress):
                pass
        else:
            made.stage.clear_acls()
            filled = _fold(lookup, fid, name, before_seq, made, progress)
        return Filled(filled, check(made), made.lock)

    return make_aside(target, purpose, open_target, fill)


def _fold(
    lookup: Lookup, fid: Fid, name: bytes, before_seq: Seq, made: Target, progress: Progress
) -> str:
    """Returns what the file asked for is called in the target; empty for the target itself."""
    fold = Fold(lookup, before_seq)
    if fold.is_directory(fid):
        carry_out(made, fold.tree(fid), progress)
        return ""
    carry_out(made, fold.file(fid, (ROOT_FID, name)), progress)
    return os.fsdecode(name)


def check(made: Target) -> int:
    """Look over what was made: every name the catalog has is there, with its type, and no other.
    Returns how many names there are. Raises TargetError."""
    count = 0
    for directory, expected in _directories(made.catalog):
        found = set(made.tree.names(directory))
        for name, fid in expected.items():
            node = made.tree.node(fid)
            if name not in found or S_IFMT(made.tree.stat_name(directory, name).st_mode) != (
                node.type
            ):
                raise TargetError(
                    made.path,
                    f"was changed by another process: {os.fsdecode(name)} is not as made",
                )
            count += 1
        if len(found) != len(expected):
            more = os.fsdecode(min(found - expected.keys()))
            raise TargetError(made.path, f"was changed by another process: {more} is new")
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
