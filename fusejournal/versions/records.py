"""Records: what a version keeps of each file and each name, as keys and values of its two trees.

``inodes``: the key is the fid (8 bytes, big-endian), the value a msgpack array:

===== ========= ================================================================================
index field     what
===== ========= ================================================================================
0     mode      st_mode with the type; of the root nil while no entry records it
1, 2  uid, gid  nil as mode
3     rdev      the number of a device, else 0
4     size      bytes of a regular file's content, else 0
5     mtime     nanoseconds since 1970, signed; nil as mode
6     links     its names: an array of (parent fid, name), sorted
7     content   nil; bytes: a symlink's target, or a content of up to 128 bytes; an array: (0,
                items) or (1, id of the root of the list of items), an item being (id or nil for a
                hole, bytes)
8     xattrs    an array of (name, value), sorted, ACLs among them; or the id of the block with it
9     flags     bit 0: an import has not brought all of its content yet; from bit 1 on the file
                flags that entries have set (file_operations.py)
===== ========= ================================================================================

``names``: the key is the parent's fid (8 bytes, big-endian) and the name; the value fid and cookie
(8 bytes each, big-endian). A cookie is the name's place in its directory, as in the catalog."""

import struct
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from fusejournal.types import ROOT_FID, Fid
from fusejournal.versions.blocks import BlockReader, BlockWriter
from fusejournal.versions.chunk_list import ChunkItem, is_chunk_item
from fusejournal.versions.content import Content
from fusejournal.versions.packs import ID_BYTES, StoreDamagedError

if TYPE_CHECKING:
    from fusejournal.operations import Import

_FID = struct.Struct(">Q")
_NAME = struct.Struct(">QQ")
INODE_KEY_BYTES = _FID.size
NAME_VALUE_BYTES = _NAME.size
_INLINE_XATTR_BYTES_MAX = 64
_INCOMPLETE = 1
_FILE_FLAGS_AT = 1
_NUMBER_END = 1 << 63


class InodeRecord(NamedTuple):
    """One file or directory of a version."""

    fid: Fid
    mode: int | None
    uid: int | None
    gid: int | None
    rdev: int
    size: int
    mtime_ns: int | None
    links: tuple[tuple[Fid, bytes], ...]
    target: bytes | None
    content: Content | None
    """A regular file's."""
    xattrs: tuple[tuple[bytes, bytes], ...]
    complete: bool
    file_flags: int = 0

    @property
    def type(self) -> int:
        """The type bits of its mode."""
        return S_IFDIR if self.mode is None else S_IFMT(self.mode)

    def as_import(self, parent: Fid, name: bytes, *, complete: bool) -> "Import":
        """Returns the operation that makes it under this name; *complete*: no content follows."""
        # Only here: a restore needs no operations.
        from fusejournal.operations import Import

        assert self.mode is not None
        return Import(
            self.fid,
            parent,
            name,
            self.mode,
            self.uid or 0,
            self.gid or 0,
            self.rdev,
            self.size,
            self.mtime_ns or 0,
            self.target,
            self.xattrs,
            complete,
        )


class Name(NamedTuple):
    """The fid that a name stands for, and its place in the directory."""

    fid: Fid
    cookie: int


def inode_key(fid: Fid) -> bytes:
    """Returns the key of *fid* in ``inodes``, which begins the keys of its names in ``names``."""
    return _FID.pack(fid)


def fid_of_key(key: bytes) -> Fid:
    """Returns the fid with which *key* begins. Raises StoreDamagedError."""
    try:
        return Fid(_FID.unpack_from(key)[0])
    except struct.error:
        raise StoreDamagedError(
            "a tree of a version", f"has a key of nothing: {key!r:.80}"
        ) from None


def name_key(parent: Fid, name: bytes) -> bytes:
    """Returns the key of a name in ``names``."""
    return _FID.pack(parent) + name


def name_of_key(key: bytes) -> bytes:
    """Returns the name in a key of ``names``."""
    return key[_FID.size :]


def encode_name(name: Name) -> bytes:
    """Returns the value of a name."""
    return _NAME.pack(*name)


def decode_name(value: bytes) -> Name:
    """Returns the name with *value*. Raises StoreDamagedError."""
    try:
        fid, cookie = _NAME.unpack(value)
    except struct.error:
        raise StoreDamagedError(
            "a tree of names", f"has a name of nothing: {value!r:.80}"
        ) from None
    return Name(Fid(fid), cookie)


