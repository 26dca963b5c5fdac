"""``fusejournal export``."""

import os

import click

from fusejournal.admin.export import ExportResult, export_volume, find_exportable, remove_export
from fusejournal.cli import text
from fusejournal.errors import PrivilegeError, UsageError
from fusejournal.nfs import nfsd
from fusejournal.nfs.exports import own_file
from fusejournal.node.state_dir import VolumeState


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
    state = find_exportable(volume)
    if (write or remove) and os.geteuid() != 0:
        raise PrivilegeError("exporting needs root: try sudo")
    if remove:
        if clients or write or read_only or is_async or no_root_squash or further:
            raise UsageError("--remove takes the whole export away: it goes with VOLUME alone")
        _remove(state, as_json)
        return
    found = export_volume(
        state,
        clients,
        read_only=read_only,
        durable=not is_async,
        root_squash=not no_root_squash,
        further=further,
        write=write,
    )
    if as_json:
        text.echo_json(found.report.to_json())
    else:
        _show(found)
    if found.missing is not None:
        raise found.missing


def _remove(state: VolumeState, as_json: bool) -> None:
    report, left = remove_export(state)
    if as_json:
        text.echo_json(report.to_json())
    elif not report.removed:
        text.echo(f"volume {state.name} was not exported", err=True)
    elif nfsd.tool("exportfs") is None:
        text.echo(f"took {own_file(state.name)} away; nothing was exported: no NFS server is here")
    for other in left:
        text.echo(
            f"fusejournal: still exported to {other.client}: {other.where}: take it out there, "
            "then exportfs -ra",
            err=True,
        )


def _show(found: ExportResult) -> None:
    report = found.report
    text.echo_lines(found.content)
    if not report.written:
        text.echo(f"# Put it into {report.file} and export it: --write")
    elif found.missing is None:
        text.echo(f"# On a client: {report.mount}")
    for warning in report.warnings:
        text.echo(f"fusejournal: {warning}", err=True)
