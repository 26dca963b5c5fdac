"""The schedule by which a running volume has versions made and pruned ([versions] in the
configuration), and its store looked at.

The work is done by a process of its own at low priority (admin/keep_versions.py): nothing of it
runs in the layer, which only starts it, one at a time, and reads the JSON object that it ends with.
Killed at any point, it leaves versions, journal and store as they were, or work that the next one
goes on with. It ends with the layer, because its standard input does.

Owned by the node's nursery; :meth:`VersionSchedule.run` is one task."""

import logging
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Final

import trio

from fusejournal.disk.process import WORKING_DIRECTORY, python_module
from fusejournal.errors import FusejournalError
from fusejournal.node.disk_space import disk_space
from fusejournal.node.due import Due
from fusejournal.node.spec import MountSpec
from fusejournal.node.version_record import (
    WorkOutcome,
    load_version_status,
    save_version_status,
)
from fusejournal.node.volume_status import VersionStatus
from fusejournal.volume.trouble import Trouble, TroubleKind

log = logging.getLogger(__name__)

_WORKER: Final = "fusejournal.admin.keep_versions"
_TICK_SECONDS: Final = 10.0
_FIRST_LOOK_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 3600.0
_LOW_SECONDS: Final = 600.0
"""The time between prunings while the disk comes to its end."""
_WORDS: Final = {
    "make": "the making of a version",
    "prune": "the pruning",
    "look": "the look at the store",
}


