"""The work of jobs that recover: undo, restore aside, restore in place."""

import logging
import os
from pathlib import Path
from typing import Any, Final

from fusejournal.admin.restore_aside import AsideRestore
from fusejournal.admin.restore_in_place import Moment, PlannedInPlace, planned_in_place
from fusejournal.admin.restore_size import (
    RestoreSize,
    Room,
    find_room,
    size_at,
    size_in_version,
)
from fusejournal.admin.source import open_source
from fusejournal.admin.undo import DoneEntries, PlannedUndo, UndoRequest
from fusejournal.admin.versions import VolumeVersions
from fusejournal.agent.command_lines import note_way_back
from fusejournal.agent.job_progress import JobProgress, JobStoppedError, essence_of
from fusejournal.agent.job_states import JobState
from fusejournal.agent.jobs import first_of
from fusejournal.errors import FusejournalError
from fusejournal.history.json_values import exact_or_none
from fusejournal.history.query import Criteria, SeqRange, find
from fusejournal.journal.reader import END
from fusejournal.replay.made_aside import Restored, scratch_of_restore
from fusejournal.replay.undo_plan import begun_undos
from fusejournal.types import Seq
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.version_tree import VersionTree

log = logging.getLogger(__name__)

_ACTIONS_MAX: Final = 5000
"""The most actions of a plan that are kept for the page; all are done."""
_ACTIONS_BYTES_MAX: Final = 3 << 20
"""The most of them by size: the progress is written again and again."""
_ESSENTIAL: Final = ("what", "fid", "path", "new_path", "taken_path", "because_of")
_CHANGED_WORDS: Final = "the volume has changed since the plan: look at the new one"


def recover(job: JobProgress, *, do_it: bool) -> None:
    """Does the work of an undo or a restore. Raises FusejournalError, OSError, JobStoppedError."""
    match job.request["kind"]:
        case "undo":
            UndoWork(job).run(do_it=do_it)
        case "restore":
            restore_aside(job, do_it=do_it)
        case _:
            restore_in_place(job, do_it=do_it)


