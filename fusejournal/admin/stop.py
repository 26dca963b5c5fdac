"""The orderly end of a running volume, exported or not."""

import os
import select
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from fusejournal.admin.live import live_status
from fusejournal.control.client import RemoteError, ask
from fusejournal.disk import mounts as mounts
from fusejournal.errors import FusejournalError, NotRunningError, UsageError, VolumeBusyError
from fusejournal.journal.handle_key import NO_HANDLE_KEY, HandleKey
from fusejournal.journal.reader import JournalReader
from fusejournal.layer.connection import release_kept
from fusejournal.nfs import exports, nfsd
from fusejournal.node.state_dir import VolumeState

_ANSWER_SECONDS = 60.0
_REPORT_SECONDS = 1.0
_RECALL_SECONDS = 5.0
_LET_GO_SECONDS = 15.0
"""nfsd's cache of open files is looked through every 2 s, and lets go of what it finds unused
twice; some more for a slow machine."""
_COPIED_SECONDS = 10.0
"""The time for which another mount namespace may have a copy: one that was just made, as when a
container starts, lets go of it soon."""
_POLL_SECONDS = 0.25


class StopReporter(Protocol):
    """Hears of what goes on meanwhile, a line each."""

    def notice(self, words: str) -> None:
        """A step that the admin should know of."""

    def waiting(self, words: str) -> None:
        """A reason to wait, for an admin who looks on."""


class StopResult(NamedTuple):
    """The outcome of :func:`stop_volume`. ``was_dead``: the layer had died before, and its dead
    mount was taken away."""

    was_dead: bool


def stop_volume(
    state: VolumeState, reporter: StopReporter, *, lazy: bool = False, force: bool = False
) -> StopResult:
    """Unmounts a volume in order, and returns when its layer has ended. An exported volume is
    unexported first; where that cannot be done, all is exported as it was.

    Args:
        lazy: takes the mount away even if it is in use.
        force: takes from NFS clients what they have open or locked, and restarts nfsd if need be.

    Raises VolumeBusyError naming who holds it, NotRunningError where it is not mounted, UsageError
    for lazy and force together."""
    if lazy and force:
        raise UsageError("--lazy and --force are two ways: choose one")
    process = _await_answer(state, reporter)
    device = mounts.device_of(state.mountpoint)
    if process is not None and not lazy:
        _check_left(state.mountpoint)
    try:
        if exports.is_served(state.mountpoint):
            _stop_served(state, lazy, force, reporter)
        elif lazy:
            ask(state.directory, "stop", lazy=True)
        else:
            _stop_unserved(state, reporter)
    except NotRunningError:
        if state.holder() is None:
            if mounts.device_of(state.mountpoint):
                # First, else nfsd would wait for the layer to hear of the files that it closes.
                release_kept(state.directory / "connection")
                exports.unexport(state.mountpoint)
            elif process is not None:
                return StopResult(False)  # it had done it before it could say so
            release_kept(state.directory / "connection")
            if not _clear(state):
                raise NotRunningError(f"volume {state.name} is not mounted") from None
            return StopResult(True)
    if process is not None:
        # Its lock goes a moment before it does.
        while not select.select((process,), (), (), None if lazy else _COPIED_SECONDS)[0]:
            _check_uncopied(state, device)
    return StopResult(False)


def _check_uncopied(state: VolumeState, device: str) -> None:
    """Refuse to wait for a layer that goes on, because another mount namespace has a copy of its
    mount, of *device*."""
    if words := mounts.words_of_copies(state.name, state.mountpoint, device):
        pid = (state.holder() or {}).get("pid", "?")
        raise VolumeBusyError(f"volume {state.name} is held by process {pid}, {words}")


def _await_answer(state: VolumeState, reporter: StopReporter) -> int | None:
    """Wait for a layer that is still starting, or about to end; a descriptor that becomes readable
    when its process ends, or None when no process has the volume. Raises VolumeBusyError when that
    takes long."""
    begun = time.monotonic()
    process: int | None = None
    told = False
    while (holder := state.holder()) is not None:
        pid = holder.get("pid", 0)
        try:
            process = os.pidfd_open(pid)
        except (OSError, TypeError):
            time.sleep(_POLL_SECONDS)  # it has ended, or is about to say who it is
        else:
            with suppress(NotRunningError):
                live_status(state)
                return process
            select.select((process,), (), (), _POLL_SECONDS)
        waited = time.monotonic() - begun
        if waited > _ANSWER_SECONDS:
            raise VolumeBusyError(
                f"process {pid} has volume {state.name} and does not answer yet, as when it is "
                f"importing or recovering: wait for it, or end it ('kill {pid}': the next mount "
                "goes on from there)"
            )
        if waited > _REPORT_SECONDS and not told:
            reporter.notice(f"waiting for process {pid}, which is starting or ending")
            told = True
    return process


def _check_left(mountpoint: Path) -> None:
    """Refuse where only those use the mount from which this command was started."""
    ancestors = _ancestors()
    if not mounts.users(mountpoint, ancestors):
        return  # without a look at all the others
    if (users := mounts.users(mountpoint)) and {one.split()[0] for one in users} <= ancestors:
        raise VolumeBusyError(
            f"{mountpoint} is in use by {', '.join(users)}, from which this command was started: "
            "leave it with 'cd /', or use --lazy"
        )


