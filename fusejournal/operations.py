"""The operations a journal entry can hold: one immutable class each, no I/O.

An operation holds results, not requests: the final offset of an append, the mode after umask, ACL
and setgid, absolute times. Replaying the same operations in the same order gives the same tree.
Each class is a NamedTuple whose fields, in order, are also the tail of the entry's msgpack array
(see journal/format.py), so **fields are only ever added at the end, with a default**, and a Kind's
number is never given anew.

``fid`` is the file an operation is about, ``parent`` the directory of a name; names, targets and
xattr values are bytes. Each class has ``touched_fids``: the files and directories that it is about
and that existed before it, whose paths its entry must be able to tell. (A new object's path follows
from its parent's; the file that a rename replaces is in ``replaced`` alone.)

What an operation does to mtimes is part of its meaning; ``entry`` is the entry's own time:

====================  ==========================  =============================
operation             mtime of ``fid``            mtime of directories
====================  ==========================  =============================
CREATE MKDIR SYMLINK  entry                       parent: entry
LINK                  unchanged                   parent: entry
UNLINK RMDIR          unchanged                   parent: entry
RENAME                unchanged                   parent and new_parent: entry
WHITEOUT              unchanged; device's: entry  parent and new_parent: entry
WRITE TRUNCATE        entry                       unchanged
FALLOCATE             entry                       unchanged
SETATTR               mtime_ns where given        unchanged
SET-, REMOVEXATTR     unchanged                   unchanged
SETFLAGS              unchanged                   unchanged
IMPORT IMPORT_DATA    mtime_ns                    unchanged
IMPORT_LINK           unchanged                   unchanged
====================  ==========================  =============================

What takes a file capability (security.capability) away is part of the meaning, too, as it is part
of a local file system's: a WRITE of at least one byte, a TRUNCATE, a FALLOCATE, and a SETATTR of
owner or group of anything but a directory. IMPORT_DATA does not. REMOVEXATTR of a capability that
is not there holds, and changes nothing.

An object that an operation makes also gets the entry's time as atime. The ctime users see is the
time of the last entry that touched the fid: the fid itself in every row above, and the directories
in rows that set their mtime."""

from stat import S_IFCHR, S_IFMT
from typing import NamedTuple

from fusejournal.file_operations import Fallocate, SetFlags
from fusejournal.kinds import Kind as Kind
from fusejournal.types import Epoch, Fid, Seq

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4


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
        return Kind.CREATE

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return (self.parent,)


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
        return Kind.MKDIR

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return (self.parent,)


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
        return Kind.SYMLINK

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return (self.parent,)


class Link(NamedTuple):
    """A further name for ``fid``."""

    fid: Fid
    parent: Fid
    name: bytes

    @property
    def kind(self) -> Kind:
        return Kind.LINK

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return self.fid, self.parent


class Unlink(NamedTuple):
    """The name goes; ``fid`` is what it named."""

    fid: Fid
    parent: Fid
    name: bytes

    @property
    def kind(self) -> Kind:
        return Kind.UNLINK

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return self.fid, self.parent


class Rmdir(NamedTuple):
    """The empty directory ``fid`` goes."""

    fid: Fid
    parent: Fid
    name: bytes

    @property
    def kind(self) -> Kind:
        return Kind.RMDIR

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return self.fid, self.parent


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
        return Kind.RENAME

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return self.fid, self.parent, self.new_parent


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
        return Kind.WHITEOUT

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return self.fid, self.parent, self.new_parent

    def can_be(self) -> bool:
        """Returns whether it makes a device, and asks for what can be asked together."""
        is_asked = self.flags & (RENAME_WHITEOUT | RENAME_EXCHANGE) == RENAME_WHITEOUT
        is_whole = None not in (self.mode, self.uid, self.gid)
        return is_asked and is_whole and S_IFMT(self.mode) == S_IFCHR

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
        return Kind.WRITE

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return (self.fid,)


class Truncate(NamedTuple):
    """The new size; ``mode`` as in Write."""

    fid: Fid
    size: int
    mode: int | None

    @property
    def kind(self) -> Kind:
        return Kind.TRUNCATE

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return (self.fid,)


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
        return Kind.SETATTR

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return (self.fid,)


