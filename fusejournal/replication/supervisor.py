"""Replication of one running volume: listener, shippers, and on a mirror receiver and applier,
wired together.

Owns which of them run: a shipper for each peer that has an address, the listener where one is
configured, receiver and applier on a mirror. A mirror with peers ships on what it has applied.
The rest of the node asks :meth:`Replication.status` and the commands of the control socket."""

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from uuid import UUID

import trio

from fusejournal.address import Address
from fusejournal.control.server import Command
from fusejournal.errors import FusejournalError, JournalFailedError
from fusejournal.journal.reader import END
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.replication.append_notifier import AppendNotifier
from fusejournal.replication.claims import PrimaryClaims
from fusejournal.replication.inbound import CopySource, Heed, Inbound, MirrorSide
from fusejournal.replication.kept_signatures import KeptSignatures
from fusejournal.replication.lag import LagMeter
from fusejournal.replication.local_node import LocalNode
from fusejournal.replication.membership import Membership
from fusejournal.replication.mending import Mending
from fusejournal.replication.mirror_applier import MirrorApplier
from fusejournal.replication.mirror_space import MirrorSpace
from fusejournal.replication.peer_commands import PeerCommands
from fusejournal.replication.peer_record import PeerRecord
from fusejournal.replication.primary_record import PrimaryRecord
from fusejournal.replication.quorum import Quorum
from fusejournal.replication.receive_session import Receiving
from fusejournal.replication.receiver import Receiver
from fusejournal.replication.shipper import Shipper
from fusejournal.replication.shipping import Shipping
from fusejournal.replication.status import PeerStatus, ReplicationStatus
from fusejournal.replication.wakeup import Wakeup
from fusejournal.types import Epoch, Reign, Seq
from fusejournal.volume.durability import Durability, FlushHooks
from fusejournal.volume.observer import ChangeObserver
from fusejournal.volume.trouble import Trouble, TroubleKind
from fusejournal.volume.volume import Volume
from fusejournal.wire.frames import Hello
from fusejournal.wire.instances import Instances
from fusejournal.wire.listener import serve
from fusejournal.wire.log_limiter import LogLimiter
from fusejournal.wire.session import MIRROR, PRIMARY, Claim, HandshakeState, RefusedError
from fusejournal.wire.session_connection import SessionConnection

log = logging.getLogger(__name__)

_SAMPLE_SECONDS = 1.0
_BOOK_SECONDS = 1.0
_BACKLOG_SECONDS = 5.0
_NOTE_SECONDS = 10.0
_PRESSING_ENTRIES = 20_000
"""A mirror that is further behind applies before it tends its segments."""


MakeTakeOver = Callable[
    ["Replication", Receiver], Callable[[SessionConnection, Hello], Awaitable[None]]
]
"""Makes what serves a primary that hands over to the mirror with that replication and receiver."""


@dataclass
class Mirroring:
    """The parts that only a mirror's node has."""

    watermarks: WatermarkPage
    kernel_cache: ChangeObserver
    is_uninitialized: bool
    redo_until_seq: Seq
    """Entries up to here may have been applied by a process that is gone."""
    join_volume: Callable[[UUID], None]
    make_take_over: MakeTakeOver


