"""Random journals and what they mean: sequences of operations as a layer would journal them, with a
model of the tree after each.

The model knows nothing of fusejournal but the operations: files by fid, names by directory, and
the table of mtimes in operations.py. :class:`Model` refuses an operation whose precondition fails,
so it also says which operations of a selection conflict. A workload is made from a list of byte
strings, one an operation; zeros make MARKs, so that hypothesis can shrink what does not matter."""

import errno
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK, S_IMODE
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from hypothesis import strategies as st

from fusejournal.file_operations import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    Fallocate,
)
from fusejournal.journal.index import write_index
from fusejournal.journal.journal import Journal
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.layer.permissions import NewMode, new_mode
from fusejournal.operations import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    Clean,
    ControlOperation,
    Create,
    Import,
    ImportData,
    ImportLink,
    Link,
    Mark,
    Mkdir,
    NewEpoch,
    Operation,
    Removexattr,
    Rename,
    Rmdir,
    Setattr,
    Setxattr,
    Symlink,
    TreeOperation,
    Truncate,
    Unlink,
    Void,
    Whiteout,
    Write,
)
from fusejournal.types import ROOT_FID, Caller, Epoch, Fid, Seq, first_fid
from tests.support.trees import Image, difference, image

UUID_OF_WORKLOADS = UUID("89abcdef-0123-4567-89ab-cdef01234567")

NAMES = (b"a", b"b", b"c", b"\xff\xfe", "ä ö".encode(), b"a*[")
XATTRS = (b"user.one", b"user.two")
CAPABILITY = b"security.capability"
ACCESS_ACL, DEFAULT_ACL = b"system.posix_acl_access", b"system.posix_acl_default"
CAPABILITIES = (
    struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0),
    struct.pack("<6I", 0x03000001, 1 << 13, 0, 0, 0, 1000),
)
"""Of both versions that the kernel hands out: capabilities(7)."""
UIDS = (0, 1000, 1001)

_MODES = (0o644, 0o600, 0o755, 0o4755, 0o2770, 0o1777)
_TIMES_NS = (-1_500_000_000, 0, 1, 1_600_000_000_123_456_789, 1_800_000_000_999_999_999)
_SIZES = (0, 1, 50, 5000, 80_000)
_OFFSETS = (0, 0, 3, 4096, 70_000)
_LENGTHS = (1, 7, 100, 3000)
_ROOMS = (4096, 1, 60, 5000, 70_000)
_ALLOCATIONS = (
    FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE,
    0,
    FALLOC_ZERO_RANGE,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE,
    FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE,
)
_FIRST_TIME_NS = 1_700_000_000_000_000_000

Dentry = tuple[Fid, bytes]
Choice = TypeVar("Choice")


