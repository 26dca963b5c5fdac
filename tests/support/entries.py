"""Hypothesis strategies for journal entries, and a small journal with every kind of entry."""

from pathlib import Path
from stat import S_IFCHR
from typing import NamedTuple
from uuid import UUID

import msgpack
from hypothesis import strategies as st

from fusejournal.file_operations import FALLOCATE_FLAGS, FLAG_LETTERS, Fallocate, SetFlags
from fusejournal.journal.format import encode_frame
from fusejournal.journal.handle_key import NO_HANDLE_KEY, HandleKey
from fusejournal.journal.journal import Journal
from fusejournal.journal.segment import PLAIN_SUFFIX, list_segments
from fusejournal.journal.segment_header import SEGMENT_HEADER_BYTES, SegmentHeader
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import (
    OPERATIONS,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    Clean,
    Create,
    Import,
    ImportData,
    ImportLink,
    Kind,
    Link,
    Mark,
    Mkdir,
    NewEpoch,
    Operation,
    Removexattr,
    Rename,
    Rmdir,
    Setattr,
    Setxattr,
    Symlink,
    Truncate,
    Unlink,
    Void,
    Whiteout,
    Write,
)
from fusejournal.types import (
    EPOCH_MAX,
    ROOT_FID,
    SYSTEM_CALLER,
    TIME_MAX_NS,
    TIME_MIN_NS,
    Caller,
    Epoch,
    Fid,
    Seq,
)

UUID_OF_TESTS = UUID("01234567-89ab-cdef-0123-456789abcdef")

_U63 = st.integers(0, 2**63 - 1)
_FIDS = st.integers(1, 2**63 - 1)
_U32 = st.integers(0, 2**32 - 1)
_NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
_TIMES = st.integers(TIME_MIN_NS, TIME_MAX_NS)
_TARGETS = st.binary(min_size=1, max_size=100).filter(lambda target: b"\0" not in target)
_BY_FIELD: dict[str, st.SearchStrategy[object]] = {
    **dict.fromkeys(("fid", "parent", "new_parent", "whiteout"), _FIDS),
    **dict.fromkeys(("replaced", "size", "seq"), _U63),
    **dict.fromkeys(("uid", "gid", "rdev", "flags", "written"), _U32),
    "offset": st.integers(0, 2**62),
    "length": st.integers(1, 2**62 - 1),
    "errno": st.integers(0, 2**31 - 1),
    "epoch": st.integers(1, EPOCH_MAX),
    "mode": st.integers(0, 0o177777),
    "name": _NAMES,
    "new_name": _NAMES,
    "value": st.binary(max_size=100),
    "acl": st.none() | st.binary(max_size=50),
    "default_acl": st.none() | st.binary(max_size=50),
    "target": _TARGETS,
    "atime_ns": st.none() | _TIMES,
    "mtime_ns": _TIMES,
    "xattrs": st.lists(st.tuples(_NAMES, st.binary(max_size=30)), max_size=3).map(tuple),
    "complete": st.booleans(),
    "reason": st.text(max_size=20),
}


def operations() -> st.SearchStrategy[Operation]:
    """Any operation with any values that its fields can have."""

    def of(cls: type[Operation]) -> st.SearchStrategy[Operation]:
        fields = {name: _BY_FIELD[name] for name in cls._fields}
        if cls is Mark:
            fields["name"] = st.text(max_size=20)
        elif cls is Whiteout:
            fields["flags"] = st.sampled_from((RENAME_WHITEOUT, RENAME_WHITEOUT | RENAME_NOREPLACE))
            fields["mode"] = st.integers(S_IFCHR, S_IFCHR | 0o7777)
        elif cls is Fallocate:
            fields["flags"] = st.sampled_from(sorted(FALLOCATE_FLAGS))
        return st.builds(cls, **fields)

    return st.sampled_from(sorted(OPERATIONS.values(), key=lambda cls: cls.__name__)).flatmap(of)


def whos() -> st.SearchStrategy[Caller]:
    """Any caller."""
    return st.builds(Caller, _U32, _U32, _U32)


class Sample(NamedTuple):
    """One entry to append."""

    operation: Operation
    data: bytes = b""


SAMPLES = (
    Sample(NewEpoch(Epoch(1), "a new volume")),
    Sample(
        Import(Fid(2), Fid(1), b"old", 0o100644, 5, 6, 0, 9, -7, None, ((b"user.a", b"1"),), False)
    ),
    Sample(ImportData(Fid(2), 0, -7, True), b"imported."),
    Sample(ImportLink(Fid(2), Fid(1), b"older")),
    Sample(Mkdir(Fid(3), Fid(1), b"d\xff", 0o42755, 0, 100, None, b"\2\0\0\0")),
    Sample(Create(Fid(4), Fid(3), b"f", 0o100600, 1000, 1000, 0, b"\2\0\0\0")),
    Sample(Write(Fid(4), 4096, 0o600), b"data \x00 raw"),
    Sample(Void(Seq(7), 28, 3)),
    Sample(Truncate(Fid(4), 1 << 40, None)),
    Sample(Setattr(Fid(4), 0o640, None, 7, None, 1_700_000_000_123_456_789)),
    Sample(Setxattr(Fid(4), b"user.key", b"\0value")),
    Sample(Removexattr(Fid(4), b"user.key")),
    Sample(Symlink(Fid(5), Fid(1), b"l", b"../target", 0, 0)),
    Sample(Link(Fid(4), Fid(1), b"hard")),
    Sample(Rename(Fid(4), Fid(1), b"hard", Fid(3), b"f", 2, Fid(4))),
    Sample(Unlink(Fid(4), Fid(3), b"f")),
    Sample(Rmdir(Fid(3), Fid(1), b"d\xff")),
    Sample(Void(Seq(17), 39, 0)),
    Sample(Mark("before the rm")),
    Sample(Clean()),
)

