"""The catalog: fid -> node, (parent, name) -> fid, and each directory in the order of its cookies.

It changes no file of the backing. It is a cache of what journal and backing say:
:meth:`Catalog.record` takes one entry and brings the catalog to the state after it, by the entry
alone, so that a lost or stale catalog is made good by recording the journal again. What an entry
cannot tell, the backing handle of a new object, is filled in by the caller that knows it (the
applier, or recovery's look at the backing). How it is kept is the store's affair
(catalog_store.py).

A cookie is a name's place in its directory: 4 + twice the seq of the entry that made the name
(plus one for the second name of an exchange). A rename within one directory keeps the cookie, so
that a reader who renames as it reads comes to an end. Source: readdir(2); the kernel's nfsd
refuses cookies 1 and 2."""

from collections.abc import Callable
from pathlib import Path
from stat import S_IFDIR, S_IFLNK, S_IFMT
from typing import Any

from fusejournal.backing.catalog_store import COMMIT_CHANGES, CatalogNode, CatalogStore
from fusejournal.disk.errnos import NO_SPACE
from fusejournal.file_operations import SetFlags
from fusejournal.journal.base import BaseNode, JournalBase
from fusejournal.operations import (
    DATA_KINDS,
    MAKERS,
    REMOVALS,
    RENAME_EXCHANGE,
    DataOperation,
    Import,
    ImportData,
    ImportLink,
    Kind,
    Link,
    Making,
    Mkdir,
    Moving,
    NewEpoch,
    Operation,
    Removal,
    Symlink,
    TreeOperation,
    Whiteout,
    made_by,
)
from fusejournal.types import ROOT_FID, Fid, Seq, cookie_of, first_fid


