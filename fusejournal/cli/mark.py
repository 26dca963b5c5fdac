"""``fusejournal mark``."""

import click

from fusejournal.admin.mark import set_mark
from fusejournal.cli import text
from fusejournal.node.registry import find_volume


@click.command(short_help="Give the present point a name.")
@click.argument("volume")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: name, seq, time_ns.")
def mark(volume: str, name: str, as_json: bool) -> None:
    """Give the present point of VOLUME, which must be mounted, a NAME to go back to.

    Returns when the mark, and with it every change before it, is on the journal's disk. A NAME
    has 1 to 128 printable characters, and is neither a number nor a time such as 'yesterday' or
    '14:00'. It may be given again: the newest mark of that name counts.

    A mark cannot be removed, and 'prune' lets no entry after the oldest one go. Where the journal
    is pruned, give what is to be kept for long a name by 'fusejournal version create' instead.

    \b
    Examples:
      fusejournal mark srv-data before-upgrade
      fusejournal mark /srv/data "release 2.1" --json
    """
    marked = set_mark(find_volume(volume), name)
    if as_json:
        text.echo_json(marked.to_json())
    else:
        text.echo(f'marked "{name}" at seq {marked.seq}')
