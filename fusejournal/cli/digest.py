"""``fusejournal digest``: one number for a whole tree."""

import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fusejournal.admin.digest import DigestReport, find_tree
from fusejournal.cli import text
from fusejournal.replay.digest import TreeDigest, digest_tree

_REDRAW_SECONDS = 0.1


@click.command(short_help="One number for a whole tree.")
@click.argument("source", metavar="DIR|VOLUME")
@click.option(
    "--path",
    "within",
    default="",
    metavar="P",
    help="Only what is at P, relative to the root of the tree (a leading / is that root).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def digest(source: str, within: str, as_json: bool) -> None:
    """Print one number for everything in DIR, or in VOLUME: equal numbers, equal trees.

    It covers names, types, modes, owners, mtimes, contents, symlink targets, device numbers,
    extended attributes with ACLs, and which names are hard links of one file; not atimes, ctimes
    and the sizes of directories. A single file's covers all but its name. Of a mounted VOLUME (a
    name, a mountpoint or a state directory) the mount is read, of a stopped one the backing. A name
    is looked for among the volumes first: say ./NAME for a directory. The tree must rest: a file
    that changes while it is read ends this with exit code 18.

    Of names and directories the root is counted, too ("entries" in JSON are the names).

    \b
    Examples:
      fusejournal digest srv-data
      fusejournal digest /srv/data --path home/ann/thesis.tex
      fusejournal digest /restored/data --json
    """
    part = find_tree(source, within)
    found = _digest(part.place, quiet=as_json)
    if as_json:
        text.echo_json(DigestReport.of_part(part, found).to_json())
    else:
        shown = text.name(part.name) + (f", /{text.name(part.path)}" if part.path else "")
        text.echo(f"{found.digest}  {shown}: {_counts(found)}")


def _digest(root: Path, quiet: bool) -> TreeDigest:
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("reading: {task.fields[names]:,} names, {task.fields[size]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("digest", total=None, names=0, size=text.size(0))
        drawn = time.monotonic()

        def show(names: int, size: int) -> None:
            nonlocal drawn
            if time.monotonic() - drawn >= _REDRAW_SECONDS:
                drawn = time.monotonic()
                bar.update(task, names=names, size=text.size(size))

        return digest_tree(root, show)


def _counts(found: TreeDigest) -> str:
    return ", ".join(
        (
            text.count(found.entries, "name"),
            text.count(found.files, "file"),
            text.count(found.directories, "directory", "directories"),
            text.size(found.bytes),
        )
    )
