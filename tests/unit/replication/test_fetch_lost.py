"""A primary whose system crashed takes back from its mirrors what its journal lost."""

import itertools
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio

from fusejournal.backing.fid_tag import FID_XATTR, pack_tag
from fusejournal.config import ReplicationConfig
from fusejournal.disk import failpoints
from fusejournal.disk.syscalls import handle_of
from fusejournal.errors import PeerLostError, RecoveryError
from fusejournal.journal import clock
from fusejournal.journal.outcomes import with_outcomes
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.operations import NewEpoch
from fusejournal.replay.digest import digest_tree
from fusejournal.replication.inquiry import ask_peers
from fusejournal.types import ROOT_FID, Seq
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import Batch, Message
from fusejournal.wire.session import RefusedError
from tests.support.losses import Died, begin_another_boot, crash_system, dying_at
from tests.support.volumes import OpenVolume, applied, content, open_volume

pytestmark = pytest.mark.mount


@asynccontextmanager
async def _serving(mirror: OpenVolume) -> AsyncIterator[str]:
    """The mirror runs; its address."""
    mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mirror.durability.run)
        await nursery.start(mirror.replication.run)
        yield str(mirror.replication.status().listen)
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


def _epochs(volume: OpenVolume) -> list[tuple[int, int]]:
    """The seq at which each epoch begins."""
    reader = JournalReader(volume.journal_dir)
    return [
        (entry.operation.epoch, entry.seq)
        for entry in reader.read(Seq(1), Seq(1 << 40))
        if isinstance(entry.operation, NewEpoch)
    ]


async def _ship_and_lose(
    directory: Path, mirror: OpenVolume, address: str, rounds: int, lost: int
) -> Seq:
    """A new primary in *directory* works, has all of it on *mirror* at *address*, and loses its
    machine with the last *lost* entries. Returns the head that it had."""
    with open_volume(directory, orderly=False) as primary:
        primary.work(rounds)
        head_seq = primary.volume.journal.head_seq
        await _ship_all(primary, mirror, address)
    crash_system(directory / "state", head_seq - lost)
    return head_seq


async def _begin(primary: OpenVolume, **config: Any) -> list[str]:
    """Begins as a node does that opens a volume after its system crashed."""
    assert primary.opening.system_crash
    replication = primary.replicate(ReplicationConfig(**config))
    with trio.fail_after(60):
        taken = await ask_peers(replication.local, primary.volume.journal, lambda _: None)
    primary.opening.recover(read_only=False, held_seq=taken.held_seq)
    for _ in primary.opening.start_epoch_and_import(read_only=False):
        pass
    return [one.text for one in taken.failures]


@pytest.mark.parametrize("lost", [1, 2, 3, 7, 30, 90])
async def test_what_a_mirror_has_comes_back(tmp_path: Path, lost: int) -> None:
    """The last entry left may be one that was refused, and whose VOID was lost, or none such."""
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        async with _serving(mirror) as address:
            with open_volume(tmp_path / "primary", orderly=False) as primary:
                primary.work(20)
                head_seq = primary.volume.journal.head_seq
                await _ship_all(primary, mirror, address)
                before = content(primary.journal_dir)
            crash_system(tmp_path / "primary" / "state", head_seq - lost)
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
            crash_system(tmp_path / "primary" / "state", head_seq)
            with open_volume(tmp_path / "primary", begin=False) as primary:
                assert await _begin(primary, peers={"east": address}) == []
                assert _epochs(primary) == [(1, 1), (2, head_seq + 1)]
                await _ship_all(primary, mirror, address)
                assert content(mirror.journal_dir) == content(primary.journal_dir)


async def test_goes_on_without_peers(tmp_path: Path) -> None:
    with open_volume(tmp_path / "primary", orderly=False) as primary:
        primary.work(3)
        head_seq = primary.volume.journal.head_seq
    crash_system(tmp_path / "primary" / "state", head_seq - 2)
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
    crash_system(tmp_path / "primary" / "state", head_seq - 4)
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


