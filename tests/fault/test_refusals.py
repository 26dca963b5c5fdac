"""A change that is refused leaves no trace: whichever of its calls fails, the backing is what it
was before, to the nanosecond of every mtime, or the volume stops. And files that no user may change
(chattr) are refused alone."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG

import pytest

from fusejournal.disk import failpoints
from fusejournal.errors import FusejournalError, ShortWriteError
from fusejournal.file_operations import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    FLAG_NODUMP,
    Fallocate,
    SetFlags,
)
from fusejournal.journal.outcomes import with_outcomes
from fusejournal.journal.reader import END
from fusejournal.operations import (
    RENAME_EXCHANGE,
    RENAME_WHITEOUT,
    Create,
    Import,
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
from fusejournal.types import ROOT_FID, Fid, Seq
from tests.support.trees import difference, image, rebuild
from tests.support.volumes import SOMEBODY, OpenVolume, open_volume
from tests.support.xattrs import ACCESS_ACL, CAPABILITIES, CAPABILITY, DEFAULT_ACL, make_acl

pytestmark = pytest.mark.mount

_ACL = make_acl(7, 6, 5, 4, 1)
_MUST_WORK = frozenset(
    {"apply.times.directory", "apply.write.times", "apply.write.mode", "orphan.times"}
)
"""Labels of calls that come when an operation is done but for them: a failure stops the volume."""
_MAY_FAIL = frozenset(
    {
        *("orphan.directory", "orphan.link", "orphan.unlink", "orphan.leave"),
        "apply.fallocate.empty",
    }
)
"""Labels of calls that an operation can do without."""
_PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE


class Scene:
    """An open volume with a few files in it."""

    def __init__(self, opened: OpenVolume) -> None:
        self.opened = opened
        self.volume = opened.volume
        self.plain = opened.mkdir("plain")
        self.strict = opened.mkdir("strict")
        self.commit(Setxattr(self.strict, DEFAULT_ACL, _ACL))
        self.file = opened.create("file", b"content" * 1000)
        self.other = opened.create("other", b"other", self.plain)
        self.gone = opened.mkdir("gone", self.plain)
        self.fifo = self.volume.new_fid()
        self.commit(Create(self.fifo, ROOT_FID, b"fifo", S_IFIFO | 0o644, 0, 0, 0, None))
        self.commit(Setattr(self.file, 0o6755, 7, 7, None, None))
        self.commit(Setxattr(self.file, CAPABILITY, CAPABILITIES[0]))
        self.commit(Setxattr(self.file, b"user.one", b"1"))
        for fid in (ROOT_FID, self.plain, self.strict, self.file, self.other, self.gone):
            self.commit(Setattr(fid, None, None, None, None, 10**18 + fid))

    def commit(self, operation: TreeOperation, data: bytes = b"") -> None:
        self.volume.commit(operation, SOMEBODY, data)

    def operations(self) -> Iterator[tuple[str, TreeOperation, bytes]]:
        """One of each kind, all of which would work."""
        fid, file, plain, strict = self.volume.new_fid(), self.file, self.plain, self.strict
        for parent in (plain, strict):
            acl = _ACL if parent == strict else None
            mode = 0o741 if acl else 0o751
            where = "below a default ACL" if acl else "plain"
            for type_, rdev in ((S_IFREG, 0), (S_IFIFO, 0), (S_IFCHR, 259)):
                yield (
                    f"create {type_:o} {where}",
                    Create(fid, parent, b"new", type_ | mode, 7, 8, rdev, acl),
                    b"",
                )
            yield f"mkdir {where}", Mkdir(fid, parent, b"new", S_IFDIR | mode, 7, 8, acl, acl), b""
            yield f"symlink {where}", Symlink(fid, parent, b"new", b"to", 7, 8), b""
            for type_, target in ((S_IFREG, None), (S_IFDIR, None), (S_IFLNK, b"to")):
                xattrs = () if target else ((CAPABILITY, CAPABILITIES[1]), (b"user.one", b""))
                yield (
                    f"import {type_:o} {where}",
                    Import(
                        fid,
                        parent,
                        b"new",
                        type_ | 0o750,
                        7,
                        8,
                        0,
                        5,
                        10**18,
                        target,
                        xattrs,
                        False,
                    ),
                    b"",
                )
            yield f"import link {where}", ImportLink(file, parent, b"new"), b""
            yield f"link {where}", Link(file, parent, b"new"), b""
        yield "unlink", Unlink(self.other, plain, b"other"), b""
        yield "rmdir", Rmdir(self.gone, plain, b"gone"), b""
        yield "rename", Rename(file, ROOT_FID, b"file", plain, b"new", 0, Fid(0)), b""
        yield "replace", Rename(file, ROOT_FID, b"file", plain, b"other", 0, self.other), b""
        yield (
            "exchange",
            Rename(file, ROOT_FID, b"file", plain, b"gone", RENAME_EXCHANGE, self.gone),
            b"",
        )
        whiteout = (fid, S_IFCHR, 7, 8, None)
        moved = Rename(file, ROOT_FID, b"file", plain, b"new", RENAME_WHITEOUT, Fid(0))
        yield "whiteout", Whiteout(*moved, *whiteout), b""
        replacing = moved._replace(new_name=b"other", replaced=self.other)
        yield "whiteout and replace", Whiteout(*replacing, *whiteout), b""
        replacing = replacing._replace(fid=strict, name=b"strict")
        replacing = replacing._replace(new_name=b"gone", replaced=self.gone)
        yield "whiteout of a directory", Whiteout(*replacing, *whiteout[:-1], _ACL), b""
        yield "write", Write(file, 100, 0o755), b"x" * 100
        yield "truncate", Truncate(file, 3, 0o755), b""
        yield "allocate", Fallocate(file, 0, 5000, 5000, 0o755), b""
        yield "punch", Fallocate(file, _PUNCH, 1000, 5000, 0o755), b""
        yield "zero", Fallocate(file, FALLOC_ZERO_RANGE, 1000, 9000, 0o755), b""
        yield "setattr", Setattr(file, 0o4755, 8, 9, 5, 6), b""
        yield "setattr fifo", Setattr(self.fifo, 0o600, 8, 9, 5, 6), b""
        yield "setxattr", Setxattr(file, b"user.two", b"2"), b""
        yield "access acl", Setxattr(file, ACCESS_ACL, _ACL), b""
        yield "removexattr", Removexattr(file, b"user.one"), b""
        yield "flags", SetFlags(file, FLAG_NODUMP), b""


@contextmanager
def _scene(base: Path) -> Iterator[Scene]:
    with open_volume(base) as opened:
        yield Scene(opened)


def _names(*beginnings: str) -> list[str]:
    """The names of the operations, but for those that do not begin so."""

    class Any:
        """Has every attribute, as a number."""

        volume = type("", (), {"new_fid": staticmethod(lambda: Fid(9))})
        file = other = gone = fifo = plain = Fid(1)
        strict = Fid(2)

    names = [name for name, _, _ in Scene.operations(Any())]  # type: ignore[arg-type]
    return [name for name in names if not beginnings or name.startswith(beginnings)]


class _FailAt:
    """Fails the call number *count* of the applier's, and tells its label."""

    def __init__(self, count: int, number: int) -> None:
        self.left, self.number = count, number
        self.label = ""

    def __call__(self, label: str) -> None:
        if label.startswith(("apply.", "orphan.")):
            self.left -= 1
            if self.left == 0:
                self.label = label
                raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE], ids=["ENOSPC", "EMFILE"])
