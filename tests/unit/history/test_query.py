"""Questions of people: patterns, ranges, and words for them."""

import sys
from pathlib import Path

import pytest

from fusejournal.errors import JournalDamagedError, UsageError
from fusejournal.history.lookup import Lookup
from fusejournal.history.path_pattern import PathPattern
from fusejournal.history.query import (
    Criteria,
    Follower,
    SeqRange,
    find,
    parse_kinds,
    parse_ranges,
    walk,
)
from fusejournal.journal.journal import Journal
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.segment import list_segments
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import Create, Kind, Mkdir, Operation, Rmdir, Write
from fusejournal.types import ROOT_FID, SYSTEM_CALLER, Fid, Seq
from tests.support.entries import UUID_OF_TESTS, append_directories, make_directories


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", True),
        ("a/b", "a/bc", False),
        ("/a/b/", "a/b", True),
        ("*.txt", "a/b/c.txt", True),
        ("*.txt", "a.txt/b", False),
        ("a/*.txt", "a/b.txt", True),
        ("a/*.txt", "a/b/c.txt", False),
        ("a/**/*.txt", "a/b/c/d.txt", True),
        ("a/**/*.txt", "a/d.txt", True),
        ("a/**", "a/b/c", True),
        ("**/x", "x", True),
        ("?", "a/b", True),
        ("?", "ab", False),
        ("[ab]*", "x/banana", True),
        ("[!ab]*", "x/banana", False),
        ("[]]", "]", True),
        ("[", "[", True),
        ("a.b", "aXb", False),
        ("[a&&b]", "&", True),
        ("[a-c]", "b", True),
    ],
)
def test_patterns(pattern: str, path: str, matches: bool, tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, JournalOptions())
    journal.append(Write(Fid(7), 0, None), SYSTEM_CALLER, 1, lambda fid: path.encode(), b"x")
    (entry,) = journal.reader.read(Seq(1), Seq(2))
    assert PathPattern(pattern.encode(), None).matches(entry, path.encode()) == matches
    # The same through the segment's index.
    found = list(find(Lookup(journal.reader), Criteria(paths=(pattern.strip("/").encode(),))))
    assert bool(found) == matches


def test_a_pattern_that_is_none() -> None:
    with pytest.raises(UsageError, match="no pattern"):
        PathPattern(b"[z-a]", None)


def test_a_name_that_looks_like_a_pattern_is_meant_as_it_is(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, JournalOptions())
    for number, name in enumerate((b"a1.txt", b"a[1].txt"), 2):
        made = Mkdir(Fid(number), ROOT_FID, name, 0o755, 0, 0, None, None)
        journal.append(made, SYSTEM_CALLER, number, lambda fid: b"")
    found = find(Lookup(journal.reader), Criteria(paths=(b"a[1].txt",)))
    assert [match.path for match in found] == [b"a[1].txt"]


def test_ranges_are_merged() -> None:
    ranges = tuple(SeqRange(Seq(a), Seq(b)) for a, b in ((5, 7), (1, 3), (6, 9), (9, 10)))
    criteria = Criteria(only=ranges)
    assert criteria.only == ((1, 3), (5, 10))


def test_an_unfinished_end_is_no_damage(tmp_path: Path) -> None:
    """A frame that is half there, and a segment that has not even its header."""
    journal = make_directories(tmp_path, 300)
    journal.close()
    newest = list_segments(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-20])
    lookup = Lookup(JournalReader(tmp_path))
    assert lookup.fid_at(b"d299", Seq(1000)) == 300
    assert lookup.fid_at(b"d300", Seq(1000)) is None
    (tmp_path / f"{300:020d}.fj").touch()
    lookup = Lookup(JournalReader(tmp_path))
    assert lookup.fid_at(b"d299", Seq(1000)) == 300
    assert [match.entry.seq for match in find(lookup, Criteria(from_seq=Seq(298)))] == [298, 299]


def test_an_end_before_the_known_head_is_damage(tmp_path: Path) -> None:
    journal = make_directories(tmp_path, 300)
    journal.close()
    newest = list_segments(tmp_path)[-1]
    reopened = Journal.open(
        tmp_path, UUID_OF_TESTS, JournalOptions(), unclean_machine=False, read_only=True
    )
    newest.write_bytes(newest.read_bytes()[:-20])
    with pytest.raises(JournalDamagedError, match="seq 300"):
        list(reopened.reader.read(Seq(290), Seq(301)))


def test_what_is_gone_is_gone_in_a_part_of_a_journal(tmp_path: Path) -> None:
    journal = make_directories(tmp_path, 300)
    gone = Rmdir(Fid(2), ROOT_FID, b"d1")
    journal.append(gone, SYSTEM_CALLER, 301, lambda fid: b"d1" if fid == 2 else b"")
    journal.close()
    list_segments(tmp_path)[0].unlink()
    lookup = Lookup(JournalReader(tmp_path))
    assert lookup.fid_at(b"d1", Seq(301)) == 2
    assert lookup.fid_at(b"d1", Seq(302)) is None


def test_ranges() -> None:
    assert parse_ranges(["7", "9-12,20"]) == ((7, 8), (9, 13), (20, 21))
    for wrong in ("", "0", "5-3", "-3", "a", "3-", "1,,2"):
        with pytest.raises(UsageError):
            parse_ranges([wrong])


