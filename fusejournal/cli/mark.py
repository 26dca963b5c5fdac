"""``fusejournal mark``."""

import click

from fusejournal.admin.mark import list_marks, remove_mark, set_mark
from fusejournal.cli import text
from fusejournal.errors import UsageError
from fusejournal.node.registry import find_volume


@click.command(short_help="Give the present point a name.")
@click.argument("volume")
@click.argument("name", required=False)
@click.option("--remove", is_flag=True, help="Remove the marks NAME in place of making one.")
@click.option("--list", "is_list", is_flag=True, help="Say which marks there are.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="JSON: an object with name, seq, time_ns; with --list, one a line.",
)
def mark(volume: str, name: str | None, remove: bool, is_list: bool, as_json: bool) -> None:
    """Give the present point of VOLUME, which must be mounted, a NAME to go back to.

    Returns when the mark, and with it every change before it, is on the journal's disk. A NAME
    has 1 to 128 printable characters, and is neither a number nor a time such as 'yesterday' or
    '14:00'. It may be given again: the newest mark of that name counts.

    'prune' lets no entry after the oldest mark go, until that is removed. Where the journal is
    pruned, give what is to be kept for long a name by 'fusejournal version create' instead. To
    remove a mark is a change like making one: mirrors get it, and it can be taken back by no undo.

    \b
    Examples:
      fusejournal mark srv-data before-upgrade
      fusejournal mark /srv/data "release 2.1" --json
      fusejournal mark srv-data --list
      fusejournal mark srv-data before-upgrade --remove
    """
    if is_list:
        if name is not None or remove:
            raise UsageError("--list takes neither a NAME nor --remove")
        for one in list_marks(volume):
            if as_json:
                text.echo_json(one._asdict())
            else:
                when = text.moment(one.time_ns)[:19].replace("T", " ")
                text.echo(f"{one.seq:>12}  {when}  {one.name}")
        return
    if name is None:
        raise UsageError("which NAME? 'fusejournal mark VOLUME --list' says which marks there are")
    made = (remove_mark if remove else set_mark)(find_volume(volume), name)
    if as_json:
        text.echo_json(made.to_json())
    elif remove:
        text.echo(f'removed mark "{name}", by entry {made.seq}')
    else:
        text.echo(f'marked "{name}" at seq {made.seq}')
