"""The operations a journal entry can hold: one immutable class each, no I/O.

An operation holds results, not requests: the final offset of an append, the mode after umask, ACL
and setgid, absolute times. Replaying the same operations in the same order gives the same tree.
Each class is a NamedTuple whose fields, in order, are also the tail of the entry's msgpack array
(see journal/format.py), so **fields are only ever added at the end, with a default**, and a Kind's
number is never given anew.

``fid`` is the file an operation is about, ``parent`` the directory of a name; names, targets and
xattr values are bytes.

What an operation does to mtimes is part of its meaning; ``entry`` is the entry's own time:

=============  ==========================  =======================================
operation      mtime of ``fid``            mtime of directories
=============  ==========================  =======================================
CREATE MKDIR   entry                       parent: entry
SYMLINK        entry                       parent: entry
LINK           unchanged                   parent: entry
UNLINK RMDIR   unchanged                   parent: entry
RENAME         unchanged                   parent and new_parent: entry
WHITEOUT       unchanged; the             parent and new_parent: entry
               whiteout's: entry
WRITE          entry                       unchanged
TRUNCATE       entry                       unchanged
SETATTR        mtime_ns where given        unchanged
SET/REMOVE-    unchanged                   unchanged
XATTR
IMPORT         mtime_ns                    unchanged
IMPORT_DATA    mtime_ns                    unchanged
IMPORT_LINK    unchanged                   unchanged
=============  ==========================  =======================================

What takes a file capability (security.capability) away is part of the meaning, too, as it is part
of a local file system's: a WRITE of at least one byte, a TRUNCATE, and a SETATTR of owner or group
of anything but a directory. IMPORT_DATA does not. REMOVEXATTR of a capability that is not there
holds, and changes nothing.

An object that an operation makes also gets the entry's time as atime. The ctime users see is the
time of the last entry that touched the fid: the fid itself in every row above, and the directories
in rows that set their mtime."""

from enum import IntEnum
from stat import S_IFCHR, S_IFMT
from typing import NamedTuple

from fusejournal.types import Epoch, Fid, Seq

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4


class Kind(IntEnum):
    """What an entry does. The numbers are in every journal ever written."""

    CREATE = 1
    MKDIR = 2
    SYMLINK = 3
    LINK = 4
    UNLINK = 5
    RMDIR = 6
    RENAME = 7
    WRITE = 8
    TRUNCATE = 9
    SETATTR = 10
    SETXATTR = 11
    REMOVEXATTR = 12
    IMPORT = 13
    IMPORT_DATA = 14
    IMPORT_LINK = 15
    VOID = 16
    EPOCH = 17
    MARK = 18
    CLEAN = 19
    WHITEOUT = 20


class Create(NamedTuple):
    """A new file, fifo, socket or device; ``mode`` includes the type. ``acl``: the inherited
    access ACL or None."""

    fid: Fid
    parent: Fid
    name: bytes
    mode: int
    uid: int
    gid: int
    rdev: int
    acl: bytes | None

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.CREATE


class Mkdir(NamedTuple):
    """A new directory, with the ACLs it inherits (None where it inherits none)."""

    fid: Fid
    parent: Fid
    name: bytes
    mode: int
    uid: int
    gid: int
    acl: bytes | None
    default_acl: bytes | None

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.MKDIR


class Symlink(NamedTuple):
    """A new symbolic link."""

    fid: Fid
    parent: Fid
    name: bytes
    target: bytes
    uid: int
    gid: int

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.SYMLINK


class Link(NamedTuple):
    """A further name for ``fid``."""

    fid: Fid
    parent: Fid
    name: bytes

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.LINK


class Unlink(NamedTuple):
    """The name goes; ``fid`` is what it named."""

    fid: Fid
    parent: Fid
    name: bytes

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.UNLINK


class Rmdir(NamedTuple):
    """The empty directory ``fid`` goes."""

    fid: Fid
    parent: Fid
    name: bytes

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.RMDIR


class Rename(NamedTuple):
    """``fid`` moves. ``replaced``: the fid that had the new name (with RENAME_EXCHANGE it gets the
    old one), or 0."""

    fid: Fid
    parent: Fid
    name: bytes
    new_parent: Fid
    new_name: bytes
    flags: int
    replaced: Fid

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.RENAME


class Whiteout(NamedTuple):
    """A rename that leaves a *whiteout* under the old name, a character device 0/0 by which an
    overlay knows that the name is gone (RENAME_WHITEOUT): ``fid`` moves as in Rename, and
    ``whiteout`` is the new device's fid; ``mode``, with the type, ``uid``, ``gid`` and ``acl`` are
    the device's, as in Create. A kind of its own, so that readers of earlier versions see that it
    is new to them."""

    fid: Fid
    parent: Fid
    name: bytes
    new_parent: Fid
    new_name: bytes
    flags: int
    replaced: Fid
    whiteout: Fid
    mode: int
    uid: int
    gid: int
    acl: bytes | None

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.WHITEOUT

    def can_be(self) -> bool:
        """Whether it makes a device, and asks for what can be asked together."""
        has_attributes = None not in (self.mode, self.uid, self.gid)
        is_asked = self.flags & (RENAME_WHITEOUT | RENAME_EXCHANGE) == RENAME_WHITEOUT
        return has_attributes and S_IFMT(self.mode) == S_IFCHR and is_asked

    @property
    def making(self) -> Create:
        """The making of the whiteout, as an operation of its own."""
        mode, uid, gid, acl = self[-4:]
        return Create(self.whiteout, self.parent, self.name, mode, uid, gid, 0, acl)


class Write(NamedTuple):
    """Bytes (the entry's raw data) at ``offset``. ``mode``: the permission bits after a write that
    cleared setuid or setgid, else None."""

    fid: Fid
    offset: int
    mode: int | None

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.WRITE


