"""Restore in place, planned: what a path of the live volume lacks to be as it was, by two versions
of the tree, as it was *then* and as it is *now*. Carried out as an undo is
(replay/undo_execute.py).

Nothing outside of the path changes, but a file that had another name out there already then: that
is one file. A file that is there keeps its fid, under whichever name below the path; what has gone
is made anew; where another file of its kind has its name by now, and no name elsewhere, that one
becomes it, so that the same restore, said again, finds nothing to do. What an attempt that was
stopped has left at the root (`PRIVATE_NAME`) counts as below the path.

Only what differs is looked at: directories below which no file's record differs are passed over.
Memory grows with the difference, and with the names in directories that have any."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_IFDIR, S_IFREG
from typing import Literal, NamedTuple

from fusejournal.errors import ConflictError
from fusejournal.history.name_changes import Dentry
from fusejournal.replay.undo_execute import WantedNames
from fusejournal.types import ROOT_FID, Fid
from fusejournal.versions.difference import differing
from fusejournal.versions.packs import block_id
from fusejournal.versions.past_files import VersionFiles, unlike_parts
from fusejournal.versions.records import InodeRecord, fid_of_key
from fusejournal.versions.sorted_tree import Nodes
from fusejournal.versions.trees import Trees
from fusejournal.versions.version_tree import VersionTree

InPlaceStep = Literal["create", "remove", "move", "link", "rewrite", "attributes"]

PRIVATE_NAME = re.compile(rb"\.fusejournal-(?:undo|restore\.[0-9a-f]{16})\.(\d+)\.\d+")
"""The private directories at the root of those who change a live volume, and their processes."""
_NEW_FID = 1 << 62
"""Added to the fid of what is made anew, while its own is in use outside of the path."""


def private_prefix(path: bytes) -> bytes:
    """Returns the beginning of the private directory's name for a restore of *path*."""
    return b".fusejournal-restore." + block_id(path).hex()[:16].encode()


class PathChange(NamedTuple):
    """One thing that a restore in place does, for people."""

    what: InPlaceStep
    path: bytes
    old_path: bytes | None = None
    """The path of what is moved, or gets a further name."""
    written_bytes: int = 0
    """The most that it writes."""
    shared: tuple[bytes, ...] = ()
    """Names of the same file outside of the path."""


@dataclass
class InPlacePlan:
    """Everything that a restore in place does."""

    names: WantedNames
    changed: set[Fid] = field(default_factory=set)
    with_content: set[Fid] = field(default_factory=set)
    directories: set[Fid] = field(default_factory=set)
    """The fids whose mtimes alone differ."""
    changes: list[PathChange] = field(default_factory=list)
    files: VersionFiles | None = None

    @property
    def is_empty(self) -> bool:
        """True where all is as it was."""
        names = self.names
        return not (names.wanted or names.now or self.changed or self.directories)

    @property
    def written_bytes(self) -> int:
        """The bytes that it writes at most."""
        return sum(change.written_bytes for change in self.changes)


def plan_in_place(
    then: VersionTree, then_trees: Trees, now: VersionTree, now_trees: Trees, path: bytes
) -> InPlacePlan:
    """Returns what *path* (``b""``: the whole tree) lacks to be as it was *then*, of the tree as
    it is *now*. Raises PathNotFoundError where it was not there then; ConflictError where a
    directory above it is none any more; StoreDamagedError, StoreError."""
    return _Planning(then, now, path).plan(then_trees, now_trees)


