"""Taking entries back: a primary whose machine was lost may have lost entries that were
acknowledged and not yet on its disk, while a mirror has them. Before it takes changes it asks its
peers, and takes what comes after its own end from the one that has most.

The fetching side is a sink as a mirror is (wire/session.py); the other, :func:`serve_fetch`, is the
source and ships what it has on its disk. The entries are appended byte for byte, so that journal
and mirror are the same again, and then applied, by looking first what of them the backing has
already: its pages reached the disk in any order.

A process that dies at it leaves a mark of how far it had applied (STATE/taking-back, as a mirror
has one), and the next start goes on from there: what is in the journal and not yet in the backing
is never taken for applied.

With no peer in reach it is as configured: go on without, as a new epoch, or wait."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from fusejournal import storage
from fusejournal.config import ReplicationConfig
from fusejournal.errors import FusejournalError, JournalError, RecoveryError
from fusejournal.journal.copymarks import CopyMarks
from fusejournal.journal.settled import settled
from fusejournal.journal.stretches import StretchReader
from fusejournal.opening import TAKING_BACK
from fusejournal.replication.comparing import ChainFinder, find_common, first_error
from fusejournal.replication.peers import Peer, PeerBook
from fusejournal.types import Position, Seq
from fusejournal.volume import Volume
from fusejournal.wire.batches import RAW, batch_of, stretch_of
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import AskChains, Batch, Begin, Chains, Diverged, End, Hello
from fusejournal.wire.identity import Identity
from fusejournal.wire.session import (
    FETCH,
    Me,
    Sink,
    check_welcome,
    expect,
    hello,
    position_of,
    welcome,
)
from fusejournal.wire.transport import connect

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 60.0
_PAUSE_SECONDS = 1.0
_NOBODY = (
    "the machine was lost, and no peer answered: entries that only they have are not here, and "
    "part their journals from this one"
)


@dataclass
class TakeBack:
    """One attempt; see the module. *told* is called with a line that says what happens."""

    volume: Volume
    state_dir: Path
    me: Callable[[], Me]
    config: ReplicationConfig
    identity: Identity
    book: PeerBook
    insecure: bool
    told: Callable[[str], None]

    async def run(self) -> list[str]:
        """Take back what the peers have. Returns what could not be done, a line each. Raises
        FusejournalError when journal or backing cannot take it: the next start goes on."""
        told = await self._fetch_all()
        if (self.state_dir / TAKING_BACK).exists():
            self._apply()
            await self._finish()
        return told

    async def _fetch_all(self) -> list[str]:
        """Bring into the journal what the peers have more. Returns what could not be done."""
        peers = [peer for peer in self.book.list() if peer.address is not None]
        if not peers:
            return []
        ends = trio.current_time() + self.config.take_back_seconds
        while True:
            positions = await self._ask_all(peers)
            if not positions:
                return [_NOBODY]
            head_seq = self.volume.journal.head_seq
            best = max(positions, key=lambda name: positions[name].seq)
            if positions[best].seq <= head_seq:
                return []
            self.told(f"taking entries {head_seq + 1} to {positions[best].seq} back from {best}")
            try:
                await self._fetch(self.book.get(best))
                return []
            except* JournalError:
                raise
            except* (FusejournalError, OSError, trio.TooSlowError) as group:
                self.told(f"peer {best}: {first_error(group)}")
            if trio.current_time() > ends and self.config.without_peers != "wait":
                return [_NOBODY]
            await trio.sleep(_PAUSE_SECONDS)

    async def _ask_all(self, peers: list[Peer]) -> dict[str, Position]:
        """Where the journals of those who answer end; of all, or of those who do in time."""
        positions: dict[str, Position] = {}
        waits = self.config.without_peers == "wait"
        seconds = self.config.take_back_seconds
        self.told(f"the machine was lost: asking {', '.join(peer.name for peer in peers)}")
        while True:
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as nursery:
                    for peer in peers:
                        nursery.start_soon(self._ask, peer, positions)
            if positions or not waits:
                return positions
            self.told("no peer has answered yet: waiting for one, as 'without_peers' says")

    async def _ask(self, peer: Peer, positions: dict[str, Position]) -> None:
        while True:
            try:
                async with await self._connect(peer) as connection:
                    positions[peer.name] = await self._greet(connection)
                    return
            except* (FusejournalError, OSError, trio.TooSlowError) as group:
                log.info("peer %s: %s", peer.name, first_error(group))
            await trio.sleep(_PAUSE_SECONDS)

    async def _connect(self, peer: Peer) -> Connection:
        assert peer.address is not None
        return await connect(
            peer.address,
            self.identity,
            peer.certificate,
            insecure=self.insecure,
            timeout_seconds=_CONNECT_SECONDS,
        )

    async def _greet(self, connection: Connection) -> Position:
        me = self.me()
        with trio.fail_after(_SILENCE_SECONDS):
            await connection.send(hello(me, FETCH))
            return position_of(check_welcome(me, await connection.receive(), FETCH))

    async def _fetch(self, peer: Peer) -> None:
        journal = self.volume.journal
        chains = ChainFinder(journal.directory, journal.uuid)
        async with await self._connect(peer) as connection:
            await self._greet(connection)
            sink = Sink(journal.head, journal.epoch)
            while True:
                with trio.fail_after(_SILENCE_SECONDS):
                    message: AskChains | Begin | Batch | Diverged | End = expect(
                        await connection.receive(), AskChains, Begin, Batch, Diverged, End
                    )
                if isinstance(message, AskChains):
                    await connection.send(Chains(await chains.at(message.seqs)))
                elif isinstance(message, Begin):
                    sink.begin(message)
                    connection.expect_batches()
                elif isinstance(message, Batch):
                    if sink.take(message):
                        stretch = await trio.to_thread.run_sync(stretch_of, message)
                        self._begin()
                        journal.receive(stretch)
                        sink.appended(message)
                else:
                    if isinstance(message, Diverged):
                        log.error(
                            "peer %s: its journal and this one part after entry %d",
                            peer.name,
                            message.seq,
                        )
                    break
        await trio.to_thread.run_sync(journal.sync)

    def _begin(self) -> None:
        """Leave the mark, before the first entry comes into the journal."""
        path = self.state_dir / TAKING_BACK
        if not path.exists():
            marks = CopyMarks(path)
            marks.applying_seq = Seq(self.volume.catalog.applied_seq + 1)
            marks.sync()
            marks.close()
            storage.fsync_directory("take-back.directory", self.state_dir)

    def _apply(self) -> None:
        """Apply what was taken back, and the last entry that was here before, which it may settle.
        Raises RecoveryError when the backing refuses one."""
        volume = self.volume
        marks = CopyMarks(self.state_dir / TAKING_BACK)
        first_seq = Seq(volume.catalog.applied_seq + 1)
        end = Seq(volume.journal.head_seq + 1)
        try:
            for entry, void in settled(volume.journal.reader.read(first_seq, end)):
                try:
                    marks.applying_seq = entry.seq
                    volume.apply_received(entry, void, settle=True)
                except OSError as error:
                    raise RecoveryError(
                        f"entry {entry.seq}, taken back from a peer, cannot be applied: "
                        f"{error.strerror}; mend that and mount again, or restore the volume: the "
                        "journal has everything"
                    ) from error
        finally:
            marks.close()
        for last in volume.journal.reader.read(Seq(end - 1), end):
            volume.journal.last_time_ns = last.time_ns  # a VOID's is its own
        self.told(f"took entries back: the journal ends with {end - 1}")

    async def _finish(self) -> None:
        """All is applied: make it durable, then take the mark away. Raises OSError."""
        catalog, root_fd = self.volume.catalog, self.volume.tree.root_fd
        await trio.to_thread.run_sync(storage.syncfs, "take-back.syncfs", root_fd)
        catalog.commit()
        await trio.to_thread.run_sync(catalog.sync)
        storage.unlink("take-back.unlink", self.state_dir / TAKING_BACK)
        storage.fsync_directory("take-back.directory", self.state_dir)


async def serve_fetch(
    connection: Connection, greeting: Hello, me: Me, volume: Volume, upto_seq: Seq, bytes_max: int
) -> None:
    """The other side: ship what comes after the greeter's end, up to *upto_seq*. Raises WireError,
    JournalError."""
    await connection.send(welcome(me, greeting, is_mirror=True))
    journal = volume.journal
    theirs = position_of(greeting)
    if upto_seq <= theirs.seq:
        await connection.send(End(upto_seq))
        return
    chains = ChainFinder(journal.directory, journal.uuid)
    agreed_seq = await find_common(connection, chains, upto_seq, theirs)
    if agreed_seq != theirs.seq:
        await connection.send(Diverged(agreed_seq, upto_seq))
        return
    reader = StretchReader(journal.directory, journal.uuid)
    try:
        chain = await trio.to_thread.run_sync(reader.seek, agreed_seq)
        settled_seq = reader.settled_seq(journal.end)
        await connection.send(Begin(me.position.epoch, agreed_seq, chain, upto_seq, settled_seq))
        while (
            stretch := await trio.to_thread.run_sync(reader.next, journal.end, upto_seq, bytes_max)
        ) is not None:
            epoch = me.position.epoch
            await connection.send(
                batch_of(stretch, RAW, stretch.content, epoch, upto_seq, upto_seq)
            )
    finally:
        reader.close()
    await connection.send(End(upto_seq))
