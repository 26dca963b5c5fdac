"""The codec gives back what it was given, and every changed byte is found."""

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusejournal.errors import JournalError
from fusejournal.journal.format import (
    FRAME_HEADER_BYTES,
    FormatError,
    decode_entry,
    decode_payload,
    encode_frame,
    encode_payload,
    read_frame,
)
from fusejournal.journal.journal import Journal
from fusejournal.journal.seekable import compress_file
from fusejournal.journal.segment import (
    COMPRESSED_SUFFIX,
    BadFrameError,
    SegmentReader,
    list_segments,
)
from fusejournal.journal.segment_header import SegmentHeader
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.journal.verify import verify
from fusejournal.operations import Operation
from fusejournal.types import TIME_MIN_NS, Caller, Epoch, Fid, Seq
from tests.support.entries import SAMPLES, UUID_OF_TESTS, operations, whos, write_samples

_U64 = st.integers(0, 2**64 - 1)
_FIDS = st.integers(1, 2**63 - 1).map(Fid)
_PATHS = st.lists(
    st.binary(min_size=1, max_size=9).filter(
        lambda name: not {0, 47}.intersection(name) and name not in (b".", b"..")
    ),
    max_size=5,
).map(b"/".join)
_TIMES = st.integers(-(2**63) + 1, 2**63 - 1)


@given(
    operation=operations(),
    who=whos(),
    time_ns=_TIMES,
    paths=st.none() | st.dictionaries(_FIDS, _PATHS, max_size=3),
    data=st.binary(max_size=300),
    seq=_U64,
    flushed=_U64,
    chain=_U64,
)
def test_entry_round_trip(
    operation: Operation,
    who: Caller,
    time_ns: int,
    paths: dict[Fid, bytes] | None,
    data: bytes,
    seq: int,
    flushed: int,
    chain: int,
) -> None:
    payload = encode_payload(operation, who, time_ns, paths)
    head, checksum = encode_frame(payload, data, Seq(seq), Seq(flushed), chain)
    frame = memoryview(head + data)
    found = read_frame(bytes(frame), frame, 0, Seq(seq), chain, 77)
    assert found is not None
    entry = decode_entry(found)
    assert type(entry.operation) is type(operation)
    assert entry[:6] == (seq, time_ns, who, paths, operation, data)
    assert entry[6:] == (flushed, checksum, 77, len(frame))


@given(epoch=_U64, first=_U64, chain=_U64, time_ns=_TIMES)
def test_segment_header_round_trip(epoch: int, first: int, chain: int, time_ns: int) -> None:
    header = SegmentHeader(UUID_OF_TESTS, Epoch(epoch), Seq(first), chain, time_ns)
    assert SegmentHeader.decode(header.encode()) == header


@given(frame=st.binary(min_size=FRAME_HEADER_BYTES, max_size=400))
def test_any_bytes_are_an_entry_or_a_format_error(frame: bytes) -> None:
    with contextlib.suppress(FormatError):
        assert read_frame(frame, memoryview(frame), 0, Seq(1), 0, 0) is None
    with contextlib.suppress(FormatError):
        decode_payload(frame)


@given(
    payload=st.recursive(
        st.none()
        | st.integers(-(2**63), 2**64 - 1)
        | st.binary(max_size=9)
        | st.text(max_size=5)
        | st.booleans(),
        lambda inner: st.lists(inner, max_size=12),
        max_leaves=20,
    )
)
@settings(max_examples=300)
def test_any_msgpack_is_an_entry_or_a_format_error(payload: object) -> None:
    import msgpack

    packed = msgpack.packb(payload)
    with contextlib.suppress(FormatError):
        decode_payload(packed)


def _damages(path: Path, compressed: bool) -> list[int]:
    """Offsets of all bytes that, flipped, were not noticed."""
    whole = path.read_bytes()
    missed = []
    for offset in range(len(whole)):
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << offset % 8
        path.write_bytes(damaged)
        report = verify([path], UUID_OF_TESTS, lambda done, total: None)
        if not report.damages and report.unfinished is None:
            missed.append(offset)
    path.write_bytes(whole)
    return missed


@pytest.mark.parametrize("compressed", [False, True])
def test_every_flipped_byte_is_found(tmp_path: Path, compressed: bool) -> None:
    journal = write_samples(tmp_path)
    journal.sync()
    journal.close()
    (path,) = list_segments(tmp_path)
    if compressed:
        compress_file(path, path.with_suffix(COMPRESSED_SUFFIX), 3)
        (path,) = list_segments(tmp_path)
    missed = _damages(path, compressed)
    if compressed:
        # Bits of zstd's own framing that say the same either way: what comes out is checked.
        whole = path.read_bytes()
        for offset in missed:
            damaged = bytearray(whole)
            damaged[offset] ^= 1 << offset % 8
            path.write_bytes(damaged)
            with SegmentReader(path) as reader:
                assert sum(1 for _ in reader.frames()) == len(SAMPLES)
        assert len(missed) < 10
    else:
        assert missed == []


def test_every_truncation_is_found(tmp_path: Path) -> None:
    journal = write_samples(tmp_path)
    journal.sync()
    journal.close()
    (path,) = list_segments(tmp_path)
    whole = path.read_bytes()
    with SegmentReader(path) as reader:
        boundaries = {frame.offset for frame in reader.frames()} | {len(whole)}
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length in boundaries:
            opened = Journal.open(
                tmp_path, UUID_OF_TESTS, JournalOptions(), unclean_machine=False, read_only=True
            )
            assert opened.head_seq == len([b for b in boundaries if b < length])
            continue
        with pytest.raises(BadFrameError) as caught, SegmentReader(path) as reader:
            list(reader.frames())
        assert caught.value.torn or length < 128
        # Opened for writing, the torn end is cut off and kept.
        if length % 17 == 0:
            opened = Journal.open(tmp_path, UUID_OF_TESTS, JournalOptions(), unclean_machine=False)
            (cut,) = opened.repairs
            assert cut.offset in boundaries | {0}
            opened.close()
            for left in tmp_path.glob("*.fj"):
                left.unlink()


