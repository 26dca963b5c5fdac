"""The work of ``undo``: plans which operations to take back in a volume, and has its layer do it.
The CLI shows what is returned here."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from fusejournal.admin.live import live_status
from fusejournal.admin.source import JournalSource, open_source
from fusejournal.errors import (
    ConflictError,
    PrivilegeError,
    UndoOverlapError,
    UsageError,
)
from fusejournal.history.json_values import exact_or_none
from fusejournal.history.query import Criteria, SeqRange, find, parse_ranges
from fusejournal.node.state_dir import VolumeState
from fusejournal.replay.divergence import NAME_TAKEN
from fusejournal.replay.undo_plan import Action, OnUndoConflict, Undo, UndoPlan, begun_undos
from fusejournal.types import Progress, Seq


class DoneEntries(NamedTuple):
    """The entries that an undo made, both ends included, with those of others between; none where
    the last is below the first."""

    from_seq: Seq
    to_seq: Seq
    pid: int


class PlannedUndo:
    """An undo that was planned, and can be carried out."""

    def __init__(
        self, source: JournalSource, state: VolumeState | None, work: Undo, plan: UndoPlan
    ) -> None:
        self.source = source
        self.plan = plan
        self.actions: list[Action] = list(work.actions(plan))
        self.imports = work.imports
        """Chosen entries that tell what was there before the volume: they stay."""
        self._state = state
        self._work = work

    def check(self) -> None:
        """Raises ConflictError where nothing can be done: later changes are in the way, or all
        that was chosen has to stay."""
        plan = self.plan
        if plan.conflicts:
            raise ConflictError(self._words_on_conflicts())
        if plan.kept and not plan.chosen:
            kept = "it" if plan.kept == 1 else f"all {plan.kept:,} of them"
            raise ConflictError(
                f"nothing can be taken back: later changes rely on {kept}; without "
                "--on-conflict skip they are named"
            )

    def carry_out(self, progress: Progress) -> UndoOverlapError | None:
        """Have it done. Returns the error that is to be raised in the end where all is done, but
        other processes changed the same things at the same moment. Raises ConflictError,
        JournalError, OSError, and what *progress* raises: :meth:`done` returns what is done
        then."""
        assert self._state is not None
        try:
            self._work.carry_out(self.plan, self._state.mountpoint, progress)
        except UndoOverlapError as error:
            return error
        return None

    def done(self) -> DoneEntries:
        """Returns the entries that it has made so far. Raises NotRunningError."""
        assert self._state is not None
        last = live_status(self._state).head_seq or 0
        return DoneEntries(Seq(self.plan.head_seq + 1), Seq(last), os.getpid())

    def newest_entry(self) -> tuple[Seq, int] | None:
        """Returns the seq and the time, in nanoseconds since 1970, of the newest entry of the
        journal; None where it has none. Raises JournalDamagedError."""
        head_seq = self.plan.head_seq
        for last in self.source.reader.read(head_seq, Seq(head_seq + 1)):
            return head_seq, last.time_ns
        return None

    def overlap_paths(self) -> list[tuple[bytes | None, Seq, int]]:
        """Returns what others changed at the same moment: the path, their entry and their pid."""
        return [(self._work.path_of(one), one.seq, one.pid) for one in self.plan.overlaps]

    def to_json(self, done: DoneEntries | None) -> dict[str, Any]:
        """Returns what ``undo --json`` prints."""
        return {
            "chosen": len(self.plan.chosen),
            "kept": self.plan.kept,
            "actions": [
                {
                    "action": one.what,
                    "fid": one.fid,
                    "path": exact_or_none(one.path),
                    "new_path": exact_or_none(one.new_path),
                    "taken_path": exact_or_none(one.taken_path),
                    "takes_back": one.because_of,
                }
                for one in self.actions
            ],
            "conflicts": [one.to_json() for one in self.plan.conflicts],
            "overlaps": [
                {"seq": seq, "pid": pid, "path": exact_or_none(path)}
                for path, seq, pid in self.overlap_paths()
            ],
            "applied": None if done is None else done._asdict(),
        }

    def _words_on_conflicts(self) -> str:
        """Returns what is in the way; where undos did that, with how to go on with them."""
        lookup = self.source.lookup
        conflicts = self.plan.conflicts
        left = {conflict.seq for conflict in conflicts}
        resumes, seqs = [], []
        for pid, criteria in sorted(begun_undos(lookup).items()):
            done = [Seq(match.entry.seq) for match in find(lookup, criteria)]
            if not left.isdisjoint(done):
                resumes.append(f"--resume {pid}")
                seqs += done
        if left.issubset(seqs):
            return (
                "nothing was written: all that is in the way was done by an undo, as entries "
                f"{min(seqs)} to {max(seqs)}; if that was of the same, all was taken back already; "
                f"if it was stopped half-way, {' '.join(resumes)}"
            )
        count = len(conflicts)
        beside = ", aside" if any(one.reason == NAME_TAKEN for one in conflicts) else ""
        words = (
            f"{count:,} later change{'s' if count > 1 else ''} in the way: choose others, take "
            f"those back too, or --on-conflict skip{beside}"
        )
        if resumes:
            words += "; some are an undo's: if that was of the same and was stopped, "
        return words + " ".join(resumes)


class UndoRequest:
    """An undo that an admin asks for, checked."""

    def __init__(
        self,
        volume: str,
        seqs: Sequence[str],
        *,
        paths: Sequence[str] = (),
        ops: Sequence[str] = (),
        uid: int | None = None,
        pids: Sequence[int] = (),
        since: str | None = None,
        until: str | None = None,
        without: Sequence[str] = (),
        resumed: Sequence[int] = (),
        window: SeqRange | None = None,
        do_apply: bool,
    ) -> None:
        """Raises UsageError, VolumeNotFoundError, NoSuchSeqError, NoSuchMomentError,
        PathNotFoundError, NotRunningError, PrivilegeError, JournalError.

        Args:
            volume: its name, mountpoint or state directory; to plan alone, a copy of its journal.
            seqs: seqs or ranges of them, both ends included.
            paths, ops, uid, since, until, without: as in :meth:`JournalSource.criteria`.
            pids: of the callers that asked for it; none: any.
            resumed: processes whose stopped undos are gone on with.
            window: what ``since`` and ``until`` meant when they were asked first, which holds in
                their place: a time such as "2 hours ago" means another moment each time.
            do_apply: whether it is to be carried out, which takes a running volume and root."""
        if not (seqs or paths or ops or uid is not None or pids or since or until):
            raise UsageError("say which: seqs, or --path, --op, --uid, --pid, --since, --until")
        self._source = source = open_source(volume)
        for one in parse_ranges(seqs):
            source.check_seq(one.from_seq)
            source.check_seq(one.to_seq - 1)
        if since is not None and window is None:
            source.check_since(since)
        elif since is not None and window is not None and window.from_seq < source.reader.first_seq:
            source.check_seq(window.from_seq)
        self._state = _running(source) if do_apply else None
        criteria = source.criteria(
            from_seq=source.reader.first_seq,
            since=since if window is None else None,
            until=until if window is None else None,
            ops=ops,
            uid=uid,
            paths=paths,
            only=seqs,
            without=without,
        )
        if window is not None:
            criteria = replace(
                criteria,
                from_seq=Seq(max(criteria.from_seq, window.from_seq)),
                to_seq=Seq(min(criteria.to_seq, window.to_seq)),
            )
        self.window = SeqRange(criteria.from_seq, Seq(min(criteria.to_seq, source.head_seq + 1)))
        """The seqs that are chosen from: none after the head, as it is now."""
        first, *others = [replace(criteria, pid=pid) for pid in dict.fromkeys(pids)] or [criteria]
        unfinished = [*others, *_done_by(source, resumed)]
        self._work = Undo(source.lookup, first, source.head_seq, unfinished=unfinished)

    def plan(self, progress: Progress, on_conflict: OnUndoConflict) -> PlannedUndo:
        """Find out what it comes to. Raises JournalError, JournalDamagedError."""
        plan = self._work.plan(progress, on_conflict=on_conflict)
        return PlannedUndo(self._source, self._state, self._work, plan)


def _running(source: JournalSource) -> VolumeState:
    """The running volume to work on. Raises UsageError, NotRunningError, PrivilegeError."""
    if source.state is None:
        raise UsageError(f"{source.name} is a copy of a journal: only a volume can be undone")
    if os.geteuid() != 0:
        raise PrivilegeError("undoing needs root: try sudo")
    if live_status(source.state).role != "primary":
        raise UsageError(
            f"{source.name} is a mirror, which only its primary changes: undo on its primary"
        )
    return source.state


def _done_by(source: JournalSource, pids: Sequence[int]) -> list[Criteria]:
    """Finds what the undos of processes have done. Raises UsageError."""
    begun = begun_undos(source.lookup) if pids else {}
    for pid in pids:
        if pid not in begun:
            raise UsageError(f"{source.name}: process {pid} has begun no undo here")
    return [begun[pid] for pid in pids]
