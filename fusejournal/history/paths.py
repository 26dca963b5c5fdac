"""Follows the path of each fid along the entries. Pure; used where entries are shown to people.

Feed it entries in order, from a segment's beginning at least: a segment tells the path of every
fid it touches for the first time, and names made, moved and removed since follow from the entries
themselves. The steps of a told path are places, too, whose fids may not be known yet, so that
what is told moves along with a directory above it."""

from fusejournal.journal.format import Entry
from fusejournal.operations import (
    RENAME_EXCHANGE,
    Create,
    Import,
    ImportLink,
    Link,
    Mkdir,
    Moving,
    Operation,
    Rename,
    Rmdir,
    Symlink,
    Unlink,
    Whiteout,
)
from fusejournal.types import ROOT_FID, Fid


class _Place:
    """A name in a directory."""

    __slots__ = ("children", "fid", "name", "parent")

    def __init__(self, parent: "_Place | None", name: bytes) -> None:
        self.parent = parent
        self.name = name
        self.fid: Fid | None = None
        self.children: dict[bytes, _Place] | None = None

    def child(self, name: bytes) -> "_Place":
        """The place of *name* below this one, made if it is not known."""
        if self.children is None:
            self.children = {}
        place = self.children.get(name)
        if place is None:
            place = self.children[name] = _Place(self, name)
        return place

    def path(self) -> bytes | None:
        """Returns its path from the root; None below a name that is gone."""
        parts: list[bytes] = []
        place = self
        while place.parent is not None:
            parts.append(place.name)
            place = place.parent
        if place.fid != ROOT_FID:
            return None
        parts.reverse()
        return b"/".join(parts)

    def cut(self) -> None:
        """Take the name away."""
        if self.parent is not None and self.parent.children is not None:
            self.parent.children.pop(self.name, None)
        self.parent = None

    def put(self, parent: "_Place", name: bytes) -> None:
        """Give it this name instead."""
        self.cut()
        if parent.children is None:
            parent.children = {}
        parent.children[name] = self
        self.parent, self.name = parent, name


class PathTracker:
    """Follows names. A fid is shown by the first of its names that is known and left."""

    def __init__(self) -> None:
        root = _Place(None, b"")
        root.fid = ROOT_FID
        self._first: dict[Fid, _Place] = {ROOT_FID: root}
        self._further: dict[Fid, list[_Place]] = {}

    def path(self, fid: Fid) -> bytes | None:
        """The path of *fid* now, relative to the root (``b""``), or None when it is not known."""
        place = self._first.get(fid)
        return None if place is None else place.path()

    def path_of(self, operation: Operation) -> bytes | None:
        """The path that an entry with *operation* is about, before :meth:`follow` has taken it
        in."""
        if isinstance(
            operation,
            Create | Mkdir | Symlink | Link | Unlink | Rmdir | Moving | Import | ImportLink,
        ):
            return self.join(operation.parent, operation.name)
        fid = getattr(operation, "fid", None)
        return None if fid is None else self.path(fid)

    def join(self, parent: Fid, name: bytes) -> bytes | None:
        """The path of *name* in directory *parent*."""
        directory = self.path(parent)
        if directory is None:
            return None
        return directory + b"/" + name if directory else name

    def learn(self, entry: Entry) -> None:
        """Take in the paths that an entry tells, as they were before it."""
        for fid, path in (entry.paths or {}).items():
            if fid not in self._first:
                place = self._first[ROOT_FID]
                for name in path.split(b"/"):
                    place = place.child(name)
                self._attach(fid, place)

    def follow(self, operation: Operation) -> None:
        """Take in what an entry that held did to names."""
        match operation:
            case Create() | Mkdir() | Symlink() | Import() | Link() | ImportLink():
                self._add(operation.fid, operation.parent, operation.name)
            case Rename():
                self._move(operation)
            case Whiteout():
                self._move(operation)
                self._add(operation.whiteout, operation.parent, operation.name)
            case Unlink() | Rmdir():
                self._drop(operation.fid, operation.parent, operation.name)

    def _attach(self, fid: Fid, place: _Place) -> None:
        place.fid = fid
        if self._first.setdefault(fid, place) is not place:
            self._further.setdefault(fid, []).append(place)

    def _add(self, fid: Fid, parent: Fid, name: bytes) -> None:
        directory = self._first.get(parent)
        if directory is not None:
            self._attach(fid, directory.child(name))

    def _move(self, rename: Moving) -> None:
        old = self._find(rename.fid, rename.parent, rename.name)
        other: _Place | None = None
        if rename.replaced:
            other = self._find(rename.replaced, rename.new_parent, rename.new_name)
        if rename.replaced and not rename.flags & RENAME_EXCHANGE:
            self._drop(rename.replaced, rename.new_parent, rename.new_name)
            other = None
        directory = self._first.get(rename.new_parent)
        if old is not None and directory is not None:
            old.put(directory, rename.new_name)
        old_directory = self._first.get(rename.parent)
        if other is not None and old_directory is not None:
            # Its own name may be taken by now, and must not be cut with it.
            other.parent = None
            other.put(old_directory, rename.name)

    def _find(self, fid: Fid, parent: Fid, name: bytes) -> _Place | None:
        """The place of *fid* with this very name, made if the fid was only told by another."""
        directory = self._first.get(parent)
        if directory is None:
            return None
        place = directory.child(name)
        if place.fid != fid:
            self._attach(fid, place)
        return place

    def _drop(self, fid: Fid, parent: Fid, name: bytes) -> None:
        directory = self._first.get(parent)
        place = (directory.children or {}).get(name) if directory is not None else None
        if place is None:
            return
        place.cut()
        further = self._further.get(fid)
        if self._first.get(fid) is place:
            del self._first[fid]
            if further:
                self._first[fid] = further.pop(0)
        elif further and place in further:
            further.remove(place)
        if not further:
            self._further.pop(fid, None)
