"""Members: which nodes count, wherever it is counted, and that a mirror which has lost what it had
acknowledged does not."""

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest
import trio

from fusejournal.address import node_name, parse_remote
from fusejournal.config import ReplicationConfig
from fusejournal.errors import FusejournalError, HandoffRefusedError, PromotionRefusedError
from fusejournal.replication import shipper as shipper_module
from fusejournal.replication.member_record import MEMBERS_FILE, MemberRecord
from fusejournal.replication.peers import PeerBook
from fusejournal.roles.hand_over import HandOver, HandOverSeams
from fusejournal.roles.promote import Promotion
from fusejournal.roles.take_over import TakeOver, TakeOverSeams
from fusejournal.types import Epoch, Reign, Seq
from fusejournal.wire.identity import load_or_make, node_id_of
from fusejournal.wire.members import Members, Rule
from tests.support.losses import crash_system
from tests.support.pairs import level, listens_at, running, until
from tests.support.patience import PATIENCE_SECONDS
from tests.support.volumes import OpenVolume, open_volume

pytestmark = pytest.mark.mount

NAMES = ("north", "east", "west", "south")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipper_module, "_REFUSED_SECONDS", 0.2)


class Nodes:
    """Paired nodes in *base*, the first of which is the primary, as many as a test has started."""

    def __init__(self, base: Path, nursery: trio.Nursery, stack: ExitStack) -> None:
        self.base = base
        self._nursery = nursery
        self._stack = stack
        self.sides: dict[str, OpenVolume] = {}
        self._ends: dict[str, tuple[trio.CancelScope, trio.Event]] = {}
        for name in NAMES:
            (base / name / "state").mkdir(parents=True)
        for name in NAMES:
            book = PeerBook(base / name / "state")
            for other in NAMES:
                if other != name:
                    book.pair(other, None, self._certificate(other))
            book.save()

    def _certificate(self, name: str) -> str:
        return load_or_make(self.base / name / "state" / "identity", node_name(name)).certificate

    def node_id(self, name: str) -> int:
        identity = load_or_make(self.base / name / "state" / "identity", node_name(name))
        return node_id_of(identity.fingerprint)

    async def start(
        self,
        name: str,
        *peers: str,
        mirrors: int = 1,
        on_timeout: Literal["degrade", "block"] = "block",
    ) -> OpenVolume:
        """Start node *name*, which ships to *peers* if it is the primary."""
        is_mirror = name != NAMES[0]
        stack = ExitStack()
        side = stack.enter_context(open_volume(self.base / name, mirror=is_mirror))
        addresses = {one: listens_at(self.sides[one]) for one in peers}
        config = ReplicationConfig(mirrors=mirrors, on_timeout=on_timeout, peers=addresses)
        side.replicate(config, "127.0.0.1:0", insecure=False)
        ended, scope = trio.Event(), trio.CancelScope()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with stack, scope:
                async with running(side):
                    task_status.started()
                    await trio.sleep_forever()
            ended.set()

        await self._nursery.start(run)
        self.sides[name], self._ends[name] = side, (scope, ended)
        for other in self.sides.values():
            if other is not side and other.watermarks is not None:
                other.replication.local.book.note_return(name, parse_remote(listens_at(side)))
                if is_mirror:
                    address = parse_remote(listens_at(other))
                    local = side.replication.local
                    local.book.note_return(other.directory.name, address)
        return side

    async def stop(self, name: str, *, orderly: bool = True) -> None:
        self.sides.pop(name).orderly = orderly
        scope, ended = self._ends.pop(name)
        scope.cancel()
        await ended.wait()

    def record(self, name: str) -> Members:
        current = self.sides[name].replication.local.members.current
        assert current is not None
        return current


@asynccontextmanager
async def nodes(base: Path) -> AsyncIterator[Nodes]:
    """Nodes without a running one."""
    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            known = Nodes(base, nursery, stack)
            yield known
            for name in list(known.sides):
                await known.stop(name)


def promotion(side: OpenVolume) -> Promotion:
    return Promotion("vol", side.volume, side.replication, side.receiver)


async def test_a_mirror_that_was_rolled_back_has_no_word(tmp_path: Path) -> None:
    """Its peers know what it had acknowledged: it counts nowhere before it has that again."""
    async with nodes(tmp_path) as cluster:
        for name in ("east", "west"):
            await cluster.start(name)
        north = await cluster.start("north", "east", "west")
        north.work(2)
        east, west = cluster.sides["east"], cluster.sides["west"]
        await until("both are level", lambda: level(north, east)() and level(north, west)())
        head_seq, east_id = north.volume.journal.head_seq, cluster.node_id("east")
        await until(
            "both know",
            lambda: all(
                (east_id, head_seq) in cluster.record(name).held for name in ("east", "west")
            ),
        )
        await cluster.stop("north", orderly=False)
        await cluster.stop("east", orderly=False)
        crash_system(tmp_path / "east" / "state", head_seq - 3)
        east = await cluster.start("east")
        assert east.volume.journal.head_seq == head_seq - 3
        with pytest.raises(PromotionRefusedError, match="1 of 3 nodes take nothing") as refused:
            await promotion(west).prepare(force=False)
        (answer,) = [one for one in (await promotion(west).plan()).peers if one.peer == "east"]
        assert answer.detail == "has lost entries that it had acknowledged", refused.value
        with pytest.raises(PromotionRefusedError, match=f"had acknowledged them up to {head_seq}"):
            await promotion(east).prepare(force=False)
        # Level again, it counts again.
        await cluster.start("north", "east", "west")
        north = cluster.sides["north"]
        await until("it is level", level(north, east))
        await until("it has told", lambda: cluster.record("west").version > 0)
        await cluster.stop("north", orderly=False)
        plan = await promotion(west).prepare(force=False)
        assert plan.words == 2


