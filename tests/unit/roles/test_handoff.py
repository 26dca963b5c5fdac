"""Handoffs: the table of their stages, and both sides of one over a real connection, without
mounts."""

import errno
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from fusejournal.errors import (
    HandoffRefusedError,
    HookFailedError,
    JournalFullError,
    PeerLostError,
    UnknownPeerError,
)
from fusejournal.replication.local_node import LocalNode
from fusejournal.replication.peers import Peer
from fusejournal.roles import hand_over as hand_over_module
from fusejournal.roles import handoff as handoff_module
from fusejournal.roles.hand_over import HandOver, HandOverSeams, ask_outcome
from fusejournal.roles.handoff import HANDOFF_TRANSITIONS, Move, Stage, move_by_answer
from fusejournal.roles.take_over import TakeOver, TakeOverSeams
from fusejournal.types import Epoch, Reign, Seq
from fusejournal.volume.volume import EHELD
from fusejournal.wire.frames import Hello, Message, Offer, Refusal, Welcome
from fusejournal.wire.identity import node_id_of
from fusejournal.wire.instances import Instance
from fusejournal.wire.session import HANDOFF, HandshakeState, RefusedError, hello, welcome
from fusejournal.wire.session_connection import SessionConnection
from fusejournal.wire.session_states import Side
from fusejournal.wire.transport import connect
from tests.support.pairs import level, mirror_and_primary, peer_status, until
from tests.support.volumes import OpenVolume

# -- the table -------------------------------------------------------------------------------------


def _tables() -> list[list[list[str]]]:
    """The rows of each table in the module's docstring, without the heads."""
    tables: list[list[list[str]]] = []
    for part in re.split(r"\n\n", handoff_module.__doc__ or ""):
        if part.startswith("="):
            rows = [re.split(r"\s{2,}", line.strip()) for line in part.split("\n")]
            tables.append([row for row in rows[3:-1] if len(row) > 1])
    return tables


def test_the_page_shows_the_table() -> None:
    stages, transitions = _tables()
    assert {(Stage(row[0]), row[1] == "yes", row[2] == "yes") for row in stages} == {
        (stage, stage.takes_changes, stage.may_be_followed)
        for stage in Stage
        if stage is not Stage.HANDED_OVER
    } | {(Stage.HANDED_OVER, False, True)}
    assert {(Stage(before), Move(step)): Stage(after) for before, step, after in transitions} == (
        HANDOFF_TRANSITIONS
    )


def test_no_step_lets_two_reign() -> None:
    """Once the target may reign, only its own word has changes taken here again; and as long as it
    may not, whatever breaks it off has."""
    for stage in Stage:
        steps = {step for before, step in HANDOFF_TRANSITIONS if before is stage}
        assert bool(steps) is not stage.is_over
        for step in steps:
            after = stage.after(step)
            if stage.may_be_followed and after.takes_changes:
                assert step is Move.DECLINED
            if not stage.may_be_followed and step is Move.BROKEN_OFF:
                assert after is Stage.UNDONE
            if after is Stage.HANDED_OVER:
                assert (stage.may_be_followed, step) == (True, Move.TAKEN)
    assert not {stage for stage in Stage if stage.takes_changes and stage.may_be_followed}


MINE = Reign(Epoch(3), 7)


@pytest.mark.parametrize(
    ("epoch", "node", "held", "role", "step"),
    [
        (2, 0, 2, "mirror", Move.DECLINED),
        (3, 7, 2, "mirror", Move.DECLINED),  # it has its own vote for that epoch
        (3, 7, 3, "primary", Move.TAKEN),
        (3, 8, 2, "mirror", Move.DECLINED),  # another has its vote for that epoch
        (4, 8, 2, "mirror", Move.DECLINED),
        (4, 8, 3, "mirror", Move.TAKEN),  # it reigned, and another has come after it
        (2, 7, 2, "primary", Move.TAKEN),
    ],
)
def test_what_an_answer_says(epoch: int, node: int, held: int, role: str, step: Move) -> None:
    answer = Welcome(1, b"", "east", Epoch(epoch), Seq(9), 1, Seq(9), node, Epoch(held), 7)
    assert move_by_answer(MINE, answer._replace(role=role)) is step


