"""The note below the line of an entry: which versions keep what it left."""

from fusejournal.cli import text

_NAMES_SHOWN = 4


def warn(words: str) -> None:
    """Print a warning, on standard error."""
    text.echo(f"fusejournal: {words}", err=True)


def note_of(names: list[str]) -> str:
    """Returns the words that an entry's line is followed by."""
    more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    word = "version" if len(names) == 1 else "versions"
    return f"kept in {word} {', '.join(names[:_NAMES_SHOWN])}{more}"
