"""Holds a volume: takes its lock, and reads what its state directory says, made if it is new.

Done before anything else at a start, and by commands that change the state of a volume that no
layer runs on. What a first start has made is taken away again if it is refused before anything came
of it: identity last, so that killed meanwhile, it leaves a state that the next start goes on from.
The places of a later start that is refused are not remembered.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from fusejournal.disk import calls
from fusejournal.disk.files import make_directories, remove
from fusejournal.errors import FusejournalError, UsageError
from fusejournal.node.lock import hold
from fusejournal.node.registry import check_rightful, links_root, state_root
from fusejournal.node.state_dir import (
    VolumeState,
    bring_up_to_date,
    load_state,
    make_directory,
    restore_places,
    save_state,
)

if TYPE_CHECKING:
    # Configuration takes its time to load, and only a mount needs it.
    from fusejournal.node.spec import MountSpec

log = logging.getLogger(__name__)


@contextmanager
def hold_or_make_volume(
    spec: "MountSpec",
    check: Callable[[], None] = lambda: None,
    has_begun: Callable[[], bool] = lambda: False,
    is_live: Callable[[], bool] = lambda: False,
) -> Iterator[VolumeState]:
    """Hold the volume that *spec* names, made if it is new, until the end of the block; *check* is
    called when no other process holds it, before anything is changed. Where an error ends the block
    of a new volume, what was made for it goes again, unless it *has_begun*; where it ends that of
    another, places and name are as they were, unless it *is_live*. Raises VolumeBusyError naming
    the holder, UsageError when the state is another volume's or the volume's is elsewhere, and what
    *check* raises."""
    directory = spec.state_dir
    is_made = not directory.is_dir()
    make_directory(directory)
    is_lock_made = not (directory / "lock").exists()
    with hold(directory, spec.name, spec.mountpoint, check, _refusal(spec)):
        is_new = not (directory / "volume.json").exists()
        kept = {*os.listdir(directory)} - ({"lock"} if is_lock_made else set())
        link = links_root() / spec.name
        linked = link.readlink() if link.is_symlink() else None
        known = None if is_new else load_state(directory)
        try:
            check_rightful(directory, spec.name)
            yield _load_or_make(spec, known)
        except (FusejournalError, OSError):
            with _logging_failure(directory):
                if known is not None and not is_live():
                    _restore_link(link, linked)
                    restore_places(directory, known)
                elif known is None and not has_begun() and not _has_traces(directory):
                    _restore_link(link, linked)
                    _remove_made(directory, kept)
                    if is_made:
                        directory.rmdir()
            raise


@contextmanager
def hold_volume(state: VolumeState, hint: str = "") -> Iterator[None]:
    """Hold a volume that no layer runs on, to change what its state directory says, until the end
    of the block. Raises VolumeBusyError naming the holder, and what to do, with the *hint*."""
    refusal = f": 'fusejournal umount {state.name}' first{hint}"
    with hold(state.directory, state.name, state.mountpoint, lambda: None, refusal):
        yield


def _refusal(spec: "MountSpec") -> str:
    """Returns what to do where the volume that *spec* names is mounted, in words that follow that
    it is."""
    known: VolumeState | None = None
    with suppress(FusejournalError, OSError):
        known = load_state(spec.state_dir)
    if known is not None and known.backing != spec.backing:
        return (
            f" with the backing {known.backing}: give a volume with the backing {spec.backing} "
            "another --name"
        )
    return (
        f" already: for other options 'fusejournal umount {spec.name}' first; "
        f"for its configuration 'fusejournal restart {spec.name}'"
    )


def _has_traces(directory: Path) -> bool:
    """Returns True if there is a journal, or a mount that is kept for another process."""
    return any((directory / "journal").glob("*.fj*")) or (directory / "connection").exists()


@contextmanager
def _logging_failure(directory: Path) -> Iterator[None]:
    """Log what is in the way, because the refusal itself is what the caller is to hear of."""
    try:
        yield
    except (FusejournalError, OSError) as error:
        log.warning("%s: what the refused start has made stays: %s", directory, error)


def _remove_made(directory: Path, kept: set[str]) -> None:
    """Remove all but what is *kept* from the state directory: the identity when the rest is gone,
    and the lock last. Raises OSError."""
    last = ["volume.json", "lock"]
    made = set(os.listdir(directory)) - kept
    for name in sorted(made - set(last)):
        if (directory / name).is_dir():
            shutil.rmtree(directory / name)
        else:
            (directory / name).unlink()
    for name in last:
        if name in made:
            remove("state.refused", directory / name)


def _restore_link(link: Path, linked: Path | None) -> None:
    """Have the volume's name lead to where it led before, if anywhere. Raises OSError."""
    now = link.readlink() if link.is_symlink() else None
    if now != linked:
        link.unlink(missing_ok=True)
        if linked is not None:
            link.symlink_to(linked)
        calls.fsync_directory("state.refused.link", link.parent)


def _load_or_make(spec: "MountSpec", known: VolumeState | None) -> VolumeState:
    directory = spec.state_dir
    if known is not None:
        if known.name != spec.name:
            raise UsageError(f"{directory} is the state of volume {known.name}, not of {spec.name}")
        state = replace(known.in_role(spec.role), backing=spec.backing, mountpoint=spec.mountpoint)
        bring_up_to_date(state, known)
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
