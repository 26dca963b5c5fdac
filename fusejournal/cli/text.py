"""How values are shown: one way for all commands."""

import json
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import click

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(amount: float) -> str:
    """A number of bytes in the unit that fits."""
    unit = 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount /= 1024
        unit += 1
    return f"{amount:.0f} {_UNITS[unit]}" if unit == 0 else f"{amount:.1f} {_UNITS[unit]}"


def count(number: int, noun: str, plural: str = "") -> str:
    """A number of things: "1 segment", "2 segments"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {plural or noun + 's'}"


def duration(seconds: float) -> str:
    """A time span in the two units that fit."""
    whole = round(seconds)
    for unit, word, below, below_word in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= unit:
            return f"{whole // unit} {word} {whole % unit // below} {below_word}"
    return f"{whole} s"


def moment(time_ns: int) -> str:
    """A time as ISO 8601, local, to the nanosecond: given to a command, it means that very
    entry."""
    seconds, nanoseconds = divmod(time_ns, 10**9)
    second, zone = _local_second(seconds)
    return f"{second}.{nanoseconds:09d}{zone}"


@lru_cache(maxsize=256)
def _local_second(seconds: int) -> tuple[str, str]:
    # Entries of one second come together, and this takes its time.
    local = datetime.fromtimestamp(seconds, UTC).astimezone().isoformat()
    return local[:19], local[19:]


def utc(time_ns: int) -> str:
    """A time as ISO 8601 in UTC, to the nanosecond."""
    seconds, nanoseconds = divmod(time_ns, 10**9)
    return f"{_utc_second(seconds)}.{nanoseconds:09d}+00:00"


@lru_cache(maxsize=256)
def _utc_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


def name(raw: bytes) -> str:
    """A file name or path for people: what is not printable UTF-8 is escaped."""
    text = raw.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def exact(raw: bytes) -> str:
    """A file name or path for scripts: bytes that are not UTF-8 become lone surrogates (U+DC80 to
    U+DCFF), as Python's ``os.fsdecode`` makes them, so that the bytes can be had again."""
    return raw.decode("utf-8", "surrogateescape")


def echo_json(value: Any) -> None:
    """One JSON object on one line."""
    click.echo(json.dumps(value))