class Refused(Exception):
    """An operation whose precondition fails; nothing was changed."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.errno = number


class File(NamedTuple):
    """What a fid is. ``mode``: the permission bits."""

    type: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    rdev: int = 0
    target: bytes | None = None
    content: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


class Model:
    """A tree in memory."""

    def __init__(self) -> None:
        self.files: dict[Fid, File] = {ROOT_FID: File(S_IFDIR, 0o755, 0, 0, 0)}
        self.names: dict[Dentry, Fid] = {}
        self._places: dict[Fid, list[Dentry]] | None = None

    def become(self, other: "Model") -> None:
        """Be what *other* is."""
        self.files, self.names, self._places = dict(other.files), dict(other.names), None

    def copy(self) -> "Model":
        """The same again, to be changed by itself."""
        other = Model()
        other.files, other.names = dict(self.files), dict(self.names)
        return other

    # -- questions ---------------------------------------------------------------------------------

    def places(self, fid: Fid) -> list[Dentry]:
        """Every name of *fid*."""
        if self._places is None:
            self._places = {}
            for place, owner in self.names.items():
                self._places.setdefault(owner, []).append(place)
        return self._places.get(fid, [])

    def path_of_place(self, place: Dentry) -> bytes:
        """The path of a name."""
        above = self.path(place[0])
        assert above is not None
        return above + b"/" + place[1] if above else place[1]

    def path(self, fid: Fid) -> bytes | None:
        """A path of *fid*."""
        if fid == ROOT_FID:
            return b""
        return next((self.path_of_place(place) for place in self.places(fid)), None)

    def paths(self, fid: Fid) -> set[bytes]:
        """Every path of *fid*."""
        if fid == ROOT_FID:
            return {b""}
        return {self.path_of_place(place) for place in self.places(fid)}

    def all_paths(self) -> dict[bytes, Fid]:
        """Every path and what it stands for, the root's too."""
        return {b"": ROOT_FID, **{self.path_of_place(one): fid for one, fid in self.names.items()}}

    def at(self, path: bytes) -> Fid | None:
        """What *path* stands for."""
        fid: Fid | None = ROOT_FID
        for name in path.split(b"/") if path else ():
            fid = self.names.get((fid, name)) if fid is not None else None
        return fid

    def children(self, directory: Fid) -> dict[bytes, Fid]:
        """The names in *directory*."""
        return {name: fid for (parent, name), fid in self.names.items() if parent == directory}

    def is_directory(self, fid: Fid) -> bool:
        """Whether *fid* is one."""
        return self.files[fid].type == S_IFDIR

    def is_below(self, fid: Fid, directory: Fid) -> bool:
        """Whether *fid* is *directory* or in it, however deep (by the name of directories)."""
        while fid != directory:
            if fid == ROOT_FID:
                return False
            fid = self.places(fid)[0][0]
        return True

    def image(self, top: Fid = ROOT_FID) -> Image:
        """What trees.image must find where this tree, from *top* down, was made."""
        found: Image = {b".": self._item(top)}
        groups: dict[Fid, list[bytes]] = {}
        todo = [(top, b"")]
        while todo:
            directory, prefix = todo.pop()
            for name, fid in self.children(directory).items():
                path = prefix + name
                found[path] = self._item(fid)
                if self.is_directory(fid):
                    todo.append((fid, path + b"/"))
                else:
                    groups.setdefault(fid, []).append(path)
        for paths in groups.values():
            for path in paths:
                found[path]["nlink"] = len(paths)
                if len(paths) > 1:
                    found[path]["links"] = sorted(paths)
        return found

    def item(self, fid: Fid) -> dict[str, Any]:
        """The same of one file that has one name."""
        return {**self._item(fid), "nlink": 1}

    def _item(self, fid: Fid) -> dict[str, Any]:
        file = self.files[fid]
        item: dict[str, Any] = {
            "mode": oct(file.type | file.mode),
            "owner": (file.uid, file.gid),
            "xattrs": {os.fsdecode(name): value for name, value in file.xattrs},
            "mtime": file.mtime_ns,
        }
        if file.type == S_IFREG:
            item["size"] = len(file.content)
            item["content"] = hashlib.sha256(file.content).hexdigest()
        elif file.type == S_IFLNK:
            item["target"] = file.target
        elif file.type == S_IFCHR:
            item["rdev"] = file.rdev
        return item

    # -- changes -----------------------------------------------------------------------------------

    def apply(self, operation: TreeOperation, time_ns: int, data: bytes = b"") -> None:
        """Carry out *operation* by POSIX's rules. Raises Refused."""
        match operation:
            case Create() | Mkdir() | Symlink() | Import():
                self._check_free(operation.parent, operation.name)
                self.files[operation.fid] = _new_file(operation, time_ns)
                self._put((operation.parent, operation.name), operation.fid)
                if not isinstance(operation, Import):
                    self._set(operation.parent, mtime_ns=time_ns)
            case Link() | ImportLink():
                self._check_there(operation.fid)
                self._check_free(operation.parent, operation.name)
                self._put((operation.parent, operation.name), operation.fid)
                if isinstance(operation, Link):
                    self._set(operation.parent, mtime_ns=time_ns)
            case Unlink() | Rmdir():
                self._check_named(operation.parent, operation.name, operation.fid)
                if isinstance(operation, Rmdir):
                    self._check_empty(operation.fid)
                self._cut((operation.parent, operation.name))
                self._set(operation.parent, mtime_ns=time_ns)
            case Rename():
                self._rename(operation, time_ns)
            case Whiteout():
                self._rename(Rename(*operation[:7]), time_ns)
                self.apply(operation.making, time_ns)
            case (
                Write() | Truncate() | Fallocate()
                | Setattr() | Setxattr() | Removexattr() | ImportData()
            ):  # fmt: skip
                self._check_there(operation.fid)
                self._change(operation, time_ns, data)

    def _change(self, operation: TreeOperation, time_ns: int, data: bytes) -> None:
        fid = operation.fid
        file = self.files[fid]
        match operation:
            case Write():
                self._set(fid, content=_overwritten(file.content, operation.offset, data))
                self._set(fid, mtime_ns=time_ns, mode=operation.mode)
                if data:
                    self._set_xattr(fid, CAPABILITY, None)
            case Truncate():
                content = file.content[: operation.size].ljust(operation.size, b"\0")
                self._set(fid, content=content, mtime_ns=time_ns, mode=operation.mode)
                self._set_xattr(fid, CAPABILITY, None)
            case Fallocate():
                content = _allocated(file.content, operation)
                self._set(fid, content=content, mtime_ns=time_ns, mode=operation.mode)
                self._set_xattr(fid, CAPABILITY, None)
            case ImportData():
                self._set(fid, content=_overwritten(file.content, operation.offset, data))
                self._set(fid, mtime_ns=operation.mtime_ns)
            case Setattr():
                _, mode, uid, gid, _, mtime_ns = operation
                self._set(fid, mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns)
                if (uid is not None or gid is not None) and file.type != S_IFDIR:
                    self._set_xattr(fid, CAPABILITY, None)
                acl = dict(file.xattrs).get(ACCESS_ACL)
                if mode is not None and acl is not None:
                    self._set_xattr(fid, ACCESS_ACL, _acl_with_mode(acl, mode))
            case Setxattr(name=name, value=value):
                if name == ACCESS_ACL:
                    self._set(fid, mode=file.mode & ~0o777 | mode_of_acl(value))
                is_mode_alone = name == ACCESS_ACL and len(_acl_entries(value)) == 3
                self._set_xattr(fid, name, None if is_mode_alone else value)
            case Removexattr(name=name):
                if name not in dict(file.xattrs) and name not in _FREELY_REMOVED:
                    raise Refused(errno.ENODATA, "no such attribute")
                self._set_xattr(fid, name, None)

    def _set_xattr(self, fid: Fid, name: bytes, value: bytes | None) -> None:
        left = {key: old for key, old in self.files[fid].xattrs if key != name}
        self._set(fid, xattrs=tuple((left | ({} if value is None else {name: value})).items()))

    def _rename(self, operation: Rename, time_ns: int) -> None:
        fid, parent, name, new_parent, new_name, flags, replaced = operation
        self._check_named(parent, name, fid)
        self._check_there(new_parent)
        there = self.names.get((new_parent, new_name))
        if flags & RENAME_EXCHANGE:
            self._check_named(new_parent, new_name, replaced)
            if self.is_directory(replaced) and self.is_below(parent, replaced):
                raise Refused(errno.EINVAL, "below itself")
        elif there is not None and there != replaced:
            raise Refused(errno.EEXIST, "another file has the name")
        elif there is not None and self.is_directory(there) != self.is_directory(fid):
            number = errno.EISDIR if self.is_directory(there) else errno.ENOTDIR
            raise Refused(number, "another type")
        if self.is_directory(fid) and self.is_below(new_parent, fid):
            raise Refused(errno.EINVAL, "below itself")
        if there is not None and not flags & RENAME_EXCHANGE:
            if self.is_directory(there):
                self._check_empty(there)
            self._cut((new_parent, new_name))
        del self.names[parent, name]
        if flags & RENAME_EXCHANGE:
            self._put((parent, name), replaced)
        self._put((new_parent, new_name), fid)
        self._set(parent, mtime_ns=time_ns)
        self._set(new_parent, mtime_ns=time_ns)

    def _put(self, place: Dentry, fid: Fid) -> None:
        self.names[place] = fid
        self._places = None

    def _cut(self, place: Dentry) -> None:
        fid = self.names.pop(place)
        self._places = None
        if not self.places(fid):
            del self.files[fid]

    def _set(self, fid: Fid, **fields: Any) -> None:
        given = {key: value for key, value in fields.items() if value is not None}
        self.files[fid] = self.files[fid]._replace(**given)

    def _check_there(self, fid: Fid) -> None:
        if fid not in self.files:
            raise Refused(errno.ENOENT, "no such file")

    def _check_free(self, parent: Fid, name: bytes) -> None:
        self._check_there(parent)
        if (parent, name) in self.names:
            raise Refused(errno.EEXIST, "the name is taken")

    def _check_named(self, parent: Fid, name: bytes, fid: Fid) -> None:
        self._check_there(parent)
        if self.names.get((parent, name)) != fid:
            raise Refused(errno.ENOENT, "the name does not stand for the file")

    def _check_empty(self, directory: Fid) -> None:
        if self.children(directory):
            raise Refused(errno.ENOTEMPTY, "not empty")


