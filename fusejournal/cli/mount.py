"""``fusejournal mount``: in the foreground, or in a process of its own that says when it is
ready."""

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from fusejournal.admin.mount_options import (
    MountOptions,
    find_known,
    known_spec,
    new_spec,
    replication_options,
    split_words,
)
from fusejournal.admin.start import (
    foreground_arguments,
    has_parent,
    mounted_words,
    reporting_to_parent,
    start_volume,
    take_import_bytes,
)
from fusejournal.cli import text
from fusejournal.cli.interrupts import raise_interrupt
from fusejournal.cli.reporters import ConsoleReporter, LineFormatter, sd_notify
from fusejournal.config import parse_size
from fusejournal.errors import (
    FusejournalError,
    PrivilegeError,
    UsageError,
)
from fusejournal.node.spec import MountSpec, Reporter
from fusejournal.node.state_dir import load_state


@click.command(short_help="Put a journaled layer over a directory.")
@click.argument(
    "places",
    nargs=-1,
    required=True,
    type=Path,  # click.Path looks at what is there: a mount that may be dead, or held
    metavar="{BACKING MOUNTPOINT | VOLUME}",
)
@click.option(
    "--name", help="The volume's name; from the mountpoint by default (/srv/data: srv-data)."
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="State directory  [default: /var/lib/fusejournal/NAME]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Configuration in TOML  [default: /etc/fusejournal/NAME.toml, if it is there]",
)
@click.option(
    "-f",
    "--foreground",
    is_flag=True,
    help="Stay in the foreground; tells systemd when it is ready.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when it is live.")
@click.option(
    "-o",
    "options",
    multiple=True,
    metavar="OPT,...",
    help="What every file system takes: ro, nosuid, nodev, noexec, sync, dirsync, noatime, ...; or "
    "rw, suid, dev, exec, async, ... against the configuration's. adopt: take files that bear the "
    "mark of another volume, which is no more, as this new one's.",
)
@click.option(
    "--role",
    type=click.Choice(["primary", "mirror"]),
    help="A mirror takes its changes from a primary alone. Of a new volume: "
    "later on only 'promote' and 'demote' change it  [default: primary]",
)
@click.option(
    "--listen",
    metavar="ADDR:PORT|none",
    help="Where other nodes connect to; a mirror needs it. Remembered for later mounts, where the "
    "configuration has nothing else, until 'none' is given.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="NAME=ADDR:PORT",
    help="Ship the journal to this mirror (see 'peer' and 'pair'); may be repeated.",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Talk to root's other nodes on this machine without TLS (over the loopback, no tunnels).",
)
@click.option(
    "--durability",
    type=click.Choice(["async", "nfs", "strict"]),
    help="What waits for the disk: fsync alone, names and attributes too, or every change "
    " [default: nfs while exported sync, else async]",
)
@click.option(
    "--mirrors",
    type=click.IntRange(0, 64),
    metavar="N",
    help="What waits for the disk also waits for N mirrors' disks  [default: 0]",
)
@click.option(
    "--open-backing",
    is_flag=True,
    help="Make a new volume even if others than root can reach BACKING around the layer.",
)
@click.option(
    "--import-to",
    metavar="DIR|s3://...",
    help="At the first mount: import what BACKING holds to a store of versions there, in parts, so "
    "that it is not twice on the state's disk.",
)
@click.option(
    "--import-part",
    metavar="SIZE",
    default="4GiB",
    show_default=True,
    help="How much of it goes through the journal at a time, and the largest file whole.",
)
@click.option(
    "--metrics", metavar="ADDR:PORT", help="Where Prometheus reads metrics, on the loopback."
)
def mount(
    places: tuple[Path, ...],
    name: str | None,
    state: Path | None,
    config: Path | None,
    foreground: bool,
    quiet: bool,
    options: tuple[str, ...],
    import_to: str | None,
    import_part: str,
    **replication: Any,
) -> None:
    """Mount a journaled layer over the directory BACKING at MOUNTPOINT; returns when it is live.

    Both may be the same directory: the layer then covers it in place. What BACKING already holds
    is imported into the journal at the first mount. From then on leave BACKING itself alone: what
    is done there is not journaled, on a mirror neither. So that its users have to, one of the
    directories above it must be root's and closed to others (chmod 0700), unless it is covered.

    A VOLUME that was mounted before (its name, mountpoint or state directory) is mounted again
    where it was.

    \b
    Examples:
      fusejournal mount /srv/data /srv/data
      fusejournal mount srv-data
      fusejournal mount /disk/homes /home --name homes
      fusejournal mount -f -o nosuid,nodev --config /etc/fusejournal/lab.toml /disk/lab /srv/lab
      fusejournal mount /srv/data /srv/data --import-to /backup/versions
      fusejournal mount /disk/copy /srv/data --role mirror --listen 0.0.0.0:7710
      fusejournal mount /srv/data /srv/data --listen 0.0.0.0:7710 --peer east=10.0.0.2:7710
    """
    if len(places) > 2:
        raise click.UsageError("too many arguments: BACKING and MOUNTPOINT, or a VOLUME alone")
    if os.geteuid() != 0:
        raise PrivilegeError("mounting needs root: try sudo")
    asked = _asked(config, options, replication)
    try:
        if len(places) == 2:
            spec = new_spec(*places, name, state, asked)
        elif name is None and state is None:
            spec = known_spec(find_known(str(places[0])), None, asked)
        else:
            raise UsageError(
                f"--name and --state need BACKING and MOUNTPOINT, not {str(places[0])!r} alone"
            )
        if not foreground:
            if import_to is not None:
                _import(spec, asked, import_to, parse_size(import_part), quiet=quiet)
                return
            with ConsoleReporter() as reporter:
                imported = start_volume(spec, asked, reporter)
            if not quiet:
                _show(spec, imported)
            return
        if import_to is not None:
            raise UsageError("--import-to is for the first mount by hand: not with --foreground")
        spec = replace(spec, import_bytes=take_import_bytes())
        # As a restart is to begin again, in whichever directory.
        sys.argv[1:] = foreground_arguments(spec, asked)
        with reporting_to_parent() if has_parent() else ConsoleReporter() as reports:
            _set_up_log(spec)
            _serve(spec, reports)
    except FusejournalError as error:
        if foreground:
            sd_notify(f"STATUS={error}")
        raise


