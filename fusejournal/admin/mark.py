"""Marks: names for points of a running volume; giving them, removing them, listing them."""

import time
from dataclasses import dataclass

from fusejournal.admin.live import ask_layer
from fusejournal.admin.source import open_source
from fusejournal.control.reply import Reply
from fusejournal.errors import NoSuchMomentError, UsageError
from fusejournal.history.marks import MarkedPoint, all_marks, find_mark
from fusejournal.history.moments import parse_moment
from fusejournal.node.state_dir import VolumeState
from fusejournal.volume.marks import MarkNoted, check_mark_name


@dataclass(frozen=True, kw_only=True)
class MarkMade(Reply):
    """A mark, the seq of its entry, and its time."""

    name: str
    seq: int
    time_ns: int


def list_marks(volume: str) -> list[MarkedPoint]:
    """Returns the marks of a volume, or of a copy of a journal, by seq. Raises
    VolumeNotFoundError, JournalError, JournalDamagedError."""
    return all_marks(open_source(volume).lookup)


def remove_mark(state: VolumeState, name: str) -> MarkMade:
    """Removes all marks *name* of a volume, and returns the entry that does when it is on the
    journal's disk. Raises NoSuchMomentError where there is none; UsageError, NotRunningError."""
    check_mark_name(name)
    source = open_source(f"{state.directory}/")
    if find_mark(source.lookup, name) is None:
        raise NoSuchMomentError(
            f"{state.name} has no mark {name!r}; it has: fusejournal mark {state.name} --list"
        )
    noted = MarkNoted.from_json(ask_layer(state, "unmark", name=name))
    return MarkMade(name=name, seq=noted.seq, time_ns=noted.time_ns)


def set_mark(state: VolumeState, name: str) -> MarkMade:
    """Gives the present point of a volume a name, and returns when the mark, and with it every
    change before it, is on the journal's disk. Raises UsageError, NotRunningError."""
    check_mark_name(name)
    if parse_moment(name, time.time_ns()) is not None:
        raise UsageError(
            f"{name!r} cannot be a mark's name, because it reads as a time: choose another"
        )
    noted = MarkNoted.from_json(ask_layer(state, "mark", name=name))
    return MarkMade(name=name, seq=noted.seq, time_ns=noted.time_ns)