_FREELY_REMOVED = (CAPABILITY, ACCESS_ACL, DEFAULT_ACL)
_ACL_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 1, 2, 4, 16, 32


def make_acl(owner: int, user: int, group: int, mask: int | None, other: int) -> bytes:
    """An ACL in the xattr's own format; with a *mask*, also for a named user."""
    entries = [(_USER_OBJ, owner, -1), (_GROUP_OBJ, group, -1), (_OTHER, other, -1)]
    if mask is not None:
        entries += [(_USER, user, 1000), (_MASK, mask, -1)]
    packed = (
        _ACL_ENTRY.pack(tag, rights, who & 0xFFFFFFFF) for tag, rights, who in sorted(entries)
    )
    return struct.pack("<I", 2) + b"".join(packed)


def _acl_entries(acl: bytes) -> dict[int, tuple[int, int]]:
    return {tag: (rights, who) for tag, rights, who in _ACL_ENTRY.iter_unpack(acl[4:])}


def mode_of_acl(acl: bytes) -> int:
    """The nine permission bits that go with an access ACL."""
    entries = _acl_entries(acl)
    group = entries.get(_MASK) or entries[_GROUP_OBJ]
    return entries[_USER_OBJ][0] << 6 | group[0] << 3 | entries[_OTHER][0]


