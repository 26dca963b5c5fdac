"""The tables, or the JSON object, in which sums over entries are shown."""

from collections.abc import Callable
from typing import Any

from fusejournal.cli import entries, text
from fusejournal.history.statistics import Statistics

_SHOWN = 15
_HOURS_SHOWN = 48


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
        text.echo_json(statistics.to_json())
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
