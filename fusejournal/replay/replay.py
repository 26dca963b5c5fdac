"""Replay: a range of a journal's operations, all or chosen, carried out in order on a target.

First the plan, which reads the range without writing anything: where operations are left out, it
finds those that rely on them (divergence.py); where the range does not begin with the first entry,
it looks whether the target has the files that the range is about. Then the operations. A stopped
replay goes on with the same call."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from fusejournal.errors import ConflictError, JournalError, TargetError
from fusejournal.history.lookup import Lookup
from fusejournal.history.query import Criteria, Match, walk
from fusejournal.journal.outcomes import with_outcomes
from fusejournal.operations import (
    NAME_KINDS,
    ControlOperation,
    Kind,
    Moving,
    made_by,
)
from fusejournal.replay.divergence import Conflict, Divergence
from fusejournal.replay.target import Target
from fusejournal.types import ROOT_FID, Fid, Progress, Seq

Verdict = Literal["done", "skipped", "refused"]
"""``refused``: the file system refused it then, so there is nothing to do."""

OnReplayConflict = Literal["stop", "skip", "ask"]
ON_CONFLICT: tuple[str, ...] = get_args(OnReplayConflict)

_CONFLICTS_KEPT = 1000
_PREPARED = NAME_KINDS | {Kind.SETFLAGS}


class Result(NamedTuple):
    """The fate of one chosen operation."""

    match: Match
    verdict: Verdict
    conflict: Conflict | None

    def to_json(self) -> dict[str, Any]:
        """Returns what ``replay --json`` prints of it."""
        entry = self.match.entry
        line = {
            "seq": entry.seq,
            "op": entry.operation.kind.name.lower(),
            "result": self.verdict,
        }
        if self.conflict is not None:
            line["reason"] = self.conflict.reason
            line["because_of"] = self.conflict.because_of
        return line


@dataclass
class Plan:
    """The extent of a replay: counts of operations, and the first conflicts."""

    done: int = 0
    left_out: int = 0
    refused: int = 0
    conflicts: list[Conflict] = field(default_factory=list)
    more_conflicts: int = 0
    """Conflicts beyond those in the list."""

    @property
    def conflict_count(self) -> int:
        """The number of operations that cannot be carried out."""
        return len(self.conflicts) + self.more_conflicts

    def to_json(self) -> dict[str, Any]:
        """Returns what ``replay --dry-run --json`` prints."""
        return {
            "would_do": self.done,
            "left_out": self.left_out,
            "refused": self.refused,
            "conflict_count": self.conflict_count,
            "conflicts": [one.to_json() for one in self.conflicts],
        }

    def count(self, result: Result) -> None:
        """Add one result."""
        if result.verdict == "done":
            self.done += 1
        elif result.verdict == "refused":
            self.refused += 1
        elif result.conflict is not None:
            if len(self.conflicts) < _CONFLICTS_KEPT:
                self.conflicts.append(result.conflict)
            else:
                self.more_conflicts += 1


class Replay:
    """One replay of what *criteria* choose, whose ``from_seq`` and ``to_seq`` are its range."""

    def __init__(self, lookup: Lookup, criteria: Criteria) -> None:
        """Raises JournalError when the journal lacks its beginning, without which it is not known
        which file in the target is which."""
        self._lookup = lookup
        self._criteria = criteria
        if lookup.base is not None and criteria.from_seq <= lookup.base.base.seq:
            base_seq = lookup.base.base.seq
            raise JournalError(
                f"the entries up to {base_seq} are not in the journal any more: restore the tree "
                f"as of seq {base_seq} first, and replay into that from seq {base_seq + 1} on"
            )
        if not lookup.is_whole:
            raise JournalError(
                f"the journal here begins with seq {lookup.reader.first_seq}: a replay needs it "
                "from seq 1, for what was there before"
            )

    def plan(self, progress: Progress) -> Plan:
        """Returns what would be done, by the journal alone. Raises JournalDamagedError."""
        plan = Plan()
        for result in self._results(None, progress):
            plan.count(result) if result is not None else None
        plan.left_out = self._left_out
        return plan

    def run(
        self,
        target: Target,
        progress: Progress,
        *,
        ask: Callable[[Conflict, Match], bool] | None = None,
    ) -> Iterator[Result]:
        """Carry it out on *target*, a result for each chosen operation. *ask*: whether to skip an
        operation that conflicts (else it ends with ConflictError); without it all are skipped.
        Raises JournalDamagedError, ConflictError, TargetError and what Target.apply raises; the
        target then keeps what is done, to go on from there."""
        if self._criteria.from_seq == 1 and not target.done_seq:
            target.stage.clear_acls()
        self._prepare(target, progress)
        for result in self._results(target, progress):
            if result is None:
                continue
            if result.verdict == "skipped" and result.conflict is not None:
                if ask is not None and not ask(result.conflict, result.match):
                    raise ConflictError(str(result.conflict))
            elif result.verdict == "done":
                _apply(target, result.match)
            yield result

    def check_target(self, target: Target, progress: Progress) -> None:
        """Look whether the files that the range is about, and that were there before it, are in
        *target* where they were. Raises TargetError with the first that is not."""
        self._prepare(target, progress)
        if self._criteria.from_seq == 1 or target.done_seq:
            return
        seen: set[Fid] = {ROOT_FID}
        for match, chosen in walk(self._lookup, self._criteria):
            operation = match.entry.operation
            if isinstance(operation, ControlOperation) or not match.outcome.held:
                continue
            if (making := made_by(operation)) is not None:
                seen.add(making.fid)
            fids = operation.touched_fids
            if isinstance(operation, Moving) and operation.replaced:
                fids += (operation.replaced,)
            for fid in fids if chosen else ():
                if fid not in seen:
                    seen.add(fid)
                    self._check_file(target, fid, match)

    def _check_file(self, target: Target, fid: Fid, match: Match) -> None:
        try:
            target.bind(fid)
        except OSError as error:
            path = target.catalog.path(fid)
            where = "?" if path is None else path.decode("utf-8", "backslashreplace")
            raise TargetError(
                target.path,
                f"does not hold the state before seq {self._criteria.from_seq}: "
                f"{where}, which seq {match.entry.seq} is about: {error.strerror}",
            ) from None

    def _prepare(self, target: Target, progress: Progress) -> None:
        """Note in the target's catalog which files were there before the range, and which of them
        may be locked."""
        base = self._lookup.base
        if base is not None and target.catalog.applied_seq < base.base.seq:
            target.record_base(base)
        begin = max(target.catalog.applied_seq + 1, 1)
        if begin >= self._criteria.from_seq:
            return
        entries = self._lookup.reader.read(Seq(begin), self._criteria.from_seq)
        for entry, outcome in with_outcomes(entries):
            operation = entry.operation
            if not isinstance(operation, ControlOperation) and (
                outcome.held and operation.kind in _PREPARED
            ):
                target.record(operation, entry.seq, entry.time_ns)
            progress(entry.seq, None)

    def _results(self, target: Target | None, progress: Progress) -> Iterator[Result | None]:
        """Yields what is to become of each chosen operation; None for one that was dealt with in an
        earlier run."""
        criteria = self._criteria
        divergence = Divergence(self._lookup)
        resumed = target.catalog.applied_seq if target is not None else 0
        self._left_out = 0
        total = criteria.to_seq - criteria.from_seq
        for match, chosen in walk(self._lookup, criteria):
            entry, outcome, _, _ = match
            operation = entry.operation
            progress(entry.seq - criteria.from_seq, total)
            if isinstance(operation, ControlOperation):
                continue
            if not outcome.held:
                if chosen and entry.seq > resumed:
                    yield Result(match, "refused", None)
                continue
            conflict = divergence.include(operation, entry.seq) if chosen else None
            if not chosen or conflict is not None:
                divergence.leave_out(operation, entry.seq)
                self._left_out += not chosen
            if chosen and entry.seq > resumed:
                yield Result(match, "done" if conflict is None else "skipped", conflict)


def _apply(target: Target, match: Match) -> None:
    entry = match.entry
    assert not isinstance(entry.operation, ControlOperation)
    target.apply(entry.operation, entry.seq, entry.time_ns, match.outcome.data_of(entry))
