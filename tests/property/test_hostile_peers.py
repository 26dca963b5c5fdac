"""A peer that is known, and says anything: whole messages in any order, true ones, changed ones, of
other histories. Nodes answer with an error or not at all; nothing of it is a bug of theirs, costs
memory that stays, or changes what the two had agreed on."""

import gc
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from fusejournal.address import parse_address
from fusejournal.config import ReplicationConfig
from fusejournal.errors import FusejournalError, PeerLostError
from fusejournal.journal.frame_range import FrameRangeReader
from fusejournal.journal.reader import JournalReader
from fusejournal.replication import shipper as shipper_module
from fusejournal.replication.common_ancestor import ASKED_MAX
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
    encode,
)
from fusejournal.wire.identity import load_or_make
from fusejournal.wire.session import FETCH, SHIP
from fusejournal.wire.transport import Address, connect, serve
from tests.support.losses import lose_machine
from tests.support.pairs import level, listens_at, running, until
from tests.support.volumes import OpenVolume, content, open_volume

pytestmark = pytest.mark.mount

_NUMBERS = (0, 1, 2, 7, 64, 1 << 20, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_REIGN = frozenset({"epoch", "reign_node", "held_epoch"})
"""Who says that a higher reign has begun is believed where that can be proved, and no lower one is
heard from then on: that is what a peer is for, and is not tried here."""
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
            Welcome(1, self._uuid.bytes, "liar", epoch, seq, chain, seq),
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
        return Hello(1, self._uuid.bytes, "liar", purpose, self._head.epoch, seq, self._chains[seq])

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
        """What is said in one session: mostly a true beginning and some that follows, then
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
    """What follows entry *seq*."""
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
    """Say all that, hear what comes, and hang up."""
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


def _bugs(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [
        f"{record.getMessage()}\n{record.exc_info and record.exc_info[1]!r}"
        for record in caplog.records
        if record.exc_info or "bug" in record.getMessage()
    ]
    caplog.clear()
    return found


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _is_prefix(now: dict[str, bytes], true: dict[str, bytes]) -> bool:
    return all(true.get(name, b"").startswith(segment) for name, segment in now.items())


async def _each_session(
    to: Callable[[], str], liar: Liar, count: int, first: Callable[[], Message | None]
) -> None:
    for _ in range(count):
        identity: Any = None
        try:
            connection = await connect(
                parse_address(to()), identity, None, insecure=True, timeout_seconds=10
            )
        except FusejournalError:
            continue
        await _say(connection, liar.sequence(first()))


@pytest.mark.parametrize("seed", [1, 2])
async def test_to_a_mirror(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    """The journal stays a prefix of the true one, and the true primary finds it so."""
    # It may come while the last liar is still there, and is not to wait long for another try.
    for name in ("_PAUSE_SECONDS_MAX", "_REFUSED_SECONDS"):
        monkeypatch.setattr(shipper_module, name, 0.2)
    with (
        open_volume(tmp_path / "mirror", mirror=True) as mirror,
        open_volume(tmp_path / "primary") as primary,
    ):
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror):
            primary.work(5)
            primary.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
            async with running(primary):
                await until("the mirror is level", level(primary, mirror))
            agreed_seq = primary.volume.journal.head_seq
            primary.work(40, start=20)
            liar = Liar(primary, seed)
            to = lambda: listens_at(mirror)  # noqa: E731
            first = lambda: liar.hello(liar.dice.choice((SHIP, SHIP, FETCH)))  # noqa: E731

            def from_there() -> Hello:
                greeting, head = first(), mirror.volume.journal.head
                is_true = liar.dice.random() < 0.7
                return greeting._replace(seq=head.seq, chain=head.chain) if is_true else greeting

            await _each_session(to, liar, 20, from_there)
            gc.collect()
            before_mib = _peak_mib()
            await _each_session(to, liar, 60, from_there)
            assert _peak_mib() - before_mib < 40
            assert _bugs(caplog) == []
            assert mirror.volume.failure is None
            assert mirror.volume.journal.head_seq > agreed_seq, "nothing true was taken"
            assert _is_prefix(content(mirror.journal_dir), content(primary.journal_dir))
            primary.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
            async with running(primary):
                await until("the mirror is level", level(primary, mirror))
        assert content(mirror.journal_dir) == content(primary.journal_dir)


async def test_who_asks_without_end_is_not_answered_without_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        open_volume(tmp_path / "mirror", mirror=True) as mirror,
        open_volume(tmp_path / "primary") as primary,
    ):
        primary.work(2)
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        greeting = Liar(primary, 1).hello(SHIP)
        identity: Any = None
        async with running(mirror):
            to = parse_address(listens_at(mirror))
            async with await connect(
                to, identity, None, insecure=True, timeout_seconds=10
            ) as connection:
                await connection.send(greeting)
                assert isinstance(await connection.receive(), Welcome)
                asked = 0
                with trio.fail_after(20), suppress(PeerLostError):
                    while asked < 1000:
                        asked += 1
                        await connection.send(AskChains((Seq(1),)))
                        if await connection.receive() is None:
                            break
                assert asked <= ASKED_MAX + 1
        assert _bugs(caplog) == []


@pytest.mark.parametrize("seed", [1, 2])
async def test_to_a_primary_that_listens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    with open_volume(tmp_path / "primary") as primary:
        primary.work(10)
        primary.replicate(ReplicationConfig(), "127.0.0.1:0")
        before = content(primary.journal_dir)
        liar = Liar(primary, seed)
        first = lambda: liar.hello(liar.dice.choice((SHIP, FETCH, FETCH)))  # noqa: E731
        async with running(primary):
            await _each_session(lambda: listens_at(primary), liar, 30, first)
            before_mib = _peak_mib()
            await _each_session(lambda: listens_at(primary), liar, 100, first)
            assert _peak_mib() - before_mib < 40
            assert _bugs(caplog) == []
            assert primary.volume.write_errno is None
            assert content(primary.journal_dir) == before
            primary.work(1, start=50)


async def _answering(
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
            chain, head = liar._chains[seq], liar._head
            uuid = liar._uuid.bytes
            messages.insert(0, Welcome(1, uuid, "liar", head.epoch, seq, chain, seq))
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


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_mirror_that_answers_anything(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    """The primary goes on, and believes nothing that it had not sent."""
    for name in ("_PAUSE_SECONDS_MIN", "_PAUSE_SECONDS_MAX", "_REFUSED_SECONDS"):
        monkeypatch.setattr(shipper_module, name, 0.005)
    with open_volume(tmp_path / "primary") as primary:
        primary.work(10)
        before = content(primary.journal_dir)
        liar = Liar(primary, seed)
        async with trio.open_nursery() as nursery:

            async def start(task_status: trio.TaskStatus[Address]) -> None:
                await _answering(tmp_path, liar, 80, task_status)
                nursery.cancel_scope.cancel()

            address = await nursery.start(start)
            replication = primary.replicate(ReplicationConfig(peers={"east": str(address)}))

            async def ship() -> None:
                async with running(primary):
                    while True:
                        await trio.sleep(0.05)
                        replication.book.resume("east")
                        replication._peers_changed()

            nursery.start_soon(ship)
        assert _bugs(caplog) == []
        assert content(primary.journal_dir) == before
        assert primary.volume.write_errno is None
        assert replication.book.get("east").acked_seq <= primary.volume.journal.head_seq


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_what_is_taken_back_from_who_says_anything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    with open_volume(tmp_path / "primary", orderly=False) as primary:
        primary.work(10)
        liar = Liar(primary, seed)
        true = content(primary.journal_dir)
        head_seq = primary.volume.journal.head_seq
    lose_machine(tmp_path / "primary" / "state", head_seq - 30)
    with open_volume(tmp_path / "primary", begin=False, orderly=False) as primary:
        before = content(primary.journal_dir)
        async with trio.open_nursery() as nursery:
            address = await nursery.start(_answering, tmp_path, liar, 10_000)
            replication = primary.replicate(
                ReplicationConfig(peers={"east": str(address)}, take_back_seconds=0.2)
            )
            replication.book.note_signatures("east")
            for _ in range(8):
                with suppress(FusejournalError):
                    await replication.take_back(primary.volume, lambda _: None)
                assert content(primary.journal_dir) == before, "nothing of it was signed"
            nursery.cancel_scope.cancel()
        assert _bugs(caplog) == []
        primary.opening.recover(read_only=False)
        assert _is_prefix(content(primary.journal_dir), true)


def test_the_liar_says_all_there_is(tmp_path: Path) -> None:
    """Or the tests above would try little."""
    with open_volume(tmp_path / "primary") as primary:
        primary.work(3)
        liar = Liar(primary, 1)
        said = [liar.message() for _ in range(2000)]
    assert len({type(message) for message in said}) == 12
    assert all(encode(message) for message in said)
