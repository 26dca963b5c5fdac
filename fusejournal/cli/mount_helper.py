"""``mount -t fusejournal``: what mount(8) calls, by way of the script mount.fusejournal.

Its exit codes are mount(8)'s; what its options mean for a volume is in admin/helper_options.py.

``mount -a`` skips a line only if its source is that of a mount at its mountpoint, which for a
backing directory is never so. So a volume that is mounted there already is a success here.
``umount`` returns when the mount is gone and its layer may still be ending the journal: that is
waited for.

Source: mount(8), "EXTERNAL HELPERS" and "EXIT STATUS"."""

import os
from pathlib import Path

import click

from fusejournal.admin.helper_options import (
    enter_mount_namespace,
    helper_spec,
    parse_helper_options,
)
from fusejournal.admin.remount import remount
from fusejournal.admin.start import start_unless_live
from fusejournal.cli import text
from fusejournal.cli.mount import specify
from fusejournal.cli.reporters import ConsoleReporter
from fusejournal.errors import FusejournalError, PrivilegeError

_USAGE, _BUG, _INTERRUPTED, _FAILED = 1, 4, 8, 32


class _Helper(click.Command):
    """Ends a wrong command line with mount(8)'s code."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: object,
    ) -> click.Context:
        """End a wrong command line with mount(8)'s code for it."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            text.echo(f"mount.fusejournal: {error.format_message()}", err=True)
            raise click.exceptions.Exit(_USAGE) from None


@click.command("mount-helper", cls=_Helper, hidden=True, short_help="What mount(8) calls.")
@click.argument("source")
@click.argument("mountpoint", type=Path)  # click.Path would look at what is there
@click.option("-s", "sloppy", is_flag=True, help="Leave out options that are not known.")
@click.option("-f", "fake", is_flag=True, help="Check the command line; mount nothing.")
@click.option("-n", "_no_mtab", is_flag=True, help="Accepted; there is no mtab to write.")
@click.option("-v", "verbose", count=True, help="Say what is done.")
@click.option("-r", "read_only", is_flag=True, help="As -o ro.")
@click.option("-w", "_read_write", is_flag=True, help="Accepted; it is the default.")
@click.option("-N", "namespace", metavar="FILE", help="Mount in this namespace.")
@click.option("-o", "options", multiple=True, metavar="OPT,...", help="Options, fstab's as well.")
@click.option("-t", "_type", metavar="TYPE", help="Accepted; it is fusejournal.")
def mount_helper(
    source: str,
    mountpoint: Path,
    sloppy: bool,
    fake: bool,
    _no_mtab: bool,
    verbose: int,
    read_only: bool,
    _read_write: bool,
    namespace: str | None,
    options: tuple[str, ...],
    _type: str | None,
) -> int:
    """Mount for mount(8), in the background: SOURCE, a directory or fusejournal:NAME, at
    MOUNTPOINT.

    Options: name=NAME, state=DIR, config=FILE; those that every file system takes (ro, nosuid,
    nodev, noexec, sync, noatime, ...); remount, with those, for a volume that is mounted there.

    \b
    Examples, the second one a line of /etc/fstab:
      mount -t fusejournal /srv/data /srv/data -o name=data,nosuid
      /srv/data /srv/data fusejournal name=data,nosuid,nodev,nofail 0 0
      mount -o remount,ro /srv/data
    """
    try:
        chosen = parse_helper_options([*options, *(("ro",) if read_only else ())], sloppy=sloppy)
        if fake:
            return 0
        if os.geteuid() != 0:
            raise PrivilegeError("mounting needs root: try sudo")
        if namespace is not None:
            enter_mount_namespace(namespace)
    except FusejournalError as error:
        return _fail(error, _USAGE)
    try:
        if chosen.is_remount:
            remount(mountpoint, chosen.words, specify)
            return 0
        spec = helper_spec(source, mountpoint, chosen)
        with ConsoleReporter() as reporter:
            is_new = start_unless_live(spec, chosen.asked, reporter)
    except FusejournalError as error:
        return _fail(error, _FAILED)
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", _FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    except Exception as error:
        if os.environ.get("FUSEJOURNAL_TRACEBACK"):
            raise
        return _fail(f"{type(error).__name__}: {error} (this is a bug)", _BUG)
    if verbose:
        done = f"mounted, volume {spec.name}" if is_new else "was mounted already"
        text.echo(f"mount.fusejournal: {mountpoint}: {done}")
    return 0


def _fail(error: FusejournalError | str, code: int) -> int:
    text.echo(f"mount.fusejournal: {error}", err=True)
    return code