def test_kinds() -> None:
    assert parse_kinds(["write, UNLINK", "mark"]) == {Kind.WRITE, Kind.UNLINK, Kind.MARK}
    with pytest.raises(UsageError, match="there are: create"):
        parse_kinds(["writ"])


def test_a_follower_reads_each_entry_once(tmp_path: Path) -> None:
    journal = make_directories(tmp_path, 10)
    follower = Follower(JournalReader(tmp_path), Criteria(paths=(b"d*[13579]",)), Seq(5))
    seen: list[int] = []
    for more in (0, 3, 300, 1, 0, 600):
        append_directories(journal, more)
        seen += [match.entry.seq for match in follower.new(journal.head_seq)]
    assert seen == list(range(5, journal.head_seq + 1, 2))


def test_newest_first(tmp_path: Path) -> None:
    journal = make_directories(tmp_path, 700)
    lookup = Lookup(journal.reader)
    forward = [match.entry.seq for match in find(lookup, Criteria())]
    assert forward == list(range(1, 701))
    backward = [match.entry.seq for match in find(lookup, Criteria(), newest_first=True)]
    assert backward == forward[::-1]


def test_a_gap_between_segments_is_damage(tmp_path: Path) -> None:
    make_directories(tmp_path, 900).close()
    list_segments(tmp_path)[1].unlink()
    lookup = Lookup(JournalReader(tmp_path))
    for criteria in (Criteria(), Criteria(uid=5), Criteria(paths=(b"d900",))):
        with pytest.raises(JournalDamagedError, match="next segment begins with 513"):
            list(find(lookup, criteria))
    # But not for whom it does not concern.
    assert [m.entry.seq for m in find(lookup, Criteria(from_seq=Seq(800)))] == [*range(800, 901)]


def test_a_path_skips_no_segment_that_has_a_match(tmp_path: Path) -> None:
    """For every path the indexes give what comes without them. Of most segments here no entry names
    the root."""
    journal = Journal.create(tmp_path, UUID_OF_TESTS, JournalOptions(segment_entries=20))
    inner, file = Fid(2), Fid(3)

    def append(operation: Operation) -> None:
        journal.append(operation, SYSTEM_CALLER, journal.next_time(), paths.get)

    paths: dict[Fid, bytes] = {ROOT_FID: b""}
    append(Mkdir(inner, ROOT_FID, b"d", 0o755, 0, 0, None, None))
    paths[inner] = b"d"
    append(Create(file, inner, b"f[1]", 0o644, 0, 0, 0, None))
    paths[file] = b"d/f[1]"
    for number in range(300):
        append(Write(file, number, None))
    lookup = Lookup(journal.reader)
    assert len(journal.reader.segments()) > 10
    for path in (b"", b"d", b"d/f[1]", b"d/*", b"*", b"**", b"d/f1", b"f*", b"nothing", b"d/f?1?"):
        criteria = Criteria(paths=(path,))
        found = [match.entry.seq for match in find(lookup, criteria)]
        expected = [match.entry.seq for match, is_meant in walk(lookup, criteria) if is_meant]
        assert found == expected, path
    assert len(list(find(lookup, Criteria(paths=(b"",))))) == 302


def test_a_follower_takes_a_name_that_was_there_as_it_is(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, JournalOptions())

    def make(fid: int, name: bytes) -> None:
        operation = Create(Fid(fid), ROOT_FID, name, 0o644, 0, 0, 0, None)
        journal.append(operation, SYSTEM_CALLER, journal.next_time(), lambda _: b"")

    make(2, b"report[1].txt")
    make(3, b"report1.txt")
    followers = [
        Follower(JournalReader(tmp_path), Criteria(paths=(path,)), Seq(3))
        for path in (b"report[1].txt", b"report[12].txt", b"report[9].txt")
    ]
    for seq, fid in enumerate((2, 3, 2), 3):
        journal.append(
            Write(Fid(fid), 0, None),
            SYSTEM_CALLER,
            journal.next_time(),
            lambda fid: {2: b"report[1].txt", 3: b"report1.txt"}.get(fid),
        )
        assert journal.head_seq == seq
    found = [[match.entry.seq for match in one.new(journal.head_seq)] for one in followers]
    assert found == [[3, 5], [4], []]


def test_paths_of_a_tree_deeper_than_the_stack(tmp_path: Path) -> None:
    depth = sys.getrecursionlimit() + 500
    journal = Journal.create(tmp_path, UUID_OF_TESTS, JournalOptions())
    for number in range(depth):
        fid = Fid(number + 2)
        journal.append(
            Mkdir(fid, Fid(number + 1), b"d", 0o755, 0, 0, None, None),
            SYSTEM_CALLER,
            journal.next_time(),
            lambda _: None,
        )
    lookup = Lookup(journal.reader)
    path = b"/".join([b"d"] * depth)
    assert lookup.paths_of(fid, END) == [path]
    assert lookup.timeline(fid) == [(depth, path)]
    assert lookup.path_before(fid, END) == path


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (b"*.odt", b".odt"), (b"a[bc]def?g", b"def"), (b"home/*/plan", b"home"), (b"**", b""),
        (b"[ab]*", b""), (b"x[y*lo", b"x[y"), (b"a[]x]bc", b"bc"),
    ],
)  # fmt: skip
def test_the_plain_text_of_a_pattern(pattern: bytes, text: bytes) -> None:
    """On each path that matches some name has it."""
    found = PathPattern(pattern, None, is_glob=True)
    assert found.plain_text == text
