"""The node: one running volume, from the moment when it can be served until everything is closed.

Owns what can be asked of a running volume (the commands of the control socket) and how it ends:
unmount, last flush, CLEAN entry. The start is start.py's, which also has the signals, that reach
the rest only through trio, reported to :meth:`Node.watch_signals`.

Where the mount of a layer that died is still held (layer/connection.py), it is not mounted anew
but taken over. A restart on command ends without unmounting.

Tasks: the request loop, the background tasks of :mod:`fusejournal.volume.durability`, the control
socket, a sampler for the entries per second, and a watcher for signals. When the request loop ends,
the others are cancelled."""

import errno
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import UUID

import trio

from fusejournal.control.reply import Done
from fusejournal.control.requests import seconds_in
from fusejournal.control.server import serve_control
from fusejournal.disk import mounts
from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.errors import (
    FusejournalError,
    GreetingError,
    HookFailedError,
    MountError,
    UsageError,
    cause_of,
)
from fusejournal.journal.base import JournalBase
from fusejournal.layer.handshake import Handshake
from fusejournal.layer.replies import WAITING_MAX
from fusejournal.layer.request_loop import RequestLoop
from fusejournal.nfs import exports
from fusejournal.node.assemble import LayerParts, ServingParts, StartParts
from fusejournal.node.handoffs import Handoffs
from fusejournal.node.hooks import undoing
from fusejournal.node.journal_limits import PruningRefusedError
from fusejournal.node.live_pruning import keep_branches, prune_running
from fusejournal.node.metrics import serve_metrics
from fusejournal.node.replies import (
    Demoting,
    LayerArguments,
    ModeFollowed,
    PromotionProgress,
    Restarting,
    SegmentsPruned,
)
from fusejournal.node.running_role import RunningRole
from fusejournal.node.spec import MountSpec, Reporter
from fusejournal.node.status import StatusPage
from fusejournal.node.takeover import VolumeMount
from fusejournal.node.volume_status import VolumeStatus
from fusejournal.replication.local_node import check_becomes_mirror
from fusejournal.replication.quorum import PLACES
from fusejournal.replication.supervisor import Replication
from fusejournal.roles.demote import DRAIN_SECONDS_MAX, Demotion
from fusejournal.roles.plan import PromotionPlan
from fusejournal.roles.promote import Promotion
from fusejournal.roles.role import Event, Role
from fusejournal.types import Reign, reign_of_text
from fusejournal.volume.acceptance import Acceptance
from fusejournal.volume.durability import Durability
from fusejournal.volume.marks import MarkNoted, MarkPlace, make_mark, remove_mark
from fusejournal.volume.trouble import Trouble, TroubleKind

log = logging.getLogger(__name__)

assert PLACES <= WAITING_MAX - 64, "callers who wait for mirrors leave room for other requests"


