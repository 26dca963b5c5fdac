"""``fusejournal history``: one file's life."""

from collections.abc import Iterator

import click

from fusejournal.admin.source import open_source
from fusejournal.cli import entries, text
from fusejournal.cli.version_notes import KeptVersion, kept_versions, note_of, with_versions
from fusejournal.errors import PathNotFoundError
from fusejournal.history.json_values import match_to_json
from fusejournal.history.life import Life, LifeEntry, find_lives, read_life
from fusejournal.history.lookup import Lookup
from fusejournal.journal.reader import END
from fusejournal.types import ROOT_FID, Seq


@click.command(short_help="One file's life.")
@click.argument("volume")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def history(volume: str, path: str, as_json: bool) -> None:
    """Show the life of the file or directory PATH: every entry about it, whatever its name was
    then, who asked for it, and the size after it.

    Below an entry stand the versions that have the file as it left it.

    PATH is from the volume's root, and may be one that is gone. Where it stood for several files,
    one after the other, each is shown. A rename of a directory above is part of the life, too.

    \b
    Examples:
      fusejournal history srv-data home/anna/thesis.odt
      fusejournal history srv-data old/name.txt --json | jq -r '[.seq, .path, .size] | @tsv'
    """
    source = open_source(volume)
    raw = source.path(path)
    lives = find_lives(source.lookup, raw)
    if not lives:
        first = "" if source.gone_before is None else f" since entry {source.reader.first_seq}"
        raise PathNotFoundError(path, f"never was in the journal of {source.name}{first}")
    if source.gone_before is not None:
        text.echo(f"fusejournal: {source.gone_before}", err=True)
    versions = kept_versions(source)
    for number, life in enumerate(lives, 1):
        steps = _noted(source.lookup, life, versions)
        if as_json:
            for step, names in steps:
                kept = {"versions": names} if names else {}
                raw_step = {**match_to_json(step.match), "of": life.fid, "size": step.size}
                text.echo_json({**raw_step, **kept})
            continue
        if number > 1:
            text.echo()
        text.echo(_title(raw, life, number, len(lives)), bold=True)
        for step, names in steps:
            size = "" if step.size is None else text.size(step.size)
            text.echo(f"{size:>10}  {entries.as_line(step.match)}")
            if names:
                text.echo(f"{'':>24}{note_of(names)}")


def _noted(
    lookup: Lookup, life: Life, versions: list[KeptVersion]
) -> Iterator[tuple[LifeEntry, list[str]]]:
    """Yields a file's life, each entry with the versions that have the file as it left it."""
    steps = read_life(lookup, life.fid)
    for step, names in with_versions(steps, lambda one: one.match.entry.seq, versions):
        after = Seq(step.match.entry.seq + 1)
        if names and life.fid != ROOT_FID and lookup.path_before(life.fid, after) is None:
            names = []  # it has gone
        yield step, names


def _title(path: bytes, life: Life, number: int, count: int) -> str:
    spans = ", ".join(
        f"seq {one.from_seq} on" if one.to_seq == END else f"seq {one.from_seq} to {one.to_seq - 1}"
        for one in life.tenures
    )
    which = f"file {number} of {count}: " if count > 1 else ""
    return f"{which}{entries.shown_path(path)} was fid {life.fid} ({spans})"
