"""Shows values, in one way for all commands; and the one way out.

Names are whatever bytes users like, and reach people in paths, errors, warnings and status lines.
All that a command prints goes through :func:`echo` or :func:`echo_json`: a call is one line, and
what is not printable in it is escaped, so that no name can move the cursor, add a line or end one.
What is not for a terminal goes through :func:`line`."""

import json
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import click

from fusejournal.errors import printable

_STYLE = re.compile(r"(\x1b\[[0-9;]*m)")
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


def name(raw: bytes) -> str:
    """A file name or path for people: what is not printable UTF-8 is escaped."""
    return printable(raw)


def line(words: str) -> str:
    """*words*, which may hold names (as Python makes them of bytes), as one line for people."""
    if words.isprintable():
        return words
    return name(words.encode("utf-8", "surrogateescape"))


def echo(
    words: str = "", *, err: bool = False, fg: str | None = None, bold: bool | None = None
) -> None:
    """Print one line; ``click.style`` may have been used in it."""
    click.secho(styled(words), err=err, fg=fg, bold=bold)


def styled(words: str) -> str:
    """Does what :func:`line` does, for words in which ``click.style`` may have been used."""
    if words.isprintable():
        return words
    return "".join(part if _STYLE.fullmatch(part) else line(part) for part in _STYLE.split(words))


def echo_lines(words: str, *, err: bool = False) -> None:
    """Print what consists of lines, each as :func:`echo` does."""
    for one in words.removesuffix("\n").split("\n"):
        echo(one, err=err)


def echo_json(value: Any) -> None:
    """One JSON object on one line."""
    click.echo(json.dumps(value))
