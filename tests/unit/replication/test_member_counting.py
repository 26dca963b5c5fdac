"""Counting, as one primary keeps account of its members: what it writes, tells and lets be
acknowledged, by what its peers say."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from fusejournal.address import node_name, parse_remote
from fusejournal.config import ReplicationConfig
from fusejournal.errors import FusejournalError
from fusejournal.node.assemble import assemble_local
from fusejournal.replication.local_node import LocalNode
from fusejournal.replication.member_record import MemberRecord
from fusejournal.replication.membership import Membership
from fusejournal.replication.peers import PeerBook
from fusejournal.replication.quorum import Quorum
from fusejournal.types import Epoch, Reign, Seq
from fusejournal.wire.identity import load_or_make, node_id_of
from fusejournal.wire.members import Members, Rule
from fusejournal.wire.session import RefusedError
from tests.support.losses import failing_at
from tests.support.volumes import open_volume

pytestmark = pytest.mark.mount

BLOCK = ReplicationConfig(mirrors=1, on_timeout="block")


class Primary:
    """The primary in *base*, which no connection leaves: a test says what its peers acknowledge."""

    def __init__(self, base: Path, local: LocalNode) -> None:
        self._base = base
        self.local = local
        self.head_seq = Seq(10)
        self.quorum = Quorum(local.config, lambda: self.head_seq, lambda: None)
        self.membership = Membership(local, self.quorum, lambda: self.head_seq)

    def node_id(self, peer: str) -> int:
        return node_id_of(load_or_make(self._base / peer, node_name(peer)).fingerprint)

    async def begin(self, epoch: int = 1) -> None:
        await self.membership.begin(Reign(Epoch(epoch), self.local.node_id))

    def acked(self, peer: str, seq: int, version: int | None) -> None:
        self.membership.acked(peer, Seq(seq), version)
        self.quorum.acked(peer, Seq(seq))

    @property
    def record(self) -> Members:
        current = self.local.members.current
        assert current is not None
        return current

    def rule(self, *peers: str, mirrors: int = 1) -> Rule:
        nodes = sorted([self.local.node_id, *map(self.node_id, peers)])
        return Rule(mirrors, True, tuple(nodes))


@contextmanager
def primary_of(
    base: Path, *peers: str, config: ReplicationConfig = BLOCK, unpaired: str | None = None
) -> Iterator[Primary]:
    """A primary whose book has *peers* with certificates, and *unpaired* without one."""
    with open_volume(base / "north") as north:
        state_dir = base / "north" / "state"
        book = PeerBook(state_dir)
        for number, name in enumerate(peers):
            certificate = load_or_make(base / name, node_name(name)).certificate
            book.pair(name, parse_remote(f"127.0.0.1:{7001 + number}"), certificate)
        if unpaired is not None:
            book.add(unpaired, parse_remote("127.0.0.1:7999"))
        book.save()
        page = north.opening.page
        local = assemble_local(north.state, config, page)
        yield Primary(base, local)


async def test_a_primary_that_waits_for_none_tells_that_too(tmp_path: Path) -> None:
    """Its mirrors may have the record of a reign before, by which the votes of few are enough; and
    one without any would go by its own book."""
    with primary_of(tmp_path, config=ReplicationConfig()) as north:
        await north.begin()
        assert north.local.members.current is None, "no node is shipped to"
    with primary_of(tmp_path, "east", config=ReplicationConfig()) as north:
        for epoch in (1, 1024):
            await north.begin(epoch)
            assert (north.record.reign.epoch, north.record.rule.waits) == (epoch, False)
            assert len(north.record.rule.nodes) == 2
            assert MemberRecord(north.local.state_dir).current == north.record
            assert not north.quorum.is_held


async def test_a_mirror_counts_once_it_has_the_first_record(tmp_path: Path) -> None:
    """Without one it goes by no rule, and with one of before by another: a promotion would not meet
    what it has acknowledged."""
    with primary_of(tmp_path, "east", "west") as north:
        await north.begin()
        north.acked("east", 10, 0)
        assert north.quorum.seq == 0
        assert "east cannot write down which nodes count" in str(north.membership.trouble())
        north.acked("east", 10, north.record.version)
        assert north.quorum.seq == 10
        assert north.membership.trouble() is None


async def test_a_mirror_that_can_have_no_record_counts_without(tmp_path: Path) -> None:
    """It is of an older version, and is promoted by none."""
    with primary_of(tmp_path, "east", "west") as north:
        await north.begin()
        north.acked("east", 10, None)
        assert north.quorum.seq == 10
        north.acked("east", 10, 0)  # upgraded
        assert north.quorum.seq == 0


async def test_a_first_record_that_cannot_be_written_has_nothing_acknowledged(
    tmp_path: Path,
) -> None:
    with primary_of(tmp_path, "east", "west") as north:
        with failing_at("members", 1, OSError(28, "No space left on device")):
            await north.begin()
        north.acked("east", 10, 0)
        assert north.quorum.is_held
        assert "No space left" in str(north.membership.trouble())
        await north.begin()
        assert not north.quorum.is_held


async def test_a_primary_whose_only_mirror_is_gone_goes_on_without(tmp_path: Path) -> None:
    """By the rule before it could be promoted only where a program turns this one off, with which
    goes what waited for no mirror."""
    with primary_of(tmp_path, "east", config=ReplicationConfig()) as north:
        reign = Reign(Epoch(1), north.local.node_id)
        await north.local.members.change(Members(reign, 1, north.rule("east")))
        await north.begin()
        assert not north.quorum.is_held
        assert not north.record.rule.waits


async def test_a_primary_begins_to_wait_once_its_mirror_knows(tmp_path: Path) -> None:
    """A program that turns it off would let a mirror be promoted by the rule before, which waits
    for none: without the one that has acknowledged."""
    with primary_of(tmp_path, "east", "west") as north:
        reign = Reign(Epoch(1), north.local.node_id)
        before = north.rule("east", mirrors=0)
        await north.local.members.change(Members(reign, 1, before))
        await north.begin()
        assert north.record.before == before
        north.acked("west", 10, north.record.version)
        await north.begin()
        assert north.quorum.is_held
        north.acked("east", 10, north.record.version)
        await north.begin()
        assert not north.quorum.is_held
        assert north.record.rules == (north.rule("east", "west"),)


@pytest.mark.parametrize("version", [1 << 62, 1 << 63, (1 << 64) - 1, 5000])
async def test_a_version_that_was_never_told_ends_that_peers_session(
    tmp_path: Path, version: int
) -> None:
    """It would be counted on from there, to where no record can be."""
    with primary_of(tmp_path, "east", "west") as north:
        await north.begin()
        before = north.record
        with pytest.raises(RefusedError, match="peer east acknowledges version"):
            north.acked("east", 5, version)
        await north.begin()
        assert north.record == before
        # A record that was put back from an older copy goes on beyond what peers have.
        north.acked("east", 5, 7)
        await north.begin()
        assert north.record.version == 8


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    record = MemberRecord(tmp_path)
    good = Members(Reign(Epoch(1), 7), 1, Rule(1, True, (5, 7)))
    record.write(good)
    with pytest.raises(FusejournalError, match="cannot be saved: members cannot be"):
        record.write(good._replace(version=(1 << 62) + 1))
    assert MemberRecord(tmp_path).current == good


async def test_a_record_is_written_out_once(tmp_path: Path) -> None:
    """Each batch that is sent asks for it."""
    record = MemberRecord(tmp_path)
    assert record.numbers == ()
    told = Members(Reign(Epoch(1), 7), 1, Rule(1, True, (5, 7)))
    record.note(told)
    numbers = record.numbers
    assert numbers == told.to_wire()
    assert record.numbers is numbers
    record.note_held({5: Seq(3)})
    assert record.numbers == told.holding({5: Seq(3)}).to_wire()
    record.note(told._replace(version=2))
    assert record.numbers == told._replace(version=2).to_wire()
    await record.change(None)
    assert record.numbers == ()


async def test_a_peer_that_is_too_old_does_not_have_the_record(tmp_path: Path) -> None:
    """It could be promoted by the rule before."""
    with primary_of(tmp_path, "east", "west", "south") as north:
        await north.begin()
        north.local.book.remove("south")
        await north.begin()
        assert north.record.before == north.rule("east", "west", "south")
        for name in ("east", "west"):
            north.acked(name, 10, None)
        await north.begin()
        assert north.record.before is not None
        assert north.quorum.is_held
        assert "upgrade" in str(north.membership.trouble())
        for name in ("east", "west"):
            north.acked(name, 10, north.record.version)
        await north.begin()
        assert north.record.before is None
        assert not north.quorum.is_held


async def test_a_primary_that_starts_while_members_change_waits_for_all_that_it_holds(
    tmp_path: Path,
) -> None:
    """The rule began to change in another run, and up to where is not written down."""
    with primary_of(tmp_path, "east", "west", "south") as north:
        record = north.local.members
        before = north.rule("east")
        reign = Reign(Epoch(1), north.local.node_id)
        joint = Members(reign, 2, north.rule("east", "west", "south"), before)
        await record.change(joint)
        await north.begin()
        north.acked("east", 0, 2)
        await north.membership.begin(reign)
        assert north.record.before == before, "no mirror has what was acknowledged by that"
        north.acked("west", 10, 2)
        await north.begin()
        assert north.record.before is None


async def test_a_peer_that_is_not_paired_yet_changes_nothing(tmp_path: Path) -> None:
    """It cannot be shipped to; the others count as before."""
    with primary_of(tmp_path, "east", "west", unpaired="south") as north:
        await north.begin()
        assert north.record.rule == north.rule("east", "west")
        north.local.book.remove("west")
        north.membership.look_again()
        assert north.quorum.is_held, "two of the three may promote another"


async def test_a_peer_that_is_no_member_yet_counts_for_no_acknowledgement(tmp_path: Path) -> None:
    with primary_of(tmp_path, "east", "west", "south") as north:
        reign = Reign(Epoch(1), north.local.node_id)
        before, rule = north.rule("east"), north.rule("east", "west")
        await north.local.members.change(Members(reign, 2, rule, before))
        await north.begin()
        north.acked("east", 0, 2)
        north.acked("south", 10, 2)
        await north.begin()
        assert north.record.before == before, "a promotion by the votes of east and west loses it"
        north.acked("east", 10, 2)
        await north.begin()
        assert north.record.rule == rule._replace(nodes=north.rule("east", "west", "south").nodes)
        assert north.record.before == rule


async def test_what_nodes_hold_that_do_not_count_any_more_is_forgotten(tmp_path: Path) -> None:
    """Else a record with those of many changes is one that cannot be."""
    record = MemberRecord(tmp_path)
    held = tuple((one, Seq(9)) for one in range(5, 205))
    known = Members(Reign(Epoch(1), 7), 1, Rule(1, True, (5, 7)), None, held[:130])
    record.note(known)
    record.note_held(dict(held))
    await record.change(known._replace(version=2))
    current = MemberRecord(tmp_path).current
    assert current is not None
    assert current.held == ((5, Seq(9)), (7, Seq(9)))
    assert record.current == current


async def test_a_record_that_is_saved_now_and_then_takes_none_back(tmp_path: Path) -> None:
    record = MemberRecord(tmp_path)
    first = Members(Reign(Epoch(1), 7), 1, Rule(1, True, (5, 7)))
    second = first._replace(version=2, rule=Rule(1, True, (5, 7, 9)))
    await record.change(first)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(record.change, second)
        await trio.testing.wait_all_tasks_blocked(0.0)
        record.note_held({5: Seq(3)})
        nursery.start_soon(record.save)
    assert record.current is not None
    assert record.current.version == 2
    assert record.current.held == ((5, Seq(3)),), "heard while it was written"
    record.write(first._replace(held=((5, Seq(4)),)))  # as by a task that began before
    current = MemberRecord(tmp_path).current
    assert current == second._replace(held=((5, Seq(4)),))
