"""A primary and a mirror in one process, over real sockets on the loopback, without mounts: what
is shipped, and what is refused."""

from pathlib import Path

import pytest
import trio

from fusejournal.address import node_name
from fusejournal.config import ReplicationConfig
from fusejournal.journal.reader import END
from fusejournal.journal.segment import list_segments
from fusejournal.replay.digest import digest_tree
from fusejournal.replication.parting import load_parting
from fusejournal.types import Seq
from tests.support.bases import give_base, possible_bases
from tests.support.pairs import (
    level,
    listens_at,
    mirror_and_primary,
    mirror_status,
    peer_status,
    running,
    shipping,
    until,
)
from tests.support.volumes import content, open_volume

pytestmark = pytest.mark.mount


async def test_mirror_ends_with_the_same_journal_and_tree(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        for start in range(0, 120, 10):
            primary.work(10, start)
            await trio.sleep(0.01)
        await until("the mirror is level", level(primary, mirror))
        assert content(mirror.journal_dir) == content(primary.journal_dir)
        assert len(content(primary.journal_dir)) > 3
        assert digest_tree(mirror.backing) == digest_tree(primary.backing)
        await until("the primary knows", lambda: peer_status(primary).lag_entries == 0)
        assert peer_status(primary).state == "streaming"
        assert peer_status(primary).acked_seq == primary.volume.journal.head_seq


async def test_what_was_there_first_is_caught_up(tmp_path: Path) -> None:
    with open_volume(tmp_path / "primary") as primary:
        primary.work(200)
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        await until("the mirror is level", level(primary, mirror))
        assert content(mirror.journal_dir) == content(primary.journal_dir)


async def test_goes_on_after_an_orderly_stop(tmp_path: Path) -> None:
    for start in (0, 40, 80):
        async with mirror_and_primary(tmp_path) as (primary, mirror):
            primary.work(40, start)
            await until("the mirror is level", level(primary, mirror))
            assert content(mirror.journal_dir) == content(primary.journal_dir)
            assert digest_tree(mirror.backing) == digest_tree(primary.backing)


async def test_second_primary_is_refused(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        uuid = primary.volume.journal.uuid
        with open_volume(tmp_path / "other", uuid=uuid) as other:
            other.work(3)
            other.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
            async with running(other):
                await until("it is refused", lambda: peer_status(other).state == "refused")
                assert "already receives from" in (peer_status(other).last_error or "")


async def test_primary_of_another_volume_is_refused(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
    with (
        open_volume(tmp_path / "other") as other,
        open_volume(tmp_path / "mirror", mirror=True) as mirror,
    ):
        other.work(3)
        async with shipping(other, mirror):
            await until("it is refused", lambda: peer_status(other).state == "refused")
            assert "is of volume" in (peer_status(other).last_error or "")
        assert digest_tree(mirror.backing) == digest_tree(tmp_path / "primary" / "backing")


async def test_primary_takes_no_entries(tmp_path: Path) -> None:
    with (
        open_volume(tmp_path / "one") as one,
        open_volume(tmp_path / "other") as other,
    ):
        async with shipping(other, one):
            await until("it is refused", lambda: peer_status(other).state == "refused")


async def test_mirror_that_has_more_is_not_touched(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(5)
        await until("the mirror is level", level(primary, mirror))
    before = content(tmp_path / "mirror" / "state" / "journal")
    # The primary goes back to what it was before its last entries, as from an old copy of its disk.
    with open_volume(tmp_path / "old", uuid=primary.volume.journal.uuid) as old:
        old.work(1, start=90)
        head_seq = old.volume.journal.head_seq
        with open_volume(tmp_path / "mirror", mirror=True) as mirror:
            async with shipping(old, mirror):
                await until("they part", lambda: peer_status(old).state == "diverged")
                await until("the mirror says so", lambda: mirror_status(mirror).state == "diverged")
                theirs = mirror_status(mirror)
                assert "part after entry 0" in (peer_status(old).last_error or "")
                assert "from 1 on" in (theirs.last_error or "")
                assert mirror.volume.journal.head_seq > head_seq
    assert content(tmp_path / "mirror" / "state" / "journal") == before
    parting = load_parting(tmp_path / "mirror" / "state")
    assert parting is not None
    assert (parting.peer, parting.seq) == (node_name("old"), 0)


async def test_mirror_of_a_mirror(tmp_path: Path) -> None:
    with open_volume(tmp_path / "third", mirror=True) as third:
        third.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(third):
            with open_volume(tmp_path / "second", mirror=True) as second:
                peers = {"third": listens_at(third)}
                second.replicate(ReplicationConfig(peers=peers), "127.0.0.1:0")
                async with running(second):
                    with open_volume(tmp_path / "first") as first:
                        peers = {"second": listens_at(second)}
                        first.replicate(ReplicationConfig(peers=peers))
                        async with running(first):
                            for start in range(0, 60, 10):
                                first.work(10, start)
                                await trio.sleep(0.01)
                            await until("all are level", level(first, third))
                            assert content(third.journal_dir) == content(first.journal_dir)
                            assert digest_tree(third.backing) == digest_tree(first.backing)


async def test_fsync_waits_for_a_mirror(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path, mirrors=1, batch_age_seconds=60.0) as (primary, mirror):
        primary.work(2)
        with trio.fail_after(20):  # though batches may wait for a minute
            await primary.durability.wait(primary.volume.journal.head_seq)
        assert mirror.volume.journal.durable_seq == primary.volume.journal.head_seq


async def test_mirror_whose_next_entry_is_gone_needs_a_full_copy(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(10)
        await until("the mirror is level", level(primary, mirror))
    with open_volume(tmp_path / "primary") as primary:
        primary.work(300, start=100)
    bases = possible_bases(primary.journal_dir)
    base = give_base(
        tmp_path / "primary" / "state", bases[len(bases) // 2], primary.volume.journal.uuid
    )
    assert base.seq > 20
    before = content(tmp_path / "mirror" / "state" / "journal")
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        await until("the primary says so", lambda: peer_status(primary).state == "needs full copy")
        theirs = lambda: mirror_status(mirror)  # noqa: E731
        await until("the mirror says so", lambda: theirs().state == "needs full copy")
        assert "not in the journal any more" in (theirs().last_error or "")
    assert content(tmp_path / "mirror" / "state" / "journal") == before


async def test_segments_stay_plain_until_they_are_sent(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(100)
        await until("the mirror is level", level(primary, mirror))
        await until("the primary knows", lambda: peer_status(primary).lag_entries == 0)
        head_seq = primary.volume.journal.head_seq
        assert primary.durability.hooks.keep_uncompressed_from() == head_seq + 1
        await primary.durability.flush()
        sealed = primary.volume.journal.sealed.compressible(
            primary.durability.hooks.keep_uncompressed_from()
        )
        assert sealed == list_segments(primary.journal_dir)[:-1]
        assert primary.volume.journal.sealed.compressible(Seq(2)) == []
    assert primary.durability.hooks.keep_uncompressed_from() == END
