"""Sums over entries: by operation, user, directory and hour, and the files written most."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from fusejournal.cli import entries, text
from fusejournal.history.query import Match

_SHOWN = 15
_HOURS_SHOWN = 48
_KEPT = 50_000


def _nothing() -> list[int]:
    # No lambda, for tallies come from other processes.
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
    """What some entries come to. Bytes are what the operations carry: written data."""

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
        entry, void, path, _ = match
        size = len(entry.data)
        self.entries += 1
        self.refused += void is not None and not void.written
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


def show_statistics(statistics: Statistics, as_json: bool) -> None:
    """Print them: tables, or one JSON object."""
    tables: list[tuple[str, list[tuple[Any, int, int]], Callable[[Any], str], int]] = [
        ("by operation", statistics.operations.by_size(), str, _SHOWN),
        ("by user", statistics.users.by_size(), entries.user, _SHOWN),
        ("by directory", statistics.directories.by_size(), _path, _SHOWN),
        ("by hour", statistics.hours.by_key()[-_HOURS_SHOWN:], _hour, _HOURS_SHOWN),
        ("largest writers", statistics.files.by_size(), _path, _SHOWN),
    ]
    if as_json:
        text.echo_json(_as_json(statistics))
        return
    text.echo(
        f"{text.count(statistics.entries, 'entry', 'entries')}, "
        f"{statistics.refused:,} refused; {text.size(statistics.bytes)} written, "
        f"{text.size(statistics.frame_bytes)} in the journal"
    )
    if statistics.first and statistics.last:
        for word, (seq, time_ns) in (("from", statistics.first), ("to", statistics.last)):
            text.echo(f"{word:<5}{seq:>10}  {text.moment(time_ns)}")
    for title, rows, name, limit in tables:
        text.echo()
        text.echo(title)
        text.echo(f"{'ENTRIES':>12}  {'WRITTEN':>10}")
        for key, count, size in rows[:limit]:
            shown = "(others)" if key is None else name(key)
            text.echo(f"{count:>12,}  {text.size(size):>10}  {shown}")
        if len(rows) > limit:
            text.echo(f"{'':>24}  and {len(rows) - limit:,} more (--json has them)")


def _path(path: bytes) -> str:
    return entries.shown_path(path)


def _hour(hour: int) -> str:
    return text.moment(hour * 3600 * 10**9)[:16].replace("T", " ")


def _as_json(statistics: Statistics) -> dict[str, Any]:
    def rows(key: str, found: list[tuple[Any, int, int]]) -> list[dict[str, Any]]:
        return [
            {key: text.exact(one) if isinstance(one, bytes) else one, "entries": n, "bytes": size}
            for one, n, size in found
        ]

    hours = [(text.utc(hour * 3600 * 10**9), n, b) for hour, n, b in statistics.hours.by_key()]
    return {
        "entries": statistics.entries,
        "refused": statistics.refused,
        "bytes": statistics.bytes,
        "frame_bytes": statistics.frame_bytes,
        "first_seq": statistics.first[0] if statistics.first else None,
        "last_seq": statistics.last[0] if statistics.last else None,
        "operations": rows("op", statistics.operations.by_size()),
        "users": rows("uid", statistics.users.by_size()),
        "directories": rows("path", statistics.directories.by_size()),
        "hours": rows("hour", hours),
        "files": rows("path", statistics.files.by_size()),
    }