class Node:
    """One mounted volume. See the module."""

    def __init__(
        self,
        spec: MountSpec,
        role: RunningRole,
        reporter: Reporter,
        mount: VolumeMount,
        parts: StartParts,
    ) -> None:
        self.is_restarting = False
        """True if the process is to begin again, with the mount left as it is."""
        self.forgets_members = False
        """True if who counted before that change is not to count after it."""
        self.was_served = False
        """True if a mount was made or taken over, and has ended in order."""
        self._is_leaving = False
        """True if the mount is left to its holder, for another process to take over."""
        self._is_stopping = False
        """True if a signal has asked for an orderly stop."""
        self._spec = spec
        self._role = role
        self._reporter = reporter
        self._live_since: float | None = None
        """Unix time; None until the mount is live."""
        self._mount = mount
        self._startup = parts.startup
        self._replication: Replication | None = None
        """Replication, while requests are served; None in a read-only mount."""
        self._exports = parts.exports
        self._policy = parts.policy
        self._loop: RequestLoop | None = None
        """The loop that serves requests, while it does."""
        self._tasks: trio.Nursery | None = None
        """The tasks beside the request loop, while it runs."""
        self._handoffs: Handoffs | None = None
        """The handoffs from here, while requests are served; None in a read-only mount."""

    async def serve(
        self, layer: LayerParts, parts: ServingParts, taken: Reign | None = None
    ) -> None:
        """Serve the volume until it is unmounted or left, then close it. *taken*: the reign that
        another node took over while this one was away, which is why it goes on as a mirror as soon
        as it is live. Cancelled, it takes the mount away first. Raises FusejournalError."""
        self._loop, self._replication = layer.loop, parts.replication
        try:
            await self._run_tasks(layer, parts, taken)
            if self._is_leaving:
                self._mount.note_all_answered()
        except BaseException as error:
            if isinstance(cause_of(error), GreetingError):
                # As after an upgrade of libfuse. No layer can go on with that mount: make another.
                log.warning("mounting anew, open files are lost: %s", cause_of(error))
                self.is_restarting = True
                return
            if not self._is_stopping:
                # A fault is no reason to cut callers off: the next layer may do better.
                self._is_leaving = self._mount.is_held
            raise
        finally:
            self.was_served = True
            await self._close_mount(layer.handshake)
        is_ending = self._is_stopping or self._is_leaving or self._role.next is not None
        if not is_ending and self._mount.is_there():
            raise MountError(
                f"{self._spec.mountpoint}: the kernel's connection to the layer was cut"
            )

    async def _close_mount(self, handshake: Handshake) -> None:
        """Take the mount away, unless it is left to another process, and close the volume."""
        if not self._is_leaving and (self._is_stopping or not self._has_users):
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(mounts.take_away, self._spec.mountpoint)
        if not self._is_leaving and self._role.next is None:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._mount.uncover)
        handshake.close()
        self._exports.close()
        try:
            due = self._role.next
            becomes_mirror = due is not None and due[0] is Event.DEMOTED
            self._startup.close(
                keep_orphans=self._is_leaving,
                becomes_mirror=becomes_mirror,
                goes_on=self._is_leaving or due is not None,
            )
        finally:
            if not self._is_leaving:
                self._mount.let_go()

    @property
    def _has_users(self) -> bool:
        """True if a caller may have heard that the mount is live. Unless a stop is asked for it
        then never goes without its layer: when that ends it is dead, and nothing gets past it to
        what a mount in place covers."""
        return self.is_live or self._mount.was_dead or self._mount.is_taken_over

    @property
    def is_live(self) -> bool:
        """True once the mount was live."""
        return self._live_since is not None

    def disk_failed(self, reason: str) -> None:
        """Turn the volume read-only, because a disk has failed, and remember it."""
        self._startup.volume.fail(reason)
        self._startup.mark_unclean()

    def join_volume(self, uuid: UUID) -> None:
        """Make this mirror, which has no journal yet, one of volume *uuid*. Raises OSError."""
        self._startup.join_volume(uuid)
        self._role.join_volume(uuid)

    async def _run_tasks(self, layer: LayerParts, parts: ServingParts, taken: Reign | None) -> None:
        def status() -> VolumeStatus:
            return self._status(parts.status)

        async def report_status(_: dict[str, Any]) -> dict[str, Any]:
            return status().to_json()

        async def mark(
            noting: Callable[..., Awaitable[MarkNoted]], request: dict[str, Any]
        ) -> dict[str, Any]:
            state = self._role.state
            place = MarkPlace(state.name, state.directory, state.is_mirror)
            volume = self._startup.volume
            noted = await noting(request.get("name"), volume, parts.durability, place)
            return noted.to_json()

        async def remounted(request: dict[str, Any]) -> dict[str, Any]:
            layer.access_times.follow_mount(is_read_only=bool(request.get("read_only")))
            await parts.durability.checkpoint()
            if (failure := self._startup.volume.failure) is not None:
                raise FusejournalError(failure.text)
            return Done().to_json()

        commands: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
            "status": report_status,
            "stop": self._stop,
            "mark": partial(mark, make_mark),
            # Not an option of the other: a layer of before would make a mark.
            "unmark": partial(mark, remove_mark),
            "restart": self._restart,
            "arguments": self._arguments,
            "remounted": remounted,
            "exported": self._exported,
        }
        if not self._spec.read_only:
            commands["prune"] = partial(self._prune, parts.durability)
        progress = {"promote": self._promotion_progress}
        async with trio.open_nursery() as nursery:
            self._tasks = nursery
            nursery.start_soon(self._sample, parts.status)
            nursery.start_soon(self._leave_when_due)
            if not self._spec.read_only:
                nursery.start_soon(parts.durability.run)
                nursery.start_soon(keep_branches, self._spec.state_dir, self._spec.config.branches)
                nursery.start_soon(parts.versions.run)
            if self._replication is not None:
                commands |= self._replication.commands()
                commands |= {"promote": self._promote, "demote": self._demote}
                self._handoffs = Handoffs(
                    self._role, self._startup, self._replication, layer.loop.serve_held, nursery
                )
                commands |= self._handoffs.commands()
                await nursery.start(self._replication.run)
                self._remember_listen()
            if (listen := self._spec.config.metrics.listen) is not None:
                nursery.start_soon(serve_metrics, listen, status)
            socket = self._spec.state_dir / "control.sock"
            await nursery.start(serve_control, socket, commands, progress)
            nursery.start_soon(self._say_ready, layer, taken)
            await layer.loop.run()
            nursery.cancel_scope.cancel()

    async def _prune(self, durability: Durability, request: dict[str, Any]) -> dict[str, Any]:
        """Have the journal begin after the base that *request* holds."""
        try:
            base = JournalBase.from_json(request["base"])
        except UNREADABLE_JSON as error:
            raise PruningRefusedError(f"no base: {error}") from None
        records = self._replication.records() if self._replication is not None else []
        count = await prune_running(
            self._role,
            self._handoffs,
            self._startup,
            durability.tending,
            records,
            base,
            self._spec.config.store,
        )
        return SegmentsPruned(segments=count).to_json()

    def _remember_listen(self) -> None:
        """Notes that it works: later mounts are to do the same."""
        asked = self._spec.listen_asked
        if asked is None:
            return
        try:
            self._role.remember_listen(asked)
        except OSError as error:
            log.warning("that it listens at %s is not remembered: %s", asked, error.strerror)

    async def _say_ready(self, layer: LayerParts, taken: Reign | None) -> None:
        # The first request is the kernel's INIT; a statfs that is answered says that the mount is
        # live.
        await trio.to_thread.run_sync(os.statvfs, self._spec.mountpoint, abandon_on_cancel=True)
        mountpoint = self._spec.mountpoint
        if self._mount.is_taken_over:
            volume = self._startup.volume
            await self._mount.invalidate_unanswered(
                volume.catalog.lookup, volume.journal.handle_key
            )
            layer.loop.note_forgotten()
            try:
                await self._mount.give_flags()
            except OSError as error:
                words = f"the mount's options stay as they were: {error.strerror}"
                self._startup.note_degraded([Trouble(TroubleKind.MOUNT_OPTIONS, words)])
                self._reporter.warning(words)
            layer.access_times.follow_mount(is_read_only=mounts.is_read_only(mountpoint))
        else:
            mounts.raise_read_ahead(mountpoint)
            for words in await trio.to_thread.run_sync(exports.refresh_after_mount, mountpoint):
                log.warning("%s", words)
        self._hold_if_wanted()
        self._live_since = time.time()
        self._reporter.ready(self._startup.importer.names)
        if taken is not None:
            self._role.end_in(Event.DEMOTED, taken)
        else:
            await self._call_after_hooks()

    # -- exports -----------------------------------------------------------------------------------

    def _hold_if_wanted(self) -> None:
        if not self._is_leaving:
            self._mount.hold_if(self._exports.wants_holder)

    async def _exported(self, _: dict[str, Any]) -> dict[str, Any]:
        self._exports.follow()
        if self.is_live:
            self._hold_if_wanted()
        return ModeFollowed(durability=self._policy.mode).to_json()

    async def _restart(self, _: dict[str, Any]) -> dict[str, Any]:
        """End without unmounting; the reply has the pid that the new program has, too."""
        self._mount.hold_for_restart()
        self.is_restarting = self._is_leaving = True
        self._leave()
        return Restarting(pid=os.getpid()).to_json()

    async def _arguments(self, _: dict[str, Any]) -> dict[str, Any]:
        """Return the command line by which a restart begins again."""
        return LayerArguments(arguments=tuple(sys.argv[1:])).to_json()

    # -- roles -------------------------------------------------------------------------------------

    def begin_anew(self) -> None:
        """Have the process begin again once this node has ended."""
        self.is_restarting = True

    async def _call_after_hooks(self) -> None:
        if self._replication is not None:
            await self._role.call_after_hooks(self._replication)

    async def _leave_when_due(self) -> None:
        """End for a change of the role. Cancelled where none comes."""
        await self._role.wait_until_due()
        self._leave()

    async def _promote(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make this mirror the primary: see roles/promote.py. The role changes when the volume is
        closed. Cancelled, it is as before, but for votes that were given."""
        replication = self._replication
        receiver = replication.receiver if replication is not None else None
        if replication is None or receiver is None or self._role.state.role is not Role.MIRROR:
            word = "primary" if receiver is None else "mirror that has no volume yet"
            name = self._role.state.name
            raise UsageError(f"volume {name} is a {word}: only a mirror is promoted")
        volume, hooks = self._startup.volume, self._role.hooks

        async def fence(plan: PromotionPlan) -> None:
            await hooks.fence(plan.reign, plan.primary or "")

        fence_hook = fence if hooks.can_fence else None
        promotion = Promotion(self._role.state.name, volume, replication, receiver, fence_hook)
        if request.get("dry_run"):
            return (await promotion.plan()).to_json()
        async with hooks.prepared():
            plan = await promotion.prepare(bool(request.get("force")))
            await promotion.apply_all()
        reign = reign_of_text(plan.reign)
        async with undoing(self._call_after_hooks, self._tasks):
            try:
                await hooks.before("primary", plan.reign, plan.primary or "")
            except HookFailedError as error:  # the service is down meanwhile: said, and gone on
                log.error("%s", error)
            promotion.check_reign(reign)  # once more: what was awaited since took its time
        self.forgets_members = not plan.is_covered
        self._role.end_in(Event.PROMOTED, reign)
        return replace(plan, left_to_apply=0).to_json()

    def _promotion_progress(self) -> dict[str, Any]:
        """Returns what a promotion that is at work waits for."""
        replication = self._replication
        if replication is None or replication.receiver is None:
            return PromotionProgress().to_json()
        return PromotionProgress(left_to_apply=replication.left_to_apply).to_json()

    async def _demote(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make this primary a mirror: see roles/demote.py. The role changes when the volume is
        closed. Cancelled, it takes changes again."""
        replication, state = self._replication, self._role.state
        if replication is None or not state.role.takes_changes:
            raise UsageError(f"volume {state.name} is a mirror: only a primary is demoted")
        check_becomes_mirror(state.name, self._role.listens_at)
        seconds = seconds_in(request, "timeout_seconds", DRAIN_SECONDS_MAX)
        demotion = Demotion(self._startup.volume, replication)
        async with undoing(self._call_after_hooks, self._tasks):
            await self._role.hooks.before("mirror", str(replication.me().reign), "")
            force = bool(request.get("force"))
            reign = await demotion.prepare(force=force, timeout_seconds=seconds)
        self._role.end_in(Event.DEMOTED, reign)
        head_seq = self._startup.volume.journal.head_seq
        return Demoting(reign=str(reign), head_seq=head_seq).to_json()

    # -- stopping ----------------------------------------------------------------------------------

    async def watch_signals(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        """End the node on the first of *signals*: cancel *scope*, or, where NFS clients would get
        errors, leave the mount to its holder. Runs until it is cancelled."""
        async for number in signals:
            log.info("stopping on %s", signal.Signals(number).name)
            # Also in the midst of a restart: what was told last is done.
            self.is_restarting = False
            self._role.stay()
            self._is_stopping = True
            self._is_leaving = number == signal.SIGTERM and self._has_clients()
            if self._is_leaving:
                self._leave()
            else:
                scope.cancel()

    def _leave(self) -> None:
        """End the loop, when what was asked is answered."""
        if self._replication is not None:
            self._replication.quorum.close()  # no caller waits for mirrors any more
        volume = self._startup.volume
        if volume.acceptance is Acceptance.HOLDING:
            volume.refuse_changes(errno.EAGAIN)  # of what was held nothing is done
        if self._loop is not None:
            self._loop.leave()
            self._loop.serve_held()

    def _has_clients(self) -> bool:
        """True if NFS clients would get errors if the mount went now. Then a SIGTERM, which may be
        half of a restart, leaves it to its holder; at shutdown the NFS server has ended before."""
        return self._mount.is_held and exports.is_served(self._spec.mountpoint)

    async def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        lazy = bool(request.get("lazy"))
        await trio.to_thread.run_sync(mounts.unmount_unused, self._spec.mountpoint, lazy)
        if lazy:
            # What the kernel still asks of files that are open gets no answer: it sees the end.
            self._leave()
        return Done().to_json()

    # -- status ------------------------------------------------------------------------------------

    async def _sample(self, page: StatusPage) -> None:
        while True:
            page.sample()
            await trio.sleep(1)
            if self.is_live and self._exports.has_changed():
                await self._exported({})

    def _status(self, page: StatusPage) -> VolumeStatus:
        """Returns the status of the volume now."""
        status = page.status(
            durability=self._policy.mode,
            exported=self._exports.is_exported,
            held=self._mount.is_held,
            live_since=self._live_since,
        )
        return status.with_troubles(self._handoffs.degraded() if self._handoffs else ())
