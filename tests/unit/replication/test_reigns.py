"""Reigns: what a primary hears of another reign, what it believes, and what it keeps of that; and
what a mirror makes of two primaries, or of one that runs twice."""

import errno
import re
from pathlib import Path

import pytest
import trio

from fusejournal.address import parse_address
from fusejournal.config import ReplicationConfig
from fusejournal.operations import NewEpoch
from fusejournal.replication.inquiry import ask_peers
from fusejournal.types import EPOCH_MAX, Epoch, Reign, Seq
from fusejournal.volume.standing import Standing
from fusejournal.volume.trouble import Trouble, TroubleKind
from fusejournal.wire.frames import Message, Refusal, Welcome
from fusejournal.wire.session import RefusedError
from tests.support.losses import crash_system
from tests.support.pairs import (
    level,
    listens_at,
    mirror_and_primary,
    mirror_status,
    peer_status,
    running,
    until,
)
from tests.support.reigns import (
    Liar,
    begin,
    degraded,
    follow,
    greet,
    head,
    higher,
    node_id,
    reign_of,
    welcome,
)
from tests.support.volumes import content, open_volume

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("quick_sessions")]


async def test_a_fenced_primary_takes_no_change(tmp_path: Path) -> None:
    """While it runs, after a restart, and with no peer in reach; until an admin overrules it."""
    with (
        open_volume(tmp_path / "mirror", mirror=True) as mirror,
        open_volume(tmp_path / "next") as successor,
    ):
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror):
            await follow(mirror, successor, 2)
            uuid = successor.volume.journal.uuid
            with open_volume(tmp_path / "primary", uuid=uuid, orderly=False) as primary:
                config = ReplicationConfig(peers={"east": listens_at(mirror)}, mirrors=1)
                primary.replicate(config)
                caught: list[int | None] = []

                async def wait() -> None:
                    try:
                        primary.create("one")
                        await primary.durability.wait(head(primary))
                    except OSError as error:
                        caught.append(error.errno)

                async with running(primary), trio.open_nursery() as nursery:
                    nursery.start_soon(wait)
                    await until("it is fenced", lambda: primary.volume.write_errno is not None)
                assert caught == [errno.EROFS]
                with pytest.raises(OSError, match="Read-only") as refused:
                    primary.create("two")
                assert refused.value.errno == errno.EROFS
                assert primary.volume.failure is not None
                assert primary.volume.failure.kind is TroubleKind.FENCED
                failure = primary.volume.failure.text
                assert failure.startswith("fenced: another node is primary, in reign 2/")
                assert "fusejournal demote" in failure
                head_seq = primary.volume.journal.head_seq
    reign = Reign(Epoch(2), node_id(successor))
    assert reign_of(primary) == reign

    for system_crash in (False, True):  # and no peer is there
        if system_crash:
            crash_system(tmp_path / "primary" / "state", head_seq)
        with open_volume(tmp_path / "primary", begin=False, orderly=False) as primary:
            replication = primary.replicate(ReplicationConfig(peers={"east": "127.0.0.1:9"}))
            with pytest.raises(RefusedError, match="reign 2/") as error:
                await ask_peers(
                    replication.local,
                    primary.volume.journal,
                    lambda _: None,
                    system_crash=system_crash,
                )
            assert error.value.exit_code == 26
            if not system_crash:
                primary.opening.recover(read_only=False)
                trouble = Trouble(TroubleKind.FENCED, str(error.value))
                begin(primary, Standing(trouble))
                with pytest.raises(OSError, match="Read-only"):
                    primary.create("three")
            assert primary.volume.journal.head_seq == head_seq

    with open_volume(tmp_path / "primary", begin=False) as primary:
        replication = primary.replicate(
            ReplicationConfig(overrule=str(reign), take_back_seconds=0.1)
        )
        taken = await ask_peers(replication.local, primary.volume.journal, lambda _: None)
        assert "overruled" in (taken.new_epoch or "")
        primary.opening.recover(read_only=False)
        begin(primary, Standing(seen_epoch=replication.local.fence.highest_epoch))
        assert primary.volume.journal.epoch == 3
        primary.create("four")