# -- the two sides ---------------------------------------------------------------------------------


@dataclass
class Sides:
    """A primary and a mirror, level, and what they were told."""

    primary: OpenVolume
    mirror: OpenVolume
    calls: list[str] = field(default_factory=list)
    notes: list[Reign | None] = field(default_factory=list)
    reigns: list[Reign] = field(default_factory=list)
    """Those that the mirror has begun."""
    fails: str = ""
    """The place where something fails: a hook's side, "note" or "commit"."""
    is_demoted: bool = False
    """True if a demotion begins while the primary's hook runs."""
    stalls: str = ""
    """The place where it goes no further, until it is cancelled: a hook's side."""

    def take_over(self) -> TakeOver:
        """The mirror's side."""

        async def undone() -> None:
            self.calls.append("mirror undone")

        def commit(reign: Reign) -> None:
            if self.fails == "commit":
                raise JournalFullError("volume.json: no space to write down the role: make space")
            self.reigns.append(reign)

        side = self.mirror
        return TakeOver(
            side.volume,
            side.replication,
            side.receiver,
            TakeOverSeams(self._before("mirror"), undone, commit, lambda _: None),
        )

    def hand_over(self, peer: str = "east") -> HandOver:
        """The primary's side."""

        async def undone() -> None:
            self.calls.append("primary undone")

        async def note(reign: Reign | None) -> None:
            if self.fails == "note" and reign is not None:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.notes.append(reign)

        seams = HandOverSeams(
            self._before("primary"), undone, note, lambda: self.calls.append("served")
        )
        return HandOver(self.primary.volume, self.primary.replication, peer, seams)

    def _before(self, side: str) -> Callable[[str, str], Awaitable[None]]:
        async def before(reign: str, peer: str) -> None:
            self.calls.append(f"{side} before {peer}")
            if self.fails == side:
                raise HookFailedError("/bin/false", "ended with status 1")
            if self.is_demoted and side == "primary":
                self.primary.volume.refuse_changes()
            if self.stalls == side:
                await trio.sleep_forever()

        return before

    @property
    def reign(self) -> Reign:
        """The one that the mirror is to begin."""
        return Reign(Epoch(2), node_id_of(self.mirror.replication.local.identity.fingerprint))


@asynccontextmanager
async def sides(tmp_path: Path) -> AsyncIterator[Sides]:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(5)
        await until("the mirror is level", level(primary, mirror))
        await until("it ships", lambda: peer_status(primary).state == "streaming")
        found = Sides(primary, mirror)
        mirror.take_over = found.take_over().serve
        yield found


@pytest.mark.mount
async def test_it_is_handed_over(tmp_path: Path) -> None:
    async with sides(tmp_path) as both:
        primary, mirror = both.primary, both.mirror
        primary.work(2, 5)
        work = both.hand_over()
        assert await work.run(10) == both.reign
        assert work.stage is Stage.HANDED_OVER
        assert both.notes == [both.reign]
        assert both.reigns == [both.reign]
        name = primary.replication.local.name
        assert both.calls == [f"mirror before {name}", "primary before east"]
        assert mirror.volume.journal.head == primary.volume.journal.head
        assert mirror.volume.catalog.applied_seq == primary.volume.journal.head_seq
        for side in (primary, mirror):
            assert side.opening.page.fence == both.reign
        assert primary.volume.write_errno == EHELD  # the node refuses, and ends
        with pytest.raises(OSError, match="516"):
            primary.create("late")
        # Who asks once more hears the same.
        local, me = primary.replication.local, primary.replication.me()
        assert await ask_outcome(local, work.peer, me, both.reign) is Move.TAKEN
        with pytest.raises(HandoffRefusedError, match="takes no changes now"):
            both.hand_over()
        assert primary.volume.failure is None


