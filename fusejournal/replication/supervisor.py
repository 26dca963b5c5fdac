"""Replication of one running volume: listener, shippers, and on a mirror receiver and updater,
wired together.

Owns which of them run: a shipper for each peer that has an address, the listener where one is
configured, receiver and updater on a mirror. A mirror with peers ships on what it has applied.
Everything here is told to the rest of the node by :meth:`Replication.status` and the commands of
the control socket."""

import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID

import trio

from fusejournal.address import Address, default_node_name, parse_address, parse_remote
from fusejournal.config import ReplicationConfig
from fusejournal.control.server import Command
from fusejournal.election.static import PersonsWord
from fusejournal.errors import (
    FusejournalError,
    JournalFailedError,
    PeerLostError,
    PeerRefusedError,
    UsageError,
)
from fusejournal.journal.journal import Journal
from fusejournal.journal.reader import END
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.replication.append_notifier import AppendNotifier
from fusejournal.replication.claims import PrimaryClaims, is_binding
from fusejournal.replication.common_ancestor import first_error
from fusejournal.replication.fence import Fence, node_id_of
from fusejournal.replication.fetch_lost import LostEntryFetcher, TakenBack, serve_fetch
from fusejournal.replication.kept_signatures import KeptSignatures
from fusejournal.replication.lag import LagMeter
from fusejournal.replication.mirror_applier import MirrorApplier
from fusejournal.replication.mirror_space import MirrorSpace
from fusejournal.replication.peer_commands import PeerCommands
from fusejournal.replication.peers import PeerBook
from fusejournal.replication.primary_record import PrimaryRecord
from fusejournal.replication.quorum import Quorum
from fusejournal.replication.receive_session import Receiving
from fusejournal.replication.receiver import Receiver
from fusejournal.replication.shipper import Shipper
from fusejournal.replication.shipping import Shipping
from fusejournal.replication.status import ReplicationStatus
from fusejournal.replication.wakeup import Wakeup
from fusejournal.types import Epoch, Reign, Seq
from fusejournal.volume.durability import Durability, FlushHooks
from fusejournal.volume.observer import ChangeObserver
from fusejournal.volume.volume import Volume
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import Hello
from fusejournal.wire.identity import Identity, load_or_make
from fusejournal.wire.instances import Instances
from fusejournal.wire.listener import serve
from fusejournal.wire.log_limiter import LogLimiter
from fusejournal.wire.session import (
    FENCED,
    FETCH,
    Claim,
    HandshakeState,
    RefusedError,
    claim_of,
    expect,
    speaks_of_same,
)

log = logging.getLogger(__name__)

_GREETING_SECONDS = 30.0
_FAREWELL_SECONDS = 1.0
_SAMPLE_SECONDS = 1.0
_BOOK_SECONDS = 1.0
_BACKLOG_SECONDS = 5.0
_NOTE_SECONDS = 10.0
_PRESSING_ENTRIES = 20_000
"""A mirror that is further behind applies before it tends its segments."""


_LOST_PAGE = (
    "the page of watermarks is missing, which would tell whether another node reigns, and these "
    "peers did not answer: {}; mount again when they do, or remove ('fusejournal peer remove') "
    "those that are no more"
)


def node_name(volume_name: str) -> str:
    """How this node calls itself to others: the machine and the volume."""
    machine = socket.gethostname().partition(".")[0]
    return default_node_name(f"{machine}-{volume_name}")


@dataclass
class Mirroring:
    """What only a mirror has."""

    marks: WatermarkPage
    kernel_cache: ChangeObserver
    is_uninitialized: bool
    redo_until_seq: Seq
    """Entries up to here may have been applied by who is gone."""
    join_volume: Callable[[UUID], None]


