"""Every entry as it lies in its segment, VOIDs too: what a dump is made of. How an entry is shown
is the caller's."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fusejournal.errors import JournalDamagedError
from fusejournal.journal.format import Entry, FormatError, decode_entry
from fusejournal.journal.parallel import map_in_order
from fusejournal.journal.segment import BadFrameError, SegmentReader, first_seq_of


class DumpedSegment(NamedTuple):
    """The lines of one segment, each with its line end, up to its end or ``damage``."""

    lines: bytes
    damage: JournalDamagedError | None


def dump_segments(paths: Sequence[Path], shown: Callable[[Entry], str]) -> Iterator[DumpedSegment]:
    """Yields the segments in *paths*, which are in order, by several processes. *shown*, a module's
    own function, makes the line of an entry. A frame that just ends at the end of the newest
    segment is no damage: an append is under way. Raises OSError."""
    if not paths:
        return
    for path, (lines, bad) in zip(
        paths, map_in_order(partial(_dump, paths[-1], shown), paths), strict=True
    ):
        yield DumpedSegment(lines, bad.in_segment(path) if bad is not None else None)


def _dump(
    newest: Path, shown: Callable[[Entry], str], path: Path
) -> tuple[bytes, BadFrameError | None]:
    lines: list[str] = []
    damage: BadFrameError | None = None
    try:
        with SegmentReader(path) as reader:
            # What comes before damage stays in the list.
            lines.extend(shown(decode_entry(frame)) for frame in reader.frames())
    except BadFrameError as bad:
        if not (bad.torn and path == newest):
            damage = bad
    except FormatError as error:
        damage = BadFrameError.undecodable(0, first_seq_of(path), error)
    lines.append("")
    return "\n".join(lines).encode("utf-8", "backslashreplace"), damage
