"""A witness: what it has on its disk before it says so, and that with it two of three nodes go
on."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio
import trio.testing

from fusejournal.address import Address, parse_remote
from fusejournal.errors import FusejournalError, PromotionRefusedError
from fusejournal.replication import shipper as shipper_module
from fusejournal.replication.peers import PeerBook
from fusejournal.replication.witness import WITNESS_FILE, Seen, Witness, load_seen
from fusejournal.types import Epoch, Position, Reign, Seq
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import (
    Ack,
    Batch,
    Hello,
    MembersReport,
    Message,
    Ping,
    Refusal,
    Welcome,
    encode,
)
from fusejournal.wire.identity import load_or_make, node_id_of
from fusejournal.wire.listener import serve
from fusejournal.wire.members import Members, Rule
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import (
    FETCH,
    HANDOFF,
    SHIP,
    VOTE,
    WITNESS,
    HandshakeState,
    hello,
)
from tests.support.losses import Died, dying_at, failing_at
from tests.support.pairs import level, until
from tests.unit.replication.test_membership import Nodes, nodes, promotion

pytestmark = pytest.mark.mount

_UUID = UUID(int=7)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipper_module, "_REFUSED_SECONDS", 0.2)


@asynccontextmanager
async def witnessing(cluster: Nodes, *names: str) -> AsyncIterator[tuple[Witness, str]]:
    """A witness, paired with the nodes *names*, which do not run; and where it listens."""
    directory = cluster.base / "witness"
    directory.mkdir()
    identity = load_or_make(directory / "identity", "third")
    witness, book = Witness(directory, "third", identity), PeerBook(directory)
    for name in names:
        key = load_or_make(cluster.base / name / "state" / "identity", name)
        book.pair(name, None, key.certificate)
        own = PeerBook.load(cluster.base / name / "state")
        own.pair("third", None, identity.certificate)
        own.save()
    async with trio.open_nursery() as nursery:

        async def listen(task_status: trio.TaskStatus[Address]) -> None:
            await serve(
                Address("127.0.0.1", 0),
                identity,
                book.certificates,
                insecure=False,
                on_connection=witness.reception.serve,
                on_pairing=witness.reception.serve,
                is_pairing_open=lambda: False,
                task_status=task_status,
            )

        address = await nursery.start(listen)
        for name in names:
            own = PeerBook.load(cluster.base / name / "state")
            own.note_return("third", address)
            if name == "north":
                own.turn_out()
            own.save()
        yield witness, str(address)
        nursery.cancel_scope.cancel()


async def test_a_mirror_and_a_witness_are_two_of_three(tmp_path: Path) -> None:
    async with nodes(tmp_path) as cluster, witnessing(cluster, "north", "east") as (witness, _):
        east = await cluster.start("east")
        north = await cluster.start("north", "east")
        north.work(2)
        await until("it is level", level(north, east))
        rule = Rule(1, True, tuple(sorted(map(cluster.node_id, ("north", "east")))))
        third = node_id_of(load_or_make(tmp_path / "witness" / "identity", "third").fingerprint)
        rule = rule._replace(witnesses=(third,))

        def all_know() -> bool:
            records = [north.replication.local.members, east.replication.local.members]
            found = [one.current for one in (*records, witness.members)]
            return all(one is not None and one.rules == (rule,) for one in found)

        await until("all know who counts", all_know)
        head_seq = north.volume.journal.head_seq
        quorum = north.replication.quorum
        await until("it counts", lambda: quorum.present_seq == head_seq)  # of the mirror alone
        peers = {peer.name: peer for peer in north.replication.status().peers}
        assert (peers["third"].state, peers["third"].lag_entries) == (WITNESS, 0)
        assert witness.primary == "north"
        assert witness.seen.begun == Reign(Epoch(1), 0)
        held = dict(witness.members.current.held) if witness.members.current else {}
        assert held[cluster.node_id("east")] == head_seq
        with pytest.raises(PromotionRefusedError, match="north is a primary, and answers"):
            await promotion(east).prepare(force=False)

        await cluster.stop("north", orderly=False)
        plan = await promotion(east).prepare(force=False)
        assert (plan.words, plan.words_needed) == (2, 2)
        assert [one.role for one in plan.peers if one.counts] == [WITNESS]
        assert load_seen(tmp_path / "witness").fence == Reign(Epoch(2), cluster.node_id("east"))


async def test_a_mirror_that_lost_entries_is_not_promoted_by_a_witness(tmp_path: Path) -> None:
    async with nodes(tmp_path) as cluster, witnessing(cluster, "north", "east") as (witness, _):
        east = await cluster.start("east")
        north = await cluster.start("north", "east")
        north.work(2)
        await until("it is level", level(north, east))
        await until("it is told", lambda: witness.members.current is not None)
        await until("it counts", lambda: bool(witness.members.current.rule.witnesses))  # type: ignore[union-attr]
        await cluster.stop("north", orderly=False)
        node_id, head_seq = cluster.node_id("east"), Seq(east.volume.journal.head_seq + 5)
        witness.members.note_held({node_id: head_seq})
        with pytest.raises(PromotionRefusedError, match="had acknowledged them up to"):
            await promotion(east).prepare(force=False)


def _node(epoch: int, node_id: int, seq: int = 9, *, held: int | None = None) -> HandshakeState:
    position = Position(Epoch(epoch if held is None else held), Seq(seq), seq * 11)
    return HandshakeState("node", _UUID, position, Epoch(epoch), Seq(seq), node_id, node_id)


class _Asked:
    """A witness in *directory*, over connections in memory."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.identity = load_or_make(directory / "identity", "third")
        self.witness = Witness(directory, "third", self.identity)

    async def ask(self, *messages: Message | bytes) -> list[Message]:
        """Send *messages*, and return the answers."""
        one, other = trio.testing.memory_stream_pair()
        answers: list[Message] = []
        async with trio.open_nursery() as nursery:

            async def serve_it() -> None:
                async with Connection(other, "192.0.2.1:7", "node") as connection:
                    try:
                        await self.witness.reception.serve(connection)
                    except* FusejournalError:
                        pass

            nursery.start_soon(serve_it)
            for message in messages:
                await one.send_all(message if isinstance(message, bytes) else encode(message))
            await one.send_eof()
            connection = Connection(one, "third", None)
            try:
                while (answer := await connection.receive()) is not None:
                    answers.append(answer)
            except FusejournalError:
                pass
            await connection.aclose()
        return answers

    async def vote(self, epoch: int, node_id: int, mine: int = 1) -> Message:
        (answer,) = await self.ask(hello(_node(mine, node_id), VOTE, Epoch(epoch)))
        return answer


