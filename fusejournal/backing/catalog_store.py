"""The store of the catalog: nodes by fid, names by directory, and each directory in the order of
its cookies, in an LMDB environment, with a bounded cache of nodes before it.

Every change happens in one long write transaction, committed by :meth:`CatalogStore.commit`
together with the seq it reflects. A commit reaches the page cache, which outlives a process
crash; :meth:`CatalogStore.sync` (blocking, in a thread) makes commits durable. The environment is
opened without LMDB's own fsyncs, so after a system crash it is thrown away.

Called from the event loop's thread only, except for ``sync``. The file itself: catalog_file.py.

Databases (integers big-endian, so that keys sort by number):

=========  ===============================  ===========================================
name       key                              value
=========  ===============================  ===========================================
nodes      fid                              ``_NODE`` + backing handle
names      parent fid + name                fid + cookie
order      parent fid + cookie              fid + name
links      fid + parent fid + cookie        empty; names beyond the node's own dentry
meta       a word                           applied seq, checkpoint seq, next fid, flags
=========  ===============================  ===========================================

What is changed, and when, is the catalog's affair (catalog.py)."""

import errno
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_IFDIR
from typing import Any, NamedTuple

import lmdb

from fusejournal.backing.catalog_file import (
    DATA,
    break_seal,
    end_of_pages,
    is_sealed,
    open_environment,
    opening,
    seal,
)
from fusejournal.disk import calls, failpoints
from fusejournal.file_operations import JOURNALED_FLAGS, LOCKING_FLAGS
from fusejournal.types import ROOT_FID, Epoch, Fid, Seq, first_fid

_U64 = struct.Struct(">Q")
_PAIR = struct.Struct(">QQ")
_TRIPLE = struct.Struct(">QQQ")
# type bits, flags (bit 0: complete; from bit 1 on the journaled file flags), ctime, seq of the last
# entry, parent, cookie of the node's own dentry, backing inode number
_NODE = struct.Struct("<IIqQQQQ")

_FLAG_COMPLETE = 1
_FILE_FLAGS_AT = 1

# A NamedTuple's own constructor takes twice the time, and a listing makes one for each name.
_new: Any = tuple.__new__

_NODES_CACHED = 32_768
_SPARE_BYTES = 8 << 20
_SCAN_FIDS = 4096
_PATH_BYTES_MAX = 64 << 10
_CHANGED_BYTES = 4 * 4096  # an entry touches some four pages
_ADDED_BYTES = 512


COMMIT_CHANGES = 2_000
"""Commit when this many entries were recorded: LMDB keeps what a transaction changed in memory."""


@contextmanager
def _as_os_error() -> Iterator[None]:
    """LMDB's errors have no errno of their own: what is left to fail here is the disk."""
    try:
        yield
    except lmdb.Error as error:
        raise OSError(errno.EIO, str(error)) from error


class CatalogNode:
    """One file of the volume as the catalog knows it. Change it only through the catalog, then
    ``touch`` it."""

    __slots__ = (
        "capability",
        "complete",
        "cookie",
        "ctime_ns",
        "default_acl",
        "fid",
        "file_flags",
        "handle",
        "ino",
        "last_seq",
        "parent",
        "type",
    )

    def __init__(
        self,
        fid: Fid,
        type_: int,
        ctime_ns: int,
        last_seq: Seq,
        parent: Fid,
        cookie: int,
        handle: bytes = b"",
        ino: int = 0,
        complete: bool = True,
    ) -> None:
        """A node of which no file flags are known.

        Args:
            fid, type_: its id, and its type as bits of a mode.
            ctime_ns, last_seq: the time of the last entry about it, since 1970, and that entry.
            parent, cookie: the directory of its own dentry, 0 for none; and where it stands there.
            handle, ino: of its object in the backing; not known yet.
            complete: all of its content is in the journal.
        """
        self.fid = fid
        self.type = type_
        self.ctime_ns = ctime_ns
        self.last_seq = last_seq
        self.parent = parent
        """Directory of the node's own dentry; 0 when it has no name left."""
        self.cookie = cookie
        self.handle = handle
        """Backing handle; empty until the backing has been looked at."""
        self.ino = ino
        self.complete = complete
        """False while an imported file's content is not wholly in the journal."""
        self.file_flags = 0
        """The flags that entries record (file_operations.py)."""
        self.default_acl: bytes | None = None
        """A directory's default ACL: empty for none, None when not yet read. Not stored."""
        self.capability: bytes | None = None
        """A regular file's security.capability, in the same way."""

    def note_change(self, time_ns: int) -> None:
        """Note that the file changed at *time_ns*, by no entry: it has no name."""
        self.ctime_ns = time_ns


