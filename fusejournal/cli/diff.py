"""``fusejournal diff``: what changed between two moments."""

import click

from fusejournal.admin.source import open_source
from fusejournal.cli import entries, text
from fusejournal.cli.seqs import MOMENT
from fusejournal.history.changes import Change
from fusejournal.types import SeqOrPosition


@click.command(short_help="What changed between two moments.")
@click.argument("volume")
@click.argument("seq1", type=MOMENT)
@click.argument("seq2", type=MOMENT)
@click.argument("path", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def diff(
    volume: str, seq1: SeqOrPosition, seq2: SeqOrPosition, path: str | None, as_json: bool
) -> None:
    """Show what changed between the tree after entry SEQ1 and after entry SEQ2, a line a file:

    A added, D removed, R renamed, M content written, P attributes (mode, owner, times, xattrs).
    One line can have several letters. What was added and removed again in between does not show;
    nor do files that only moved with a directory. SEQ1 0 is the empty tree. PATH: only it and what
    is below, by its old or new name. For a seq a position goes, too: EPOCH/SEQ/CHAIN, as messages
    print it.

    \b
    Examples:
      fusejournal diff srv-data 1000 2000
      fusejournal diff srv-data 1000 2000 home/anna --json | jq -r 'select(.removed) | .old_path'
    """
    for change in open_source(volume).changes(seq1, seq2, path):
        if as_json:
            text.echo_json(change.to_json())
        else:
            text.echo(_as_line(change))


def _as_line(change: Change) -> str:
    users = ", ".join(map(entries.user, change.uids))
    what = "hard link, " if change.link else ""
    number = text.count(change.entries, "entry", "entries")
    return f"{entries.changed_path(change)}  ({what}{number} by {users})"