async def test_a_reign_of_an_unknown_node_can_be_overruled(tmp_path: Path) -> None:
    """A node that asks where journals end does not name who began its epoch."""
    with open_volume(tmp_path / "primary", orderly=False) as primary:
        primary.work(2)
        primary.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(primary):
            await greet(primary, higher(primary, "fetch", 9)._replace(reign_node=0))
            await until("it is fenced", lambda: primary.volume.write_errno is not None)
        assert primary.volume.failure is not None
        printed = re.search(r"in reign (\S+);", primary.volume.failure.text)
        assert printed is not None
    with open_volume(tmp_path / "primary", begin=False) as primary:
        overruled = ReplicationConfig(overrule=printed[1], take_back_seconds=0.1)
        replication = primary.replicate(overruled)
        taken = await ask_peers(replication.local, primary.volume.journal, lambda _: None)
        assert f"reign {printed[1]} was overruled" in (taken.new_epoch or "")
        primary.opening.recover(read_only=False)
        seen_epoch = replication.local.fence.highest_epoch
        begin(primary, Standing(seen_epoch=seen_epoch, new_epoch=taken.new_epoch))
        assert primary.volume.journal.epoch == 8
        primary.create("three")


async def test_a_reign_that_only_a_mirror_knows_can_be_overruled(tmp_path: Path) -> None:
    """Nothing proves it to the primary, which it does not fence; and the mirror takes nothing of a
    lower one, though no node reigns in it."""
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror):
            peers = {"east": listens_at(mirror)}
            with open_volume(tmp_path / "primary") as primary:
                primary.work(2)
                primary.replicate(ReplicationConfig(peers=peers))
                async with running(primary):
                    await until("the mirror is level", level(primary, mirror))
                    await greet(mirror, higher(mirror, "ship", 3))
                    await until("it is refused", lambda: peer_status(primary).state == "refused")
                    assert "overrule" in (peer_status(primary).advice or "")
                    assert str(reign_of(mirror)) in (peer_status(primary).last_error or "")
                    assert primary.volume.write_errno is None
            overruled = ReplicationConfig(peers=peers, overrule=str(reign_of(mirror)))
            for _ in range(2):  # it is left in the configuration
                with open_volume(tmp_path / "primary", begin=False) as primary:
                    replication = primary.replicate(overruled)
                    taken = await ask_peers(
                        replication.local,
                        primary.volume.journal,
                        lambda _: None,
                        system_crash=False,
                    )
                    assert taken.failures == []
                    primary.opening.recover(read_only=False)
                    highest = replication.local.fence.highest_epoch
                    begin(primary, Standing(seen_epoch=highest, new_epoch=taken.new_epoch))
                    assert primary.volume.journal.epoch == 8
                    async with running(primary):
                        primary.create(f"file{primary.volume.journal.head_seq}")
                        await until("the mirror is level", level(primary, mirror))
    assert reign_of(mirror) == Reign(Epoch(8), node_id(primary))


@pytest.mark.parametrize("system_crash", [False, True])
@pytest.mark.parametrize(
    "answer",
    [
        welcome(1 << 40, 1 << 40, 10**6, 1),
        welcome(EPOCH_MAX + 1, EPOCH_MAX + 1, 10**6, 1),
        welcome(9, 3, 10**6, 1),  # it has heard of it
        welcome(9, 9, 0, 0),  # of which its journal has nothing
        Refusal("fenced", "go away"),
        Refusal("fenced", "go away", Epoch(1 << 40), 77, Epoch(1 << 40), Seq(10**6), 1),
        Refusal("fenced", "go away", Epoch(9), 77, Epoch(8), Seq(10**6), 1),
    ],
)
async def test_a_word_that_nothing_proves_binds_nobody(
    tmp_path: Path, answer: Message, system_crash: bool
) -> None:
    with open_volume(tmp_path / "primary", orderly=not system_crash) as primary:
        primary.work(2)
        head_seq = primary.volume.journal.head_seq
    if system_crash:
        crash_system(tmp_path / "primary" / "state", head_seq)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    config = ReplicationConfig(peers={"east": address}, take_back_seconds=0.3)
    with open_volume(tmp_path / "primary", begin=False) as primary:
        replication = primary.replicate(config)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, Liar(answer).handle, listeners)
            await ask_peers(
                replication.local, primary.volume.journal, lambda _: None, system_crash=system_crash
            )
            primary.opening.recover(read_only=False)
            begin(primary)
            async with running(primary):
                await until("it was told", lambda: peer_status(primary).errors > 1)
            nursery.cancel_scope.cancel()
        primary.create("one")
        assert reign_of(primary).epoch == primary.volume.journal.epoch == 1 + system_crash


