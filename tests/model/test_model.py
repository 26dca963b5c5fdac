"""A hypothesis state machine: random operations on a layer and on a plain directory, side by
side; same answers, same trees.

It begins before the first mount, so that there is something to import. A kill -9 of the layer, an
orderly stop and the loss of the catalog are rules like any other. In the end the journal alone must
give the backing's tree, to the nanosecond.

``FUSEJOURNAL_MODEL_EXAMPLES`` says how many runs of 300 rules to make (12 by default)."""

import errno
import os
import resource
import shutil
import stat
import struct
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from fusejournal.disk import calls, syscalls
from fusejournal.file_operations import FLAG_IMMUTABLE, FLAG_NODUMP
from tests.model.twins import Twins
from tests.support.trees import difference, fids, image
from tests.support.users import enter_namespace
from tests.support.xattrs import CAPABILITIES

pytestmark = pytest.mark.mount

_ASKED = "FUSEJOURNAL_MODEL_EXAMPLES" in os.environ
_EXAMPLES = int(os.environ.get("FUSEJOURNAL_MODEL_EXAMPLES", "12"))
_STEPS = 300
_STEPS_BETWEEN_STOPS = 40
_USER = 1000

NAMES = [b"a", b"b", b"c", b"\xff\xfe", "ä ö".encode(), b"x" * 255]
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(b"/".join)
SIZES = st.sampled_from((0, 1, 100, 5000, 300_000))
OFFSETS = st.sampled_from((0, 10, 4096, 100_000))
CALLERS = st.sampled_from((0, 0, _USER))
XATTRS = st.sampled_from(("user.one", "user.two", "trusted.three"))
HELD = st.integers(0, 3)
_IN_A_LIMITED_SHELL = (
    *("sh", "-c", 'ulimit -S -f 20 && ulimit -S -n 100 && umask 0777 && exec "$@"', "sh"),
)


def _content(length: int, seed: int) -> bytes:
    return (struct.pack(">Q", seed) * (length // 8 + 1))[:length]


def _acl(user: int, mask: int) -> bytes:
    """An ACL with a named user, in the xattr's format."""
    entries = ((1, 7, -1), (2, user, _USER), (4, 5, -1), (16, mask, -1), (32, 1, -1))
    return struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, permissions, number & 0xFFFFFFFF)
        for tag, permissions, number in entries
    )


def _answer(deed: Callable[[], object]) -> object:
    """Does *deed*. Returns its result, or the name of its error."""
    try:
        return deed()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


