"""The states of files and directories by the journal, but for their names and contents: folded from
their own entries, in one pass over the segments that have any."""

from collections.abc import Collection
from stat import S_IFDIR, S_IFLNK, S_IFMT
from typing import Any, NamedTuple

from fusejournal.disk.acls import (
    ACCESS_ACL_XATTR,
    ACLS,
    CAPABILITY_XATTR,
    DEFAULT_ACL_XATTR,
    XFS_OWN_XATTRS,
    after_chmod,
    is_in_mode,
    mode_of,
)
from fusejournal.file_operations import Fallocate, SetFlags
from fusejournal.history.lookup import Lookup
from fusejournal.journal.format import Entry
from fusejournal.journal.index import Posting
from fusejournal.journal.outcomes import Outcome
from fusejournal.operations import (
    ATTRIBUTE_KINDS,
    MAKERS,
    WRITING_KINDS,
    Create,
    Import,
    ImportData,
    Kind,
    Making,
    Mkdir,
    Removexattr,
    Setattr,
    Setxattr,
    Symlink,
    TreeOperation,
    Truncate,
    Write,
    made_by,
)
from fusejournal.types import ROOT_FID, Fid, Seq

_NOT_PLAIN = ACLS | XFS_OWN_XATTRS
"""Imports of earlier versions had those of XFS."""
_EMPTY_ACL_BYTES = 4
"""An ACL without entries is none: setting it takes away the one there is."""
_KINDS = MAKERS | WRITING_KINDS | ATTRIBUTE_KINDS


class Permissions(NamedTuple):
    """The permissions that a file or directory grants."""

    mode: int | None
    """The mode without the type; None where no entry records it, as of a symlink."""
    acl: bytes | None
    """None where the mode says it all."""
    default_acl: bytes | None


def target_of(maker: Making) -> bytes | None:
    """Returns the target of a symlink."""
    return maker.target if isinstance(maker, Symlink | Import) else None


def type_of(maker: Making) -> int:
    """The type bits of its mode."""
    if isinstance(maker, Mkdir):
        return S_IFDIR
    return S_IFLNK if isinstance(maker, Symlink) else S_IFMT(maker.mode)


def rdev_of(maker: Making) -> int:
    """Returns the number of a device; else 0."""
    return maker.rdev if isinstance(maker, Create | Import) else 0


