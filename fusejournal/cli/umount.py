"""``fusejournal umount``."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import click

from fusejournal.admin.stop import stop_volume
from fusejournal.cli import text
from fusejournal.errors import UsageError
from fusejournal.node.registry import find_volume


@click.command(short_help="Stop a volume, in order.")
@click.argument("volume")
@click.option(
    "--lazy",
    is_flag=True,
    help="Take the mount away even if it is in use: processes with files open are cut off.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Take from NFS clients what they have open or locked, and restart nfsd if need be.",
)
def umount(volume: str, lazy: bool, force: bool) -> None:
    """Unmount VOLUME (a name, a mountpoint or a state directory) in order; returns when its layer
    has ended.

    An exported volume is unexported first: clients that have it mounted, but nothing open or
    locked, get errors ("stale file handle") until it is mounted again, and go on then. While a
    client has something open (NFSv4) or locked (NFSv3, too), nothing is done and it is named.

    --force takes it from them: their open files are lost. Where nfsd must be restarted for it,
    clients of other exports wait meanwhile.

    \b
    Examples:
      fusejournal umount srv-data
      fusejournal umount srv-data --force
      fusejournal umount /srv/data --lazy
    """
    if lazy and force:
        raise UsageError("--lazy and --force are two ways: choose one")
    state = find_volume(volume)
    _leave(state.mountpoint)
    if stop_volume(state, _Reporter(), lazy=lazy, force=force).was_dead:
        text.echo(f"{state.mountpoint}: its layer had died; took the dead mount away", err=True)
    elif sys.stderr.isatty():
        text.echo(f"{state.mountpoint}: unmounted", err=True)


def _leave(mountpoint: Path) -> None:
    """Keep this process from being a user of the mount itself."""
    with suppress(OSError):
        if Path.cwd().is_relative_to(mountpoint):
            os.chdir("/")


class _Reporter:
    """Reports on stderr what goes on; why it waits, on a terminal alone."""

    def notice(self, words: str) -> None:
        text.echo(f"fusejournal: {words}", err=True)

    def waiting(self, words: str) -> None:
        if sys.stderr.isatty():
            self.notice(words)
