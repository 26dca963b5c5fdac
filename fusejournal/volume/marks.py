"""Marks: points in the journal that an admin named.

A mark is an entry like any other: it is refused where a change would be, and told only when it is
on the disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fusejournal.control.reply import Reply
from fusejournal.errors import JournalError, JournalFailedError, JournalFullError, UsageError
from fusejournal.history.marks import removal_of, removed_name
from fusejournal.operations import Mark
from fusejournal.types import GIVEN_NAME_MAX
from fusejournal.volume.acceptance import Acceptance
from fusejournal.volume.durability import Durability
from fusejournal.volume.volume import Volume


@dataclass(frozen=True, kw_only=True)
class MarkNoted(Reply):
    """The entry by which a mark was made, or removed."""

    seq: int
    time_ns: int


class MarkPlace(NamedTuple):
    """The volume that a mark is made in, as messages name it."""

    name: str
    state_dir: Path
    is_mirror: bool


def check_mark_name(name: object) -> str:
    """*name* if it can be a mark's. Raises UsageError.

    What would read as a seq is refused, because either names a point in the journal. (The
    command line also refuses what reads as a time.)"""
    if (
        not isinstance(name, str)
        or not 1 <= len(name) <= GIVEN_NAME_MAX
        or not name.isprintable()
        or name != name.strip()
        or name.isdigit()
    ):
        raise UsageError(
            f"{name!r} cannot be a mark's name: 1 to {GIVEN_NAME_MAX} printable characters, "
            "no blank at either end, not a number"
        )
    return name


async def make_mark(
    name: object, volume: Volume, durability: Durability, place: MarkPlace
) -> MarkNoted:
    """Make the mark *name*, and return its seq and time when it is durable. Raises
    FusejournalError. Cancelled while it waits, it may have been made."""
    return await _note(Mark(check_mark_name(name)), volume, durability, place)


async def remove_mark(
    name: object, volume: Volume, durability: Durability, place: MarkPlace
) -> MarkNoted:
    """Remove the marks *name*, whether or not there are any, and return seq and time of that when
    it is durable. Raises FusejournalError. Cancelled while it waits, it may have been done."""
    return await _note(removal_of(check_mark_name(name)), volume, durability, place)


async def _note(mark: Mark, volume: Volume, durability: Durability, place: MarkPlace) -> MarkNoted:
    # No await from here to the entry's time: another entry might come in between.
    _check_takes_marks(volume, place)
    try:
        seq = volume.note(mark)
    except JournalFailedError as error:
        volume.fail(str(error))
        raise
    time_ns = volume.journal.last_time_ns
    try:
        await durability.wait(seq)
    except OSError:
        raise JournalFailedError(
            f"{_shown(mark)} is entry {seq}, but may not outlive the machine: {volume.failure}"
        ) from None
    return MarkNoted(seq=seq, time_ns=time_ns)


def _shown(mark: Mark) -> str:
    removed = removed_name(mark)
    return f"mark {mark.name!r}" if removed is None else f"the removal of mark {removed!r}"


def _check_takes_marks(volume: Volume, place: MarkPlace) -> None:
    """Refuse a mark where a change would be refused. Raises FusejournalError."""
    if volume.failure is not None:
        raise JournalError(
            f"volume {place.name} is read-only and takes no marks: {volume.failure}; "
            "mend that and mount it again"
        )
    if place.is_mirror:
        raise UsageError(
            f"volume {place.name} is a mirror and takes no marks: make them on its primary"
        )
    if volume.acceptance is Acceptance.HOLDING:
        raise UsageError(
            f"volume {place.name} is being handed over and takes no marks meanwhile: try again"
        )
    if volume.write_errno is not None or not volume.journal.is_writable:
        raise UsageError(
            f"volume {place.name} is mounted read-only and takes no marks: mount it without -o ro"
        )
    if volume.must_refuse_growth():
        raise JournalFullError(f"{place.state_dir}: no space left for the catalog")
