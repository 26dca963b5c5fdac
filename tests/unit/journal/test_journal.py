"""Append, roll, flush, space and reading of one journal."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusejournal.disk import failpoints
from fusejournal.errors import (
    JournalDamagedError,
    JournalFailedError,
    JournalForeignError,
    JournalFullError,
)
from fusejournal.history.paths import PathTracker
from fusejournal.journal.journal import Journal
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.segment import SegmentReader, list_segments
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.journal.tail import examine
from fusejournal.journal.verify import verify
from fusejournal.operations import Clean, Create, Operation, Setattr, Setxattr, Unlink, Void, Write
from fusejournal.types import SYSTEM_CALLER, Fid, Seq
from tests.support.entries import SAMPLES, UUID_OF_TESTS, write_samples

_SMALL = JournalOptions(segment_bytes=1 << 16, preallocate_bytes=1 << 14, reserve_bytes=1 << 14)


@pytest.fixture(autouse=True)
def _no_fault_left() -> Iterator[None]:
    yield
    failpoints.listen(None)


def append(journal: Journal, operation: Operation, data: bytes = b"") -> Seq:
    return journal.append(
        operation, SYSTEM_CALLER, journal.last_time_ns + 1, lambda fid: b"p%d" % fid, data
    )


def append_until_full(journal: Journal, operation: Operation, data: bytes = b"") -> int:
    """Appends until the journal is full. Returns how many entries it took."""
    for taken in range(10_000):
        try:
            append(journal, operation, data)
        except JournalFullError:
            return taken
    raise AssertionError("it was never full")


def reopen(directory: Path, *, unclean_machine: bool = False, read_only: bool = False) -> Journal:
    return Journal.open(
        directory, UUID_OF_TESTS, _SMALL, unclean_machine=unclean_machine, read_only=read_only
    )


def test_entries_come_back(tmp_path: Path) -> None:
    journal = write_samples(tmp_path)
    found = list(journal.reader.read(Seq(1), Seq(100)))
    assert [(entry.operation, bytes(entry.data)) for entry in found] == list(SAMPLES)
    assert [entry.seq for entry in journal.reader.read(Seq(3), Seq(6))] == [3, 4, 5]
    assert [entry.seq for entry in journal.reader.read(Seq(len(SAMPLES) - 1), Seq(1000))] == [
        len(SAMPLES) - 1,
        len(SAMPLES),
    ]
    head = journal.head
    journal.close()
    assert reopen(tmp_path).head == head


def test_segments_roll_and_tell_every_path_again(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _SMALL)
    for number in range(100):
        append(journal, Write(Fid(7 + number % 2), 0, None), bytes(2000))
    paths = list_segments(tmp_path)
    assert len(paths) > 2
    assert all(path.stat().st_size <= _SMALL.segment_bytes for path in paths)
    for path in paths:
        start = Seq(int(path.stem))
        first, second, third = journal.reader.read(start, Seq(start + 3))
        for entry in (first, second):
            assert isinstance(entry.operation, Write)
            fid = entry.operation.fid
            assert entry.paths == {fid: b"p%d" % fid}
        assert third.paths is None
        assert journal.reader.segment_start(third.seq) == start


def test_a_void_is_never_in_another_segment(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _SMALL)
    for _ in range(400):
        seq = append(journal, Write(Fid(7), 0, None), bytes(1000))
        append(journal, Void(seq, errno.EIO, 0))
    starts = [int(path.stem) for path in list_segments(tmp_path)]
    assert len(starts) > 5
    assert all(start % 2 == 1 for start in starts)


@pytest.mark.parametrize("size", [0, 60, 4096])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_lost_header_behind_what_is_all_durable(
    tmp_path: Path, size: int, read_only: bool
) -> None:
    """The system crashed just after a segment was begun: all before it had been flushed, and of
    the new one there is a name, or that and zeros."""
    options = JournalOptions(segment_entries=4)
    journal = Journal.create(tmp_path, UUID_OF_TESTS, options)
    for _ in range(10):
        if journal.head_seq == 8:
            journal.sync()
        append(journal, Write(Fid(7), 0, None), b"data")
    key, durable_seq = journal.handle_key, journal.durable_seq
    assert durable_seq == 8
    journal.close()
    newest = list_segments(tmp_path)[-1]
    newest.write_bytes(bytes(size))
    opened = Journal.open(
        tmp_path,
        UUID_OF_TESTS,
        options,
        unclean_machine=True,
        read_only=read_only,
        known_durable=durable_seq,
    )
    assert (opened.head_seq, opened.handle_key, opened.damage) == (8, key, None)
    assert [entry.seq for entry in opened.reader.read(Seq(1), Seq(9))] == list(range(1, 9))
    if not read_only:
        assert append(opened, Write(Fid(7), 0, None)) == 9
        assert len(list_segments(tmp_path)) == 3
        opened.close()


def test_large_entry_gets_a_segment_of_its_own(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _SMALL)
    append(journal, Write(Fid(7), 0, None), b"a")
    append(journal, Write(Fid(7), 0, None), bytes(1 << 20))
    append(journal, Write(Fid(7), 0, None), b"b")
    assert [len(entry.data) for entry in journal.reader.read(Seq(1), Seq(4))] == [1, 1 << 20, 1]


def test_flushed_watermark_is_in_later_frames(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _SMALL)
    for _ in range(3):
        append(journal, Clean())
    assert journal.durable_seq == 0
    assert journal.sync() == 3
    append(journal, Clean())
    assert [entry.flushed for entry in journal.reader.read(Seq(1), Seq(5))] == [0, 0, 0, 3]
    journal.close()
    assert reopen(tmp_path).durable_seq == 3


@pytest.mark.parametrize("label", ["journal.append", "journal.fallocate"])
def test_full_disk_refuses_and_goes_on(tmp_path: Path, label: str) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _SMALL)
    append(journal, Write(Fid(7), 0, None), b"one")
    failpoints.listen(failpoints.PlannedFault(label, 1, "ENOSPC+"))
    assert append_until_full(journal, Write(Fid(7), 0, None), bytes(1000)) < 100
    head = journal.head
    if label == "journal.fallocate":
        # The reserve is for those who make space, and for what must be said.
        append(journal, Unlink(Fid(7), Fid(1), b"x"))
        append(journal, Void(journal.head_seq, errno.EIO, 0))
    failpoints.listen(None)
    append(journal, Write(Fid(7), 0, None), b"two")
    assert [entry.seq for entry in journal.reader.read(head.seq, Seq(head.seq + 2))] == [
        head.seq,
        head.seq + 1,
    ]
    journal.close()
    assert reopen(tmp_path).repairs == []


def test_reserve_is_enough_for_removals_but_not_without_end(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _SMALL)
    failpoints.listen(failpoints.PlannedFault("journal.fallocate", 1, "ENOSPC+"))
    assert append_until_full(journal, Write(Fid(7), 0, None), bytes(1000)) < 100
    assert 50 < append_until_full(journal, Unlink(Fid(7), Fid(1), b"name")) < 10_000
    append(journal, Void(journal.head_seq, errno.EIO, 0))
    append(journal, Clean())


def test_short_write_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _SMALL)
    append(journal, Write(Fid(7), 0, None), b"one")
    whole = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, at: whole(fd, [buffers[0][:9]], at))
    with pytest.raises(JournalFullError):
        append(journal, Write(Fid(7), 0, None), b"two")
    monkeypatch.undo()
    append(journal, Write(Fid(7), 0, None), b"three")
    assert [bytes(entry.data) for entry in journal.reader.read(Seq(1), Seq(9))] == [
        b"one",
        b"three",
    ]


@pytest.mark.parametrize("label", ["journal.append", "journal.sync", "journal.sync.directory"])
def test_failing_disk_ends_it(tmp_path: Path, label: str) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _SMALL)
    append(journal, Clean())
    failpoints.listen(failpoints.PlannedFault(label, 1, "EIO"))
    act: Callable[[], object] = (
        journal.sync if "sync" in label else lambda: append(journal, Clean())
    )
    with pytest.raises(JournalFailedError):
        act()
    # Once is for good: no process knows what the pages hold.
    with pytest.raises(JournalFailedError):
        append(journal, Clean())
    with pytest.raises(JournalFailedError):
        journal.sync()


def test_compressed_segments_read_the_same(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _SMALL)
    for number in range(200):
        append(journal, Write(Fid(7), number, None), b"%d" % number * 300)
    journal.sync()
    before = [(entry.seq, bytes(entry.data)) for entry in journal.reader.read(Seq(1), Seq(201))]
    sealed = journal.sealed.durable()
    assert len(sealed) == len(list_segments(tmp_path)) - 1
    for path in sealed:
        journal.sealed.compress(path)
    assert journal.sealed.compressible() == []
    assert [path.suffix for path in list_segments(tmp_path)][:-1] == [".fjz"] * len(sealed)
    assert [(e.seq, bytes(e.data)) for e in journal.reader.read(Seq(1), Seq(201))] == before
    assert [entry.seq for entry in journal.reader.read(Seq(90), Seq(95))] == [90, 91, 92, 93, 94]
    journal.close()
    assert reopen(tmp_path).head_seq == 200


def test_foreign_segments_are_refused(tmp_path: Path) -> None:
    write_samples(tmp_path).close()
    from uuid import uuid4

    with pytest.raises(JournalForeignError):
        Journal.open(tmp_path, uuid4(), _SMALL, unclean_machine=False)


def test_after_a_system_crash_the_first_bad_frame_above_the_watermark_ends_it(
    tmp_path: Path,
) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _SMALL)
    for number in range(100):
        append(journal, Write(Fid(7), number, None), bytes(2000))
        if number == 50:
            journal.sync()
    journal.close()
    spoilt = next(entry for entry in journal.reader.read(Seq(60), Seq(61)))
    path = next(p for p in reversed(list_segments(tmp_path)) if int(p.stem) <= 60)
    with open(path, "r+b") as file:
        file.seek(spoilt.offset + 100)
        file.write(b"\xff\xff")
    with pytest.raises(JournalDamagedError, match="seq 60"):
        # A process crash cannot have left that.
        list(reopen(tmp_path, read_only=True).reader.read(Seq(1), Seq(101)))
    steps: list[str] = []
    failpoints.listen(steps.append)
    opened = reopen(tmp_path, unclean_machine=True)
    failpoints.listen(None)
    assert opened.head_seq == 59
    # Nothing goes before it is set aside for good: its directory, it, and its name in that.
    cutting = [step for step in steps if step.startswith("journal.cut.") and "write" not in step]
    assert cutting.index("journal.cut.make") == 0
    kept = ["save.sync", "save.rename", "save.directory", "directory", "truncate", "sync"]
    assert cutting[-6:] == [f"journal.cut.{step}" for step in kept]
    (cut,) = opened.repairs
    assert cut.seq == 60
    assert len(cut.after) >= 1
    append(opened, Clean())
    assert opened.head_seq == 60


def test_paths_follow_renames() -> None:
    tracker = PathTracker()
    from fusejournal.operations import Mkdir, Rename

    tracker.follow(Mkdir(Fid(2), Fid(1), b"a", 0, 0, 0, None, None))
    tracker.follow(Create(Fid(3), Fid(2), b"f", 0, 0, 0, 0, None))
    assert tracker.path(Fid(3)) == b"a/f"
    tracker.follow(Rename(Fid(2), Fid(1), b"a", Fid(1), b"b", 0, Fid(0)))
    assert tracker.path(Fid(3)) == b"b/f"
    assert tracker.path_of(Setattr(Fid(3), 0, None, None, None, None)) == b"b/f"
    tracker.follow(Unlink(Fid(3), Fid(2), b"f"))
    assert tracker.path(Fid(3)) is None


def test_flushing_beside_appending_misses_no_segment(tmp_path: Path) -> None:
    """Appends roll segments while another thread flushes: in the end nothing is left unflushed."""
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _SMALL)
    flushed: list[int] = []
    real = os.fdatasync
    stop = threading.Event()

    def record(fd: int) -> None:
        flushed.append(os.fstat(fd).st_ino)
        real(fd)

    def flush() -> None:
        while not stop.is_set():
            journal.sync()

    thread = threading.Thread(target=flush)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fdatasync", record)
        thread.start()
        for number in range(2000):
            append(journal, Write(Fid(7), number, None), bytes(3000))
        stop.set()
        thread.join()
        assert journal.sync() == 2000
    paths = list_segments(tmp_path)
    assert len(paths) > 50
    assert {path.stat().st_ino for path in paths} <= set(flushed)
    assert len(journal.sealed.durable()) == len(paths) - 1


def test_after_a_kill_sealed_segments_are_flushed_before_they_count(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _SMALL)
    for _ in range(10):
        append(journal, Write(Fid(7), 0, None), bytes(3000))
    journal.sync()
    while len(list_segments(tmp_path)) == 1:
        append(journal, Write(Fid(7), 0, None), bytes(3000))
    opened = reopen(tmp_path)  # the process crashed
    assert opened.durable_seq < opened.head_seq
    flushed: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fdatasync", lambda fd: flushed.append(os.fstat(fd).st_ino))
        assert opened.sync() == opened.head_seq
    assert set(flushed) == {path.stat().st_ino for path in list_segments(tmp_path)}


def test_an_entry_that_no_reader_would_take_is_refused(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, JournalOptions())
    with pytest.raises(OSError, match="too large"):
        append(journal, Setxattr(Fid(7), b"user.a", bytes(17 << 20)))
    with pytest.raises(OSError, match=r"Invalid argument.*cannot be a name"):
        append(journal, Unlink(Fid(7), Fid(1), b"a/b"))
    append(journal, Clean())
    assert [entry.seq for entry in journal.reader.read(Seq(1), Seq(5))] == [1]


def test_a_missing_segment_is_found_by_who_reads_over_it(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _SMALL)
    for _ in range(100):
        append(journal, Write(Fid(7), 0, None), bytes(3000))
    list_segments(tmp_path)[2].unlink()
    with pytest.raises(JournalDamagedError, match="does not follow"):
        list(journal.reader.read(Seq(1), Seq(101)))


def test_a_failed_compression_leaves_nothing_behind(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _SMALL)
    for _ in range(100):
        append(journal, Write(Fid(7), 0, None), bytes(3000))
    journal.sync()
    failpoints.listen(failpoints.PlannedFault("journal.compress.sync", 1, "ENOSPC"))
    sealed = journal.sealed.durable()
    with pytest.raises(OSError, match="No space"):
        journal.sealed.compress(sealed[0])
    assert not list(tmp_path.glob("*.new"))
    assert journal.sealed.durable() == sealed


def test_the_space_ahead_of_the_end_is_not_damage(tmp_path: Path) -> None:
    """The file's size runs ahead; wherever an append stops in it, only that entry is missing."""
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _SMALL)
    create = Create(Fid(2), Fid(1), b"f", 0o100644, 0, 0, 0, None)
    append(journal, create)
    (path,) = list_segments(tmp_path)
    with SegmentReader(path) as reader:
        before = reader.check().offset
    append(journal, Write(Fid(2), Seq(0), None), b"\x07" * 300)
    with SegmentReader(path) as reader:
        after = reader.check().offset
    content = path.read_bytes()
    assert after < len(content) <= _SMALL.segment_bytes
    assert set(content[after:]) == {0}
    for end in range(before, after):
        path.write_bytes(content[:end].ljust(len(content), b"\0"))
        found = examine(tmp_path, UUID_OF_TESTS, unclean_machine=False)
        assert (found.head_seq, found.damage) == (1, None), end
        assert (found.cut is None) == (end == before)
        assert [entry.seq for entry in JournalReader(tmp_path, None).read(Seq(1), END)] == [1]
    for at in range(before, after):
        bad = bytearray(content)
        bad[at] ^= 0x10
        path.write_bytes(bad)
        # A length that grew makes it look unfinished: cut, then, and told. Never taken.
        found = examine(tmp_path, UUID_OF_TESTS, unclean_machine=False)
        assert found.head_seq == 1
        assert found.damage or found.cut, at
    path.write_bytes(content)
    again = reopen(tmp_path)
    assert again.head_seq == 2
    again.close()
    assert path.stat().st_size == after


