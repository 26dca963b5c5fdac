"""Marks: names for points of a running volume."""

import time
from dataclasses import dataclass

from fusejournal.admin.live import ask_layer
from fusejournal.control.reply import Reply
from fusejournal.errors import UsageError
from fusejournal.history.moments import parse_moment
from fusejournal.node.state_dir import VolumeState
from fusejournal.volume.marks import check_mark_name


@dataclass(frozen=True, kw_only=True)
class MarkMade(Reply):
    """A mark, the seq of its entry, and its time."""

    name: str
    seq: int
    time_ns: int


def set_mark(state: VolumeState, name: str) -> MarkMade:
    """Gives the present point of a volume a name, and returns when the mark, and with it every
    change before it, is on the journal's disk. Raises UsageError, NotRunningError."""
    check_mark_name(name)
    if parse_moment(name, time.time_ns()) is not None:
        raise UsageError(
            f"{name!r} cannot be a mark's name, for it reads as a time: choose another"
        )
    return MarkMade.from_json({"name": name, **ask_layer(state, "mark", name=name)})