class DirectoryEntry(NamedTuple):
    """One name in a directory."""

    name: bytes
    fid: Fid
    cookie: int


class CatalogStore:
    """A store in a directory of its own. ``applied_seq`` is the last entry recorded;
    ``checkpoint_seq`` the last one known on disk."""

    def __init__(self, directory: Path, on_commit_due: Callable[[], None] = lambda: None) -> None:
        """*on_commit_due* is called when COMMIT_CHANGES entries were recorded since a commit.
        Raises CatalogSpoiltError when what is there is no catalog, OSError."""
        self._directory = directory
        self._env = open_environment(directory)
        self._is_sealed = is_sealed(directory)
        try:
            with opening(directory):
                self._nodes_db, self._names_db, self._order_db, self._links_db, self._meta_db = (
                    self._env.open_db(name)
                    for name in (b"nodes", b"names", b"order", b"links", b"meta")
                )
        except BaseException:
            self._env.close()  # another may be made in its place, and needs the address space
            raise
        self._txn = self._env.begin(write=True)
        self._nodes: dict[Fid, CatalogNode] = {}
        self._dirty: dict[Fid, CatalogNode] = {}
        self.changes = 0
        """Entries recorded since the last commit."""
        self._on_commit_due = on_commit_due
        self.applied_seq = Seq(self._meta("applied"))
        self.checkpoint_seq = Seq(self._meta("checkpoint"))
        self.imported = bool(self._meta("imported"))
        """True if everything that was in the backing first is in the journal."""
        self.lacks_handles = bool(self._meta("lacks_handles"))
        """True if nodes were committed whose backing handles are still to be found."""
        self.has_locked = bool(self._meta("has_locked"))
        """True if a file was ever made immutable or append-only."""
        self.next_fid = Fid(self._meta("next_fid") or first_fid(Epoch(1)))

    # -- transactions ------------------------------------------------------------------------------

    def commit(self) -> None:
        """Put everything recorded so far into the page cache, in one step. Raises OSError: ENOSPC
        when the disk is full, the transaction then goes on and the next commit tries again; EIO
        when LMDB gave it up."""
        self._flush_nodes()
        for word in ("applied_seq", "checkpoint_seq", "next_fid"):
            self._txn.put(
                word.removesuffix("_seq").encode(), _U64.pack(getattr(self, word)), db=self._meta_db
            )
        for flag in ("imported", "lacks_handles", "has_locked"):
            self._txn.put(flag.encode(), _U64.pack(getattr(self, flag)), db=self._meta_db)
        # Space first: an LMDB commit that fails takes the whole transaction with it.
        self._reserve()
        if self._is_sealed:
            break_seal(self._directory)
            self._is_sealed = False
        failpoints.reached("catalog.commit")
        with _as_os_error():
            try:
                self._txn.commit()
            finally:
                self._txn = self._env.begin(write=True)
        self.changes = 0

    def sync(self) -> None:
        """Make all commits durable. Blocks: call it in a thread."""
        failpoints.reached("catalog.sync")
        with _as_os_error():
            self._env.sync(True)

    def seal(self) -> None:
        """Have the next opening know what is committed now by its checksum. Blocks. Raises
        OSError."""
        seal(self._directory, self._env)
        self._is_sealed = True

    def close(self) -> None:
        """Give up what was not committed and close the environment."""
        self._txn.abort()
        self._env.close()

    def _reserve(self) -> None:
        """Lengthen the data file by blocks past its last page, so that the commit's writes cannot
        meet a full disk. Of pages that a transaction both takes and frees LMDB writes nothing:
        without that the file could be shorter than its last page, as one that was cut is."""
        end = end_of_pages(self._env)
        # LMDB writes every page it changes anew, but none twice.
        need = min(self.changes * _CHANGED_BYTES, end) + self.changes * _ADDED_BYTES
        with open(self._directory / DATA, "r+b", buffering=0) as data:
            calls.fallocate("catalog.reserve", data.fileno(), end, _SPARE_BYTES + need, flags=0)

    def _meta(self, word: str) -> int:
        value = self._txn.get(word.encode(), db=self._meta_db)
        return int(_U64.unpack(value)[0]) if value is not None else 0

    # -- nodes -------------------------------------------------------------------------------------

    def node(self, fid: Fid) -> CatalogNode | None:
        """The node of *fid*, or None when no name has it any more (or ever had)."""
        node = self._nodes.get(fid)
        if node is not None:
            return node
        value = self._txn.get(_U64.pack(fid), db=self._nodes_db)
        if value is None:
            return None
        type_, flags, ctime_ns, last_seq, parent, cookie, ino = _NODE.unpack_from(value)
        handle, complete = value[_NODE.size :], bool(flags & _FLAG_COMPLETE)
        node = CatalogNode(fid, type_, ctime_ns, last_seq, parent, cookie, handle, ino, complete)
        node.file_flags = flags >> _FILE_FLAGS_AT
        self._remember(node)
        return node

    def change_time(self, fid: Fid) -> int | None:
        """The ctime of *fid* in nanoseconds, without a place in the cache (for listings); None
        when it is gone."""
        node = self._nodes.get(fid)
        if node is not None:
            return node.ctime_ns
        value = self._txn.get(_U64.pack(fid), db=self._nodes_db)
        return None if value is None else int(_NODE.unpack_from(value)[2])

    def touch(self, node: CatalogNode) -> None:
        """Note that *node* was changed and must reach the next commit."""
        self._dirty[node.fid] = node

    def note_object(self, node: CatalogNode, handle: bytes, ino: int) -> None:
        """*node*'s object in the backing has this *handle* and inode number."""
        node.handle, node.ino = handle, ino
        self._dirty[node.fid] = node

    def note_checkpoint(self, seq: Seq) -> None:
        """Everything up to *seq*, which is recorded, is on the disk."""
        assert seq <= self.applied_seq, "what is not applied is not on the disk"
        self.checkpoint_seq = seq

    def end_import(self) -> None:
        """Everything that was in the backing first is in the journal."""
        self.imported = True

    def note_handles(self, *, have_all: bool) -> None:
        """All handles were looked for, or nodes are about to be committed that lack theirs yet."""
        self.lacks_handles = not have_all

    def add_root(self, handle: bytes, ino: int) -> None:
        """Enter the root directory of a new volume."""
        self._add(CatalogNode(ROOT_FID, S_IFDIR, 0, Seq(0), ROOT_FID, 0, handle, ino))

    def _touched(self, fid: Fid, seq: Seq, time_ns: int) -> CatalogNode:
        node = self._nodes.get(fid) or self.node(fid)
        if node is None:
            raise KeyError(fid)
        node.ctime_ns = time_ns
        node.last_seq = seq
        self._dirty[fid] = node
        return node

    def _add_at(self, node: CatalogNode, seq: Seq, time_ns: int, *, complete: bool) -> None:
        node.ctime_ns, node.last_seq, node.complete = time_ns, seq, complete
        self._add(node)

    def _note_content(self, node: CatalogNode, *, complete: bool) -> None:
        node.complete = complete

    def _add(self, node: CatalogNode) -> None:
        self._remember(node)
        self._dirty[node.fid] = node

    def _remember(self, node: CatalogNode) -> None:
        if len(self._nodes) >= _NODES_CACHED:
            self._flush_nodes()
            for fid in list(self._nodes)[: _NODES_CACHED // 2]:
                del self._nodes[fid]
        self._nodes[node.fid] = node

    def _flush_nodes(self) -> None:
        put = self._txn.put
        for node in self._dirty.values():
            flags = node.file_flags << _FILE_FLAGS_AT | (_FLAG_COMPLETE if node.complete else 0)
            head = _NODE.pack(
                node.type, flags, node.ctime_ns, node.last_seq, node.parent, node.cookie, node.ino
            )
            put(_U64.pack(node.fid), head + node.handle, db=self._nodes_db)
        self._dirty.clear()

    def _forget(self, fid: Fid) -> None:
        self._nodes.pop(fid, None)
        self._dirty.pop(fid, None)
        self._txn.delete(_U64.pack(fid), db=self._nodes_db)

    def note_flags(self, node: CatalogNode, flags: int) -> None:
        """*node* has these file flags from now on. (If it has a name, say :meth:`touch`.)"""
        node.file_flags = flags & JOURNALED_FLAGS
        self.has_locked |= bool(flags & LOCKING_FLAGS)

    def locked_files(self) -> list[tuple[Fid, int]]:
        """The files that are immutable or append-only, with their flags."""
        if not self.has_locked:
            return []
        self._flush_nodes()
        found: list[tuple[Fid, int]] = []
        with self._txn.cursor(db=self._nodes_db) as cursor:
            for key, value in cursor:
                flags = _NODE.unpack_from(value)[1] >> _FILE_FLAGS_AT
                if flags & LOCKING_FLAGS:
                    found.append((Fid(_U64.unpack(key)[0]), flags))
        return found

    def fids_without_handle(self) -> Iterator[Fid]:
        """Every fid whose backing handle is not known. The catalog may change meanwhile."""
        after = 0
        while True:
            self._flush_nodes()
            found: list[Fid] = []
            with self._txn.cursor(db=self._nodes_db) as cursor:
                more = cursor.set_range(_U64.pack(after + 1))
                while more and len(found) < _SCAN_FIDS:
                    after = _U64.unpack(cursor.key())[0]
                    if len(cursor.value()) == _NODE.size:
                        found.append(Fid(after))
                    more = cursor.next()
            yield from found
            if not more:
                return

    # -- names -------------------------------------------------------------------------------------

    def lookup(self, parent: Fid, name: bytes) -> Fid | None:
        """The fid that *name* stands for in *parent*."""
        value = self._txn.get(_U64.pack(parent) + name, db=self._names_db)
        return None if value is None else Fid(_PAIR.unpack(value)[0])

    def list(self, parent: Fid, after_cookie: int) -> Iterator[DirectoryEntry]:
        """The names in *parent* with cookies above *after_cookie*, in order. The catalog must not
        change meanwhile."""
        prefix = _U64.pack(parent)
        with self._txn.cursor(db=self._order_db) as cursor:
            if not cursor.set_range(_PAIR.pack(parent, after_cookie + 1)):
                return
            for key, value in cursor:
                if not key.startswith(prefix):
                    return
                fid, cookie = _U64.unpack_from(value)[0], _U64.unpack_from(key, 8)[0]
                yield _new(DirectoryEntry, (value[8:], fid, cookie))

    def is_empty(self, parent: Fid) -> bool:
        """Returns whether no name is left in *parent*."""
        return next(self.list(parent, 0), None) is None

    def dentry(self, node: CatalogNode) -> tuple[Fid, bytes] | None:
        """A (parent, name) of *node*, or None when it has none (or is the root)."""
        value = self._txn.get(_PAIR.pack(node.parent, node.cookie), db=self._order_db)
        return None if value is None else (node.parent, value[8:])

    def path(self, fid: Fid) -> bytes | None:
        """The path of *fid* relative to the root (``b""`` for the root itself), or None when it has
        no name, or a path of more than 64 KiB, which no entry records."""
        parts: list[bytes] = []
        length = 0
        while fid != ROOT_FID:
            node = self.node(fid)
            dentry = self.dentry(node) if node is not None else None
            if dentry is None or length > _PATH_BYTES_MAX:
                return None
            fid, name = dentry
            parts.append(name)
            length += len(name) + 1
        return b"/".join(reversed(parts))

    def dentries(self, node: CatalogNode) -> Iterator[tuple[Fid, bytes]]:
        """Every (parent, name) of *node*. The catalog must not change meanwhile."""
        for parent, cookie in ((node.parent, node.cookie), *self._extra_dentries(node.fid)):
            value = self._txn.get(_PAIR.pack(parent, cookie), db=self._order_db)
            if value is not None:
                yield Fid(parent), value[8:]

    def _extra_dentries(self, fid: Fid) -> Iterator[tuple[Fid, int]]:
        prefix = _U64.pack(fid)
        with self._txn.cursor(db=self._links_db) as cursor:
            if cursor.set_range(prefix):
                for key in cursor.iternext(values=False):
                    if not key.startswith(prefix):
                        return
                    _, parent, cookie = _TRIPLE.unpack(key)
                    yield Fid(parent), cookie

    def _add_name(self, node: CatalogNode, parent: Fid, name: bytes, cookie: int) -> None:
        self._put_name(node, parent, name, cookie)
        if node.parent:
            self._txn.put(_TRIPLE.pack(node.fid, parent, cookie), b"", db=self._links_db)
        else:
            node.parent = parent
            node.cookie = cookie

    def _put_name(self, node: CatalogNode, parent: Fid, name: bytes, cookie: int) -> None:
        self._txn.put(_U64.pack(parent) + name, _PAIR.pack(node.fid, cookie), db=self._names_db)
        self._txn.put(_PAIR.pack(parent, cookie), _U64.pack(node.fid) + name, db=self._order_db)

    def _remove_name(self, node: CatalogNode, parent: Fid, name: bytes) -> int:
        """Take a name away; the node gets another of its names as its own dentry, or parent 0.
        Returns the cookie."""
        value = self._txn.pop(_U64.pack(parent) + name, db=self._names_db)
        if value is None:
            raise KeyError((parent, name))
        cookie: int = _PAIR.unpack(value)[1]
        self._txn.delete(_PAIR.pack(parent, cookie), db=self._order_db)
        if (node.parent, node.cookie) == (parent, cookie):
            other = next(self._extra_dentries(node.fid), None)
            node.parent, node.cookie = other or (Fid(0), 0)
            if other is not None:
                self._txn.delete(_TRIPLE.pack(node.fid, *other), db=self._links_db)
        else:
            self._txn.delete(_TRIPLE.pack(node.fid, parent, cookie), db=self._links_db)
        return cookie

    def _move_name(
        self,
        node: CatalogNode,
        parent: Fid,
        name: bytes,
        new_parent: Fid,
        new_name: bytes,
        new_cookie: int | None,
    ) -> None:
        """Give one of *node*'s names another directory, and the place there that *new_cookie*
        says, or, with None, another name at its place."""
        value = self._txn.pop(_U64.pack(parent) + name, db=self._names_db)
        if value is None:
            raise KeyError((parent, name))
        cookie: int = _PAIR.unpack(value)[1]
        if new_cookie is not None:
            self._txn.delete(_PAIR.pack(parent, cookie), db=self._order_db)
        to = cookie if new_cookie is None else new_cookie
        self._put_name(node, new_parent, new_name, to)
        if (node.parent, node.cookie) == (parent, cookie):
            node.parent, node.cookie = new_parent, to
        elif new_cookie is not None:
            self._txn.delete(_TRIPLE.pack(node.fid, parent, cookie), db=self._links_db)
            self._txn.put(_TRIPLE.pack(node.fid, new_parent, to), b"", db=self._links_db)
