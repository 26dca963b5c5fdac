"""A peer that is known, and says anything: whole messages in any order, true ones, changed ones, of
other histories. Nodes answer with an error or not at all; nothing of it is a bug of theirs, costs
memory that stays, or changes what the two had agreed on."""

import gc
import resource
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from fusejournal.address import parse_address
from fusejournal.backing.limits import BackingLimits
from fusejournal.config import ReplicationConfig
from fusejournal.errors import FusejournalError, PeerLostError
from fusejournal.replication import shipper as shipper_module
from fusejournal.replication.common_ancestor import ASKED_MAX
from fusejournal.replication.inquiry import ask_peers
from fusejournal.types import Seq
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import (
    Ack,
    AskChains,
    Hello,
    Welcome,
    encode,
)
from fusejournal.wire.identity import load_or_make
from fusejournal.wire.session import FETCH, SHIP
from fusejournal.wire.transport import Address, connect, serve
from tests.support.liar import Liar, answering, each_session
from tests.support.losses import crash_system
from tests.support.pairs import level, listens_at, running, until
from tests.support.volumes import content, open_volume

pytestmark = pytest.mark.mount


def _bugs(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Returns what the log says of bugs, and all that is not one line."""
    found = [
        repr(record.getMessage())
        for record in caplog.records
        if not record.getMessage().isprintable()
    ]
    found += [
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

            await each_session(to, liar, 20, from_there)
            gc.collect()
            before_mib = _peak_mib()
            await each_session(to, liar, 60, from_there)
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
            await each_session(lambda: listens_at(primary), liar, 30, first)
            before_mib = _peak_mib()
            await each_session(lambda: listens_at(primary), liar, 100, first)
            assert _peak_mib() - before_mib < 40
            assert _bugs(caplog) == []
            assert primary.volume.write_errno is None
            assert content(primary.journal_dir) == before
            primary.work(1, start=50)


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
                await answering(tmp_path, liar, 80, task_status)
                nursery.cancel_scope.cancel()

            address = await nursery.start(start)
            replication = primary.replicate(ReplicationConfig(peers={"east": str(address)}))

            async def ship() -> None:
                async with running(primary):
                    while True:
                        await trio.sleep(0.05)
                        replication.local.book.resume("east")
                        replication._peers_changed()

            nursery.start_soon(ship)
        assert _bugs(caplog) == []
        assert content(primary.journal_dir) == before
        assert primary.volume.write_errno is None
        assert replication.local.book.get("east").acked_seq <= primary.volume.journal.head_seq


async def test_a_mirror_that_says_something_else_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says it of itself, in each greeting and acknowledgement: the log has few lines of it."""
    for name in ("_PAUSE_SECONDS_MIN", "_PAUSE_SECONDS_MAX", "_REFUSED_SECONDS"):
        monkeypatch.setattr(shipper_module, name, 0.005)
    sessions, said = 0, 0
    with open_volume(tmp_path / "primary") as primary:
        primary.work(1)
        head, uuid = primary.volume.journal.head, primary.volume.journal.uuid.bytes

        async def answer(connection: Connection) -> None:
            nonlocal sessions, said
            sessions += 1
            limits = (sessions, *BackingLimits(1, 2, 3, 4, 5, 6).to_wire(), 1 << 63)
            first = Welcome(1, uuid, "liar", head.epoch, head.seq, head.chain, head.seq)
            with suppress(FusejournalError):
                await connection.receive()
                await connection.send(first._replace(limits=limits, newest_kind=sessions % 20))
                await connection.receive()
                for number in range(200):
                    said += 1
                    words = f"{sessions}: {number}"
                    await connection.send(Ack(head.seq, head.seq, head.seq, "ok", words))

        async with trio.open_nursery() as nursery:
            identity = load_or_make(tmp_path / "liar", "liar")
            listening = partial(
                serve,
                Address("127.0.0.1", 0),
                identity,
                dict,
                insecure=True,
                on_connection=answer,
                on_pairing=answer,
            )
            address = await nursery.start(listening)
            replication = primary.replicate(ReplicationConfig(peers={"east": str(address)}))
            async with running(primary):
                await until("enough was said", lambda: sessions > 10)
            nursery.cancel_scope.cancel()
        (status,) = replication.status().peers
        assert all(note.isprintable() for note in status.notes)
    assert said > 1000
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) < 10, lines
    assert _bugs(caplog) == []


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_what_is_taken_back_from_who_says_anything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    with open_volume(tmp_path / "primary", orderly=False) as primary:
        primary.work(10)
        liar = Liar(primary, seed)
        true = content(primary.journal_dir)
        head_seq = primary.volume.journal.head_seq
    crash_system(tmp_path / "primary" / "state", head_seq - 30)
    with open_volume(tmp_path / "primary", begin=False, orderly=False) as primary:
        before = content(primary.journal_dir)
        async with trio.open_nursery() as nursery:
            address = await nursery.start(answering, tmp_path, liar, 10_000)
            replication = primary.replicate(
                ReplicationConfig(peers={"east": str(address)}, take_back_seconds=0.2)
            )
            replication.local.book.note_signatures("east")
            for _ in range(8):
                with suppress(FusejournalError):
                    await ask_peers(replication.local, primary.volume.journal, lambda _: None)
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
