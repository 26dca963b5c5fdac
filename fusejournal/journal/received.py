"""Checks whether what another node's journal brings goes on where this one ends. Pure.

All functions raise JournalForeignError, in words that have both sides."""

import hashlib
from pathlib import Path
from uuid import UUID

from fusejournal.errors import JournalForeignError
from fusejournal.journal.format import FormatError
from fusejournal.journal.frame_range import FrameRange
from fusejournal.journal.handle_key import NO_HANDLE_KEY, HandleKey
from fusejournal.journal.segment_header import SEGMENT_HEADER_BYTES, SegmentHeader
from fusejournal.journal.segment_writer import SegmentWriter
from fusejournal.types import Seq


def check_follows(frame_range: FrameRange, directory: Path, head_seq: Seq, chain: int) -> None:
    """*frame_range* is to follow entry *head_seq*, whose chain is *chain*, of the journal in
    *directory*."""
    if (frame_range.first_seq, frame_range.chain_before) != (head_seq + 1, chain):
        raise JournalForeignError(
            f"{directory}: the received range starts with entry {frame_range.first_seq}, "
            f"but the journal ends with entry {head_seq}, or has another one there"
        )


def check_goes_on(
    frame_range: FrameRange, directory: Path, current: SegmentWriter | None
) -> SegmentWriter:
    """*frame_range*, which begins no segment, is to go on where *current* ends. Returns that."""
    place = frame_range.segment_seq, frame_range.offset
    if current is None or place != (current.first_seq, current.end):
        here = f"byte {current.end} of segment {current.first_seq}" if current else "no segment"
        raise JournalForeignError(
            f"{directory}: the received range starts at byte {frame_range.offset} of "
            f"segment {frame_range.segment_seq}, but the journal ends at {here}"
        )
    return current


def header_after(
    content: bytes, directory: Path, uuid: UUID, head_seq: Seq, chain: int
) -> SegmentHeader:
    """Returns the header *content* of a segment, which is to follow entry *head_seq*, whose chain
    is *chain*, of volume *uuid*."""
    try:
        header = SegmentHeader.decode(content)
    except FormatError as error:
        raise JournalForeignError(f"{directory}: {error}") from None
    if (header.uuid, header.first_seq, header.chain_before) != (uuid, head_seq + 1, chain):
        raise JournalForeignError(
            f"{directory}: segment {header.first_seq} of volume {header.uuid} does not "
            f"follow entry {head_seq} of {uuid}"
        )
    return header


def check_key(header: SegmentHeader, directory: Path, handle_key: HandleKey) -> None:
    """A segment with *header* is to have the volume's *handle_key*; or none, as of a release that
    knew of none."""
    if header.handle_key not in (handle_key, NO_HANDLE_KEY):
        raise JournalForeignError(
            f"{directory}: segment {header.first_seq} has another handle key (of digest "
            f"{_digest(header.handle_key)}) than those before it ({_digest(handle_key)})"
        )


def _digest(key: HandleKey) -> str:
    """The key itself is no reader's of a log."""
    return hashlib.sha256(key).hexdigest()[:16]


def with_key(frame_range: FrameRange, handle_key: HandleKey) -> FrameRange:
    """Returns *frame_range* with *handle_key* in the header that it begins with, if that has none:
    a mirror of a release that knew of no keys has left it out, and hands back what its primary has
    not signed so. Raises FormatError."""
    if frame_range.offset != 0:
        return frame_range
    header = SegmentHeader.decode(frame_range.content)
    if header.handle_key:
        return frame_range
    frames = frame_range.content[SEGMENT_HEADER_BYTES:]
    return frame_range._replace(
        content=header._replace(handle_key=handle_key).encode() + bytes(frames)
    )
