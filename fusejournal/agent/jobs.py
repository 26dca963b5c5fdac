"""Jobs: what an admin asks for on a page and takes its time, by kind (job_kinds.py), each done by a
process of its own (job_process.py), which goes on when the page is closed and when the agent ends.

A job is a directory, which both sides read and each file of which one side writes::

    request.json    what was asked, by whom and when: by the agent, once
    order.json      what it is to do now: plan, do, pause or stop; and for do, by the hash that
                    identifies it, the plan that was seen, if that is known: by the agent
    progress.json   its state, plan and results: by its process
    end.json        its state, where a full disk kept that from progress.json (job_end.py)
    lock            locked while its process runs
    log             what its process reported

The states are in job_states.py. The one on the disk is whole at any instruction, because each file
is replaced at once. A process that died left its last state, and the lock says that it is no
more."""

import fcntl
import json
import os
import secrets
import shutil
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from fusejournal.admin.source import open_source
from fusejournal.agent.command_lines import note_way_back
from fusejournal.agent.fields import Fields
from fusejournal.agent.job_end import kept_end, make_room_for_end
from fusejournal.agent.job_kinds import KINDS, check_access, kind_of
from fusejournal.agent.job_states import RESTING, WORKING, JobState
from fusejournal.agent.restored_trees import RestoredTrees
from fusejournal.disk.files import UNREADABLE_JSON, Outlives, make_directories, write_atomically
from fusejournal.disk.json_records import read_object
from fusejournal.disk.process import WORKING_DIRECTORY, python_module
from fusejournal.errors import FusejournalError, UsageError
from fusejournal.node.registry import find_named

_JOBS_MAX: Final = 200
_FILE_BYTES_MAX: Final = 64 << 20
"""More than a plan has: what is kept of its lists is bounded."""
_LIST_BYTES_MAX: Final = 3 << 20
"""The most that is returned of a plan's actions, changes or conflicts, each."""
_INTERNAL: Final = frozenset({"essence", "window"})
"""Values that a job's process keeps for itself."""
_ID_CHARS: Final = frozenset("0123456789abcdef-")
_ID_CHARS_MAX: Final = 64


