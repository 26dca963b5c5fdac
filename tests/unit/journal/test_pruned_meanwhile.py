"""Reading a journal of which the beginning is pruned meanwhile: nothing is left out unsaid."""

from dataclasses import replace
from pathlib import Path

import pytest

from fusejournal.errors import JournalError, JournalPrunedError
from fusejournal.history.lookup import Lookup
from fusejournal.journal.drop import drop_segments
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.segment import list_segments
from fusejournal.replication import common_ancestor
from fusejournal.replication.common_ancestor import ChainFinder
from fusejournal.types import ROOT_FID, Fid, Seq
from fusejournal.versions.blocks import BlockWriter
from fusejournal.versions.builder import build_trees, no_trees
from tests.support.bases import base_tree, based_reader, give_base, possible_bases
from tests.support.objects import MemoryStore
from tests.support.volumes import show_nothing
from tests.support.workload import (
    UUID_OF_WORKLOADS,
    make_directory,
    make_file,
    workload_of,
)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """One of 62 entries, 10 a segment."""
    files = [make_file(Fid(3 + number), Fid(2), b"file%d" % number) for number in range(60)]
    workload = workload_of(make_directory(Fid(2), ROOT_FID, b"d"), *files)
    journal = tmp_path / "journal"
    replace(workload, segment_entries=10, care=b"\0").write(journal)
    return journal


def _seqs(reader: JournalReader, from_seq: int, to_seq: int = END) -> list[int]:
    return [entry.seq for entry in reader.read(Seq(from_seq), Seq(to_seq))]


def test_what_was_there_when_reading_began_is_missed(journal: Path) -> None:
    reader = JournalReader(journal)
    assert reader.first_seq == 1
    seq = possible_bases(journal)[2]
    drop_segments(journal, seq)
    for from_seq in (1, seq):
        with pytest.raises(JournalPrunedError, match=f"to {seq} were pruned meanwhile: say it"):
            _seqs(reader, from_seq)
    with pytest.raises(JournalPrunedError):
        _seqs(reader, 1, seq)  # none of it is there
    assert _seqs(reader, seq + 1)[0] == seq + 1
    # Who begins now reads what there is, from wherever he asks.
    assert _seqs(JournalReader(journal), 1)[0] == seq + 1
    assert _seqs(JournalReader(journal), 1, seq) == []


def test_in_the_midst_of_it(journal: Path) -> None:
    reader = JournalReader(journal)
    entries = reader.read(Seq(1), END)
    next(entries)
    drop_segments(journal, possible_bases(journal)[3])
    with pytest.raises(JournalPrunedError, match="pruned meanwhile"):
        list(entries)


def test_a_lookup_tells_it(journal: Path) -> None:
    lookup = Lookup(JournalReader(journal))
    drop_segments(journal, possible_bases(journal)[3])
    with pytest.raises(JournalPrunedError, match="pruned meanwhile"):
        list(lookup.entries_of(Fid(3)))


def test_a_reader_from_before_the_first_segment(tmp_path: Path, journal: Path) -> None:
    later = tmp_path / "later"
    reader = JournalReader(later)
    assert _seqs(reader, 1) == []
    drop_segments(journal, possible_bases(journal)[0])
    journal.rename(later)
    seqs = _seqs(reader, 1)
    assert seqs == list(range(seqs[0], seqs[-1] + 1))


def test_a_base_says_where_it_begins(journal: Path) -> None:
    first, _, later, *_ = possible_bases(journal)
    base = give_base(journal.parent, first)
    reader = based_reader(journal.parent, base)
    drop_segments(journal, later)  # between the reading of the record and that of the journal
    for _ in range(2):
        with pytest.raises(JournalPrunedError, match=f"entries {first + 1} to {later} were"):
            _seqs(reader, 1)
    reader.begin_behind(base_tree(replace(base, seq=later)))
    assert _seqs(reader, 1)[0] == later + 1


def test_no_tree_is_made_of_less(journal: Path) -> None:
    reader = JournalReader(journal)
    seq = possible_bases(journal)[1]
    drop_segments(journal, seq)
    blocks = BlockWriter(MemoryStore())
    with pytest.raises(JournalError, match="seq 1 cannot be read"):
        build_trees(blocks, no_trees(blocks), reader, Seq(1), Seq(seq + 5), show_nothing)


async def test_who_compares_journals_misses_an_entry_alone(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chains = ChainFinder(journal, UUID_OF_WORKLOADS)
    assert await chains.first_seq() == 1
    before = list_segments(journal)
    ((_, frame),) = JournalReader(journal).frames(Seq(5), Seq(6))
    assert await chains.at((Seq(5),)) == (frame.checksum,)
    drop_segments(journal, possible_bases(journal)[1])
    assert await chains.at((Seq(5),)) == (None,)
    monkeypatch.setattr(common_ancestor, "list_segments", lambda _: before)
    assert await chains.at((Seq(5),)) == (None,)
