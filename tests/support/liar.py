"""A peer that is known, and says anything: whole messages in any order, true ones, changed ones,
older ones, of other histories."""

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from fusejournal.address import parse_address
from fusejournal.errors import FusejournalError
from fusejournal.journal.frame_range import FrameRangeReader
from fusejournal.journal.reader import JournalReader
from fusejournal.types import Seq
from fusejournal.wire.batches import batch_of, compress
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import (
    Ack,
    AskChains,
    Batch,
    Begin,
    Chains,
    Diverged,
    End,
    Hello,
    Message,
    PairOffer,
    Ping,
    Refusal,
    Welcome,
)
from fusejournal.wire.identity import load_or_make
from fusejournal.wire.session import FETCH, SHIP
from fusejournal.wire.transport import Address, connect, serve
from tests.support.volumes import OpenVolume

_NUMBERS = (0, 1, 2, 7, 64, 1 << 20, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_REIGN = frozenset({"epoch", "reign_node", "held_epoch"})
"""A peer that says that a higher reign has begun is believed where that can be proved, and no lower
one is heard from then on: that is what a peer is for, and is not tried here."""
_SECONDS = 2.0
_QUIET_SECONDS = 0.02


class Liar:
    """Makes messages about the journal of *true*."""

    def __init__(self, true: OpenVolume, seed: int) -> None:
        self.dice = random.Random(seed)
        journal = true.volume.journal
        self._uuid, self._head = journal.uuid, journal.head
        self._true = true
        self._batches = list(_batches(true, Seq(0), self.dice))
        self._chains = [0] + [
            frame.checksum
            for _, frame in JournalReader(true.journal_dir).frames(
                Seq(1), Seq(journal.head_seq + 1)
            )
        ]

    def message(self) -> Message:
        """Any one, true or nearly so."""
        dice, head = self.dice, self._head
        seq = Seq(dice.choice((0, head.seq, dice.randrange(head.seq + 1))))
        chain, epoch = self._chains[seq], head.epoch
        any_one: tuple[Message, ...] = (
            self.hello(dice.choice((SHIP, FETCH))),
            self.welcome(seq),
            Refusal(dice.choice(("full", "copy", "busy", "role", "x")), "no"),
            AskChains(tuple(Seq(dice.randrange(head.seq + 9)) for _ in range(dice.randrange(9)))),
            Chains(tuple(dice.choice((None, chain, 5)) for _ in range(dice.randrange(20)))),
            Begin(epoch, seq, chain, head.seq, seq),
            Diverged(seq, head.seq),
            *[dice.choice(self._batches)] * 4,
            Ack(seq, seq, seq, dice.choice(("ok", "full", "failed")), "detail"),
            Ping(seq, head.seq),
            End(seq),
            PairOffer("liar", "certificate", bytes(32), b""),
        )
        made = dice.choice(any_one)
        return self.changed(made) if dice.random() < 0.5 else made

    def hello(self, purpose: str) -> Hello:
        """A greeting from anywhere in the true journal."""
        seq = Seq(self.dice.randrange(self._head.seq + 1))
        chain, epoch = self._chains[seq], self._head.epoch
        greeting = Hello(1, self._uuid.bytes, "liar", purpose, epoch, seq, chain)
        return greeting._replace(**self._versions())

    def welcome(self, seq: Seq) -> Welcome:
        """The answer of a node whose journal ends with *seq*, as the true one has it."""
        chain, epoch = self._chains[seq], self._head.epoch
        answer = Welcome(1, self._uuid.bytes, "liar", epoch, seq, chain, seq)
        count = self.dice.choice((0, 0, 1, 6, 7))
        limits = tuple(self.dice.choice((0, 255, 1 << 44, *_NUMBERS)) for _ in range(count))
        return answer._replace(**self._versions(), limits=limits)

    def _versions(self) -> dict[str, Any]:
        """Those of any node that speaks version 1."""
        dice = self.dice
        return {
            "newest_version": dice.choice((0, 1, 2, _NUMBERS[-1])),
            "journal_format": dice.choice((0, 1, 2)),
            "newest_kind": dice.choice((0, 19, 20, 21)),
        }

    def changed(self, message: Message) -> Message:
        """With another value in a field."""
        dice = self.dice
        field = dice.choice([name for name in message._fields if name not in _REIGN])
        value: Any = getattr(message, field)
        if field != "content" and dice.random() < 0.2:
            value = dice.choice((None, True, -1, 1.5, "x", b"y", (), (1, None), 1 << 63))
        elif isinstance(value, int):
            value = dice.choice((max(0, value - 1), min(value + 1, _NUMBERS[-1]), *_NUMBERS))
        elif isinstance(value, str):
            value = dice.choice(
                ("", "ship", "fetch", "ok", "x" * 4000, "é\N{GREEK SMALL LETTER PI}")
            )
        elif field in ("uuid", "signature"):
            value = dice.randbytes(dice.choice((0, 16 if field == "uuid" else 32)))
        elif isinstance(value, bytes):
            value = bytearray(value) or bytearray(b"x")
            for _ in range(dice.choice((1, 5))):
                value[dice.randrange(len(value))] ^= 1 << dice.randrange(8)
            value = bytes(value)
        else:
            value = tuple(dice.choice(_NUMBERS) for _ in range(dice.choice((0, 1, 64))))
        return message._replace(**{field: value})

    def sequence(self, first: Message | None = None) -> list[Message]:
        """The messages of one session: mostly a true beginning and some that follows, then
        anything."""
        dice = self.dice
        said = [first] if first is not None and dice.random() < 0.9 else []
        if said and dice.random() < 0.7 and isinstance(first, Hello) and first.purpose == SHIP:
            said.append(Begin(self._head.epoch, first.seq, first.chain, self._head.seq, first.seq))
            following = list(_batches(self._true, first.seq, dice))
            said += following[: dice.randrange(3)]
            if following and dice.random() < 0.5:
                said.append(self.changed(following[min(len(following) - 1, len(said) - 2)]))
        return said + [self.message() for _ in range(dice.randrange(8))]


def _batches(true: OpenVolume, seq: Seq, dice: random.Random) -> Iterator[Batch]:
    """Batches of the entries after *seq*."""
    journal = true.volume.journal
    reader = FrameRangeReader(true.journal_dir, journal.uuid)
    end, head_seq = journal.end, journal.head_seq
    try:
        reader.seek(seq)
        while frame_range := reader.next_checked(end, head_seq, dice.choice((600, 4000))):
            method, data = compress(frame_range.content, dice.choice((0, 1)))
            yield batch_of(frame_range, method, data, journal.epoch, head_seq, head_seq)
    finally:
        reader.close()


async def _say(connection: Connection, messages: list[Message]) -> None:
    """Send all *messages*, hear what comes, and hang up."""
    with suppress(FusejournalError, trio.BusyResourceError), trio.move_on_after(_SECONDS):
        async with connection, trio.open_nursery() as nursery:

            async def hear() -> None:
                with suppress(FusejournalError):
                    connection.expect_batches()
                    while await connection.receive() is not None:
                        pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(hear)
            with suppress(FusejournalError):
                for message in messages:
                    await connection.send(message)
            # Until it has hung up by itself, or has nothing to say for a moment.
            heard = -1
            while heard != connection.bytes_received:
                heard = connection.bytes_received
                await trio.sleep(_QUIET_SECONDS)
            nursery.cancel_scope.cancel()


async def each_session(
    to: Callable[[], str], liar: Liar, count: int, first: Callable[[], Message | None]
) -> None:
    """Talk to the node at the address that *to* gives, in *count* sessions, each of which begins
    with what *first* gives."""
    for _ in range(count):
        identity: Any = None
        try:
            connection = await connect(
                parse_address(to()), identity, None, insecure=True, timeout_seconds=10
            )
        except FusejournalError:
            continue
        await _say(connection, liar.sequence(first()))


async def answering(
    tmp_path: Path, liar: Liar, count: int, task_status: trio.TaskStatus[Address]
) -> None:
    """A mirror that says anything; ends after *count* sessions."""
    said = 0
    over = trio.Event()

    async def lie(connection: Connection) -> None:
        nonlocal said
        said += 1
        if said > count:
            over.set()
        messages = liar.sequence(None)
        if liar.dice.random() < 0.8:
            seq = Seq(liar.dice.randrange(liar._head.seq + 1))
            messages.insert(0, liar.welcome(seq))
        with suppress(FusejournalError):
            await connection.receive()
        await _say(connection, messages)

    identity = load_or_make(tmp_path / "liar", "liar")
    async with trio.open_nursery() as nursery:
        address = await nursery.start(
            lambda task_status: serve(
                Address("127.0.0.1", 0),
                identity,
                dict,
                insecure=True,
                on_connection=lie,
                on_pairing=lie,
                task_status=task_status,
            )
        )
        task_status.started(address)
        await over.wait()
        nursery.cancel_scope.cancel()
