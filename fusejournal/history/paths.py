"""Follows the path of each fid along the entries. Pure; used where entries are shown to people.

Feed it entries in order, from a segment's beginning at least: a segment records the path of every
fid it touches for the first time, and names made, moved and removed since follow from the entries
themselves. The steps of a told path are dentries, too, whose fids may not be known yet, so that
what is recorded moves along with a directory above it."""

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


class _Dentry:
    """A name in a directory."""

    __slots__ = ("children", "fid", "name", "parent")

    def __init__(self, parent: "_Dentry | None", name: bytes) -> None:
        self.parent = parent
        self.name = name
        self.fid: Fid | None = None
        self.children: dict[bytes, _Dentry] | None = None

    def child(self, name: bytes) -> "_Dentry":
        """The dentry of *name* below this one, made if it is not known."""
        if self.children is None:
            self.children = {}
        dentry = self.children.get(name)
        if dentry is None:
            dentry = self.children[name] = _Dentry(self, name)
        return dentry

    def path(self) -> bytes | None:
        """Returns its path from the root; None below a name that is gone."""
        parts: list[bytes] = []
        dentry = self
        while dentry.parent is not None:
            parts.append(dentry.name)
            dentry = dentry.parent
        if dentry.fid != ROOT_FID:
            return None
        parts.reverse()
        return b"/".join(parts)

    def cut(self) -> None:
        """Take the name away."""
        if self.parent is not None and self.parent.children is not None:
            self.parent.children.pop(self.name, None)
        self.parent = None

    def put(self, parent: "_Dentry", name: bytes) -> None:
        """Give it this name instead."""
        self.cut()
        if parent.children is None:
            parent.children = {}
        parent.children[name] = self
        self.parent, self.name = parent, name


class PathTracker:
    """Follows names. A fid is shown by the first of its names that is known and left."""

    def __init__(self) -> None:
        root = _Dentry(None, b"")
        root.fid = ROOT_FID
        self._first: dict[Fid, _Dentry] = {ROOT_FID: root}
        self._further: dict[Fid, list[_Dentry]] = {}

    def path(self, fid: Fid) -> bytes | None:
        """The path of *fid* now, relative to the root (``b""``), or None when it is not known."""
        dentry = self._first.get(fid)
        return None if dentry is None else dentry.path()

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
        """Take in the paths that an entry records, as they were before it."""
        for fid, path in (entry.paths or {}).items():
            if fid not in self._first:
                dentry = self._first[ROOT_FID]
                for name in path.split(b"/"):
                    dentry = dentry.child(name)
                self._attach(fid, dentry)

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

    def _attach(self, fid: Fid, dentry: _Dentry) -> None:
        dentry.fid = fid
        if self._first.setdefault(fid, dentry) is not dentry:
            self._further.setdefault(fid, []).append(dentry)

    def _add(self, fid: Fid, parent: Fid, name: bytes) -> None:
        directory = self._first.get(parent)
        if directory is not None:
            self._attach(fid, directory.child(name))

    def _move(self, rename: Moving) -> None:
        old = self._find(rename.fid, rename.parent, rename.name)
        other: _Dentry | None = None
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

    def _find(self, fid: Fid, parent: Fid, name: bytes) -> _Dentry | None:
        """The dentry of *fid* with this very name, made if the fid was only told by another."""
        directory = self._first.get(parent)
        if directory is None:
            return None
        dentry = directory.child(name)
        if dentry.fid != fid:
            self._attach(fid, dentry)
        return dentry

    def _drop(self, fid: Fid, parent: Fid, name: bytes) -> None:
        directory = self._first.get(parent)
        dentry = (directory.children or {}).get(name) if directory is not None else None
        if dentry is None:
            return
        dentry.cut()
        further = self._further.get(fid)
        if self._first.get(fid) is dentry:
            del self._first[fid]
            if further:
                self._first[fid] = further.pop(0)
        elif further and dentry in further:
            further.remove(dentry)
        if not further:
            self._further.pop(fid, None)