@pytest.mark.parametrize("name", [*_names(), *map("open: {}".format, _names("u", "r", "w"))])
def test_every_call_of_every_operation(tmp_path: Path, name: str, number: int) -> None:
    """Also where the files that are removed are open, so that they get a hidden name."""
    is_open, name = name.startswith("open: "), name.removeprefix("open: ")
    count = 0
    is_done = False
    while not is_done:
        count += 1
        with _scene(tmp_path / str(count)) as scene:
            scene.opened.usage.everything_is_open = is_open
            operation, data = next(
                (one, data) for called, one, data in scene.operations() if called == name
            )
            before = image(scene.opened.backing)
            fault = _FailAt(count, number)
            failpoints.listen(fault)
            try:
                scene.commit(operation, data)
            except (OSError, FusejournalError):
                assert fault.label
                if fault.label in _MUST_WORK and scene.volume.failure is not None:
                    continue
                assert scene.volume.failure is None
                assert not difference(image(scene.opened.backing), before), fault.label
            else:
                is_done = not fault.label
                assert is_done or fault.label in _MAY_FAIL, fault.label
                failpoints.listen(None)
                _check_done(scene, operation)
            finally:
                failpoints.listen(None)
    assert count > 1


def _check_done(scene: Scene, operation: TreeOperation) -> None:
    """*operation* held, the tree is what the journal says, and nothing is left of how it came to
    be once the files that it removed are not in use any more."""
    journal, tree, backing = scene.volume.journal, scene.volume.tree, scene.opened.backing
    assert scene.volume.failure is None
    entries = list(with_outcomes(journal.reader.read(Seq(1), END)))
    assert entries[-1][0].operation == operation
    assert entries[-1][1].held
    for fid in (operation.fid, getattr(operation, "replaced", Fid(0))):
        if tree.is_orphan(fid):
            scene.volume.drop_orphan(fid)
    with tree.staging():
        pass  # who comes next cleans up
    assert scene.volume.failure is None
    assert os.listdir(backing).count(os.fsdecode(tree.hidden_name())) == 0
    target = backing.parent / "replayed"
    target.mkdir()
    rebuild(scene.opened.directory / "state", target, journal.uuid)
    assert not difference(image(target), image(backing))


