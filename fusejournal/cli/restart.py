"""``fusejournal restart``."""

import time
from contextlib import suppress

import click

from fusejournal.control.client import ask
from fusejournal.errors import FusejournalError, NotRunningError
from fusejournal.node.state_dir import VolumeState, find_volume

_POLL_SECONDS = 0.05


@click.command(short_help="Begin anew with the installed program, beneath all users.")
@click.argument("volume")
@click.option(
    "--timeout",
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the layer to be back.",
)
def restart(volume: str, timeout: float) -> None:
    """Restart the layer of VOLUME without unmounting it; returns when it is back.

    Use it after an upgrade or a change of the configuration. NFS clients and local users notice a
    pause only: their open files, working directories and locks stay good. (A file that was removed
    while open is the exception: it is gone.)

    \b
    Examples:
      fusejournal restart srv-data
      systemctl reload fusejournal@srv-data
    """
    state = find_volume(volume)
    before = ask(state.directory, "status")
    with suppress(NotRunningError):  # it may be quicker to go than to answer
        ask(state.directory, "restart")
    deadline = time.monotonic() + timeout
    while not _is_back(state, before["live_since"]):
        if state.holder() is None and _is_gone(before["pid"]):
            raise FusejournalError(
                f"the layer of {state.name} did not come back: see {state.directory / 'log'}; "
                f"'fusejournal mount {state.name}' takes the mount over"
            )
        if time.monotonic() > deadline:
            raise FusejournalError(f"the layer of {state.name} is not back after {timeout:g} s")
        time.sleep(_POLL_SECONDS)


def _is_back(state: VolumeState, before: float | None) -> bool:
    try:
        return ask(state.directory, "status")["live_since"] not in (None, before)
    except FusejournalError:
        return False


def _is_gone(pid: int) -> bool:
    """Whether the layer's process, which keeps its pid, has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
