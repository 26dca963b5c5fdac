"""Words: what a mirror that has given one takes and tells, and when a primary may begin an
epoch."""

import errno
import socket
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import trio
import trio.testing

from fusejournal.address import parse_remote
from fusejournal.config import ReplicationConfig
from fusejournal.errors import ConfigError, HookFailedError, PromotionRefusedError
from fusejournal.journal.frame_range import FrameRangeReader
from fusejournal.node import start
from fusejournal.operations import Mkdir
from fusejournal.replication import shipper as shipper_module
from fusejournal.replication.canvass import ask_positions, ask_votes, has_votes
from fusejournal.replication.fetch_lost import FetchedEntries
from fusejournal.replication.inquiry import ask_peers
from fusejournal.roles.plan import PromotionPlan
from fusejournal.roles.promote import Promotion
from fusejournal.roles.role import Role
from fusejournal.types import EPOCH_MAX, ROOT_FID, Epoch, Reign, Seq, reign_of_text
from fusejournal.wire.batches import RAW, batch_of, frame_range_of
from fusejournal.wire.identity import node_id_of
from fusejournal.wire.members import Members, Rule
from fusejournal.wire.session import RefusedError
from tests.support.losses import begin_another_boot
from tests.support.pairs import (
    level,
    listens_at,
    mirror_and_primary,
    mirror_status,
    peer_status,
    running,
    until,
)
from tests.support.volumes import SOMEBODY, OpenVolume, Quiet, applied, open_volume

pytestmark = pytest.mark.mount


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipper_module, "_REFUSED_SECONDS", 0.2)


def node_id(side: OpenVolume) -> int:
    return node_id_of(side.replication.local.identity.fingerprint)


async def test_who_has_given_a_word_takes_nothing_of_a_lower_reign(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(2)
        await until("the mirror is level", level(primary, mirror))
        reign = Reign(Epoch(2), 0xFEED)
        await mirror.receiver.give_vote(reign, "north")
        assert mirror.opening.page.fence == reign
        assert mirror.receiver.session_peer is None
        held = mirror.volume.journal.head_seq
        primary.work(2, 2)
        await until("it is refused", lambda: peer_status(primary).state == "refused")
        errors = peer_status(primary).errors
        await until("it is tried again", lambda: peer_status(primary).errors > errors + 2)
        said = [line for line in caplog.messages if "nothing there proves it" in line]
        assert len(said) == 1, said
        advice = str(peer_status(primary).advice)
        assert f'overrule = "{reign}"' in advice
        assert "stop this one" not in advice, "no other has become primary"
        assert mirror.volume.journal.head_seq == held
        assert primary.volume.write_errno is None, "what has not begun binds no primary"
        await mirror.receiver.give_vote(reign, "north")  # once more
        with pytest.raises(RefusedError, match="two nodes have begun epoch 2"):
            await mirror.receiver.give_vote(Reign(Epoch(2), 0xBEEF), "south")


async def test_a_primary_asks_for_words_and_gives_none(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path, mirrors=1, on_timeout="block") as (primary, mirror):
        primary.work(2)
        await until("the mirror is level", level(primary, mirror))
        local, replication = primary.replication.local, primary.replication
        (found,) = await ask_positions(local, replication.me())
        assert found.welcome is not None
        assert (found.welcome.role, found.welcome.seq) == ("mirror", mirror.volume.journal.head_seq)
        await until("it has acknowledged", lambda: local.book.get("east").acked_seq > 0)
        reign, lines = Reign(Epoch(2), node_id(primary)), list[str]()

        async def may_begin(*heard: str, has_lost: bool = False) -> bool:
            return await has_votes(
                local, replication.me(), reign, heard=heard, has_lost=has_lost, report=lines.append
            )

        assert await may_begin("east")
        assert await may_begin("east", has_lost=True)
        assert not await may_begin()  # it is not known what that holds
        mine = replication.me()
        behind = mine._replace(position=mine.position._replace(seq=Seq(mine.position.seq - 1)))
        assert not await has_votes(
            local, behind, reign, heard=["east"], has_lost=False, report=lines.append
        ), "it holds more than when it was asked"
        assert "reign 2/" in lines[0]
        assert mirror.opening.page.fence == reign
        local.book.note_acked("east", Seq(0), Seq(0))  # as the book was before it was saved again
        assert not await may_begin()
        (refused,) = await ask_votes(local, replication.me(), Reign(Epoch(1), node_id(primary)))
        assert refused.is_refusal


async def test_a_peer_that_claims_what_cannot_be_stops_no_promotion(tmp_path: Path) -> None:
    """An epoch that no reign can follow, or another volume, is that peer's error alone."""
    with (
        open_volume(tmp_path / "mirror", mirror=True, uuid=uuid4()) as mirror,
        open_volume(tmp_path / "high", mirror=True, uuid=mirror.volume.journal.uuid) as high,
        open_volume(tmp_path / "other", mirror=True, uuid=uuid4()) as other,
    ):
        high.opening.page.write_fence(Reign(Epoch(EPOCH_MAX), 7))
        for side in (mirror, high, other):
            side.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror, high, other):
            local, me = mirror.replication.local, mirror.replication.me()
            local.book.add("high", parse_remote(listens_at(high)), standby=True)
            local.book.add("other", parse_remote(listens_at(other)), standby=True)
            reign = Reign(Epoch(2), node_id(mirror))
            for answers in (await ask_positions(local, me), await ask_votes(local, me, reign)):
                one, two = answers
                assert one.welcome is None
                assert two.welcome is None
            assert "of which there cannot be so many" in (await ask_positions(local, me))[0].error
            promotion = Promotion("vol", mirror.volume, mirror.replication, mirror.receiver)
            plan = await promotion.prepare(force=True)
            assert [peer.counts for peer in plan.peers] == [False, False]
            high.opening.page.write_fence(Reign(Epoch(EPOCH_MAX + 1), 7))
            assert (await promotion.plan()).peers[0].role is None


