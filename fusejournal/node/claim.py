"""Claims a volume: takes its lock, and reads what its state directory says, made if it is new.

Done before anything else at a start, and by commands that change the state of a volume that no
layer runs on."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

from fusejournal.disk import calls
from fusejournal.disk.files import make_directories
from fusejournal.errors import FusejournalError, UsageError
from fusejournal.node.lock import hold
from fusejournal.node.registry import check_rightful, links_root, state_root
from fusejournal.node.state_dir import (
    VolumeState,
    load_state,
    make_directory,
    save_state,
    take_over,
)

if TYPE_CHECKING:
    # Configuration takes its time to load, and only who mounts needs it.
    from fusejournal.node.spec import MountSpec


@contextmanager
def claim_volume(
    spec: "MountSpec", check: Callable[[], None] = lambda: None
) -> Iterator[VolumeState]:
    """Hold the volume that *spec* names, made if it is new, until the end of the block; *check* is
    called when nobody else holds it, before anything is changed. Raises VolumeBusyError naming the
    holder, UsageError when the state is another volume's or the volume's is elsewhere, and what
    *check* raises."""
    directory = spec.state_dir
    make_directory(directory)
    with hold(directory, spec.name, spec.mountpoint, check):
        check_rightful(directory, spec.name)
        yield _load_or_make(spec)


@contextmanager
def hold_volume(state: VolumeState) -> Iterator[None]:
    """Hold a volume that no layer runs on, to change what its state directory says, until the end
    of the block. Raises VolumeBusyError naming the holder."""
    with hold(state.directory, state.name, state.mountpoint, lambda: None):
        yield


def _load_or_make(spec: "MountSpec") -> VolumeState:
    directory = spec.state_dir
    if (directory / "volume.json").exists():
        state = known = load_state(directory)
        if state.name != spec.name:
            raise UsageError(f"{directory} is the state of volume {state.name}, not of {spec.name}")
        state = replace(state.in_role(spec.role), backing=spec.backing, mountpoint=spec.mountpoint)
        take_over(state, known)
    else:
        if any((directory / "journal").glob("*.fj*")):
            raise FusejournalError(
                f"{directory}: has a journal but no volume.json; restore that file, "
                "or use another --state"
            )
        state = VolumeState(
            directory,
            uuid4(),
            spec.name,
            spec.backing,
            spec.mountpoint,
            time.time_ns(),
        ).called(spec.role)
        save_state(state)
    link = links_root() / spec.name
    if directory == state_root() / spec.name:
        link.unlink(missing_ok=True)
    else:
        make_directories("state.links.make", link.parent)
        if not link.is_symlink() or link.readlink() != directory:
            link.unlink(missing_ok=True)
            link.symlink_to(directory)
            calls.fsync_directory("state.link", link.parent)
    return state
