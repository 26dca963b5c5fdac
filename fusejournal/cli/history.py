"""``fusejournal history``: one file's life."""

import click

from fusejournal.admin.source import open_source
from fusejournal.cli import entries, text
from fusejournal.errors import PathNotFoundError
from fusejournal.history.json_values import match_to_json
from fusejournal.history.life import Life, find_lives, read_life
from fusejournal.journal.reader import END


@click.command(short_help="One file's life.")
@click.argument("volume")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def history(volume: str, path: str, as_json: bool) -> None:
    """Show the life of the file or directory PATH: every entry about it, whatever its name was
    then, who asked for it, and the size after it.

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
    for number, life in enumerate(lives, 1):
        if as_json:
            for step in read_life(source.lookup, life.fid):
                text.echo_json({**match_to_json(step.match), "of": life.fid, "size": step.size})
            continue
        if number > 1:
            text.echo()
        text.echo(_title(raw, life, number, len(lives)), bold=True)
        for step in read_life(source.lookup, life.fid):
            size = "" if step.size is None else text.size(step.size)
            text.echo(f"{size:>10}  {entries.as_line(step.match)}")


def _title(path: bytes, life: Life, number: int, count: int) -> str:
    spans = ", ".join(
        f"seq {one.from_seq} on" if one.to_seq == END else f"seq {one.from_seq} to {one.to_seq - 1}"
        for one in life.tenures
    )
    which = f"file {number} of {count}: " if count > 1 else ""
    return f"{which}{entries.shown_path(path)} was fid {life.fid} ({spans})"