@pytest.mark.parametrize("without_peers", ["new-epoch", "wait"])
async def test_link_that_is_cut_in_the_midst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_peers: str
) -> None:
    receive, batches = Connection.receive, itertools.count(1)

    async def cut(self: Connection) -> Message | None:
        message = await receive(self)
        if isinstance(message, Batch) and next(batches) == 2:
            raise PeerLostError(self.where, "the connection was cut")
        return message

    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        mirror.replicate(ReplicationConfig(batch_bytes=4096), "127.0.0.1:0")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mirror.durability.run)
            await nursery.start(mirror.replication.run)
            address = str(mirror.replication.status().listen)
            head_seq = await _ship_and_lose(tmp_path / "primary", mirror, address, 40, 250)
            monkeypatch.setattr(Connection, "receive", cut)
            with open_volume(tmp_path / "primary", begin=False) as primary:
                config = {"peers": {"east": address}, "without_peers": without_peers}
                assert await _begin(primary, **config) == []
                assert next(batches) > 3
                assert _epochs(primary) == [(1, 1), (2, head_seq + 1)]
            nursery.cancel_scope.cancel()
    assert digest_tree(mirror.backing).digest == digest_tree(primary.backing).digest


async def test_peer_that_does_not_answer_is_named(tmp_path: Path) -> None:
    """It may be the one that has more."""
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        async with _serving(mirror) as address:
            head_seq = await _ship_and_lose(tmp_path / "primary", mirror, address, 3, 4)
            with open_volume(tmp_path / "primary", begin=False) as primary:
                peers = {"east": address, "west": "127.0.0.1:9"}
                (told,) = await _begin(primary, peers=peers, take_back_seconds=0.5)
                assert "peer west did not answer" in told
                assert _epochs(primary) == [(1, 1), (2, head_seq + 1)]


async def test_primary_whose_reign_is_over_does_not_begin_another(tmp_path: Path) -> None:
    """It comes back from before it began another epoch, of which a mirror has entries."""
    directory = tmp_path / "primary"
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        async with _serving(mirror) as address:
            with open_volume(directory, orderly=False) as primary:
                primary.work(3)
                head_seq = primary.volume.journal.head_seq
            shutil.copytree(primary.journal_dir, tmp_path / "kept")
            crash_system(directory / "state", head_seq)
            with open_volume(directory, orderly=False) as primary:
                primary.work(3, start=10)
                await _ship_all(primary, mirror, address)
            shutil.rmtree(primary.journal_dir)
            shutil.copytree(tmp_path / "kept", primary.journal_dir)
            crash_system(directory / "state", head_seq)
            with open_volume(directory, begin=False, orderly=False) as primary:
                with pytest.raises(RefusedError, match="reign 2/"):
                    await _begin(primary, peers={"east": address}, take_back_seconds=2.0)
                assert _epochs(primary) == [(1, 1)]


@pytest.mark.parametrize("last", ["refused", "made"])
async def test_mirror_that_lost_its_machine_too_gives_all_it_has(tmp_path: Path, last: str) -> None:
    """Its watermarks are older than its journal: they reach the disk when the kernel likes."""
    with open_volume(tmp_path / "mirror", mirror=True, orderly=False) as mirror:
        async with _serving(mirror) as address:
            with open_volume(tmp_path / "primary", orderly=False) as primary:
                primary.work(20)
                await _ship_all(primary, mirror, address)
                early_seq = primary.volume.journal.head_seq
                primary.work(20, start=50)
                if last == "made":  # so the mirror does not know whether it was refused, either
                    primary.create("last")
                await _ship_all(primary, mirror, address)
                head_seq = primary.volume.journal.head_seq
        await mirror.durability.flush()
    watermarks = WatermarkPage(tmp_path / "mirror" / "state" / "watermarks")
    watermarks.write_committed(early_seq)
    watermarks.write_durable(early_seq)
    watermarks.write_applying(early_seq)
    watermarks.close()
    begin_another_boot(tmp_path / "mirror" / "state")
    crash_system(tmp_path / "primary" / "state", early_seq + 3)
    with open_volume(tmp_path / "mirror", mirror=True, orderly=False) as mirror:
        async with _serving(mirror) as address:
            with open_volume(tmp_path / "primary", begin=False) as primary:
                assert await _begin(primary, peers={"east": address}) == []
                assert _epochs(primary) == [(1, 1), (2, head_seq + 1)]
                await _ship_all(primary, mirror, address)
                assert content(mirror.journal_dir) == content(primary.journal_dir)
    assert digest_tree(mirror.backing).digest == digest_tree(primary.backing).digest