class Catalog(CatalogStore):
    """A catalog in *directory*. See the module."""

    def __init__(self, directory: Path, on_commit_due: Callable[[], None] = lambda: None) -> None:
        """*on_commit_due* is called when much was recorded since the last commit. Raises
        CatalogSpoiltError when what is there is no catalog."""
        super().__init__(directory, on_commit_due)
        self.is_full = False
        """True while the catalog's disk has no space for what has to be committed, as
        :meth:`try_commit` has found. While it holds, changes that are no removals are refused."""
        self._recorders: dict[Kind, Callable[[Any, Seq, int, bytes, int], None]] = {
            **dict.fromkeys(DATA_KINDS, self._record_data),
            **dict.fromkeys(MAKERS, self._record_made),
            **dict.fromkeys(REMOVALS, self._record_removed),
            Kind.RENAME: self._record_rename,
            Kind.WHITEOUT: self._record_whiteout,
            Kind.LINK: self._record_link,
            Kind.IMPORT_LINK: self._record_link,
            Kind.IMPORT_DATA: self._record_imported_data,
            Kind.SETFLAGS: self._record_flags,
        }

    def record(
        self, operation: TreeOperation, seq: Seq, time_ns: int, handle: bytes = b"", ino: int = 0
    ) -> None:
        """Bring the catalog to the state after an entry that held. *handle* and *ino* are those of
        the object that the operation made, where they are known. Raises KeyError when catalog and
        journal contradict each other."""
        self._recorders[operation.kind](operation, seq, time_ns, handle, ino)
        self.applied_seq = seq
        self._note_change()

    def try_commit(self) -> None:
        """Commit, unless the disk is full: ``is_full`` records that. Raises OSError as
        :meth:`commit`, of any other failure."""
        try:
            self.commit()
        except OSError as error:
            self.is_full = True
            if error.errno not in NO_SPACE:
                raise
        else:
            self.is_full = False

    def record_base(
        self, node: BaseNode, base: JournalBase, handle: bytes = b"", ino: int = 0
    ) -> None:
        """Enter a file as it was at the journal's *base*, with its object in the backing, where
        that is known; the root is there already. A caller that has entered all calls
        :meth:`end_base`."""
        found = None
        if node.fid == ROOT_FID:
            found = self.node(ROOT_FID)
        if found is None:
            found = CatalogNode(node.fid, node.type, 0, base.seq, Fid(0), 0, handle, ino)
        for parent, name, cookie in node.dentries:
            self._add_name(found, parent, name, cookie)
        self._add_at(found, base.seq, base.time_ns, complete=node.complete)
        if node.flags:
            self.note_flags(found, node.flags)
        self._note_change()

    def end_base(self, base: JournalBase) -> None:
        """Everything at the journal's *base* is entered."""
        self.applied_seq = base.seq
        self.next_fid = max(self.next_fid, base.next_fid)

    def record_control(self, operation: Operation, seq: Seq) -> None:
        """An entry that changes no tree, or one that was refused: only the counters move. A
        refused operation's fid is never given again either."""
        if isinstance(operation, NewEpoch):
            self.next_fid = max(self.next_fid, first_fid(operation.epoch))
        elif (making := made_by(operation)) is not None:
            self.next_fid = max(self.next_fid, Fid(making.fid + 1))
        self.applied_seq = seq
        self._note_change()

    def _note_change(self) -> None:
        self.changes += 1
        if self.changes == COMMIT_CHANGES:
            self._on_commit_due()

    def _record_data(
        self, operation: DataOperation, seq: Seq, time_ns: int, _: bytes, __: int
    ) -> None:
        self._touched(operation.fid, seq, time_ns)

    def _record_flags(self, operation: SetFlags, seq: Seq, time_ns: int, _: bytes, __: int) -> None:
        self.note_flags(self._touched(operation.fid, seq, time_ns), operation.flags)

    def _record_link(
        self, operation: Link | ImportLink, seq: Seq, time_ns: int, _: bytes, __: int
    ) -> None:
        node = self._touched(operation.fid, seq, time_ns)
        self._add_name(node, operation.parent, operation.name, cookie_of(seq))
        self._touched(operation.parent, seq, time_ns)

    def _record_removed(
        self, operation: Removal, seq: Seq, time_ns: int, _: bytes, __: int
    ) -> None:
        node = self._touched(operation.fid, seq, time_ns)
        self._remove_name(node, operation.parent, operation.name)
        if not node.parent:
            self._forget(node.fid)
        self._touched(operation.parent, seq, time_ns)

    def _record_imported_data(
        self, operation: ImportData, seq: Seq, time_ns: int, _: bytes, __: int
    ) -> None:
        node = self._touched(operation.fid, seq, time_ns)
        self._note_content(node, complete=operation.complete)

    def _record_made(
        self,
        operation: Making,
        seq: Seq,
        time_ns: int,
        handle: bytes,
        ino: int,
    ) -> None:
        if isinstance(operation, Mkdir):
            type_ = S_IFDIR
        elif isinstance(operation, Symlink):
            type_ = S_IFLNK
        else:
            type_ = S_IFMT(operation.mode)
        complete = not isinstance(operation, Import) or operation.complete
        node = CatalogNode(operation.fid, type_, time_ns, seq, Fid(0), 0, handle, ino, complete)
        if not complete:
            self.imported = False  # until the importer says that it has all
        self._add_name(node, operation.parent, operation.name, cookie_of(seq))
        self._add(node)
        self.next_fid = max(self.next_fid, Fid(operation.fid + 1))
        self._touched(operation.parent, seq, time_ns)

    def _record_rename(self, operation: Moving, seq: Seq, time_ns: int, _: bytes, __: int) -> None:
        parent, name = operation.parent, operation.name
        new_parent, new_name = operation.new_parent, operation.new_name
        node = self._touched(operation.fid, seq, time_ns)
        same_directory = parent == new_parent
        other = self._touched(operation.replaced, seq, time_ns) if operation.replaced else None
        if other is not None and operation.flags & RENAME_EXCHANGE:
            cookie = self._remove_name(node, parent, name)
            other_cookie = self._remove_name(other, new_parent, new_name)
            if not same_directory:
                cookie, other_cookie = cookie_of(seq), cookie_of(seq) + 1
            self._add_name(node, new_parent, new_name, cookie)
            self._add_name(other, parent, name, other_cookie)
        else:
            if other is not None:
                self._remove_name(other, new_parent, new_name)
                if not other.parent:
                    self._forget(other.fid)
            new_cookie = None if same_directory else cookie_of(seq)
            self._move_name(node, parent, name, new_parent, new_name, new_cookie)
        self._touched(parent, seq, time_ns)
        self._touched(new_parent, seq, time_ns)
        # Each look-up may have pushed the others out of the cache, stored as they were then.
        for changed in (node, other):
            if changed is not None and changed.parent:
                self._add(changed)

    def _record_whiteout(
        self, operation: Whiteout, seq: Seq, time_ns: int, handle: bytes, ino: int
    ) -> None:
        self._record_rename(operation, seq, time_ns, b"", 0)
        self._record_made(operation.making, seq, time_ns, handle, ino)
