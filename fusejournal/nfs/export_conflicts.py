"""Exports that cannot be beside that of a volume: of the same fsid, or of the same path otherwise.

Blocks; for the command line, or a thread. Source: exports(5)."""

from pathlib import Path
from uuid import UUID

from fusejournal.disk.mounts import mounts
from fusejournal.errors import ExportConflictError
from fusejournal.nfs import exports


def check_conflicts(name: str, mountpoint: Path, uuid: UUID) -> None:
    """Raise ExportConflictError if another export than that in the volume's own file has its fsid
    or its path, or a path inside it, in a way that cannot work."""
    own = exports.own_file(name)
    files = [export for export in exports.configured() if export.file != own]
    known = {(export.path, export.client) for export in exports.configured()}
    by_hand = [export for export in exports.active() if (export.path, export.client) not in known]
    if own.exists():  # names of hosts are written in another way there
        by_hand = [export for export in by_hand if export.path != mountpoint]
    for export in files + by_hand:
        if export.path != mountpoint and export.fsid == uuid.hex:
            raise _same_fsid(export, name)
        if export.path == mountpoint and export.fsid != uuid.hex:
            raise ExportConflictError(
                export.where,
                f"exports {mountpoint} {'without an fsid' if not export.fsid else 'otherwise'}: "
                f"use fsid={uuid} there, or take it out",
            )
        if export.path != mountpoint and _is_inside(export.path, mountpoint):
            raise ExportConflictError(
                export.where,
                f"exports {export.path}, which is inside volume {name}: take it out; "
                f"clients of {mountpoint} can mount SERVER:{export.path} (NFSv3 and v4)",
            )


def _same_fsid(export: exports.Export, name: str) -> ExportConflictError:
    """The error where *export* is of another path than that of volume *name*, with its fsid."""
    if (other := _volume_of(export.file)) is not None:
        return ExportConflictError(
            f"volume {other}",
            f"is exported here, and is of the same fsid as {name}, because one is the other's "
            "mirror: one NFS server exports only one of them; for this one instead, first "
            f"'fusejournal export {other} --remove'",
        )
    return ExportConflictError(
        export.where,
        f"exports {export.path} with the fsid of volume {name}: "
        "two exports with one fsid hide each other; give that one another, or take it out",
    )


def _is_inside(path: Path, mountpoint: Path) -> bool:
    """Returns True if *path* is in the file system at *mountpoint*, and not in one mounted inside
    it."""
    return path.is_relative_to(mountpoint) and not any(
        path.is_relative_to(mount.mountpoint)
        for mount in mounts()
        if mount.mountpoint != mountpoint and mount.mountpoint.is_relative_to(mountpoint)
    )


def _volume_of(file: Path) -> str | None:
    """The volume whose file of exports *file* is; None where it is no volume's."""
    name = file.name.removeprefix("fusejournal-").removesuffix(".exports")
    return name if file == exports.own_file(name) else None
