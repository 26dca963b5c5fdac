"""Real sessions, in each of their states: each kind of message is sent to each, and taken as the
table has it. (The table, and the machine that goes by it: wire/test_session_machine.py.)"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from fusejournal.config import ReplicationConfig
from fusejournal.errors import FusejournalError, WireError
from fusejournal.journal.base import JournalBase
from fusejournal.replication import canvass
from fusejournal.replication.common_ancestor import first_error
from fusejournal.replication.fetch_lost import LostEntryFetcher
from fusejournal.replication.parting import PartingInquiry
from fusejournal.replication.ship_session import ShipSession
from fusejournal.replication.shipper import Shipper
from fusejournal.replication.witness import Witness
from fusejournal.roles.tree_copy import TreeCopy
from fusejournal.types import Epoch, Position, Seq
from fusejournal.versions.block_source import OfferedTree
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import (
    Begin,
    Hello,
    Message,
    Welcome,
)
from fusejournal.wire.identity import load_or_make
from fusejournal.wire.session import (
    FETCH,
    HANDOFF,
    MIRROR,
    SHIP,
    VOTE,
    WITNESS,
    HandshakeState,
    hello,
    welcome,
)
from fusejournal.wire.session_connection import SessionConnection
from fusejournal.wire.session_states import (
    SESSION_TRANSITIONS,
    SessionState,
    Side,
    kind_name,
)
from fusejournal.wire.transport import Address, connect, serve
from tests.golden.samples import MESSAGES
from tests.golden.store_objects import VERSION
from tests.support.objects import MemoryStore
from tests.support.pairs import listens_at, running
from tests.support.volumes import OpenVolume, open_volume
from tests.unit.roles.test_handoff import sides

Say = Callable[[Message], Awaitable[str]]
"""Begins a session, brings it to its state, sends it a message, and returns what ended it."""
Lead = Callable[[Connection], Awaitable[None]]
"""Brings a session to its state, as the other side."""
_WRONG = 0x1234
"""The chain of no entry."""


async def _end_of(session: Callable[[], Awaitable[object]]) -> str:
    ended = ""
    try:
        await session()
    except* (FusejournalError, OSError, trio.TooSlowError) as group:
        ended = str(first_error(group))
    return ended


async def _in_memory(
    session: Callable[[Connection], Awaitable[object]], lead: Lead, message: Message
) -> str:
    """Send *message* to *session* over a stream in memory."""
    one, other = trio.testing.memory_stream_pair()
    ended = ""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                nonlocal ended
                async with Connection(one, "192.0.2.1:7", None) as connection:
                    ended = await _end_of(lambda: session(connection))

            nursery.start_soon(run)
            async with Connection(other, "192.0.2.2:7", None) as far:
                await lead(far)
                await far.send(message)
                await other.send_eof()
                with suppress(FusejournalError):
                    while await far.receive() is not None:
                        pass
    return ended


@asynccontextmanager
async def _answering(
    directory: Path, lead: Lead
) -> AsyncIterator[tuple[Address, Callable[[Callable[[], Awaitable[object]]], Say]]]:
    """A listener that leads those who connect; where it is, and what makes a :data:`Say` of a
    session with it."""
    identity, said = load_or_make(directory / "answering", "east"), MESSAGES[0]

    async def answer(connection: Connection) -> None:
        connection.expect_batches()
        with suppress(FusejournalError):
            await lead(connection)
            await connection.send(said)

    def sayer(session: Callable[[], Awaitable[object]]) -> Say:
        async def say(message: Message) -> str:
            nonlocal said
            said = message
            with trio.fail_after(10):
                return await _end_of(session)

        return say

    async with trio.open_nursery() as nursery:

        async def listen(task_status: trio.TaskStatus[Address]) -> None:
            await serve(
                Address("127.0.0.1", 0),
                identity,
                dict,
                insecure=True,
                on_connection=answer,
                on_pairing=answer,
                task_status=task_status,
            )

        yield await nursery.start(listen), sayer
        nursery.cancel_scope.cancel()


async def _check(state: SessionState, side: Side, say: Say) -> None:
    """Check that exactly what the table has is taken from who says it by *say*."""
    row = SESSION_TRANSITIONS[state][side]
    for message in MESSAGES:
        name = kind_name(type(message))
        ended = await say(message)
        is_refused = f"{name} may not come while {state.value}: the {side.value} takes" in ended
        assert is_refused is (type(message) not in row), (name, ended)


def _me(volume: OpenVolume, seq: int, chain: int) -> HandshakeState:
    """The other side of a session with *volume*."""
    uuid = volume.volume.journal.uuid
    return HandshakeState("prim", uuid, Position(Epoch(1), Seq(seq), chain), Epoch(1), Seq(seq))


def _welcome(volume: OpenVolume, seq: int, chain: int, role: str = MIRROR) -> Welcome:
    me = _me(volume, seq, chain)._replace(role=role)
    return welcome(me, hello(me, SHIP), is_mirror=True)


async def _say_nothing(_: Connection) -> None:
    """A new connection is in the first state."""


@pytest.mark.mount
@pytest.mark.parametrize(
    ("state", "side"),
    [
        (SessionState.GREETING, Side.LISTENER),
        (SessionState.COMPARING, Side.SINK),
        (SessionState.STREAMING, Side.SINK),
    ],
)
async def test_a_mirror_takes(tmp_path: Path, state: SessionState, side: Side) -> None:
    uuid = VERSION.uuid
    with open_volume(tmp_path / "mirror", mirror=True, uuid=uuid) as mirror:

        async def lead(far: Connection) -> None:
            if state is not SessionState.GREETING:
                await far.send(hello(_me(mirror, 5, _WRONG), SHIP))
                assert isinstance(await far.receive(), Welcome)
            if state is SessionState.STREAMING:
                await far.send(Begin(Epoch(1), Seq(0), 0, Seq(5), Seq(0)))
                await far.receive()

        replication = mirror.replicate(ReplicationConfig(), "127.0.0.1:0")

        async def serve_one(connection: Connection) -> None:
            await replication._inbound.reception.serve(connection)
            # (Why a session was lost is not the listener's error, but in the mirror's status.)
            status = mirror.receiver.status()
            raise WireError(status.last_error or "")

        async with running(mirror):
            await _check(state, side, partial(_in_memory, serve_one, lead))


@pytest.mark.mount
async def test_a_witness_takes(tmp_path: Path) -> None:
    identity = load_or_make(tmp_path / "identity", "third")
    witness = Witness(tmp_path, "third", identity)
    position = Position(Epoch(1), Seq(5), _WRONG)
    me = HandshakeState("prim", VERSION.uuid, position, Epoch(1), Seq(5), 7, 7)

    async def lead(far: Connection) -> None:
        await far.send(hello(me, SHIP))
        assert isinstance(await far.receive(), Welcome)

    say = partial(_in_memory, witness.reception.serve, lead)
    await _check(SessionState.INFORMING, Side.SINK, say)
    await _check(
        SessionState.GREETING,
        Side.LISTENER,
        partial(_in_memory, witness.reception.serve, _say_nothing),
    )


@pytest.mark.mount
async def test_a_source_of_a_fetch_takes(tmp_path: Path) -> None:
    with open_volume(tmp_path / "primary") as primary:
        primary.work(3)
        replication = primary.replicate(ReplicationConfig())

        async def lead(far: Connection) -> None:
            await far.send(hello(_me(primary, 5, _WRONG), FETCH))
            assert isinstance(await far.receive(), Welcome)
            await far.receive()

        say = partial(_in_memory, replication._inbound.reception.serve, lead)
        await _check(SessionState.SEARCHING, Side.SOURCE, say)


@pytest.mark.mount
@pytest.mark.parametrize(
    ("state", "side"),
    [
        (SessionState.ANSWERING, Side.CONNECTOR),
        (SessionState.COMPARING, Side.SOURCE),
        (SessionState.STREAMING, Side.SOURCE),
        (SessionState.INFORMING, Side.SOURCE),
    ],
)
async def test_a_shipper_takes(tmp_path: Path, state: SessionState, side: Side) -> None:
    with open_volume(tmp_path / "primary") as primary:
        primary.work(3)
        replication = primary.replicate(ReplicationConfig(peers={"east": "127.0.0.1:9"}))
        shared = replication._shipping

        async def lead(far: Connection) -> None:
            assert isinstance(await far.receive(), Hello)
            if state is SessionState.COMPARING:
                await far.send(_welcome(primary, 5, _WRONG))
                await far.receive()
            elif state is SessionState.STREAMING:
                await far.send(_welcome(primary, 0, 0))
                assert isinstance(await far.receive(), Begin)
            elif state is SessionState.INFORMING:
                await far.send(_welcome(primary, 0, 0, WITNESS))

        async def ship(connection: Connection) -> None:
            shipper = Shipper("east", shared)
            connection.expect_batches()
            session = SessionConnection(connection, Side.CONNECTOR)
            await ShipSession(session, shipper.record, shared, shipper._retention).run()

        await _check(state, side, partial(_in_memory, ship, lead))


@pytest.mark.mount
@pytest.mark.parametrize("state", [SessionState.ANSWERING, SessionState.SEARCHING, None])
@pytest.mark.parametrize("who", ["fetcher", "inquiry", "copy"])
async def test_who_fetches_takes(tmp_path: Path, state: SessionState | None, who: str) -> None:
    """(None: fetching.)"""
    with open_volume(tmp_path / "primary") as primary:
        primary.work(3)
        journal = primary.volume.journal
        head = journal.head

        async def lead(far: Connection) -> None:
            assert isinstance(await far.receive(), Hello)
            if state is not SessionState.ANSWERING:
                await far.send(_welcome(primary, head.seq + 5, _WRONG))
            if state is None:
                await far.send(Begin(head.epoch, head.seq, head.chain, head.seq, head.seq))

        async with _answering(tmp_path, lead) as (address, sayer):
            local = primary.replicate(ReplicationConfig(peers={"east": str(address)})).local
            me, peer = primary.replication.me(), local.book.get("east")

            async def bind(*_: object) -> None:
                return None

            async def fetch() -> None:
                report = list[str]().append
                await LostEntryFetcher(
                    *(journal, lambda: me, local.config, local.identity, local.book, True),
                    *(report, bind),
                )._fetch(peer, head.seq)

            async def copy() -> None:
                base = JournalBase(
                    *(journal.uuid, head.epoch, head.seq, head.chain, 1, "", "", "", ""),
                    *(VERSION.next_fid, 0),
                )
                work = TreeCopy(peer, me, local.identity, lambda *_: None, insecure=True)
                await work.fetch_segment(tmp_path / "copied", base)

            inquiry = PartingInquiry(me, journal.directory, local.identity, insecure=True)
            if who == "inquiry" and state is None:
                return  # it has heard enough by then
            session = {"fetcher": fetch, "inquiry": lambda: inquiry.ask(peer), "copy": copy}[who]
            side = Side.CONNECTOR if state is SessionState.ANSWERING else Side.SINK
            await _check(state or SessionState.FETCHING, side, sayer(session))


@pytest.mark.mount
@pytest.mark.parametrize("state", [SessionState.ASKING, SessionState.COPYING])
async def test_who_copies_a_tree_takes(tmp_path: Path, state: SessionState) -> None:
    version = replace(VERSION, epoch=Epoch(1))
    with open_volume(tmp_path / "mirror", mirror=True, uuid=version.uuid) as mirror:

        async def lead(far: Connection) -> None:
            assert isinstance(await far.receive(), Hello)
            await far.send(_welcome(mirror, 5, _WRONG))
            await far.receive()
            if state is SessionState.COPYING:
                await far.send(OfferedTree(version, "", Seq(1), Seq(9), 1).told())
                await far.receive()

        async with _answering(tmp_path, lead) as (address, sayer):
            config = ReplicationConfig(peers={"east": str(address)})
            local = mirror.replicate(config, "127.0.0.1:0").local
            peer, me = local.book.get("east"), _me(mirror, 0, 0)
            work = TreeCopy(peer, me, local.identity, lambda *_: None, insecure=True)
            session = partial(work.fetch, MemoryStore(), None, "mirror", lambda _: None)
            await _check(state, Side.CONNECTOR, sayer(session))


@pytest.mark.mount
async def test_who_asks_for_a_vote_takes(tmp_path: Path) -> None:
    with open_volume(tmp_path / "mirror", mirror=True, uuid=VERSION.uuid) as mirror:

        async def lead(far: Connection) -> None:
            assert isinstance(await far.receive(), Hello)

        async with _answering(tmp_path, lead) as (address, sayer):
            config = ReplicationConfig(peers={"east": str(address)})
            local = mirror.replicate(config, "127.0.0.1:0").local
            me, peer = mirror.replication.me(), local.book.get("east")
            greeting = hello(me, VOTE, Epoch(9))

            async def ask() -> None:
                raise WireError((await canvass._ask(local, peer, me, greeting, 5)).error or "")

            await _check(SessionState.ANSWERING, Side.CONNECTOR, sayer(ask))


@pytest.mark.mount
async def test_both_sides_of_a_handoff_take(tmp_path: Path) -> None:
    async with sides(tmp_path) as both:
        primary, mirror = both.primary, both.mirror
        said, serve_it, ended = MESSAGES[0], both.take_over().serve, ""

        async def target(session: SessionConnection, greeting: Hello) -> None:
            """The mirror's side, which says something else than its answer."""
            me = mirror.replication.me()
            await session.send(welcome(me, greeting, is_mirror=True))
            if greeting.wanted_epoch:
                await session.receive()
                await session.connection.send(said)

        async def offer(message: Message) -> str:
            nonlocal said
            said = message
            return await _end_of(lambda: both.hand_over().run(10))

        mirror.take_over = target
        await _check(SessionState.OFFERED, Side.CONNECTOR, offer)

        async def real_target(session: SessionConnection, greeting: Hello) -> None:
            nonlocal ended
            ended = await _end_of(lambda: serve_it(session, greeting))

        async def agree(message: Message) -> str:
            local, me = primary.replication.local, primary.replication.me()
            host, _, port = listens_at(mirror).rpartition(":")
            async with await connect(
                Address(host, int(port)), local.identity, None, insecure=True, timeout_seconds=5
            ) as far:
                await far.send(hello(me, HANDOFF, Epoch(2)))
                assert isinstance(await far.receive(), Welcome)
                await far.send(message)
                with suppress(FusejournalError):
                    await far.receive()
            return ended

        mirror.take_over = real_target
        await _check(SessionState.AGREED, Side.LISTENER, agree)
        assert both.reigns == []
