"""Room for a copy of a tree, asked before anything is moved: on the mirror, for the files and for
the copy of them that its store gets; on the source, for a version of its tree.

What contents take once they are compressed is not known before; so it is refused where they cannot
fit, and a warning says where they may not. An admin who knows better (files with large holes count
in full) can say so."""

import os
from collections.abc import Callable
from pathlib import Path

from fusejournal.journal.segment import first_seq_of
from fusejournal.node.disk_space import disk_space
from fusejournal.objects.service import is_address
from fusejournal.roles.rejoin import RejoinError
from fusejournal.types import Seq
from fusejournal.versions.manifest import Version
from fusejournal.versions.place import StorePlace


def check_target(
    backing: Path,
    store: StorePlace,
    version: Version,
    own: Version | None,
    warn: Callable[[str], None],
) -> None:
    """Checks whether a mirror has room to become *version*; *own* is what it has, if anything.
    Raises RejoinError where it cannot have; OSError."""
    grown = max(version.content_bytes - (own.content_bytes if own is not None else 0), 0)
    free = disk_space(backing).free_bytes
    if grown > free:
        raise RejoinError(
            f"the tree has {shown_bytes(grown)} of contents{' more than here' if own else ''}, and "
            f"{backing} has {shown_bytes(free)} free: nothing was copied; make room there, or, "
            "where its files are holes for the most part, go on with --ignore-space"
        )
    if is_address(store.store):
        return
    is_same = os.stat(backing).st_dev == os.stat(store.store).st_dev
    left = disk_space(Path(store.store)).free_bytes - (grown if is_same else 0)
    if grown > left:
        warn(
            f"the copy may not fit: it takes up to {shown_bytes(grown)} in {store.store}, which "
            f"has {shown_bytes(max(left, 0))} for it"
        )


def check_source(
    state_dir: Path,
    backing: Path,
    store: StorePlace | None,
    segments: list[Path],
    known_seq: Seq,
) -> None:
    """Checks whether there is room for a version of the tree of the volume in *state_dir*, beside
    the journal, which must not be without any: no more than its *segments* have after *known_seq*,
    as of which there is one, nor than is on the backing's file system. Raises RejoinError,
    OSError."""
    where = state_dir if store is None else Path(store.store)
    if store is not None and is_address(store.store):
        return
    firsts = [first_seq_of(path) for path in segments]
    ends = [*firsts[1:], None]
    newer = [
        path for path, end in zip(segments, ends, strict=True) if end is None or end > known_seq + 1
    ]
    needed = sum(path.stat().st_size for path in newer[:-1])
    space = os.statvfs(backing)
    needed = min(needed, (space.f_blocks - space.f_bfree) * space.f_frsize)
    free = disk_space(where).free_bytes
    if needed > free:
        raise RejoinError(
            f"a version of its tree takes up to {shown_bytes(needed)} in {where}, which has "
            f"{shown_bytes(free)} free: make room there, or keep its versions elsewhere "
            "('fusejournal version store init')"
        )


def shown_bytes(count: int) -> str:
    """Returns a number of bytes as messages about room show it."""
    return f"{count / 1e6:,.1f} MB"
