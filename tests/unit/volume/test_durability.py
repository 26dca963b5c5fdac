"""Flushes: when the journal is flushed right where a caller waits, and when by a thread."""

import errno
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from fusejournal.backing.catalog_store import COMMIT_CHANGES
from fusejournal.config import JournalConfig, ReplicationConfig
from fusejournal.disk import failpoints
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.node.assemble import assemble_durability
from fusejournal.operations import Mark
from fusejournal.types import Seq
from fusejournal.volume.durability import FlushHooks
from fusejournal.volume.flush_times import Average
from tests.support.descriptors import no_descriptors_left
from tests.support.patience import PATIENCE_SECONDS
from tests.support.volumes import OpenVolume, open_volume


@pytest.fixture
def quick_disk() -> Iterator[Path]:
    """A directory where a flush takes next to no time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture(autouse=True)
def _no_delay_left() -> Iterator[None]:
    yield
    failpoints.listen(None)


@asynccontextmanager
async def flushing(directory: Path, mirrors: int = 0) -> AsyncIterator[OpenVolume]:
    """A volume with its background tasks; its journal rolls no segment, which would be for a thread
    to flush. What waits for it also waits for so many *mirrors*."""
    with open_volume(directory, options=JournalOptions()) as volume:
        if mirrors:
            volume.replicate(ReplicationConfig(mirrors=mirrors))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.durability.run)
            await trio.testing.wait_all_tasks_blocked()
            yield volume
            nursery.cancel_scope.cancel()


def delay_flushes(seconds: float) -> None:
    failpoints.listen(lambda label: time.sleep(seconds) if label == "journal.sync" else None)


async def left_to_a_thread(volume: OpenVolume, at_most: int) -> int:
    """The number of flushes in a row, *at_most*, that are not made in place."""
    for count in range(at_most):
        volume.volume.note(Mark(f"mark{count}"))
        if volume.durability.flush_if_quick() is not None:
            return count
        await volume.durability.flush()
    return at_most


async def test_a_quick_disk_is_flushed_in_place(quick_disk: Path) -> None:
    async with flushing(quick_disk) as volume:
        assert await left_to_a_thread(volume, 1000) < 1000
        assert volume.durability.durable_seq == volume.volume.journal.head_seq


async def test_one_slow_flush_among_many_quick_ones_changes_little(quick_disk: Path) -> None:
    async with flushing(quick_disk) as volume:
        await left_to_a_thread(volume, 1000)
        delay_flushes(0.005)
        volume.volume.note(Mark("slow"))
        await volume.durability.flush()
        failpoints.listen(None)
        assert await left_to_a_thread(volume, 1000) < 1000


async def test_a_slow_disk_is_left_to_a_thread(quick_disk: Path) -> None:
    delay_flushes(0.02)
    async with flushing(quick_disk) as volume:
        assert await left_to_a_thread(volume, 20) == 20


@pytest.mark.parametrize("before", [0, 1, 64])
async def test_a_busy_loop_is_no_reason_to_wait_for_a_slow_disk(
    quick_disk: Path, before: int
) -> None:
    """While the loop is busy a thread's flush seems to take long beside the disk's own time."""
    delay_flushes(0.005)
    async with flushing(quick_disk) as volume:
        await left_to_a_thread(volume, before)
        volume.volume.note(Mark("while busy"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.durability.flush)
            await trio.testing.wait_all_tasks_blocked()
            time.sleep(1.0)  # noqa: ASYNC251 - as a write to a throttled disk does
        assert await left_to_a_thread(volume, 50) == 50


async def test_waking_a_thread_is_measured_again(quick_disk: Path) -> None:
    async with flushing(quick_disk) as volume:
        await left_to_a_thread(volume, 1000)
        in_place = 0
        while await left_to_a_thread(volume, 1) == 0:
            in_place += 1
            assert in_place < 1000


async def test_who_waits_for_mirrors_has_waited_for_the_flush_too(quick_disk: Path) -> None:
    async with flushing(quick_disk, mirrors=1) as volume:
        await left_to_a_thread(volume, 1000)
        durability, replication = volume.durability, volume.replication
        assert replication is not None
        seq = volume.volume.note(Mark("flushed here"))
        delay_flushes(0.05)
        since = durability.try_flush_inline(seq)
        assert since is not None
        assert durability.durable_seq == seq
        replication.quorum.acked("mirror", seq)
        await durability.wait(seq, since)
        assert durability.waits.seconds >= 0.05


async def test_a_disk_that_turns_slow_is_left_to_a_thread(quick_disk: Path) -> None:
    async with flushing(quick_disk) as volume:
        await left_to_a_thread(volume, 1000)
        delay_flushes(0.1)
        in_place = 0
        while await left_to_a_thread(volume, 1) == 0:
            in_place += 1
        assert in_place < 5


async def test_what_comes_while_a_flush_is_prepared_is_the_next_ones(tmp_path: Path) -> None:
    """Nothing counts as durable whose signature, or whatever else belongs to it, may not be."""
    async with flushing(tmp_path) as volume:
        durability, journal = volume.durability, volume.volume.journal
        seq = volume.volume.note(Mark("before"))
        meanwhile: list[Seq] = []

        def prepare() -> None:
            if not meanwhile:
                meanwhile.append(volume.volume.note(Mark("meanwhile")))

        durability.hooks = FlushHooks(before_flush=prepare)
        await durability.flush()
        assert durability.durable_seq == seq
        assert meanwhile == [seq + 1] == [journal.head_seq]
        with trio.fail_after(PATIENCE_SECONDS):
            await durability.wait(journal.head_seq)
        assert durability.durable_seq == seq + 1


async def test_who_waits_without_a_task_is_called_by_the_flush(tmp_path: Path) -> None:
    async with flushing(tmp_path) as volume:
        durability, journal = volume.durability, volume.volume.journal
        called: dict[Seq, OSError | None] = {}
        is_there = trio.Event()

        def note(seq: Seq, error: OSError | None) -> None:
            assert journal.durable_seq >= seq
            called[seq] = error
            if len(called) == 5:
                is_there.set()

        flushes = durability.flushes
        for number in range(5):
            seq = volume.volume.note(Mark(f"mark{number}"))
            durability.call_when_flushed(seq, time.perf_counter(), partial(note, seq))
        assert not called
        with trio.fail_after(PATIENCE_SECONDS):
            await is_there.wait()
        assert set(called.values()) == {None}
        assert durability.flushes - flushes <= 2  # that of the first, and one for all others
        assert sum(durability.waits.counts) == 5


async def test_who_waits_without_a_task_hears_of_a_disk_that_fails(tmp_path: Path) -> None:
    async with flushing(tmp_path) as volume:
        durability = volume.durability
        failpoints.listen(failpoints.PlannedFault("journal.sync", 1, "EIO+"))
        errors: list[OSError | None] = []
        seq = volume.volume.note(Mark("lost"))
        durability.call_when_flushed(seq, time.perf_counter(), errors.append)
        await durability.next_flush()
        assert volume.volume.failure is not None
        durability.call_when_flushed(seq, time.perf_counter(), errors.append)
        assert [error and error.errno for error in errors] == [errno.EIO, errno.EIO]


def test_average_weighs_the_first_values_alike() -> None:
    average = Average()
    for value in (3.0, 5.0, 7.0):
        average.add(value)
    assert average.value == pytest.approx(5.0)
    for _ in range(1000):
        average.add(1.0)
    assert average.value == pytest.approx(1.0)


async def test_tending_outlives_a_lack_of_descriptors(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Work that cannot be done now is tried again; the layer goes on, and says so once."""
    with open_volume(tmp_path) as opened:
        opened.work(60)
        opened.volume.journal.sync()
        assert opened.volume.journal.sealed.without_index() != []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.durability._tend_sealed_segments)
            await trio.testing.wait_all_tasks_blocked()
            with no_descriptors_left():
                await trio.sleep(21)
            nursery.cancel_scope.cancel()
        await opened.durability._tend_once()
        assert opened.volume.journal.sealed.without_index() == []
        assert opened.volume.failure is None
    warnings = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert len(warnings) == 1
    assert warnings[0].startswith("sealed segments are not tended for now: ")


