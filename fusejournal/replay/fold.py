"""Folding: a file or directory as it was at a moment, from its own entries alone.

Where a replay carries out everything, a fold takes only the entries about the files asked for,
found by the indexes, and makes each under the name that it had at the end. So it costs what those
files' entries cost. It goes through the same applier."""

from collections.abc import Callable, Collection, Iterator, Sequence
from stat import S_ISDIR
from typing import Any, NamedTuple

from fusejournal.disk.acls import ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR
from fusejournal.errors import JournalError, PathNotFoundError
from fusejournal.file_operations import SetFlags
from fusejournal.history.lookup import Lookup
from fusejournal.history.name_changes import Dentry, name_changes
from fusejournal.journal.format import Entry
from fusejournal.journal.index import Posting
from fusejournal.operations import (
    MAKERS,
    NAME_KINDS,
    ONE_FILE_KINDS,
    Create,
    DataOperation,
    Import,
    ImportData,
    Kind,
    Link,
    Mkdir,
    Operation,
    Removexattr,
    Setattr,
    Setxattr,
    TreeOperation,
    Unlink,
    made_by,
)
from fusejournal.replay.divergence import Divergence
from fusejournal.replay.target import Target
from fusejournal.types import ROOT_FID, Fid, Progress, Seq

_OF_ONE_FILE = DataOperation | ImportData
"""The kinds of those."""
_ROOT_ELSEWHERE = Fid(1 << 62)
_KEEP_MTIME = frozenset({Kind.IMPORT, Kind.IMPORT_LINK})


class Step(NamedTuple):
    """One operation of a fold, with its entry's time and data."""

    operation: TreeOperation
    time_ns: int
    data: bytes | memoryview = b""


class Directory(NamedTuple):
    """A directory as it was at a moment."""

    children: dict[bytes, Fid]
    attributes: list[Step]
    """The steps by which it came to its mode, owner and xattrs, in order, from its making on."""
    mtime_ns: int | None


