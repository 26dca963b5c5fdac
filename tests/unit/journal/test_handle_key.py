"""Handle keys: what generations come of them, that each segment has the volume's, and that no
segment with another one is taken."""

import pickle
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fusejournal.errors import JournalForeignError
from fusejournal.journal.frame_range import FrameRange, FrameRangeReader
from fusejournal.journal.handle_key import HANDLE_KEY_BYTES, NO_HANDLE_KEY, HandleKey
from fusejournal.journal.journal import Journal
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.received import with_key
from fusejournal.journal.segment import SegmentReader, list_segments
from fusejournal.journal.segment_header import SEGMENT_HEADER_BYTES, SegmentHeader
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import Write
from fusejournal.types import ROOT_FID, SYSTEM_CALLER, Epoch, Fid, Seq, first_fid
from tests.support.entries import UUID_OF_TESTS, without_handle_key

_OPTIONS = JournalOptions(segment_entries=4, compress=False)
_KEYS = st.binary(min_size=HANDLE_KEY_BYTES, max_size=HANDLE_KEY_BYTES).map(HandleKey)
_FIDS = st.integers(2, 2**63 - 1).map(Fid)
_KEY = HandleKey(range(HANDLE_KEY_BYTES))


@given(key=_KEYS, fid=_FIDS)
def test_a_generation_is_never_that_of_no_key(key: HandleKey, fid: Fid) -> None:
    assert 0 < key.generation(fid) < 2**32
    assert key.generation(ROOT_FID) == NO_HANDLE_KEY.generation(fid) == 0


def test_generations_are_those_of_the_first_version() -> None:
    """Clients hold handles for years: the same key and fid give the same generation for ever."""
    known = {
        2: 851351666,
        3: 2655193002,
        1 << 32: 2667104907,
        first_fid(Epoch(2)): 3769717912,
        2**63 - 1: 242944982,
    }  # as ``openssl mac -macopt size:4 BLAKE2BMAC`` has them, too
    assert {fid: _KEY.generation(Fid(fid)) for fid in known} == known


def test_generations_have_nothing_in_common() -> None:
    found = {HandleKey.random().generation(Fid(fid)) for fid in range(2, 2000)}
    found |= {_KEY.generation(Fid(fid)) for fid in range(2, 2000)}
    assert len(found) > 3990  # of 3996: two alike are one in a thousand


@given(key=_KEYS)
def test_a_key_does_not_show_itself(key: HandleKey) -> None:
    header = SegmentHeader(UUID_OF_TESTS, Epoch(1), Seq(1), 0, 0, key)
    shown = f"{key} {key!r} %s" % key + repr(header) + str(ValueError(key))
    assert bytes(key).hex() not in shown
    assert repr(bytes(key))[2:-1] not in shown
    assert pickle.loads(pickle.dumps(header)) == header


def _append(journal: Journal, entries: int) -> None:
    for _ in range(entries):
        journal.append(
            Write(Fid(7), 0, None), SYSTEM_CALLER, journal.last_time_ns + 1, lambda _: b"path", b"x"
        )


def _keys(directory: Path) -> list[HandleKey]:
    found = []
    for path in list_segments(directory):
        with SegmentReader(path) as reader:
            found.append(reader.header.handle_key)
    return found


def _made(directory: Path, handle_key: HandleKey | None = None, entries: int = 10) -> HandleKey:
    """A closed journal, of which the newest segment is not full; its key."""
    directory.mkdir(exist_ok=True)
    journal = Journal.create(directory, UUID_OF_TESTS, _OPTIONS, handle_key)
    _append(journal, entries)
    journal.sync()
    journal.close()
    return journal.handle_key


def _open(directory: Path, *, read_only: bool = False, is_copy: bool = False) -> Journal:
    return Journal.open(
        directory,
        UUID_OF_TESTS,
        _OPTIONS,
        unclean_machine=False,
        read_only=read_only,
        is_copy=is_copy,
    )


def test_each_segment_has_the_volumes_key(tmp_path: Path) -> None:
    key = _made(tmp_path / "one")
    assert key != _made(tmp_path / "other")
    assert len(key) == HANDLE_KEY_BYTES
    for _ in range(2):
        journal = _open(tmp_path / "one")
        assert journal.handle_key == key
        _append(journal, 10)
        journal.close()
    assert _keys(tmp_path / "one") == [key] * 8


def test_a_journal_without_a_key_never_gets_one(tmp_path: Path) -> None:
    _made(tmp_path)
    without_handle_key(tmp_path)
    journal = _open(tmp_path)
    _append(journal, 10)
    journal.close()
    assert _keys(tmp_path) == [NO_HANDLE_KEY] * 5


def test_segments_of_a_program_without_keys_in_between(tmp_path: Path) -> None:
    key = _made(tmp_path)
    newest = list_segments(tmp_path)[-1]
    content = newest.read_bytes()
    header = SegmentHeader.decode(content)._replace(handle_key=NO_HANDLE_KEY)
    newest.write_bytes(header.encode() + content[SEGMENT_HEADER_BYTES:])
    assert JournalReader(tmp_path).handle_key() == key
    journal = _open(tmp_path)
    _append(journal, 10)
    journal.close()
    assert _keys(tmp_path) == [key, key, NO_HANDLE_KEY, key, key]


def test_any_segment_is_enough(tmp_path: Path) -> None:
    """A journal whose beginning is gone, and one whose newest segment is spoilt."""
    key = _made(tmp_path)
    first, *_, newest = list_segments(tmp_path)
    first.unlink()
    assert _open(tmp_path, read_only=True).handle_key == key
    newest.write_bytes(b"\1" + newest.read_bytes()[1:])
    assert JournalReader(tmp_path).handle_key() == key


