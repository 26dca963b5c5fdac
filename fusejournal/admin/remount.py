"""Other flags for a mount that is there, as by ``mount -o remount,ro``, with its layer left alone.

The kernel keeps what is read-only out by itself. After ``ro`` everything is flushed, the backing as
well: an admin who looks at it, or copies it, finds all that was acknowledged. It stays so, also
under a layer that takes the mount over, until another remount, or a restart with other options."""

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

from fusejournal.admin.live import ask_layer
from fusejournal.admin.mount_options import mount_flags
from fusejournal.disk import mounts
from fusejournal.errors import MountError, UsageError, VolumeBusyError
from fusejournal.node.registry import find_volume
from fusejournal.node.replies import LayerArguments
from fusejournal.node.spec import MountSpec

_USERS_NAMED = 5


def remount(
    mountpoint: Path, words: Sequence[str], specify: Callable[[list[str]], MountSpec]
) -> None:
    """Gives the mount at *mountpoint* the flags that its layer was started with, as *words* of -o
    have them changed. *specify* makes the mount of a layer's command line. Raises MountError,
    VolumeBusyError where a process has files open to write, UsageError, NotRunningError,
    FusejournalError."""
    name = _volume_at(mountpoint)
    volume = find_volume(name)
    found = LayerArguments.from_json(ask_layer(volume, "arguments"))
    spec = specify(list(found.arguments))
    given = spec.mount_flags | ({"ro"} if spec.read_only else frozenset())
    flags = mount_flags(given, words)
    if spec.read_only and "ro" not in flags:
        raise UsageError(
            f"volume {name} was mounted read-only, and its layer takes no changes: "
            f"'fusejournal umount {name}', then mount it anew"
        )
    try:
        mounts.change_flags(mountpoint, flags)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise MountError(f"{mountpoint}: cannot remount: {error.strerror}") from None
        who = ", ".join(mounts.users(mountpoint)[:_USERS_NAMED]) or "the kernel"
        raise VolumeBusyError(
            f"{mountpoint}: a file is open to be written, perhaps by {who}: stop that first"
        ) from None
    if not spec.read_only:
        ask_layer(volume, "remounted", read_only="ro" in flags)


def _volume_at(mountpoint: Path) -> str:
    found = [one for one in mounts.mounts() if one.mountpoint == mountpoint]
    if not found or found[-1].type != mounts.FILESYSTEM_TYPE:
        raise MountError(f"{mountpoint}: no volume is mounted there")
    return found[-1].source.partition(":")[2]