@pytest.mark.parametrize("step", [3, 40])
async def test_interrupted_take_back_goes_on(tmp_path: Path, step: int) -> None:
    """Killed while the backing is made what was taken: the next start does that, though no peer is
    there any more."""
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
            crash_system(tmp_path / "early" / "state", head_seq)
            config: dict[str, Any] = {"peers": {"east": address}}
            for death in itertools.count(1, step):
                with (
                    dying_at("reconcile.", death) as left,
                    open_volume(tmp_path / "early", begin=False, orderly=False) as primary,
                ):
                    with suppress(Died):
                        await _begin(primary, **config)
                    assert primary.volume.journal.head_seq >= last_seq
                if left[0] > 0:
                    break
                config = {"peers": {"east": "127.0.0.1:9"}, "take_back_seconds": 0.05}
        assert death > 40
        assert _epochs(primary) == [(1, 1), (2, last_seq + 1)]
    assert digest_tree(mirror.backing).digest == digest_tree(primary.backing).digest


def _copy_tree(source: Path, target: Path, head_seq: int) -> None:
    """A copy of a volume as a machine that is lost later leaves it: its backing is made anew from
    the journal, because a plain copy's files would be others."""
    shutil.copytree(source / "state", target / "state")
    shutil.rmtree(target / "state" / "catalog")
    (target / "backing").mkdir()
    uuid = UUID((source / "state" / "uuid").read_text())
    watermarks = WatermarkPage(target / "state" / "watermarks")
    watermarks.write_durable(Seq(head_seq))
    watermarks.write_rooted(Seq(0))
    watermarks.close()
    os.setxattr(
        target / "backing",
        FID_XATTR,
        pack_tag(uuid, ROOT_FID, handle_of(os.open(target / "backing", os.O_RDONLY))),
    )
    with open_volume(target, mirror=True, uuid=uuid, orderly=False) as copy:
        for entry, outcome in with_outcomes(
            copy.volume.journal.reader.read(Seq(1), Seq(head_seq + 1))
        ):
            copy.volume.apply_received(entry, outcome, redo=False)
        copy.volume.catalog.commit()
    (target / "state" / "watermarks").unlink()


async def test_full_backing_stops_the_start_and_nothing_is_lost(tmp_path: Path) -> None:
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        async with _serving(mirror) as address:
            await _ship_and_lose(tmp_path / "primary", mirror, address, 4, 20)
            failpoints.listen(failpoints.PlannedFault("reconcile.write", 2, "ENOSPC"))
            try:
                with (
                    open_volume(tmp_path / "primary", begin=False, orderly=False) as primary,
                    pytest.raises(RecoveryError, match="No space left"),
                ):
                    await _begin(primary, peers={"east": address})
            finally:
                failpoints.listen(None)
            with open_volume(tmp_path / "primary", begin=False) as primary:
                assert await _begin(primary, peers={"east": address}) == []
            assert digest_tree(mirror.backing).digest == digest_tree(primary.backing).digest


async def test_times_grow_though_the_clock_went_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        async with _serving(mirror) as address:
            # The last thing is a refusal, and its VOID.
            await _ship_and_lose(tmp_path / "primary", mirror, address, 3, 6)
            with open_volume(tmp_path / "primary", begin=False) as primary:
                monkeypatch.setattr(clock, "now_ns", lambda: 1)
                await _begin(primary, peers={"east": address})
                monkeypatch.undo()
                entries = JournalReader(primary.journal_dir).read(Seq(1), Seq(1 << 40))
                times = [entry.time_ns for entry in entries]
    assert times == sorted(set(times))
