"""The header that each segment of a journal begins with: bytes to values and back. Pure; the frames
behind it are in format.py.

Segment header, 128 bytes, little-endian:

======  ====  ==================================================================================
offset  size  field
======  ====  ==================================================================================
0       8     magic ``89 46 4A 53 0D 0A 1A 0A`` (\\x89FJS, and line ends that a text copy breaks)
8       2     format version (1)
10      6     zero
16      16    volume UUID
32      8     epoch at the segment's beginning
40      8     first seq: the seq of the first frame
48      8     chain before: the checksum of the frame before the first, 0 for seq 1
56      8     time the segment was begun, ns since 1970, signed
64      16    handle key (handle_key.py), the same in all segments; zero: none
80      40    zero
120     8     xxh3-64 of bytes 0 to 119
======  ====  ==================================================================================

The chain before and the chain after (format.py) tie segments together; the checksum covers the
header's unused bytes, too."""

import struct
from typing import Final, NamedTuple
from uuid import UUID

import xxhash

from fusejournal.journal.format import FORMAT_VERSION, FormatError, NewerFormatError
from fusejournal.journal.handle_key import NO_HANDLE_KEY, HandleKey
from fusejournal.types import Epoch, Seq

SEGMENT_MAGIC: Final = b"\x89FJS\r\n\x1a\n"

_SEGMENT: Final = struct.Struct("<8sH6x16sQQQq16s40x")
_CHECKSUM: Final = struct.Struct("<Q")
SEGMENT_HEADER_BYTES: Final = 128
assert _SEGMENT.size + _CHECKSUM.size == SEGMENT_HEADER_BYTES


class SegmentHeader(NamedTuple):
    """The beginning of a segment."""

    uuid: UUID
    epoch: Epoch
    first_seq: Seq
    chain_before: int
    time_ns: int
    handle_key: HandleKey = NO_HANDLE_KEY

    def encode(self) -> bytes:
        """The header's 128 bytes."""
        head = _SEGMENT.pack(
            SEGMENT_MAGIC,
            FORMAT_VERSION,
            self.uuid.bytes,
            self.epoch,
            self.first_seq,
            self.chain_before,
            self.time_ns,
            self.handle_key,
        )
        return head + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(head))

    @classmethod
    def decode(cls, data: bytes) -> "SegmentHeader":
        """The header in the first 128 bytes of *data*. Raises FormatError."""
        if len(data) < SEGMENT_HEADER_BYTES:
            raise FormatError(f"a header of {len(data)} bytes, {SEGMENT_HEADER_BYTES} are needed")
        magic, version, uuid, epoch, first_seq, chain, time_ns, key = _SEGMENT.unpack_from(data)
        if magic != SEGMENT_MAGIC:
            raise FormatError(
                f"not a journal segment: begins with {magic!r}, not {SEGMENT_MAGIC!r}"
            )
        (checksum,) = _CHECKSUM.unpack_from(data, _SEGMENT.size)
        head = data[: _SEGMENT.size]
        if version != FORMAT_VERSION:
            reason = f"format version {version}; this program reads {FORMAT_VERSION}"
            is_whole = xxhash.xxh3_64_intdigest(head) == checksum
            raise NewerFormatError(reason) if is_whole else FormatError(reason)
        # All bytes count, the unused ones too: a flipped one is damage.
        if (found := xxhash.xxh3_64_intdigest(head)) != checksum:
            raise FormatError(
                f"the header's checksum is {checksum:016x}, and {found:016x} of what is there"
            )
        handle_key = HandleKey(key) if any(key) else NO_HANDLE_KEY
        return cls(UUID(bytes=uuid), Epoch(epoch), Seq(first_seq), chain, time_ns, handle_key)