class _Planning:
    """The making of one plan. A file has one fid then; now, and in the plan, it has its stand-in's,
    or that which is given to what is to be made."""

    def __init__(self, then: VersionTree, now: VersionTree, path: bytes) -> None:
        self._then = then
        self._now = now
        self._path = path
        self._top = then.find(path)
        self._files = VersionFiles(then, now)
        self._names = WantedNames({}, {}, set(), {})
        self._plan = InPlacePlan(self._names, files=self._files)
        self._stands_for: dict[Fid, Fid] = {}
        """Stand-ins by the fids then."""
        self._kept: set[Fid] = set()
        """Stand-ins that are there now."""
        self._leftover: dict[Dentry, Fid] = {}
        """Names that are there now, and stand for something else, or nothing, then."""
        self._dentry: Dentry | None = None
        """The path's name now."""
        self._roots: set[Fid] = set()
        """Directories now, whose content counts as that of the path."""
        self._is_inside: dict[Fid, bool] = {}
        self._was_inside: dict[Fid, bool] = {ROOT_FID: not path}
        self._differing: set[Fid] = set()
        self._made: set[Fid] = set()
        """New files that have a name in the plan already."""

    def plan(self, then_trees: Trees, now_trees: Trees) -> InPlacePlan:
        self._note_differing(then_trees, now_trees)
        self._dentry = parent, name = self._make_way()
        found = self._now.child(parent, name) if self._path else ROOT_FID
        if parent in self._names.new:
            found = None
        if found is not None:
            self._roots.add(found)
        self._find_leftover_directories()
        top = self._stand_in(self._top, found)
        if self._path and top != found:
            self._put((parent, name), top, self._top, self._path)
            if found is not None:
                self._leftover[parent, name] = found
        self._walk(self._top, top, self._path)
        self._remove_leftover()
        self._note_dentries()
        self._plan.changes.sort(key=lambda change: change.path)
        return self._plan

    # -- what differs, and where -------------------------------------------------------------------

    def _note_differing(self, then_trees: Trees, now_trees: Trees) -> None:
        """Notes all files whose records differ, and all directories above them, then and now."""
        nodes = Nodes(self._now.blocks)
        for key, was, has in differing(nodes, then_trees.inodes, now_trees.inodes):
            fid = fid_of_key(key)
            for tree, value in ((self._then, was), (self._now, has)):
                if value is not None:
                    self._note_above(tree, fid)

    def _note_above(self, tree: VersionTree, fid: Fid) -> None:
        todo, seen = [fid], {fid}
        self._differing.add(fid)
        while todo:
            for parent, _ in tree.record(todo.pop()).links:
                if parent not in seen:
                    seen.add(parent)
                    self._differing.add(parent)
                    todo.append(parent)

    def _make_way(self) -> Dentry:
        """Plans the directories above the path that are missing. Returns the path's name, now."""
        *above, last = self._path.split(b"/") if self._path else [b""]
        then_fid = now_fid = ROOT_FID
        for number, name in enumerate(above):
            child = self._then.child(then_fid, name)
            assert child is not None
            then_fid = child
            found = self._now.child(now_fid, name) if now_fid not in self._names.new else None
            if found is None:
                record = self._then.record(then_fid)
                fid = self._new_fid(record)
                self._put((now_fid, name), fid, record, b"/".join(above[: number + 1]))
                now_fid = fid
            elif self._now.record(found).type != S_IFDIR:
                shown = "/" + b"/".join(above[: number + 1]).decode("utf-8", "backslashreplace")
                raise ConflictError(f"{shown} is no directory any more: move it away first")
            else:
                now_fid = found
        return now_fid, last

    def _find_leftover_directories(self) -> None:
        """Notes what stopped attempts at the same have left, as far as they have ended."""
        prefix = private_prefix(self._path) + b"."
        for name, fid in self._now.children(ROOT_FID):
            if name.startswith(prefix) and not _is_at_work(name):
                self._roots.add(fid)
                self._leftover[ROOT_FID, name] = fid

    # -- stand-ins ---------------------------------------------------------------------------------

    def _stand_in(self, record: InodeRecord, found: Fid | None) -> Fid:
        """Returns the fid in the plan of the file with *record*, whose name stands for *found*
        now."""
        known = self._stands_for.get(record.fid)
        if known is None:
            known = self._stands_for[record.fid] = self._choose(record, found)
        return known

    def _choose(self, record: InodeRecord, found: Fid | None) -> Fid:
        for candidate, fits in ((record.fid, self._can_stay), (found, self._can_become)):
            now = self._now.find_record(candidate) if candidate is not None else None
            if now is None or now.fid in self._kept or not _is_alike(now, record):
                continue
            if fits(now, record):
                self._kept.add(now.fid)
                self._files.records[now.fid] = record
                self._note_change(now, record)
                return now.fid
        return self._new_fid(record)

    def _can_stay(self, now: InodeRecord, then: InodeRecord) -> bool:
        """Returns True if the file is below the path and what it is outside is the path's, too; or
        if it is outside, was so then, and is the same still."""
        if now.fid == ROOT_FID:
            return True
        outside = self._outside(now)
        shared = {self._then_outside(dentry) for dentry in then.links} & set(outside)
        if now.type == S_IFDIR:
            return not outside
        is_same = _attributes(now) == _attributes(then) and now.content == then.content
        if len(outside) == len(now.links):
            return is_same and bool(shared)
        return is_same or not outside or bool(shared)

    def _can_become(self, now: InodeRecord, then: InodeRecord) -> bool:
        """Returns True if a file that has another's name now can become that."""
        was = self._then.find_record(now.fid)
        if was is not None and any(self._was_below(dentry) for dentry in was.links):
            return False  # it is wanted itself
        return not self._outside(now)

    def _outside(self, now: InodeRecord) -> list[Dentry]:
        """Returns the names of a file now that are neither the path nor below it."""
        return [
            dentry
            for dentry in now.links
            if dentry != self._dentry
            and dentry not in self._leftover
            and not self._is_below(dentry[0])
        ]

    def _is_below(self, directory: Fid) -> bool:
        """Returns True if *directory* is the path, or below it, now."""
        way = []
        while directory not in self._is_inside:
            if directory in self._roots or directory == ROOT_FID:
                self._is_inside[directory] = directory in self._roots
                break
            way.append(directory)
            directory = self._now.record(directory).links[0][0]
        is_inside = self._is_inside[directory]
        self._is_inside.update((fid, is_inside) for fid in way)
        return is_inside

    def _was_below(self, dentry: Dentry) -> bool:
        """Returns True if a name was the path, or below it, then."""
        if dentry == self._top_dentry():
            return True
        way, directory = [], dentry[0]
        while directory not in self._was_inside:
            if directory == self._top.fid:
                self._was_inside[directory] = True
                break
            way.append(directory)
            directory = self._then.record(directory).links[0][0]
        is_inside = self._was_inside[directory]
        self._was_inside.update((fid, is_inside) for fid in way)
        return is_inside

    def _top_dentry(self) -> Dentry | None:
        if not self._path:
            return None
        above, _, name = self._path.rpartition(b"/")
        return self._then.find(above).fid, name

    def _then_outside(self, dentry: Dentry) -> Dentry | None:
        return None if self._was_below(dentry) else dentry

    def _new_fid(self, record: InodeRecord) -> Fid:
        is_taken = self._now.find_record(record.fid) is not None
        fid = Fid(record.fid + _NEW_FID) if is_taken else record.fid
        self._names.new.add(fid)
        self._files.records[fid] = record
        return fid

    # -- names -------------------------------------------------------------------------------------

    def _walk(self, top: InodeRecord, stand_in: Fid, path: bytes) -> None:
        """Compares directory *top* as it was, and all below, with what there is."""
        todo = [(top, stand_in, path)]
        while todo:
            record, fid, path = todo.pop()
            if record.type != S_IFDIR:
                continue
            now = {} if fid in self._names.new else dict(self._now.children(fid))
            for name, child in self._then.children(record.fid):
                found = now.pop(name, None)
                if found == child and child not in self._differing and fid == record.fid:
                    self._kept.add(child)
                    continue
                below = path + b"/" + name if path else name
                is_first = child not in self._stands_for
                wanted = self._then.record(child)
                there = self._stand_in(wanted, found)
                if there != found:
                    self._put((fid, name), there, wanted, below)
                    if found is not None:
                        self._leftover[fid, name] = found
                if is_first:
                    todo.append((wanted, there, below))
            for name, found in now.items():
                if fid == ROOT_FID and _is_at_work(name):
                    continue
                self._leftover[fid, name] = found

    def _put(self, dentry: Dentry, fid: Fid, record: InodeRecord, path: bytes) -> None:
        """Plans that a name is to stand for *fid*."""
        self._names.wanted[dentry] = fid
        if fid in self._names.new:
            size = 0 if fid in self._made else record.size
            self._made.add(fid)
            self._plan.changes.append(PathChange("create", path, written_bytes=size))
            return
        now = self._now.record(fid)
        old = self._now.path(*now.links[0])
        what: InPlaceStep = "move" if len(record.links) == len(now.links) == 1 else "link"
        self._plan.changes.append(PathChange(what, path, old))

    def _remove_leftover(self) -> None:
        """Plans that all goes which was not there then."""
        todo = list(self._leftover.items())
        moved = {fid for fid in self._names.wanted.values() if fid is not None}
        while todo:
            dentry, fid = todo.pop()
            self._names.now[dentry] = fid
            if dentry in self._leftover:
                self._names.wanted.setdefault(dentry, None)
            if fid not in self._kept:
                self._plan.changes.append(PathChange("remove", self._now.path(*dentry)))
                if self._now.record(fid).type == S_IFDIR:
                    todo += [((fid, name), child) for name, child in self._now.children(fid)]
            elif fid not in moved:
                self._plan.changes.append(PathChange("remove", self._now.path(*dentry)))

    def _note_dentries(self) -> None:
        for fid in {*self._names.wanted.values(), *self._names.now.values()} - self._names.new:
            if fid is not None and (record := self._now.find_record(fid)) is not None:
                self._names.dentries[fid] = list(record.links)
        for parent, _ in self._names.wanted:
            if parent not in self._names.new:
                self._plan.directories.add(parent)

    # -- what files are ----------------------------------------------------------------------------

    def _note_change(self, now: InodeRecord, then: InodeRecord) -> None:
        """Plans what changes of a file itself."""
        if then.mode is None:
            return
        if now.type == S_IFDIR:
            if now.mtime_ns != then.mtime_ns:
                self._plan.directories.add(now.fid)
            if _attributes(now)[:-1] == _attributes(then)[:-1]:
                return
        is_written = now.type == S_IFREG and now.content != then.content
        if not is_written and _attributes(now) == _attributes(then):
            return
        self._plan.changed.add(now.fid)
        size = 0
        if is_written:
            self._plan.with_content.add(now.fid)
            parts = unlike_parts(self._then, then, self._now, now)
            size = sum(length for _, id_, length in parts if id_ is not None)
        what: InPlaceStep = "rewrite" if is_written else "attributes"
        path = self._now.path(*now.links[0]) if now.links else b""
        shared = tuple(sorted(self._now.path(*dentry) for dentry in self._outside(now)))
        self._plan.changes.append(PathChange(what, path, None, size, shared))


def _attributes(record: InodeRecord) -> tuple[object, ...]:
    whole = record.mode, record.uid, record.gid, record.xattrs, record.file_flags, record.size
    return *whole, record.mtime_ns


def _is_alike(one: InodeRecord, other: InodeRecord) -> bool:
    """Returns True if the one can become the other without being made anew."""
    return (one.type, one.rdev, one.target) == (other.type, other.rdev, other.target)


def _is_at_work(name: bytes) -> bool:
    """Returns True if *name* is the private directory of a process that has not ended."""
    found = PRIVATE_NAME.fullmatch(name)
    return found is not None and Path(f"/proc/{int(found[1])}").exists()
