"""The end of a journal: finding it after a stop of any kind, distinguishing a torn tail from
damage, cutting it off.

Rules. A process crash leaves every page with the kernel, so only the very last frame can be
unfinished. A system crash leaves unflushed pages on disk in any order: the first bad frame above
the flushed watermark ends the log, and it and all after it are saved aside. A bad frame at or
below the watermark is damage, in either case.

The flushed watermark is the highest that a good frame carries, be it before the bad one or after
it, or that is known from elsewhere: the node's page of watermarks, the checkpoint. (Frames that
were received tell only of the node that wrote them.) A frame after the bad one counts where the
bad one's header says that it begins, and follows its checksum. Segments before the one that holds
the watermark are durable and are not read here, but for their headers (``fusejournal journal
verify`` reads every byte)."""

import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from fusejournal.disk import calls
from fusejournal.disk.files import Outlives, make_directories, replacing
from fusejournal.errors import JournalDamagedError, JournalForeignError
from fusejournal.journal.format import (
    FRAME,
    FRAME_HEADER_BYTES,
    FormatError,
    decode_entry,
    frame_bytes_at,
    read_frame,
)
from fusejournal.journal.index import index_path
from fusejournal.journal.segment import (
    COMPRESSED_SUFFIX,
    BadFrameError,
    SegmentReader,
    first_seq_of,
    list_segments,
)
from fusejournal.operations import Clean, NewEpoch
from fusejournal.types import Epoch, Seq

CUT_DIRECTORY = "cut"
_CHECKSUM = struct.Struct("<Q")
_CHECKSUM_AT = FRAME_HEADER_BYTES - _CHECKSUM.size


@dataclass(frozen=True)
class Cut:
    """A torn tail: *segment* is cut at *offset*, the segments *after* go as a whole."""

    segment: Path
    offset: int
    seq: Seq
    reason: str
    after: tuple[Path, ...]

    def __str__(self) -> str:
        more = f", and {len(self.after)} segments after it" if self.after else ""
        return (
            f"torn tail cut off {self.segment.name} at byte {self.offset} "
            f"(seq {self.seq} on: {self.reason}){more}; "
            f"saved in {self.segment.parent / CUT_DIRECTORY}"
        )


@dataclass
class Found:
    """The findings of :func:`examine`: where the good part of the journal ends, and what is wrong
    after it."""

    last: Path | None = None
    end: int = 0
    epoch: Epoch = Epoch(0)
    head_seq: Seq = Seq(0)
    chain: int = 0
    last_time_ns: int = 0
    ends_clean: bool = False
    flushed: Seq = Seq(0)
    follows_frames: bool = True
    """True if the frames prove what is flushed."""
    cut: Cut | None = None
    damage: JournalDamagedError | None = None


def examine(
    directory: Path,
    uuid: UUID,
    unclean_machine: bool,
    known_durable: Seq = Seq(0),
    *,
    follows_frames: bool = True,
) -> Found:
    """Find the end of the journal in *directory*; changes nothing. The watermark is *known_durable*
    at least; frames tell more of it where it *follows_frames*, which were written here. Raises
    JournalForeignError."""
    paths = list_segments(directory)
    found = Found(flushed=known_durable, follows_frames=follows_frames)
    first = (
        _first_to_scan(paths, uuid, found) if unclean_machine else _newest_with_entries(paths, uuid)
    )
    for index, path in enumerate(paths[first:], first):
        bad = _scan(path, uuid, found, starts_scan=index == first)
        if bad is None:
            continue
        is_last = index == len(paths) - 1
        if found.follows_frames and bad.seq > found.flushed:
            found.flushed = max(found.flushed, _flushed_after(path, bad))
        # (What is compressed was on disk before: nothing of it can be torn.)
        may_cut = (
            bad.seq > found.flushed
            and not bad.is_newer
            and path.suffix != COMPRESSED_SUFFIX
            and (unclean_machine or (is_last and bad.torn))
        )
        if may_cut:
            found.cut = Cut(path, bad.offset, bad.seq, bad.reason, tuple(paths[index + 1 :]))
        else:
            found.damage = bad.in_segment(path)
        break
    return found


def _flushed_after(path: Path, bad: BadFrameError) -> Seq:
    """The highest watermark in the frames of segment *path* after the *bad* one, 0 where there are
    none: each is where the one before says that it ends, and follows its checksum.

    Where a bad frame has lost its header, too, nothing after it is believed: what looks like frames
    there may be what a user has written to a file."""
    if path.suffix == COMPRESSED_SUFFIX or bad.offset == 0:
        return Seq(0)
    flushed, seq = Seq(0), bad.seq
    with open(path, "rb") as file:
        offset = bad.offset
        while (size := _stated_bytes(file, offset, seq)) is not None:
            (checksum,) = _CHECKSUM.unpack(os.pread(file.fileno(), 8, offset + _CHECKSUM_AT))
            offset, seq = offset + size, Seq(seq + 1)
            size = _stated_bytes(file, offset, seq)
            if size is None:
                break
            content = os.pread(file.fileno(), size, offset)
            with suppress(FormatError):
                frame = read_frame(content, memoryview(content), 0, seq, checksum, offset)
                if frame is not None:
                    flushed = max(flushed, frame.flushed)
    return flushed


