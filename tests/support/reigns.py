"""Steps and looks of the tests of reigns."""

import trio

from fusejournal.address import parse_address
from fusejournal.config import ReplicationConfig
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.operations import NewEpoch
from fusejournal.types import Epoch, Reign, Seq
from fusejournal.volume.standing import UNOPPOSED, Standing
from fusejournal.wire.connection import OPEN, READY, Connection, receive_exactly
from fusejournal.wire.frames import Hello, Message, Welcome
from fusejournal.wire.identity import load_or_make, node_id_of
from fusejournal.wire.plain import CONNECTS, LISTENS, PROOF_BYTES, prove
from fusejournal.wire.transport import connect
from tests.support.pairs import (
    level,
    listens_at,
    running,
    until,
)
from tests.support.volumes import OpenVolume


def reign_of(side: OpenVolume) -> Reign:
    """The reign that *side* has seen."""
    watermarks = WatermarkPage(side.directory / "state" / "watermarks")
    try:
        return watermarks.fence
    finally:
        watermarks.close()


def node_id(side: OpenVolume) -> int:
    return node_id_of(side.replication.local.identity.fingerprint)


def begin(side: OpenVolume, standing: Standing = UNOPPOSED) -> None:
    for _ in side.opening.start_epoch_and_import(read_only=False, standing=standing):
        pass


def degraded(side: OpenVolume) -> str:
    return "\n".join(map(str, side.replication.degraded()))


async def follow(mirror: OpenVolume, primary: OpenVolume, epoch: int) -> None:
    """Have *mirror*, which runs, follow *primary*, which begins *epoch*."""
    primary.volume.note(NewEpoch(Epoch(epoch), "promoted"))
    primary.work(2)
    primary.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
    async with running(primary):
        await until("the mirror is level", level(primary, mirror))


def head(side: OpenVolume) -> Seq:
    return side.volume.journal.head_seq


async def greet(listener: OpenVolume, hello: Hello) -> Message | None:
    """Sends *hello* to *listener*, which runs. Returns the answer."""
    identity = load_or_make(listener.directory / "greeter", "greeter")
    address = parse_address(listens_at(listener))
    async with await connect(
        address, identity, None, insecure=True, timeout_seconds=10
    ) as connection:
        await connection.send(hello)
        return await connection.receive()


def higher(side: OpenVolume, purpose: str, seq: int) -> Hello:
    """The greeting of a node that *side* has not heard of, and that reigns in epoch 7."""
    uuid, epoch = side.volume.journal.uuid.bytes, Epoch(7)
    return Hello(1, uuid, "next", purpose, epoch, Seq(seq), 1, 77, epoch, 77, 5)


class Liar:
    """A peer that answers a greeting by *answer*, whichever node greets."""

    def __init__(self, answer: Message) -> None:
        self._answer = answer

    async def handle(self, stream: trio.SocketStream) -> None:
        assert await receive_exactly(stream, len(OPEN)) == OPEN
        expected = prove(CONNECTS, stream, is_listener=True)
        assert await receive_exactly(stream, PROOF_BYTES) == expected
        await stream.send_all(READY + prove(LISTENS, stream, is_listener=True))
        async with Connection(stream, "primary", None) as connection:
            await connection.receive()
            await connection.send(self._answer)
            with trio.move_on_after(0.2):
                while await connection.receive() is not None:
                    pass


def welcome(epoch: int, held: int, seq: int, chain: int) -> Welcome:
    where = Epoch(epoch), Seq(seq), chain
    return Welcome(1, b"", "liar", *where, Seq(0), 77, Epoch(held))


def last_epoch_seq(reader: JournalReader) -> Seq:
    """Returns the entry with which the newest epoch in *reader*'s journal begins."""
    entries = reader.read(Seq(1), END)
    return max(entry.seq for entry in entries if isinstance(entry.operation, NewEpoch))