@pytest.mark.mount
@pytest.mark.parametrize(
    ("fails", "words"),
    [
        ("mirror", "hook '/bin/false'"),
        ("primary", "hook '/bin/false'"),
        ("note", "No space left"),
        ("commit", "no space to write down the role"),
    ],
)
async def test_what_fails_leaves_all_as_it_was(tmp_path: Path, fails: str, words: str) -> None:
    async with sides(tmp_path) as both:
        primary, mirror = both.primary, both.mirror
        both.fails = fails
        error = HookFailedError if fails == "primary" else HandoffRefusedError
        with pytest.raises(error, match=words):
            await both.hand_over().run(10)
        assert "primary undone" in both.calls
        await until("the mirror hears", lambda: "mirror undone" in both.calls)
        assert both.calls.count("served") == 1
        assert both.notes == ([both.reign, None] if fails == "commit" else [None])
        assert primary.create("after")
        await until("the mirror is level", level(primary, mirror))
        await until("it ships", lambda: peer_status(primary).state == "streaming")
        both.fails = ""
        assert await both.hand_over().run(10) == both.reign


@pytest.mark.mount
async def test_a_demotion_that_has_begun_is_not_passed_by(tmp_path: Path) -> None:
    """It may have changes taken again, in the midst of what holds them."""
    async with sides(tmp_path) as both:
        both.is_demoted = True
        with pytest.raises(HandoffRefusedError, match="takes no changes now"):
            await both.hand_over().run(10)
        assert both.primary.volume.write_errno == errno.EROFS
        assert both.reigns == []


@pytest.mark.mount
@pytest.mark.parametrize("stalls", ["mirror", "primary"])
@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_it_is_undone_in_time(tmp_path: Path, stalls: str, is_cancelled: bool) -> None:
    async with sides(tmp_path) as both:
        both.stalls = stalls
        work = both.hand_over()
        words = "taken back" if is_cancelled else "not level after"
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                await until("it stalls", lambda: bool(both.calls))
                work.cancel()

            if is_cancelled:
                nursery.start_soon(cancel)
            with pytest.raises(HandoffRefusedError, match=words):
                await work.run(10 if is_cancelled else 0.2)
        assert both.primary.create("after")
        # What still goes on there ends when it is asked again.
        both.stalls = ""
        await until("it ships", lambda: peer_status(both.primary).state == "streaming")
        assert await both.hand_over().run(10) == both.reign


class Deaf(SessionConnection):
    """A session of which the second message is lost."""

    def __init__(self, session: SessionConnection) -> None:
        super().__init__(session.connection, Side.LISTENER)
        self.machine = session.machine
        self._sent = 0

    async def send(self, message: Message) -> None:
        self._sent += 1
        if self._sent > 1:
            raise PeerLostError(self.where, "the connection was cut")
        await super().send(message)


@pytest.mark.mount
@pytest.mark.parametrize("is_taken", [False, True])
async def test_an_answer_that_is_lost_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_taken: bool
) -> None:
    """Changes are held until it comes: the target reigns, or never will."""
    async with sides(tmp_path) as both:
        work, serve = both.hand_over(), both.mirror.take_over
        assert serve is not None
        asked = list[Move]()

        async def ask(local: LocalNode, peer: Peer, me: HandshakeState, offered: Reign) -> Move:
            assert both.primary.volume.write_errno == EHELD
            away = len(asked) < 2
            asked.append(Move.BROKEN_OFF if away else await ask_outcome(local, peer, me, offered))
            return asked[-1]

        async def lose(session: SessionConnection, greeting: Hello) -> None:
            """Be gone after the offer: before it is read, or with the answer on the way."""
            if not greeting.wanted_epoch:
                await serve(session, greeting)
            elif is_taken:
                await serve(Deaf(session), greeting)
            else:
                me = both.mirror.replication.me()
                await session.send(welcome(me, greeting, is_mirror=True))
                await session.receive()

        monkeypatch.setattr(hand_over_module, "ask_outcome", ask)
        both.mirror.take_over = lose
        if is_taken:
            assert await work.run(10) == both.reign
            assert both.reigns == [both.reign]
            assert both.primary.volume.write_errno == EHELD
        else:
            with pytest.raises(HandoffRefusedError, match="the other side closed the connection"):
                await work.run(10)
            assert both.primary.create("after")
        assert asked[:2] == [Move.BROKEN_OFF] * 2
        assert len(asked) == 3


