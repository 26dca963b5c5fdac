"""Random workloads: sequences of operations as a layer would journal them. A workload is made from
a list of byte strings, one an operation; zeros make MARKs, so that hypothesis can shrink what does
not matter."""

import errno
import os
from collections.abc import Sequence
from stat import S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK
from typing import TypeVar

from hypothesis import strategies as st

from fusejournal.file_operations import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    FLAG_NOATIME,
    FLAG_NODUMP,
    Fallocate,
    SetFlags,
)
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
from tests.support.model import Dentry, Model, Refused
from tests.support.workload import Step, Workload
from tests.support.xattrs import (
    ACCESS_ACL,
    CAPABILITIES,
    CAPABILITY,
    DEFAULT_ACL,
    make_acl,
    mode_of_acl,
)

NAMES = (b"a", b"b", b"c", b"\xff\xfe", "ä ö".encode(), b"a*[")
XATTRS = (b"user.one", b"user.two")
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
Choice = TypeVar("Choice")
_ACLS = (
    make_acl(7, 6, 5, 4, 1),
    make_acl(6, 7, 4, 7, 0),
    make_acl(7, 0, 5, None, 5),
)


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
            *[self.setxattr] * 22,
            *[self.setflags] * 4,
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
        return NewEpoch(self.epoch, "system crash"), b""

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

    def setflags(self, dice: Dice) -> Made:
        """None that lock a file: what is restored of this is to be removed again."""
        fid = dice.one_of(self._files(S_IFREG, S_IFDIR))
        return SetFlags(fid, dice.one_of((FLAG_NODUMP, 0, FLAG_NODUMP | FLAG_NOATIME))), b""

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