# -- files that no user may change -----------------------------------------------------------------


@contextmanager
def _locked(path: Path, flag: str) -> Iterator[None]:
    subprocess.run(["chattr", f"+{flag}", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", f"-{flag}", path], check=True)


def _changes_of_a_file(scene: Scene) -> list[Callable[[], None]]:
    file, plain = scene.file, scene.plain
    operations: list[TreeOperation] = [
        Write(file, 0, None), Write(file, 5, 0o755), Truncate(file, 3, None),
        Fallocate(file, _PUNCH, 0, 5, None), Fallocate(file, 0, 0, 9000, None),
        Setattr(file, 0o600, None, None, None, None), Setattr(file, 0o600, 1, 1, 5, 6),
        Setattr(file, None, None, None, None, 77), Setxattr(file, b"user.one", b"2"),
        Removexattr(file, b"user.one"), Link(file, plain, b"link"), Unlink(file, ROOT_FID, b"file"),
        Rename(file, ROOT_FID, b"file", plain, b"moved", 0, Fid(0)),
        Rename(scene.other, plain, b"other", ROOT_FID, b"file", 0, file),
    ]  # fmt: skip
    return [
        lambda one=one: scene.commit(one, b"data" * (one.kind.name == "WRITE"))  # type: ignore[misc]
        for one in operations
    ]


@pytest.mark.parametrize("flag", ["i", "a"])
def test_a_locked_file_is_refused_alone(tmp_path: Path, flag: str) -> None:
    with _scene(tmp_path) as scene:
        path = scene.opened.backing / "file"
        scene.volume.tree.writable(scene.file)  # and so it is open for writing
        with _locked(path, flag):
            for change in _changes_of_a_file(scene):
                before = image(scene.opened.backing)
                head = scene.volume.journal.head_seq
                try:
                    change()
                except PermissionError:
                    assert scene.volume.journal.head_seq == head + 2  # entry and VOID
                    assert not difference(image(scene.opened.backing), before)
                else:
                    # Who has an append-only file open for writing since before, may go on.
                    assert flag == "a"
                assert scene.volume.failure is None
            listed = subprocess.run(["lsattr", path], check=True, capture_output=True, text=True)
            assert flag in listed.stdout.split()[0]
        scene.commit(Write(scene.file, 0, None), b"again")
        assert path.read_bytes().startswith(b"again")


@pytest.mark.parametrize("flag", ["i", "a"])
def test_a_locked_directory_is_refused_alone(tmp_path: Path, flag: str) -> None:
    with _scene(tmp_path) as scene:
        path = scene.opened.backing / "plain"
        with _locked(path, flag):
            for name, operation, data in list(scene.operations()):
                if scene.plain not in operation:
                    continue
                before = image(scene.opened.backing)
                try:
                    scene.commit(operation, data)
                except PermissionError:
                    assert not difference(image(scene.opened.backing), before), name
                else:
                    # Names may be added to an append-only directory.
                    assert flag == "a", name
                    _take_back(scene, path, operation)
                assert scene.volume.failure is None, name
            # One that fails half-way is taken away even there.
            before = image(scene.opened.backing)
            failpoints.listen(failpoints.PlannedFault("apply.tag", 1, "ENOSPC"))
            try:
                with pytest.raises(OSError, match=r"denied|permitted|planned"):
                    scene.opened.create("half", b"", scene.plain)
            finally:
                failpoints.listen(None)
            assert not difference(image(scene.opened.backing), before)
            assert scene.volume.failure is None
        scene.opened.create("new", b"", scene.plain)


def _take_back(scene: Scene, directory: Path, operation: TreeOperation) -> None:
    """So that the next one can be made."""
    subprocess.run(["chattr", "-a", directory], check=True)
    fid = operation.fid
    if isinstance(operation, Rename):
        back = (operation.new_parent, operation.new_name, operation.parent, operation.name)
        scene.commit(Rename(fid, *back, 0, Fid(0)))
    elif (directory / "new").is_dir() and not (directory / "new").is_symlink():
        scene.commit(Rmdir(fid, scene.plain, b"new"))
    else:
        scene.commit(Unlink(fid, scene.plain, b"new"))
    subprocess.run(["chattr", "+a", directory], check=True)


def test_entries_of_refused_changes_have_no_effect_elsewhere(tmp_path: Path) -> None:
    """A mirror applies nothing of what was refused."""
    with _scene(tmp_path / "live") as scene:
        for _, operation, data in list(scene.operations()):
            failpoints.listen(_FailAt(1, errno.EDQUOT))
            try:
                with pytest.raises(OSError, match="quota"):
                    scene.commit(operation, data)
            finally:
                failpoints.listen(None)
        journal = scene.volume.journal
        journal.sync()
        uuid = journal.uuid
        with open_volume(tmp_path / "mirror", mirror=True, uuid=uuid) as mirror:
            for entry, outcome in with_outcomes(
                journal.reader.read(Seq(1), Seq(journal.head_seq + 1))
            ):
                mirror.volume.apply_received(entry, outcome, redo=False)
            assert not difference(image(mirror.backing), image(scene.opened.backing))


# -- what a process that died had begun ------------------------------------------------------------


@pytest.mark.parametrize("done", [0, 3, 100])
def test_redo_takes_what_was_written(tmp_path: Path, done: int) -> None:
    """A process died in the midst of a WRITE, and now the disk is full: what is there counts, and
    where nothing is, the mode is what it was."""
    with _scene(tmp_path) as scene:
        path = scene.opened.backing / "file"
        os.chmod(path, 0o6755)
        before = image(scene.opened.backing)
        data = b"d" * 100
        fd = scene.volume.tree.writable(scene.file)
        stat = os.fstat(fd)
        os.pwrite(fd, data[:done], 50)
        failpoints.listen(failpoints.PlannedFault("apply.write", 1, "ENOSPC"))
        write = Write(scene.file, 50, 0o755)
        try:
            scene.volume.applier.apply(write, stat.st_mtime_ns + 1, data, redo=True)
            written = 100
        except ShortWriteError as error:
            written = error.written
        except OSError:
            written = 0
        finally:
            failpoints.listen(None)
        assert written == done
        if not written:
            assert not difference(image(scene.opened.backing), before)
        else:
            assert path.stat().st_mode & 0o7777 == 0o755
            assert path.stat().st_mtime_ns == stat.st_mtime_ns + 1