def _acl_with_mode(acl: bytes, mode: int) -> bytes:
    """What chmod(2) makes of an access ACL."""
    entries = _acl_entries(acl)
    bits = {
        _USER_OBJ: mode >> 6,
        _MASK if _MASK in entries else _GROUP_OBJ: mode >> 3,
        _OTHER: mode,
    }
    packed = (
        _ACL_ENTRY.pack(tag, bits[tag] & 7 if tag in bits else rights, who)
        for tag, (rights, who) in entries.items()
    )
    return acl[:4] + b"".join(packed)


_ACLS = (
    make_acl(7, 6, 5, 4, 1),
    make_acl(6, 7, 4, 7, 0),
    make_acl(7, 0, 5, None, 5),
)


def _acls_of(acl: bytes | None, default_acl: bytes | None) -> tuple[tuple[bytes, bytes], ...]:
    pairs = ((ACCESS_ACL, acl), (DEFAULT_ACL, default_acl))
    return tuple((name, value) for name, value in pairs if value is not None)


def _new_file(operation: Create | Mkdir | Symlink | Import, time_ns: int) -> File:
    match operation:
        case Create(mode=mode, uid=uid, gid=gid, rdev=rdev, acl=acl):
            xattrs = _acls_of(acl, None)
            return File(S_IFMT(mode), S_IMODE(mode), uid, gid, time_ns, rdev, xattrs=xattrs)
        case Mkdir(mode=mode, uid=uid, gid=gid, acl=acl, default_acl=default_acl):
            xattrs = _acls_of(acl, default_acl)
            return File(S_IFDIR, S_IMODE(mode), uid, gid, time_ns, xattrs=xattrs)
        case Symlink(target=target, uid=uid, gid=gid):
            return File(S_IFLNK, 0o777, uid, gid, time_ns, target=target)
    return File(
        S_IFMT(operation.mode),
        0o777 if operation.target is not None else S_IMODE(operation.mode),
        operation.uid,
        operation.gid,
        operation.mtime_ns,
        operation.rdev,
        operation.target,
        bytes(operation.size),
        operation.xattrs,
    )


def _overwritten(content: bytes, offset: int, data: bytes) -> bytes:
    return content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]


def _allocated(content: bytes, operation: Fallocate) -> bytes:
    _, flags, start, length, _ = operation
    if not flags & FALLOC_KEEP_SIZE:
        content = content.ljust(start + length, b"\0")
    if flags & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
        zeros = len(content[start : start + length])
        content = content[:start] + bytes(zeros) + content[start + zeros :]
    return content


class Step(NamedTuple):
    """One entry. ``void``: the one that follows it, if it was refused or cut short."""

    operation: Operation
    who: Caller
    time_ns: int
    data: bytes = b""
    void: Void | None = None

    @property
    def held(self) -> bool:
        """Whether it changed the tree, if only in part."""
        is_tree = not isinstance(self.operation, ControlOperation)
        return is_tree and (self.void is None or self.void.written > 0)

    def apply_to(self, model: Model) -> None:
        """Carry it out, as far as it held. Raises Refused."""
        if self.held:
            data = self.data if self.void is None else self.data[: self.void.written]
            model.apply(self.operation, self.time_ns, data)  # type: ignore[arg-type]


