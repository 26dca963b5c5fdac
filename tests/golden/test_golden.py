"""Every later reader reads what an earlier version wrote."""

import json
from pathlib import Path
from unittest import mock

import pytest

from fusejournal.journal.handle_key import NO_HANDLE_KEY, HandleKey
from fusejournal.journal.index_making import build_index
from fusejournal.journal.journal import Journal
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.segment import SegmentReader, list_segments
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.journal.verify import verify
from fusejournal.operations import Kind, Setattr
from fusejournal.types import TIME_MAX_NS, TIME_MIN_NS, Caller, Fid, Seq
from tests.golden.samples import HANDLE_KEY
from tests.support.entries import (
    ALLOCATIONS,
    FLAGS,
    SAMPLES,
    UUID_OF_TESTS,
    WHITEOUTS,
    write_samples,
)

_HERE = Path(__file__).parent


def _golden(name: str = "journal-v1") -> bytes:
    text = (_HERE / f"{name}.json").read_text()
    return bytes.fromhex("".join(json.loads(text)["segment"]))


_KEYS = pytest.mark.parametrize(
    ("name", "handle_key"),
    [("journal-v1", NO_HANDLE_KEY), ("journal-v1-handle-key", HANDLE_KEY)],
)
"""A program that knows of no handle keys writes the one, and passes over the other's."""


@_KEYS
def test_version_1_is_read(tmp_path: Path, name: str, handle_key: HandleKey) -> None:
    (tmp_path / "00000000000000000001.fj").write_bytes(_golden(name))
    journal = Journal.open(
        tmp_path, UUID_OF_TESTS, JournalOptions(), unclean_machine=False, read_only=True
    )
    assert journal.damage is None
    assert journal.ends_clean
    assert journal.handle_key == handle_key
    entries = list(journal.reader.read(Seq(1), Seq(journal.head_seq + 1)))
    assert [(entry.operation, bytes(entry.data)) for entry in entries] == list(SAMPLES)
    assert {entry.who for entry in entries} == {Caller(1000, 100, 4242)}
    assert [entry.time_ns for entry in entries] == [
        1_700_000_000_000_000_000 + entry.seq for entry in entries
    ]
    assert entries[1].paths == {1: b""}
    assert entries[5].paths is None  # its directory was made in this segment


def test_whiteouts_are_read_and_written(tmp_path: Path) -> None:
    golden = _golden("journal-v1-whiteouts")
    with mock.patch("fusejournal.journal.clock.now_ns", return_value=1_700_000_000_000_000_000):
        write_samples(tmp_path, WHITEOUTS).close()
    (path,) = list_segments(tmp_path)
    assert path.read_bytes() == golden
    journal = Journal.open(
        tmp_path, UUID_OF_TESTS, JournalOptions(), unclean_machine=False, read_only=True
    )
    entries = list(journal.reader.read(Seq(1), END))
    assert [(entry.operation, bytes(entry.data)) for entry in entries] == list(WHITEOUTS)
    assert [type(entry.operation) for entry in entries] == [type(one[0]) for one in WHITEOUTS]
    with SegmentReader(path) as reader:
        index = build_index(reader)
    # The whiteout itself is made; the file moves; what a second whiteout replaces is the first.
    assert [Kind(one.kind).name for one in index.of_fid(Fid(3))] == ["CREATE", "WHITEOUT"]
    assert [Kind(one.kind).name for one in index.of_fid(Fid(2))] == [
        "CREATE", "WHITEOUT", "WHITEOUT",
    ]  # fmt: skip


def test_allocations_are_read_and_written(tmp_path: Path) -> None:
    golden = _golden("journal-v1-allocations")
    with mock.patch("fusejournal.journal.clock.now_ns", return_value=1_700_000_000_000_000_000):
        write_samples(tmp_path, ALLOCATIONS).close()
    (path,) = list_segments(tmp_path)
    assert path.read_bytes() == golden
    entries = list(JournalReader(tmp_path, UUID_OF_TESTS).read(Seq(1), END))
    assert [entry.operation for entry in entries] == [one.operation for one in ALLOCATIONS]
    with SegmentReader(path) as reader:
        index = build_index(reader)
    found = list(index.of_fid(Fid(2)))
    assert [Kind(one.kind).name for one in found] == ["CREATE", *["FALLOCATE"] * 6]
    assert [one.refused for one in found] == [False] * 6 + [True]


def test_flags_are_read_and_written(tmp_path: Path) -> None:
    golden = _golden("journal-v1-flags")
    with mock.patch("fusejournal.journal.clock.now_ns", return_value=1_700_000_000_000_000_000):
        write_samples(tmp_path, FLAGS).close()
    (path,) = list_segments(tmp_path)
    assert path.read_bytes() == golden
    entries = list(JournalReader(tmp_path, UUID_OF_TESTS).read(Seq(1), END))
    assert [entry.operation for entry in entries] == [one.operation for one in FLAGS]
    with SegmentReader(path) as reader:
        index = build_index(reader)
    assert {Kind(one.kind).name for one in index.of_fid(Fid(2))} == {"CREATE", "SETFLAGS"}
    assert [one.refused for one in index.of_fid(Fid(1)) if one.kind == Kind.SETFLAGS] == [True]


def test_times_after_2262_are_read(tmp_path: Path) -> None:
    """They were written for as long as the layer has been there, and not always read."""
    (tmp_path / "00000000000000000001.fj").write_bytes(_golden("journal-v1-late-times"))
    journal = Journal.open(tmp_path, UUID_OF_TESTS, JournalOptions(), unclean_machine=False)
    assert journal.ends_clean
    entries = list(journal.reader.read(Seq(1), END))
    times = [getattr(entry.operation, "mtime_ns", None) for entry in entries]
    late = 10_413_792_000 * 10**9
    assert times == [None, TIME_MAX_NS, TIME_MAX_NS, TIME_MAX_NS, None, None, late, None, None]
    operation = entries[7].operation
    assert isinstance(operation, Setattr)
    assert operation.atime_ns == TIME_MIN_NS
    (path,) = list_segments(tmp_path)
    with SegmentReader(path) as reader:
        assert build_index(reader).entries == len(entries)
    assert verify([path], None, lambda done, total: None, deep=True).damages == []
    journal.close()


@_KEYS
def test_version_1_is_written(tmp_path: Path, name: str, handle_key: HandleKey) -> None:
    with mock.patch("fusejournal.journal.clock.now_ns", return_value=1_700_000_000_000_000_000):
        write_samples(tmp_path, handle_key=handle_key).close()
    (path,) = list_segments(tmp_path)
    assert path.read_bytes() == _golden(name)
    with SegmentReader(path) as reader:
        assert reader.header.time_ns == 1_700_000_000_000_000_000


def test_a_void_may_follow_a_whiteout(tmp_path: Path) -> None:
    write_samples(tmp_path, WHITEOUTS[:3]).close()
    assert JournalReader(tmp_path, UUID_OF_TESTS).head() == (Seq(3), False)