async def test_it_keeps_what_it_says(tmp_path: Path) -> None:
    """After a start of its own it gives no second vote for an epoch, and a lower reign is told
    which one has come after it."""
    asked = _Asked(tmp_path)
    assert await asked.vote(2, 5) == Refusal(
        "unborn", "third has no volume yet, and no vote to give"
    )
    (welcomed,) = await asked.ask(hello(_node(1, 5), SHIP))
    assert isinstance(welcomed, Welcome)
    assert welcomed.role == WITNESS
    assert isinstance(await asked.vote(2, 5), Welcome)
    asked = _Asked(tmp_path)
    assert isinstance(await asked.vote(2, 5), Welcome), "the same again"
    refused = await asked.vote(2, 6)
    assert isinstance(refused, Refusal)
    assert refused.code == RefusalCode.FENCED
    (refused,) = await asked.ask(hello(_node(1, 9), SHIP))
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.held_epoch) == (RefusalCode.FENCED, 1), "2 has not begun"
    (told,) = await asked.ask(hello(_node(2, 5, 12), SHIP))
    assert isinstance(told, Welcome)
    asked = _Asked(tmp_path)
    (refused,) = await asked.ask(hello(_node(1, 9, 30), SHIP))
    assert isinstance(refused, Refusal)
    assert (refused.epoch, refused.held_epoch, refused.seq, refused.chain) == (2, 2, 12, 132)
    (answer,) = await asked.ask(hello(_node(1, 9, 30), FETCH))
    assert isinstance(answer, Welcome)
    assert (answer.epoch, answer.held_epoch, answer.seq) == (2, 2, 12)
    (refused,) = await asked.ask(hello(_node(3, 5, held=2), SHIP))
    assert isinstance(refused, Refusal)
    assert refused.code == "role", "it has only the vote for 3"
    (refused,) = await asked.ask(hello(_node(2, 5), HANDOFF, Epoch(3)))
    assert isinstance(refused, Refusal)
    other = _node(2, 5)._replace(uuid=UUID(int=8))
    (refused,) = await asked.ask(hello(other, SHIP))
    assert isinstance(refused, Refusal)
    assert refused.code == "volume"
    old = hello(_node(2, 5), SHIP)._replace(newest_version=3)
    (refused,) = await asked.ask(old)
    assert isinstance(refused, Refusal)
    assert refused.code == "version"


