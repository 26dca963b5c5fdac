"""``fusejournal umount``."""

import time

import click

from fusejournal.control import ask
from fusejournal.errors import FusejournalError, NotRunningError
from fusejournal.layer import mount as mounts
from fusejournal.state import VolumeState, find_volume

_PERIOD_SECONDS = 0.05


@click.command()
@click.argument("volume")
@click.option(
    "--lazy",
    is_flag=True,
    help="Take the mount away even if it is in use: who has files open is cut off.",
)
def umount(volume: str, lazy: bool) -> None:
    """Unmount VOLUME (a name, a mountpoint or a state directory) in order; returns when its layer
    has ended.

    \b
    Examples:
      fusejournal umount srv-data
      fusejournal umount /srv/data --lazy
    """
    state = find_volume(volume)
    try:
        ask(state.directory, "stop", lazy=lazy)
    except NotRunningError:
        if state.holder() is None and _clear(state):
            click.echo(
                f"{state.mountpoint}: its layer had died; took the dead mount away", err=True
            )
            return
        if state.holder() is None:
            raise NotRunningError(f"volume {state.name} is not mounted") from None
    while state.holder() is not None:
        time.sleep(_PERIOD_SECONDS)


def _clear(state: VolumeState) -> bool:
    try:
        return mounts.clear_dead_mount(state.mountpoint)
    except OSError as error:
        raise FusejournalError(f"{state.mountpoint}: {error.strerror}") from None
