"""A primary whose machine was lost takes back from its mirrors what its journal lost."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from fusejournal.config import ReplicationConfig
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import list_segments
from fusejournal.operations import NewEpoch
from fusejournal.replay.digest import digest_tree
from fusejournal.types import Seq
from tests.support.volumes import OpenVolume, applied, content, open_volume

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