async def test_it_hears_a_primary_whose_epoch_it_gave_another_its_vote_for(tmp_path: Path) -> None:
    """One of the two has begun, with votes enough, and the other cannot any more."""
    asked = _Asked(tmp_path)
    await asked.ask(hello(_node(1, 5), SHIP))
    assert isinstance(await asked.vote(2, 6), Welcome)
    (told,) = await asked.ask(hello(_node(2, 5), SHIP))
    assert isinstance(told, Welcome)
    assert load_seen(tmp_path).fence == load_seen(tmp_path).begun == Reign(Epoch(2), 5)
    assert isinstance(await asked.vote(2, 6), Refusal)
    (refused,) = await asked.ask(hello(_node(2, 6), SHIP))
    assert isinstance(refused, Refusal), "of two that have begun it knows none to be right"


async def test_it_hears_from_the_primary_of_a_reign_alone(tmp_path: Path) -> None:
    """A mirror of that, as a former primary is, would end the session that goes on."""
    asked = _Asked(tmp_path)
    await asked.ask(hello(_node(1, 5), SHIP))
    (told,) = await asked.ask(hello(_node(2, 5), SHIP))
    assert isinstance(told, Welcome)
    before = asked.witness.seen
    (refused,) = await asked.ask(hello(_node(2, 5, 90)._replace(node_id=6), SHIP))
    assert isinstance(refused, Refusal)
    assert refused.code == "role"
    assert asked.witness.seen == before


async def test_a_mirror_does_not_call_the_witness_that_its_book_has(tmp_path: Path) -> None:
    """It has it from when it was the primary, and would be taken for that again and again."""
    async with nodes(tmp_path) as cluster, witnessing(cluster, "north", "east") as (witness, _):
        book = PeerBook.load(tmp_path / "east" / "state")
        book.turn_out()
        book.save()
        east = await cluster.start("east")
        north = await cluster.start("north", "east")
        north.work(1)
        await until("it is told", lambda: witness.members.current is not None)
        shown = lambda: east.replication.status().peers[0]  # noqa: E731
        await until("it waits", lambda: shown().advice == "a witness hears from the primary alone")
        third = next(one for one in north.replication.records() if one.name == "third")
        # (It called once, before it knew that this is a witness.)
        is_told = lambda: third.is_connected and witness.primary == "north"  # noqa: E731
        await until("the primary tells it", is_told)
        sessions = third.traffic.sessions
        await trio.sleep(0.5)  # twice as long as a refused one waits here, and more
        assert (third.traffic.sessions, witness.primary) == (sessions, "north")
        assert east.replication.degraded() == []