def now_by_boot() -> float:
    """Returns the time by the clock that :class:`Due` goes by."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class VersionSchedule:
    """The schedule of one run of a volume. *is_mirror*: in that role. *reads_only*: nothing is
    done, and status only says what is known."""

    def __init__(self, spec: MountSpec, *, is_mirror: bool, reads_only: bool = False) -> None:
        self._name = spec.name
        self._state_dir = spec.state_dir
        self._config_file = spec.config_file
        self._config = spec.config.versions
        self._is_mirror = is_mirror
        self._reads_only = reads_only
        self._dues: dict[str, Due] = {}
        self._working: str | None = None
        self._working_since: float | None = None
        self._known: VersionStatus | None = None
        """The end of the last process, which a full disk may have kept out of the record."""
        self._errors: dict[str, str] = {}
        """The works that failed last, and why."""

    # -- status ------------------------------------------------------------------------------------

    def status(self) -> VersionStatus | None:
        """Returns what is known of the versions; None where the volume has no store."""
        found = load_version_status(self._state_dir)
        known = self._known
        if found is None:
            return None
        if known is not None and known.store_id == found.store_id:
            found = max(found, known, key=lambda one: one.looked or 0.0)
        return replace(
            found,
            working=self._working,
            working_since=self._working_since,
            next_make=self._next("make"),
            next_prune=self._next("prune"),
        )

    def _next(self, work: str) -> float | None:
        due = self._dues.get(work)
        if due is None or work not in self._scheduled():
            return None
        return round(time.time() + max(0.0, due.at - now_by_boot()), 1)

    def degraded(self, status: VersionStatus | None) -> Iterator[Trouble]:
        """Yields what is wrong with the versions in *status*."""
        if status is None:
            if set(self._scheduled()) & {"make", "prune"} and not self._reads_only:
                yield Trouble(
                    TroubleKind.NO_STORE,
                    "[versions] has a schedule, and there is no store of versions: "
                    f"'fusejournal version store init {self._name}' makes one",
                )
            return
        if status.error is not None:
            failing = next((due for due in self._dues.values() if due.failures), None)
            again = ""
            if failing is not None:
                again = f"; tried again in {max(0.0, failing.at - now_by_boot()):.0f} s"
            since = ""
            if status.reachable is False and status.reachable_since is not None:
                since = f" since {_moment(status.reachable_since)}"
            yield Trouble(TroubleKind.VERSIONS, f"versions fail{since}: {status.error}{again}")
        for work, error in self._errors.items():
            if error != status.error:  # another work was done since
                yield Trouble(TroubleKind.VERSIONS, f"{_WORDS[work]} failed: {error}")
        if status.unreadable:
            yield Trouble(
                TroubleKind.UNREADABLE_VERSIONS,
                f"of the versions {status.unreadable:,} cannot be read: "
                f"see 'fusejournal version list {self._name}'",
            )
        make = self._dues.get("make")
        if make is not None and self._config.every is not None:
            late_seconds = now_by_boot() - make.at
            if status.error is None and late_seconds > max(self._config.every, 2 * _TICK_SECONDS):
                words = f"the version that was due {late_seconds:.0f} s ago is not made yet"
                yield Trouble(TroubleKind.LATE_VERSION, words)

    # -- the task ----------------------------------------------------------------------------------

    def _scheduled(self) -> dict[str, float]:
        """Returns the works of this volume in this role, and their periods."""
        found = {"look": _LOOK_SECONDS}
        config = self._config
        role = "mirror" if self._is_mirror else "primary"
        if config.every is not None and config.made_by in ("any", role):
            found["make"] = config.every
        if config.prune_every is not None:
            found["prune"] = config.prune_every
        return found

    def _begin(self, status: VersionStatus) -> None:
        """Makes the moments at which the works are due; what was missed is due at once."""
        now, clock = now_by_boot(), time.time()
        last = {"make": status.made, "prune": status.pruned, "look": status.looked}
        for work, every_seconds in self._scheduled().items():
            done = last[work]
            ago = None if done is None else clock - done
            self._dues[work] = Due(every_seconds, now, ago)
        self._dues["look"].hasten(now, _FIRST_LOOK_SECONDS)
        make = self._dues.get("make")
        if make is not None and self._is_mirror and status.last_key == "":
            # Where two nodes begin together, the primary makes the first.
            make.done(now, make.at - now + 0.25 * self._scheduled()["make"])

    async def run(self) -> None:
        """Have done what is due, until cancelled, which ends the process that is at work."""
        if self._reads_only:
            return
        while True:
            status = await trio.to_thread.run_sync(load_version_status, self._state_dir)
            if status is not None:
                await self._tend(status)
                continue
            self._dues.clear()
            is_awaited = len(self._scheduled()) > 1
            await trio.sleep(1.0 if is_awaited else _TICK_SECONDS)

    async def _tend(self, status: VersionStatus) -> None:
        """Have done what is due now, or wait a little."""
        if not self._dues:
            self._begin(status)
        await self._heed_low_disk()
        now = now_by_boot()
        works = [work for work, due in self._dues.items() if due.at <= now]
        if works:
            await self._work(works)
        else:
            # In small steps: the clock of this sleep stands still while the machine sleeps.
            next_at = min(due.at for due in self._dues.values())
            await trio.sleep(min(max(0.05, next_at - now), _TICK_SECONDS))

    async def _heed_low_disk(self) -> None:
        """Have it pruned early where the disk comes to its end."""
        prune = self._dues.get("prune")
        if prune is None or prune.failures:
            return
        with suppress(OSError):
            if (await trio.to_thread.run_sync(disk_space, self._state_dir)).is_low:
                status = self.status()
                pruned = status.pruned if status is not None else None
                ago = time.time() - pruned if pruned is not None else _LOW_SECONDS
                prune.hasten(now_by_boot(), min(max(0.0, _LOW_SECONDS - ago), _LOW_SECONDS))

    async def _work(self, works: list[str]) -> None:
        if len(works) > 1 and "look" in works:
            works.remove("look")  # each of the others looks
        works.sort()  # a version is made before it is pruned
        for work in works:
            self._working, self._working_since = work, time.time()
            try:
                outcome = await self._run_process(work)
            finally:
                self._working = self._working_since = None
            self._note(work, outcome)
            if not outcome.done:
                for rest in works[works.index(work) + 1 :]:
                    self._dues[rest].failed(now_by_boot())
                return

    def _note(self, work: str, outcome: WorkOutcome) -> None:
        was = self._known.error if self._known is not None else None
        self._known = outcome.status
        now = now_by_boot()
        if outcome.done:
            self._errors.pop(work, None)
            self._dues[work].done(now, outcome.again_in_seconds)
            self._dues["look"].done(now)
            for due in self._dues.values():
                if due.failures:
                    due.hasten(now, 0.0)  # what was in its way may be gone, too
            if was is not None:
                log.info("versions: all is well again")
            return
        self._errors[work] = outcome.status.error or ""
        self._dues[work].failed(now)
        self._dues["look"].hasten(now, self._dues[work].at - now)
        if outcome.status.error != was:
            log.warning("versions: %s failed: %s", _WORDS[work], outcome.status.error)

    async def _run_process(self, work: str) -> WorkOutcome:
        try:
            told, code = await self._output_of_process(work)
        except (OSError, trio.BrokenResourceError) as error:
            why = f"{_WORDS[work]} has no process: {error}"
        else:
            with suppress(FusejournalError):
                return WorkOutcome.from_line(f"the process for {_WORDS[work]}", told)
            why = f"the process for {_WORDS[work]} ended with {code}: see the layer's log"
        return await trio.to_thread.run_sync(self._failed, why)

    async def _output_of_process(self, work: str) -> tuple[bytes, int | None]:
        """Runs a process to its end. Returns what it has printed, and its exit code. Raises
        OSError, trio.BrokenResourceError. Cancelled, it ends the process."""
        config = "" if self._config_file is None else str(self._config_file)
        process = await trio.lowlevel.open_process(
            python_module(_WORKER, work, str(self._state_dir), config),
            cwd=WORKING_DIRECTORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        told = b""
        try:
            async for part in process.stdout:
                told += part
            await process.wait()
        finally:
            process.kill()
            with trio.move_on_after(1.0, shield=True):  # one that waits for a dead disk stays
                await process.wait()
            with trio.CancelScope(shield=True):
                await process.stdin.aclose()
                await process.stdout.aclose()
        return told, process.returncode

    def _failed(self, why: str) -> WorkOutcome:
        """Returns the end of a process that has reported nothing, and writes it down."""
        found = self._known or load_version_status(self._state_dir)
        found = replace(
            found or VersionStatus(store="", store_id=""),
            looked=time.time(),
            error=why,
            failures=found.failures + 1 if found is not None else 1,
        )
        with suppress(OSError):
            save_version_status(self._state_dir, found)
        return WorkOutcome(status=found, done=False)


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