@pytest.mark.mount
async def test_who_cannot_take_over_is_named(tmp_path: Path) -> None:
    async with sides(tmp_path) as both:
        primary = both.primary
        local = primary.replication.local
        with pytest.raises(UnknownPeerError, match=r"no peer 'west'.*east"):
            both.hand_over("west")
        local.book.add("west", None)
        with pytest.raises(HandoffRefusedError, match=r"only a direct mirror .* one of east"):
            both.hand_over("west")
        record = primary.replication.records()[0]
        facts = record.facts
        record.facts = facts._replace(protocol_version=2)
        with pytest.raises(HandoffRefusedError, match=r"older program .* upgrade it first"):
            both.hand_over()
        record.facts = facts
        local.book.pause("east")
        with pytest.raises(HandoffRefusedError, match="'fusejournal peer resume'"):
            both.hand_over()
        primary.replication._peers_changed()
        await until("it is paused", lambda: not record.is_connected)
        local.book.resume("east")
        with pytest.raises(HandoffRefusedError, match="is away"):
            both.hand_over()
        primary.volume.fail("a disk")
        primary.replication._peers_changed()
        await until("it ships", lambda: record.is_connected)
        with pytest.raises(HandoffRefusedError, match="this volume is read-only"):
            both.hand_over()


@pytest.mark.mount
async def test_a_target_takes_only_what_it_is_level_with(tmp_path: Path) -> None:
    """And nothing where it has given another its vote."""
    async with sides(tmp_path) as both:
        receiver, head = both.mirror.receiver, both.mirror.volume.journal.head
        instance = Instance("primary", 0, 0, 0, "")
        begun: list[int] = []

        async def take(seq: int, chain: int) -> None:
            offer = Offer(*both.reign, Seq(seq), chain)
            await receiver.take_over(offer, "primary", instance, lambda: begun.append(seq))

        for seq, chain in ((head.seq + 1, head.chain), (head.seq, head.chain + 1)):
            with pytest.raises(RefusedError, match=f"entries up to {head.seq} are on the disk"):
                await take(seq, chain)
        await receiver.give_vote(Reign(Epoch(2), 0xBEEF), "north")
        with pytest.raises(RefusedError, match="two nodes have begun epoch 2"):
            await take(head.seq, head.chain)
        assert begun == []


@pytest.mark.mount
async def test_a_target_refuses_who_does_not_ship_to_it(tmp_path: Path) -> None:
    async with sides(tmp_path) as both:
        both.stalls = "mirror"
        local, replication = both.primary.replication.local, both.primary.replication
        address = local.book.get("east").address
        assert address is not None

        async def say(node: str, wanted: int) -> Message | None:
            me = replication.me()._replace(node=node)
            connection = await connect(
                address, local.identity, None, insecure=True, timeout_seconds=5
            )
            async with connection:
                await connection.send(hello(me, HANDOFF, Epoch(wanted)))
                return await connection.receive()

        stranger = await say("north", 2)
        assert isinstance(stranger, Refusal)
        assert "north does not ship to" in stranger.reason
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say, local.name, 2)
            await until("it is asked", lambda: bool(both.calls))
            stranger = await say("north", 2)
            assert isinstance(stranger, Refusal)
            assert "hands over to" in stranger.reason
            # A question of the primary's ends it.
            assert isinstance(await say(local.name, 0), Welcome)
        assert both.calls == [f"mirror before {local.name}", "mirror undone"]
        both.mirror.volume.fail("a disk")
        failed = await say(local.name, 2)
        assert isinstance(failed, Refusal)
        assert "has failed: a disk" in failed.reason
