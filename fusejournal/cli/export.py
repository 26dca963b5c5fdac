"""``fusejournal export``."""

import os
import shlex
import socket
from pathlib import Path
from typing import Any

import click

from fusejournal.cli import text
from fusejournal.control.client import RemoteError, ask
from fusejournal.errors import (
    ExportError,
    NoNfsServerError,
    NotRunningError,
    PrivilegeError,
    UsageError,
    VolumeNotFoundError,
)
from fusejournal.nfs import exports, nfsd
from fusejournal.node.state_dir import VolumeState, all_volumes, find_volume


@click.command(short_help="Export a volume to NFS clients.")
@click.argument("volume")
@click.argument("clients", nargs=-1, metavar="CLIENT...")
@click.option("--write", is_flag=True, help="Write it to /etc/exports.d, and export it now.")
@click.option("--remove", is_flag=True, help="Take that file away, and unexport the volume now.")
@click.option("--ro", "read_only", is_flag=True, help="Clients only read.")
@click.option(
    "--async", "is_async", is_flag=True, help="Answer changes before they are safe from a crash."
)
@click.option("--no-root-squash", is_flag=True, help="A client's root is root here, too.")
@click.option(
    "--option",
    "further",
    multiple=True,
    metavar="OPT",
    help="A further option of exports(5), such as sec=krb5p.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def export(
    volume: str,
    clients: tuple[str, ...],
    write: bool,
    remove: bool,
    read_only: bool,
    is_async: bool,
    no_root_squash: bool,
    further: tuple[str, ...],
    as_json: bool,
) -> None:
    """Print the exports(5) line that exports VOLUME to CLIENTs (hosts, addresses, networks,
    wildcards, @netgroups), with why each option is there; with --write, export it.

    --write replaces what an earlier one wrote: name all clients each time. For clients with
    options of their own add lines to /etc/exports with the same fsid.

    \b
    Examples:
      fusejournal export srv-data 192.168.1.0/24
      fusejournal export srv-data 192.168.1.0/24 admin.example.org --write
      fusejournal export /srv/data '*.example.org' --ro --option sec=krb5p --write
      fusejournal export srv-data --remove
    """
    state = _find(volume)
    if (write or remove) and os.geteuid() != 0:
        raise PrivilegeError("exporting needs root: try sudo")
    if remove:
        if clients or write or read_only or is_async or no_root_squash or further:
            raise UsageError("--remove takes the whole export away: it goes with VOLUME alone")
        _remove(state, as_json)
        return
    if not clients:
        raise UsageError(
            "name the clients: hosts, networks such as 192.168.1.0/24, or '*' for everybody"
        )
    if state.is_uninitialized:
        raise ExportError(
            f"volume {state.name} is a mirror that no primary has called yet, and has no fsid: "
            "export it when its primary ships to it"
        )
    clients = tuple(dict.fromkeys(exports.check_client(client) for client in clients))
    words = [word for option in further for word in option.split(",") if word]
    options = exports.choose_options(
        state.uuid,
        read_only=read_only or state.is_mirror,
        durable=not is_async,
        root_squash=not no_root_squash,
        further=words,
    )
    exports.check_conflicts(state.name, state.mountpoint, state.uuid)
    content = exports.compose(state.name, state.mountpoint, clients, options)
    warnings: list[str] = []
    missing = None
    if write:
        try:
            warnings += exports.install(state.name, state.mountpoint, content)
        except NoNfsServerError as error:
            missing = error
        _tell_layer(state, warnings)
    elif nfsd.tool("exportfs") is None:
        missing = NoNfsServerError("no NFS server here: apt install nfs-kernel-server")
    if missing is None and not nfsd.threads():
        warnings.append("nfsd does not run: systemctl start nfs-server")
    if as_json:
        line = exports.compose_line(state.mountpoint, clients, options)
        text.echo_json(_report(state, clients, options, line, write, warnings))
    else:
        _show(state, content, write, warnings)
    if missing is not None:
        raise missing


def _find(volume: str) -> VolumeState:
    try:
        return find_volume(volume)
    except VolumeNotFoundError:
        path = Path(os.path.abspath(volume))
        resolved = path.parent.resolve() / path.name
        for state in all_volumes():
            if path.is_relative_to(state.mountpoint) or resolved.is_relative_to(state.mountpoint):
                raise ExportError(
                    f"{volume} is inside volume {state.name}, which is exported as a whole: "
                    f"fusejournal export {shlex.quote(state.name)} CLIENT...; "
                    f"clients can mount SERVER:{path} from that (NFSv3 and v4)"
                ) from None
        raise


def _tell_layer(state: VolumeState, warnings: list[str]) -> None:
    """Let a running layer see that its volume is exported, or is no more."""
    try:
        ask(state.directory, "exported")
    except NotRunningError:
        warnings.append(
            f"volume {state.name} is not mounted, and not exported until it is: "
            f"fusejournal mount {shlex.quote(state.name)}"
        )
    except RemoteError as error:
        warnings.append(f"the layer does not know of the export yet: {error}")


def _remove(state: VolumeState, as_json: bool) -> None:
    try:
        removed = exports.remove(state.name, state.mountpoint)
    finally:
        _tell_layer(state, [])
    left = exports.find(state.mountpoint)
    if as_json:
        text.echo_json({"name": state.name, "removed": removed, "left": [e.where for e in left]})
    elif not removed:
        text.echo(f"volume {state.name} was not exported", err=True)
    for other in left:
        text.echo(
            f"fusejournal: still exported to {other.client}: {other.where}: take it out there, "
            "then exportfs -ra",
            err=True,
        )


def _mount_command(state: VolumeState) -> str:
    return f"mount -t nfs {shlex.quote(f'{socket.gethostname()}:{state.mountpoint}')} /mnt"


def _show(state: VolumeState, content: str, written: bool, warnings: list[str]) -> None:
    text.echo_lines(content)
    if written:
        text.echo(f"# On a client: {_mount_command(state)}")
    else:
        text.echo(f"# Put it into {exports.own_file(state.name)} and export it: --write")
    for warning in warnings:
        text.echo(f"fusejournal: {warning}", err=True)


def _report(
    state: VolumeState,
    clients: tuple[str, ...],
    options: list[tuple[str, str]],
    line: str,
    written: bool,
    warnings: list[str],
) -> dict[str, Any]:
    return {
        "name": state.name,
        "path": str(state.mountpoint),
        "fsid": str(state.uuid),
        "clients": list(clients),
        "options": [{"option": option, "why": why} for option, why in options],
        "line": line,
        "file": str(exports.own_file(state.name)),
        "written": written,
        "nfsd_threads": nfsd.threads(),
        "mount": _mount_command(state),
        "warnings": warnings,
    }