async def test_a_peer_that_was_silent_is_not_waited_for_as_long_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """NFS clients wait for a promotion, most often beside a primary that is off."""
    with (
        open_volume(tmp_path / "mirror", mirror=True, uuid=uuid4()) as mirror,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        local, me = mirror.replication.local, mirror.replication.me()
        local.book.add("silent", parse_remote(f"127.0.0.1:{silent.getsockname()[1]}"), standby=True)
        reign, times = Reign(Epoch(2), node_id(mirror)), []
        for before in ((), ("silent",), ("another",)):
            began = trio.current_time()
            (answer,) = await ask_votes(local, me, reign, before)
            times.append(round(trio.current_time() - began, 3))
            assert answer.welcome is None
        assert times == [5.0, 1.0, 5.0]


async def test_a_machine_that_is_off_is_not_waited_for_as_long_as_an_answer(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with (
        open_volume(tmp_path / "mirror", mirror=True, uuid=uuid4()) as mirror,
        socket.create_server(("127.0.0.1", 0), backlog=0) as off,
        socket.create_connection(off.getsockname()),  # the kernel answers no other now
    ):
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        local, me = mirror.replication.local, mirror.replication.me()
        local.book.add("off", parse_remote(f"127.0.0.1:{off.getsockname()[1]}"), standby=True)
        began = trio.current_time()
        (answer,) = await ask_positions(local, me)
        assert answer.welcome is None
        assert answer.error.endswith("no answer within 2 s")
        assert round(trio.current_time() - began, 3) == 2.0


async def test_a_promotion_that_is_prepared_waits_until_all_is_applied(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        promotion = Promotion("vol", mirror.volume, mirror.replication, mirror.receiver)
        mirror.replication.local.book.add("west", None)
        with pytest.raises(PromotionRefusedError, match="not promoted: nothing says that"):
            await promotion.prepare(force=False)
        assert mirror.opening.page.fence.epoch < 2
        asked: list[str | None] = []

        async def fence(plan: PromotionPlan) -> None:
            asked.append(plan.primary)
            raise HookFailedError("off", "it is on")

        with pytest.raises(PromotionRefusedError, match="was told by a primary who counts"):
            await Promotion(
                *("vol", mirror.volume, mirror.replication, mirror.receiver), fence
            ).prepare(force=False)
        rule = Rule(0, False, tuple(sorted(map(node_id, (primary, mirror)))))
        told = Members(primary.replication.me().reign, 1, rule)
        mirror.replication.local.members.note(told)
        fencing = Promotion("vol", mirror.volume, mirror.replication, mirror.receiver, fence)
        with pytest.raises(HookFailedError, match="it is on"):
            await fencing.prepare(force=False)
        assert len(asked) == 1
        assert mirror.opening.page.fence.epoch < 2, "nobody has given a vote"
        plan = await promotion.prepare(force=True)
        assert plan.reign == str(Reign(Epoch(1024), node_id(mirror)))
        await promotion.apply_all()
        assert plan.peers[0].detail == "it is not known where it listens"
        reign = reign_of_text(plan.reign)
        promotion.check_reign(reign)
        await mirror.receiver.give_vote(Reign(Epoch(1025), 0xBEEF), "south")
        with pytest.raises(PromotionRefusedError, match="was asked for meanwhile"):
            promotion.check_reign(reign)
        mirror.volume.fail("its disk failed")
        with pytest.raises(PromotionRefusedError, match="its disk failed"):
            await promotion.prepare(force=True)


@pytest.mark.parametrize("held", [True, False])
async def test_the_last_entry_is_decided_before_the_reign_begins(
    tmp_path: Path, held: bool
) -> None:
    """A mirror's last entry may be one whose VOID is lost: a mirror that is promoted looks."""
    with open_volume(tmp_path / "primary") as primary:
        primary.mkdir("there")
        operation = Mkdir(
            primary.volume.new_fid(),
            ROOT_FID,
            b"new" if held else b"there",
            0o755,
            0,
            0,
            None,
            None,
        )
        journal = primary.volume.journal
        before = applied(primary)
        seq = journal.append(
            operation, SOMEBODY, primary.volume.entry_time(), primary.volume.catalog.path
        )
        assert seq == before + 1
        journal.sync()
        mirror_dir = tmp_path / "mirror"
        with open_volume(mirror_dir, mirror=True, uuid=journal.uuid) as mirror:
            receive(mirror, primary, seq)
            assert mirror.watermarks is not None
            mirror.watermarks.write_committed(before)
            mirror.watermarks.write_durable(before)
            mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
            async with running(mirror):
                await until("it is applied", lambda: applied(mirror) == before)
                assert mirror.replication.left_to_apply == 0
        primary.orderly = False
    with open_volume(mirror_dir) as promoted:
        names = {path.name for path in promoted.backing.iterdir() if path.name[0] != "."}
        assert names == ({"there", "new"} if held else {"there"})
        entries = list(promoted.volume.journal.reader.read(seq, Seq(seq + 2)))
        assert entries[0].operation == operation
        if not held:
            assert entries[1].operation.kind.name == "VOID"
            assert getattr(entries[1].operation, "errno", None) == errno.EEXIST
        assert promoted.create("after")


def receive(mirror: OpenVolume, source: OpenVolume, last_seq: Seq) -> None:
    """*mirror* has got the entries of *source* up to *last_seq*."""
    journal = source.volume.journal
    reader = FrameRangeReader(journal.directory, journal.uuid)
    reader.seek(Seq(0))
    while (frames := reader.next(journal.end, last_seq, 1 << 20)) is not None:
        mirror.volume.journal.receive(frames)
    reader.close()
    mirror.volume.journal.sync()
    assert mirror.watermarks is not None
    mirror.watermarks.write_committed(last_seq)
    mirror.watermarks.write_durable(last_seq)


async def test_a_mirror_tells_of_the_epoch_that_it_holds(tmp_path: Path) -> None:
    """Applying may be behind: a node with more entries of a lower epoch would be promoted by its
    vote, and what it has acknowledged in the higher be lost."""
    with open_volume(tmp_path / "primary") as primary:
        primary.work(1)
    begin_another_boot(tmp_path / "primary" / "state")
    with open_volume(tmp_path / "primary") as primary:
        journal = primary.volume.journal
        assert journal.epoch == 2
        journal.sync()
        reader = FrameRangeReader(journal.directory, journal.uuid)
        with open_volume(tmp_path / "mirror", mirror=True, uuid=journal.uuid) as mirror:
            mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
            reader.seek(Seq(0))
            while (frames := reader.next(journal.end, journal.head_seq, 1 << 20)) is not None:
                batch = batch_of(frames, RAW, frames.content, Epoch(2), Seq(0), Seq(0))
                mirror.volume.journal.receive(frame_range_of(batch))
            assert applied(mirror) == 0
            assert mirror.replication.me().position == journal.head
        reader.close()


async def test_a_mirror_that_is_behind_has_no_other_part_from_it(tmp_path: Path) -> None:
    """One that was a primary, and went back to what it had in common, ships on to mirrors that have
    more of the same history: they would throw that away."""
    with open_volume(tmp_path / "primary") as primary:
        primary.work(2)
        primary.volume.journal.sync()
        uuid, head_seq = primary.volume.journal.uuid, primary.volume.journal.head_seq
        with (
            open_volume(tmp_path / "ahead", mirror=True, uuid=uuid) as ahead,
            open_volume(tmp_path / "behind", mirror=True, uuid=uuid) as behind,
        ):
            receive(ahead, primary, head_seq)
            receive(behind, primary, Seq(head_seq - 4))
            ahead.replicate(ReplicationConfig(), "127.0.0.1:0")
            async with running(ahead):
                peers = {"ahead": listens_at(ahead)}
                behind.replicate(ReplicationConfig(peers=peers), "127.0.0.1:0")
                async with running(behind):
                    await until("it was tried", lambda: peer_status(behind).last_error is not None)
                    await until("it has applied", lambda: applied(behind) == head_seq - 4)
                    assert "nothing to ship to it" in str(peer_status(behind).last_error)
                    assert peer_status(behind).state == "connecting"
                    assert mirror_status(ahead).state != "diverged"
                    assert not (ahead.directory / "state" / "parted.json").exists()


@pytest.mark.parametrize("is_its_own", [True, False])
async def test_a_mirror_follows_where_a_promotion_came_to_nothing(
    tmp_path: Path, is_its_own: bool
) -> None:
    """It had asked for an epoch that another node has begun since, and will not begin it; or had
    given a third node its vote for that, which cannot begin it any more."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(1)
        await until("the mirror is level", level(primary, mirror))
    begin_another_boot(tmp_path / "primary" / "state")
    with (
        open_volume(tmp_path / "mirror", mirror=True) as mirror,
        open_volume(tmp_path / "primary") as primary,
    ):
        assert primary.volume.journal.epoch == 2
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror):
            asked = Reign(Epoch(2), node_id(mirror) if is_its_own else 0xFEED)
            await mirror.receiver.give_vote(asked, "west")
            primary.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
            async with running(primary):
                await until("the mirror follows", level(primary, mirror))
                assert mirror.opening.page.fence == Reign(Epoch(2), node_id(primary))


async def test_a_primary_asks_beyond_a_word_that_came_to_nothing(tmp_path: Path) -> None:
    """Another node had asked for that epoch, and did not begin it: this one would ask for it for
    ever."""
    async with mirror_and_primary(tmp_path, mirrors=1, on_timeout="block") as (primary, mirror):
        primary.work(1)
        await until("the mirror is level", level(primary, mirror))
        local, replication = primary.replication.local, primary.replication
        await until("it has acknowledged", lambda: local.book.get("east").acked_seq > 0)
        await mirror.receiver.give_vote(Reign(Epoch(3), 0xFEED), "south")
        given: list[Epoch] = []

        async def may_begin(epoch: int) -> bool:
            return await has_votes(
                local,
                replication.me(),
                Reign(Epoch(epoch), node_id(primary)),
                heard=["east"],
                has_lost=False,
                report=lambda _: None,
                given=given.append,
            )

        assert not await may_begin(2)
        assert not await may_begin(3)
        assert given == [3, 3]
        assert await may_begin(4)


async def test_votes_that_would_not_be_enough_are_not_taken_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that lacks a node for good asks none: two of them would go on to ever higher reigns,
    a round each, and what one tells a person to allow would be outdated by then."""
    block = ReplicationConfig(mirrors=1, on_timeout="block", take_back_seconds=0.2)
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror):
            block = block._replace(peers={"east": listens_at(mirror), "west": "127.0.0.1:1"})
            with open_volume(tmp_path / "primary", orderly=False) as primary:
                primary.replicate(block)
                async with running(primary):
                    primary.work(1)
                    await until("the mirror is level", level(primary, mirror))
            begin_another_boot(tmp_path / "primary" / "state")
            rival = Reign(Epoch(5), 0xFEED)
            await mirror.receiver.give_vote(rival, "another")
            with open_volume(tmp_path / "primary", begin=False) as primary:
                primary.replicate(block)
                local = primary.replication.local
                parts: Any = SimpleNamespace(
                    startup=primary.opening, local=local, role=Role.PRIMARY
                )
                lines: list[str] = []
                reporter: Any = SimpleNamespace(warning=lines.append)

                rounds: list[int] = []

                async def asked(*given: Any, **named: Any) -> FetchedEntries:
                    rounds.append(len(lines))
                    return await ask_peers(*given, **named)

                monkeypatch.setattr(start, "ask_peers", asked)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(start._ask_peers, reporter, parts, has_asked=False))
                    await until("it has asked again", lambda: len(rounds) > 4)
                    nursery.cancel_scope.cancel()
            named = [line for line in lines if "begin_alone" in line]
            assert len(named) == 2, lines
            assert lines[-1] == named[1], "what it waits for is said last, and stays"
            assert rounds[2:] == [len(lines)] * len(rounds[2:])
            assert f'begin_alone = "{Reign(Epoch(6), node_id(primary))}"' in named[1]
            assert mirror.opening.page.fence == rival


async def test_a_start_begins_alone_the_reign_that_an_earlier_one_has_named(tmp_path: Path) -> None:
    """That had asked for higher and higher reigns, because others did, too; its own votes for the
    last, which mirrors have on their disks, do not stand in the way."""
    block = ReplicationConfig(mirrors=1, on_timeout="block", take_back_seconds=0.2)
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror):
            block = block._replace(peers={"east": listens_at(mirror), "west": "127.0.0.1:1"})
            with open_volume(tmp_path / "primary", orderly=False) as primary:
                primary.replicate(block)
                async with running(primary):
                    primary.work(1)
                    await until("the mirror is level", level(primary, mirror))
                reign = Reign(Epoch(5), node_id(primary))
            begin_another_boot(tmp_path / "primary" / "state")
            await mirror.receiver.give_vote(reign, "primary")
            with open_volume(tmp_path / "primary", begin=False) as primary:
                primary.replicate(block._replace(begin_alone=str(reign)))
                local = primary.replication.local
                parts: Any = SimpleNamespace(
                    startup=primary.opening, local=local, role=Role.PRIMARY
                )
                reporter: Any = Quiet()
                with trio.fail_after(10):
                    standing = await start._ask_peers(reporter, parts, has_asked=False)
                due = primary.opening.due_epoch(standing)
                assert due is not None
                assert due.epoch == reign.epoch


async def test_a_person_may_have_a_primary_begin_alone(tmp_path: Path) -> None:
    """Its only mirror is gone for good. The vote is for one reign, which the line names."""
    with open_volume(tmp_path / "primary") as primary:
        primary.work(1)
        block = ReplicationConfig(mirrors=1, on_timeout="block", peers={"east": "127.0.0.1:1"})
        primary.replicate(block)
        reign, lines = Reign(Epoch(2), node_id(primary)), list[str]()

        async def may_begin(reign: Reign) -> bool:
            replication = primary.replication
            return await has_votes(
                replication.local,
                replication.me(),
                reign,
                heard=[],
                has_lost=False,
                report=lines.append,
            )

        assert not await may_begin(reign)
        assert f'begin_alone = "{reign}" under [replication]' in lines[-1]
        primary.replicate(block._replace(begin_alone=str(reign)))
        assert await may_begin(reign)
        assert "begin_alone says that no other was promoted" in lines[-1]
        assert not await may_begin(Reign(Epoch(3), node_id(primary)))
        with pytest.raises(ConfigError, match="begin_alone: 'alone' is no reign"):
            primary.replicate(block._replace(begin_alone="alone"))