@dataclass
class Workload:
    """A journal to be: ``steps[seq - 1]`` is entry *seq*, ``models[seq]`` the tree after it (of an
    entry that was refused: as if its VOID were known)."""

    steps: list[Step] = field(default_factory=list)
    models: list[Model] = field(default_factory=lambda: [Model()])
    segment_entries: int = 10
    care: bytes = b"\0"
    """What is done with each sealed segment, in turn: 1 a sidecar, 2 compressed, 3 both."""

    @property
    def head_seq(self) -> Seq:
        """The last seq."""
        return Seq(len(self.steps))

    @property
    def head(self) -> Model:
        """The tree in the end."""
        return self.models[-1]

    def paths_ever(self) -> list[bytes]:
        """Every path there ever was."""
        return sorted({path for model in self.models for path in model.all_paths()})

    def write(self, directory: Path) -> None:
        """Append it all to a new journal in *directory*."""
        directory.mkdir(exist_ok=True)
        options = JournalOptions(
            segment_bytes=40_000,
            segment_entries=self.segment_entries,
            preallocate_bytes=1 << 12,
            reserve_bytes=1 << 12,
        )
        journal = Journal.create(directory, UUID_OF_WORKLOADS, options)
        for number, step in enumerate(self.steps):
            journal.append(
                step.operation, step.who, step.time_ns, self.models[number].path, step.data
            )
        journal.sync()
        for number, path in enumerate(journal.sealed.durable()):
            care = self.care[number % len(self.care)]
            if care & 1:
                write_index(path)
            if care & 2:
                journal.sealed.compress(path)
        journal.close()


class Dice:
    """Choices from a few bytes; the first of everything when they are used up."""

    def __init__(self, rolls: bytes) -> None:
        self._rolls = iter(rolls)

    def roll(self) -> int:
        return next(self._rolls, 0)

    def one_of(self, choices: Sequence[Choice]) -> Choice:
        return choices[self.roll() % len(choices)]

    def maybe(self, chances: int) -> bool:
        """True in *chances* of 256."""
        return self.roll() >= 256 - chances


