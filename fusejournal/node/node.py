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
    JournalError,
    MountError,
)
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.layer import lost_replies
from fusejournal.layer.connection import (
    ConnectionHolder,
    Handshake,
    KernelConnection,
    check_held,
    open_new,
    release_kept,
    take_over,
)
from fusejournal.layer.handlers import Handlers
from fusejournal.layer.kernel_cache import KernelCache
from fusejournal.layer.open_files import OpenFiles
from fusejournal.layer.request_loop import TASKS, RequestLoop
from fusejournal.nfs import exports
from fusejournal.nfs.delegations import Recaller
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
from fusejournal.node.volume_status import VolumeStatus
from fusejournal.replication.quorum import PLACES
from fusejournal.replication.supervisor import Mirroring, Replication
from fusejournal.types import Fid, Seq
from fusejournal.volume.durability import Durability
from fusejournal.volume.marks import MarkPlace, make_mark
from fusejournal.volume.startup import VolumeStartup
from fusejournal.wire.session import RefusedError

log = logging.getLogger(__name__)

assert PLACES <= TASKS - 64, "who waits for mirrors leaves room for other requests"

_RESTART_SECONDS = 60.0
_CONNECTION = "connection"
"""In the state directory: who holds the connection."""


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
    record = spec.state_dir / _CONNECTION

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
        """Whether the mount is left to the keeper, for another process to take over."""
        self._is_stopping = False
        """Whether a signal has asked for an orderly stop."""
        self._taken = taken
        self._was_dead = was_dead
        self._keeper: ConnectionHolder | None = None
        self._spec = spec
        self._state = state
        self._reporter = reporter
        self._live = False
        self._live_since: float | None = None
        """Unix time."""
        self._is_exported = False
        self._durability_mode = "async"
        self._exports_stamp: tuple[int, ...] = ()
        config = spec.config.journal
        options = JournalOptions(
            segment_bytes=config.segment_bytes,
            segment_entries=config.segment_entries,
            compress=config.compress,
            compress_level=config.compress_level,
        )
        self._root_fd = root_fd
        page = WatermarkPage(state.marks, state.created_ns)
        self._marks = page if state.is_mirror else None
        self._opening = VolumeStartup(
            spec.state_dir,
            state.uuid,
            spec.backing,
            self._root_fd,
            options,
            reporter,
            page,
            is_mirror=state.is_mirror,
            is_uninitialized=state.is_uninitialized,
            adopt=spec.adopt,
        )
        self._opening.degraded += degraded
        self._recaller: Recaller | None = None
        self._replication: Replication | None = None
        """None in a read-only mount."""
        if not spec.read_only:
            self._replication = Replication(
                spec.state_dir,
                spec.name,
                spec.config.replication,
                state.listens_at(spec.config.replication.listen),
                spec.config.replication.insecure,
                state.is_mirror,
                page,
            )
        self._durability: Durability
        self._page: StatusPage
        self._handlers: Handlers
        self._loop: RequestLoop
        self._connection: KernelConnection
        self._stale: lost_replies.Stale
        self._first_seq = Seq(1)
        """Of what this process appends once it serves."""

    async def run(self) -> None:
        """Open, mount, serve, close."""
        mark_thread_as_io_flusher()
        if self._marks is None:
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
        if not self._live:
            if self._was_dead:
                mounts.clear_dead_mount(self._spec.mountpoint)
            raise Stopped("stopped before the mount was live; mounting again goes on from here")

    async def _open(self) -> None:
        self._opening.open(self._spec.read_only)
        try:
            await trio.lowlevel.checkpoint()
            held_seq = Seq(0)
            if self._marks is None and self._replication is not None:
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
        volume = self._opening.volume
        spec = self._spec
        self._durability = Durability(
            volume.journal,
            volume.catalog,
            self._opening.root,
            self._opening.checkpoint,
            spec.config.journal,
            self._disk_failed,
            self._opening.page,
        )
        volume.must_refuse_growth = lambda: self._durability.full
        self._page = StatusPage(
            spec, self._state, self._opening, self._durability, self._replication
        )
        self._connection = connection = self._connect()
        handshake = Handshake(connection, spec.mountpoint, changes_alone=not self._state.is_mirror)
        self._loop = RequestLoop(handshake)
        self._handlers = Handlers(
            volume,
            self._durability,
            self._loop,
            self._opening.importer,
            OpenFiles(connection.table_fd),
        )
        files = self._handlers.files
        volume.is_open = lambda fid: fid in files
        if not spec.read_only:
            volume.tree.take_over_orphans(files.fids())
        if self._replication is not None:
            self._replication.attach(volume, self._durability, self._mirroring())
        self._follow_exports()
        self._first_seq = Seq(volume.catalog.applied_seq + 1)
        if self._taken is not None:
            self._start_keeper()  # from now on this one, whatever happens
            self._stale = self._find_stale(self._taken)
        # What is there by now stays: to look through it again and again for garbage would hold up
        # all requests for some 50 ms each time.
        gc.collect()
        gc.freeze()
        try:
            pyfuse3.init(self._handlers, f"/dev/fd/{handshake.fd}", set())
            await self._run_tasks(self._loop)
            if self._is_leaving and self._keeper is not None:
                self._keeper.all_is_answered()
        except BaseException as error:
            if isinstance(_cause(error), GreetingError):
                # As after an upgrade of libfuse. Nobody can go on with that mount: make another.
                log.warning("mounting anew, open files are lost: %s", _cause(error))
                self.is_restarting = True
                return
            if not self._is_stopping:
                # A fault is no reason to cut callers off: the next layer may do better.
                self._is_leaving = self._keeper is not None
            raise
        finally:
            if not self._is_leaving and (self._is_stopping or not self._has_users):
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(mounts.take_away, spec.mountpoint)
            pyfuse3.close(unmount=False)
            if self._recaller is not None:
                self._recaller.close()
            volume.tree.keeps_orphans = self._is_leaving
            try:
                self._opening.close()
            finally:
                if self._keeper is not None and not self._is_leaving:
                    self._keeper.dismiss()
                self._live = True
        if not (self._is_stopping or self._is_leaving) and self._is_mounted():
            raise MountError(f"{spec.mountpoint}: the kernel's connection to the layer was cut")

    @property
    def _has_users(self) -> bool:
        """Whether somebody may have been told that the mount is live. Unless a stop is asked for it
        then never goes without its layer: when that ends it is dead, and nobody gets past it to
        what a mount in place covers."""
        return self._live or self._was_dead or self._taken is not None

    def _is_mounted(self) -> bool:
        return mounts.device_of(self._spec.mountpoint) == self._connection.device

    def _disk_failed(self, reason: str) -> None:
        self._opening.volume.fail(reason)
        self._opening.mark_unclean()

    def _mirroring(self) -> Mirroring | None:
        """What the replication of a mirror needs; None for a primary."""
        marks, volume = self._marks, self._opening.volume
        if marks is None:
            return None
        self._recaller = Recaller(
            self._spec.mountpoint, lambda fid: volume.journal.handle_key.generation(fid)
        )
        kernel_cache = KernelCache(self._recall, everything=self._connection.taken_over)
        self._handlers.kernel_cache = kernel_cache
        files = self._handlers.files
        volume.is_in_use = lambda fid: fid in kernel_cache or fid in files
        return Mirroring(
            marks, kernel_cache, self._state.is_uninitialized, marks.applying_seq, self._join_volume
        )

    def _join_volume(self, uuid: UUID) -> None:
        self._opening.join_volume(uuid)
        self._state = join_volume(self._state, uuid)

    def _recall(self, fids: set[Fid]) -> None:
        """Have NFSv4 clients give back delegations of what has changed."""
        if not self._is_exported or self._recaller is None:
            return
        try:
            self._recaller.recall(fids)
        except OSError as error:
            log.warning("NFSv4 clients may not see what has changed: %s", error)

    def _find_stale(self, taken: KernelConnection) -> lost_replies.Stale:
        if taken.all_answered:
            return lost_replies.Stale(set(), set())
        reader = JournalReader(self._state.journal_dir, self._state.uuid)
        durable_seq = self._opening.volume.journal.durable_when_opened
        try:
            return lost_replies.find_unanswered(reader, durable_seq, self._first_seq)
        except JournalError as error:
            log.warning("the kernel may remember what is not so any more: %s", error)
            return lost_replies.Stale(set(), set())

    def _connect(self) -> KernelConnection:
        if self._taken is not None:
            return self._taken
        spec = self._spec
        if self._was_dead:
            mounts.clear_dead_mount(spec.mountpoint)
        return open_new(self._root_fd, spec.mountpoint, spec.name, self._mount_flags)

    @property
    def _mount_flags(self) -> frozenset[str]:
        return self._spec.mount_flags | ({"ro"} if self._spec.read_only else frozenset())

    async def _run_tasks(self, loop: RequestLoop) -> None:
        commands: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
            "status": self._status,
            "stop": self._stop,
            "mark": self._mark,
            "restart": self._restart,
            "exported": self._exported,
        }
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sample)
            if not self._spec.read_only:
                nursery.start_soon(self._durability.run)
            if self._replication is not None:
                commands |= self._replication.commands()
                await nursery.start(self._replication.run)
                self._remember_listen()
            if (listen := self._spec.config.metrics.listen) is not None:
                nursery.start_soon(serve_metrics, listen, self.status)
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
        if self._connection.taken_over:
            await self._drop_stale()
            await self._change_flags()
        else:
            mounts.raise_read_ahead(mountpoint)
            for words in await trio.to_thread.run_sync(exports.refresh_after_mount, mountpoint):
                log.warning("%s", words)
        self._keep_if_wanted()
        self._live = True
        self._live_since = time.time()
        self._reporter.ready()

    async def _drop_stale(self) -> None:
        """At once: whose request was lost is about to try again."""
        found = await trio.to_thread.run_sync(
            lost_replies.invalidate,
            self._stale,
            self._connection,
            self._spec.mountpoint,
            self._opening.volume.journal.handle_key,
        )
        lookup = self._opening.volume.catalog.lookup
        wrong = [
            (parent, name) for parent, name, fid in found if (lookup(parent, name) or 0) != fid
        ]
        await trio.to_thread.run_sync(lost_replies.forget, wrong)

    async def _change_flags(self) -> None:
        """Give a mount that was taken over the options that this process was started with."""
        try:
            await trio.to_thread.run_sync(
                mounts.change_flags, self._spec.mountpoint, self._mount_flags
            )
        except OSError as error:
            words = f"the mount's options stay as they were: {error.strerror}"
            self._opening.degraded.append(words)
            self._reporter.warning(words)

    # -- exports -----------------------------------------------------------------------------------

    def _follow_exports(self) -> None:
        """What depends on whether the volume is exported, as it is now."""
        mountpoint = self._spec.mountpoint
        self._exports_stamp = exports.stamp()
        self._is_exported = exports.is_exported(mountpoint)
        durability = self._spec.config.volume.durability
        if durability is None:
            durability = "nfs" if exports.waits(mountpoint) else "async"
        self._durability_mode = durability
        self._handlers.names_wait = durability in ("nfs", "strict")
        self._handlers.writes_wait = self._opening.volume.is_strict = durability == "strict"

    def _keep_if_wanted(self) -> None:
        """Have a keeper beside this process while clients are to wait for the next one, should it
        die: local callers alone are better told at once."""
        if self._is_leaving:
            return
        is_wanted = self._is_exported and self._spec.config.volume.hold_seconds > 0
        if is_wanted and self._keeper is None:
            self._start_keeper()
        elif not is_wanted and self._keeper is not None:
            self._keeper.dismiss()
            self._keeper = None

    def _start_keeper(self, at_least_seconds: float = 0.0) -> None:
        seconds = max(self._spec.config.volume.hold_seconds, at_least_seconds)
        try:
            self._keeper = ConnectionHolder(
                self._connection,
                self._spec.state_dir / _CONNECTION,
                seconds,
                self._spec.backing,
                self._spec.mountpoint,
            )
        except OSError as error:
            log.warning("if this layer dies, its mount dies with it: %s", error)

    async def _exported(self, _: dict[str, Any]) -> dict[str, Any]:
        self._follow_exports()
        if self._live:
            self._keep_if_wanted()
        return {"durability": self._durability_mode}

    async def _restart(self, _: dict[str, Any]) -> dict[str, Any]:
        """End without unmounting; the reply tells the pid that the new program has, too."""
        if self._keeper is not None and (
            not self._keeper.is_alive() or self._spec.config.volume.hold_seconds < _RESTART_SECONDS
        ):
            self._keeper.dismiss()
            self._keeper = None
        if self._keeper is None:
            self._start_keeper(at_least_seconds=_RESTART_SECONDS)
        if self._keeper is None:
            raise MountError(f"{self._spec.mountpoint}: the mount cannot be kept: see the log")
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
        self._let_callers_go()
        self._loop.leave()

    def _let_callers_go(self) -> None:
        """Nobody waits for mirrors any more."""
        if self._replication is not None:
            self._replication.quorum.close()

    def _has_clients(self) -> bool:
        """Whether NFS clients would get errors if the mount went now. Then a SIGTERM, which may be
        half of a restart, leaves it to the keeper; at shutdown the NFS server has ended before."""
        return self._keeper is not None and exports.is_served(self._spec.mountpoint)

    async def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        lazy = bool(request.get("lazy"))
        await trio.to_thread.run_sync(mounts.unmount_unused, self._spec.mountpoint, lazy)
        if lazy:
            # What the kernel still asks of files that are open gets no answer: it sees the end.
            self._leave()
        return {"ok": True}

    async def _mark(self, request: dict[str, Any]) -> dict[str, Any]:
        state = self._state
        place = MarkPlace(state.name, state.directory, state.is_mirror)
        return await make_mark(request.get("name"), self._opening.volume, self._durability, place)

    # -- status ------------------------------------------------------------------------------------

    async def _sample(self) -> None:
        while True:
            self._page.sample()
            await trio.sleep(1)
            if self._live and exports.stamp() != self._exports_stamp:
                await self._exported({})

    async def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        return self.status().to_json()

    def status(self) -> VolumeStatus:
        """Returns the status of the volume now."""
        return self._page.status(
            durability=self._durability_mode,
            exported=self._is_exported,
            held=self._keeper is not None,
            live_since=self._live_since,
        )


def _cause(error: BaseException) -> BaseException:
    """What ended the process, out of the groups that nurseries wrap it in: an error of ours before
    any other."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [_cause(one) for one in error.exceptions]
    return next((cause for cause in causes if isinstance(cause, FusejournalError)), causes[0])