def _import(
    spec: MountSpec, asked: MountOptions, where: str, part_bytes: int, *, quiet: bool
) -> None:
    """Mounts, with the content of the backing imported to the store at *where*."""
    # Only here: its libraries take long to load.
    from fusejournal.admin.import_to_version import ImportStore, start_importing

    store = ImportStore(where, part_bytes)
    with ConsoleReporter() as reporter:
        done = start_importing(spec, asked, reporter, store, raise_interrupt)
    if done.new_key is not None:
        text.echo(f"recovery key: {done.new_key.text}")
        text.echo("keep it apart from this machine: without both, all versions there are lost")
    if not quiet:
        _show(spec, 0)
        if done.parts:
            text.echo(f"what was there first is in versions in {store.where}")


def _show(spec: MountSpec, imported: int) -> None:
    if imported:
        text.echo(f"{text.count(imported, 'file or directory', 'files and directories')} imported")
    text.echo(mounted_words(load_state(spec.state_dir), read_only=spec.read_only))


def specify(arguments: list[str]) -> MountSpec:
    """The mount that a layer's command line, :func:`foreground_arguments`, asks for by now. Raises
    FusejournalError."""
    told = mount.make_context("mount", arguments[1:]).params
    backing, mountpoint = told.pop("places")
    name, state = told.pop("name"), told.pop("state")
    del told["foreground"], told["quiet"], told["import_to"], told["import_part"]
    return new_spec(
        backing, mountpoint, name, state, _asked(told.pop("config"), told.pop("options"), told)
    )


def _asked(
    config: Path | None, options: tuple[str, ...], replication: dict[str, Any]
) -> MountOptions:
    return MountOptions(config, split_words(options), replication_options(**replication))


def _set_up_log(spec: MountSpec) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=spec.config.log.level.upper(), handlers=[handler])


def _serve(spec: MountSpec, reporter: Reporter) -> None:
    from fusejournal.node.start import serve

    serve(spec, reporter)
