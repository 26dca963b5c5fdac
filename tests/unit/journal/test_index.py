"""The sidecar index: says what the segment says, and is passed over when it does not fit."""

import subprocess
import sys
from array import array
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from fusejournal.errors import JournalDamagedError
from fusejournal.history.lookup import Lookup
from fusejournal.history.marks import find_mark
from fusejournal.history.name_changes import NameChange, name_changes
from fusejournal.journal.format import FormatError
from fusejournal.journal.index import (
    SegmentIndex,
    has_current_index,
    has_index,
    index_path,
    load_index,
)
from fusejournal.journal.index_making import build_index, extend_index, write_index
from fusejournal.journal.index_parts import IndexContents, PathTable, RecordedPath
from fusejournal.journal.journal import Journal
from fusejournal.journal.outcomes import HELD, with_outcomes
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import SegmentReader, list_segments
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import Kind, Mark, NewEpoch, Rename, Setattr, Void, Write
from fusejournal.types import Caller, Fid, Seq
from tests.support.entries import SAMPLES, UUID_OF_TESTS, write_samples
from tests.support.indexes import as_version_1


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """The segment of a journal with every kind of entry."""
    journal = write_samples(tmp_path)
    journal.sync()
    journal.close()
    (path,) = list_segments(tmp_path)
    return path


def many(directory: Path, count: int, **options: Any) -> Journal:
    """A journal of *count* entries in several segments."""
    journal = Journal.create(directory, UUID_OF_TESTS, JournalOptions(**options))
    for number in range(count):
        time_ns = 10 * (number + 1)
        journal.append(
            Write(Fid(2 + number % 7), number, None),
            Caller(number % 3, 0, 0),
            time_ns,
            lambda fid: b"d/f%d" % fid,
            b"x" * (number % 50),
        )
    journal.sync()
    return journal


def test_it_says_what_the_segment_says(samples: Path) -> None:
    with SegmentReader(samples) as reader:
        index = build_index(reader)
    entries = list(JournalReader(samples.parent).read(Seq(1), Seq(1000)))
    assert (index.first_seq, index.last_seq, index.entries) == (1, len(SAMPLES), len(SAMPLES))
    assert (index.first_time_ns, index.last_time_ns) == (entries[0].time_ns, entries[-1].time_ns)
    assert index.kinds == sum(1 << kind for kind in {e.operation.kind for e in entries})
    about: dict[Fid, set[int]] = defaultdict(set)
    named: dict[tuple[int, bytes], set[int]] = defaultdict(set)
    refused = {e.operation.seq for e in entries if isinstance(e.operation, Void)}
    for number, entry in enumerate(entries):
        operation = entry.operation
        if (fid := getattr(operation, "fid", None)) is not None:
            about[fid].add(number)
        if isinstance(operation, Rename) and operation.replaced:
            about[operation.replaced].add(number)
        for change in name_changes(operation):
            named[change.parent, change.name].add(number)
    for fid, numbers in about.items():
        postings = [one for one in index.of_fid(Fid(fid)) if not one.is_parent]
        assert {one.number for one in postings} == numbers
        for one in postings:
            assert one.kind == entries[one.number].operation.kind
            assert one.refused == (entries[one.number].seq in refused)
    for (parent, name), numbers in named.items():
        assert {one.number for one in index.of_name(Fid(parent), name)} == numbers
    assert [one.number for one in index.of_name(Fid(0), b"before the rm")] == [
        n for n, e in enumerate(entries) if isinstance(e.operation, Mark)
    ]
    assert index.has_uid(1000)
    assert not index.has_uid(0)
    assert set(index.which_of(about.keys())) == about.keys()
    assert not index.has_fid(Fid(999))
    told = {(path, fid) for e in entries for fid, path in (e.paths or {}).items()}
    assert {(one.path, one.fid) for one in index.recorded_paths()} == told
    for uid in (None, 0, 1000):
        for kinds in (0, 1 << Kind.WRITE, 1 << Kind.RENAME | 1 << Kind.CREATE):
            meant = [
                number
                for number, e in enumerate(entries)
                if uid in (None, e.who.uid) and (not kinds or kinds >> e.operation.kind & 1)
            ]
            found = index.of_deed(uid, kinds)
            assert found is None if uid is None and not kinds else list(found or ()) == meant
            assert list(index.of_deed(uid, kinds, range(5)) or ()) == [
                number for number in meant if number < 5
            ]
            assert index.has_deed(uid, kinds) == bool(meant)
    changes = [(n, one) for n, e in enumerate(entries) for one in name_changes(e.operation)]
    for number in range(len(entries)):
        given = {one.after for n, one in changes if n == number and one.after is not None}
        assert set(index.named_by(number) or ()) == given
    owned = {(one.name, fid) for _, one in changes for fid in (one.before, one.after) if fid}
    assert owned <= set(index.owned_names())
    names = (index.texts() or b"").split(b"/")
    assert all(name in names for path, _ in told for name in path.split(b"/"))
    for kept in (index, index.contents()):
        assert kept.last_seq == len(SAMPLES)
        assert kept.chain == index.chain
        assert [fid for fid in range(999) if kept.has_fid(Fid(fid))] == [
            fid for fid in range(999) if index.has_fid(Fid(fid))
        ]
        moved = {int(fid) for _, one in changes for fid in (one.before, one.after) if fid}
        assert {fid for fid in range(999) if kept.may_be_named(Fid(fid))} == moved
        assert all(kept.may_have_name(Fid(parent), name) for parent, name in named_of(changes))
        assert not kept.may_have_name(Fid(1), b"never was there")