def test_swapped_frames_are_found(tmp_path: Path) -> None:
    """Two frames of equal length, each good by itself, in the wrong order."""
    samples = (*SAMPLES[:1], SAMPLES[18], SAMPLES[18])
    journal = write_samples(tmp_path, samples)
    journal.close()
    (path,) = list_segments(tmp_path)
    whole = path.read_bytes()
    with SegmentReader(path) as reader:
        _, one, other = reader.frames()
    length = other.offset - one.offset
    path.write_bytes(
        whole[: one.offset]
        + whole[other.offset : other.offset + length]
        + whole[one.offset : one.offset + length]
    )
    with pytest.raises(JournalError):
        Journal.open(tmp_path, UUID_OF_TESTS, JournalOptions(), unclean_machine=False)


def test_a_block_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    import zstandard

    from fusejournal.journal.seekable import SeekableFile

    huge = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(64 << 20))
    table = struct.pack("<II", 0x184D2A5E, 17) + struct.pack("<II", len(huge), 256 << 10)
    path = tmp_path / "00000000000000000001.fjz"
    path.write_bytes(huge + table + struct.pack("<IBI", 1, 0, 0x8F92EAB1))
    with open(path, "rb") as file, pytest.raises(FormatError, match="too large"):
        SeekableFile(file.fileno()).read_at(0, 100)


@pytest.mark.parametrize(
    "fields",
    [
        (1, 3, 1, b"../escaped", 0o100644, 0, 0, 0, None),
        (1, 3, 1, b"", 0o100644, 0, 0, 0, None),
        (1, 3, 1, b"..", 0o100644, 0, 0, 0, None),
        (1, 3, 1, b"a\0b", 0o100644, 0, 0, 0, None),
        (1, 3, 1, "text", 0o100644, 0, 0, 0, None),
        (1, 2**64 - 1, 1, b"b", 0o100644, 0, 0, 0, None),
        (8, -5, 0, None),
        (8, 5, -1, None),
        (17, 2**63, "x"),
        (10, 5, None, None, None, None, 2**64 - 1),
        (10, 5, None, None, None, TIME_MIN_NS - 1, None),
        (10, 5, 0o200000, None, None, None, None),
        (10, 5, None, 2**32, None, None, None),
        (3, 3, 1, b"l", b"", 0, 0),
        (3, 3, 1, b"l", b"a\0b", 0, 0),
        (11, 5, b"", b"value"),
        (18, b"bytes"),
        (20, 5, 1, b"a", 1, b"b", 4, 0, 0, 0o020000, 0, 0, None),
        (20, 5, 1, b"a", 1, b"..", 4, 0, 6, 0o020000, 0, 0, None),
        (20, 5, 1, b"a", 1, b"b", 4, 0, 6, 0o100600, 0, 0, None),
        (20, 5, 1, b"a", 1, b"b", 4, 0, 6, None, 0, 0, None),
        (20, 5, 1, b"a", 1, b"b", 4, 0, 6, 0o020000, None, 0, None),
        (20, 5, 1, b"a", 1, b"b", 0, 0, 6, 0o020000, 0, 0, None),
        (20, 5, 1, b"a", 1, b"b", 6, 7, 6, 0o020000, 0, 0, None),
    ],
)
def test_well_formed_nonsense_is_refused(fields: tuple[object, ...]) -> None:
    import msgpack

    packed = msgpack.packb((fields[0], 5, 0, 0, 0, None, *fields[1:]))
    with pytest.raises(FormatError):
        decode_payload(packed)


@pytest.mark.parametrize("path", [b"..", b"a/../b", b"/etc/passwd", b"a//b", b"a/", b".", b"a\0b"])
def test_a_path_out_of_the_volume_is_refused(path: bytes) -> None:
    import msgpack

    packed = msgpack.packb((6, 5, 0, 0, 0, {3: path}, 5, 3, b"name"))
    with pytest.raises(FormatError, match="cannot be a path"):
        decode_payload(packed)


@pytest.mark.parametrize("caller", [(-1, 0, 0), (0, 2**32, 0), (0, 0, 2**64 - 1)])
def test_a_caller_who_cannot_be_is_refused(caller: tuple[int, int, int]) -> None:
    import msgpack

    with pytest.raises(FormatError):
        decode_payload(msgpack.packb((19, 5, *caller, None)))


def test_an_unhashable_map_key_is_refused() -> None:
    packed = b"\x96\x01\x01\x00\x00\x00\x81\x81\x01\x01\xc4\x00"
    with pytest.raises(FormatError):
        decode_payload(packed)


def test_deep_verification_finds_what_only_a_forger_writes(tmp_path: Path) -> None:
    """Checksums that are right over an entry that cannot be."""
    import msgpack

    payload = msgpack.packb((1, 5, 0, 0, 0, None, 3, 1, b"../evil", 0o100644, 0, 0, 0, None))
    frame, _ = encode_frame(payload, b"", Seq(1), Seq(0), 0)
    header = SegmentHeader(UUID_OF_TESTS, Epoch(1), Seq(1), 0, 5).encode()
    path = tmp_path / f"{1:020d}.fj"
    path.write_bytes(header + frame)
    assert verify([path], None, lambda done, total: None).damages == []
    (damage,) = verify([path], None, lambda done, total: None, deep=True).damages
    assert (damage.seq, damage.offset) == (1, 128)
