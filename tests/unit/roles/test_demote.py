"""A primary that is to be one no more: what it waits for, and what it leaves to the mirror that it
becomes."""

import errno
from pathlib import Path

import pytest
import trio

from fusejournal.disk import failpoints
from fusejournal.errors import ApplyBrokenError, DemotionRefusedError
from fusejournal.operations import Write
from fusejournal.roles.demote import Demotion
from fusejournal.types import Epoch, Reign
from fusejournal.wire.identity import node_id_of
from tests.support.pairs import level, mirror_and_primary, peer_status, until
from tests.support.volumes import OpenVolume, applied, open_volume

pytestmark = pytest.mark.mount


def demotion(side: OpenVolume) -> Demotion:
    return Demotion(side.volume, side.replication)


async def test_it_waits_until_its_mirrors_have_everything(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(5)
        reign = await demotion(primary).prepare(force=False, timeout_seconds=20)
        node_id = node_id_of(primary.replication.local.identity.fingerprint)
        assert reign == Reign(Epoch(1), node_id)
        assert mirror.volume.journal.durable_seq == primary.volume.journal.head_seq
        with pytest.raises(OSError, match="Read-only") as refused:
            primary.create("late")
        assert refused.value.errno == errno.EROFS


async def test_it_goes_on_where_nobody_has_everything(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(1)
        await until("the mirror is level", level(primary, mirror))
        primary.replication.local.book.pause("east")
        primary.replication._peers_changed()
        await until("nothing is shipped", lambda: peer_status(primary).state == "paused")
        with pytest.raises(DemotionRefusedError, match="no mirror is connected"):
            await demotion(primary).prepare(force=False, timeout_seconds=0.05)
        assert primary.create("later")
        with trio.move_on_after(0.05) as cut:
            await demotion(primary).prepare(force=False, timeout_seconds=20)
        assert cut.cancelled_caught
        assert primary.create("after a Ctrl-C")
        assert await demotion(primary).prepare(force=True, timeout_seconds=0)
        with pytest.raises(DemotionRefusedError, match="this volume is read-only"):
            await demotion(primary).prepare(force=True, timeout_seconds=0)


async def test_it_waits_for_a_change_of_many_entries(tmp_path: Path) -> None:
    """A large file that gets its name comes whole: entries behind the point up to which mirrors
    have all would be this node's alone."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        volume, reigns = primary.volume, list[Reign]()
        fid = primary.create("large", b"first")

        async def demote() -> None:
            reigns.append(await demotion(primary).prepare(force=False, timeout_seconds=20))

        async with trio.open_nursery() as nursery:
            with volume.coming_in_pieces():
                with pytest.raises(DemotionRefusedError, match="many entries"):
                    await demotion(primary).prepare(force=True, timeout_seconds=0.05)
                nursery.start_soon(demote)
                await trio.sleep(0.05)
                assert not reigns
                volume.journal_existing(Write(fid, 0, None), data=b"other")
        assert reigns
        assert mirror.volume.journal.durable_seq == volume.journal.head_seq
        assert primary.volume.write_errno == errno.EROFS


async def test_a_fenced_primary_waits_for_nobody(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, _):
        reign = Reign(Epoch(7), 0xFEED)
        primary.opening.page.write_fence(reign)
        primary.replication.quorum.fence()
        primary.volume.fail("fenced")
        assert await demotion(primary).prepare(force=False, timeout_seconds=0) == reign


@pytest.mark.parametrize("fails", [False, True])
def test_it_stops_as_a_mirror_does(tmp_path: Path, fails: bool) -> None:
    """Without an entry of its own, which its successor would not have; and with nothing to import
    should it be the primary again."""
    with open_volume(tmp_path / "one") as primary:
        primary.work(3)
        head_seq = primary.volume.journal.head_seq
        primary.becomes_mirror = True
        if fails:
            primary.volume.fail("fenced")
    with open_volume(tmp_path / "one", mirror=True) as mirror:
        assert not mirror.opening.system_crash
        assert mirror.watermarks is not None
        assert (applied(mirror), mirror.watermarks.committed_seq) == (head_seq, head_seq)
        assert mirror.volume.journal.head_seq == head_seq
        with pytest.raises(OSError, match="Read-only"):
            mirror.create("refused")
    with open_volume(tmp_path / "one", begin=False) as again:
        assert again.volume.catalog.imported
        again.opening.recover(read_only=False)
        for _ in again.opening.start_epoch_and_import(read_only=False):
            pass
        assert again.create("taken")


def test_what_was_half_done_stays_in_doubt(tmp_path: Path) -> None:
    """A volume that failed amid an entry, and was fenced then, vouches for nothing: as a mirror it
    waits for the entry's outcome, and looks before it applies it."""

    def breaks(label: str) -> None:
        if label == "apply.mkdir":
            raise ApplyBrokenError("planned", 5)

    with open_volume(tmp_path / "one") as primary:
        primary.work(3)
        held_seq = applied(primary)
        failpoints.listen(breaks)
        try:
            with pytest.raises(OSError, match="planned"):
                primary.mkdir("half")
        finally:
            failpoints.listen(None)
        primary.becomes_mirror = True
    with open_volume(tmp_path / "one", mirror=True) as mirror:
        assert mirror.watermarks is not None
        assert mirror.volume.journal.head_seq == held_seq + 1
        assert (applied(mirror), mirror.watermarks.committed_seq) == (held_seq, held_seq)
        assert mirror.watermarks.applying_seq == held_seq + 1