async def test_it_acknowledges_members_that_are_on_its_disk(tmp_path: Path) -> None:
    asked, reign = _Asked(tmp_path), Reign(Epoch(1), 5)
    members = Members(reign, 2, Rule(1, True, (5, 6), (7,)), None, ((6, Seq(9)),))
    told, ping = MembersReport(members.to_wire()), Ping(Seq(9), Seq(9))
    greeting = hello(_node(1, 5), SHIP)
    nothing = Seq(0)
    _, first, second = await asked.ask(greeting, ping, told)
    assert first == Ack(nothing, nothing, nothing, "ok", "")
    assert second == Ack(nothing, nothing, nothing, "ok", "", members_version=2)
    later = told._replace(members=members._replace(version=3).to_wire())
    with failing_at("members", 1, OSError(28, "No space left on device")):
        _, first, second = await asked.ask(greeting, later, ping)
    assert isinstance(first, Ack)
    assert first.members_version == 2
    assert asked.witness.failure is not None
    high = told._replace(members=members._replace(reign=Reign(Epoch(2), 6)).to_wire())
    assert len(await asked.ask(greeting, high)) == 1, "of a reign beyond its own"
    assert _Asked(tmp_path).witness.members.current == members


async def test_a_full_disk_or_a_kill_leaves_it_as_it_was(tmp_path: Path) -> None:
    asked = _Asked(tmp_path)
    await asked.ask(hello(_node(1, 5), SHIP))
    before = load_seen(tmp_path)
    with failing_at("witness", 1, OSError(28, "No space left on device")):
        refused = await asked.vote(2, 5)
    assert isinstance(refused, Refusal)
    assert (refused.code, load_seen(tmp_path)) == ("failed", before)
    assert isinstance(await asked.vote(2, 5), Welcome)
    assert asked.witness.failure is None
    for count in range(1, 10):
        asked, before = _Asked(tmp_path), load_seen(tmp_path)
        with dying_at("witness.", count) as left:
            try:
                answer: Message | None = await asked.vote(2 + count, 5)
            except* Died:
                answer = None
        seen = load_seen(tmp_path).fence.epoch
        assert seen in (before.fence.epoch, 2 + count)
        if answer is not None:
            assert seen == 2 + count, "it had said so"
        if left[0] > 0:
            break
    assert count > 3


async def test_hostile_bytes_harm_it_not(tmp_path: Path) -> None:
    dice = random.Random(5)
    asked = _Asked(tmp_path)
    await asked.ask(hello(_node(1, 5), SHIP))
    greeting = hello(_node(1, 5), SHIP)
    batch = Batch(Epoch(1), *(Seq(1), Seq(1), 0, 0, Seq(1), 0, 1, "raw", Seq(1), Seq(1)), b"x")
    for _ in range(300):
        message = dice.choice((greeting, Ping(Seq(1), Seq(1)), batch, MembersReport((1, 2, 3))))
        if isinstance(message, Hello):
            numbers: dict[str, Any] = {
                field: dice.choice((0, 1, 2, 2**31, 2**64 - 1))
                for field in ("epoch", "seq", "chain", "reign_node", "node_id", "wanted_epoch")
            }
            purpose = dice.choice((SHIP, FETCH, VOTE, HANDOFF, "x"))
            message = message._replace(purpose=purpose, **numbers)
        content = bytearray(encode(message))
        if dice.random() < 0.5:
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        first = (greeting,) if dice.random() < 0.5 else ()
        before = asked.witness.seen
        await asked.ask(*first, bytes(content))
        assert asked.witness.seen.fence.epoch >= before.fence.epoch
        assert asked.witness.seen.begun.epoch >= before.begun.epoch
        assert load_seen(tmp_path) == asked.witness.seen
    assert isinstance(await asked.vote(asked.witness.seen.fence.epoch + 1, 5), Welcome)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 2}'])
def test_a_file_that_cannot_be_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / WITNESS_FILE).write_text(content)
    with pytest.raises(FusejournalError, match=r"witness\.json: cannot be used.*its vote twice"):
        load_seen(tmp_path)


def test_what_it_has_seen_comes_back(tmp_path: Path) -> None:
    assert load_seen(tmp_path) == Seen()
    seen = Seen(_UUID, Reign(Epoch(3), 5), Reign(Epoch(2), 6), Seq(9), 2**64 - 1)
    seen.save(tmp_path)
    assert load_seen(tmp_path) == seen
    assert replace(seen, seq=Seq(10)) != seen
    assert parse_remote("10.0.0.1:7710")
