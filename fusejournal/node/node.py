"""The node: one running volume, wired together and run in one nursery.

Owns the order of starting (lock, backing, journal, recovery, import, mount, serve) and of stopping
(unmount, last flush, CLEAN entry, unlock), and the signals, which reach the rest only through
trio. One process runs one volume, for pyfuse3 mounts one file system a process.

Where the mount of a layer that died is still held (layer/connection.py), it is not mounted anew
but taken over. A restart on command ends without unmounting, and the same process begins again
with the program as it is installed by then.

Tasks: the request loop, the background tasks of :mod:`fusejournal.volume.durability`, the control
socket, a sampler for the entries per second, and a watcher for signals. When the request loop ends,
the others are cancelled."""

import gc
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

import pyfuse3
import trio

from fusejournal.control.server import serve_control
from fusejournal.disk import calls, mounts
from fusejournal.disk.process import file_bytes_max, python_module, shed_inheritance
from fusejournal.disk.syscalls import drop_resource_capability, mark_thread_as_io_flusher
from fusejournal.errors import (
    BackingError,
    FusejournalError,
    GreetingError,
    MountError,
)
from fusejournal.journal.reader import JournalReader
from fusejournal.layer.connection import (
    Handshake,
    KernelConnection,
    check_held,
    release_kept,
    take_over,
)
from fusejournal.layer.handlers import Handlers
from fusejournal.layer.open_files import new_table
from fusejournal.layer.request_loop import TASKS, RequestLoop
from fusejournal.nfs import exports
from fusejournal.nfs.delegations import Recaller
from fusejournal.node.assemble import ServingParts, assemble_serving, assemble_start
from fusejournal.node.metrics import serve_metrics
from fusejournal.node.spec import MountSpec, Reporter
from fusejournal.node.state_dir import (
    VolumeState,
    claim_volume,
    join_volume,
    pass_claim_on,
    remember_listen,
)
from fusejournal.node.status import StatusPage
from fusejournal.node.takeover import VolumeMount, connection_record
from fusejournal.node.volume_status import VolumeStatus
from fusejournal.replication.quorum import PLACES
from fusejournal.replication.supervisor import Replication
from fusejournal.types import Fid, Seq
from fusejournal.volume.marks import MarkPlace, make_mark
from fusejournal.wire.session import RefusedError

log = logging.getLogger(__name__)

assert PLACES <= TASKS - 64, "who waits for mirrors leaves room for other requests"


class Stopped(FusejournalError):
    """A signal ended the process before the mount was live."""

    exit_code = 130


def serve(spec: MountSpec, reporter: Reporter) -> None:
    """Mount the volume and serve it until it is unmounted or told to stop. Raises
    FusejournalError."""
    limits = shed_inheritance()
    for line in limits:
        reporter.warning(line)
    if file_bytes_max() < 2 * spec.config.journal.segment_bytes:
        raise MountError("files may not become large enough for a journal: see 'ulimit -f'")
    record = connection_record(spec.state_dir)

    def check() -> None:
        check_held(record, spec.name, spec.backing, spec.mountpoint)

    with claim_volume(spec, check) as state:
        taken = take_over(record, spec.mountpoint)
        if taken is None:
            release_kept(record)
            # Nobody but the layer may be there: the mount of a layer that was killed still is.
            with mounts.uncovered(spec.mountpoint, spec.name) as was_dead:
                if was_dead:
                    reporter.warning(f"{spec.mountpoint}: took a dead mount away")
                mounts.check_places(spec.backing, spec.mountpoint, spec.state_dir)
                root_fd = mounts.open_backing(spec.backing)
        else:
            was_dead, root_fd = False, taken.root_fd
        if (way := mounts.way_around(spec.backing, spec.mountpoint)) is not None:
            if not state.has_journal() and not spec.config.volume.open_backing:
                raise BackingError(spec.backing, f"{way}; or take it as it is: --open-backing")
            limits.append(f"the backing is open: {way}")
        node = Node(spec, state, reporter, root_fd, taken, was_dead, limits)
        try:
            trio.run(node.run)
        except BaseExceptionGroup as group:
            raise _cause(group) from group
        if node.is_restarting:
            pass_claim_on(state)
            command = python_module("fusejournal", *sys.argv[1:])
            os.execv(command[0], command)