WHITEOUTS = (
    Sample(NewEpoch(Epoch(1), "a new volume")),
    Sample(Create(Fid(2), Fid(1), b"f", 0o100600, 1000, 1000, 0, None)),
    Sample(Whiteout(Fid(2), Fid(1), b"f", Fid(1), b"g", 4, Fid(0), Fid(3), S_IFCHR, 7, 8, None)),
    Sample(
        Whiteout(Fid(2), Fid(1), b"g", Fid(1), b"f", 4, Fid(3), Fid(4), S_IFCHR, 0, 0, b"\2\0\0\0")
    ),
    Sample(Clean()),
)
"""Entries of a kind that came later."""


ALLOCATIONS = (
    Sample(NewEpoch(Epoch(1), "a new volume")),
    Sample(Create(Fid(2), Fid(1), b"f", 0o106755, 1000, 1000, 0, None)),
    Sample(Fallocate(Fid(2), 0, 0, 1 << 40, 0o755)),
    *(Sample(Fallocate(Fid(2), flags, 4096, 5000, None)) for flags in sorted(FALLOCATE_FLAGS)),
    Sample(Void(Seq(8), 28, 0)),
    Sample(Clean()),
)
"""The same."""


FLAGS = (
    Sample(NewEpoch(Epoch(1), "a new volume")),
    Sample(Create(Fid(2), Fid(1), b"f", 0o100755, 1000, 1000, 0, None)),
    *(Sample(SetFlags(Fid(2), flag)) for flag in FLAG_LETTERS),
    Sample(SetFlags(Fid(1), 0)),
    Sample(Void(Seq(2 + len(FLAG_LETTERS) + 1), 95, 0)),
    Sample(Clean()),
)
"""The same."""


def write_samples(
    directory: Path,
    samples: tuple[Sample, ...] = SAMPLES,
    handle_key: HandleKey = NO_HANDLE_KEY,
    **options: int | bool,
) -> Journal:
    """A journal in *directory* with *samples*, at fixed times, by a fixed caller."""
    journal = Journal.create(
        directory,
        UUID_OF_TESTS,
        JournalOptions(**options),  # type: ignore[arg-type]
        handle_key,
    )
    for number, sample in enumerate(samples, 1):
        journal.append(
            sample.operation,
            Caller(1000, 100, 4242),
            1_700_000_000_000_000_000 + number,
            lambda fid: b"" if fid == 1 else b"path/%d" % fid,
            sample.data,
        )
    return journal


def without_handle_key(directory: Path) -> None:
    """Make the closed journal in *directory* one of a program that knew of no handle keys."""
    for path in list_segments(directory):
        assert path.suffix == PLAIN_SUFFIX
        with open(path, "r+b", buffering=0) as file:
            header = SegmentHeader.decode(file.read(SEGMENT_HEADER_BYTES))
            file.seek(0)
            file.write(header._replace(handle_key=NO_HANDLE_KEY).encode())


def make_directories(directory: Path, count: int) -> Journal:
    """A journal in *directory* in which entry N, N ns after 1970, makes the directory dN."""
    journal = Journal.create(directory, UUID_OF_TESTS, JournalOptions(segment_entries=256))
    append_directories(journal, count)
    return journal


def append_directories(journal: Journal, count: int) -> None:
    """Append *count* entries, as those of :func:`make_directories`."""
    for _ in range(count):
        number = journal.head_seq + 1
        journal.append(
            Mkdir(Fid(number + 1), ROOT_FID, b"d%d" % number, 0o755, 0, 0, None, None),
            SYSTEM_CALLER,
            number,
            lambda fid: b"",
        )


def append_payload(journal: Journal, *fields: object) -> Seq:
    """Append an entry whose payload has *fields*, whatever they are, as another version of the
    program, or a forger, would."""
    payload: bytes = msgpack.packb(fields)
    seq = Seq(journal.head_seq + 1)
    head, chain = encode_frame(payload, b"", seq, journal.durable_seq, journal.chain)
    assert journal._current is not None
    journal._current.write(head, b"", Kind.MARK)
    journal.head_seq, journal.chain = seq, chain
    return seq


NEWER_KIND = (40, 1_800_000_000_000_000_000, 0, 0, 0, None, 3)
NEWER_FIELD = (19, 1_800_000_000_000_000_000, 0, 0, 0, None, "more")
"""Entries of a version to come."""
FORGED = (5, 1_800_000_000_000_000_000, 0, 0, 0, {3: b"../etc"}, 5, 3, b"../passwd")
"""An entry that no version writes."""