@pytest.mark.parametrize("size", [0, SEGMENT_HEADER_BYTES - 1])
def test_a_new_volume_that_died_before_its_first_header(tmp_path: Path, size: int) -> None:
    _made(tmp_path, entries=0)
    (path,) = list_segments(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    journal = _open(tmp_path)
    assert len(journal.handle_key) == HANDLE_KEY_BYTES
    journal.close()
    assert _keys(tmp_path) == [journal.handle_key]


# -- received ------------------------------------------------------------------------------------


def _frame_ranges(directory: Path) -> list[FrameRange]:
    journal = _open(directory, read_only=True)
    reader = FrameRangeReader(directory, UUID_OF_TESTS)
    reader.seek(Seq(0))
    found = []
    while frame_range := reader.next_checked(journal.end, journal.head_seq, 1):
        found.append(frame_range)
    reader.close()
    return found


def _with_key(frame_range: FrameRange, key: HandleKey) -> FrameRange:
    header = SegmentHeader.decode(frame_range.content)._replace(handle_key=key)
    frames = frame_range.content[SEGMENT_HEADER_BYTES:]
    return frame_range._replace(content=header.encode() + frames)


def test_a_copy_has_its_sources_key(tmp_path: Path) -> None:
    key = _made(tmp_path / "source")
    (tmp_path / "copy").mkdir()
    copy = Journal(tmp_path / "copy", UUID_OF_TESTS, _OPTIONS)
    assert copy.handle_key == NO_HANDLE_KEY
    for frame_range in _frame_ranges(tmp_path / "source"):
        copy.receive(frame_range)
        assert copy.handle_key == key
    copy.close()
    again = _open(tmp_path / "copy", is_copy=True)
    assert again.handle_key == key
    again.close()
    assert _keys(tmp_path / "copy") == [key] * 3


def test_no_segment_brings_another_key(tmp_path: Path) -> None:
    """A peer that hands entries back could have the handles of all clients go stale by it."""
    key = _made(tmp_path / "source")
    (tmp_path / "copy").mkdir()
    copy = Journal(tmp_path / "copy", UUID_OF_TESTS, _OPTIONS)
    ranges = _frame_ranges(tmp_path / "source")
    second = next(number for number, one in enumerate(ranges[1:], 1) if one.offset == 0)
    for frame_range in ranges[:second]:
        copy.receive(frame_range)
    with pytest.raises(JournalForeignError, match="another handle key") as caught:
        copy.receive(_with_key(ranges[second], HandleKey.random()))
    assert key.hex() not in str(caught.value)
    # One without a key comes of a program that knew of none, and says nothing.
    copy.receive(_with_key(ranges[second], NO_HANDLE_KEY))
    for frame_range in ranges[second + 1 :]:
        copy.receive(frame_range)
    assert copy.handle_key == key
    copy.close()


def test_a_mirror_without_a_key_takes_its_primarys(tmp_path: Path) -> None:
    """A release that knew of no keys has received its first segments. What a primary without one
    gets back brings none."""
    key = _made(tmp_path / "source")
    ranges = _frame_ranges(tmp_path / "source")
    second = next(number for number, one in enumerate(ranges[1:], 1) if one.offset == 0)
    for is_copy in (True, False):
        directory = tmp_path / f"copy {is_copy}"
        directory.mkdir()
        copy = Journal(directory, UUID_OF_TESTS, _OPTIONS)
        for frame_range in ranges[:second]:
            copy.receive(with_key(frame_range, NO_HANDLE_KEY))
        copy.close()
        without_handle_key(directory)
        copy = _open(directory, is_copy=is_copy)
        assert copy.handle_key == NO_HANDLE_KEY
        if is_copy:
            copy.receive(ranges[second])
            assert copy.handle_key == key
        else:
            with pytest.raises(JournalForeignError, match="another handle key"):
                copy.receive(ranges[second])
        copy.close()


def test_a_header_is_received_byte_for_byte(tmp_path: Path) -> None:
    """Also what a later version has put into it."""
    _made(tmp_path / "source")
    (tmp_path / "copy").mkdir()
    first, *_ = _frame_ranges(tmp_path / "source")
    head = first.content[:80] + b"later".ljust(40, b"\0")
    header = head + xxhash.xxh3_64_digest(head)[::-1]
    copy = Journal(tmp_path / "copy", UUID_OF_TESTS, _OPTIONS)
    copy.receive(first._replace(content=header + first.content[SEGMENT_HEADER_BYTES:]))
    copy.close()
    (path,) = list_segments(tmp_path / "copy")
    assert path.read_bytes()[:SEGMENT_HEADER_BYTES] == header


def test_a_range_gets_the_key_that_it_lacks(tmp_path: Path) -> None:
    key = _made(tmp_path)
    first, second, *_ = _frame_ranges(tmp_path)
    assert with_key(_with_key(first, NO_HANDLE_KEY), key) == first
    assert with_key(first, HandleKey.random()) == first
    assert with_key(second, HandleKey.random()) == second


def test_a_journal_begun_for_nothing_takes_the_key_of_what_it_receives(tmp_path: Path) -> None:
    """A new volume lost its first entries by a system crash, and a mirror has them."""
    key = _made(tmp_path / "source")
    (tmp_path / "lost").mkdir()
    lost = Journal.create(tmp_path / "lost", UUID_OF_TESTS, _OPTIONS)
    assert lost.handle_key not in (key, NO_HANDLE_KEY)
    for frame_range in _frame_ranges(tmp_path / "source"):
        lost.receive(frame_range)
    assert lost.handle_key == key
    _append(lost, 10)
    lost.close()
    assert set(_keys(tmp_path / "lost")) == {key}