def test_reading_beside_the_writer_finds_no_damage(tmp_path: Path) -> None:
    """The end that a reader's window lacks is in the file a moment later."""
    journal = Journal.create(tmp_path, UUID_OF_TESTS, JournalOptions())
    for number in range(2000):
        append(journal, Create(Fid(number + 2), Fid(1), b"f%d" % number, 0o100644, 0, 0, 0, None))
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.0005):
            append(journal, Setattr(Fid(2), 0o600, None, None, None, None))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            seen = [entry.seq for entry in JournalReader(tmp_path, None).read(Seq(1), END)]
            assert seen == list(range(1, len(seen) + 1))
            assert len(seen) >= 2000
    finally:
        stop.set()
        writer.join()


def test_zeros_at_the_end_of_a_closed_segment_are_damage(tmp_path: Path) -> None:
    journal = write_samples(tmp_path)
    journal.sync()
    journal.close()
    (path,) = list_segments(tmp_path)
    content = path.read_bytes()
    for lost in (10, 100, len(content) // 2):
        path.write_bytes(content[:-lost] + bytes(lost))
        assert verify([path], None, lambda done, total: None).damages, lost


def test_a_segment_that_was_not_sealed_is_sealed_later(tmp_path: Path) -> None:
    """The process died between making the next segment and giving the old one its size."""
    journal = Journal.create(tmp_path, UUID_OF_TESTS, _SMALL)
    failpoints.listen(failpoints.PlannedFault("journal.seal", 1, "EIO"))
    with pytest.raises(JournalFailedError):
        append_until_full(journal, Create(Fid(2), Fid(1), b"f", 0o100644, 0, 0, 0, None))
    failpoints.listen(None)
    old, new = list_segments(tmp_path)
    whole = old.read_bytes()
    assert whole.endswith(bytes(100))
    again = reopen(tmp_path)
    assert old.read_bytes() == whole.rstrip(b"\0")
    again.sync()
    again.sealed.compress(old)
    again.close()
    assert not verify(list_segments(tmp_path), None, lambda done, total: None).damages
    lost = reopen(tmp_path, unclean_machine=True)
    assert lost.repairs == []
    lost.close()
    assert new.exists()
