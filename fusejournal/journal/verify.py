"""Checks every byte of a journal. Used by ``fusejournal journal verify``; opens nothing for
writing.

Each segment is read alone, by several processes; that one follows the other is seen from the chain
in its header."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from fusejournal.errors import JournalDamagedError, JournalVersionError
from fusejournal.journal.index import has_index, load_index
from fusejournal.journal.parallel import map_in_order
from fusejournal.journal.segment import BadFrameError, SegmentReader
from fusejournal.journal.segment_header import SegmentHeader
from fusejournal.types import Seq


@dataclass
class VerifyReport:
    """A report of what was read, and what is wrong with it."""

    segments: int = 0
    entries: int = 0
    bytes: int = 0
    """The size of the segments, uncompressed."""
    first_seq: Seq = Seq(0)
    last_seq: Seq = Seq(0)
    unfinished: str | None = None
    """A frame that just ends at the end of the newest segment: an append under way, or a torn
    tail."""
    damages: list[JournalDamagedError] = field(default_factory=list)
    useless_indexes: list[Path] = field(default_factory=list)
    """Segments whose sidecar index does not fit; it is only a cache."""

    @property
    def worst(self) -> JournalDamagedError | None:
        """The first damage, before what only a newer version can read."""
        newer = JournalVersionError
        return min(self.damages, key=lambda one: isinstance(one, newer), default=None)

    def to_json(self) -> dict[str, object]:
        """Returns what ``journal verify --json`` prints."""
        return {
            "segments": self.segments,
            "entries": self.entries,
            "bytes": self.bytes,
            "first_seq": self.first_seq,
            "last_seq": self.last_seq,
            "unfinished": self.unfinished,
            "useless_indexes": [str(path) for path in self.useless_indexes],
            "damages": [
                {
                    "segment": str(one.segment),
                    "offset": one.offset,
                    "seq": one.seq,
                    "reason": one.reason,
                    "is_newer": isinstance(one, JournalVersionError),
                }
                for one in self.damages
            ],
        }


class _Part(NamedTuple):
    """The findings in one segment. ``bad``: offset, seq, reason, torn, newer."""

    header: SegmentHeader | None
    entries: int
    chain: int
    bytes: int
    bad: tuple[int, Seq, str, bool, bool] | None
    index_fits: bool


def verify(
    paths: Sequence[Path],
    uuid: UUID | None,
    progress: Callable[[int, int], None],
    *,
    deep: bool = False,
) -> VerifyReport:
    """Read all segments in *paths*, which are in order; *progress* gets bytes done and in all, of
    the files. *uuid* None takes any volume's, if it is one volume's. *deep*: decode every entry,
    too, as its readers do. Raises OSError."""
    report = VerifyReport()
    file_bytes = [_file_bytes(path) for path in paths]
    done, total = 0, sum(file_bytes)
    before: tuple[int, int] | None = None
    progress(0, total)
    parts = map_in_order(partial(_verify_segment, deep), paths)
    for path, size, part in zip(paths, file_bytes, parts, strict=True):
        done += size
        progress(done, total)
        report.segments += 1
        report.bytes += part.bytes
        report.entries += part.entries
        if not part.index_fits:
            report.useless_indexes.append(path)
        damage = partial(_damaged, report, path)
        header = part.header
        if header is not None:
            uuid = uuid or header.uuid
            if header.uuid != uuid:
                damage(0, header.first_seq, f"is of volume {header.uuid}, not {uuid}")
            elif before is not None and (header.first_seq, header.chain_before) != before:
                reason = f"does not follow seq {before[0] - 1} of the segment before"
                damage(0, header.first_seq, reason)
            report.first_seq = report.first_seq or header.first_seq
            if part.entries:
                report.last_seq = Seq(header.first_seq + part.entries - 1)
            before = header.first_seq + part.entries, part.chain
        if part.bad is not None:
            bad = BadFrameError(*part.bad)
            before = None  # what follows is checked by itself
            if bad.torn and path == paths[-1]:
                where = f"{path.name} ends in the middle of seq {bad.seq}"
                report.unfinished = f"{where} ({bad.reason})"
            else:
                report.damages.append(bad.in_segment(path))
    return report


def _damaged(report: VerifyReport, path: Path, offset: int, seq: Seq, reason: str) -> None:
    report.damages.append(JournalDamagedError(path, offset, seq, reason))


def _file_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0  # compressed just now; its reader finds it


def _verify_segment(deep: bool, path: Path) -> _Part:
    header: SegmentHeader | None = None
    try:
        with SegmentReader(path) as reader:
            header = reader.header
            index = load_index(path, reader)
            end = reader.check(deep=deep)
    except BadFrameError as bad:
        entries = bad.seq - header.first_seq if header is not None else 0
        damage = bad.offset, bad.seq, bad.reason, bad.torn, bad.is_newer
        return _Part(header, entries, 0, bad.offset, damage, True)
    entries = end.seq - header.first_seq
    index_fits = not has_index(path) or (
        index is not None and (index.entries, index.chain) == (entries, end.chain_before)
    )
    return _Part(header, entries, end.chain_before, end.offset, None, index_fits)
