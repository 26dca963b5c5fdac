"""Indexes of segments as earlier versions of the program made them."""

import struct

import msgpack
import xxhash
import zstandard

from fusejournal.journal.index import (
    INDEX_CHECKSUM,
    INDEX_COUNTS,
    INDEX_HEADER,
    INDEX_MORE_COUNTS,
    SegmentIndex,
)

_VERSION_AT = 8


def as_version_1(content: bytes) -> bytes:
    """Returns what version 1 of the format has of an index."""
    index = SegmentIndex(content)
    counts = list(INDEX_COUNTS.unpack_from(content, INDEX_HEADER.size))
    points, fids, fid_postings, names, name_postings, uids, _ = counts
    paths = zstandard.compress(msgpack.packb(index.recorded_paths()), 3)
    begin = INDEX_HEADER.size + INDEX_COUNTS.size + INDEX_MORE_COUNTS.size
    numbers = points + fids + 1 + fid_postings + names + 1 + name_postings
    end = begin + 8 * (3 * points + fids + names + uids) + 4 * numbers
    head = bytearray(content[: INDEX_HEADER.size])
    struct.pack_into("=H", head, _VERSION_AT, 1)
    body = bytes(head) + INDEX_COUNTS.pack(*counts[:-1], len(paths)) + content[begin:end] + paths
    return body + INDEX_CHECKSUM.pack(xxhash.xxh3_64_intdigest(body))