class State:
    """One file or directory."""

    __slots__ = (
        "fid",
        "flags",
        "floor",
        "gid",
        "last_time_ns",
        "made_seq",
        "maker",
        "mtime_ns",
        "size",
        "steps",
        "uid",
        "written_bytes",
        "xattrs",
    )

    def __init__(self, fid: Fid, flags: int | None = None) -> None:
        self.fid = fid
        self.maker: Making | None = None
        """The operation that made it; None for the root, and where the journal here begins
        later."""
        self.made_seq = Seq(0)
        self.uid: int | None = None
        self.gid: int | None = None
        self.size = 0
        """The size in bytes."""
        self.floor = 0
        """The least size that it had at the checkpoint or later."""
        self.written_bytes = 0
        """The bytes that all its entries together wrote."""
        self.last_time_ns = 0
        """The time of its last entry."""
        self.mtime_ns: int | None = None
        """The mtime; of a directory, as far as entries about itself record: names made and removed
        in it change it, too."""
        self.steps: list[TreeOperation] = []
        """The steps to its mode and ACLs, which change each other, in order."""
        self.xattrs: dict[bytes, bytes] = {}
        """All others."""
        self.flags = flags
        """The journaled file flags; None where no entry records any."""

    @classmethod
    def of_import(cls, operation: Import, flags: int | None = None) -> "State":
        """The state of a file that *operation*, made of what is known of it, tells wholly, but for
        its file flags; its floor is its size."""
        state = cls(operation.fid, flags)
        state.mtime_ns = operation.mtime_ns
        state._take_maker(operation, Seq(0))
        state.floor = state.size
        return state

    def copy(self) -> "State":
        """Returns another one that is the same, and takes what this one does not."""
        other = State(self.fid, self.flags)
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        other.steps, other.xattrs = list(self.steps), dict(self.xattrs)
        return other

    def take_mtime(self, mtime_ns: int | None) -> None:
        """Have another mtime than entries about itself record: of a directory, by a name in it."""
        self.mtime_ns = mtime_ns

    def take(self, entry: Entry, outcome: Outcome) -> None:
        """Be what it is after *entry*, which held at least in part."""
        operation: Any = made_by(entry.operation) or entry.operation
        self.last_time_ns = entry.time_ns
        if isinstance(operation, Import | ImportData):
            self.mtime_ns = operation.mtime_ns
        elif isinstance(operation, Setattr):
            self.mtime_ns = self.mtime_ns if operation.mtime_ns is None else operation.mtime_ns
        elif not isinstance(operation, Setxattr | Removexattr | SetFlags):
            self.mtime_ns = entry.time_ns
        match operation:
            case Create() | Mkdir() | Symlink() | Import():
                self._take_maker(operation, entry.seq)
            case Write() | ImportData():
                length = len(outcome.data_of(entry))
                self.written_bytes += length
                if length:
                    self.size = max(self.size, operation.offset + length)
                if isinstance(operation, Write):
                    self._take_mode(operation.mode)
                    if length:
                        self.xattrs.pop(CAPABILITY_XATTR, None)
            case Truncate():
                self.size = operation.size
                self.floor = min(self.floor, self.size)
                self._take_mode(operation.mode)
                self.xattrs.pop(CAPABILITY_XATTR, None)
            case Fallocate():
                self.size = operation.size_after(self.size)
                self._take_mode(operation.mode)
                self.xattrs.pop(CAPABILITY_XATTR, None)
            case Setattr():
                is_given_away = operation.uid is not None or operation.gid is not None
                if is_given_away and not self._is_directory:
                    self.xattrs.pop(CAPABILITY_XATTR, None)
                self.uid = operation.uid if operation.uid is not None else self.uid
                self.gid = operation.gid if operation.gid is not None else self.gid
                self._take_mode(operation.mode)
            case Setxattr() | Removexattr():
                self._take_xattr(operation)
            case SetFlags():
                self.flags = operation.flags

    def permissions(self) -> Permissions:
        """Mode and ACLs after all steps."""
        mode: int | None = None
        acls: dict[bytes, bytes] = {}
        for step in self.steps:
            if isinstance(step, Setattr):
                mode = step.mode
                if mode is not None and ACCESS_ACL_XATTR in acls:
                    acls[ACCESS_ACL_XATTR] = after_chmod(acls[ACCESS_ACL_XATTR], mode)
            elif isinstance(step, Setxattr) and len(step.value) > _EMPTY_ACL_BYTES:
                acls[step.name] = step.value
                if step.name == ACCESS_ACL_XATTR:
                    mode = (mode or 0) & 0o7000 | mode_of(step.value)
                    if is_in_mode(step.value):
                        del acls[ACCESS_ACL_XATTR]
            elif isinstance(step, Setxattr | Removexattr):
                acls.pop(step.name, None)
        return Permissions(mode, acls.get(ACCESS_ACL_XATTR), acls.get(DEFAULT_ACL_XATTR))

    @property
    def _is_directory(self) -> bool:
        return type_of(self.maker) == S_IFDIR if self.maker is not None else self.fid == ROOT_FID

    def _take_maker(self, operation: Making, seq: Seq) -> None:
        if isinstance(operation, Create):
            # One that was made before is made anew, where its naming was taken back then.
            self.size, self.floor, self.xattrs, self.flags = 0, 0, {}, None
        self.maker, self.made_seq = operation, seq
        self.uid, self.gid = operation.uid, operation.gid
        acls: list[tuple[bytes, bytes]] = []
        if isinstance(operation, Import):
            self.size = operation.size
            found = operation.xattrs
            self.xattrs = {name: value for name, value in found if name not in _NOT_PLAIN}
            acls = [(name, value) for name, value in operation.xattrs if name in ACLS]
        if isinstance(operation, Create | Mkdir) and operation.acl is not None:
            acls.append((ACCESS_ACL_XATTR, operation.acl))
        if isinstance(operation, Mkdir) and operation.default_acl is not None:
            acls.append((DEFAULT_ACL_XATTR, operation.default_acl))
        self.steps = [Setxattr(self.fid, name, value) for name, value in acls]
        if not isinstance(operation, Symlink) and target_of(operation) is None:
            self._take_mode(operation.mode & 0o7777)

    def _take_mode(self, mode: int | None) -> None:
        if mode is None:
            return
        if self.steps and isinstance(self.steps[-1], Setattr):
            self.steps.pop()
        self.steps.append(Setattr(self.fid, mode, None, None, None, None))

    def _take_xattr(self, operation: Setxattr | Removexattr) -> None:
        if operation.name in ACLS:
            self.steps.append(operation)
        elif operation.name in XFS_OWN_XATTRS:
            return
        elif isinstance(operation, Setxattr):
            self.xattrs[operation.name] = operation.value
        else:
            self.xattrs.pop(operation.name, None)


def read_states(
    lookup: Lookup, fids: Collection[Fid], before_seq: Seq, checkpoint_seq: Seq
) -> dict[Fid, State]:
    """The states of *fids* before entry *before_seq*; their floors count from *checkpoint_seq* on.
    Raises JournalDamagedError."""
    states = {fid: State(fid) for fid in fids}
    is_after = False
    # (Of contents the lengths alone are asked for.)
    entries = lookup.entries_of_many(fids, before_seq, is_about, lambda *_: False)
    for entry, outcome in entries:
        if entry.seq > checkpoint_seq and not is_after:
            is_after = True
            for state in states.values():
                state.floor = state.size
        if outcome.held:
            states[fid_of(entry)].take(entry, outcome)
    if not is_after:
        for state in states.values():
            state.floor = state.size
    return states


def fid_of(entry: Entry) -> Fid:
    """The file whose state *entry*, one that :func:`is_about` holds for, changes."""
    operation: Any = made_by(entry.operation) or entry.operation
    fid: Fid = operation.fid
    return fid


def lacks_maker(state: State) -> bool:
    """Returns True if the journal here does not record what it was made as."""
    return state.maker is None and state.fid != ROOT_FID


def is_about(posting: Posting) -> bool:
    """Returns True if an entry may change the state of the fid that it is posted for."""
    if posting.is_parent or posting.kind not in _KINDS:
        return False
    return not posting.refused or posting.kind == Kind.WRITE