async def test_a_peer_that_has_begun_the_same_epoch(tmp_path: Path) -> None:
    """Neither gives in, because neither can know; nothing is shipped, and both say so."""
    with (
        open_volume(tmp_path / "mirror", mirror=True) as mirror,
        open_volume(tmp_path / "next") as successor,
        open_volume(tmp_path / "primary", uuid=successor.volume.journal.uuid) as primary,
    ):
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror):
            await follow(mirror, successor, 2)
            before = content(mirror.journal_dir)
            primary.volume.note(NewEpoch(Epoch(2), "crowned itself"))
            primary.work(9)
            primary.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
            async with running(primary):
                await until("it is refused", lambda: peer_status(primary).state == "refused")
                assert "two nodes have begun epoch 2" in (peer_status(primary).last_error or "")
                assert "two nodes have begun epoch 2" in degraded(mirror)
                primary.create("goes on")
            assert reign_of(mirror) == Reign(Epoch(2), node_id(successor))
            assert content(mirror.journal_dir) == before


async def test_a_primary_of_another_volume_ends_no_reign(tmp_path: Path) -> None:
    with (
        open_volume(tmp_path / "primary") as primary,
        open_volume(tmp_path / "other") as other,
    ):
        primary.replicate(ReplicationConfig(), "127.0.0.1:0")
        other.volume.note(NewEpoch(Epoch(9), "another boot of the machine"))
        async with running(primary):
            other.replicate(ReplicationConfig(peers={"wrong": listens_at(primary)}))
            async with running(other):
                await until("it is refused", lambda: peer_status(other).errors > 1)
        assert primary.volume.write_errno is None
    assert reign_of(primary).epoch == 1


async def test_a_mirror_hears_of_a_reign_from_its_own_mirror(tmp_path: Path) -> None:
    """That one follows the successor: the lower reign is nothing to either then."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(2)
        await until("the mirror is level", level(primary, mirror))
        uuid = primary.volume.journal.uuid
        with (
            open_volume(tmp_path / "below", mirror=True) as below,
            open_volume(tmp_path / "next", uuid=uuid) as successor,
        ):
            below.replicate(ReplicationConfig(), "127.0.0.1:0")
            async with running(below):
                await follow(below, successor, 2)
                replication = mirror.replication
                assert replication is not None
                replication.local.book.add("below", parse_address(listens_at(below)))
                replication._peers_changed()
                await until("it is refused", lambda: peer_status(mirror).state == "refused")
                await until("it has heard", lambda: reign_of(mirror).epoch == 2)
        await until("its own is refused", lambda: peer_status(primary).state == "refused")
        assert primary.volume.write_errno is None  # nothing proves it to the primary
    assert reign_of(mirror) == Reign(Epoch(2), node_id(successor))


@pytest.mark.parametrize("purpose", ["ship", "fetch"])
async def test_a_copy_of_the_followed_node_that_has_parted_ends_no_reign(
    tmp_path: Path, purpose: str
) -> None:
    """Another boot has a copy of a machine begin an epoch; the one that it was copied from is away
    for a moment just then."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(2)
        await until("the mirror is level", level(primary, mirror))
        await until("it streams", lambda: mirror_status(mirror).state == "streaming")
        primary.replication.local.book.pause("east")
        primary.replication._peers_changed()
        await until("it is away", lambda: mirror_status(mirror).address is None)
        hello = higher(mirror, purpose, 3)
        answer = await greet(
            mirror, hello._replace(reign_node=node_id(primary), node_id=node_id(primary))
        )
        assert isinstance(answer, Welcome)
        assert reign_of(mirror).epoch == 1
        primary.create("more")
        primary.replication.local.book.resume("east")
        primary.replication._peers_changed()
        await until("the mirror is level", level(primary, mirror))