def _ancestors() -> set[str]:
    found: set[str] = set()
    pid = str(os.getppid())
    with suppress(OSError):
        while pid not in (*found, "0"):
            found.add(pid)
            # (The name before it may have any bytes, spaces and parentheses among them.)
            pid = Path("/proc", pid, "stat").read_bytes().rpartition(b")")[2].split()[1].decode()
    return found


def _clear(state: VolumeState) -> bool:
    try:
        return mounts.clear_dead_mount(state.mountpoint)
    except OSError as error:
        raise FusejournalError(f"{state.mountpoint}: {error.strerror}") from None


def _stop_unserved(state: VolumeState, reporter: StopReporter) -> None:
    """Stop a volume that is not exported. If it was until just now, nfsd's cache of open files may
    hold it for some seconds more, which nothing shows. Raises VolumeBusyError, NotRunningError,
    RemoteError."""
    deadline = time.monotonic() + _LET_GO_SECONDS
    told = False
    while (refusal := _try_to_stop(state)) is not None:
        if time.monotonic() > deadline or not nfsd.threads():
            raise refusal
        _check_unused(state.mountpoint)
        if not told:
            reporter.waiting(f"waiting for nfsd to let go of {state.mountpoint}")
            told = True
        time.sleep(_POLL_SECONDS)


def _check_unused(mountpoint: Path) -> None:
    """Refuse where a mount inside or a process of this machine uses it."""
    for other in mounts.mounts():
        if other.mountpoint != mountpoint and other.mountpoint.is_relative_to(mountpoint):
            raise VolumeBusyError(
                f"{other.mountpoint} is mounted inside {mountpoint}: unmount that first"
            )
    if users := mounts.users(mountpoint):
        raise VolumeBusyError(
            f"{mountpoint} is in use by {', '.join(users[:5])}: stop that, or use --lazy"
        )


# -- exported volumes ------------------------------------------------------------------------------


def _stop_served(state: VolumeState, lazy: bool, force: bool, reporter: StopReporter) -> None:
    """Unexport and stop; if that cannot be done, all is exported as it was. Raises
    VolumeBusyError naming who holds it, NotRunningError."""
    mountpoint = state.mountpoint
    live_status(state)  # before anything is touched: only a living layer can end
    if not lazy:
        _check_unheld(state, force, reporter)
    taken = exports.unexport(mountpoint)
    try:
        if lazy:
            ask(state.directory, "stop", lazy=True)
        elif force:
            _stop_by_force(state, reporter)
        else:
            _stop_in_time(state, reporter)
    except BaseException:
        if mounts.device_of(mountpoint):
            exports.put_back(taken)
        raise


def _check_unheld(state: VolumeState, force: bool, reporter: StopReporter) -> None:
    """Refuse while it is in use: local users, and clients if they are not to be forced."""
    mountpoint = state.mountpoint
    _check_unused(mountpoint)
    handle_key = _handle_key(state)
    found = nfsd.recall(mountpoint, handle_key, 0 if force else _RECALL_SECONDS)
    if found and not force:
        raise VolumeBusyError(
            f"{mountpoint}: {nfsd.describe(found, mountpoint, handle_key)}: "
            "close it or unmount there, or use --force, which takes it from them"
        )
    if found:
        reporter.notice(f"{mountpoint}: taken away: {nfsd.describe(found, mountpoint, handle_key)}")


def _handle_key(state: VolumeState) -> HandleKey:
    """The volume's; none where its journal's disk fails, which is no obstacle to stopping it: files
    are then named by their inode numbers."""
    try:
        return JournalReader(state.journal_dir, state.uuid).handle_key()
    except (OSError, FusejournalError):
        return NO_HANDLE_KEY


def _stop_in_time(state: VolumeState, reporter: StopReporter) -> None:
    """Stop as soon as nfsd lets go."""
    deadline = time.monotonic() + _LET_GO_SECONDS + nfsd.flushes_in()
    told = False
    while (refusal := _try_to_stop(state)) is not None:
        if time.monotonic() > deadline:
            found = nfsd.holders(state.mountpoint)
            who = (
                f" ({nfsd.describe(found, state.mountpoint, _handle_key(state))})" if found else ""
            )
            raise VolumeBusyError(
                f"{refusal}{who}; it is exported as before; --force takes it from clients "
                "and restarts nfsd"
            )
        if not told:
            reporter.waiting(f"waiting for nfsd to let go of {state.mountpoint}")
            told = True
        if nfsd.caches(state.mountpoint) and not nfsd.flushes_in():
            nfsd.flush()
        time.sleep(_POLL_SECONDS)


def _stop_by_force(state: VolumeState, reporter: StopReporter) -> None:
    """Stop whatever clients hold."""
    nfsd.take_away(state.mountpoint)
    try:
        _stop_in_time(state, reporter)
    except VolumeBusyError:
        reporter.notice("restarting nfsd, which still holds it")
        with nfsd.stopped():
            refusal = _try_to_stop(state)
        if refusal is not None:
            raise VolumeBusyError(f"{refusal} (with nfsd stopped, too)") from None


def _try_to_stop(state: VolumeState) -> RemoteError | None:
    """The layer's refusal to stop; None when it is stopping."""
    try:
        ask(state.directory, "stop")
    except RemoteError as error:
        if error.exit_code != VolumeBusyError.exit_code:
            raise
        return error
    return None
