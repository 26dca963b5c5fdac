"""The process that does one job (jobs.py): ``python -P -m fusejournal.agent.job_process DIR``.

It plans, or does, what DIR/request.json asks for, and keeps DIR/progress.json: at most a few times
a second, and at each change of state. Between two steps it looks whether it is to pause or to
stop. Killed at any instruction, an undo has left entries in the journal that can be undone or gone
on with, and a restore a scratch directory that the next one goes on in."""

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fusejournal.admin.source import open_source
from fusejournal.admin.undo import DoneEntries, PlannedUndo, UndoRequest
from fusejournal.agent.jobs import check_request, read_json
from fusejournal.disk.files import Outlives, write_atomically
from fusejournal.errors import FusejournalError
from fusejournal.history.json_values import exact_or_none
from fusejournal.history.query import Criteria, find
from fusejournal.replay.restore import restore
from fusejournal.replay.undo_plan import begun_undos
from fusejournal.types import Seq

_STEP_SECONDS: Final = 0.2
_PAUSE_SECONDS: Final = 0.1
_ACTIONS_MAX: Final = 5000
"""The most actions of a plan that are kept for the page; all are done."""


class _StoppedError(Exception):
    """The job was told to stop."""


class Job:
    """One job, held by this process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._request = read_json(directory / "request.json")
        self._progress = read_json(directory / "progress.json")
        self._saved = float("-inf")
        self._stamp = 0
        """The time of the last order that was looked at."""

    def run(self) -> None:
        """Does what is ordered, and leaves the outcome in the progress."""
        try:
            check_request(self._request)
            if self._request["kind"] == "restore":
                self._restore()
            else:
                self._undo(do_it=self._order() != "plan")
        except _StoppedError:
            self._save(state="stopped", words="stopped as told: 'do' goes on with it")
        except (FusejournalError, OSError) as error:
            self._save(state="failed", words=str(error))

    # -- undo --------------------------------------------------------------------------------------

    def _undo(self, *, do_it: bool) -> None:
        approved = self._progress.get("actions")
        self._save(state="planning", words="", done=0, total=None)
        planned = self._plan(do_apply=do_it)
        actions, conflicts = _actions(planned), [one.to_json() for one in planned.plan.conflicts]
        self._progress |= {
            "actions": actions[:_ACTIONS_MAX], "action_count": len(actions),
            "conflicts": conflicts[:_ACTIONS_MAX], "conflict_count": len(conflicts),
            "chosen": len(planned.plan.chosen), "kept": planned.plan.kept,
        }  # fmt: skip
        # One that was begun has less to do.
        is_begun = bool(self._progress.get("pids"))
        if not do_it or not (is_begun or approved is None or _is_same(approved, actions)):
            words = "the volume has changed since the plan: look at the new one" if do_it else ""
            if conflicts:
                words = f"{len(conflicts):,} later changes are in the way"
            elif not planned.plan.chosen:
                words = "nothing was found to take back"
            self._save(state="planned", words=words)
            return
        planned.check()
        self._save(state="doing", words="", pids=[*self._progress.get("pids", []), os.getpid()])
        try:
            overlapped = planned.carry_out(self._step)
        except (_StoppedError, FusejournalError, OSError):
            self._note_results(planned, is_done=False)
            raise
        self._note_results(planned, is_done=True)
        self._save(state="done", words="" if overlapped is None else str(overlapped))

    def _plan(self, *, do_apply: bool) -> PlannedUndo:
        request = self._request
        undo = UndoRequest(
            request["volume"],
            request["seqs"],
            paths=request["paths"],
            ops=request["ops"],
            uid=request["uid"],
            since=request["since"],
            until=request["until"],
            without=request["without"],
            # Those of its own processes that were stopped.
            resumed=self._begun_pids() if do_apply else (),
            do_apply=do_apply,
        )
        return undo.plan(self._step, request["on_conflict"])

    def _begun_pids(self) -> list[int]:
        """Returns those of the job's processes that have begun to undo, by the journal's word: one
        that was killed could not write it down."""
        pids = [int(pid) for pid in self._progress.get("pids", [])]
        begun = begun_undos(open_source(self._request["volume"]).lookup) if pids else {}
        return [pid for pid in pids if pid in begun]

    def _note_results(self, planned: PlannedUndo, *, is_done: bool) -> None:
        """Keeps which entries this process made, and what became of each action."""
        done = planned.done()
        results = self._progress.setdefault("results", {})
        if done.to_seq >= done.from_seq:
            results[str(os.getpid())] = [int(done.from_seq), int(done.to_seq)]
        reached = set() if is_done else _paths_reached(planned, done)
        overlaps = {exact_or_none(path) for path, _, _ in planned.overlap_paths()}
        for action in self._progress["actions"]:
            path = action["new_path"] or action["path"]
            action["result"] = "done" if is_done or path in reached else "not reached"
            if path in overlaps:
                action["result"] = "done, and changed by others at the same moment"
        if done.to_seq >= done.from_seq:
            volume = planned.source.name
            self._progress["undo_command"] = (
                f"fusejournal undo {volume} {done.from_seq}-{done.to_seq} --pid {done.pid} --apply"
            )

    # -- restore -----------------------------------------------------------------------------------

    def _restore(self) -> None:
        self._save(state="doing", words="", done=0, total=None)
        request = self._request
        source = open_source(request["volume"])
        end = source.end_of(to_seq=request["at"])
        restored = restore(
            source.lookup, source.path(request["path"]), end, Path(request["target"]), self._step
        )
        self._save(state="done", names=restored.names, target=str(restored.path))

    # -- progress ----------------------------------------------------------------------------------

    def _order(self) -> str:
        return str(read_json(self._directory / "order.json").get("order", "do"))

    def _step(self, done: int, total: int | None) -> None:
        """Is called between two steps. Raises _StoppedError."""
        stamp = os.stat(self._directory / "order.json").st_mtime_ns
        if stamp == self._stamp and time.monotonic() < self._saved + _STEP_SECONDS:
            return
        self._stamp = stamp
        self._save(done=done, total=total)
        while (order := self._order()) == "pause":
            time.sleep(_PAUSE_SECONDS)
        if order == "stop":
            raise _StoppedError
        self._saved = time.monotonic()

    def _save(self, **changed: Any) -> None:
        self._progress |= {**changed, "changed_ns": time.time_ns()}
        content = json.dumps(self._progress).encode()
        path = self._directory / "progress.json"
        write_atomically("agent.progress", path, content, Outlives.PROCESS)


def _actions(planned: PlannedUndo) -> list[dict[str, Any]]:
    return [
        {
            "what": one.what,
            "fid": int(one.fid),
            "path": exact_or_none(one.path),
            "new_path": exact_or_none(one.new_path),
            "taken_path": exact_or_none(one.taken_path),
            "because_of": int(one.because_of),
            "result": "",
        }
        for one in planned.actions
    ]


def _is_same(approved: list[dict[str, Any]], actions: list[dict[str, Any]]) -> bool:
    """Returns True if a plan is what the admin has seen."""
    seen = [_essence(one) for one in approved]
    found = [_essence(one) for one in actions[:_ACTIONS_MAX]]
    return seen == found


def _essence(action: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(action[key] for key in ("what", "fid", "path", "new_path", "because_of"))


def _paths_reached(planned: PlannedUndo, done: DoneEntries) -> set[str | None]:
    """Returns the paths that the entries of a stopped undo are about."""
    if done.to_seq < done.from_seq:
        return set()
    # Asked anew: the plan's answers end where the journal did then.
    lookup = open_source(planned.source.name).lookup
    criteria = Criteria(from_seq=done.from_seq, to_seq=Seq(done.to_seq + 1), pid=done.pid)
    return {
        exact_or_none(path)
        for match in find(lookup, criteria)
        for path in (match.path, match.new_path)
        if path is not None
    }


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def main() -> None:
    """Does the job in the directory that the command line names."""
    directory = Path(sys.argv[1])
    with _held(directory):
        Job(directory).run()


if __name__ == "__main__":
    main()
