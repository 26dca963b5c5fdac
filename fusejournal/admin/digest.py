"""The tree that ``digest`` is asked about: a directory, or a volume where it can be read now."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fusejournal.control.client import ask
from fusejournal.control.reply import Reply
from fusejournal.disk import mounts
from fusejournal.errors import (
    NotRunningError,
    PathNotFoundError,
    UsageError,
    VolumeBusyError,
    VolumeNotFoundError,
)
from fusejournal.history.json_values import exact
from fusejournal.node.registry import find_volume
from fusejournal.node.state_dir import VolumeState
from fusejournal.replay.digest import TreeDigest


class TreePart(NamedTuple):
    """A part of a tree: the tree's name, where the part can be read, and its path in the tree
    (``b""``: all of it)."""

    name: bytes
    place: Path
    path: bytes


@dataclass(frozen=True, kw_only=True)
class DigestReport(Reply):
    """The digest of a part of a tree, with the counts of what it covers."""

    digest: str
    of: str
    """The name of the tree."""
    path: str
    """The path in the tree; empty: all of it. Names are as json_values.exact makes them."""
    entries: int
    files: int
    directories: int
    bytes: int

    @classmethod
    def of_part(cls, part: TreePart, found: TreeDigest) -> "DigestReport":
        """Returns the report on *part*, whose digest is *found*."""
        return cls(of=exact(part.name), path=exact(part.path), **found._asdict())


def find_tree(source: str, within: str) -> TreePart:
    """Returns what *source*, a volume or a directory, means, and *within* in it. Raises
    VolumeNotFoundError, VolumeBusyError, NotRunningError, UsageError, PathNotFoundError."""
    # The volumes first: the path may be a dead mount, which must not be touched.
    try:
        state = find_volume(source)
    except VolumeNotFoundError:
        # Only what is in a tree is not followed; which tree it is, a symlink may say.
        root = Path(os.path.realpath(source))
        if not root.exists():
            raise
        name = os.fsencode(root)
    else:
        name, root = os.fsencode(state.name), _root_of(state)
    parts = _parts(within)
    return TreePart(name, _inside(root, parts), b"/".join(parts))


def _root_of(state: VolumeState) -> Path:
    """Returns where the tree of a volume can be read now."""
    try:
        ask(state.directory, "status")
    except NotRunningError:
        holder = state.holder()
        if holder is not None:
            raise VolumeBusyError(
                f"volume {state.name} is being mounted or unmounted by process "
                f"{holder.get('pid', '?')}; try again when it is done"
            ) from None
        if any(
            one.mountpoint == state.backing and one.type == mounts.FILESYSTEM_TYPE
            for one in mounts.mounts()
        ):
            raise NotRunningError(
                f"volume {state.name}: its layer has died and its mount still covers the backing; "
                f"'fusejournal umount {state.name}' takes it away"
            ) from None
        return state.backing
    return state.mountpoint


def _parts(within: str) -> list[bytes]:
    parts = [part for part in os.fsencode(within).split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise UsageError(f"--path {within!r}: '..' leads out of the tree; give the path without it")
    return parts


def _inside(root: Path, parts: list[bytes]) -> Path:
    """The file at *parts* below *root*. No symlink is followed on the way: it could lead out of the
    tree. Raises PathNotFoundError."""
    path = os.fsencode(root)
    mode = stat.S_IFDIR
    for part in parts:
        path = os.path.join(path, part)
        try:
            mode = os.lstat(path).st_mode if stat.S_ISDIR(mode) else 0
        except FileNotFoundError:
            mode = 0
        if not mode:
            shown = b"/".join(parts).decode("utf-8", "backslashreplace")
            raise PathNotFoundError(shown, f"no such file in {root}")
    return Path(os.fsdecode(path))
