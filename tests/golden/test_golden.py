"""Every later reader reads what an earlier version wrote."""

import json
from pathlib import Path
from unittest import mock

from fusejournal.journal.journal import Journal
from fusejournal.journal.segment import SegmentReader, list_segments
from fusejournal.journal.writing import JournalOptions
from fusejournal.types import Seq, Who
from tests.support.entries import SAMPLES, UUID_OF_TESTS, write_samples

_VERSION_1 = Path(__file__).parent / "journal-v1.json"


def _golden() -> bytes:
    return bytes.fromhex("".join(json.loads(_VERSION_1.read_text())["segment"]))


def test_version_1_is_read(tmp_path: Path) -> None:
    (tmp_path / "00000000000000000001.fj").write_bytes(_golden())
    journal = Journal.open(
        tmp_path, UUID_OF_TESTS, JournalOptions(), unclean_machine=False, read_only=True
    )
    assert journal.damage is None
    assert journal.ends_clean
    entries = list(journal.reader.read(Seq(1), Seq(journal.head_seq + 1)))
    assert [(entry.operation, bytes(entry.data)) for entry in entries] == list(SAMPLES)
    assert {entry.who for entry in entries} == {Who(1000, 100, 4242)}
    assert [entry.time_ns for entry in entries] == [
        1_700_000_000_000_000_000 + entry.seq for entry in entries
    ]
    assert entries[1].paths == {1: b""}
    assert entries[5].paths is None  # its directory was made in this segment


def test_version_1_is_written(tmp_path: Path) -> None:
    with mock.patch("time.time_ns", return_value=1_700_000_000_000_000_000):
        write_samples(tmp_path).close()
    (path,) = list_segments(tmp_path)
    assert path.read_bytes() == _golden()
    with SegmentReader(path) as reader:
        assert reader.header.time_ns == 1_700_000_000_000_000_000