class Builder:
    """Makes the next operation that is valid, or refused for a good reason."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.model = Model()
        self.epoch = Epoch(1)
        self.next_fid = first_fid(self.epoch)
        self.time_ns = _FIRST_TIME_NS
        self.kinds = [
            *[self.mark] * 4,
            *[self.create] * 38,
            *[self.mkdir] * 28,
            *[self.symlink] * 8,
            *[self.link] * 16,
            *[self.unlink] * 22,
            *[self.rmdir] * 10,
            *[self.rename] * 44,
            *[self.write] * 24,
            *[self.truncate] * 8,
            *[self.allocate] * 6,
            *[self.setattr] * 10,
            *[self.setxattr] * 26,
            *[self.removexattr] * 8,
            *[self.restart] * 4,
        ]
        assert len(self.kinds) == 256

    # -- entries -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """A volume's first entries."""
        self.add(NewEpoch(self.epoch, "a new volume"), Caller(0, 0, 0), 1)
        root = Setattr(ROOT_FID, 0o755, 0, 0, None, _TIMES_NS[3])
        self.add(root, Caller(0, 0, 0), 1)

    def add(
        self, operation: Operation, who: Caller, pause_ns: int, data: bytes = b"", cut: int = -1
    ) -> None:
        """Append *operation*. *cut*: it is refused, or of a WRITE only as much held."""
        self.time_ns += pause_ns
        void = Void(Seq(len(self.workload.steps) + 1), errno.ENOSPC, cut) if cut >= 0 else None
        step = Step(operation, who, self.time_ns, data, void)
        try:
            step.apply_to(self.model)
        except Refused as refused:
            void = Void(Seq(len(self.workload.steps) + 1), refused.errno, 0)
            step = step._replace(void=void)
        self._append(step)
        if void is not None:
            self.time_ns += 1
            self._append(Step(void, who, self.time_ns))

    def _append(self, step: Step) -> None:
        self.workload.steps.append(step)
        self.workload.models.append(self.model.copy())

    def tree_operation(self, dice: Dice) -> tuple[TreeOperation, bytes] | None:
        """The next operation that changes the tree, for a volume to carry out; None where *dice*
        say otherwise."""
        make = self.kinds[dice.roll()]
        made = None if make in (self.mark, self.restart) else make(dice)
        if made is None:
            return None
        operation, data = made
        assert not isinstance(operation, ControlOperation)
        return operation, data

    def command(self, rolls: bytes) -> None:
        """One operation by *rolls*."""
        dice = Dice(rolls)
        made = self.kinds[dice.roll()](dice)
        if made is None:
            return
        operation, data = made
        uid = dice.one_of(UIDS)
        cut = -1
        if not isinstance(operation, ControlOperation) and dice.maybe(20):
            short = isinstance(operation, Write) and len(data) > 1 and dice.maybe(128)
            cut = len(data) // 2 if short else 0
        self.add(operation, Caller(uid, uid, 77), dice.one_of((1, 1000, 10**9 + 1)), data, cut)

    def import_command(self, rolls: bytes) -> None:
        """Something that was there first."""
        dice = Dice(rolls)
        nobody = Caller(0, 0, 0)
        what = dice.one_of((S_IFREG, S_IFDIR, S_IFLNK, S_IFIFO, 0))
        place = self._free(dice)
        if place is None:
            return
        linked = self._files(S_IFREG)
        if what == 0 and linked:
            self.add(ImportLink(dice.one_of(linked), *place), nobody, 1)
            return
        what = what or S_IFREG
        size = dice.one_of(_SIZES) if what == S_IFREG else 0
        uid = dice.one_of(UIDS)
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        mode = what | dice.one_of(_MODES)
        if what in (S_IFREG, S_IFDIR) and dice.maybe(100):
            found = {XATTRS[0]: b"first"}
            if dice.maybe(128):
                found[CAPABILITY] = dice.one_of(CAPABILITIES)
            if dice.maybe(100):
                found[ACCESS_ACL] = dice.one_of(_ACLS[:2])
                mode = mode & ~0o777 | mode_of_acl(found[ACCESS_ACL])
            if what == S_IFDIR and dice.maybe(128):
                found[DEFAULT_ACL] = dice.one_of(_ACLS)
            xattrs = tuple(sorted(found.items()))
        fid = self._new_fid()
        mtime_ns = dice.one_of(_TIMES_NS)
        operation = Import(
            fid, *place, mode, uid, uid, 0, size, mtime_ns,
            b"to/where" if what == S_IFLNK else None, xattrs, size == 0,
        )  # fmt: skip
        self.add(operation, nobody, 1)
        if size > 5:
            self.add(ImportData(fid, size // 2, mtime_ns, False), nobody, 1, b"in the middle"[:2])
        if size:
            self.add(ImportData(fid, size - 1, mtime_ns, True), nobody, 1, b"e")

    # -- choices -----------------------------------------------------------------------------------

    def _files(self, *types: int) -> list[Fid]:
        return [fid for fid, file in self.model.files.items() if file.type in types]

    def _new_fid(self) -> Fid:
        self.next_fid = Fid(self.next_fid + 1)
        return Fid(self.next_fid - 1)

    def _free(self, dice: Dice) -> Dentry | None:
        """A name that is not taken."""
        directory, first = dice.one_of(self._files(S_IFDIR)), dice.roll()
        for number in range(len(NAMES)):
            place = (directory, NAMES[(first + number) % len(NAMES)])
            if place not in self.model.names:
                return place
        return None

    def _named(self, dice: Dice, *, directories: bool) -> tuple[Dentry, Fid] | None:
        found = [
            (place, fid)
            for place, fid in self.model.names.items()
            if self.model.is_directory(fid) == directories
        ]
        return dice.one_of(found) if found else None

    # -- operations --------------------------------------------------------------------------------

    Made = tuple[Operation, bytes] | None

    def mark(self, dice: Dice) -> Made:
        return Mark(dice.one_of(("noon", "before"))), b""

    def restart(self, dice: Dice) -> Made:
        self.add(Clean(), Caller(0, 0, 0), 1)
        self.epoch = Epoch(self.epoch + 1)
        self.next_fid = first_fid(self.epoch)
        return NewEpoch(self.epoch, "lost machine"), b""

    def create(self, dice: Dice) -> Made:
        place = self._free(dice)
        if place is None:
            return None
        what = dice.one_of((S_IFREG, S_IFREG, S_IFREG, S_IFREG, S_IFIFO, S_IFSOCK, S_IFCHR))
        rdev = os.makedev(1, 3) if what == S_IFCHR else 0
        uid = dice.one_of(UIDS)
        mode, acl, _ = self._new_mode(place[0], what | dice.one_of(_MODES))
        return Create(self._new_fid(), *place, mode, uid, uid, rdev, acl), b""

    def mkdir(self, dice: Dice) -> Made:
        place = self._free(dice)
        if place is None:
            return None
        uid = dice.one_of(UIDS)
        mode, *acls = self._new_mode(place[0], S_IFDIR | dice.one_of(_MODES))
        return Mkdir(self._new_fid(), *place, mode, uid, uid, *acls), b""

    def _new_mode(self, parent: Fid, mode: int) -> NewMode:
        """Mode and ACLs of what is made with *mode* in *parent*."""
        directory = self.model.files[parent]
        return new_mode(mode, 0, directory.mode, dict(directory.xattrs).get(DEFAULT_ACL))

    def symlink(self, dice: Dice) -> Made:
        place = self._free(dice)
        if place is None:
            return None
        uid = dice.one_of(UIDS)
        return Symlink(self._new_fid(), *place, dice.one_of((b"x", b"\xfe/..")), uid, uid), b""

    def link(self, dice: Dice) -> Made:
        found, place = self._named(dice, directories=False), self._free(dice)
        return None if found is None or place is None else (Link(found[1], *place), b"")

    def unlink(self, dice: Dice) -> Made:
        found = self._named(dice, directories=False)
        return None if found is None else (Unlink(found[1], *found[0]), b"")

    def rmdir(self, dice: Dice) -> Made:
        empty = self._empty()
        if empty and dice.maybe(200):
            place = dice.one_of(empty)
            return Rmdir(self.model.names[place], *place), b""
        found = self._named(dice, directories=True)
        return None if found is None else (Rmdir(found[1], *found[0]), b"")

    def _empty(self) -> list[Dentry]:
        """The names of empty directories."""
        return [
            place
            for place, fid in self.model.names.items()
            if self.model.is_directory(fid) and not self.model.children(fid)
        ]

    def rename(self, dice: Dice) -> Made:
        found = self._named(dice, directories=dice.maybe(128))
        if found is None:
            return None
        place, fid = found
        new_parents = self._files(S_IFDIR)
        if self.model.is_directory(fid) and not dice.maybe(20):
            new_parents = [one for one in new_parents if not self.model.is_below(one, fid)]
        new_parent, new_name = dice.one_of(new_parents), dice.one_of(NAMES)
        empty = self._empty()
        if self.model.is_directory(fid) and empty and dice.maybe(60):
            new_parent, new_name = dice.one_of(empty)
        replaced = self.model.names.get((new_parent, new_name), Fid(0))
        if replaced == fid:
            return None
        flags = dice.one_of((0, 0, RENAME_EXCHANGE) if replaced else (0, RENAME_NOREPLACE))
        operation = Rename(fid, *place, new_parent, new_name, flags, replaced)
        if replaced and not flags:
            try:
                self.model.copy().apply(operation, 0)
            except Refused as refused:
                # Rather something that works; now and then as it is.
                if refused.errno == errno.ENOTEMPTY or dice.maybe(200):
                    operation = operation._replace(flags=RENAME_EXCHANGE)
        if not operation.flags & RENAME_EXCHANGE and dice.maybe(80):
            return self._whiteout(operation, dice), b""
        return operation, b""

    def _whiteout(self, rename: Rename, dice: Dice) -> Whiteout:
        """The same, leaving a whiteout."""
        uid = dice.one_of(UIDS)
        mode, acl, _ = self._new_mode(rename.parent, S_IFCHR)
        moving = rename._replace(flags=rename.flags | RENAME_WHITEOUT)
        return Whiteout(*moving, self._new_fid(), mode, uid, uid, acl)

    def write(self, dice: Dice) -> Made:
        files = self._files(S_IFREG)
        if not files:
            return None
        fid = dice.one_of(files)
        file = self.model.files[fid]
        offset = dice.one_of((*_OFFSETS, len(file.content)))
        data = bytes([65 + dice.roll() % 26]) * dice.one_of(_LENGTHS)
        mode = file.mode & ~0o6000 if file.mode & 0o6000 else None
        return Write(fid, offset, mode), data

    def truncate(self, dice: Dice) -> Made:
        files = self._files(S_IFREG)
        if not files:
            return None
        fid = dice.one_of(files)
        mode = self.model.files[fid].mode
        cleared = mode & ~0o6000 if mode & 0o6000 else None
        return Truncate(fid, dice.one_of(_SIZES), cleared), b""

    def allocate(self, dice: Dice) -> Made:
        files = self._files(S_IFREG)
        if not files:
            return None
        fid = dice.one_of(files)
        mode = self.model.files[fid].mode
        cleared = mode & ~0o6000 if mode & 0o6000 else None
        flags = dice.one_of(_ALLOCATIONS)
        return Fallocate(fid, flags, dice.one_of(_OFFSETS), dice.one_of(_ROOMS), cleared), b""

    def setattr(self, dice: Dice) -> Made:
        fid = dice.one_of(list(self.model.files))
        mode = dice.one_of((None, *_MODES))
        if self.model.files[fid].type == S_IFLNK:
            mode = None
        uid, gid = dice.one_of((None, *UIDS)), dice.one_of((None, None, *UIDS))
        mtime_ns = dice.one_of((None, None, *_TIMES_NS))
        if mode is None and uid is None and gid is None and mtime_ns is None:
            mtime_ns = _TIMES_NS[0]
        return Setattr(fid, mode, uid, gid, dice.one_of((None, 5)), mtime_ns), b""

    def setxattr(self, dice: Dice) -> Made:
        fid = dice.one_of(self._files(S_IFREG, S_IFDIR))
        name = dice.one_of((XATTRS[0], CAPABILITY, ACCESS_ACL, DEFAULT_ACL, XATTRS[1], CAPABILITY))
        if name == DEFAULT_ACL and not self.model.is_directory(fid):
            name = CAPABILITY
        values = {CAPABILITY: CAPABILITIES, ACCESS_ACL: _ACLS, DEFAULT_ACL: _ACLS}
        return Setxattr(fid, name, dice.one_of(values.get(name, (b"", b"1", b"\0\xff")))), b""

    def removexattr(self, dice: Dice) -> Made:
        files = [fid for fid, file in self.model.files.items() if file.xattrs]
        if not files:
            return None
        fid = dice.one_of(files)
        return Removexattr(fid, dice.one_of(self.model.files[fid].xattrs)[0]), b""


def make_workload(
    imports: Sequence[bytes], commands: Sequence[bytes], segment_entries: int, care: bytes
) -> Workload:
    """The workload that these bytes stand for."""
    workload = Workload(segment_entries=segment_entries, care=care)
    builder = Builder(workload)
    builder.begin()
    for rolls in imports:
        builder.import_command(rolls)
    for rolls in commands:
        builder.command(rolls)
    builder.add(Mark("end"), Caller(0, 0, 0), 1)
    return workload


def workload_of(*operations: Operation, segment_entries: int = 10) -> Workload:
    """A journal of these by root, the first of them being entry 3."""
    workload = Workload(segment_entries=segment_entries)
    model = Model()
    root = Setattr(ROOT_FID, 0o755, 0, 0, None, 5)
    for operation in (NewEpoch(Epoch(1), "a new volume"), root, *operations):
        data = b"x" if isinstance(operation, Write) else b""
        step = Step(operation, Caller(0, 0, 0), len(workload.steps) + 1, data)
        step.apply_to(model)
        workload.steps.append(step)
        workload.models.append(model.copy())
    return workload


def make_directory(fid: Fid, parent: Fid, name: bytes) -> Mkdir:
    """A plain one."""
    return Mkdir(fid, parent, name, S_IFDIR | 0o755, 0, 0, None, None)


def make_file(fid: Fid, parent: Fid, name: bytes) -> Create:
    """A plain one."""
    return Create(fid, parent, name, S_IFREG | 0o644, 0, 0, 0, None)


_ROLLS = st.binary(min_size=12, max_size=12)


def workloads(
    min_size: int = 20, max_size: int = 120, imports: int = 8
) -> st.SearchStrategy[Workload]:
    """Workloads of so many operations, after at most so many *imports*."""
    return st.builds(
        make_workload,
        st.lists(_ROLLS, max_size=imports),
        st.lists(_ROLLS, min_size=min_size, max_size=max_size),
        st.sampled_from((10, 4, 25, 1000)),
        st.binary(min_size=1, max_size=4),
    )


@contextmanager
def workspace() -> Iterator[Path]:
    """A new directory, in memory where that holds what workloads set, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="fusejournal.", dir=_base()) as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def _base() -> str | None:
    """tmpfs takes user attributes only since Linux 6.6."""
    memory = "/dev/shm"
    try:
        with tempfile.TemporaryDirectory(dir=memory) as name:
            os.setxattr(name, "user.test", b"")
    except OSError:
        return None
    return memory


def unlike(directory: Path, model: Model, top: Fid = ROOT_FID) -> str:
    """How *directory* differs from *model*, from *top* down; empty when it does not."""
    return difference(image(directory), model.image(top))
