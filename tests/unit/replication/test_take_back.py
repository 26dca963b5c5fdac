"""A primary whose machine was lost takes back from its mirrors what its journal lost."""

import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio

from fusejournal import storage
from fusejournal import volume as volume_module
from fusejournal.backing.syscalls import handle_of
from fusejournal.backing.tree import FID_XATTR, pack_tag
from fusejournal.config import ReplicationConfig
from fusejournal.errors import RecoveryError
from fusejournal.journal.copymarks import CopyMarks
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import list_segments
from fusejournal.journal.settled import settled
from fusejournal.opening import TAKING_BACK
from fusejournal.operations import NewEpoch, Rename
from fusejournal.replay.digest import digest_tree
from fusejournal.types import ROOT_FID, Fid, Seq
from fusejournal.volume import Volume
from tests.support.volumes import SOMEBODY, OpenVolume, applied, content, open_volume

pytestmark = pytest.mark.mount


@asynccontextmanager
async def _serving(mirror: OpenVolume) -> AsyncIterator[str]:
    """The mirror runs; its address."""
    mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mirror.durability.run)
        await nursery.start(mirror.replication.run)
        yield str(mirror.replication.status()["listen"])
        nursery.cancel_scope.cancel()


async def _ship_all(primary: OpenVolume, mirror: OpenVolume, address: str) -> None:
    primary.replicate(ReplicationConfig(peers={"east": address}))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(primary.durability.run)
        await nursery.start(primary.replication.run)
        with trio.fail_after(20):
            while applied(mirror) < primary.volume.journal.head_seq:  # noqa: ASYNC110
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()


def _lose_machine(directory: Path, last_seq: int) -> None:
    """What a machine leaves that went down: nothing after entry *last_seq* had reached the disk."""
    journal = directory / "state" / "journal"
    ends = {}
    for path, frame in JournalReader(journal).frames(Seq(1), Seq(1 << 40)):
        ends[frame.seq] = path, frame.offset + len(frame.content)
    path, end = ends[last_seq]
    for later in list_segments(journal):
        if later > path:
            later.unlink()
    with open(path, "r+b") as segment:
        segment.truncate(end)
    (directory / "state" / "boot").write_text(json.dumps({"boot_id": "the one before"}))


def _epochs(volume: OpenVolume) -> list[tuple[int, int]]:
    """Where each epoch begins."""
    reader = JournalReader(volume.journal_dir)
    return [
        (entry.operation.epoch, entry.seq)
        for entry in reader.read(Seq(1), Seq(1 << 40))
        if isinstance(entry.operation, NewEpoch)
    ]


async def _begin(primary: OpenVolume, **config: object) -> list[str]:
    """What a node does when it opens a volume after its machine was lost."""
    assert primary.opening.lost_machine
    replication = primary.replicate(ReplicationConfig(**config))
    with trio.fail_after(60):
        told = await replication.take_back(primary.volume, lambda _: None)
    for _ in primary.opening.begin(read_only=False):
        pass
    return told


@pytest.mark.parametrize("lost", [1, 2, 3, 7, 30, 90])
async def test_what_a_mirror_has_comes_back(tmp_path: Path, lost: int) -> None:
    """Whether the last entry left is one that was refused, and whose VOID was lost, or not."""
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        async with _serving(mirror) as address:
            with open_volume(tmp_path / "primary", orderly=False) as primary:
                primary.work(20)
                head_seq = primary.volume.journal.head_seq
                await _ship_all(primary, mirror, address)
                before = content(primary.journal_dir)
            _lose_machine(tmp_path / "primary", head_seq - lost)
            with open_volume(tmp_path / "primary", begin=False) as primary:
                assert await _begin(primary, peers={"east": address}) == []
                assert _epochs(primary) == [(1, 1), (2, head_seq + 1)]
                for name, segment in before.items():
                    assert content(primary.journal_dir)[name].startswith(segment)
                primary.work(5, start=50)
                await _ship_all(primary, mirror, address)
                assert content(mirror.journal_dir) == content(primary.journal_dir)
                trees = digest_tree(mirror.backing), digest_tree(primary.backing)
                assert trees[0].digest == trees[1].digest


