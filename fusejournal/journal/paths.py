"""Which path a fid had at each moment, followed along the entries. Pure; for everything that shows
entries to people.

Feed it entries in order, from a segment's beginning at least: a segment tells the path of every
fid it touches for the first time, and names made, moved and removed since follow from the entries
themselves."""

from fusejournal.journal.format import Entry
from fusejournal.operations import (
    RENAME_EXCHANGE,
    Create,
    Import,
    ImportLink,
    Link,
    Mkdir,
    Operation,
    Rename,
    Rmdir,
    Symlink,
    Unlink,
)
from fusejournal.types import ROOT_FID, Fid


class PathTracker:
    """Follows names. A fid is known by one of its names; directories carry what is below them
    along."""

    def __init__(self) -> None:
        self._places: dict[Fid, tuple[Fid, bytes]] = {}
        self._told: dict[Fid, bytes] = {}

    def path(self, fid: Fid) -> bytes | None:
        """The path of *fid* now, relative to the root (``b""``), or None when it is not known."""
        parts: list[bytes] = []
        while fid != ROOT_FID:
            place = self._places.get(fid)
            if place is None:
                told = self._told.get(fid)
                return (
                    None
                    if told is None
                    else b"/".join([told, *reversed(parts)] if told else parts[::-1])
                )
            fid, name = place
            parts.append(name)
        return b"/".join(reversed(parts))

    def path_of(self, operation: Operation) -> bytes | None:
        """The path that an entry with *operation* is about, before :meth:`follow` has taken it
        in."""
        if isinstance(
            operation,
            Create | Mkdir | Symlink | Link | Unlink | Rmdir | Rename | Import | ImportLink,
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
            if fid not in self._places:
                self._told[fid] = path

    def follow(self, operation: Operation) -> None:
        """Take in what an entry that held did to names."""
        match operation:
            case Create() | Mkdir() | Symlink() | Import() | Link() | ImportLink():
                self._set(operation.fid, operation.parent, operation.name)
            case Rename():
                if operation.replaced and operation.flags & RENAME_EXCHANGE:
                    self._set(operation.replaced, operation.parent, operation.name)
                elif operation.replaced:
                    self._drop(operation.replaced, operation.new_parent, operation.new_name)
                self._set(operation.fid, operation.new_parent, operation.new_name)
            case Unlink() | Rmdir():
                self._drop(operation.fid, operation.parent, operation.name)

    def _set(self, fid: Fid, parent: Fid, name: bytes) -> None:
        self._places[fid] = (parent, name)
        self._told.pop(fid, None)

    def _drop(self, fid: Fid, parent: Fid, name: bytes) -> None:
        if self._places.get(fid) == (parent, name):
            del self._places[fid]