class Node:
    """One mounted volume. See the module."""

    def __init__(
        self,
        spec: MountSpec,
        state: VolumeState,
        reporter: Reporter,
        root_fd: int,
        taken: KernelConnection | None,
        was_dead: bool,
        degraded: Sequence[str] = (),
    ) -> None:
        """*root_fd*: of the backing. *was_dead*: a dead mount is there, for the node to replace."""
        self.is_restarting = False
        """Whether the process is to begin again, with the mount left as it is."""
        self._is_leaving = False
        """Whether the mount is left to its holder, for another process to take over."""
        self._was_served = False
        """Whether a mount was made or taken over, and has ended in order."""
        self._is_stopping = False
        """Whether a signal has asked for an orderly stop."""
        self._spec = spec
        self._state = state
        self._reporter = reporter
        self._live_since: float | None = None
        """Unix time; None until the mount is live."""
        self._recaller = Recaller(
            spec.mountpoint,
            lambda fid: self._opening.volume.journal.handle_key.generation(fid),
        )
        table_fd = new_table() if taken is None else taken.table_fd
        self._mount = VolumeMount(spec, root_fd, table_fd, taken, was_dead)
        self._start = assemble_start(
            spec,
            state,
            reporter,
            root_fd,
            table_fd,
            is_taken_over=taken is not None,
            recall=self._recall,
        )
        self._opening = self._start.startup
        self._opening.degraded += degraded
        self._replication = self._start.replication
        self._exports = self._start.exports
        self._loop: RequestLoop | None = None
        """While requests are served."""

    async def run(self) -> None:
        """Open, mount, serve, close."""
        mark_thread_as_io_flusher()
        if not self._state.is_mirror:
            drop_resource_capability()  # (A mirror takes what its primary's quotas let in.)
        _, descriptors_max = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors_max, descriptors_max))
        calls.keep_reserve()
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_signals, signals, nursery.cancel_scope)
                await self._open()
                await self._serve()
                nursery.cancel_scope.cancel()
        if not self._was_served:
            if self._mount.was_dead:
                mounts.clear_dead_mount(self._spec.mountpoint)
            raise Stopped("stopped before the mount was live; mounting again goes on from here")

    async def _open(self) -> None:
        self._opening.open(self._spec.read_only)
        try:
            await trio.lowlevel.checkpoint()
            held_seq = Seq(0)
            if not self._state.is_mirror and self._replication is not None:
                held_seq = await self._ask_peers(self._replication)
            # In a thread, so that signals are heeded; nothing else uses the volume meanwhile.
            await trio.to_thread.run_sync(
                self._opening.recover,
                self._spec.read_only,
                held_seq,
                trio.from_thread.check_cancelled,
            )
        except trio.Cancelled:
            self._opening.volume.journal.sync()
            raise
        try:
            for _ in self._opening.start_epoch_and_import(self._spec.read_only):
                await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self._opening.volume.journal.sync()
            self._opening.volume.catalog.commit()
            raise

    async def _ask_peers(self, replication: Replication) -> Seq:
        """Hear from its peers whether this primary reigns, and what of its journal only they have.
        Returns up to where entries are known to be applied. Raises RefusedError after the machine
        was lost: what the backing should be, it then is not for this one to say."""
        opening = self._opening
        try:
            taken = await replication.take_back(
                opening.volume, self._reporter.warning, lost_machine=opening.lost_machine
            )
        except RefusedError as error:
            if opening.lost_machine:
                raise
            opening.fenced = str(error)
            self._reporter.warning(opening.fenced)
            return Seq(0)
        opening.degraded += taken.failures
        opening.seen_epoch, opening.new_epoch = replication.fence.highest_epoch, taken.new_epoch
        return taken.held_seq

    async def _serve(self) -> None:
        spec, start, volume = self._spec, self._start, self._opening.volume
        parts = assemble_serving(
            spec, self._state, start, fail=self._disk_failed, join_volume=self._join_volume
        )
        connection = self._mount.connect()
        handshake = Handshake(connection, spec.mountpoint, changes_alone=not self._state.is_mirror)
        loop = self._loop = RequestLoop(handshake)
        handlers = Handlers(
            volume,
            parts.durability,
            loop,
            self._opening.importer,
            start.files,
            start.policy,
            start.kernel_cache,
        )
        if not spec.read_only:
            volume.tree.take_over_orphans(start.files.fids())
        self._exports.follow()
        if self._mount.is_taken_over:
            self._mount.hold()  # from now on by this one, whatever happens
            self._mount.find_unanswered(
                JournalReader(self._state.journal_dir, self._state.uuid),
                volume.journal.durable_when_opened,
                Seq(volume.catalog.applied_seq + 1),
            )
        # What is there by now stays: to look through it again and again for garbage would hold up
        # all requests for some 50 ms each time.
        gc.collect()
        gc.freeze()
        try:
            pyfuse3.init(handlers, f"/dev/fd/{handshake.fd}", set())
            await self._run_tasks(loop, parts)
            if self._is_leaving:
                self._mount.note_all_answered()
        except BaseException as error:
            if isinstance(_cause(error), GreetingError):
                # As after an upgrade of libfuse. Nobody can go on with that mount: make another.
                log.warning("mounting anew, open files are lost: %s", _cause(error))
                self.is_restarting = True
                return
            if not self._is_stopping:
                # A fault is no reason to cut callers off: the next layer may do better.
                self._is_leaving = self._mount.is_held
            raise
        finally:
            self._was_served = True
            await self._close_mount()
        if not (self._is_stopping or self._is_leaving) and self._mount.is_there():
            raise MountError(f"{spec.mountpoint}: the kernel's connection to the layer was cut")

    async def _close_mount(self) -> None:
        """Take the mount away, unless it is left to another process, and close the volume."""
        if not self._is_leaving and (self._is_stopping or not self._has_users):
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(mounts.take_away, self._spec.mountpoint)
        pyfuse3.close(unmount=False)
        self._recaller.close()
        try:
            self._opening.close(keep_orphans=self._is_leaving)
        finally:
            if not self._is_leaving:
                self._mount.let_go()

    @property
    def _has_users(self) -> bool:
        """Whether a caller may have been told that the mount is live. Unless a stop is asked for it
        then never goes without its layer: when that ends it is dead, and nobody gets past it to
        what a mount in place covers."""
        return self._is_live or self._mount.was_dead or self._mount.is_taken_over

    @property
    def _is_live(self) -> bool:
        return self._live_since is not None

    def _disk_failed(self, reason: str) -> None:
        self._opening.volume.fail(reason)
        self._opening.mark_unclean()

    def _join_volume(self, uuid: UUID) -> None:
        self._opening.join_volume(uuid)
        self._state = join_volume(self._state, uuid)

    def _recall(self, fids: set[Fid]) -> None:
        """Have NFSv4 clients give back delegations of what has changed."""
        if not self._exports.is_exported:
            return
        try:
            self._recaller.recall(fids)
        except OSError as error:
            log.warning("NFSv4 clients may not see what has changed: %s", error)

    async def _run_tasks(self, loop: RequestLoop, parts: ServingParts) -> None:
        def status() -> VolumeStatus:
            return self._status(parts.status)

        async def tell_status(_: dict[str, Any]) -> dict[str, Any]:
            return status().to_json()

        async def mark(request: dict[str, Any]) -> dict[str, Any]:
            state = self._state
            place = MarkPlace(state.name, state.directory, state.is_mirror)
            volume = self._opening.volume
            return await make_mark(request.get("name"), volume, parts.durability, place)

        commands: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
            "status": tell_status,
            "stop": self._stop,
            "mark": mark,
            "restart": self._restart,
            "exported": self._exported,
        }
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sample, parts.status)
            if not self._spec.read_only:
                nursery.start_soon(parts.durability.run)
            if self._replication is not None:
                commands |= self._replication.commands()
                await nursery.start(self._replication.run)
                self._remember_listen()
            if (listen := self._spec.config.metrics.listen) is not None:
                nursery.start_soon(serve_metrics, listen, status)
            await nursery.start(serve_control, self._spec.state_dir / "control.sock", commands)
            nursery.start_soon(self._say_ready)
            await loop.run()
            nursery.cancel_scope.cancel()

    def _remember_listen(self) -> None:
        """It works: later mounts are to do the same."""
        asked = self._spec.listen_asked
        if asked is None:
            return
        try:
            self._state = remember_listen(self._state, asked)
        except OSError as error:
            log.warning("that it listens at %s is not remembered: %s", asked, error.strerror)

    async def _say_ready(self) -> None:
        # The first request is the kernel's INIT; a statfs that is answered says that the mount is
        # live.
        await trio.to_thread.run_sync(os.statvfs, self._spec.mountpoint, abandon_on_cancel=True)
        mountpoint = self._spec.mountpoint
        if self._mount.is_taken_over:
            volume = self._opening.volume
            await self._mount.invalidate_unanswered(
                volume.catalog.lookup, volume.journal.handle_key
            )
            try:
                await self._mount.give_flags()
            except OSError as error:
                words = f"the mount's options stay as they were: {error.strerror}"
                self._opening.degraded.append(words)
                self._reporter.warning(words)
        else:
            mounts.raise_read_ahead(mountpoint)
            for words in await trio.to_thread.run_sync(exports.refresh_after_mount, mountpoint):
                log.warning("%s", words)
        self._hold_if_wanted()
        self._live_since = time.time()
        self._reporter.ready()

    # -- exports -----------------------------------------------------------------------------------

    def _hold_if_wanted(self) -> None:
        if not self._is_leaving:
            self._mount.hold_if(self._exports.wants_holder)

    async def _exported(self, _: dict[str, Any]) -> dict[str, Any]:
        self._exports.follow()
        if self._is_live:
            self._hold_if_wanted()
        return {"durability": self._start.policy.mode}

    async def _restart(self, _: dict[str, Any]) -> dict[str, Any]:
        """End without unmounting; the reply tells the pid that the new program has, too."""
        self._mount.hold_for_restart()
        self.is_restarting = self._is_leaving = True
        self._leave()
        return {"pid": os.getpid()}

    # -- stopping ----------------------------------------------------------------------------------

    async def _watch_signals(self, signals: Any, scope: trio.CancelScope) -> None:
        async for number in signals:
            log.info("stopping on %s", signal.Signals(number).name)
            # Also in the midst of a restart: what was told last is done.
            self.is_restarting = False
            self._is_stopping = True
            self._is_leaving = number == signal.SIGTERM and self._has_clients()
            if self._is_leaving:
                self._leave()
            else:
                scope.cancel()

    def _leave(self) -> None:
        """End the loop, when what was asked is answered."""
        if self._replication is not None:
            self._replication.quorum.close()  # nobody waits for mirrors any more
        if self._loop is not None:
            self._loop.leave()

    def _has_clients(self) -> bool:
        """Whether NFS clients would get errors if the mount went now. Then a SIGTERM, which may be
        half of a restart, leaves it to its holder; at shutdown the NFS server has ended before."""
        return self._mount.is_held and exports.is_served(self._spec.mountpoint)

    async def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        lazy = bool(request.get("lazy"))
        await trio.to_thread.run_sync(mounts.unmount_unused, self._spec.mountpoint, lazy)
        if lazy:
            # What the kernel still asks of files that are open gets no answer: it sees the end.
            self._leave()
        return {"ok": True}

    # -- status ------------------------------------------------------------------------------------

    async def _sample(self, page: StatusPage) -> None:
        while True:
            page.sample()
            await trio.sleep(1)
            if self._is_live and self._exports.has_changed():
                await self._exported({})

    def _status(self, page: StatusPage) -> VolumeStatus:
        """Returns the status of the volume now."""
        return page.status(
            durability=self._start.policy.mode,
            exported=self._exports.is_exported,
            held=self._mount.is_held,
            live_since=self._live_since,
        )


def _cause(error: BaseException) -> BaseException:
    """What ended the process, out of the groups that nurseries wrap it in: an error of ours before
    any other."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [_cause(one) for one in error.exceptions]
    return next((cause for cause in causes if isinstance(cause, FusejournalError)), causes[0])