class Replication:
    """See the module. *listen* and *insecure*: where others connect to, and whether they may
    without TLS. *page*: the node's watermarks."""

    def __init__(
        self,
        state_dir: Path,
        name: str,
        config: ReplicationConfig,
        listen: str | None,
        insecure: bool,
        is_mirror: bool,
        page: WatermarkPage,
    ) -> None:
        if is_mirror and listen is None:
            raise UsageError(
                "a mirror is called by its primary, and must listen: --listen ADDR:PORT (or mount "
                "it with -o ro, only to read it)"
            )
        self._state_dir = state_dir
        self._config = config
        self._listen = parse_address(listen) if listen is not None else None
        self._insecure = insecure
        self._node = node_name(name)
        self.identity: Identity = load_or_make(state_dir / "identity", self._node)
        self._node_id = node_id_of(self.identity.fingerprint)
        self._page = page
        self.fence = Fence(
            page,
            self._node_id,
            PersonsWord(config.overrule),
        )
        self.book = PeerBook.load(state_dir)
        if self.book.merge({name: parse_remote(text) for name, text in config.peers.items()}):
            self.book.save()
        self.append_notifier = AppendNotifier()
        """Learns of each entry of the volume."""
        self._address: Address | None = None
        self._volume: Volume
        self._mirroring: Mirroring | None = None
        self._shipping: Shipping
        self._shippers: dict[str, tuple[Shipper, trio.CancelScope]] = {}
        self._desk: PeerCommands
        self._inbound: dict[trio.CancelScope, str | None] = {}
        """Connections of others to here, with the name of the peer."""
        self._claims: PrimaryClaims
        self._durability: Durability
        self._nursery: trio.Nursery | None = None
        self._signatures: KeptSignatures | None = None
        self.receiver: Receiver | None = None
        self.applier: MirrorApplier | None = None
        self.quorum: Quorum

    def attach(
        self,
        volume: Volume,
        mirroring: Mirroring | None,
        make_durability: Callable[[FlushHooks], Durability],
    ) -> Durability:
        """Give it the volume, once that is open; *mirroring* is a mirror's. Returns what
        *make_durability* has made with the hooks of replication."""
        self._volume = volume
        self._mirroring = mirroring
        append_notifier = self.append_notifier
        append_notifier.entry_applied(volume.catalog.applied_seq, volume.journal.appended_bytes)
        self.quorum = Quorum(
            self._config, lambda: volume.catalog.applied_seq, append_notifier.expedite
        )
        self._shipping = Shipping(
            volume,
            self._me,
            append_notifier,
            self.quorum,
            self._config,
            self.identity,
            self.book,
            self._insecure,
            LagMeter(),
            LogLimiter(),
            self._heed_refusal,
        )
        self._desk = PeerCommands(
            self.book,
            self.identity,
            self._node,
            self._peers_changed,
            lambda: self._address,
            insecure=self._insecure,
        )
        if mirroring is not None:
            self._durability = self._attach_mirror(volume, mirroring, make_durability)
            return self._durability
        if self.fence.words(volume.journal.epoch) is not None:
            self.quorum.fence()
        self._durability = make_durability(
            FlushHooks(self.quorum if self._config.mirrors else None, self._keep_uncompressed_from)
        )
        self._claims = PrimaryClaims(
            self.fence, volume, self.quorum, self._durability, self._break_off
        )
        return self._durability

    def _attach_mirror(
        self,
        volume: Volume,
        mirroring: Mirroring,
        make_durability: Callable[[FlushHooks], Durability],
    ) -> Durability:
        signatures = self._signatures = KeptSignatures(self._state_dir / "signatures")
        record, news = PrimaryRecord(volume), Wakeup()
        durability = make_durability(
            FlushHooks(
                None,
                self._keep_uncompressed_from,
                lambda: record.lag_entries > _PRESSING_ENTRIES,
                signatures.sync,
            )
        )
        applier = self.applier = MirrorApplier(
            volume,
            mirroring.marks,
            durability,
            mirroring.kernel_cache,
            mirroring.redo_until_seq,
            news,
        )
        receiving = Receiving(
            volume,
            mirroring.marks,
            self.fence,
            durability,
            applier,
            signatures,
            MirrorSpace(volume.journal, news),
            record,
            Instances(mirroring.marks.following, trio.current_time()),
            news,
        )
        self.receiver = Receiver(receiving, self._me, self._join_volume)
        return durability

    def _keep_uncompressed_from(self) -> Seq:
        """What connected peers are about to be sent is not compressed just before."""
        return min(
            (
                shipper.record.next_seq
                for shipper, _ in self._shippers.values()
                if shipper.record.is_connected
            ),
            default=END,
        )

    def _join_volume(self, uuid: UUID) -> None:
        assert self._mirroring is not None
        self._mirroring.join_volume(uuid)
        self._mirroring.is_uninitialized = False

    def _me(self) -> HandshakeState:
        volume, journal, mirroring = self._volume, self._volume.journal, self._mirroring
        uuid = None if mirroring is not None and mirroring.is_uninitialized else journal.uuid
        # A primary goes by its own reign, whatever it has seen; a mirror by the highest.
        reign = self.fence.own(journal.epoch) if mirroring is None else self.fence.seen
        if journal.epoch > reign.epoch:
            reign = Reign(journal.epoch, 0)
        me = self._greeting(uuid, journal, reign, volume.catalog.applied_seq)
        return me._replace(limits=volume.tree.limits.to_wire())

    def _greeting(
        self, uuid: UUID | None, journal: Journal, reign: Reign, applied: Seq
    ) -> HandshakeState:
        fence = self.fence
        return HandshakeState(
            self._node,
            uuid,
            journal.head,
            reign.epoch,
            applied,
            reign.node_id,
            self._node_id,
            fence.instance,
            fence.before,
        )

    # -- asking peers ------------------------------------------------------------------------------

    async def take_back(
        self,
        volume: Volume,
        told: Callable[[str], None],
        *,
        lost_machine: bool = True,
        lost_page: bool = False,
    ) -> TakenBack:
        """Before a primary's volume is recovered, or takes changes: ask its peers, and, after its
        machine was lost, fetch what only they have. With a *lost_page* no change may be taken
        before all have answered, because nothing else tells whether another reigns. Raises
        RefusedError when it reigns no more, and FusejournalError."""
        journal = volume.journal
        words = self.fence.words(journal.epoch)
        if words is not None:
            raise RefusedError(FENCED, words)
        reason = self.fence.new_epoch_reason(journal.epoch)

        def me() -> HandshakeState:
            reign = self.fence.own(journal.epoch)
            if self.fence.highest_epoch >= reign.epoch and reason is not None:
                # Of what was overruled, nobody need say it.
                reign = Reign(self.fence.highest_epoch, 0)
            return self._greeting(journal.uuid, journal, reign, journal.head_seq)

        async def bind(claim: Claim, peer: str) -> str | None:
            fence = self.fence
            if not await is_binding(claim, peer, fence, journal):
                return None
            if claim.reign.epoch > fence.seen.epoch:
                fence.note(claim.reign)
            await fence.make_durable(partial(trio.to_thread.run_sync, self._page.sync))
            return fence.words(journal.epoch)

        work = LostEntryFetcher(
            journal, me, self._config, self.identity, self.book, self._insecure, told, bind
        )
        if lost_machine:
            taken = await work.run()
        else:
            taken = await work.look_round(self._config.take_back_seconds if lost_page else None)
        if lost_page and work.unheard:
            taken = taken._replace(fenced=_LOST_PAGE.format(", ".join(work.unheard)))
        return taken._replace(new_epoch=reason or taken.new_epoch)

    async def _heed(self, connection: Connection, greeting: Hello) -> None:
        """Have what *greeting* proves of a higher reign on this node's disk before anything is
        answered, whatever the greeting asks for. Raises FusejournalError where that cannot be."""
        if not speaks_of_same(self._me(), greeting):
            return
        try:
            await self._judge(claim_of(greeting), connection.peer or greeting.node)
        except JournalFailedError as error:
            raise RefusedError("failed", f"{self._node}: {error}") from None
        except OSError as error:
            raise FusejournalError(f"{connection.where}: {error}") from None

    async def _heed_refusal(self, claim: Claim, peer: str) -> None:
        """The same for *claim*, with which *peer* refuses what this node ships."""
        try:
            await self._judge(claim, peer)
        except (RefusedError, JournalFailedError, OSError) as error:
            log.warning("reign %s, which peer %s has seen: %s", claim.reign, peer, error)

    async def _judge(self, claim: Claim, peer: str) -> None:
        """While it runs: take nothing any more, of callers or of a primary, where *claim*, of
        *peer*, ends the reign that this node goes by. What it has seen is on the disk when this
        returns. Raises RefusedError, OSError, JournalFailedError."""
        if self.receiver is not None:
            await self.receiver.heed(claim, peer)
        else:
            await self._claims.heed(claim, peer)

    def _break_off(self) -> None:
        for shipper, _ in self._shippers.values():
            shipper.break_off()

    # -- running -----------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; *task_status* is told when the listener listens. Raises
        FusejournalError when it cannot."""
        if self._mirroring is None and not self.quorum.is_fenced:
            try:
                self.fence.reigns(self._volume.journal.epoch)
            except OSError as error:  # as a full disk is, where a page has another place each time
                log.warning("that this node reigns is not written down: %s", error.strerror)
            with suppress(JournalFailedError):  # (The volume is read-only then, and says why.)
                await self.fence.make_durable(self._durability.flush_watermarks)
        try:
            async with trio.open_nursery() as self._nursery:
                if self._listen is not None:
                    self._address = await self._nursery.start(self._serve, self._listen)
                if self.applier is not None and self.receiver is not None:
                    self._nursery.start_soon(self.receiver.run)
                    self._nursery.start_soon(self.applier.run)
                    self.applier.wake()
                self._nursery.start_soon(self._shipping.log_limiter.run)
                self._nursery.start_soon(self._sample)
                self._nursery.start_soon(self._keep_book)
                self._nursery.start_soon(self._check_backlogs)
                self._peers_changed()
                task_status.started()
        finally:
            self._nursery = None
            if self._signatures is not None:
                try:
                    self._signatures.sync()  # the journal is about to be
                except OSError as error:
                    log.warning("signatures are not on the disk: %s", error.strerror)
                self._signatures.close()
            try:
                self.book.save()
            except FusejournalError as error:  # as a full disk is: it knows less the next time
                log.warning("%s", error)

    async def _serve(
        self, address: Address, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await serve(
            address,
            self.identity,
            self.book.certificates,
            insecure=self._insecure,
            on_connection=self._greeted,
            on_pairing=self._desk.on_pairing,
            is_pairing_open=self._desk.is_open,
            task_status=task_status,
        )

    async def _greeted(self, connection: Connection) -> None:
        """Whoever connected says what it wants, and gets it. Raises FusejournalError for what the
        listener is to complain of."""
        with trio.CancelScope() as scope:
            # Before anything is awaited: a peer that is removed is cut off, greeted or not.
            self._inbound[scope] = connection.peer
            try:
                await self._greet(connection)
            finally:
                del self._inbound[scope]

    async def _greet(self, connection: Connection) -> None:
        try:
            with trio.fail_after(_GREETING_SECONDS):
                greeting = expect(await connection.receive(), Hello)
        except trio.TooSlowError:
            where, seconds = connection.where, _GREETING_SECONDS
            raise PeerLostError(where, f"no greeting within {seconds:g} s") from None
        try:
            await self._serve_greeted(connection, greeting)
        except* RefusedError as group:
            error = first_error(group)
            assert isinstance(error, RefusedError)
            with trio.move_on_after(_FAREWELL_SECONDS), suppress(FusejournalError):
                await connection.send(error.message())
            raise PeerRefusedError(connection.where, f"refused: {error}") from None

    async def _serve_greeted(self, connection: Connection, greeting: Hello) -> None:
        await self._heed(connection, greeting)
        if greeting.purpose == FETCH:
            await self._serve_source(connection, greeting)
        elif self.receiver is None:
            reason = f"{self._node} is a primary and takes no entries: mount it with --role mirror"
            raise RefusedError("role", reason)
        elif self._is_downstream(connection.peer):
            reason = f"{connection.peer} is shipped to from here, and so cannot ship to here"
            raise RefusedError("direction", reason)
        else:
            await self.receiver.serve(connection, greeting)

    def _is_downstream(self, name: str | None) -> bool:
        peer = self.book.find(name) if name is not None else None
        return peer is not None and peer.address is not None

    async def _serve_source(self, connection: Connection, greeting: Hello) -> None:
        me = self._me()
        upto_seq = held_seq = self._volume.catalog.applied_seq
        if self._mirroring is not None:
            upto_seq = self._volume.journal.head_seq
            held_seq = self._mirroring.marks.committed_seq
        try:
            await serve_fetch(
                connection,
                greeting,
                me,
                self._volume,
                upto_seq,
                held_seq,
                self._config.batch_bytes,
                self._signatures.after(greeting.seq) if self._signatures is not None else [],
                self.receiver.twice(greeting, connection.where) if self.receiver else "",
            )
        except* OSError as group:
            raise FusejournalError(f"{connection.where}: {first_error(group)}") from None
        except* trio.TooSlowError:
            raise PeerLostError(connection.where, "said nothing for too long") from None

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
            if not self.book.is_unsaved:
                continue
            try:
                await trio.to_thread.run_sync(self.book.save)
                has_failed = False
            except FusejournalError as error:  # as a full disk is
                if not has_failed:
                    log.warning("%s", error)
                has_failed = True

    async def _check_backlogs(self) -> None:
        while True:
            await trio.sleep(_BACKLOG_SECONDS)
            for shipper, _ in list(self._shippers.values()):
                await shipper.check_backlog()

    # -- peers -------------------------------------------------------------------------------------

    def _peers_changed(self) -> None:
        """Start shippers of new peers, end those of removed ones, tell the others to look again."""
        if self._nursery is None:
            return
        certificates = self.book.certificates()
        for scope, name in self._inbound.items():
            if name is not None and name not in certificates:
                scope.cancel()
        peers = {peer.name: peer for peer in self.book.list() if peer.address is not None}
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

    async def _run_shipper(self, shipper: Shipper, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await shipper.run()
            except Exception:
                # One peer is no reason to stop the others, or the volume.
                log.exception("shipping to %s failed on a bug", shipper.name)
                shipper.stopped("a bug stopped it: see the log; a new mount starts it again")

    def commands(self) -> dict[str, Command]:
        """What the control socket answers."""
        return self._desk.commands()

    # -- status ------------------------------------------------------------------------------------

    @property
    def epoch(self) -> Epoch:
        """Of the reign that this node goes by. (On a mirror, its journal's follows applying.)"""
        return self._me().reign.epoch

    def status(self) -> ReplicationStatus:
        """Returns this node's place among others."""
        return ReplicationStatus(
            node=self._node,
            reign=str(self._me().reign),
            instance=f"{self.fence.instance:016x}",
            listen=str(self._address) if self._address is not None else None,
            insecure=self._insecure,
            fingerprint=self.identity.fingerprint,
            mirrors=self._config.mirrors,
            mirrors_seq=self.quorum.present_seq if self._config.mirrors else None,
            mirrors_waiting=self.quorum.waiting,
            peers=tuple(shipper.record.status() for shipper, _ in self._shippers.values()),
            mirror=self.receiver.status() if self.receiver is not None else None,
        )

    def degraded(self) -> list[str]:
        """What is wrong, a line each."""
        lines = []
        if (trouble := self.quorum.describe()) is not None:
            lines.append(trouble)
        lines += [
            f"peer {shipper.name}: {trouble}"
            for shipper, _ in self._shippers.values()
            if (trouble := shipper.record.trouble()) is not None
        ]
        if self.receiver is not None:
            lines += self.receiver.degraded()
        mirrors = self._config.mirrors
        if len(self._shippers) < mirrors and self._mirroring is None:
            lines.append(f"waits for {mirrors} mirrors, and has {len(self._shippers)} peers")
        return lines
