"""Unusual mass changes: many files that one user rewrites, renames or removes in a short time, as
one who encrypts them all does, or a slip of the hand.

The newest entries are read, at most so many at a look: of more, pieces spread over all. So it costs
the same under any load, and what it counts is a lower bound. Only files that were there before the
time that is looked at count: unpacking an archive is no such change. Whether one was is seen by its
fid, because fids grow. Not for two threads at a time."""

import random
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fusejournal.admin.source import JournalSource
from fusejournal.agent.accounts import account_names
from fusejournal.agent.command_lines import command_line
from fusejournal.agent.problems import EntriesAbout, Problem
from fusejournal.journal.format import Entry
from fusejournal.kinds import Kind
from fusejournal.operations import MAKERS
from fusejournal.types import Fid, Seq

FILES: Final = 500
"""The number of one user's files that raises an alert."""
_WINDOW_NS: Final = 300 * 10**9
_KEPT_NS: Final = 3600 * 10**9
"""The time that a mass change is reported after the last of it."""
_ENTRIES_MAX: Final = 20_000
"""Entries that are read at a look."""
_PIECE: Final = 1_000
"""Entries in a piece: where there are more than are read at a look, pieces of them are read."""
_FILES_MAX: Final = 20_000
_DONE: Final = {
    Kind.WRITE: "rewrote",
    Kind.TRUNCATE: "rewrote",
    Kind.RENAME: "renamed",
    Kind.UNLINK: "removed",
    Kind.RMDIR: "removed",
}
_Key = tuple[int, str]
"""A user, and what they did."""


@dataclass
class _MassChange:
    """One that is reported."""

    count: int
    first_ns: int
    last_ns: int


@dataclass
class _Watched:
    """One volume."""

    next_seq: Seq
    files: dict[_Key, OrderedDict[Fid, int]] = field(default_factory=dict)
    """The files that were changed in the window, each with when."""
    told: dict[_Key, _MassChange] = field(default_factory=dict)
    highest: int = 0
    """The highest fid that was given, as far as is known."""
    heights: deque[tuple[int, int]] = field(default_factory=deque)
    """Times of looks, and the highest fid then."""


class MassChanges:
    """Watches all volumes of this machine."""

    def __init__(self, files: int = FILES) -> None:
        """*files*: so many raise an alert; 0: nothing does."""
        self._count = files
        self._volumes: dict[str, _Watched] = {}

    def look(self, source: JournalSource) -> list[Problem]:
        """Returns the mass changes of a volume that are reported now. The first look sees none: it
        only notes where the journal ends. Raises FusejournalError."""
        if not self._count:
            return []
        # A machine may have several nodes of one volume, each with its own journal.
        place = source.state.directory if source.state is not None else source.name
        key = f"{place} {source.reader.uuid}"
        watched = self._volumes.get(key)
        end = Seq(source.head_seq + 1)
        if watched is None or watched.next_seq > end:
            self._volumes[key] = _Watched(end)
            return []
        now_ns = time.time_ns()
        before = watched.highest
        for entry in _newest(source, watched.next_seq, end):
            now_ns = max(now_ns, entry.time_ns)
            self._note(watched, entry)
        watched.next_seq = end
        if watched.highest != before:
            watched.heights.append((now_ns, watched.highest))
        while len(watched.heights) > 1 and watched.heights[1][0] <= now_ns - _WINDOW_NS:
            watched.heights.popleft()
        self._judge(watched, now_ns)
        return list(_problems(source.name, watched))

    def _note(self, watched: _Watched, entry: Entry) -> None:
        kind = entry.operation.kind
        fid: int = getattr(entry.operation, "fid", 0)
        if kind in MAKERS:
            if not watched.highest:
                # The first that is seen made: all below were there before.
                watched.highest = fid - 1
                watched.heights.append((entry.time_ns - _WINDOW_NS, watched.highest))
            watched.highest = max(watched.highest, fid)
        done = _DONE.get(kind)
        if done is None or (watched.heights and fid > _known_before(watched, entry.time_ns)):
            return
        files = watched.files.setdefault((entry.who.uid, done), OrderedDict())
        files.pop(Fid(fid), None)
        files[Fid(fid)] = entry.time_ns
        if len(files) > _FILES_MAX:
            files.popitem(last=False)

    def _judge(self, watched: _Watched, now_ns: int) -> None:
        for key, files in list(watched.files.items()):
            while files and next(iter(files.values())) < now_ns - _WINDOW_NS:
                files.popitem(last=False)
            if not files:
                del watched.files[key]
            elif len(files) >= self._count:
                times = files.values()
                first_ns, last_ns = next(iter(times)), next(reversed(times))
                told = watched.told.setdefault(key, _MassChange(0, first_ns, last_ns))
                told.count, told.last_ns = max(told.count, len(files)), last_ns
        watched.told = {
            key: one for key, one in watched.told.items() if one.last_ns > now_ns - _KEPT_NS
        }


def _known_before(watched: _Watched, time_ns: int) -> int:
    """Returns the highest fid that was given before the window that ends at *time_ns*."""
    found = watched.heights[0][1]
    for at_ns, highest in watched.heights:
        if at_ns > time_ns - _WINDOW_NS:
            break
        found = highest
    return found


def _newest(source: JournalSource, begin: Seq, end: Seq) -> Iterator[Entry]:
    begin = Seq(max(begin, source.reader.first_seq))
    if end - begin <= _ENTRIES_MAX:
        yield from source.reader.read(begin, end)
        return
    pieces = _ENTRIES_MAX // _PIECE
    step = (end - begin) / pieces
    for number in range(pieces):
        # Not at equal distances: what repeats itself would show the same files again and again.
        shift = random.randrange(max(1, int(step) - _PIECE))
        first = Seq(begin + int(number * step) + shift)
        yield from source.reader.read(first, Seq(first + _PIECE))


def _problems(volume: str, watched: _Watched) -> Iterator[Problem]:
    names = account_names(uid for uid, _ in watched.told)
    for (uid, done), one in watched.told.items():
        name = names.get(str(uid), f"uid {uid}")
        last = time.strftime("%H:%M:%S", time.localtime(one.last_ns / 1e9))
        words = (
            f"user {name} {done} {one.count:,} files and more within {_WINDOW_NS // 60 // 10**9} "
            f"minutes, the last of them at {last}"
        )
        since = f"@{one.first_ns // 10**9}"
        advice = command_line("log", volume, options=[("--uid", uid), ("--since", since)])
        op = ",".join(kind.name.lower() for kind, what in _DONE.items() if what == done)
        yield Problem(f"mass:{uid}:{done}", words, True, advice, EntriesAbout(uid, op, since))