class UndoWork:
    """An undo: planned, and done once the admin has seen the plan. Killed at any instruction, it
    has left entries in the journal that can be undone or gone on with."""

    def __init__(self, job: JobProgress) -> None:
        self._job = job
        self._window = SeqRange(Seq(1), END)
        """The seqs that are chosen from."""
        self._is_begun = False

    def run(self, *, do_it: bool) -> None:
        """Plans it, or does it. Raises FusejournalError, OSError, JobStoppedError."""
        self._job.save(JobState.PLANNING, words="", done=0, total=None)
        planned = self._plan(do_it=do_it)
        actions, conflicts = _actions(planned), [one.to_json() for one in planned.plan.conflicts]
        essence = self._essence(planned, actions, conflicts)
        # One that was begun has less to do, of the same entries.
        is_approved = self._job.has_aim if self._is_begun else self._job.is_approved
        if not do_it or not is_approved(essence):
            words = _CHANGED_WORDS if do_it else ""
            if conflicts:
                words = f"{len(conflicts):,} later changes are in the way"
            elif not planned.plan.chosen:
                words = "nothing was found to take back"
            self._job.show_plan(
                essence, words=words, window=self._window,
                actions=_first_of([*actions, *self._done_before(actions)]),
                action_count=len(actions),
                conflicts=_first_of(conflicts), conflict_count=len(conflicts),
                chosen=len(planned.plan.chosen), kept=planned.plan.kept,
            )  # fmt: skip
            return
        planned.check()
        self._job.begin_changes(planned.plan.head_seq)
        try:
            overlapped = planned.carry_out(self._job.step)
        except (JobStoppedError, FusejournalError, OSError):
            self._note_results(planned, is_done=False)
            raise
        self._note_results(planned, is_done=True)
        self._job.save(JobState.DONE, words="" if overlapped is None else str(overlapped))

    def _done_before(self, actions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns the actions that the job's processes have done already, and that are none of
        *actions*."""
        paths = {one["new_path"] or one["path"] for one in actions}
        return [
            one
            for one in self._job.values.get("actions", [])
            if one["result"].startswith("done") and (one["new_path"] or one["path"]) not in paths
        ]

    def _plan(self, *, do_it: bool) -> PlannedUndo:
        request = self._job.request
        begun = self._begun_pids()
        self._is_begun = bool(begun)
        kept = self._job.values.get("window")
        window = SeqRange(*map(Seq, kept)) if kept is not None else None
        if window is not None and request["until"] is None and not (do_it or begun):
            # Planned anew: what came since then is looked at, too.
            window = SeqRange(window.from_seq, END)
        undo = UndoRequest(
            request["volume"],
            request["seqs"],
            paths=request["paths"],
            ops=request["ops"],
            uid=request["uid"],
            pids=request["of_pids"],
            since=request["since"],
            until=request["until"],
            without=request["without"],
            # Those of its own processes that were stopped.
            resumed=begun,
            window=window,
            do_apply=do_it,
        )
        self._window = undo.window
        if kept is None:
            # The first plan says what "2 hours ago" means.
            self._job.keep(window=self._window)
        return undo.plan(self._job.step, request["on_conflict"])

    def _begun_pids(self) -> list[int]:
        """Returns those of the job's processes that have begun to undo, by the journal's word: one
        that was killed could not write it down."""
        pids = dict.fromkeys(int(pid) for pid in self._job.values.get("pids", []))
        begun = begun_undos(open_source(self._job.request["volume"]).lookup) if pids else {}
        # (What an undo of before has done, whose process had the same number, is not its own.)
        _, first_seq = self._job.values.get("window", (1, 1))
        return [pid for pid in pids if pid in begun and begun[pid].from_seq >= first_seq]

    def _essence(
        self, planned: PlannedUndo, actions: list[dict[str, Any]], conflicts: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Returns what identifies the plan; its aim: the entries that it takes back, those
        of the job's own processes aside, which are after the window."""
        aim = sorted(seq for seq in planned.plan.chosen if seq < self._window.to_seq)
        whole = essence_of([*map(_essence, actions), conflicts, planned.plan.kept])
        return {**whole, "aim": essence_of(aim)}

    def _note_results(self, planned: PlannedUndo, *, is_done: bool) -> None:
        """Keeps which entries this process made, and what became of each action."""
        done = planned.done()
        self._job.end_changes(int(done.to_seq))
        again = {exact_or_none(one.new_path or one.path) for one in planned.actions}
        reached = set() if is_done else _paths_reached(planned, done)
        overlaps = {exact_or_none(path) for path, _, _ in planned.overlap_paths()}
        for action in self._job.values["actions"]:
            path = action["new_path"] or action["path"]
            if is_done or path in reached:
                action["result"] = "done"
            elif path in again or not action["result"]:
                # One of before was to be done again with the rest.
                action["result"] = "not reached"
            if path in overlaps:
                action["result"] = "done, and changed by others at the same moment"
        note_way_back(self._job.values, planned.source.name)


def restore_aside(job: JobProgress, *, do_it: bool) -> None:
    """Plans a restore of a path into a new directory: how much that is, and whether there is room;
    or does it, if that is what the admin has seen. Killed, it has left a scratch directory that the
    next attempt goes on in. Raises FusejournalError, OSError, JobStoppedError."""
    job.save(JobState.PLANNING, words="", done=0, total=None)
    work = _AsideWork(job)
    essence = essence_of([job.request["path"], work.moment])
    if not do_it or not job.is_approved(essence):
        size = work.size()
        room = work.room(size)
        job.show_plan(
            essence, words=_CHANGED_WORDS if do_it else "", to_restore=size.to_json(),
            refusal=room.refusal, warnings=[room.warning] if room.warning else [],
        )  # fmt: skip
        return
    planned = RestoreSize(**job.values["to_restore"])
    # A process before may have come to the end, and found no room to keep that.
    restored = work.find_done(planned)
    if restored is None:
        if refusal := work.room(planned).refusal:
            raise FusejournalError(refusal)
        job.save(JobState.DOING, refusal="", warnings=[])
        restored = work.run()
    job.save(JobState.DONE, names=restored.names, target=str(restored.path))


class _AsideWork:
    """A restore aside: of a version, or of the journal's entries."""

    def __init__(self, job: JobProgress) -> None:
        """Raises FusejournalError where the moment is not there."""
        self._job = job
        self._target = Path(job.request["target"])
        volume = job.request["volume"]
        wanted = job.request.get("version")
        self._source = open_source(volume)
        self._path = self._source.path(job.request["path"])
        self._versions: VolumeVersions | None = None
        if wanted is not None:
            self._versions = VolumeVersions(volume, job.check)
            self._version = self._versions.find(wanted).version
            self.moment: str | int = self._version.key
            """The version's key, or the entry: what is restored does not change."""
            return
        self._end = self._source.end_of(to_seq=job.request["at"])
        self.moment = int(self._end)

    def size(self) -> RestoreSize:
        """Returns the size of what is restored. Raises FusejournalError, OSError,
        JobStoppedError."""
        if self._versions is None:
            return size_at(self._source, self._path, self._end, self._job.step)
        with self._versions.reading() as store:
            tree = VersionTree(BlockReader(store), self._version.trees)
            return size_in_version(tree, self._path, self._job.step)

    def room(self, size: RestoreSize) -> Room:
        """Returns whether there is room for *size*; one that was begun has its part already. Raises
        OSError."""
        if scratch_of_restore(self._target).exists():
            return Room("", "")
        return find_room(self._target.parent, size)

    def find_done(self, size: RestoreSize) -> Restored | None:
        """Returns what was restored, where all of it is there. Raises OSError."""
        if not self._target.is_dir():
            return None
        name = "" if size.is_directory else os.fsdecode(self._path.rpartition(b"/")[2])
        return Restored(size.names, self._target / name)

    def run(self) -> Restored:
        """Restores. Raises FusejournalError, OSError, JobStoppedError."""
        job, target = self._job, self._target
        if self._versions is not None:
            restored, _ = self._versions.restore(self._version.key, self._path, target, job.step)
            return restored
        work = AsideRestore(
            job.request["volume"], self._source, self._path, self._end, waiting=job.check
        )
        return work.run(target, job.step, log.warning)


def restore_in_place(job: JobProgress, *, do_it: bool) -> None:
    """Plans what a path lacks to be as it was, or does it, if that is what the admin has seen. What
    it does is journaled: stopped, it can be gone on with or undone. Raises FusejournalError,
    OSError, JobStoppedError."""
    request = job.request
    job.save(JobState.PLANNING, words="", done=0, total=None)
    moment = Moment(to_version=request["version"], to_seq=request["at"])
    path = request["path"] or None
    with planned_in_place(
        request["volume"], path, moment, job.step, job.check, to_apply=do_it
    ) as planned:
        plan = planned.to_json(None)
        changes = plan["changes"]
        job.keep(
            changes=_first_of(changes), change_count=len(changes),
            bytes=plan["bytes"], is_empty=planned.plan.is_empty,
        )  # fmt: skip
        wanted = [plan["as_of_seq"], plan["from_version"], plan["path"]]
        moves = ([one["action"], one["path"], one["old_path"]] for one in changes)
        essence = essence_of([wanted, *moves])
        is_other = not job.is_approved(essence)
        if not do_it or is_other or planned.plan.is_empty:
            words = _CHANGED_WORDS if do_it and is_other else ""
            if planned.plan.is_empty:
                words = f"all is as it was after entry {planned.seq}: there is nothing to do"
            job.show_plan(essence, words=words)
            return
        job.begin_changes(planned.source.head_seq)
        try:
            overlapped = planned.carry_out(job.step)
        finally:
            _note_end(job, planned)
        job.save(JobState.DONE, words="" if overlapped is None else str(overlapped))


def _note_end(job: JobProgress, planned: PlannedInPlace) -> None:
    try:
        done = planned.done()
    except FusejournalError:
        return  # its layer has ended: the error of the work says more
    job.end_changes(int(done.to_seq))
    note_way_back(job.values, planned.source.name)


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


def _first_of(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return first_of(found[:_ACTIONS_MAX], _ACTIONS_BYTES_MAX)


def _essence(action: dict[str, Any]) -> list[Any]:
    return [action[key] for key in _ESSENTIAL]


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