class Truncate(NamedTuple):
    """The new size; ``mode`` as in Write."""

    fid: Fid
    size: int
    mode: int | None

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.TRUNCATE


class Setattr(NamedTuple):
    """New attributes; None leaves one as it is. ``mode`` is the permission bits (no type)."""

    fid: Fid
    mode: int | None
    uid: int | None
    gid: int | None
    atime_ns: int | None
    mtime_ns: int | None

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.SETATTR


class Setxattr(NamedTuple):
    """An extended attribute gets this value (ACLs are xattrs too, and change the mode as the
    backing does)."""

    fid: Fid
    name: bytes
    value: bytes

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.SETXATTR


class Removexattr(NamedTuple):
    """An extended attribute goes."""

    fid: Fid
    name: bytes

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.REMOVEXATTR


class Import(NamedTuple):
    """An object that was in the backing first: its name, attributes and xattrs (name, value pairs,
    sorted). ``target`` is a symlink's. A regular file's content follows in IMPORT_DATA entries
    unless ``complete``."""

    fid: Fid
    parent: Fid
    name: bytes
    mode: int
    uid: int
    gid: int
    rdev: int
    size: int
    mtime_ns: int
    target: bytes | None
    xattrs: tuple[tuple[bytes, bytes], ...]
    complete: bool

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.IMPORT


class ImportData(NamedTuple):
    """Content of an imported file at ``offset`` (raw data); ``complete`` with its last piece.
    Holes have no entry."""

    fid: Fid
    offset: int
    mtime_ns: int
    complete: bool

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.IMPORT_DATA


class ImportLink(NamedTuple):
    """A further name, found by the import, of a file already imported."""

    fid: Fid
    parent: Fid
    name: bytes

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.IMPORT_LINK


class Void(NamedTuple):
    """The entry before this one, ``seq``, was refused with ``errno``; of a WRITE, the first
    ``written`` bytes held."""

    seq: Seq
    errno: int
    written: int

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.VOID


class NewEpoch(NamedTuple):
    """A reign begins: the first entry of a volume, after a lost machine, at a promotion."""

    epoch: Epoch
    reason: str

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.EPOCH


class Mark(NamedTuple):
    """A point in the journal that somebody named."""

    name: str

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.MARK


class Clean(NamedTuple):
    """An orderly stop: backing and journal agree and are on disk up to here."""

    @property
    def kind(self) -> Kind:
        """The entry's kind."""
        return Kind.CLEAN


NameOperation = Create | Mkdir | Symlink | Link | Unlink | Rmdir
DataOperation = Write | Truncate | Setattr | Setxattr | Removexattr
ImportOperation = Import | ImportData | ImportLink
Moving = Rename | Whiteout
TreeOperation = NameOperation | Moving | DataOperation | ImportOperation
ControlOperation = Void | NewEpoch | Mark | Clean
Operation = TreeOperation | ControlOperation

OPERATIONS: dict[Kind, type[Operation]] = {
    Kind.CREATE: Create,
    Kind.MKDIR: Mkdir,
    Kind.SYMLINK: Symlink,
    Kind.LINK: Link,
    Kind.UNLINK: Unlink,
    Kind.RMDIR: Rmdir,
    Kind.RENAME: Rename,
    Kind.WRITE: Write,
    Kind.TRUNCATE: Truncate,
    Kind.SETATTR: Setattr,
    Kind.SETXATTR: Setxattr,
    Kind.REMOVEXATTR: Removexattr,
    Kind.IMPORT: Import,
    Kind.IMPORT_DATA: ImportData,
    Kind.IMPORT_LINK: ImportLink,
    Kind.VOID: Void,
    Kind.EPOCH: NewEpoch,
    Kind.MARK: Mark,
    Kind.CLEAN: Clean,
    Kind.WHITEOUT: Whiteout,
}

REMOVALS = frozenset({Kind.UNLINK, Kind.RMDIR})
"""Operations that may use the journal's reserve, for they are what makes space."""

DATA_KINDS = frozenset({Kind.WRITE, Kind.TRUNCATE, Kind.SETATTR, Kind.SETXATTR, Kind.REMOVEXATTR})
"""The kinds of a DataOperation: what changes one file and no name."""

MAKERS = frozenset({Kind.CREATE, Kind.MKDIR, Kind.SYMLINK, Kind.IMPORT})
"""Operations that are about a new fid alone. (A WHITEOUT gives one, too: see :func:`made_by`.)"""

MOVES = frozenset({Kind.RENAME, Kind.WHITEOUT})
"""The kinds of a Moving: what gives a file another name."""


TOUCHED: dict[Kind, tuple[int, ...]] = {
    **dict.fromkeys(MAKERS, (1,)),
    **dict.fromkeys((Kind.LINK, Kind.UNLINK, Kind.RMDIR, Kind.IMPORT_LINK), (0, 1)),
    **dict.fromkeys(MOVES, (0, 1, 3)),
    **dict.fromkeys((*DATA_KINDS, Kind.IMPORT_DATA), (0,)),
    **dict.fromkeys((Kind.VOID, Kind.EPOCH, Kind.MARK, Kind.CLEAN), ()),
}
"""Which fields of an operation are fids that existed before it and whose path its entry must be
able to tell.

A new object's path follows from its parent's and its name, so it is the parent that is listed.
"""


def made_by(operation: Operation) -> Create | Mkdir | Symlink | Import | None:
    """The making of a new fid in *operation*, or None."""
    if isinstance(operation, Create | Mkdir | Symlink | Import):
        return operation
    return operation.making if isinstance(operation, Whiteout) else None