async def test_a_promotion_counts_by_what_the_primary_acknowledges(tmp_path: Path) -> None:
    """A mirror's own book and configuration may be older than its primary's, or edited."""
    async with nodes(tmp_path) as cluster:
        for name in ("east", "west", "south"):
            await cluster.start(name, mirrors=3)  # as was configured here
        north = await cluster.start("north", "east", "west", "south")
        north.work(1)
        await until("all know", lambda: _all_have(cluster, 4))
        rule = cluster.record("east").rule
        assert (rule.mirrors, rule.blocks, rule.tally(()).needed) == (1, True, 3)
        west = cluster.sides["west"]
        west.replication.local.book.remove("south")
        await cluster.stop("north", orderly=False)
        await cluster.stop("east")
        with pytest.raises(PromotionRefusedError, match="1 of 4 nodes take nothing"):
            await promotion(west).prepare(force=False)


def _all_have(cluster: Nodes, count: int) -> bool:
    records = [side.replication.local.members.current for side in cluster.sides.values()]
    return all(one is not None and len(one.rule.nodes) == count for one in records)


async def test_a_promotion_by_force_that_comes_to_nothing_leaves_the_record(tmp_path: Path) -> None:
    """It goes once the role has changed: a mirror without it would be promoted by its own rule."""
    async with nodes(tmp_path) as cluster:
        for name in ("east", "west"):
            await cluster.start(name)
        north = await cluster.start("north", "east", "west")
        north.work(1)
        await until("all know", lambda: _all_have(cluster, 3))
        east = cluster.sides["east"]
        await cluster.stop("north", orderly=False)
        await cluster.stop("west")
        plan = await promotion(east).prepare(force=True)
        assert not plan.is_covered
        assert cluster.record("east").rule.waits
        assert MemberRecord(tmp_path / "east" / "state").current is not None


async def test_nothing_is_acknowledged_while_the_members_change(tmp_path: Path) -> None:
    """Neither by a mirror that is new, nor without those that were waited for, before so many know
    of it that no promotion goes by the rule before."""
    async with nodes(tmp_path) as cluster:
        for name in ("east", "west"):
            await cluster.start(name)
        north = await cluster.start("north", "east", "west")
        north.work(1)
        await until("all know", lambda: _all_have(cluster, 3))
        before = cluster.record("north")
        for name in ("north", "east", "west"):
            await cluster.stop(name)
        south = await cluster.start("south")
        north = await cluster.start("north", "south")
        north.mkdir("new")
        seq = north.volume.journal.head_seq
        await until("the new mirror is level", level(north, south))
        quorum = north.replication.quorum
        await until("it has acknowledged", lambda: quorum.present_seq >= seq)
        assert quorum.is_held
        assert not quorum.has(seq)
        (line,) = [one.text for one in north.replication.degraded() if "who counts" in one.text]
        assert "east, west" in line
        assert "promote --force" in line
        joint = cluster.record("south")
        assert joint.before == before.rule
        # Once one of those that counted knows, no two of the three others do not.
        await cluster.stop("north", orderly=False)
        with pytest.raises(PromotionRefusedError, match="of 4 nodes"):
            await promotion(south).prepare(force=False)
        await cluster.start("east")
        north = await cluster.start("north", "east", "south")
        quorum = north.replication.quorum
        await until("it is not held any more", lambda: not quorum.is_held)
        await until("it is acknowledged", lambda: quorum.has(seq))
        assert cluster.record("north").before is None


async def test_a_primary_that_is_to_wait_for_none_tells_its_mirrors_first(tmp_path: Path) -> None:
    async with nodes(tmp_path) as cluster:
        await cluster.start("east")
        await cluster.start("west")
        north = await cluster.start("north", "east", "west")
        north.mkdir("old")
        for name in ("east", "west"):
            await until("it is level", level(north, cluster.sides[name]))
        await until("all know", lambda: _all_have(cluster, 3))
        for name in ("north", "east", "west"):
            await cluster.stop(name)
        north = await cluster.start("north", mirrors=0, on_timeout="degrade")
        north.mkdir("new")
        with trio.move_on_after(0.3) as waiting:
            await north.durability.wait(north.volume.journal.head_seq)
        assert waiting.cancelled_caught, "a mirror could be promoted by the votes of two"
        await cluster.stop("north")
        await cluster.start("east")
        north = await cluster.start("north", "east", mirrors=0, on_timeout="degrade")
        with trio.fail_after(PATIENCE_SECONDS):
            await north.durability.wait(north.volume.journal.head_seq)
        assert not cluster.record("north").rule.waits


