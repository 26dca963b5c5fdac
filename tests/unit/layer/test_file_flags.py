"""File flags without a mount: what is answered, what may be set, and what they forbid."""

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusejournal.disk import failpoints, syscalls
from fusejournal.file_operations import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FLAG_APPEND,
    FLAG_IMMUTABLE,
    FLAG_NODUMP,
    LOCKING_FLAGS,
    SetFlags,
    flag_letters,
)
from fusejournal.history.file_flags import flags_before
from fusejournal.history.file_states import read_states
from fusejournal.history.lookup import Lookup
from fusejournal.layer.file_flags import (
    FS_IOC_FSGETXATTR,
    FS_IOC_FSSETXATTR,
    FS_IOC_GETFLAGS,
    FS_IOC_SETFLAGS,
    FileFlags,
)
from fusejournal.layer.kernel_protocol import AttributeChange
from fusejournal.types import ROOT_FID, Fid, Seq
from tests.support.volumes import SOMEBODY, OpenVolume, open_volume

_NOTHING = AttributeChange(None, None, None, None, None, None)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[OpenVolume]:
    with open_volume(tmp_path) as opened:
        yield opened


@pytest.fixture
def flags(opened: OpenVolume) -> FileFlags:
    return FileFlags(opened.volume.tree, opened.volume.catalog)


def _set(opened: OpenVolume, fid: Fid, flags: int) -> Seq:
    return opened.volume.commit(SetFlags(fid, flags), SOMEBODY)


def _has(flags: FileFlags, fid: Fid) -> int:
    (found,) = struct.unpack("=I", flags.answer(fid, FS_IOC_GETFLAGS))
    return int(found)


def test_they_are_answered_and_asked_for(opened: OpenVolume, flags: FileFlags) -> None:
    fid = opened.create("file", b"content")
    was = _has(flags, fid)
    assert flags.asked_for(fid, FS_IOC_SETFLAGS, struct.pack("=I", was)) is None
    wanted = was | FLAG_IMMUTABLE | FLAG_NODUMP
    operation = flags.asked_for(fid, FS_IOC_SETFLAGS, struct.pack("=I", wanted))
    assert operation == SetFlags(fid, FLAG_IMMUTABLE | FLAG_NODUMP)
    opened.volume.commit(operation, SOMEBODY)
    assert _has(flags, fid) == wanted
    with open(opened.backing / "file", "rb") as file:
        assert syscalls.get_file_flags(file.fileno()) == was | FLAG_NODUMP
    xattr = flags.answer(fid, FS_IOC_FSGETXATTR)
    xflags, *others = struct.unpack("=5I8x", xattr)
    assert xflags & 0x1FE == 0x88
    # While it is immutable, nothing else changes.
    without = struct.pack("=5I8x", xflags & ~0x80, *others)
    with pytest.raises(PermissionError):
        flags.asked_for(fid, FS_IOC_FSSETXATTR, without)
    without = struct.pack("=5I8x", xflags & ~0x88 | 0x10, *others)
    assert flags.asked_for(fid, FS_IOC_FSSETXATTR, without) == SetFlags(fid, FLAG_APPEND)
    project = struct.pack("=5I8x", xflags, others[0], others[1], 7, others[3])
    for setting, data in (
        (FS_IOC_SETFLAGS, struct.pack("=I", wanted | 1 << 28)),
        (FS_IOC_FSSETXATTR, project),
    ):
        with pytest.raises(OSError, match="not supported"):
            flags.asked_for(fid, setting, data)
    for setting in (FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR):
        with pytest.raises(OSError, match="Invalid"):
            flags.asked_for(fid, setting, b"abc")


def _answers(flags: FileFlags, file: Fid, directory: Fid) -> list[str]:
    """The names of what is forbidden."""
    one = _NOTHING._replace
    asked: dict[str, Callable[[], None]] = {
        "read": lambda: flags.check_open(file, os.O_RDONLY),
        "open": lambda: flags.check_open(file, os.O_RDWR),
        "append": lambda: flags.check_open(file, os.O_WRONLY | os.O_APPEND),
        "empty": lambda: flags.check_open(file, os.O_RDONLY | os.O_TRUNC),
        "overwrite": lambda: flags.check_write(file, 6),
        "add": lambda: flags.check_write(file, 7),
        "allocate": lambda: flags.check_allocation(file, FALLOC_KEEP_SIZE),
        "punch": lambda: flags.check_allocation(file, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE),
        "touch": lambda: flags.check_attributes(file, one(mtime_ns=5)),
        "kill": lambda: flags.check_attributes(file, _NOTHING),
        "time": lambda: flags.check_attributes(file, one(mtime_ns=5, sets_times=True)),
        "mode": lambda: flags.check_attributes(file, one(mode=0o600)),
        "owner": lambda: flags.check_attributes(file, one(gid=7)),
        "xattr": lambda: flags.check_xattr(file, b"user.a"),
        "capability": lambda: flags.check_xattr(file, b"security.capability"),
        "link": lambda: flags.check_link(file, ROOT_FID),
        "move": lambda: flags.check_move(file, ROOT_FID, ROOT_FID, None),
        "unlink": lambda: flags.check_removal(ROOT_FID, file),
        "make in": lambda: flags.check_making(directory),
        "remove in": lambda: flags.check_removal(directory, Fid(1)),
        "move into": lambda: flags.check_move(Fid(1), ROOT_FID, directory, None),
        "replace": lambda: flags.check_move(Fid(1), ROOT_FID, ROOT_FID, file),
    }
    forbidden = []
    for name, ask in asked.items():
        try:
            ask()
        except PermissionError:
            forbidden.append(name)
    return forbidden


