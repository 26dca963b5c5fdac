"""Sums over entries: by operation, user, directory and hour, and the files written most."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fusejournal.history.json_values import exact, utc
from fusejournal.history.paths import PathTracker
from fusejournal.history.query import Match, paths_of
from fusejournal.journal.format import FormatError, decode_entry
from fusejournal.journal.outcomes import with_outcomes
from fusejournal.journal.parallel import map_in_order
from fusejournal.journal.segment import BadFrameError, SegmentReader, first_seq_of

_KEPT = 50_000


def _nothing() -> list[int]:
    # No lambda, because tallies come from other processes.
    return [0, 0]


class Tally:
    """Entries and bytes for each of many keys. With more keys than can be kept the smallest go
    into one sum, so that memory is bounded."""

    def __init__(self) -> None:
        self._sums: defaultdict[Any, list[int]] = defaultdict(_nothing)
        self.others = [0, 0]

    def add(self, key: Any, size: int, count: int = 1) -> None:
        """Count *count* entries of together *size* bytes for *key*."""
        sums = self._sums[key]
        sums[0] += count
        sums[1] += size
        if len(self._sums) > 2 * _KEPT:
            self._drop_small()

    def _drop_small(self) -> None:
        ranked = sorted(self._sums, key=lambda key: self._sums[key][::-1], reverse=True)
        for key in ranked[_KEPT:]:
            entries_, bytes_ = self._sums.pop(key)
            self.others[0] += entries_
            self.others[1] += bytes_

    def merge(self, other: "Tally") -> None:
        """Add what *other* has."""
        for key, (count, size) in other._sums.items():
            self.add(key, size, count)
        self.others = [one + two for one, two in zip(self.others, other.others, strict=True)]

    def by_size(self) -> list[tuple[Any, int, int]]:
        """(key, entries, bytes), the most bytes first; at the end, with the key None, what is not
        kept apart."""
        rows: list[tuple[Any, int, int]] = [(key, *sums) for key, sums in self._sums.items()]
        rows.sort(key=lambda row: (row[2], row[1]), reverse=True)
        if self.others[0]:
            rows.append((None, self.others[0], self.others[1]))
        return rows

    def by_key(self) -> list[tuple[Any, int, int]]:
        """(key, entries, bytes), by key."""
        return sorted((key, *sums) for key, sums in self._sums.items())


class Statistics:
    """Sums over some entries. Bytes are what the operations carry: written data."""

    def __init__(self) -> None:
        self.entries = 0
        self.refused = 0
        self.bytes = 0
        self.frame_bytes = 0
        self.first: tuple[int, int] | None = None
        self.last: tuple[int, int] | None = None
        self.operations = Tally()
        self.users = Tally()
        self.directories = Tally()
        self.hours = Tally()
        self.files = Tally()

    def add(self, match: Match) -> None:
        """Count one entry."""
        entry, outcome, path, _ = match
        size = len(entry.data)
        self.entries += 1
        self.refused += not outcome.held
        self.bytes += size
        self.frame_bytes += entry.frame_bytes
        moment = entry.seq, entry.time_ns
        self.first = min(self.first or moment, moment)
        self.last = max(self.last or moment, moment)
        self.operations.add(entry.operation.kind.name.lower(), size)
        self.users.add(entry.who.uid, size)
        self.hours.add(entry.time_ns // (3600 * 10**9), size)
        if path is not None:
            self.directories.add(path.rpartition(b"/")[0], size)
            if size:
                self.files.add(path, size)

    def merge(self, other: "Statistics") -> None:
        """Add what *other*, of later entries, has."""
        self.entries += other.entries
        self.refused += other.refused
        self.bytes += other.bytes
        self.frame_bytes += other.frame_bytes
        self.first = self.first or other.first
        self.last = other.last or self.last
        for name in ("operations", "users", "directories", "hours", "files"):
            getattr(self, name).merge(getattr(other, name))

    def to_json(self) -> dict[str, Any]:
        """Returns what ``journal stats --json`` prints."""
        hours = [(utc(hour * 3600 * 10**9), n, size) for hour, n, size in self.hours.by_key()]
        return {
            "entries": self.entries,
            "refused": self.refused,
            "bytes": self.bytes,
            "frame_bytes": self.frame_bytes,
            "first_seq": self.first[0] if self.first else None,
            "last_seq": self.last[0] if self.last else None,
            "operations": _rows("op", self.operations.by_size()),
            "users": _rows("uid", self.users.by_size()),
            "directories": _rows("path", self.directories.by_size()),
            "hours": _rows("hour", hours),
            "files": _rows("path", self.files.by_size()),
        }


def _rows(key: str, found: list[tuple[Any, int, int]]) -> list[dict[str, Any]]:
    return [
        {key: exact(one) if isinstance(one, bytes) else one, "entries": n, "bytes": size}
        for one, n, size in found
    ]


def sum_matches(matches: Iterable[Match]) -> Statistics:
    """Returns the sums over *matches*."""
    found = Statistics()
    for match in matches:
        found.add(match)
    return found


def sum_segments(paths: Sequence[Path], progress: Callable[[int, int | None], None]) -> Statistics:
    """Returns the sums over whole segments, read by several processes; *progress* is called with
    how many are done, and of how many. Raises JournalDamagedError."""
    whole = Statistics()
    for number, (part, bad) in enumerate(map_in_order(partial(_sum_segment, paths[-1]), paths), 1):
        if bad is not None:
            raise bad.in_segment(paths[number - 1])
        whole.merge(part)
        progress(number, len(paths))
    return whole


def _sum_segment(newest: Path, path: Path) -> tuple[Statistics, BadFrameError | None]:
    found = Statistics()
    tracker = PathTracker()
    try:
        with SegmentReader(path) as reader:
            for entry, outcome in with_outcomes(map(decode_entry, reader.frames())):
                tracker.learn(entry)
                found.add(Match(entry, outcome, *paths_of(tracker, entry.operation)))
                if outcome.held:
                    tracker.follow(entry.operation)
    except BadFrameError as bad:
        if not (bad.torn and path == newest):
            return found, bad
    except FormatError as error:
        return found, BadFrameError.undecodable(0, first_seq_of(path), error)
    return found, None
