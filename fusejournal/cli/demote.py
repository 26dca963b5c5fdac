"""``fusejournal demote``."""

import click

from fusejournal.admin.demote import demote_in_words
from fusejournal.cli import text
from fusejournal.node.registry import find_volume


@click.command("demote", short_help="Make this primary a mirror.")
@click.argument("volume")
@click.option(
    "--timeout",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0, 3600),
    metavar="SECONDS",
    help="How long its mirrors have to take what they lack.",
)
@click.option("--force", is_flag=True, help="Also where no mirror has everything.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def demote_command(volume: str, timeout: float, force: bool, as_json: bool) -> None:
    """Have the primary VOLUME, which must be mounted with --listen ADDR:PORT, take no more
    changes: a mirror from now on.

    Changes get "Read-only file system" at once. When all mirrors that are connected have everything
    on their disks, the volume is closed and opened again in its new role; files that were open are
    lost. It is refused (exit code 33), and changes are taken again, where they do not have it in
    time, and after Ctrl-C.

    To move the service: 'demote' here, then 'promote' on the mirror that is to serve, which needs
    no force, because no other node takes changes; this node follows it by itself. On a primary that
    is fenced, it makes that a mirror of the one that reigns.

    \b
    Examples:
      fusejournal demote srv-data                    on the old primary
      fusejournal promote srv-data                   then, on the new one
    """
    state = find_volume(volume)
    demoted, words = demote_in_words(
        state, force=force, drain_seconds=timeout, timeout_seconds=timeout + 600.0
    )
    if as_json:
        text.echo_json(demoted.to_json())
    else:
        text.echo(words)
