"""Branches of a volume, mounted or not: what histories that lost had."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from fusejournal.admin.source import JournalSource, on_base
from fusejournal.control.reply import Reply
from fusejournal.errors import FusejournalError
from fusejournal.history.query import Match, find_newest
from fusejournal.journal.branches import Branch, drop_branch, find_branch, list_branches
from fusejournal.node.state_dir import VolumeState
from fusejournal.types import Progress, Seq, SeqOrPosition
from fusejournal.volume.rollback import load_rollback


@dataclass(frozen=True, kw_only=True)
class BranchInfo(Reply):
    """One branch as people and scripts read it. Times are in nanoseconds since 1970."""

    name: str
    parted: str
    """The last position that both histories have, as EPOCH/SEQ/CHAIN."""
    first_seq: int
    head_seq: int
    entries: int
    """The changes in it."""
    uids: tuple[int, ...]
    """The users who made them."""
    first_ns: int
    last_ns: int
    source: str
    """The peer whose history was followed instead."""
    reign: str
    """The reign that *source* went by."""
    made_ns: int
    age_seconds: float
    """Counted while the volume was mounted."""
    bytes: int
    directory: str

    @classmethod
    def of(cls, branch: Branch) -> Self:
        """Returns *branch* as values."""
        return cls(
            name=branch.name,
            parted=str(branch.parted),
            first_seq=branch.first_seq,
            head_seq=branch.head.seq,
            entries=branch.entries,
            uids=branch.uids,
            first_ns=branch.first_ns,
            last_ns=branch.last_ns,
            source=branch.source,
            reign=branch.reign,
            made_ns=branch.made_ns,
            age_seconds=branch.age_seconds,
            bytes=branch.occupied_bytes,
            directory=str(branch.directory),
        )


def branches_of(
    state: VolumeState,
    *,
    uid: int | None = None,
    paths: Sequence[str] = (),
    since: str | None = None,
    until: str | None = None,
    report: Callable[[str], None],
) -> list[Branch]:
    """Returns the branches of a volume that have a change such as is asked for, the oldest first;
    without a question all.

    Args:
        state: of the volume.
        uid, paths, since, until: as in :meth:`JournalSource.criteria`.
        report: called with a line for each branch that cannot be understood.

    Raises UsageError, FusejournalError, OSError."""
    found = list_branches(state.directory, report)
    if uid is None and not paths and since is None and until is None:
        return found
    return [
        branch
        for branch in found
        if _has_any(BranchSource(state, branch), branch, uid, paths, since, until)
    ]


def _has_any(
    source: JournalSource,
    branch: Branch,
    uid: int | None,
    paths: Sequence[str],
    since: str | None,
    until: str | None,
) -> bool:
    criteria = source.criteria(
        from_seq=branch.first_seq,
        uid=uid,
        paths=paths,
        since=since,
        until=until,
        check_paths=False,
    )
    return next(find_newest(source.lookup, criteria, None), None) is not None


def branch_of(state: VolumeState, name: str) -> Branch:
    """Returns the branch *name* of a volume. Raises UnknownBranchError, FusejournalError."""
    return find_branch(state.directory, name)


def drop(state: VolumeState, name: str) -> BranchInfo:
    """Removes a branch for good; returns what it was. Raises UnknownBranchError, FusejournalError,
    OSError."""
    branch = branch_of(state, name)
    begun = load_rollback(state.directory)
    if begun is not None and begun.branch == name:
        raise FusejournalError(
            f"branch {name} is of a rejoin that is not at its end: 'fusejournal rejoin "
            f"{state.name}' goes on with it; drop it then"
        )
    told = BranchInfo.of(branch)
    drop_branch(branch)
    return told


class BranchRestored(NamedTuple):
    """The result of a restore from a branch."""

    target: str
    """The directory or file that was made."""
    names: int
    as_of_seq: int
    branch: str

    def to_json(self) -> dict[str, Any]:
        """Returns what ``branch restore --json`` prints."""
        return self._asdict()


def restore_from_branch(
    state: VolumeState,
    name: str,
    path: str | None,
    target: Path,
    progress: Progress,
    *,
    to_seq: SeqOrPosition | None = None,
    before_seq: SeqOrPosition | None = None,
) -> BranchRestored:
    """Restores from a branch into a new directory.

    Args:
        state: of the volume.
        name: of the branch.
        path: as people type it; None: the whole tree.
        target: the new directory.
        progress: called with how far it is; may raise.
        to_seq, before_seq: the moment, by one of the two; without them, the branch's end.

    Raises UnknownBranchError, UsageError, NoSuchSeqError, OtherHistoryError, and what restore
    raises."""
    # Only here: the other commands for branches need not load it.
    from fusejournal.replay.restore import restore

    branch = branch_of(state, name)
    source = BranchSource(state, branch)
    end = Seq(branch.head.seq + 1)
    if to_seq is not None or before_seq is not None:
        end = source.end_of(to_seq=to_seq, before_seq=before_seq)
    raw = source.path(path) if path else b""
    done = restore(source.lookup, raw, end, target, progress)
    return BranchRestored(str(done.path), done.names, end - 1, name)


def entries_of_branch(
    state: VolumeState,
    name: str,
    path: str | None,
    *,
    uid: int | None,
    since: str | None,
    until: str | None,
    count: int | None,
) -> Iterator[Match]:
    """Yields the entries of a branch that are asked for, the oldest first.

    Args:
        state: of the volume.
        name: of the branch.
        path, uid, since, until: as in :meth:`JournalSource.criteria`.
        count: only the newest so many.

    Raises UnknownBranchError, UsageError, PathNotFoundError, FusejournalError."""
    branch = branch_of(state, name)
    source = BranchSource(state, branch)
    criteria = source.criteria(
        from_seq=branch.first_seq,
        uid=uid,
        since=since,
        until=until,
        paths=(path,) if path else (),
    )
    return find_newest(source.lookup, criteria, count)


class BranchSource(JournalSource):
    """The history that ends with *branch*. Paths are typed as those of the volume *state*."""

    def __init__(self, state: VolumeState, branch: Branch) -> None:
        # (The journal of now may begin with another base, which comes after the branch.)
        reader = on_base(branch.whole_reader(), branch.whole_base(), state)
        super().__init__(f"branch {branch.name}", reader, state)
        self._head_seq = branch.head.seq

    def committed_head(self) -> Seq:
        """Returns its last seq: nothing is added to it."""
        return self._head_seq
