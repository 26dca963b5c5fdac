"""Making a new directory aside: in a scratch directory next to where it belongs, which only root
can enter. What is made is looked over, flushed, and only then renamed into its place, so that there
is either nothing or all of it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from fusejournal.disk import syscalls
from fusejournal.errors import JournalError, TargetError
from fusejournal.replay.scratch import TREE, Scratch, Spot, beside, find_spot
from fusejournal.replay.staged_tree import can_go_on, check_root

_RESTORE = "fusejournal-restore"


class Restored(NamedTuple):
    """The result of a restore: the number of names, and where the file or directory asked for
    is."""

    names: int
    path: Path


class Filled(NamedTuple):
    """A target that has all that it is to have."""

    name: str
    """The name in it of what was asked for, or "" for all."""
    names: int
    """The number of names, all looked over."""
    lock: Callable[[], None]
    """Makes files immutable and append-only that are to be: see Target.lock."""
    is_flushed: bool = False
    """True if the files in it are on the disk."""


class MadeAside(Protocol):
    """A tree that is made in a scratch directory: see StagedTree, Target."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def finish(self, *, is_flushed: bool = False) -> None:
        """Opens it to others, and flushes it."""
        ...

    def discard(self, spot: Spot) -> None:
        """Deletes the scratch directory, with a tree that is in it."""
        ...


T = TypeVar("T", bound=MadeAside)


def make_aside(
    target: Path,
    purpose: dict[str, Any],
    opened: Callable[[Spot, Scratch], T],
    fill: Callable[[T], Filled],
) -> Restored:
    """Makes the new directory *target*, with what *fill* puts into what *opened* returns for the
    scratch directory, which goes over to that: aside, and in its place once it is whole. Where one
    with the same *purpose* was stopped, it goes on.

    Raises TargetError (there is something already), PrivilegeError, and what *opened* and *fill*
    raise; *target* is not there then."""
    with find_spot(target) as spot:
        if spot.is_there():
            raise TargetError(
                spot.path,
                "is there already: a restore goes into a new directory, and never over anything; "
                "give another name",
            )
        check_root()
        scratch = _find_or_make(spot, purpose)
        with opened(spot, scratch) as stage:
            try:
                filled = fill(stage)
                stage.finish(is_flushed=filled.is_flushed)
            except JournalError:
                stage.discard(spot)  # it will never be whole
                raise
            unflushed = _put_in_place(scratch, spot)
            try:
                filled.lock()
            except OSError as error:
                raise TargetError(spot.path, f"its file flags: {error.strerror}") from None
            stage.discard(spot)
            if unflushed is not None:
                raise TargetError(
                    spot.path,
                    "is restored, and may be gone after a system crash, because its directory "
                    f"could not be flushed: {unflushed.strerror}",
                )
    return Restored(filled.names, spot.path / filled.name)


def scratch_of_restore(target: Path) -> Path:
    """The scratch directory of a restore into *target*, beside it."""
    return beside(target, _RESTORE)


def check_names_directory(target: Path, name: bytes) -> None:
    """Raises TargetError where *target* looks as if it were meant to be the file *name*: it would
    be a directory with that file in it."""
    file = Path(os.fsdecode(name))
    if target.name == file.name or (file.suffix and target.suffix == file.suffix):
        raise TargetError(
            target,
            f"would be a directory, with the file {file} in it: name it as one, such as "
            f"{target.parent / 'restored'}",
        )


def _find_or_make(spot: Spot, purpose: dict[str, Any]) -> Scratch:
    """The scratch directory with a tree in it, begun or new. Raises TargetError."""
    scratch = Scratch.find(spot, _RESTORE)
    if scratch is None:
        scratch = Scratch.make(spot, _RESTORE)
    elif can_go_on(scratch, purpose):
        return scratch
    try:
        scratch.empty()
        os.mkdir(TREE, 0o700, dir_fd=scratch.fd)
    except OSError as error:
        scratch.close()
        raise TargetError(scratch.path, error.strerror or "cannot be made") from None
    return scratch


def _put_in_place(scratch: Scratch, spot: Spot) -> OSError | None:
    """Give the tree its name, unless something else has it by now. Returns the error of a flush
    that failed then. Raises TargetError where it has no name."""
    try:
        syscalls.rename_onto_nothing(scratch.fd, TREE.encode(), spot.fd, os.fsencode(spot.name))
    except OSError as error:
        raise TargetError(
            spot.path, f"{error.strerror}; what was restored is in {scratch.path / TREE}"
        ) from None
    try:
        spot.sync()
    except OSError as error:
        return error
    return None
