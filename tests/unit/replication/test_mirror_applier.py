"""The applier of a mirror, beside its primary in one process: what it applies and what it must
not, and what is left when it dies."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio

from fusejournal.backing.apply import Applier
from fusejournal.config import ReplicationConfig
from fusejournal.journal.base import JournalBase
from fusejournal.journal.frame_range import FrameRange, FrameRangeReader
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.replay.digest import digest_tree
from fusejournal.replication.ship_session import ShipSession
from fusejournal.types import Epoch, Fid, Seq
from tests.support.bases import base_tree
from tests.support.losses import crash_system
from tests.support.pairs import level, listens_at, mirror_and_primary, running, until
from tests.support.volumes import OpenVolume, applied, content, open_volume

pytestmark = pytest.mark.mount


async def _received_and_not_applied(tmp_path: Path) -> None:
    """Leave a mirror that has everything in its journal, and nothing of it applied."""
    with (
        open_volume(tmp_path / "mirror", mirror=True, orderly=False) as mirror,
        open_volume(tmp_path / "primary") as primary,
    ):
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        mirror.applier._limit = lambda: Seq(0)  # type: ignore[method-assign]
        async with running(mirror):
            primary.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
            primary.work(12)
            async with running(primary):
                journals = primary.volume.journal, mirror.volume.journal
                await until("all is there", lambda: journals[0].head_seq == journals[1].head_seq)
                await mirror.durability.flush()
        assert applied(mirror) == 0


class _Died(BaseException):
    """A kill, for code that runs in the test's own process."""


async def test_killed_anywhere_while_it_applies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each entry, between its effect and the catalog, and with any part of the catalog
    committed: the next process goes on, and no entry is skipped or done twice."""
    await _received_and_not_applied(tmp_path)
    apply = Applier.apply
    left = [0]

    def dying(self: Applier, *args: Any, **kwargs: Any) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise _Died
        made = apply(self, *args, **kwargs)
        if left[0] == 1 and late:
            left[0] = 0
            raise _Died
        return made

    monkeypatch.setattr(Applier, "apply", dying)
    deaths = 0
    while True:
        late = deaths % 2 == 1
        left[0] = 1 + deaths % 5
        with open_volume(tmp_path / "mirror", mirror=True, orderly=False) as mirror:
            head_seq = mirror.volume.journal.head_seq
            try:
                await _apply_all(mirror, commit_each=deaths % 3)
            except _Died:
                deaths += 1
            if applied(mirror) == head_seq:
                assert deaths > 10
                break
            assert deaths < 500
    monkeypatch.setattr(Applier, "apply", apply)
    with open_volume(tmp_path / "primary") as primary:
        assert digest_tree(mirror.backing) == digest_tree(primary.backing)


async def _apply_all(mirror: OpenVolume, commit_each: int) -> None:
    """Let the mirror's applier run until it has applied everything, or dies of it."""
    mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
    volume = mirror.volume
    count = [0]

    def commit_now_and_then(*_: int) -> None:
        count[0] += 1
        if commit_each and count[0] % commit_each == 0:
            volume.catalog.commit()

    mirror.usage.on_applied.append(commit_now_and_then)
    died: list[_Died] = []

    async def update(scope: trio.CancelScope) -> None:
        try:
            await mirror.applier.run()
        except _Died as error:
            died.append(error)
            scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(update, nursery.cancel_scope)
        await until("all is applied", lambda: applied(mirror) == volume.journal.head_seq)
        nursery.cancel_scope.cancel()
    if died:
        raise died[0]


async def test_nothing_is_applied_that_is_not_on_disk(tmp_path: Path) -> None:
    with (
        open_volume(tmp_path / "mirror", mirror=True, orderly=False) as mirror,
        open_volume(tmp_path / "primary") as primary,
    ):
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        primary.work(5)
        async with trio.open_nursery() as nursery:  # the mirror flushes nothing by itself
            await nursery.start(mirror.replication.run)
            primary.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
            nursery.start_soon(primary.durability.run)
            await nursery.start(primary.replication.run)
            journals = primary.volume.journal, mirror.volume.journal
            await until("all is there", lambda: journals[0].head_seq == journals[1].head_seq)
            mirror.applier.wake()
            await trio.sleep(0.1)
            status = primary.replication.status().peers[0]
            assert (status.acked_seq, status.applied_seq) == (0, 0)
            assert applied(mirror) == 0
            assert list(mirror.backing.iterdir()) == []
            await mirror.durability.flush()
            await until("the mirror is level", level(primary, mirror))
            nursery.cancel_scope.cancel()