class Fold:
    """Files as they were before entry *before_seq*; of all entries, those for which *counts* holds
    (all). With *divergence*, names are as that says."""

    def __init__(
        self,
        lookup: Lookup,
        before_seq: Seq,
        counts: Callable[[Seq], bool] | None = None,
        divergence: Divergence | None = None,
    ) -> None:
        self._lookup = lookup
        self._before_seq = before_seq
        self._counts = counts
        self._divergence = divergence
        self._is_directory: dict[Fid, bool] = {ROOT_FID: True}

    # -- what they were ----------------------------------------------------------------------------

    def is_directory(self, fid: Fid) -> bool:
        """Returns whether *fid* is one. Raises JournalError when the journal here lacks its
        making."""
        if fid not in self._is_directory:
            self._look_whether_directories([fid])
        return self._is_directory[fid]

    def _look_whether_directories(self, fids: Collection[Fid]) -> None:
        """Find out for all of *fids* at once: each segment's index is looked at once."""
        lacking = {fid for fid in fids if fid not in self._is_directory}
        if self._lookup.base is not None:
            nodes = map(self._lookup.base.node, lacking)
            at_base = {node.fid: S_ISDIR(node.type) for node in nodes if node is not None}
            self._is_directory |= at_base
            lacking -= at_base.keys()
        for span in self._lookup.segments():
            if not lacking:
                return
            index = self._lookup.index(span)
            imports: list[int] = []
            for fid in list(index.which_of(lacking)):
                for posting in index.of_fid(fid):
                    if posting.kind in MAKERS and not posting.is_parent and not posting.refused:
                        lacking.discard(fid)
                        if posting.kind == Kind.IMPORT:
                            imports.append(posting.number)
                        else:
                            self._is_directory[fid] = posting.kind == Kind.MKDIR
                        break
            for entry, _ in self._lookup.reader.pick(span.path, sorted(imports)):
                if isinstance(entry.operation, Import):
                    is_directory = S_ISDIR(entry.operation.mode)
                    self._is_directory[entry.operation.fid] = is_directory
        if lacking:
            raise self._unknown(min(lacking))

    def _unknown(self, fid: Fid) -> JournalError:
        return JournalError(
            f"fid {fid} was made before seq {self._lookup.reader.first_seq}, where the journal "
            "here begins: what it was then is not known"
        )

    def directory(self, fid: Fid) -> Directory:
        """Returns what directory *fid* was."""
        return self._directories([fid])[fid]

    def _directories(self, fids: Sequence[Fid]) -> dict[Fid, Directory]:
        """Returns what directories were: each segment is read once for all of them."""
        found = {fid: _DirectoryFold(fid) for fid in fids}
        entries = self._lookup.entries_of_many(found, self._before_seq, _is_about_a_directory)
        for entry, outcome in entries:
            if outcome.held:
                counts = self._counts is None or self._counts(entry.seq)
                for fid in _directories_of(entry.operation):
                    if fid in found:
                        found[fid].take(entry, counts)
        directories = {}
        for fid, one in found.items():
            if not one.is_made:
                raise self._unknown(fid)
            names = one.names
            if self._divergence is not None:
                names = self._divergence.children(fid, names)
            directories[fid] = Directory(names, one.attributes, one.mtime_ns)
        return directories

    # -- making them -------------------------------------------------------------------------------

    def file(self, fid: Fid, dentry: Dentry) -> Iterator[Step]:
        """The steps that make *fid*, which is no directory, at *dentry*."""
        return self._files({fid: [dentry]})

    def _files(self, dentries: dict[Fid, list[Dentry]]) -> Iterator[Step]:
        """The steps that make many files, each at its first dentry: all their entries, in order, so
        that each segment is read once."""
        made: set[Fid] = set()
        entries = self._lookup.entries_of_many(dentries, self._before_seq, _makes_a_file)
        for entry, outcome in entries:
            operation: Any = entry.operation
            if (making := made_by(operation)) is not None:
                parent, name = dentries[making.fid][0]
                operation = making._replace(parent=parent, name=name)
                if outcome.held and isinstance(making, Create) and making.fid in made:
                    # A naming was taken back (volume/unnamed_files.py), and made once more.
                    yield Step(Unlink(making.fid, parent, name), entry.time_ns)
                made.add(making.fid)
            elif self._counts is not None and not self._counts(entry.seq):
                continue
            elif operation.fid not in made:
                raise self._unknown(operation.fid)
            if outcome.held:
                yield Step(operation, entry.time_ns, outcome.data_of(entry))
        if len(made) < len(dentries):
            raise self._unknown(next(fid for fid in dentries if fid not in made))

    def tree(self, fid: Fid) -> Iterator[Step]:
        """The steps that make directory *fid*, with what is below it, of the target's root."""
        directories: list[tuple[Fid, Directory]] = []
        files: dict[Fid, list[Dentry]] = {}
        # A level at a time, because the indexes are looked at once for all that is asked together.
        level: list[tuple[Fid, Fid]] = [(fid, ROOT_FID)]
        while level:
            below: list[tuple[Fid, Fid]] = []
            found = self._directories([one for one, _ in level])
            self._look_whether_directories(
                {child for directory in found.values() for child in directory.children.values()}
            )
            for one, there in level:
                directory = found[one]
                for name, child in directory.children.items():
                    dentry = (there, name)
                    if self.is_directory(child):
                        yield Step(_plain_directory(child, dentry), 0)
                        below.append((child, child))
                    else:
                        files.setdefault(child, []).append(dentry)
                directory.children.clear()
                directories.append((there, directory))
            level = below
        yield from self._files(files)
        for child, dentries in files.items():
            for dentry in dentries[1:]:
                yield Step(Link(child, *dentry), 0)
        # Last, because what is made in a directory changes its mtime.
        for there, directory in directories:
            yield from self._finish(there, directory)

    def empty_directory(self, fid: Fid, dentry: Dentry) -> Iterator[Step]:
        """The steps that make directory *fid*, without what is in it, at *dentry*."""
        # The target has a root of its own.
        there = fid if fid != ROOT_FID else _ROOT_ELSEWHERE
        yield Step(_plain_directory(there, dentry), 0)
        yield from self._finish(there, self.directory(fid))

    def _finish(self, fid: Fid, directory: Directory) -> Iterator[Step]:
        """Mode, owner, xattrs and mtime of a directory."""
        for step in directory.attributes:
            for operation in _as_attributes(fid, step.operation):
                yield Step(operation, step.time_ns)
        if directory.mtime_ns is not None:
            yield Step(Setattr(fid, None, None, None, None, directory.mtime_ns), 0)


