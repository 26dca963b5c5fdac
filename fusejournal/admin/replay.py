"""The work of ``replay``: carries out operations of a journal on a directory, in three steps that
the caller can show: plan, look at the target, run."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fusejournal.admin.source import JournalSource, open_source
from fusejournal.errors import ConflictError, TargetError, UsageError
from fusejournal.history.json_values import exact
from fusejournal.history.query import Match
from fusejournal.replay.divergence import Conflict
from fusejournal.replay.replay import OnReplayConflict, Plan, Replay, Result
from fusejournal.replay.restore import restore
from fusejournal.replay.scratch import purpose_of
from fusejournal.replay.target import Target
from fusejournal.types import Progress, Seq, SeqOrPosition

Ask = Callable[[Conflict, Match], bool]
"""Returns True if an operation that conflicts is to be skipped."""


class ReplayRequest:
    """A replay that an admin asks for, checked."""

    def __init__(
        self,
        volume: str,
        target: Path,
        *,
        from_seq: SeqOrPosition | None = None,
        to_seq: SeqOrPosition | None = None,
        paths: Sequence[str] = (),
        ops: Sequence[str] = (),
        uid: int | None = None,
        without: Sequence[str] = (),
        only: Sequence[str] = (),
        on_conflict: OnReplayConflict = "stop",
    ) -> None:
        """Raises UsageError, VolumeNotFoundError, NoSuchSeqError, OtherHistoryError,
        PathNotFoundError, JournalError.

        Args:
            volume: its name, mountpoint or state directory, or a copy of its journal.
            target: the directory; one that was begun goes on.
            from_seq, to_seq: the first entry (the first that there is, whose target is empty, or
                new, even where the journal begins with a base), and the last (the newest; of a
                replay that goes on, the newest when it was begun).
            paths, ops, uid, without, only: as in :meth:`JournalSource.criteria`.
            on_conflict: what becomes of an operation that relies on one left out."""
        self.target_path = Path(os.path.abspath(target))
        self.source: JournalSource = open_source(volume)
        self.sums = Plan()
        """Counts of what :meth:`run` has done so far."""
        self._on_conflict = on_conflict
        self._begins_with_base = from_seq is None and self.source.lookup.base is not None
        if from_seq is None:
            from_seq = self.source.reader.first_seq if self._begins_with_base else Seq(1)
        if to_seq:
            last = self.source.check_seq(to_seq)
        else:
            last = _begun_to_seq(self.target_path) or self.source.head_seq
        self._from_seq = self.source.check_seq(from_seq)
        if last < self._from_seq:
            raise UsageError(f"--to-seq {last} is before --from-seq {self._from_seq}")
        self._criteria = self.source.criteria(
            from_seq=self._from_seq,
            to_seq=last,
            ops=ops,
            uid=uid,
            paths=paths,
            only=only,
            without=without,
        )
        self._work = Replay(self.source.lookup, self._criteria)

    def plan(self, progress: Progress, *, whole: bool) -> Plan:
        """Returns what would be done. Where nothing is left out nothing can be in the way, and the
        journal is only read for it if the *whole* plan is wanted. Raises JournalDamagedError."""
        return self._work.plan(progress) if whole or self._criteria.is_partial else Plan()

    def check(self, plan: Plan) -> None:
        """Raises ConflictError where *plan* has conflicts, at which it is to stop."""
        if plan.conflicts and self._on_conflict == "stop":
            count = plan.conflict_count
            raise ConflictError(
                f"{count:,} operation{'s' if count > 1 else ''} cannot be carried out, nothing was "
                "written: choose others, or --on-conflict skip"
            )

    @property
    def needs_base(self) -> bool:
        """True if the target is to be made as it was at the journal's base, before the replay."""
        if not self._begins_with_base or purpose_of(self.target_path) is not None:
            return False
        try:
            return not os.listdir(self.target_path)
        except FileNotFoundError:
            return True
        except OSError as error:
            raise TargetError(self.target_path, error.strerror or "cannot be read") from None

    def make_base(self, progress: Progress) -> None:
        """Make the target as it was at the journal's base. Stopped, the same replay goes on with
        it. Raises what a restore raises."""
        try:
            os.rmdir(self.target_path)  # an empty one: a restore makes it
        except FileNotFoundError:
            pass
        except OSError as error:
            raise TargetError(self.target_path, error.strerror or "cannot be made anew") from None
        restore(self.source.lookup, b"", self._from_seq, self.target_path, progress)

    def open_target(self) -> Target:
        """Open the target, to be used as a context manager. Raises TargetError, PrivilegeError."""
        purpose = {"volume": str(self.source.reader.uuid), "replay": self._as_words()}
        return Target(self.target_path, purpose, from_seq=self._from_seq)

    def check_target(self, target: Target, progress: Progress) -> None:
        """Raises TargetError where *target* lacks what was there before the range."""
        self._work.check_target(target, progress)

    def run(self, target: Target, progress: Progress, ask: Ask | None) -> Iterator[Result]:
        """Carry it out on *target*, which is then to be finished. Yields what becomes of each
        chosen operation. Raises what Replay.run raises."""
        for result in self._work.run(target, progress, ask=ask):
            self.sums.count(result)
            yield result

    def to_json(self) -> dict[str, Any]:
        """Returns what ``replay --json`` prints at the end."""
        return {
            "target": os.fspath(self.target_path),
            "done": self.sums.done,
            "skipped": self.sums.conflict_count,
            "refused": self.sums.refused,
        }

    def _as_words(self) -> dict[str, Any]:
        """The options that a stopped replay must be gone on with."""
        criteria = self._criteria
        return {
            "from_seq": criteria.from_seq,
            "to_seq": criteria.to_seq,
            "op": sorted(kind.name for kind in criteria.kinds),
            "uid": criteria.uid,
            "path": [exact(path) for path in criteria.paths],
            "only": [list(one) for one in criteria.only],
            "except": [list(one) for one in criteria.without],
            "on_conflict": self._on_conflict,
        }


def _begun_to_seq(target: Path) -> Seq | None:
    """The last seq of an unfinished replay: the newest of that time, where it was not given."""
    begun = (purpose_of(target) or {}).get("replay")
    to_seq = begun.get("to_seq") if isinstance(begun, dict) else None
    # What another version has written is refused when the target is opened.
    return Seq(to_seq - 1) if isinstance(to_seq, int) else None


def conflict_path(source: JournalSource, conflict: Conflict) -> tuple[str, bytes | None]:
    """Returns what a conflict is about: the operation's name, or "" where it is about a name; and
    the path, if that is known. Raises JournalDamagedError."""
    if conflict.dentry is not None:
        return "", source.lookup.join(*conflict.dentry, conflict.seq)
    (entry,) = source.reader.read(conflict.seq, Seq(conflict.seq + 1))
    fid = getattr(entry.operation, "fid", None)
    path = source.lookup.path_before(fid, conflict.seq) if fid else None
    return entry.operation.kind.name.lower(), path