class Setxattr(NamedTuple):
    """An extended attribute gets this value (ACLs are xattrs too, and change the mode as the
    backing does)."""

    fid: Fid
    name: bytes
    value: bytes

    @property
    def kind(self) -> Kind:
        return Kind.SETXATTR

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return (self.fid,)


class Removexattr(NamedTuple):
    """An extended attribute goes."""

    fid: Fid
    name: bytes

    @property
    def kind(self) -> Kind:
        return Kind.REMOVEXATTR

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return (self.fid,)


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
        return Kind.IMPORT

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return (self.parent,)


class ImportData(NamedTuple):
    """Content of an imported file at ``offset`` (raw data); ``complete`` with its last piece.
    Holes have no entry."""

    fid: Fid
    offset: int
    mtime_ns: int
    complete: bool

    @property
    def kind(self) -> Kind:
        return Kind.IMPORT_DATA

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return (self.fid,)


class ImportLink(NamedTuple):
    """A further name, found by the import, of a file already imported."""

    fid: Fid
    parent: Fid
    name: bytes

    @property
    def kind(self) -> Kind:
        return Kind.IMPORT_LINK

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return self.fid, self.parent


class Void(NamedTuple):
    """Entry ``seq``, just before, was refused with ``errno``; of a WRITE ``written`` bytes held."""

    seq: Seq
    errno: int
    written: int

    @property
    def kind(self) -> Kind:
        return Kind.VOID

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return ()


class NewEpoch(NamedTuple):
    """A reign begins: the first entry of a volume, after a system crash, at a promotion."""

    epoch: Epoch
    reason: str

    @property
    def kind(self) -> Kind:
        return Kind.EPOCH

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return ()


class Mark(NamedTuple):
    """A point in the journal that an admin named, or the removal of one (history/marks.py)."""

    name: str

    @property
    def kind(self) -> Kind:
        return Kind.MARK

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return ()


class Clean(NamedTuple):
    """An orderly stop: backing and journal agree and are on disk up to here."""

    @property
    def kind(self) -> Kind:
        return Kind.CLEAN

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return ()


Making = Create | Mkdir | Symlink | Import
Removal = Unlink | Rmdir
NameOperation = Create | Mkdir | Symlink | Link | Removal
ContentOperation = Write | Truncate | Fallocate
DataOperation = ContentOperation | Setattr | Setxattr | Removexattr | SetFlags
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
    Kind.FALLOCATE: Fallocate,
    Kind.SETFLAGS: SetFlags,
}

for _kind, _class in OPERATIONS.items():
    # A constant of the class, for which a NamedTuple's body has no room: it takes a fifth of what
    # the property does, and is asked for six times in each change.
    type.__setattr__(_class, "kind", _kind)

REMOVALS = frozenset({Kind.UNLINK, Kind.RMDIR})
"""Operations that may use the journal's reserve: what makes space (as some TRUNCATEs do)."""

CONTENT_KINDS = frozenset({Kind.WRITE, Kind.TRUNCATE, Kind.FALLOCATE})
"""The kinds of a ContentOperation: what changes a file's content, and with it the mtime."""

ATTRIBUTE_KINDS = frozenset({Kind.SETATTR, Kind.SETXATTR, Kind.REMOVEXATTR, Kind.SETFLAGS})
"""The kinds of what changes a file's attributes alone."""

DATA_KINDS = CONTENT_KINDS | ATTRIBUTE_KINDS
"""The kinds of a DataOperation: what changes one file and no name."""

WRITING_KINDS = CONTENT_KINDS | {Kind.IMPORT_DATA}
ONE_FILE_KINDS = DATA_KINDS | {Kind.IMPORT_DATA}
"""The same, and what an import does to a file."""

MAKERS = frozenset({Kind.CREATE, Kind.MKDIR, Kind.SYMLINK, Kind.IMPORT})
"""Operations that are about a new fid alone. (A WHITEOUT gives one, too: see :func:`made_by`.)"""

MOVES = frozenset({Kind.RENAME, Kind.WHITEOUT})
"""The kinds of a Moving: what gives a file another name."""

NAME_KINDS = MAKERS | REMOVALS | MOVES | {Kind.LINK, Kind.IMPORT_LINK}
"""Operations that make names or take them away."""


def made_by(operation: Operation) -> Making | None:
    """Returns the making of a new fid in *operation*, or None."""
    if isinstance(operation, Making):
        return operation
    return operation.making if isinstance(operation, Whiteout) else None