def _stated_bytes(file: BinaryIO, offset: int, seq: Seq) -> int | None:
    """Returns the length that the frame at *offset* says it has; None where there is no header of
    entry *seq*."""
    head = os.pread(file.fileno(), FRAME_HEADER_BYTES, offset)
    with suppress(FormatError, struct.error):
        if FRAME.unpack_from(head)[2] == seq:
            return frame_bytes_at(head, 0)
    return None


def _newest_with_entries(paths: list[Path], uuid: UUID) -> int:
    """The index of the newest segment that has an entry: what comes after it was only just
    begun."""
    for index in range(len(paths) - 1, 0, -1):
        try:
            with _open(paths[index], uuid) as reader:
                if next(reader.frames(), None) is not None:
                    return index
        except BadFrameError:
            continue
    return 0


def _first_to_scan(paths: list[Path], uuid: UUID, found: Found) -> int:
    """The index of the segment that holds the first entry not known to be durable, or of one before
    it where that one has lost its header; sets ``found.flushed``."""
    have_header = []
    for index, path in enumerate(paths):
        try:
            with _open(path, uuid) as reader:
                have_header.append(index)
                frame = next(reader.frames(), None)
        except BadFrameError:
            continue
        if frame is not None and found.follows_frames:
            found.flushed = max(found.flushed, frame.flushed)
    return max((i for i in have_header if first_seq_of(paths[i]) <= found.flushed + 1), default=0)


def _open(path: Path, uuid: UUID) -> SegmentReader:
    reader = SegmentReader(path)
    if reader.header.uuid != uuid:
        reader.close()
        raise JournalForeignError(
            f"{path}: a segment of volume {reader.header.uuid}, not of {uuid}"
        )
    return reader


def _scan(path: Path, uuid: UUID, found: Found, starts_scan: bool) -> BadFrameError | None:
    """Read one segment on from what *found* knows; returns where it stops being good, or None."""
    try:
        reader = _open(path, uuid)
    except BadFrameError as bad:
        torn = path.stat().st_size < 128 and path.suffix == ".fj"
        return BadFrameError(bad.offset, bad.seq, bad.reason, torn, bad.is_newer)
    with reader:
        header = reader.header
        if not starts_scan and (header.first_seq, header.chain_before) != (
            found.head_seq + 1,
            found.chain,
        ):
            return BadFrameError(
                0,
                header.first_seq,
                f"does not follow seq {found.head_seq}, the end of the segment before",
                torn=False,
            )
        found.last, found.end = path, 128
        found.epoch, found.head_seq, found.chain = (
            header.epoch,
            Seq(header.first_seq - 1),
            header.chain_before,
        )
        try:
            for frame in reader.frames():
                try:
                    entry = decode_entry(frame)
                except FormatError as error:
                    return BadFrameError.undecodable(frame.offset, frame.seq, error)
                found.head_seq, found.chain = entry.seq, entry.chain
                found.end = entry.offset + entry.frame_bytes
                found.last_time_ns = entry.time_ns
                found.ends_clean = isinstance(entry.operation, Clean)
                if found.follows_frames:
                    found.flushed = max(found.flushed, entry.flushed)
                if isinstance(entry.operation, NewEpoch):
                    found.epoch = entry.operation.epoch
        except BadFrameError as bad:
            return bad
    return None


def cut(directory: Path, where: Cut) -> None:
    """Carry out *where*: what goes is first saved, durably, under the journal's ``cut`` directory.
    Raises OSError."""
    aside = directory / CUT_DIRECTORY
    make_directories("journal.cut.make", aside)
    for path in (where.segment, *where.after):
        index_path(path).unlink(missing_ok=True)
    whole = where.after if where.offset else (where.segment, *where.after)
    for path in reversed(whole):
        calls.rename("journal.cut.rename", path, _free_name(aside, path.name))
    if where.offset:
        saved = _free_name(aside, f"{where.segment.name}-{where.offset}")
        with open(where.segment, "rb", buffering=0) as source:
            source.seek(where.offset)
            with replacing("journal.cut.save", saved, Outlives.MACHINE) as target:
                while piece := source.read(1 << 20):
                    calls.write_all("journal.cut.save.write", target, piece)
    else:
        calls.fsync_directory("journal.cut.aside", aside)
    calls.fsync_directory("journal.cut.directory", directory)
    if where.offset:
        # Only now, because what goes is on the disk with its name.
        with open(where.segment, "r+b", buffering=0) as source:
            calls.ftruncate("journal.cut.truncate", source.fileno(), where.offset)
            calls.fsync("journal.cut.sync", source.fileno())


def _free_name(aside: Path, name: str) -> Path:
    path = aside / name
    number = 1
    while path.exists():
        path = aside / f"{name}.{number}"
        number += 1
    return path