class Replication:
    """Replication of one volume.

    Args:
        local, volume: the node, and the volume, which is open.
        append_notifier: learns of each entry of the volume.
        mirroring: a mirror's; None on a primary.
        make_durability: makes ``durability``, with the hooks of replication.
        copies: serves mirrors that copy the tree."""

    def __init__(
        self,
        local: LocalNode,
        volume: Volume,
        append_notifier: AppendNotifier,
        mirroring: Mirroring | None,
        make_durability: Callable[[FlushHooks], Durability],
        copies: CopySource | None = None,
    ) -> None:
        self.local = local
        self._copies = copies
        self._volume = volume
        self._mirroring = mirroring
        self._address: Address | None = None
        self._shippers: dict[str, tuple[Shipper, trio.CancelScope]] = {}
        self._nursery: trio.Nursery | None = None
        append_notifier.entry_applied(volume.catalog.applied_seq, volume.journal.appended_bytes)
        self.quorum = Quorum(
            local.config, lambda: volume.catalog.applied_seq, append_notifier.expedite
        )
        self.membership: Membership | None = (
            Membership(local, self.quorum, lambda: volume.journal.head_seq)
            if mirroring is None
            else None
        )
        """The nodes that count, on a primary."""
        self._mirror: MirrorSide | None = None
        self.applier: MirrorApplier | None = None
        self._mending: Mending | None = None
        if mirroring is None:
            self.durability, self._heed = self._assemble_primary(make_durability)
        else:
            self.durability, self._heed = self._assemble_mirror(mirroring, make_durability)
            self._mending = Mending(volume, mirroring.kernel_cache)
        self._inbound = Inbound(
            local,
            volume,
            self.me,
            self._heed,
            self._mirror,
            self._peers_changed,
            self._turn_back,
            copies,
        )
        self._shipping = Shipping(
            volume,
            self.me,
            append_notifier,
            self.quorum,
            local.config,
            local.identity,
            local.book,
            local.insecure,
            LagMeter(),
            LogLimiter(),
            self._heed_refusal,
            self._turn_back,
            local.members,
            self.membership,
        )
        self._peer_commands = PeerCommands(
            local.book,
            local.identity,
            local.name,
            self._peers_changed,
            lambda: self._address,
            insecure=local.insecure,
        )

    def _assemble_primary(
        self, make_durability: Callable[[FlushHooks], Durability]
    ) -> tuple[Durability, Heed]:
        volume, quorum, fence = self._volume, self.quorum, self.local.fence
        if fence.refusal(volume.journal.epoch) is not None:
            quorum.fence()
        members = self.local.members.current
        # (Where it waited for mirrors before, these have to know first that it does not.)
        waited = members is not None and any(rule.waits for rule in members.rules)
        durability = make_durability(
            FlushHooks(
                quorum if self.local.config.mirrors or waited else None,
                self._keep_uncompressed_from,
            )
        )
        return durability, PrimaryClaims(fence, volume, quorum, durability, self._break_off).heed

    def _assemble_mirror(
        self, mirroring: Mirroring, make_durability: Callable[[FlushHooks], Durability]
    ) -> tuple[Durability, Heed]:
        volume, watermarks = self._volume, mirroring.watermarks
        signatures = KeptSignatures(self.local.state_dir / "signatures")
        try:
            signatures.forget_after(volume.journal.head_seq)
        except OSError as error:  # as a full disk is: they vouch for nothing
            log.warning("signatures of what is not here stay: %s", error.strerror)
        record, wakeup = PrimaryRecord(volume), Wakeup()
        durability = make_durability(
            FlushHooks(
                None,
                self._keep_uncompressed_from,
                lambda: record.lag_entries > _PRESSING_ENTRIES,
                signatures.sync,
            )
        )
        applier = self.applier = MirrorApplier(
            volume, watermarks, durability, mirroring.kernel_cache, mirroring.redo_until_seq, wakeup
        )
        receiving = Receiving(
            volume,
            watermarks,
            self.local.fence,
            durability,
            applier,
            signatures,
            MirrorSpace(volume.journal, wakeup),
            record,
            Instances(watermarks.following, trio.current_time()),
            wakeup,
            self.local.members,
        )
        receiver = Receiver(receiving, self.me, self._join_volume)
        take_over = mirroring.make_take_over(self, receiver)
        self._mirror = MirrorSide(receiver, signatures, lambda: watermarks.committed_seq, take_over)
        return durability, receiver.heed

    @property
    def receiver(self) -> Receiver | None:
        """A mirror's receiver."""
        return self._mirror.receiver if self._mirror is not None else None

    def _keep_uncompressed_from(self) -> Seq:
        """Returns where begins what connected peers are sent next: it is not compressed just
        before."""
        records = [one for one in self.records() if one.is_connected and not one.is_witness]
        return min((record.next_seq for record in records), default=END)

    def _join_volume(self, uuid: UUID) -> None:
        assert self._mirroring is not None
        self._mirroring.join_volume(uuid)
        self._mirroring.is_uninitialized = False

    def me(self) -> HandshakeState:
        """Returns this node as it greets."""
        volume, mirroring, fence = self._volume, self._mirroring, self.local.fence
        journal = volume.journal
        uuid = None if mirroring is not None and mirroring.is_uninitialized else journal.uuid
        # A primary goes by its own reign, whatever it has seen; a mirror by the highest.
        reign = fence.own(journal.epoch) if mirroring is None else fence.seen
        if journal.epoch > reign.epoch:
            reign = Reign(journal.epoch, 0)
        me = self.local.greeting(uuid, journal, reign, volume.catalog.applied_seq)
        return me._replace(
            limits=volume.tree.limits.to_wire(),
            listen_port=self._address.port if self._address is not None else 0,
            role=PRIMARY if mirroring is None else MIRROR,
        )

    async def _heed_refusal(self, claim: Claim, peer: str) -> None:
        """Judge *claim*, with which *peer* refuses what this node ships."""
        try:
            await self._heed(claim, peer)
        except (RefusedError, JournalFailedError, OSError) as error:
            log.warning("reign %s, which peer %s has seen: %s", claim.reign, peer, error)

    def _break_off(self) -> None:
        for shipper, _ in self._shippers.values():
            shipper.break_off()

    # -- running -----------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; *task_status* hears when the listener listens. Raises
        FusejournalError when it cannot."""
        if self._mirroring is None and not self.quorum.is_fenced:
            await self._write_down_reign()
            assert self.membership is not None
            await self.membership.begin(self.me().reign)
        try:
            async with trio.open_nursery() as self._nursery:
                if self.local.listen is not None:
                    self._address = await self._nursery.start(self._serve, self.local.listen)
                if self._mirror is not None and self.applier is not None:
                    self._nursery.start_soon(self._mirror.receiver.run)
                    self._nursery.start_soon(self.applier.run)
                    self.applier.wake()
                if self.membership is not None:
                    self._nursery.start_soon(self.membership.run)
                self._nursery.start_soon(self._shipping.log_limiter.run)
                self._nursery.start_soon(self._sample)
                self._nursery.start_soon(self._keep_book)
                self._nursery.start_soon(self._check_backlogs)
                self._peers_changed()
                task_status.started()
        finally:
            self._nursery = None
            self._save()

    async def _write_down_reign(self) -> None:
        fence = self.local.fence
        try:
            fence.reigns(self._volume.journal.epoch)
        except OSError as error:  # as a full disk is, where a page has another place each time
            log.warning("that this node reigns is not written down: %s", error.strerror)
        with suppress(JournalFailedError):  # (The volume is read-only then, and says why.)
            await fence.make_durable(self.durability.flush_watermarks)

    def _save(self) -> None:
        if self._mirror is not None:
            try:
                self._mirror.signatures.sync()  # the journal is about to be
            except OSError as error:
                log.warning("signatures are not on the disk: %s", error.strerror)
            self._mirror.signatures.close()
        try:
            if self.local.members.is_unsaved:
                self.local.members.write(self.local.members.current)
            self.local.book.save()
        except FusejournalError as error:  # as a full disk is: it knows less the next time
            log.warning("%s", error)

    async def _serve(
        self, address: Address, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await serve(
            address,
            self.local.identity,
            self.local.book.certificates,
            insecure=self.local.insecure,
            on_connection=self._inbound.reception.serve,
            on_pairing=self._peer_commands.on_pairing,
            is_pairing_open=self._peer_commands.is_open,
            task_status=task_status,
        )

    async def _sample(self) -> None:
        while True:
            self._shipping.lag_meter.note(self._volume.catalog.applied_seq)
            for shipper, _ in self._shippers.values():
                shipper.record.sample()
            if self.receiver is not None:
                self.receiver.sample()
            await trio.sleep(_SAMPLE_SECONDS)

    async def _keep_book(self) -> None:
        """Save what is noted as peers come and go."""
        has_failed = False
        noted_at = trio.current_time()
        while True:
            await trio.sleep(_BOOK_SECONDS)
            if trio.current_time() - noted_at > _NOTE_SECONDS:
                noted_at = trio.current_time()
                for shipper, _ in self._shippers.values():
                    shipper.record.save()
                self._note_primary()
                with suppress(FusejournalError):  # a full disk: its change was told already
                    await self.local.members.save()
            if not self.local.book.is_unsaved:
                continue
            try:
                await trio.to_thread.run_sync(self.local.book.save)
                has_failed = False
            except FusejournalError as error:  # as a full disk is
                if not has_failed:
                    log.warning("%s", error)
                has_failed = True

    def _note_primary(self) -> None:
        receiver = self.receiver
        if receiver is not None and receiver.session_peer is not None:
            self.local.book.note_heard(receiver.session_peer, receiver.told_seq, time.time())

    async def _check_backlogs(self) -> None:
        while True:
            await trio.sleep(_BACKLOG_SECONDS)
            for shipper, _ in list(self._shippers.values()):
                await shipper.check_backlog()

    # -- peers -------------------------------------------------------------------------------------

    def _peers_changed(self) -> None:
        """Start shippers of new peers, end those of removed ones, have the others look again."""
        if self._nursery is None:
            return
        self._inbound.reception.keep_only(self.local.book.certificates())
        if self.membership is not None:
            self.membership.look_again()
        peers = {peer.name: peer for peer in self.local.book.list() if peer.address is not None}
        for name in list(self._shippers):
            shipper, scope = self._shippers[name]
            if name not in peers:
                del self._shippers[name]
                self.quorum.forget(name)
                scope.cancel()
            else:
                shipper.look_again(peers[name])
        for name in peers:
            if name not in self._shippers:
                shipper, scope = Shipper(name, self._shipping), trio.CancelScope()
                self._shippers[name] = shipper, scope
                self._nursery.start_soon(self._run_shipper, shipper, scope)

    async def _turn_back(self, peer: str) -> None:
        """Ship nothing more to *peer*, as long as this node is no primary. Cancelled, the book may
        say so or not. Raises FusejournalError where it cannot be saved."""
        self.local.book.turn_back(peer)
        await trio.to_thread.run_sync(self.local.book.save)
        self._peers_changed()

    async def _run_shipper(self, shipper: Shipper, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await shipper.run()
            except Exception:
                # One peer is no reason to stop the others, or the volume.
                log.exception("shipping to %s failed on a bug", shipper.name)
                shipper.stopped("a bug stopped it: see the log; a new mount starts it again")

    def commands(self) -> dict[str, Command]:
        """Returns the commands that the control socket answers."""
        mending = {} if self._mending is None else {"mend": self._mending.mend}
        return {**self._peer_commands.commands(), **mending}

    # -- status ------------------------------------------------------------------------------------

    def records(self) -> list[PeerRecord]:
        """Returns what is known of each peer that is shipped to."""
        return [shipper.record for shipper, _ in self._shippers.values()]

    def ship_at_once(self) -> None:
        """Have what is there sent to all peers, without waiting for more."""
        self._shipping.append_notifier.expedite()

    @property
    def left_to_apply(self) -> int:
        """Entries that a mirror has received and not applied, of those that may be."""
        assert self._mirroring is not None
        return max(0, self._mirroring.watermarks.committed_seq - self._volume.catalog.applied_seq)

    @property
    def epoch(self) -> Epoch:
        """The epoch of the reign that this node goes by. (On a mirror, its journal's follows
        applying.)"""
        return self.me().reign.epoch

    def status(self) -> ReplicationStatus:
        """Returns this node's place among others."""
        return ReplicationStatus(
            node=self.local.name,
            reign=str(self.me().reign),
            instance=f"{self.local.fence.instance:016x}",
            listen=str(self._address) if self._address is not None else None,
            insecure=self.local.insecure,
            fingerprint=self.local.identity.fingerprint,
            mirrors=self.local.config.mirrors,
            mirrors_seq=self.quorum.present_seq if self.local.config.mirrors else None,
            mirrors_waiting=self.quorum.waiting,
            peers=tuple(self._status_of(shipper) for shipper, _ in self._shippers.values()),
            mirror=self.receiver.status() if self.receiver is not None else None,
        )

    def _status_of(self, shipper: Shipper) -> PeerStatus:
        status = shipper.record.status()
        words = self._copies.describe(shipper.name) if self._copies is not None else None
        return status if words is None else replace(status, notes=(*status.notes, words))

    def degraded(self) -> list[Trouble]:
        """Returns what is wrong."""
        members = self.membership.trouble() if self.membership is not None else None
        peers = (record.trouble() for record in self.records())
        found = [one for one in (self.quorum.trouble(), members, *peers) if one is not None]
        if self.receiver is not None:
            found += self.receiver.degraded()
        mirrors = self.local.config.mirrors
        count = sum(not record.is_witness for record in self.records())
        if count < mirrors and self._mirroring is None:
            words = f"waits for {mirrors} mirrors, and has {count} peers"
            found.append(Trouble(TroubleKind.MIRRORS, words))
        return found