async def test_mirror_that_has_no_more(tmp_path: Path) -> None:
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        async with _serving(mirror) as address:
            with open_volume(tmp_path / "primary", orderly=False) as primary:
                primary.work(3)
                await _ship_all(primary, mirror, address)
                primary.work(3, start=10)
                head_seq = primary.volume.journal.head_seq
            _lose_machine(tmp_path / "primary", head_seq)
            with open_volume(tmp_path / "primary", begin=False) as primary:
                assert await _begin(primary, peers={"east": address}) == []
                assert _epochs(primary) == [(1, 1), (2, head_seq + 1)]
                await _ship_all(primary, mirror, address)
                assert content(mirror.journal_dir) == content(primary.journal_dir)


async def test_goes_on_without_peers(tmp_path: Path) -> None:
    with open_volume(tmp_path / "primary", orderly=False) as primary:
        primary.work(3)
        head_seq = primary.volume.journal.head_seq
    _lose_machine(tmp_path / "primary", head_seq - 2)
    with open_volume(tmp_path / "primary", begin=False) as primary:
        (told,) = await _begin(primary, peers={"east": "127.0.0.1:9"}, take_back_seconds=0.1)
        assert "no peer answered" in told
        assert _epochs(primary) == [(1, 1), (2, head_seq - 1)]


async def test_waits_for_a_peer_as_configured(tmp_path: Path) -> None:
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        async with _serving(mirror) as address:
            with open_volume(tmp_path / "primary", orderly=False) as primary:
                primary.work(3)
                head_seq = primary.volume.journal.head_seq
                await _ship_all(primary, mirror, address)
    _lose_machine(tmp_path / "primary", head_seq - 4)
    with (
        open_volume(tmp_path / "primary", begin=False) as primary,
        open_volume(tmp_path / "mirror", mirror=True) as mirror,
    ):
        async with trio.open_nursery() as nursery:
            config = {"take_back_seconds": 0.05, "without_peers": "wait"}
            done = trio.Event()

            async def begin() -> None:
                assert await _begin(primary, peers={"east": address}, **config) == []
                done.set()

            nursery.start_soon(begin)
            await trio.sleep(0.3)
            assert not done.is_set()
            mirror.replicate(ReplicationConfig(), address)
            nursery.start_soon(mirror.durability.run)
            await nursery.start(mirror.replication.run)
            with trio.fail_after(20):
                await done.wait()
            assert _epochs(primary) == [(1, 1), (2, head_seq + 1)]
            nursery.cancel_scope.cancel()


class _Died(BaseException):
    """What a kill is to a process."""


@pytest.mark.parametrize("deaths", [1, 3, 8])
async def test_interrupted_take_back_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    """Killed while it applies what it took: the next start applies the rest, though no peer is
    there any more, and nothing counts as applied that is not."""
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        async with _serving(mirror) as address:
            with open_volume(tmp_path / "primary", orderly=False) as primary:
                primary.work(12)
                head_seq = primary.volume.journal.head_seq
            _copy_tree(tmp_path / "primary", tmp_path / "early", head_seq)
            with open_volume(tmp_path / "primary", orderly=False) as primary:
                primary.work(12, start=30)
                last_seq = primary.volume.journal.head_seq
                await _ship_all(primary, mirror, address)
            # The backing is as it was then, too: nothing later had reached the disk.
            _lose_machine(tmp_path / "early", head_seq)
            apply = Volume.apply_received
            left = [0]

            def dying(self: Volume, *args: Any, **kwargs: Any) -> None:
                left[0] -= 1
                if left[0] == 0:
                    raise _Died
                apply(self, *args, **kwargs)

            monkeypatch.setattr(Volume, "apply_received", dying)
            left[0] = 2
            with open_volume(tmp_path / "early", begin=False, orderly=False) as primary:
                with pytest.raises(_Died):
                    await _begin(primary, peers={"east": address})
                assert primary.volume.journal.head_seq == last_seq
    for number in range(deaths):
        left[0] = 2 + number % 3
        with open_volume(tmp_path / "early", begin=False, orderly=False) as primary:
            with pytest.raises(_Died):
                await _begin(primary, peers={"east": "127.0.0.1:9"}, take_back_seconds=0.05)
            assert primary.volume.journal.head_seq == last_seq
    monkeypatch.setattr(Volume, "apply_received", apply)
    with open_volume(tmp_path / "early", begin=False) as primary:
        await _begin(primary, peers={"east": "127.0.0.1:9"}, take_back_seconds=0.05)
        assert _epochs(primary) == [(1, 1), (2, last_seq + 1)]
        assert not (primary.directory / "state" / TAKING_BACK).exists()
    assert digest_tree(mirror.backing).digest == digest_tree(primary.backing).digest


