"""``fusejournal umount``."""

import os
import select

import click

from fusejournal.asking import ask
from fusejournal.errors import FusejournalError, NotRunningError
from fusejournal.layer import mount as mounts
from fusejournal.state import VolumeState, find_volume


@click.command(short_help="Stop a volume, in order.")
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
    holder = state.holder()
    process = _process(holder["pid"]) if holder and "pid" in holder else None
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
    if process is not None:
        # Its lock goes a moment before it does.
        select.select((process,), (), ())


def _process(pid: int) -> int | None:
    """A descriptor that becomes readable when process *pid* ends, or None when it has."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _clear(state: VolumeState) -> bool:
    try:
        return mounts.clear_dead_mount(state.mountpoint)
    except OSError as error:
        raise FusejournalError(f"{state.mountpoint}: {error.strerror}") from None
