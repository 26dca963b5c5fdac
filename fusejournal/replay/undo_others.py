"""The changes of other processes in a volume while an undo works in it, by the journal.

The journal's order is the order of effects, and each entry names its process. So it tells two
things for certain: before a change, whether another process has changed the same thing since the
plan; and afterwards, whether one came in the moment between that look and the change. A file's
ctime tells the first at less cost; a directory's does not, because it moves with the names in it.

What others do to the names in a directory sets its mtime, and that is the one which it has to keep:
so their changes of mtimes are no conflict, but known here.

A layer that cannot see processes, as one in a container cannot see those of its machine, says pid 0
for all of them: nothing can be determined there."""

from collections.abc import Collection, Iterable, Iterator
from enum import Enum, auto
from typing import Any, NamedTuple

from fusejournal.history.mtimes import directory_mtimes
from fusejournal.history.name_changes import Dentry, name_changes
from fusejournal.journal.format import Entry
from fusejournal.journal.reader import END, JournalReader
from fusejournal.operations import DATA_KINDS, REMOVALS, Mkdir, Setattr, Void
from fusejournal.types import Fid, Seq


class Overlap(NamedTuple):
    """A change by another process after the plan, which the undo's own change of the same thing
    followed unseen."""

    seq: Seq
    pid: int
    fid: Fid
    name: bytes | None
    """A name in directory *fid*; None: what *fid* itself is."""


class _Aspect(Enum):
    CONTENT = auto()
    """The content and attributes of a file."""
    NAMES = auto()
    """The names that it has."""


_Thing = tuple[Fid, bytes | _Aspect]
"""A thing that can be changed: an aspect of a file, or what a name in a directory stands for."""


class OtherChanges:
    """Changes since entry *from_seq*, as far as they are about what is watched."""

    def __init__(self, reader: JournalReader, from_seq: Seq) -> None:
        self._reader = reader
        self._next_seq = from_seq
        self._things: set[_Thing] = set()
        self._directories: set[Fid] = set()
        self._our_directory: Fid | None = None
        self._our_pid: int | None = None
        self._theirs: dict[_Thing, Entry] = {}
        """The first change of each thing by others."""
        self._ours: dict[_Thing, Seq] = {}
        """Our own last one."""
        self._mtimes: dict[Fid, int] = {}
        self._taken: list[tuple[dict[Any, Any], Any, Any]] = []
        """The last entry's changes in these, for the VOID that may follow it."""

    def begin(self, our_directory: Fid) -> None:
        """Learn who this process is in the journal, from the making of *our_directory*, which it
        has made just now. Raises JournalDamagedError."""
        self._our_directory = our_directory
        self.look()

    def watch(self, fids: Iterable[Fid], dentries: Iterable[Dentry]) -> None:
        """Has changes of *fids* and *dentries* noticed from the next look on."""
        self._things.update((fid, aspect) for fid in fids for aspect in _Aspect)
        self._things.update(dentries)

    def watch_mtimes(self, directories: Collection[Fid]) -> None:
        """Has what others do to the mtimes of *directories* noticed from the next look on,
        too."""
        self._directories.update(directories)

    def look(self) -> None:
        """Read what the journal has gained. Raises JournalDamagedError."""
        for entry in self._reader.read(self._next_seq, END):
            self._next_seq = Seq(entry.seq + 1)
            self._take(entry)

    def have_changed(self, fid: Fid) -> bool:
        """Returns whether others have changed content or attributes of *fid*, as of the last
        look."""
        return (fid, _Aspect.CONTENT) in self._theirs

    def mtime_ns(self, directory: Fid, otherwise_ns: int) -> int:
        """The mtime that others have given *directory* last, as of the last look, or
        *otherwise_ns*."""
        return self._mtimes.get(directory, otherwise_ns)

    def overlaps(self) -> list[Overlap]:
        """Returns what others changed before this process last changed it, in the order of the
        journal. Raises JournalDamagedError."""
        self.look()
        found = {
            Overlap(entry.seq, entry.who.pid, fid, None if isinstance(which, _Aspect) else which)
            for (fid, which), entry in self._theirs.items()
            if entry.seq < self._ours.get((fid, which), 0)
        }
        return sorted(found, key=lambda overlap: overlap.seq)

    def _take(self, entry: Entry) -> None:
        operation = entry.operation
        if isinstance(operation, Void):
            if not operation.written:
                self._take_back()
            return
        self._taken.clear()
        if isinstance(operation, Mkdir) and operation.fid == self._our_directory:
            self._our_pid = entry.who.pid
            for thing, earlier in list(self._theirs.items()):
                if earlier.who.pid == self._our_pid:  # file flags that were in the way
                    self._ours[thing] = self._theirs.pop(thing).seq
        if self._our_pid == 0:
            return
        if entry.who.pid == self._our_pid:
            for thing in self._things.intersection(self._relied_on(entry)):
                self._put(self._ours, thing, entry.seq)
            return
        for thing in self._things.intersection(self._changed(entry)):
            if thing not in self._theirs:
                self._put(self._theirs, thing, entry)
        for fid, mtime_ns in directory_mtimes(entry):
            if fid in self._directories:
                self._put(self._mtimes, fid, mtime_ns)

    def _put(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        self._taken.append((table, key, table.get(key)))
        table[key] = value

    def _take_back(self) -> None:
        for table, key, value in reversed(self._taken):
            if value is None:
                del table[key]
            else:
                table[key] = value

    def _changed(self, entry: Entry) -> Iterator[_Thing]:
        operation: Any = entry.operation
        if operation.kind in DATA_KINDS and not self._is_time_of_directory(operation):
            yield operation.fid, _Aspect.CONTENT
        for change in name_changes(operation):
            yield change.parent, change.name
            for fid in (change.before, change.after):
                if fid is not None:
                    yield fid, _Aspect.NAMES

    def _relied_on(self, entry: Entry) -> Iterator[_Thing]:
        """Yields what no other process may have changed when this one makes *entry*: of a file that
        it gives another name, the name alone; of one that it removes, all."""
        operation: Any = entry.operation
        if operation.kind in DATA_KINDS and not self._is_time_of_directory(operation):
            yield operation.fid, _Aspect.CONTENT
        for change in name_changes(operation):
            yield change.parent, change.name
        if operation.kind in REMOVALS:
            yield operation.fid, _Aspect.CONTENT
            yield operation.fid, _Aspect.NAMES

    def _is_time_of_directory(self, operation: Any) -> bool:
        return (
            isinstance(operation, Setattr)
            and operation.fid in self._directories
            and operation[1:4] == (None, None, None)
        )