def test_what_they_forbid(opened: OpenVolume, flags: FileFlags) -> None:
    file, directory = opened.create("file", b"content"), opened.mkdir("directory")
    assert not opened.volume.catalog.has_locked
    assert _answers(flags, file, directory) == []
    for fid in (file, directory):
        _set(opened, fid, FLAG_APPEND)
    assert opened.volume.catalog.has_locked
    assert _answers(flags, file, directory) == [
        *("open", "empty", "overwrite", "punch", "time", "mode", "owner", "xattr"),
        *("link", "move", "unlink", "remove in", "replace"),
    ]
    for fid in (file, directory):
        _set(opened, fid, FLAG_IMMUTABLE)
    assert _answers(flags, file, directory) == [
        *("open", "append", "empty", "overwrite", "add", "allocate", "punch", "touch", "kill"),
        *("time", "mode", "owner", "xattr", "capability", "link", "move", "unlink", "make in"),
        *("remove in", "move into", "replace"),
    ]
    for fid in (file, directory):
        _set(opened, fid, 0)
    assert _answers(flags, file, directory) == []


def test_the_catalog_and_the_journal_have_them(tmp_path: Path) -> None:
    with open_volume(tmp_path) as opened:
        one, other = opened.create("one"), opened.create("other")
        first = _set(opened, one, FLAG_IMMUTABLE | FLAG_NODUMP)
        _set(opened, other, FLAG_APPEND)
        _set(opened, other, 1 << 30)  # of a later version
        failpoints.listen(failpoints.PlannedFault("apply.flags", 1, "EOPNOTSUPP"))
        try:
            with pytest.raises(OSError, match="not supported"):
                _set(opened, one, 0)
        finally:
            failpoints.listen(None)
        opened.volume.catalog.commit()
    with open_volume(tmp_path) as opened:
        catalog, reader = opened.volume.catalog, opened.volume.journal.reader
        assert catalog.locked_files() == [(one, FLAG_IMMUTABLE | FLAG_NODUMP)]
        assert catalog.has_locked
        lookup, end = Lookup(reader), Seq(opened.volume.journal.head_seq + 1)
        assert flags_before(lookup, {one, other}, end) == {
            one: FLAG_IMMUTABLE | FLAG_NODUMP,
            other: 1 << 30,
        }
        assert flags_before(lookup, {one}, first) == {}
        assert flags_before(lookup, {one}, end, lambda seq: seq != first) == {one: 0}
        states = read_states(lookup, {one, other}, end, Seq(0))
        assert states[one].flags == FLAG_IMMUTABLE | FLAG_NODUMP
        before = read_states(lookup, {one}, first, Seq(0))[one]
        assert before.flags is None
        assert before.mtime_ns == states[one].mtime_ns


def test_what_a_file_system_lacks_is_left_out_of_others_entries(
    opened: OpenVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One flag of two that it has not."""
    fid = opened.create("file")
    real = syscalls.set_file_flags

    def set_file_flags(fd: int, flags: int) -> None:
        if flags & 0x80:
            raise OSError(95, "not supported")
        real(fd, flags)

    monkeypatch.setattr(syscalls, "set_file_flags", set_file_flags)
    applier = opened.volume.applier
    with pytest.raises(OSError, match="not supported"):
        applier.apply(SetFlags(fid, 0x80 | FLAG_NODUMP), 0, b"")
    applier.apply(SetFlags(fid, 0x80 | FLAG_NODUMP), 0, b"", True)
    with open(opened.backing / "file", "rb") as file:
        assert syscalls.get_file_flags(file.fileno()) & (0x80 | FLAG_NODUMP) == FLAG_NODUMP


def test_their_letters() -> None:
    assert flag_letters(LOCKING_FLAGS | FLAG_NODUMP) == "iad"
    assert flag_letters(0) == "-"