class Changes(Twins):
    """All that is done to the two trees."""

    # -- names -------------------------------------------------------------------------------------

    @rule(
        path=PATHS,
        uid=CALLERS,
        mode=st.sampled_from((0o666, 0o600, 0o755)),
        umask=st.sampled_from((0o022, 0o077, 0)),
        extra=st.sampled_from((0, os.O_EXCL, os.O_TRUNC, os.O_APPEND)),
        size=SIZES,
    )
    def create(self, path: bytes, uid: int, mode: int, umask: int, extra: int, size: int) -> None:
        def act(root: bytes) -> int:
            fd = os.open(root + path, os.O_CREAT | os.O_RDWR | os.O_NONBLOCK | extra, mode)
            try:
                return os.write(fd, _content(size, mode))
            finally:
                os.close(fd)

        self.both(act, uid, umask)

    @rule(path=PATHS, uid=CALLERS, mode=st.sampled_from((0o755, 0o2775, 0o1777, 0o777)))
    def mkdir(self, path: bytes, uid: int, mode: int) -> None:
        def act(root: bytes) -> None:
            os.mkdir(root + path, mode)
            os.chmod(root + path, mode)

        self.both(act, uid)

    @rule(path=PATHS, uid=CALLERS)
    def unlink(self, path: bytes, uid: int) -> None:
        self.both(lambda root: os.unlink(root + path), uid)

    @rule(path=PATHS, uid=CALLERS)
    def rmdir(self, path: bytes, uid: int) -> None:
        self.both(lambda root: os.rmdir(root + path), uid)

    @rule(old=PATHS, new=PATHS, uid=CALLERS, flags=st.sampled_from((0, 0, 0, 1, 2, 4, 4)))
    def rename(self, old: bytes, new: bytes, uid: int, flags: int) -> None:
        here = syscalls.AT_FDCWD
        self.both(lambda root: syscalls.rename(here, root + old, here, root + new, flags), uid)

    @rule(old=PATHS, new=PATHS, uid=CALLERS)
    def link(self, old: bytes, new: bytes, uid: int) -> None:
        self.both(lambda root: os.link(root + old, root + new, follow_symlinks=False), uid)

    @rule(path=PATHS, points_to=st.sampled_from(NAMES), uid=CALLERS)
    def symlink(self, path: bytes, points_to: bytes, uid: int) -> None:
        self.both(lambda root: os.symlink(points_to, root + path), uid)

    @rule(
        path=PATHS,
        kind=st.sampled_from(
            ((stat.S_IFIFO, 0), (stat.S_IFSOCK, 0), (stat.S_IFCHR, 259), (stat.S_IFREG, 0))
        ),
    )
    def mknod(self, path: bytes, kind: tuple[int, int]) -> None:
        self.both(lambda root: os.mknod(root + path, kind[0] | 0o640, kind[1]))

    # -- data --------------------------------------------------------------------------------------

    @rule(path=PATHS, uid=CALLERS, offset=OFFSETS, size=SIZES, seed=st.integers(0, 255))
    def write(self, path: bytes, uid: int, offset: int, size: int, seed: int) -> None:
        def act(root: bytes) -> int:
            fd = os.open(root + path, os.O_WRONLY | os.O_NONBLOCK)
            try:
                return os.pwrite(fd, _content(size, seed), offset)
            finally:
                os.close(fd)

        self.both(act, uid)

    @rule(path=PATHS, uid=CALLERS)
    def read(self, path: bytes, uid: int) -> None:
        def act(root: bytes) -> bytes:
            fd = os.open(root + path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                return os.read(fd, 1 << 24)
            finally:
                os.close(fd)

        self.both(act, uid)

    @rule(path=PATHS, uid=CALLERS, size=st.sampled_from((0, 5, 4096, 3 << 20)))
    def truncate(self, path: bytes, uid: int, size: int) -> None:
        self.both(lambda root: os.truncate(root + path, size), uid)

    @rule(
        path=PATHS,
        uid=CALLERS,
        offset=OFFSETS,
        size=SIZES,
        flags=st.sampled_from((*range(4), 16, 17)),
    )
    def allocate(self, path: bytes, uid: int, offset: int, size: int, flags: int) -> None:
        def act(root: bytes) -> None:
            fd = os.open(root + path, os.O_WRONLY | os.O_NONBLOCK)
            try:
                calls.fallocate("model", fd, offset, size, flags)
            finally:
                os.close(fd)

        self.both(act, uid)

    @rule(
        path=PATHS,
        uid=CALLERS,
        mode=st.sampled_from((0o666, 0o600, 0o755)),
        size=SIZES,
        is_named=st.booleans(),
    )
    def make_unnamed(self, path: bytes, uid: int, mode: int, size: int, is_named: bool) -> None:
        def act(root: bytes) -> int:
            directory = os.path.dirname(root + path)
            fd = os.open(directory, os.O_TMPFILE | os.O_RDWR, mode)
            try:
                os.write(fd, _content(size, mode))
                if is_named:
                    os.link(f"/proc/self/fd/{fd}", root + path, follow_symlinks=True)
                return os.fstat(fd).st_nlink
            finally:
                os.close(fd)

        self.both(act, uid)

    @rule(old=PATHS, new=PATHS, uid=CALLERS, offset=OFFSETS, to=OFFSETS, size=SIZES)
    def copy(self, old: bytes, new: bytes, uid: int, offset: int, to: int, size: int) -> None:
        def act(root: bytes) -> int:
            one = os.open(root + old, os.O_RDONLY | os.O_NONBLOCK)
            try:
                other = os.open(root + new, os.O_WRONLY | os.O_NONBLOCK)
                try:
                    return os.copy_file_range(one, other, size, offset, to)
                finally:
                    os.close(other)
            finally:
                os.close(one)

        self.both(act, uid)

    # -- files held open, with or without a name -------------------------------------------------

    @rule(path=PATHS, slot=HELD)
    def hold(self, path: bytes, slot: int) -> None:
        self.close_held(slot)
        opened: list[int] = []

        def act(root: bytes) -> None:
            if not stat.S_ISREG(os.lstat(root + path).st_mode):
                raise OSError(errno.EINVAL, "")
            opened.append(os.open(root + path, os.O_RDWR))

        self.both(act)
        if opened:
            self.held[slot] = opened

    @rule(slot=HELD, offset=OFFSETS, size=SIZES)
    def write_held(self, slot: int, offset: int, size: int) -> None:
        self.both_held(slot, lambda fd: os.pwrite(fd, _content(size, slot), offset))

    @rule(slot=HELD)
    def read_held(self, slot: int) -> None:
        def act(fd: int) -> tuple[object, ...]:
            info = os.fstat(fd)
            return os.pread(fd, 1 << 24, 0), info.st_size, info.st_nlink, info.st_mode

        self.both_held(slot, act)

    @rule(slot=HELD, size=st.sampled_from((0, 77, 5000)), mode=st.sampled_from((0o600, 0o644)))
    def change_held(self, slot: int, size: int, mode: int) -> None:
        def act(fd: int) -> None:
            os.ftruncate(fd, size)
            os.fchmod(fd, mode)
            os.fsync(fd)

        self.both_held(slot, act)

    @rule(slot=HELD)
    def let_go(self, slot: int) -> None:
        self.close_held(slot)

    # -- attributes --------------------------------------------------------------------------------

    @rule(path=PATHS, uid=CALLERS, mode=st.sampled_from((0o600, 0o755, 0o711, 0o1777, 0o2775)))
    def chmod(self, path: bytes, uid: int, mode: int) -> None:
        self.both(lambda root: os.chmod(root + path, mode), uid)

    @rule(
        path=PATHS,
        uid=CALLERS,
        owner=st.sampled_from((0, _USER, -1)),
        group=st.sampled_from((0, _USER, 100, -1)),
    )
    def chown(self, path: bytes, uid: int, owner: int, group: int) -> None:
        self.both(lambda root: os.lchown(root + path, owner, group), uid)

    @rule(path=PATHS, uid=CALLERS, time_ns=st.integers(-(10**18), 10**19))
    def utime(self, path: bytes, uid: int, time_ns: int) -> None:
        times = (time_ns, time_ns + 1)
        self.both(lambda root: os.utime(root + path, ns=times, follow_symlinks=False), uid)

    @rule(
        path=PATHS,
        uid=CALLERS,
        key=XATTRS,
        size=st.sampled_from((0, 1, 200)),
        flags=st.sampled_from((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)),
    )
    def setxattr(self, path: bytes, uid: int, key: str, size: int, flags: int) -> None:
        value = _content(size, size)
        self.both(lambda root: os.setxattr(root + path, key, value, flags), uid)

    @rule(path=PATHS, uid=CALLERS, key=XATTRS)
    def removexattr(self, path: bytes, uid: int, key: str) -> None:
        self.both(lambda root: os.removexattr(root + path, key), uid)

    @rule(
        path=PATHS,
        uid=CALLERS,
        kind=st.sampled_from(("access", "default")),
        user=st.integers(0, 7),
        mask=st.integers(0, 7),
    )
    def set_acl(self, path: bytes, uid: int, kind: str, user: int, mask: int) -> None:
        value = _acl(user, mask)
        self.both(lambda root: os.setxattr(root + path, f"system.posix_acl_{kind}", value), uid)

    @rule(path=PATHS, uid=CALLERS, value=st.sampled_from(CAPABILITIES))
    def set_capability(self, path: bytes, uid: int, value: bytes) -> None:
        self.both(lambda root: os.setxattr(root + path, "security.capability", value), uid)

    @precondition(lambda self: self.roots[0] == os.fsencode(self.layer.mountpoint))
    @rule(path=PATHS, uid=CALLERS, flags=st.sampled_from((FLAG_IMMUTABLE, 0, 0, FLAG_NODUMP)))
    def set_flags(self, path: bytes, uid: int, flags: int) -> None:
        before: list[int] = []

        def act(root: bytes) -> int:
            fd = os.open(root + path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                has = syscalls.get_file_flags(fd)
                syscalls.set_file_flags(fd, has & ~(FLAG_IMMUTABLE | FLAG_NODUMP) | flags)
                before.append(has & FLAG_IMMUTABLE)
                return has & FLAG_IMMUTABLE
            finally:
                os.close(fd)

        self.both(act, uid)
        if before:
            self.locked += bool(flags & FLAG_IMMUTABLE) - bool(before[0])

    # -- users with limits, and with namespaces of their own ---------------------------------------

    @rule(
        path=PATHS,
        uid=CALLERS,
        limit=st.sampled_from((0, 50, 5000, 200_000)),
        offset=OFFSETS,
        size=SIZES,
        how=st.sampled_from(("write", "append", "truncate")),
    )
    def write_limited(
        self, path: bytes, uid: int, limit: int, offset: int, size: int, how: str
    ) -> None:
        """With a limit on the size of files: up to it is written, beyond it nothing."""

        def act(root: bytes) -> int:
            append = os.O_APPEND if how == "append" else 0
            fd = os.open(root + path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | append, 0o666)
            try:
                if how == "truncate":
                    os.ftruncate(fd, offset + size)
                    return 0
                return os.pwrite(fd, _content(size, limit & 0xFF), offset)
            finally:
                os.close(fd)

        self.both_in_process(uid, act, {resource.RLIMIT_FSIZE: limit})

    @rule(path=PATHS, uid=CALLERS, names=st.integers(1, 12))
    def open_limited(self, path: bytes, uid: int, names: int) -> None:
        """With few descriptors: what was made when they ran out is there."""

        def act(root: bytes) -> list[bytes]:
            made = []
            for number in range(names):
                name = path + b"%d" % number
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
                try:
                    os.open(root + name, flags, 0o644)
                except OSError as error:
                    made.append(errno.errorcode[error.errno or 0].encode())
                else:
                    made.append(name)
            return made

        highest = max(map(int, os.listdir("/proc/self/fd")))
        self.both_in_process(uid, act, {resource.RLIMIT_NOFILE: highest + 6})

    @rule(path=PATHS, uid=CALLERS, read_only=st.booleans(), value=st.sampled_from(CAPABILITIES))
    def be_root_of_a_namespace(self, path: bytes, uid: int, read_only: bool, value: bytes) -> None:
        """Root in a namespace of its own, which sees the tree there, may as much as without one."""
        target = self.base / "elsewhere"

        def act(root: bytes) -> list[object]:
            enter_namespace(root, target, read_only=read_only)
            inside = os.fsencode(target) + b"/" + path

            def create() -> None:
                os.close(os.open(inside, os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK, 0o666))

            deeds: tuple[Callable[[], object], ...] = (
                create,
                lambda: os.chown(inside, 0, 0),
                lambda: os.chown(inside, 1, 1),
                lambda: os.chmod(inside, 0o4755),
                lambda: os.setxattr(inside, "trusted.three", b"1"),
                lambda: os.setxattr(inside, "user.one", b"inside"),
                lambda: os.setxattr(inside, "security.capability", value),
                lambda: os.getxattr(inside, "security.capability"),
                lambda: os.mknod(inside + b"n", stat.S_IFCHR | 0o600, 259),
                lambda: os.mkdir(inside + b"d", 0o700),
                lambda: os.rename(inside + b"d", inside + b"e"),
                lambda: os.lstat(inside).st_uid,
            )
            return [_answer(deed) for deed in deeds]

        self.both_in_process(uid, act)

    # -- looking -----------------------------------------------------------------------------------

    @rule(path=PATHS, uid=CALLERS)
    def list(self, path: bytes, uid: int) -> None:
        self.both(lambda root: sorted(os.listdir(root + path)), uid)

    @rule(path=PATHS)
    def stat(self, path: bytes) -> None:
        def act(root: bytes) -> tuple[int, ...]:
            info = os.lstat(root + path)
            size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
            return info.st_mode, info.st_nlink, info.st_uid, info.st_gid, size

        self.both(act)

    # -- stops -------------------------------------------------------------------------------------

    @precondition(lambda self: self.steps_since_stop >= _STEPS_BETWEEN_STOPS)
    @rule(
        how=st.sampled_from(("kill", "kill", "stop", "lose catalog")),
        is_limited=st.sampled_from((False, False, True)),
    )
    def stop_and_mount(self, how: str, is_limited: bool) -> None:
        """*is_limited*: the mount is made in a shell whose limits are not to be the users'."""
        self.steps_since_stop = 0
        self.layer.prefix = _IN_A_LIMITED_SHELL if is_limited else ()
        for slot in tuple(self.held):
            self.close_held(slot)
        if self.roots[0] == os.fsencode(self.layer.backing):
            before = image(self.layer.backing)
            self.layer.start()
            assert not difference(image(self.layer.mountpoint), before)
            self.roots[0] = os.fsencode(self.layer.mountpoint)
            return
        known = fids(self.layer.mountpoint)
        if how == "stop":
            self.layer.stop()
        else:
            self.layer.kill()
        if how == "lose catalog":
            shutil.rmtree(self.layer.state / "catalog")
        self.layer.start()
        assert fids(self.layer.mountpoint) == known
        self.compare()


def test_twins() -> None:
    run_state_machine_as_test(
        Changes,
        settings=settings(
            max_examples=_EXAMPLES,
            stateful_step_count=_STEPS,
            deadline=None,
            derandomize=not _ASKED,
            database=None,
            # Shrinking a failure takes minutes: only where a developer asked for more runs.
            phases=(Phase.generate, Phase.shrink) if _ASKED else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
