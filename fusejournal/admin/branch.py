"""Branches of a volume, mounted or not: what histories that lost had."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from fusejournal.admin.source import JournalSource, on_base
from fusejournal.control.reply import Reply
from fusejournal.errors import FusejournalError
from fusejournal.history.query import find_newest
from fusejournal.journal.branches import Branch, drop_branch, find_branch, list_branches
from fusejournal.node.state_dir import VolumeState
from fusejournal.types import Seq
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
    """The peer whose history was followed instead,"""
    reign: str
    """and the reign that it went by."""
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