class _DirectoryFold:
    """One directory, on the way through the entries that name it."""

    def __init__(self, fid: Fid) -> None:
        self.fid = fid
        self.names: dict[bytes, Fid] = {}
        self.attributes: list[Step] = []
        self.mtime_ns: int | None = None
        self.is_made = fid == ROOT_FID

    def take(self, entry: Entry, counts: bool) -> None:
        """Go on by *entry*, which held; but for names, only if it *counts*."""
        operation = entry.operation
        if isinstance(operation, _OF_ONE_FILE):
            if counts:
                self.attributes.append(Step(operation, entry.time_ns))
                if isinstance(operation, Setattr) and operation.mtime_ns is not None:
                    self.mtime_ns = operation.mtime_ns
            return
        changes = [change for change in name_changes(operation) if change.parent == self.fid]
        for change in changes:
            if change.after is None:
                self.names.pop(change.name, None)
            else:
                self.names[change.name] = change.after
        if changes and counts and operation.kind not in _KEEP_MTIME:
            self.mtime_ns = entry.time_ns
        if isinstance(operation, Mkdir | Import) and operation.fid == self.fid:
            self.is_made = True
            self.attributes.append(Step(operation, entry.time_ns))
            self.mtime_ns = operation.mtime_ns if isinstance(operation, Import) else entry.time_ns


def _is_about_a_directory(posting: Posting) -> bool:
    return posting.kind in NAME_KINDS or posting.kind in ONE_FILE_KINDS


def _directories_of(operation: Operation) -> set[Fid]:
    """The fids that *operation* is about, as a directory or as that of names."""
    fids = {change.parent for change in name_changes(operation)}
    if isinstance(operation, _OF_ONE_FILE | Mkdir | Import):
        fids.add(operation.fid)
    return fids


def _makes_a_file(posting: Posting) -> bool:
    return not posting.is_parent and (posting.kind in MAKERS or posting.kind in ONE_FILE_KINDS)


def _plain_directory(fid: Fid, dentry: Dentry) -> Mkdir:
    return Mkdir(fid, *dentry, 0o700, 0, 0, None, None)


def _as_attributes(fid: Fid, operation: TreeOperation) -> Iterator[TreeOperation]:
    """Yields what *operation* did to a directory's attributes, as operations on *fid*."""
    match operation:
        case Mkdir():
            yield Setattr(fid, operation.mode & 0o7777, operation.uid, operation.gid, None, None)
            for name, acl in (
                (ACCESS_ACL_XATTR, operation.acl),
                (DEFAULT_ACL_XATTR, operation.default_acl),
            ):
                if acl is not None:
                    yield Setxattr(fid, name, acl)
            yield Setattr(fid, operation.mode & 0o7777, None, None, None, None)
        case Import():
            yield Setattr(fid, operation.mode & 0o7777, operation.uid, operation.gid, None, None)
            for name, value in operation.xattrs:
                yield Setxattr(fid, name, value)
            yield Setattr(fid, operation.mode & 0o7777, None, None, None, None)
        case Setattr() | Setxattr() | Removexattr() | SetFlags():
            yield operation._replace(fid=fid)


def carry_out(
    target: Target, steps: Iterator[Step], progress: Progress, first_seq: int = 1
) -> None:
    """Apply *steps*, which are always the same ones, to *target*, numbered from *first_seq*.
    Raises what Target.apply raises; called again, it goes on."""
    for number, (operation, time_ns, data) in enumerate(steps, first_seq):
        progress(number, None)
        target.apply(operation, Seq(number), time_ns, data)


def find_file(lookup: Lookup, path: bytes, before_seq: Seq) -> Fid:
    """Returns what *path* stood for. Raises PathNotFoundError."""
    fid = lookup.fid_at(path, before_seq)
    if fid is None:
        shown = "/" + path.decode("utf-8", "backslashreplace")
        when = "at that moment" if lookup.tenures(path) else "ever"
        raise PathNotFoundError(shown, f"was not there {when}")
    return fid