def test_a_record_is_kept(tmp_path: Path) -> None:
    record = MemberRecord(tmp_path)
    assert record.current is None
    rule = Rule(1, True, (5, 7, 9))
    told = Members(Reign(Epoch(2), 7), 3, rule, Rule(2, True, (7, 9)), ((5, Seq(11)),))
    assert record.note(told)
    record.write(record.current)
    assert MemberRecord(tmp_path).current == told
    assert (tmp_path / MEMBERS_FILE).stat().st_mode & 0o777 == 0o600
    assert not record.note(told._replace(held=((5, Seq(4)), (9, Seq(12)))))
    assert record.current == told._replace(held=((5, Seq(11)), (9, Seq(12))))
    assert not record.note(told._replace(version=2)), "an older one"
    assert record.version_on_disk(Reign(Epoch(2), 7)) == 3
    assert record.version_on_disk(Reign(Epoch(3), 7)) == 0
    later = told._replace(reign=Reign(Epoch(3), 9), version=1, held=())
    record.note_newest([later, None])
    assert record.current == later, "what was held in another reign may be in no history any more"
    record.write(None)
    assert MemberRecord(tmp_path).current is None


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", '{"format": 2, "members": []}', '{"format": 1, "members": [1]}',
        '{"format": 1, "members": [-1, 0, 1]}', '{"format": 1}',
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / MEMBERS_FILE).write_text(content)
    with pytest.raises(FusejournalError, match=r"members\.json: cannot be used"):
        MemberRecord(tmp_path)


def test_a_mirror_that_stops_before_its_first_entry_starts_again(tmp_path: Path) -> None:
    with open_volume(tmp_path / "east", mirror=True) as mirror:
        mirror.opening.join_volume(mirror.volume.journal.uuid)
        mirror.make_checkpoint()
    with open_volume(tmp_path / "east", mirror=True) as mirror:
        assert not mirror.opening.is_uninitialized
        assert mirror.volume.journal.head_seq == 0


async def test_a_handoff_goes_by_who_counts(tmp_path: Path) -> None:
    """Neither what is configured nor who is shipped to decides, as for a promotion."""

    async def nothing(*_: object) -> None: ...

    def hand_over(side: OpenVolume, peer: str) -> HandOver:
        seams = HandOverSeams(nothing, nothing, nothing, lambda: None)
        return HandOver(side.volume, side.replication, peer, seams)

    def refusal(side: OpenVolume) -> str:
        try:
            hand_over(side, "east")
        except HandoffRefusedError as error:
            return str(error)
        return ""

    async with nodes(tmp_path) as cluster:
        others = NAMES[1:]
        for name in others:
            await cluster.start(name)
        north = await cluster.start("north", *others, mirrors=2)
        north.work(1)
        await until("all know", lambda: _all_have(cluster, 4))
        membership = north.replication.membership
        assert membership is not None
        has_record = membership.has_record
        await until("all have it", lambda: all(map(has_record, others)))
        hand_over(north, "east")
        record = cluster.record("north")
        await north.replication.local.members.change(record._replace(version=record.version + 1))
        # No await from here on: it was not told yet.
        with pytest.raises(HandoffRefusedError, match="peer east has not on its disk which nodes"):
            hand_over(north, "east")
        await until("it is told", lambda: has_record("east"))
        hand_over(north, "east")
        for name in ("west", "south"):
            await cluster.stop(name)
        await until("they are away", lambda: "2 of 4 nodes are there, and 3" in refusal(north))


async def test_a_handoff_offers_nothing_once_too_few_are_there(tmp_path: Path) -> None:
    """Those that go while the target comes level may have given another their votes."""

    async def nothing(*_: object) -> None: ...

    taken: list[Reign] = []
    async with nodes(tmp_path) as cluster:
        others = NAMES[1:]
        for name in others:
            await cluster.start(name)
        east = cluster.sides["east"]
        seams = TakeOverSeams(nothing, nothing, taken.append, lambda _: None)
        east.take_over = TakeOver(east.volume, east.replication, east.receiver, seams).serve
        north = await cluster.start("north", *others, mirrors=2)
        north.work(1)
        await until("all know", lambda: _all_have(cluster, 4))
        membership = north.replication.membership
        assert membership is not None
        has_record = membership.has_record
        await until("all have it", lambda: all(map(has_record, others)))
        records = {one.name: one for one in north.replication.records()}

        async def note(reign: Reign | None) -> None:
            if reign is not None:
                await cluster.stop("west")
                await cluster.stop("south")
                gone = [records["west"], records["south"]]
                await until("they are away", lambda: not any(one.is_connected for one in gone))

        handed = HandOver(
            north.volume,
            north.replication,
            "east",
            HandOverSeams(nothing, nothing, note, lambda: None),
        )
        with pytest.raises(HandoffRefusedError, match="2 of 4 nodes are there, and 3"):
            await handed.run(20)
        assert not taken
        assert north.create("taken again")
