"""A model of the tree in memory. It knows nothing of fusejournal but the operations: files by fid,
names by directory, and the table of mtimes in operations.py. :class:`Model` refuses an operation
whose precondition fails, so it also says which operations of a selection conflict."""

import errno
import hashlib
import os
from stat import S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, S_IMODE
from typing import Any, NamedTuple

from fusejournal.file_operations import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    Fallocate,
    SetFlags,
)
from fusejournal.operations import (
    RENAME_EXCHANGE,
    Create,
    Import,
    ImportData,
    ImportLink,
    Link,
    Mkdir,
    Removexattr,
    Rename,
    Rmdir,
    Setattr,
    Setxattr,
    Symlink,
    TreeOperation,
    Truncate,
    Unlink,
    Whiteout,
    Write,
)
from fusejournal.types import ROOT_FID, Fid
from tests.support.trees import Image
from tests.support.xattrs import (
    ACCESS_ACL,
    CAPABILITY,
    DEFAULT_ACL,
    _acl_entries,
    acl_with_mode,
    mode_of_acl,
)

Dentry = tuple[Fid, bytes]


class Refused(Exception):
    """An operation whose precondition fails; nothing was changed."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.errno = number


class File(NamedTuple):
    """A file of any type. ``mode``: the permission bits."""

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
        self._dentries: dict[Fid, list[Dentry]] | None = None

    def become(self, other: "Model") -> None:
        """Be what *other* is."""
        self.files, self.names, self._dentries = dict(other.files), dict(other.names), None

    def copy(self) -> "Model":
        """The same again, to be changed by itself."""
        other = Model()
        other.files, other.names = dict(self.files), dict(self.names)
        return other

    # -- questions ---------------------------------------------------------------------------------

    def dentries(self, fid: Fid) -> list[Dentry]:
        """Every name of *fid*."""
        if self._dentries is None:
            self._dentries = {}
            for dentry, owner in self.names.items():
                self._dentries.setdefault(owner, []).append(dentry)
        return self._dentries.get(fid, [])

    def path_of_dentry(self, dentry: Dentry) -> bytes:
        """The path of a name."""
        above = self.path(dentry[0])
        assert above is not None
        return above + b"/" + dentry[1] if above else dentry[1]

    def path(self, fid: Fid) -> bytes | None:
        """A path of *fid*."""
        if fid == ROOT_FID:
            return b""
        return next((self.path_of_dentry(dentry) for dentry in self.dentries(fid)), None)

    def paths(self, fid: Fid) -> set[bytes]:
        """Every path of *fid*."""
        if fid == ROOT_FID:
            return {b""}
        return {self.path_of_dentry(dentry) for dentry in self.dentries(fid)}

    def all_paths(self) -> dict[bytes, Fid]:
        """Every path and what it stands for, the root's too."""
        return {b"": ROOT_FID, **{self.path_of_dentry(one): fid for one, fid in self.names.items()}}

    def at(self, path: bytes) -> Fid | None:
        """The fid that *path* stands for."""
        fid: Fid | None = ROOT_FID
        for name in path.split(b"/") if path else ():
            fid = self.names.get((fid, name)) if fid is not None else None
        return fid

    def children(self, directory: Fid) -> dict[bytes, Fid]:
        """The names in *directory*."""
        return {name: fid for (parent, name), fid in self.names.items() if parent == directory}

    def is_directory(self, fid: Fid) -> bool:
        """True if *fid* is one."""
        return self.files[fid].type == S_IFDIR

    def is_below(self, fid: Fid, directory: Fid) -> bool:
        """True if *fid* is *directory* or in it, however deep (by the name of directories)."""
        while fid != directory:
            if fid == ROOT_FID:
                return False
            fid = self.dentries(fid)[0][0]
        return True

    def image(self, top: Fid = ROOT_FID) -> Image:
        """The image that trees.image must find where this tree, from *top* down, was made."""
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
                | Setattr() | Setxattr() | Removexattr() | SetFlags() | ImportData()
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
                    self._set_xattr(fid, ACCESS_ACL, acl_with_mode(acl, mode))
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

    def _put(self, dentry: Dentry, fid: Fid) -> None:
        self.names[dentry] = fid
        self._dentries = None

    def _cut(self, dentry: Dentry) -> None:
        fid = self.names.pop(dentry)
        self._dentries = None
        if not self.dentries(fid):
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