def _copy_tree(source: Path, target: Path, head_seq: int) -> None:
    """A copy of a volume as a machine that is lost later leaves it: its backing is made anew from
    the journal, for a plain copy's files would be others."""
    shutil.copytree(source / "state", target / "state")
    shutil.rmtree(target / "state" / "catalog")
    (target / "backing").mkdir()
    uuid = UUID((source / "state" / "uuid").read_text())
    marks = CopyMarks(target / "state" / "marks")
    marks.durable_seq = Seq(head_seq)
    marks.close()
    os.setxattr(
        target / "backing",
        FID_XATTR,
        pack_tag(uuid, ROOT_FID, handle_of(os.open(target / "backing", os.O_RDONLY))),
    )
    with open_volume(target, mirror=True, uuid=uuid, orderly=False) as copy:
        for entry, void in settled(copy.volume.journal.reader.read(Seq(1), Seq(head_seq + 1))):
            copy.volume.apply_received(entry, void, settle=False)
        copy.volume.catalog.commit()
    (target / "state" / "marks").unlink()


async def test_full_backing_stops_the_start_and_nothing_is_lost(tmp_path: Path) -> None:
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        async with _serving(mirror) as address:
            with open_volume(tmp_path / "primary", orderly=False) as primary:
                primary.work(4)
                head_seq = primary.volume.journal.head_seq
                await _ship_all(primary, mirror, address)
            _lose_machine(tmp_path / "primary", head_seq - 20)
            storage.listen(storage.PlannedFault("apply.tag", 2, "ENOSPC"))
            try:
                with (
                    open_volume(tmp_path / "primary", begin=False, orderly=False) as primary,
                    pytest.raises(RecoveryError, match="taken back"),
                ):
                    await _begin(primary, peers={"east": address})
            finally:
                storage.listen(None)
            with open_volume(tmp_path / "primary", begin=False) as primary:
                assert await _begin(primary, peers={"east": address}) == []
            assert digest_tree(mirror.backing).digest == digest_tree(primary.backing).digest


async def test_directory_that_the_backing_lacks_does_not_end_the_start(tmp_path: Path) -> None:
    """A backing that is ahead of what is left of the journal: files are named, and it goes on."""
    with open_volume(tmp_path / "primary", orderly=False) as primary:
        fid = primary.mkdir("before")
        primary.create("file", b"x", fid)
        head_seq = primary.volume.journal.head_seq
        operation = Rename(fid, ROOT_FID, b"before", ROOT_FID, b"after", 0, Fid(0))
        primary.volume.commit(operation, SOMEBODY)
    _lose_machine(tmp_path / "primary", head_seq)
    with open_volume(tmp_path / "primary", begin=False) as primary:
        assert await _begin(primary) == []
        assert any("missing in the backing" in line for line in primary.opening.degraded)


async def test_times_grow_though_the_clock_went_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        async with _serving(mirror) as address:
            with open_volume(tmp_path / "primary", orderly=False) as primary:
                primary.work(3)  # the last thing is a refusal, and its VOID
                head_seq = primary.volume.journal.head_seq
                await _ship_all(primary, mirror, address)
            _lose_machine(tmp_path / "primary", head_seq - 6)
            with open_volume(tmp_path / "primary", begin=False) as primary:
                monkeypatch.setattr(volume_module.time, "time_ns", lambda: 1)
                await _begin(primary, peers={"east": address})
                monkeypatch.undo()
                entries = JournalReader(primary.journal_dir).read(Seq(1), Seq(1 << 40))
                times = [entry.time_ns for entry in entries]
    assert times == sorted(set(times))