async def test_mirror_that_ends_between_an_entry_and_its_void(tmp_path: Path) -> None:
    """A kill in the middle of an append leaves it so: what was refused is never applied."""
    with open_volume(tmp_path / "primary") as primary:
        primary.work(3)  # the last thing is a refusal
        head_seq = primary.volume.journal.head_seq
        uuid = primary.volume.journal.uuid
        with open_volume(tmp_path / "mirror", mirror=True, uuid=uuid, orderly=False) as mirror:
            reader = FrameRangeReader(primary.journal_dir, uuid)
            reader.seek(Seq(head_seq - 1))
            assert reader.committed_seq(primary.volume.journal.end) == head_seq - 2
            reader.close()
            mirror.volume.journal.receive(_beginning(primary, Seq(head_seq - 1)))
    async with _idle_pair(tmp_path) as (primary, mirror):
        await until("what is committed is applied", lambda: applied(mirror) == head_seq - 2)
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        await until("the mirror is level", level(primary, mirror))
        assert content(mirror.journal_dir) == content(primary.journal_dir)
        assert digest_tree(mirror.backing) == digest_tree(primary.backing)


def _beginning(primary: OpenVolume, last_seq: Seq) -> FrameRange:
    """The journal of a mirror whose first segment was cut after entry *last_seq*."""
    *_, (path, frame) = JournalReader(primary.journal_dir).frames(Seq(1), Seq(last_seq + 1))
    content = path.read_bytes()[: frame.offset + len(frame.content)]
    return FrameRange(Seq(1), 0, Seq(1), last_seq, 0, frame.checksum, content)


async def test_what_was_refused_is_not_applied_before_its_void_is_durable(tmp_path: Path) -> None:
    """The mirror's journal ends between the two, and is on the disk, when the rest comes."""
    with open_volume(tmp_path / "primary") as primary:
        primary.work(1)
        (primary.backing / "behind").mkdir()  # no process has seen it yet
        with pytest.raises(FileExistsError):
            primary.mkdir("behind")
        refused_seq = Seq(primary.volume.journal.head_seq - 1)
        uuid = primary.volume.journal.uuid
        with open_volume(tmp_path / "mirror", mirror=True, uuid=uuid, orderly=False) as mirror:
            mirror.volume.journal.receive(_beginning(primary, refused_seq))
    with (
        open_volume(tmp_path / "mirror", mirror=True, orderly=False) as mirror,
        open_volume(tmp_path / "primary") as primary,
    ):
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        await mirror.durability.flush()
        assert mirror.volume.journal.durable_seq == refused_seq
        async with trio.open_nursery() as nursery:  # no flush comes after that
            await nursery.start(mirror.replication.run)
            primary.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
            nursery.start_soon(primary.durability.run)
            await nursery.start(primary.replication.run)
            head_seq = primary.volume.journal.head_seq
            await until("all is there", lambda: mirror.volume.journal.head_seq == head_seq)
            mirror.applier.wake()
            await trio.sleep(0.1)
            assert applied(mirror) == refused_seq - 1
            assert not (mirror.backing / "behind").exists()
            await mirror.durability.flush()
            await until("the mirror is level", level(primary, mirror))
            assert not (mirror.backing / "behind").exists()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _idle_pair(tmp_path: Path) -> AsyncIterator[tuple[OpenVolume, OpenVolume]]:
    """A pair whose primary begins a session and then sends nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShipSession, "_ship", _ship_nothing)
        async with mirror_and_primary(tmp_path) as both:
            yield both


async def _ship_nothing(*_: object) -> None:
    await trio.sleep_forever()


async def test_a_mirror_that_was_level_applies_all_without_a_new_entry(tmp_path: Path) -> None:
    """Its system crashed between the checkpoint's flush and the page's, which is older then: what
    the checkpoint tells of is on the disk, and to be applied, though no entry comes."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        head_seq = mirror.volume.journal.head_seq
    crash_system(tmp_path / "mirror" / "state", head_seq)
    page = WatermarkPage(tmp_path / "mirror" / "state" / "watermarks")
    page.write_durable(Seq(0))
    page.write_stopped(Seq(0))
    page.close()
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        assert mirror.opening.system_crash
        assert mirror.opening.page.durable_seq == mirror.volume.journal.durable_seq == head_seq


async def test_what_its_base_tells_the_applier_asks_too(tmp_path: Path) -> None:
    """A former primary's journal may begin after a version."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        assert mirror.applier._lookup().base is None
        base = JournalBase(uuid4(), Epoch(1), Seq(0), 1, 1, "", "", "", "", Fid(3), 0)
        reader = mirror.volume.journal.reader
        reader.begin_behind(base_tree(base))
        found = mirror.applier._lookup().base
        assert found is not None
        assert found.base == base
