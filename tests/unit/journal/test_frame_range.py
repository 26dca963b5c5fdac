"""Frame ranges: a journal made of another's ranges is the same byte for byte, at any size of
range, and none ends between an entry and its VOID."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from fusejournal.errors import JournalDamagedError, JournalForeignError, NoSuchSeqError
from fusejournal.journal.format import FormatError, Frame
from fusejournal.journal.frame_range import FrameRange, FrameRangeReader, check_frame_range
from fusejournal.journal.journal import Journal
from fusejournal.journal.segment import list_segments
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import Mkdir, NewEpoch, Void, Write
from fusejournal.types import SYSTEM_CALLER, Epoch, Fid, Seq

UUID = uuid4()
OPTIONS = JournalOptions(segment_bytes=1 << 16, segment_entries=256)


def _fill(journal: Journal, rounds: int) -> None:
    for number in range(rounds):
        for operation, data in (
            (Mkdir(Fid(number + 2), Fid(1), b"name", 0o755, 0, 0, None, None), b""),
            (Void(Seq(journal.head_seq + 1), errno.EEXIST, 0), b""),
            (Write(Fid(number + 2), 0, None), bytes([number % 256]) * (number * 7 % 3000)),
        ):
            if isinstance(operation, Void):
                operation = Void(journal.head_seq, errno.EEXIST, 0)
            journal.append(operation, SYSTEM_CALLER, journal.last_time_ns + 1, lambda _: b"", data)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    (tmp_path / "journal").mkdir()
    journal = Journal.create(tmp_path / "journal", UUID, OPTIONS)
    journal.append(NewEpoch(Epoch(1), "test"), SYSTEM_CALLER, 1, lambda _: b"")
    _fill(journal, 300)
    yield journal
    journal.close()


def _frame_ranges(journal: Journal, after: int, bytes_max: int) -> list[FrameRange]:
    reader = FrameRangeReader(journal.directory, journal.uuid)
    reader.seek(Seq(after))
    found = []
    while frame_range := reader.next(journal.end, journal.head_seq, bytes_max):
        found.append(frame_range)
    reader.close()
    return found


def _content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes().rstrip(b"\0") for path in list_segments(directory)}


@pytest.mark.parametrize("bytes_max", [1, 100, 5000, 1 << 20])
def test_copy_made_of_ranges(journal: Journal, tmp_path: Path, bytes_max: int) -> None:
    (tmp_path / "copy").mkdir()
    copy = Journal(tmp_path / "copy", UUID, OPTIONS)
    for frame_range in _frame_ranges(journal, 0, bytes_max):
        check_frame_range(frame_range)
        copy.receive(frame_range)
    assert copy.head == journal.head._replace(epoch=copy.epoch)
    assert _content(copy.directory) == _content(journal.directory)
    copy.sync()
    copy.close()


@pytest.mark.parametrize("bytes_max", [1, 100, 5000])
def test_no_range_ends_before_a_void(journal: Journal, bytes_max: int) -> None:
    voids = {
        entry.seq
        for entry in journal.reader.read(Seq(1), Seq(journal.head_seq + 1))
        if isinstance(entry.operation, Void)
    }
    assert len(voids) == 300
    assert (
        not {frame_range.first_seq for frame_range in _frame_ranges(journal, 0, bytes_max)} & voids
    )


@pytest.mark.parametrize("after", [0, 1, 255, 256, 257, 500, 899, 900, 901])
def test_go_on_from_anywhere(journal: Journal, after: int) -> None:
    reader = FrameRangeReader(journal.directory, UUID)
    chains = {
        frame.seq: frame.checksum
        for _, frame in journal.reader.frames(Seq(1), Seq(journal.head_seq + 1))
    }
    assert reader.seek(Seq(after)) == chains.get(Seq(after), 0)
    frame_range = reader.next(journal.end, journal.head_seq, 1)
    reader.close()
    assert (frame_range is None) == (after == journal.head_seq)
    assert frame_range is None or frame_range.first_seq == after + 1


def test_segment_rolled_between_two_ranges(journal: Journal) -> None:
    reader = FrameRangeReader(journal.directory, UUID)
    reader.seek(journal.head_seq)
    for _ in range(5):
        assert reader.next(journal.end, journal.head_seq, 1 << 20) is None
        before = journal.head_seq
        _fill(journal, 100)
        seen: list[int] = []
        while frame_range := reader.next(journal.end, journal.head_seq, 1 << 20):
            check_frame_range(frame_range)
            seen += range(frame_range.first_seq, frame_range.last_seq + 1)
        assert seen == list(range(before + 1, journal.head_seq + 1))
    reader.close()


def test_nothing_beyond_what_is_applied(journal: Journal) -> None:
    reader = FrameRangeReader(journal.directory, UUID)
    reader.seek(Seq(0))
    last = 0
    while frame_range := reader.next(journal.end, Seq(700), 1 << 20):
        last = frame_range.last_seq
    reader.close()
    assert last == 700


def test_compressed_segments(journal: Journal, tmp_path: Path) -> None:
    plain = _content(journal.directory)
    journal.sync()
    for path in journal.sealed.compressible():
        journal.sealed.compress(path)
    (tmp_path / "copy").mkdir()
    copy = Journal(tmp_path / "copy", UUID, OPTIONS)
    for frame_range in _frame_ranges(journal, 0, 3000):
        copy.receive(frame_range)
    assert _content(copy.directory) == plain
    copy.close()


def test_seq_that_is_not_there(journal: Journal) -> None:
    reader = FrameRangeReader(journal.directory, UUID)
    with pytest.raises(NoSuchSeqError):
        reader.seek(Seq(journal.head_seq + 1))
    list_segments(journal.directory)[0].unlink()
    with pytest.raises(NoSuchSeqError):
        reader.seek(Seq(0))
    with pytest.raises(NoSuchSeqError):
        reader.seek(Seq(17))
    reader.close()


def test_damage_is_named(journal: Journal) -> None:
    path = list_segments(journal.directory)[1]
    with open(path, "r+b") as file:
        file.seek(3000)
        byte = file.read(1)
        file.seek(3000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(JournalDamagedError) as caught:
        _frame_ranges(journal, 0, 10_000)
    assert caught.value.segment == path


def test_flipped_bits_in_a_range(journal: Journal) -> None:
    frame_range = _frame_ranges(journal, 0, 600)[0]
    for at in range(len(frame_range.content)):
        content = bytearray(frame_range.content)
        content[at] ^= 1
        with pytest.raises(FormatError):
            check_frame_range(frame_range._replace(content=bytes(content)))


def test_what_does_not_follow_is_refused(journal: Journal, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    copy = Journal(tmp_path / "copy", UUID, OPTIONS)
    first, second, third, *_ = _frame_ranges(journal, 0, 600)
    for wrong in (second, first._replace(chain_before=1), third):
        with pytest.raises(JournalForeignError):
            copy.receive(wrong)
    copy.receive(first)
    for wrong in (first, third, second._replace(offset=second.offset + 1)):
        with pytest.raises(JournalForeignError):
            copy.receive(wrong)
    copy.receive(second)
    assert copy.head_seq == second.last_seq
    other = Journal(tmp_path, uuid4(), OPTIONS)
    with pytest.raises(JournalForeignError):
        other.receive(first)
    copy.close()


def _ends_with_a_void(journal: Journal) -> tuple[Path, Frame]:
    """Append a refused entry; the frame of its VOID, and where it lies."""
    journal.append(
        Mkdir(Fid(9000), Fid(1), b"refused", 0o755, 0, 0, None, None),
        SYSTEM_CALLER,
        journal.last_time_ns + 1,
        lambda _: b"",
    )
    void = Void(journal.head_seq, errno.EEXIST, 0)
    journal.append(void, SYSTEM_CALLER, journal.last_time_ns + 1, lambda _: b"")
    *_, found = journal.reader.frames(journal.head_seq, Seq(journal.head_seq + 1))
    return found


def _flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("wanted", ["with the VOID", "without the VOID"])
@pytest.mark.parametrize("bytes_max", [1, 1 << 20])
def test_damaged_void_is_no_missing_void(journal: Journal, bytes_max: int, wanted: str) -> None:
    """Whichever byte of it is wrong: the entry that it refuses does not come without it."""
    path, void = _ends_with_a_void(journal)
    refused_seq = Seq(void.seq - 1)
    limit = void.seq if wanted == "with the VOID" else refused_seq
    end = journal.end
    for at in range(len(void.content)):
        _flip(path, void.offset + at)
        reader = FrameRangeReader(journal.directory, UUID)
        reader.seek(Seq(refused_seq - 2))
        with pytest.raises(JournalDamagedError):  # noqa: PT012 - in one of them
            while frame_range := reader.next_checked(end, limit, bytes_max):
                assert frame_range.last_seq < refused_seq
        reader.close()
        _flip(path, void.offset + at)


@pytest.mark.parametrize("damage", ["flipped", "cut off"])
def test_committed_is_not_what_a_damaged_void_refuses(journal: Journal, damage: str) -> None:
    path, void = _ends_with_a_void(journal)
    refused_seq = Seq(void.seq - 1)
    end = journal.end
    reader = FrameRangeReader(journal.directory, UUID)
    reader.seek(refused_seq)
    assert reader.committed_seq(end) == refused_seq - 1
    if damage == "flipped":
        _flip(path, void.offset + len(void.content) - 1)
    else:
        os.truncate(path, void.offset)
    with pytest.raises(JournalDamagedError):
        reader.committed_seq(end)
    reader.close()
