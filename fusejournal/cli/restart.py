"""``fusejournal restart``."""

import click

from fusejournal.admin.restart import restart_volume
from fusejournal.cli import text
from fusejournal.node.registry import find_volume


@click.command(short_help="Begin anew with the installed program, beneath all users.")
@click.argument("volume")
@click.option(
    "--timeout",
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the layer to be back.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when it is back.")
def restart(volume: str, timeout: float, quiet: bool) -> None:
    """Restart the layer of VOLUME without unmounting it; returns when it is back.

    Use it after an upgrade or a change of the configuration. NFS clients and local users notice a
    pause only: their open files, removed ones too, working directories and locks stay good.
    A configuration that cannot be used is refused, and the layer goes on as it was.

    \b
    Examples:
      fusejournal restart srv-data
      systemctl reload fusejournal@srv-data
    """
    from fusejournal.cli.mount import specify  # which takes its time to load

    state = find_volume(volume)
    restart_volume(state, timeout, specify)
    if not quiet:
        text.echo(f"volume {state.name} is back at {state.mountpoint}")
