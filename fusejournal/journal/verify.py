"""Checks every byte of a journal. Used by ``fusejournal journal verify``; opens nothing for
writing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from fusejournal.errors import JournalDamagedError
from fusejournal.journal.format import FormatError, decode_entry
from fusejournal.journal.segment import BadFrameError, SegmentReader, list_segments
from fusejournal.types import Seq

_PROGRESS_ENTRIES = 4096


@dataclass
class VerifyReport:
    """What was read, and what is wrong with it."""

    segments: int = 0
    entries: int = 0
    bytes: int = 0
    first_seq: Seq = Seq(0)
    last_seq: Seq = Seq(0)
    unfinished: str | None = None
    """A frame that just ends at the end of the newest segment: an append under way, or a torn
    tail."""
    damages: list[JournalDamagedError] = field(default_factory=list)


def verify(
    directory: Path, uuid: UUID | None, progress: Callable[[int, int], None]
) -> VerifyReport:
    """Read all segments in *directory*; *progress* gets bytes done and in all, of uncompressed
    segments. The chain is followed from one segment to the next. *uuid* None takes any volume's,
    if it is one volume's. Raises OSError."""
    report = VerifyReport()
    paths = list_segments(directory)
    sizes = [_size(path) for path in paths]
    total = sum(sizes)
    expected: tuple[Seq, int] | None = None
    done = 0
    for index, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        report.segments += 1
        try:
            with SegmentReader(path) as reader:
                header = reader.header
                if uuid is not None and header.uuid != uuid:
                    raise BadFrameError(
                        0, header.first_seq, f"is of volume {header.uuid}, not {uuid}", torn=False
                    )
                uuid = header.uuid
                report.first_seq = report.first_seq or header.first_seq
                if expected is not None and (header.first_seq, header.chain_before) != expected:
                    raise BadFrameError(
                        0,
                        header.first_seq,
                        f"does not follow seq {expected[0] - 1} of the segment before",
                        torn=False,
                    )
                expected = (header.first_seq, header.chain_before)
                for frame, content, offset in reader.frames():
                    try:
                        decode_entry(frame, content, offset)
                    except FormatError as error:
                        raise BadFrameError(offset, frame.seq, str(error), torn=False) from None
                    report.entries += 1
                    report.last_seq = frame.seq
                    expected = (Seq(frame.seq + 1), frame.checksum)
                    if report.entries % _PROGRESS_ENTRIES == 0:
                        progress(done + offset, total)
        except BadFrameError as bad:
            if bad.torn and index == len(paths) - 1:
                report.unfinished = (
                    f"{path.name} ends in the middle of seq {bad.seq} ({bad.reason})"
                )
            else:
                report.damages.append(JournalDamagedError(path, bad.offset, bad.seq, bad.reason))
            expected = None  # what follows is checked by itself
        done += size
        report.bytes = done
        progress(done, total)
    return report


def _size(path: Path) -> int:
    try:
        with SegmentReader(path) as reader:
            return reader.size
    except BadFrameError:
        return path.stat().st_size