def named_of(changes: list[tuple[int, NameChange]]) -> set[tuple[Fid, bytes]]:
    """The names that *changes* are about."""
    return {(one.parent, one.name) for _, one in changes}


def test_contents_tell_fids_of_several_epochs_apart() -> None:
    fids = array("Q", (5, 7, (1 << 40) + 5, (1 << 40) + 6))
    for some in (fids, fids[2:], fids[:0]):
        kept = IndexContents(Seq(9), 1, memoryview(some), memoryview(array("Q")), None)
        there = {fid for fid in (0, 5, 6, 7, (1 << 40) + 5, (1 << 40) + 6, 1 << 40) if
                 kept.has_fid(Fid(fid))}  # fmt: skip
        assert there == set(some)
        assert not kept.may_have_name(Fid(1), b"x")


def test_paths_are_unpacked_as_far_as_they_are_asked_for() -> None:
    rows = [RecordedPath(b"d%d/%s" % (n // 3, name), Fid(n), n)
            for n in range(90) for name in (b"a", b"a", b"a/b", b"a.b")]  # fmt: skip
    rows.sort()
    for size in (1, 2, 7, len(rows)):
        blocks = [rows[at : at + size] for at in range(0, len(rows), size)]
        unpacked: list[int] = []

        def unpack(begin: int, end: int, blocks: Any = blocks, unpacked: Any = unpacked) -> Any:
            assert end == begin + 1
            unpacked.append(begin)
            return blocks[begin]

        ends = [(block[0].path, number + 1) for number, block in enumerate(blocks)]
        for path in (b"", b"d1/a", b"d1", b"d29/a", b"d3/a.b", b"zzz", b"d1/a/b"):
            table = PathTable(ends, unpack)
            at = [one for one in rows if one.path == path]
            below = [one for one in rows if (one.path + b"/").startswith(path + b"/")]
            assert list(table.at(path)) == at
            assert sorted(table.below(path)) == below
            assert len(unpacked) == len(set(unpacked)) <= 2 * len(below) // size + 6
            unpacked.clear()
        assert list(PathTable(ends, unpack).starting(b"")) == rows


def test_one_of_version_1_answers_and_is_made_anew(tmp_path: Path) -> None:
    journal = many(tmp_path, 60, segment_entries=20)
    for path in journal.sealed.without_index():
        write_index(path)
    assert journal.sealed.without_index() == []
    journal.close()
    first = list_segments(tmp_path)[0]
    whole = SegmentIndex(index_path(first).read_bytes())
    index_path(first).write_bytes(as_version_1(whole.content))
    assert has_index(first)
    assert not has_current_index(first)
    with SegmentReader(first) as reader:
        old = load_index(first, reader)
        assert old is not None
        assert extend_index(old, reader, allow_torn=True) is None  # it lacks what is gone on with
    assert not old.is_current
    assert old.recorded_paths() == whole.recorded_paths()
    assert old.of_deed(1, 0) is None
    assert old.of_deed(1, 0, [3, 4]) == [3, 4]
    assert old.of_deed(None, 0) is None
    assert old.named_by(0) is None
    assert old.texts() is None
    assert list(old.owned_names()) == []
    assert old.contents().may_be_named(Fid(2))
    again = Journal.open(tmp_path, UUID_OF_TESTS, JournalOptions(), unclean_machine=False)
    again.sync()
    assert again.sealed.without_index() == [first]
    again.close()


def test_very_many_users_are_kept_apart(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, JournalOptions())
    for number in range(700):
        who = Caller(number % 300, 0, 0)
        journal.append(Setattr(Fid(2), 1, None, None, None, None), who, number + 1, lambda _: b"f")
    journal.close()
    (path,) = list_segments(tmp_path)
    index = _built(path)
    assert index.of_deed(299, 1 << Kind.SETATTR) == [299, 599]
    assert index.of_deed(299, 1 << Kind.WRITE) == ()
    assert index.of_deed(1, 0, range(302)) == [1, 301]


def test_points_lead_to_every_entry(tmp_path: Path) -> None:
    journal = many(tmp_path, 500)
    journal.close()
    (path,) = list_segments(tmp_path)
    write_index(path)
    reader = JournalReader(tmp_path)
    for number in (0, 1, 31, 32, 33, 250, 499):
        ((entry, outcome),) = reader.pick(path, [number])
        assert (entry.seq, outcome) == (number + 1, HELD)
    assert [e.seq for e, _ in reader.pick(path, [3, 4, 400, 401])] == [4, 5, 401, 402]
    assert [e.seq for e in reader.read(Seq(333), Seq(336))] == [333, 334, 335]
    lookup = Lookup(reader)
    for number in (0, 1, 100, 499):
        time_ns = 10 * (number + 1)
        assert lookup.seq_after(time_ns - 1) == number + 1
        assert lookup.seq_after(time_ns) == lookup.seq_after(time_ns + 9) == number + 2
    assert lookup.seq_after(0) == 1


@pytest.mark.parametrize("compressed", [False, True])
def test_a_pick_checks_what_it_reads(tmp_path: Path, compressed: bool) -> None:
    journal = many(tmp_path, 2000, segment_entries=500)
    if compressed:
        for path in journal.sealed.compressible():
            journal.sealed.compress(path)
    first = list_segments(tmp_path)[0]
    write_index(first)
    assert [e.seq for e, _ in JournalReader(tmp_path).pick(first, [444])] == [445]
    content = bytearray(first.read_bytes())
    content[len(content) * 444 // 500] ^= 1
    first.write_bytes(content)
    with pytest.raises(JournalDamagedError):
        list(JournalReader(tmp_path).pick(first, range(440, 460)))


def test_every_spoilt_index_is_passed_over(samples: Path) -> None:
    write_index(samples)
    path = index_path(samples)
    whole = path.read_bytes()
    with SegmentReader(samples) as reader:
        assert load_index(samples, reader) is not None
        for at in range(len(whole)):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << at % 8
            with pytest.raises(FormatError):
                SegmentIndex(bytes(damaged))
        for length in range(0, len(whole), 7):
            path.write_bytes(whole[:length])
            assert load_index(samples, reader) is None
    # And what is asked is answered all the same.
    assert find_mark(Lookup(JournalReader(samples.parent)), "before the rm") is not None


def test_an_index_of_other_content_does_not_fit(samples: Path, tmp_path: Path) -> None:
    write_index(samples)
    other = tmp_path / "other"
    other.mkdir()
    journal = write_samples(other, SAMPLES[:-1])
    journal.close()
    (segment,) = list_segments(other)
    index_path(segment).write_bytes(index_path(samples).read_bytes())
    with SegmentReader(segment) as reader:
        assert load_index(segment, reader) is None


def test_it_is_made_by_a_process_of_its_own(samples: Path) -> None:
    assert not has_index(samples)
    subprocess.run(
        [sys.executable, "-m", "fusejournal.journal.index_making", str(samples)], check=True
    )
    with SegmentReader(samples) as reader:
        assert load_index(samples, reader) is not None


def test_segments_are_rolled_by_entries_but_never_before_a_void(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, JournalOptions(segment_entries=3))
    operations = (Setattr(Fid(2), 1, None, None, None, None), Void(Seq(0), 28, 0))
    for number in range(1, 21):
        operation = operations[(number - 1) % 2]
        if isinstance(operation, Void):
            operation = Void(Seq(number - 1), 28, 0)
        journal.append(operation, Caller(0, 0, 0), number, lambda fid: b"f")
    journal.close()
    assert len(list_segments(tmp_path)) > 4
    for path in list_segments(tmp_path):
        with SegmentReader(path) as reader:
            index = build_index(reader)
        first = next(iter(JournalReader([path]).read(index.first_seq, Seq(index.first_seq + 1))))
        assert first.operation.kind != Kind.VOID
    pairs = list(with_outcomes(JournalReader(tmp_path).read(Seq(1), Seq(21))))
    assert all(outcome.void is not None for _, outcome in pairs)


def _grown(path: Path, index: SegmentIndex) -> SegmentIndex | None:
    with SegmentReader(path) as reader:
        return extend_index(index, reader, allow_torn=True)


def _built(path: Path) -> SegmentIndex:
    with SegmentReader(path) as reader:
        return build_index(reader, allow_torn=True)


def test_it_grows_with_its_segment(tmp_path: Path) -> None:
    """It is as one that was made anew, whatever came last: a VOID of the last entry, too."""
    journal = Journal.create(tmp_path, UUID_OF_TESTS, JournalOptions())
    who, time_ns = Caller(7, 7, 7), 0
    index: SegmentIndex | None = None
    samples = [one for one in SAMPLES if not isinstance(one.operation, NewEpoch | Void)]
    for number, sample in enumerate(samples):
        time_ns += 10
        journal.append(sample.operation, who, time_ns, lambda fid: b"p%d" % fid, sample.data)
        if number % 3 == 0:
            journal.append(Void(journal.head_seq, 28, 0), who, time_ns + 1, lambda _: None)
        if number % 4 == 1:
            continue  # two at once
        (path,) = list_segments(tmp_path)
        built = _built(path)
        if index is not None:
            index = _grown(path, index)
            assert index is not None
            assert index.content == built.content
        index = index or built
    assert index is not None
    assert _grown(path, index) is index  # nothing came
    journal.close()


def test_one_of_entries_that_are_gone_is_no_beginning(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    journal = many(tmp_path / "one", 40)
    other = many(tmp_path / "other", 20)
    (one,), (cut,) = list_segments(tmp_path / "one"), list_segments(tmp_path / "other")
    index = _built(one)
    assert _grown(cut, index) is None
    other.append(
        Setattr(Fid(3), 0o600, None, None, None, None), Caller(0, 0, 0), 10**6, lambda _: None
    )
    other.close()
    journal.close()
    assert _grown(cut, _built(one)) is None
    assert _grown(cut, _built(cut)) is not None


def test_a_reader_that_looks_again_sees_what_came(tmp_path: Path) -> None:
    journal = many(tmp_path, 30)
    reader = JournalReader(tmp_path)
    (path,) = reader.segments()
    before = reader.index(path)
    assert reader.index(path) is before
    reader.look_again()
    assert reader.index(path) is before  # it has not grown
    journal.append(Mark("here"), Caller(0, 0, 0), 10**6, lambda _: None)
    assert reader.index(path) is before
    reader.look_again()
    assert reader.index(path).entries == before.entries + 1
    assert reader._index_bytes == len(reader.index(path).content)
    assert reader.contents(path) is reader.index(path)  # it grows, and so is kept whole
    journal.close()
