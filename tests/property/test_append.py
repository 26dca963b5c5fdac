"""All that is appended can be read: whatever an operation's fields are, ``append`` either refuses
the entry, with nothing written, or every reader takes it."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusejournal.journal.journal import Journal
from fusejournal.journal.reader import END
from fusejournal.journal.segment import list_segments
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.journal.verify import verify
from fusejournal.operations import Create, Mark, Operation, Setattr, Write
from fusejournal.types import TIME_MAX_NS, TIME_MIN_NS, Caller, Fid, Seq
from tests.support.entries import SAMPLES, UUID_OF_TESTS, Sample, operations, whos

_EDGES = [
    edge + step
    for edge in (0, 2**31, 2**32, 2**63, 2**64, TIME_MIN_NS, TIME_MAX_NS)
    for step in (-1, 0, 1)
]
_NUMBERS = st.sampled_from(_EDGES) | st.integers(-(2**65), 2**65)
_BYTES = st.binary(max_size=9) | st.sampled_from(
    [
        *(b"", b".", b"..", b"a/b", b"a\0b", b"n" * 255, b"n" * 256, b"t" * 4095, b"t" * 4096),
        *(b"v" * 65536, b"v" * (16 << 20)),
    ]
)
_PAIRS = st.lists(st.tuples(_BYTES, st.binary(max_size=9)), max_size=2).map(tuple)
_PATHS = st.sampled_from(
    [b"", b"a/b", b"a" * 300, b"..", b"a/../b", b"/etc", b"a//b", b"a/", b"./a", b"a\0b"]
)
_TEXTS = st.text(max_size=5) | st.just("\udc80")
_ANYTHING = st.none() | st.booleans() | _NUMBERS | _BYTES | _TEXTS


def _value_like(field: object) -> st.SearchStrategy[object]:
    """Mostly of the type that *field* has, else anything."""
    if isinstance(field, bool):
        return st.booleans()
    for kind, values in ((int, _NUMBERS), (bytes, _BYTES), (str, _TEXTS), (tuple, _PAIRS)):
        if isinstance(field, kind):
            return values
    return _ANYTHING


@st.composite
def _odd_operations(draw: st.DrawFn) -> Operation:
    """A good operation with one or two fields made odd."""
    operation = draw(operations())
    values: list[object] = list(operation)
    for _ in range(min(len(values), draw(st.integers(1, 2)))):
        at = draw(st.integers(0, len(values) - 1))
        like = draw(st.booleans())
        values[at] = draw(_value_like(values[at]) if like else _ANYTHING)
    return type(operation)(*values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Journal:
    """One journal for all examples."""
    options = JournalOptions(segment_bytes=8 << 20)
    return Journal.create(tmp_path_factory.mktemp("journal"), UUID_OF_TESTS, options)


def _appended(
    journal: Journal, operation: Operation, who: Caller, path: bytes, data: bytes = b""
) -> bool:
    """True if *operation* was taken: then it is read back as it was; else nothing has changed."""
    before = journal.end
    try:
        seq = journal.append(operation, who, journal.last_time_ns + 1, lambda _: path, data)
    except OSError:
        assert journal.end == before
        return False
    (entry,) = journal.reader.read(seq, Seq(seq + 1))
    assert entry.operation == operation
    assert type(entry.operation) is type(operation)
    assert entry[:3] == (seq, journal.last_time_ns, who)
    assert entry.data == data
    assert all(told == path for told in (entry.paths or {}).values())
    return True


@given(
    operation=_odd_operations(),
    who=whos() | st.builds(Caller, _NUMBERS, _NUMBERS, _NUMBERS),
    path=_PATHS,
)
@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_appended_is_read(
    journal: Journal, operation: Operation, who: Caller, path: bytes
) -> None:
    _appended(journal, operation, who, path)


@given(operation=operations(), who=whos(), path=st.sampled_from([b"", b"a", b"a/b"]))
def test_every_good_operation_is_taken(
    journal: Journal, operation: Operation, who: Caller, path: bytes
) -> None:
    assert _appended(journal, operation, who, path)


@pytest.mark.parametrize(
    "sample",
    {type(sample.operation): sample for sample in SAMPLES}.values(),
    ids=lambda sample: type(sample.operation).__name__,
)
def test_every_number_at_its_edges(journal: Journal, sample: Sample) -> None:
    for at, value in enumerate(sample.operation):
        if isinstance(value, int):
            for edge in _EDGES:
                values = [*sample.operation[:at], edge, *sample.operation[at + 1 :]]
                odd = type(sample.operation)(*values)
                _appended(journal, odd, Caller(0, 0, 0), b"a")


def test_the_whole_range_of_times_is_taken(journal: Journal) -> None:
    for time_ns in (TIME_MIN_NS, -1, 0, 2**63 - 1, 2**63, TIME_MAX_NS):
        operation = Setattr(Fid(3), None, None, None, time_ns, time_ns)
        assert _appended(journal, operation, Caller(0, 0, 0), b"a")


def test_all_that_was_taken_is_sound_and_can_be_indexed(journal: Journal) -> None:
    """Run last: the journal has what the tests before left in it."""
    assert _appended(journal, Mark("the end"), Caller(0, 0, 0), b"")
    paths = list_segments(journal.directory)
    for path in paths:
        assert journal.reader.index(path).entries > 0
    assert verify(paths, UUID_OF_TESTS, lambda done, total: None, deep=True).damages == []
    assert sum(1 for _ in journal.reader.read(Seq(1), END)) == journal.head_seq


def test_data_beyond_the_limit_is_refused(journal: Journal) -> None:
    data = bytes(16 << 20 | 1)
    assert not _appended(journal, Write(Fid(3), 0, None), Caller(0, 0, 0), b"a", data)
    good = Create(Fid(3), Fid(1), b"n", 0o100600, 0, 0, 0, b"\0" * (16 << 20))
    assert not _appended(journal, good, Caller(0, 0, 0), b"a")