class OtherPlanError(FusejournalError):
    """An order to do a plan that the job does not have, or no longer."""

    exit_code = 51


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in *path*; empty where there is none that can be read."""
    try:
        return read_object(path, _FILE_BYTES_MAX)
    except (OSError, *UNREADABLE_JSON):
        return {}


def plan_of(progress: dict[str, Any]) -> str | None:
    """Returns the hash of the plan that was shown last; None without one."""
    essence = progress.get("essence")
    found = essence.get("hash") if isinstance(essence, dict) else None
    return found if isinstance(found, str) else None


class JobBook:
    """The jobs of this machine. Each method blocks, and any thread may call it."""

    def __init__(self, directory: Path) -> None:
        """*directory*: the agent's."""
        self._jobs = directory / "jobs"
        restored = directory / "restored"
        for path in (self._jobs, restored):
            make_directories("agent.jobs.make", path)
        self._restored = RestoredTrees(restored)

    def create(self, fields: Fields) -> dict[str, Any]:
        """Makes a job, and has it planned; one of a kind that needs no plan is begun. Fields:
        ``kind``, ``volume``, ``user``, ``access`` (the user's role), and those of the kind; of an
        undo also ``job``, another one, which is to be taken back as a whole. Raises UsageError,
        ForbiddenJobError, VolumeNotFoundError, OSError."""
        name = fields.text("kind")
        kind = kind_of(name)
        check_access(kind, fields)
        volume = find_named(fields.text("volume")).name
        if name == "undo" and fields.text_or_none("job") is not None:
            fields = self._with_way_back(fields, volume)
        if len(self._ids()) >= _JOBS_MAX:
            raise UsageError(f"there are {_JOBS_MAX} jobs already: remove some that are done")
        job = f"{time.time_ns() // 10**6:x}-{secrets.token_hex(4)}"
        request = {
            **kind.make(fields, self._restored.place(job)),
            "kind": name, "volume": volume, "user": fields.text("user", ""),
            "made_ns": time.time_ns(),
        }  # fmt: skip
        request["command"] = kind.command(request)
        path = self._jobs / job
        path.mkdir(mode=0o700)
        try:
            _write(path / "request.json", request)
            self._begin(path, "plan" if kind.plans else "do")
        except OSError:
            shutil.rmtree(path, ignore_errors=True)  # what nothing was begun of is no job
            raise
        return self._tell(path)

    def _with_way_back(self, fields: Fields, volume: str) -> Fields:
        """Returns the *fields* of an undo that is to take back a job, with what that one did.
        Raises UsageError."""
        undone, given = fields.text("job"), (fields.texts("seqs"), fields.texts("pids"))
        if given != ([], []):
            raise UsageError("give seqs and pids, or the job that they are of")
        job = self.show(fields.with_values(id=undone))
        if job.get("volume") != volume:
            raise UsageError(f"there is no job {undone!r:.80} of {volume}")
        if job["is_running"]:
            raise UsageError("the job is at work: stop it, or wait for its end, then take it back")
        if "way_back" not in job:
            raise UsageError("the job has changed nothing that an undo could take back")
        return fields.with_values(**job["way_back"])

    def list_all(self, fields: Fields) -> dict[str, Any]:
        """Returns all jobs, the newest first, without plans and results."""
        jobs = [self._describe(self._jobs / one) for one in sorted(self._ids(), reverse=True)]
        for job in jobs:
            for key in ("actions", "conflicts", "changes", "rows"):
                job.pop(key, None)
        return {"jobs": jobs}

    def show(self, fields: Fields) -> dict[str, Any]:
        """Returns the job ``id`` with its plan and results: of very many the first, beside their
        number. Raises UsageError."""
        return self._tell(self._path(fields))

    def order(self, fields: Fields) -> dict[str, Any]:
        """Has the job ``id`` do what ``order`` says: plan (again), do, pause, resume, stop, or
        remove; remove-restored removes what it has restored aside. A kind that cannot be taken back
        is done only with the volume's name as ``confirm``. With ``plan``, the one that the user has
        seen, that alone is done. Raises UsageError, OtherPlanError, ForbiddenJobError,
        FusejournalError, OSError."""
        path, order = self._path(fields), fields.text("order")
        job, seen = self._describe(path), fields.text_or_none("plan")
        state, is_idle = job["state"], not job["is_running"]
        if job["is_readable"]:
            kind = kind_of(job["kind"])
            check_access(kind, fields)
            if order == "do" and kind.is_confirmed and fields.text("confirm", "") != job["volume"]:
                raise UsageError(
                    f"this cannot be taken back: confirm it by the volume's name, {job['volume']}"
                )
            if order == "do" and seen not in (None, job["plan"]):
                raise OtherPlanError("the plan is another one by now: look at it before it is done")
            if order == "plan" and not kind.plans:
                raise UsageError(f"a job of the kind {job['kind']} has no plan")
        if order in ("remove", "remove-restored"):
            if not is_idle:
                raise UsageError("the job is at work: stop it first")
            return self._remove(path) if order == "remove" else self._remove_restored(path, job)
        if order in ("do", "plan") and state in RESTING and is_idle:
            self._begin(path, order, seen)
        elif order in ("pause", "resume", "stop") and not is_idle:
            word = "do" if order == "resume" else order
            _write(path / "order.json", {"order": word})
        else:
            raise UsageError(f"a job that is {state} cannot be told to {order}")
        return self._tell(path)

    def _remove(self, path: Path) -> dict[str, Any]:
        # What is not whole would be of use to nothing but this job.
        self._restored.remove_unfinished(path.name)
        shutil.rmtree(path)
        return {"id": path.name, "state": JobState.REMOVED}

    def _remove_restored(self, path: Path, job: dict[str, Any]) -> dict[str, Any]:
        if not job.get("has_restored"):
            raise UsageError("nothing that the job has restored is there")
        self._restored.remove(path.name)
        return self._tell(path)

    def _begin(self, path: Path, order: str, plan: str | None = None) -> None:
        """Has a process begin the job. What it has done so far stays known to it. It looks at the
        *plan* to be done once more, when no other process can change it."""
        make_room_for_end(path)
        _write(path / "order.json", {"order": order} | ({"plan": plan} if plan else {}))
        self._start(path)

    def _start(self, path: Path) -> None:
        with open(path / "log", "ab") as log:
            child = subprocess.Popen(
                python_module("fusejournal.agent.job_process", str(path)),
                cwd=WORKING_DIRECTORY,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        # Its end is waited for, so that no zombie is left; the agent's own end does not wait for
        # it.
        threading.Thread(target=child.wait, daemon=True).start()
        # Until it has the lock it cannot be told from one that died.
        deadline = time.monotonic() + 10.0
        while child.returncode is None and not _is_locked(path) and time.monotonic() < deadline:
            time.sleep(0.02)

    def _ids(self) -> list[str]:
        return [one for one in os.listdir(self._jobs) if set(one) <= _ID_CHARS]

    def _path(self, fields: Fields) -> Path:
        job = fields.text("id")
        if not 0 < len(job) <= _ID_CHARS_MAX or not set(job) <= _ID_CHARS:
            raise UsageError(f"there is no job {job!r:.80}")
        if not (self._jobs / job).is_dir():
            raise UsageError(f"there is no job {job!r:.80}")
        return self._jobs / job

    def _tell(self, path: Path) -> dict[str, Any]:
        job = self._describe(path)
        if not job["is_running"] and _has_open_end(job):
            # A process that was killed has left entries, and not said where they end.
            with suppress(FusejournalError, OSError, *UNREADABLE_JSON):
                note_way_back(job, job["volume"], open_source(job["volume"]).head_seq)
        for key in ("actions", "changes", "conflicts"):
            if key in job:
                job[key] = first_of(job[key], _LIST_BYTES_MAX)
        return job

    def _describe(self, path: Path) -> dict[str, Any]:
        # In this order: one that ends in between is reported as running with its last state.
        is_running = _is_locked(path)
        request, progress = read_json(path / "request.json"), read_json(path / "progress.json")
        state = JobState(str(progress.get("state", JobState.PLANNING)))
        words = str(progress.get("words", ""))
        kind = KINDS.get(str(request.get("kind")))
        if (end := kept_end(path)) is not None and not is_running:
            state, words = end
        elif state in WORKING and not is_running:
            state = JobState.STOPPED
            words = words or "its process ended before it was done: 'do' goes on with it"
        order = read_json(path / "order.json").get("order")
        told = {key: value for key, value in progress.items() if key not in _INTERNAL}
        return {
            "id": path.name,
            **request,
            **told,
            "state": state,
            "words": words,
            "is_running": is_running,
            "has_plan": progress.get("essence") is not None,
            "plan": plan_of(progress),
            "is_readable": kind is not None,
            "is_confirmed": kind is not None and kind.is_confirmed,
            "access": kind.access if kind is not None else "operator",
            "paused": is_running and order == "pause",
            **(self._restored.facts(path.name) if request.get("kind") == "restore" else {}),
        }


def _has_open_end(job: dict[str, Any]) -> bool:
    results = job.get("results")
    found = results.values() if isinstance(results, dict) else ()
    return any(isinstance(one, list) and one[1:] == [None] for one in found)


def first_of(found: list[Any], bytes_max: int) -> list[Any]:
    """Returns so many of the first of *found* as have *bytes_max* bytes as JSON."""
    left = bytes_max
    kept: list[Any] = []
    for one in found:
        left -= len(json.dumps(one)) + 2
        if left < 0:
            break
        kept.append(one)
    return kept


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _write(path: Path, value: dict[str, Any]) -> None:
    content = json.dumps(value).encode()
    write_atomically("agent.job", path, content, Outlives.MACHINE)