def encode_inode(record: InodeRecord, blocks: BlockWriter) -> bytes:
    """Returns the value of *record*; long xattrs become a block. Raises StoreFullError,
    StoreError."""
    content: Any = record.target
    if record.content is not None:
        inline, items, root = record.content
        content = (1, root) if root is not None else (0, items)
        if inline is not None:
            content = inline
    xattrs: Any = record.xattrs
    packed: bytes = msgpack.packb(xattrs)
    if len(packed) > _INLINE_XATTR_BYTES_MAX:
        xattrs = blocks.add_node(packed)
    flags = record.file_flags << _FILE_FLAGS_AT | (0 if record.complete else _INCOMPLETE)
    head = record.mode, record.uid, record.gid, record.rdev, record.size, record.mtime_ns
    encoded: bytes = msgpack.packb((*head, record.links, content, xattrs, flags))
    return encoded


def decode_inode(fid: Fid, value: bytes, blocks: BlockReader) -> InodeRecord:
    """Returns the record of *fid* with *value*. Raises StoreDamagedError, StoreError."""
    try:
        fields = _array(msgpack.unpackb(value, use_list=False))
        mode, uid, gid, rdev, size, mtime_ns, links, content, xattrs, flags = fields
        if isinstance(xattrs, bytes):
            xattrs = msgpack.unpackb(blocks.read(xattrs), use_list=False)
        is_link = mode is not None and S_IFMT(mode) == S_IFLNK
        is_regular = mode is not None and S_IFMT(mode) == S_IFREG
        record = InodeRecord(
            fid,
            mode,
            uid,
            gid,
            rdev,
            size,
            mtime_ns,
            tuple((Fid(parent), name) for parent, name in _array(links)),
            content if is_link else None,
            _content(content) if is_regular else None,
            _array(xattrs),
            not flags & _INCOMPLETE,
            flags >> _FILE_FLAGS_AT,
        )
        _check(record)
        if type(flags) is not int or flags < 0:
            raise ValueError("no flags")
    except (ValueError, TypeError, OverflowError) as error:
        raise StoreDamagedError(
            blocks.store.where, f"the record of fid {fid} is spoilt: {error}"
        ) from None
    return record


def blocks_of_inode(fid: Fid, value: bytes, where: str) -> tuple[list[bytes], bytes | None]:
    """Returns the ids of blocks that the record of *fid* with *value* names: chunks and xattrs;
    and the root of its list of items, if it has one. Raises StoreDamagedError, which names *where*
    it was read."""
    try:
        fields = _array(msgpack.unpackb(value, use_list=False))
        content, xattrs = fields[7], fields[8]
        found = [xattrs] if isinstance(xattrs, bytes) else []
        if not isinstance(content, tuple):
            return found, None
        _, items, root = _content(content)
        return found + [id_ for id_, _ in items if id_ is not None], root
    except (ValueError, TypeError, IndexError) as error:
        raise StoreDamagedError(where, f"the record of fid {fid} is spoilt: {error}") from None


def _content(raw: Any) -> Content:
    """Raises ValueError, TypeError."""
    if isinstance(raw, bytes):
        return Content(inline=raw)
    form, what = _array(raw)
    if form == 1 and isinstance(what, bytes) and len(what) == ID_BYTES:
        return Content(root=what)
    if form != 0 or not all(is_chunk_item(item) for item in _array(what)):
        raise ValueError("no content")
    return Content(items=tuple(ChunkItem(*item) for item in what))


def _array(raw: Any) -> tuple[Any, ...]:
    """Returns what has to be an array: an empty text or map would be taken for an empty one. Raises
    ValueError."""
    if not isinstance(raw, tuple):
        raise ValueError("no array")
    return raw


def _check(record: InodeRecord) -> None:
    """Raises ValueError, TypeError where a field cannot be."""
    whole: list[int | None] = [record.rdev, record.size, *(parent for parent, _ in record.links)]
    if record.fid != ROOT_FID:
        whole += (record.mode, record.uid, record.gid)
        if type(record.mtime_ns) is not int or not record.links:
            raise ValueError("no mtime, or no name")
    if not all(type(number) is int and 0 <= number < _NUMBER_END for number in whole):
        raise ValueError("no number")
    names = [name for _, name in record.links] + [name for name, _ in record.xattrs]
    values = [value for _, value in record.xattrs]
    if not all(isinstance(one, bytes) for one in names + values):
        raise ValueError("no bytes")
    if record.type == S_IFDIR and len(record.links) != (record.fid != ROOT_FID):
        raise ValueError("a directory without its one name")
    if record.type == S_IFLNK and not isinstance(record.target, bytes):
        raise ValueError("no target")
