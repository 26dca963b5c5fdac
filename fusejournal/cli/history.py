"""``fusejournal history``: one file's life."""

import click

from fusejournal.admin.source import open_source
from fusejournal.admin.version_notes import kept_to_json, kept_versions, noted_life
from fusejournal.cli import entries, text
from fusejournal.cli.version_notes import note_of, warn
from fusejournal.history.life import Life
from fusejournal.journal.reader import END


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
    lives = source.lives(path)
    if source.gone_before is not None:
        text.echo(f"fusejournal: {source.gone_before}", err=True)
    versions = kept_versions(source, warn)
    for number, life in enumerate(lives, 1):
        steps = noted_life(source.lookup, life, versions)
        if as_json:
            for step, names in steps:
                text.echo_json({**step.to_json(life.fid), **kept_to_json(names)})
            continue
        if number > 1:
            text.echo()
        text.echo(_title(source.path(path), life, number, len(lives)), bold=True)
        for step, names in steps:
            size = "" if step.size is None else text.size(step.size)
            text.echo(f"{size:>10}  {entries.as_line(step.match)}")
            if names:
                text.echo(f"{'':>24}{note_of(names)}")


def _title(path: bytes, life: Life, number: int, count: int) -> str:
    spans = ", ".join(
        f"seq {one.from_seq} on" if one.to_seq == END else f"seq {one.from_seq} to {one.to_seq - 1}"
        for one in life.tenures
    )
    which = f"file {number} of {count}: " if count > 1 else ""
    return f"{which}{entries.shown_path(path)} was fid {life.fid} ({spans})"