async def test_a_full_disk_is_not_asked_again_and_again_to_hold_a_compressed_segment(
    tmp_path: Path,
) -> None:
    """Compressing costs as much each time, and the plain segment is as good."""
    tried = 0

    def full(label: str) -> None:
        nonlocal tried
        if label == "journal.compress.write":
            tried += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_volume(tmp_path) as opened:
        opened.work(60)
        opened.volume.journal.sync()
        opening, volume = opened.opening, opened.volume
        config = JournalConfig(compress=True)
        durability = assemble_durability(opening, config, volume.fail, FlushHooks())
        before = len(volume.journal.sealed.compressible())
        failpoints.listen(full)
        for _ in range(3):
            await durability._tend_once()
        assert tried == 1
        assert durability.compression_failure is None
        assert volume.failure is None
        failpoints.listen(None)
        durability._compress_again_at = 0.0  # some minutes later
        await durability._tend_once()
        assert len(volume.journal.sealed.compressible()) < before


async def test_the_catalog_is_committed_before_much_has_changed(quick_disk: Path) -> None:
    """Not only after the next flush: a commit of all that a second brings would hold all up."""
    async with flushing(quick_disk) as opened:
        catalog = opened.volume.catalog
        most = 0
        for number in range(3 * COMMIT_CHANGES):
            opened.volume.note(Mark(f"mark{number}"))
            most = max(most, catalog.changes)
            if not number % 100:
                await trio.lowlevel.checkpoint()
        assert most < COMMIT_CHANGES + 300
