"""Exports of a volume to NFS clients."""

import os
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from fusejournal.control.client import RemoteError, ask
from fusejournal.control.reply import Reply
from fusejournal.errors import (
    ExportError,
    NoNfsServerError,
    NotRunningError,
    UsageError,
    VolumeNotFoundError,
)
from fusejournal.nfs import exports, nfsd
from fusejournal.nfs.export_conflicts import check_conflicts
from fusejournal.node.registry import all_volumes, find_volume
from fusejournal.node.state_dir import VolumeState
from fusejournal.roles.role import Role


@dataclass(frozen=True, kw_only=True)
class ExportOption(Reply):
    """One option of exports(5), and why it is there."""

    option: str
    why: str


@dataclass(frozen=True, kw_only=True)
class ExportReport(Reply):
    """An export as it is written, or could be. ``fsid`` is the volume's UUID."""

    NESTED: ClassVar[Mapping[str, type[Reply]]] = {"options": ExportOption}

    name: str
    path: str
    fsid: str
    clients: tuple[str, ...]
    options: tuple[ExportOption, ...]
    line: str
    """The line of exports(5)."""
    file: str
    """The file that it is written to."""
    written: bool
    nfsd_threads: int
    mount: str
    """The command that mounts it on a client."""
    warnings: tuple[str, ...]


class ExportResult(NamedTuple):
    """The outcome of :func:`export_volume`."""

    report: ExportReport
    content: str
    """The whole file, with comments."""
    missing: NoNfsServerError | None
    """The lack of an NFS server: the file is written, but nothing is exported."""


@dataclass(frozen=True, kw_only=True)
class ExportRemoved(Reply):
    """An export that was taken away."""

    name: str
    removed: bool
    """False where the volume was not exported."""
    left: tuple[str, ...]
    """The places of exports that other files make."""


class RemovalResult(NamedTuple):
    """The outcome of :func:`remove_export`."""

    report: ExportRemoved
    left: list[exports.Export]
    """Exports that other files make."""


def find_exportable(volume: str) -> VolumeState:
    """Finds a volume as :func:`find_volume` does. Raises ExportError for a directory inside one,
    because a volume is exported as a whole; VolumeNotFoundError."""
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


def export_volume(
    state: VolumeState,
    clients: Sequence[str],
    *,
    read_only: bool = False,
    durable: bool = True,
    root_squash: bool = True,
    further: Sequence[str] = (),
    write: bool = False,
) -> ExportResult:
    """Composes the export of a volume, and with *write* makes it.

    Args:
        state, clients: of the volume; and hosts, addresses, networks, wildcards, @netgroups.
        read_only: clients only read, of a mirror also when that is the primary.
        durable: changes are answered when they are safe from a crash.
        root_squash: a client's root is nobody here.
        further: options of exports(5), or several of them with commas.
        write: writes it to /etc/exports.d, in place of what was there, and exports it now.

    Raises UsageError, ExportError, ExportConflictError, OSError."""
    if not clients:
        raise UsageError(
            "name the clients: hosts, networks such as 192.168.1.0/24, or '*' for everybody"
        )
    if state.role is Role.UNINITIALIZED:
        raise ExportError(
            f"volume {state.name} is a mirror that no primary has called yet, and has no fsid: "
            "export it when its primary ships to it"
        )
    clients = tuple(dict.fromkeys(map(exports.check_client, clients)))
    words = [word for option in further for word in option.split(",") if word]
    options = exports.choose_options(
        state.uuid,
        read_only=read_only,
        durable=durable,
        root_squash=root_squash,
        is_mirror=state.is_mirror,
        further=words,
    )
    check_conflicts(state.name, state.mountpoint, state.uuid)
    content = exports.compose(state.name, state.mountpoint, clients, options)
    warnings: list[str] = []
    missing = None
    if write:
        try:
            warnings += exports.install(state.name, state.mountpoint, content)
        except NoNfsServerError as error:
            missing = NoNfsServerError(
                f"wrote {exports.own_file(state.name)}; not exported: {error}"
            )
        _notify_layer(state, warnings)
    elif nfsd.tool("exportfs") is None:
        warnings.append("no NFS server here: apt install nfs-kernel-server before --write")
    _warn_of_rest(missing, warnings)
    where = shlex.quote(f"{socket.gethostname()}:{state.mountpoint}")
    report = ExportReport(
        name=state.name,
        path=str(state.mountpoint),
        fsid=str(state.uuid),
        clients=clients,
        options=tuple(ExportOption(option=option, why=why) for option, why in options),
        line=exports.compose_line(state.mountpoint, clients, options),
        file=str(exports.own_file(state.name)),
        written=write,
        nfsd_threads=nfsd.threads(),
        mount=f"mount -t nfs {where} /mnt",
        warnings=tuple(warnings),
    )
    return ExportResult(report, content, missing)


def _warn_of_rest(missing: NoNfsServerError | None, warnings: list[str]) -> None:
    """Warn where there is an NFS server which does not run."""
    if missing is None and nfsd.tool("exportfs") is not None and not nfsd.threads():
        warnings.append("nfsd does not run: systemctl start nfs-server")


def remove_export(state: VolumeState) -> RemovalResult:
    """Takes a volume's file of exports away, and unexports it now. Raises OSError."""
    try:
        removed = exports.remove(state.name, state.mountpoint)
    finally:
        _notify_layer(state, [])
    left = exports.find(state.mountpoint)
    report = ExportRemoved(name=state.name, removed=removed, left=tuple(one.where for one in left))
    return RemovalResult(report, left)


def _notify_layer(state: VolumeState, warnings: list[str]) -> None:
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
