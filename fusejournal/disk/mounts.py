"""Mounting: what may be mounted where, the mount(2) itself, and the way out of a dead mount.

The mount is made here rather than by libfuse so that the superblock has MS_POSIXACL, without which
the kernel applies the umask even where a default ACL rules; libfuse gets the open descriptor as
``/dev/fd/N``. The backing's directory is opened before the mount covers it.

Source: mount(2), umount2(2), proc(5) on mountinfo, the kernel's fs/fuse/inode.c
(fuse_fill_super_common)."""

import errno
import os
import re
import shlex
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from fusejournal.disk import mount_flags, syscalls
from fusejournal.errors import BackingError, MountError, UsageError, VolumeBusyError
from fusejournal.native import kernel

FILESYSTEM_TYPE = "fuse.fusejournal"

_MS_REMOUNT, _MS_BIND, _MS_POSIXACL = 1 << 5, 1 << 12, 1 << 16
_MNT_DETACH = 2
_SELINUX = Path("/sys/fs/selinux/policy_capabilities")
"""A file that is there while the kernel has SELinux on."""
_READ_AHEAD_KIB = 1024
_USERS_NAMED = 5

_ESCAPE = re.compile(r"\\([0-3][0-7]{2})")


class MountInfo(NamedTuple):
    """One line of /proc/self/mountinfo."""

    device: str
    root: str
    mountpoint: Path
    type: str
    source: str
    options: frozenset[str] = frozenset()
    """The flags of the mount and of its file system."""


def mounts(process: str = "self") -> Iterator[MountInfo]:
    """Yields all mounts that *process* sees (by its number; default: this one), in the order in
    which they were made."""
    with open(f"/proc/{process}/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _, rest = line.partition(" - ")
            words = fields.split()
            kind, source, *further = rest.split()
            yield MountInfo(
                words[2],
                _unescape(words[3]),
                Path(_unescape(words[4])),
                kind,
                _unescape(source),
                frozenset(f"{words[5]},{further[0] if further else ''}".split(",")),
            )


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def device_of(mountpoint: Path) -> str:
    """Returns the device number of the mount at *mountpoint*, as "major:minor"; empty where there
    is none, or one that is not ours on top."""
    found = [m for m in mounts() if m.mountpoint == mountpoint]
    return found[-1].device if found and found[-1].type == FILESYSTEM_TYPE else ""


def is_read_only(mountpoint: Path) -> bool:
    """Returns True if a mount of ours is at *mountpoint* and was made, or remounted, read-only."""
    found = [m for m in mounts() if m.mountpoint == mountpoint and m.type == FILESYSTEM_TYPE]
    return bool(found) and "ro" in found[-1].options


def clear_dead_mount(mountpoint: Path) -> bool:
    """Takes a mount of ours whose process has died off *mountpoint*. Returns whether there was one.
    Raises VolumeBusyError when a living one is there."""
    cleared = False
    while any(m.mountpoint == mountpoint and m.type == FILESYSTEM_TYPE for m in mounts()):
        try:
            os.statvfs(mountpoint)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                raise MountError(f"{mountpoint}: {error.strerror}") from None
        else:
            raise VolumeBusyError(f"{mountpoint}: a fusejournal layer is mounted there already")
        unmount(mountpoint, lazy=True)
        cleared = True
    return cleared


def leave_one_dead(mountpoint: Path) -> None:
    """Takes dead mounts of ours off *mountpoint*, but for the last: what it covers stays covered.
    Raises OSError."""
    found = [m for m in mounts() if m.mountpoint == mountpoint and m.type == FILESYSTEM_TYPE]
    for _ in found[1:]:
        unmount(mountpoint, lazy=True)


@contextmanager
def uncovered(mountpoint: Path, name: str) -> Iterator[bool]:
    """Removes a dead mount on *mountpoint* until the end of the block; yields True if there was
    one. It is dead again from then on, until the next layer of the volume *name* has made its own:
    what a mount in place covers is never anybody's to write to, but for the block's short time.
    Raises VolumeBusyError when a living one is there, MountError."""
    was_dead = clear_dead_mount(mountpoint)
    try:
        yield was_dead
    finally:
        if was_dead:
            fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
            try:
                mount(fd, mountpoint, name, frozenset())
            finally:
                os.close(fd)  # which is its death


def open_backing(backing: Path) -> int:
    """Returns a descriptor of the backing directory, good for as long as it is kept. Raises
    BackingError, also where its file system has no file handles."""
    try:
        fd = os.open(backing, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BackingError(backing, error.strerror or str(error)) from None
    try:
        syscalls.handle_of(fd)
    except OSError as error:
        os.close(fd)
        reason = f"its file system has no file handles ({error.strerror})"
        raise BackingError(backing, reason) from None
    return fd


def check_places(backing: Path, mountpoint: Path, state_dir: Path) -> None:
    """Refuses places that cannot work together. All three are absolute and resolved. Raises
    BackingError, UsageError, VolumeBusyError."""
    if not mountpoint.is_dir():
        # (Another code than a wrong command's: its disk may be late.)
        if not os.path.lexists(mountpoint):
            make = shlex.join(["mkdir", "-p", str(mountpoint)])
            raise MountError(f"{mountpoint}: the mountpoint is not there: {make}")
        raise MountError(f"{mountpoint}: the mountpoint is not a directory")
    if state_dir == backing or state_dir.is_relative_to(backing):
        raise BackingError(
            backing,
            f"the state directory {state_dir} would be inside it; choose another with --state",
        )
    if mountpoint != backing and mountpoint.is_relative_to(backing):
        raise UsageError(f"{mountpoint}: the mountpoint is inside the backing directory")
    if backing != mountpoint and backing.is_relative_to(mountpoint):
        raise UsageError(
            f"{backing}: the backing directory is inside the mountpoint, which the mount would hide"
        )
    for mount in mounts():
        if mount.mountpoint != backing and mount.mountpoint.is_relative_to(backing):
            raise BackingError(
                backing, f"{mount.mountpoint} is mounted inside it; a volume is one file system"
            )
    if backing == mountpoint:
        _check_unused(backing)


def way_around(backing: Path, mountpoint: Path) -> str | None:
    """Returns a place at which users other than root can reach the backing, unseen by the layer,
    and what to do about it; None if there is none. The backing is closed by any directory above it
    that is root's and that others may not search, or by the layer's own mount over it. Every mount
    of its file system is looked at, because the same directory may be below several."""
    all_mounts = list(mounts())
    above = [one for one in all_mounts if backing.is_relative_to(one.mountpoint)]
    if mountpoint == backing:
        above = [one for one in above if one.mountpoint != backing or one.type != FILESYSTEM_TYPE]
    own = _MountTable(above).place_of(str(backing))
    if own is None:
        return None
    device, inside = own.device, Path(own.path)
    for one in all_mounts:
        if one.device != device or not inside.is_relative_to(one.root):
            continue
        path = one.mountpoint / inside.relative_to(one.root)
        if path != mountpoint and not _is_closed(path):
            return (
                f"others than root can reach it at {path}, around the layer: what they change "
                "there is not journaled, and nosuid and nodev do not hold; make a directory above "
                "it root's and closed to others (chmod 0700)"
            )
    return None


def _is_closed(path: Path) -> bool:
    """Returns True if only root can get to *path*, whatever its own mode is. (With an ACL, the
    group's bits are the most that any user but owner and others has.)"""
    for directory in path.parents:
        try:
            found = directory.stat()
        except OSError:
            continue  # a dead mount on the way, which no process passes
        if found.st_uid == 0 and not found.st_mode & 0o011:
            return True
    return False


def _check_unused(directory: Path) -> None:
    """Refuses to cover a tree in which a process has files open: their descriptors would bypass the
    layer."""
    for process, path in _uses(directory):
        raise VolumeBusyError(
            f"{directory}: process {process.name} ({_process_name(process)}) uses {path}; "
            "what it has open would bypass the layer: stop it first"
        )


class _Place(NamedTuple):
    """A directory or file, whatever names it has: the device of its file system, and the path from
    that one's root."""

    device: str
    path: str

    def has(self, other: "_Place") -> bool:
        """Returns True if *other* is it, or below it."""
        if other.device != self.device:
            return False
        return other.path == self.path or other.path.startswith(self.path.rstrip("/") + "/")


class _MountTable:
    """The mounts of one namespace. Absolute paths are looked up as texts, and what is above a
    directory once, because the processes of a busy machine have a hundred thousand files open."""

    def __init__(self, all_mounts: Iterable[MountInfo]) -> None:
        # Of those at one mountpoint the last is on top.
        self._by_mountpoint = {str(one.mountpoint): one for one in all_mounts}
        self._by_directory: dict[str, MountInfo | None] = {}

    def place_of(self, path: str) -> _Place | None:
        """Returns the place of *path* by the deepest mount above it; None where there is none."""
        own = self._mount_of(path)
        if own is None:
            return None
        inside = path.removeprefix(str(own.mountpoint)).strip("/")
        return _Place(own.device, f"{own.root.rstrip('/')}/{inside}".rstrip("/") or "/")

    def _mount_of(self, path: str) -> MountInfo | None:
        if path in self._by_mountpoint:
            return self._by_mountpoint[path]
        directory = path.rpartition("/")[0] or "/"
        if directory == path:
            return None
        if directory not in self._by_directory:
            self._by_directory[directory] = self._mount_of(directory)
        return self._by_directory[directory]


def _uses(directory: Path, among: Collection[str] | None = None) -> Iterator[tuple[Path, str]]:
    """Yields what other processes, or those *among* them, have open or mapped in *directory*, as
    the process and the path as its mount namespace has it. One of another namespace may have
    another file system by the same name, or the same directory by another: its own mounts tell. In
    one namespace, too, what a mount covers has the same name: the file's own device tells."""
    seen = {("", ""): _MountTable(mounts())}
    wanted = seen["", ""].place_of(str(directory))
    if wanted is None:
        return
    try:
        device = _device_number(directory)
    except OSError:
        return  # nothing is there
    here = os.readlink("/proc/self/ns/mnt")
    for number in os.listdir("/proc") if among is None else among:
        if not number.isdigit() or int(number) == os.getpid():
            continue
        process = Path("/proc", number)
        try:
            namespace, root = os.readlink(process / "ns/mnt"), os.readlink(process / "root")
            key = ("", "") if namespace == here else (namespace, root)
            if key not in seen:
                # (The mountpoints are told from the process's root on, the links are not.)
                seen[key] = _MountTable(
                    one._replace(mountpoint=Path(root) / one.mountpoint.relative_to("/"))
                    for one in mounts(process.name)
                )
        except OSError:
            continue  # it has ended
        for link, path in _open_paths(process):
            if not path.startswith("/"):
                continue  # a pipe, a socket
            place = seen[key].place_of(path)
            if place is not None and wanted.has(place) and _is_on(link, device):
                yield process, path


def _device_number(directory: Path) -> int:
    """Returns the device of the files in *directory*; that of a mount of ours without asking its
    layer, which may be dead or not answer."""
    major, _, minor = device_of(directory).partition(":")
    return os.makedev(int(major), int(minor)) if minor else directory.stat().st_dev


def _is_on(link: str, device: int) -> bool:
    """Returns True if the file at *link* is on *device*; one of a dead mount is on none."""
    try:
        return os.stat(link).st_dev == device
    except OSError:
        return False


def _open_paths(process: Path) -> Iterator[tuple[str, str]]:
    links = [f"{process}/{name}" for name in ("cwd", "root", "exe")]
    with suppress(OSError):
        links += [f"{process}/fd/{number}" for number in os.listdir(process / "fd")]
    for link in links:
        with suppress(OSError):
            yield link, os.readlink(link)
    for link, path in _mapped(process):
        # (Here, a newline in a path is "\012", as a backslash and digits may be, too.)
        with suppress(OSError):
            yield link, os.readlink(link) if b"\\" in path else os.fsdecode(path)


def _mapped(process: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the files that *process* has mapped, each once, as a link and the path by "maps"."""
    try:
        lines = (process / "maps").read_bytes().splitlines()
    except OSError:
        return
    found: dict[bytes, bytes] = {}
    for line in lines:
        words = line.split(None, 5)
        if len(words) == 6 and words[5].startswith(b"/"):
            found.setdefault(words[5], words[0])
    for path, span in found.items():
        start, end = (int(number, 16) for number in span.split(b"-"))
        yield f"{process}/map_files/{start:x}-{end:x}", path


def _process_name(process: Path) -> str:
    try:
        return (process / "comm").read_text(errors="replace").strip()
    except OSError:
        return "?"


def mount(fuse_fd: int, mountpoint: Path, name: str, flags: frozenset[str]) -> None:
    """Mounts the file system served on *fuse_fd* over *mountpoint*, with *flags* of mount_flags.py
    and, where SELinux is there to take them, its contexts. Raises MountError."""
    contexts = {flag for flag in flags if mount_flags.is_context(flag)}
    bits = _MS_POSIXACL | mount_flags.bits_of(flags - contexts)
    options = f"fd={fuse_fd},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0,"
    options += "default_permissions,allow_other"
    if contexts and _SELINUX.is_dir():
        for word, _, value in (context.partition("=") for context in sorted(contexts)):
            options += f',{word}="{value}"'
    source = f"fusejournal:{name}".encode()
    try:
        kernel.mount(
            source, os.fsencode(mountpoint), FILESYSTEM_TYPE.encode(), bits, options.encode()
        )
    except OSError as error:
        hint = " (is the fuse module loaded?)" if error.errno == errno.ENODEV else ""
        raise MountError(f"{mountpoint}: cannot mount: {error.strerror}{hint}") from None


def change_flags(mountpoint: Path, flags: frozenset[str]) -> None:
    """Gives the mount at *mountpoint* these *flags* and no others. (A security context stays as it
    is.) Blocks, and may make the kernel send requests to the layer: never call it in the event
    loop's thread. Raises OSError EBUSY where ``ro`` is asked for and a process has files open to
    write."""
    found = [m for m in mounts() if m.mountpoint == mountpoint and m.type == FILESYSTEM_TYPE]
    if not found:
        return
    before = mount_flags.seen_in(found[-1].options)
    if mount_flags.are_equal(before, flags):
        return
    bits = _MS_REMOUNT | mount_flags.bits_of(flags)
    if not mount_flags.differ_in_file_system(before, flags):
        bits |= _MS_BIND  # the file system itself stays as it is
    try:
        kernel.mount(None, os.fsencode(mountpoint), None, bits, None)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(mountpoint)) from None


def unmount(mountpoint: Path, lazy: bool) -> None:
    """Takes the topmost mount off *mountpoint*. Blocks, and makes the kernel send requests to the
    layer: never call it in the event loop's thread. Raises OSError EBUSY while something uses it
    and not *lazy*."""
    try:
        kernel.umount(os.fsencode(mountpoint), _MNT_DETACH if lazy else 0)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(mountpoint)) from None


def unmount_unused(mountpoint: Path, lazy: bool) -> None:
    """Unmounts for an admin; a mount that is gone already is none to take away. Raises
    VolumeBusyError, which names the processes that use the mount, and MountError."""
    if not device_of(mountpoint):
        return
    try:
        unmount(mountpoint, lazy)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise MountError(f"{mountpoint}: cannot unmount: {error.strerror}") from None
        who = (
            ", ".join(users(mountpoint)[:_USERS_NAMED])
            or "the kernel (an NFS export, a loop device or a nested mount)"
        )
        raise VolumeBusyError(
            f"{mountpoint} is in use by {who}: stop that, or use --lazy"
        ) from None


def take_away(mountpoint: Path) -> None:
    """Unmounts the layer's mount, if it still is there. Users who still have files open are cut
    off, as when a server stops. Blocks as :func:`unmount` does. Raises MountError."""
    if any(m.mountpoint == mountpoint and m.type == FILESYSTEM_TYPE for m in mounts()):
        unmount_unused(mountpoint, lazy=True)


def users(mountpoint: Path, among: Collection[str] | None = None) -> list[str]:
    """Returns the processes, or those *among* them by their numbers, that have files open or mapped
    on the mount itself, as "pid (name)": for a volume in place the layer and its holder have the
    directory below it open, by the same name."""
    found = {process.name: process for process, _ in _uses(mountpoint, among)}
    return [f"{name} ({_process_name(process)})" for name, process in found.items()]


def copies(name: str, device: str = "") -> list[str]:
    """Returns the processes, one of each other mount namespace, that see the mount of the volume
    *name*, of this *device* if it is given, as "pid (name)". An unmount leaves their copy, unless
    the kernel passes it on to them, and the layer serves that as before."""
    seen = {os.readlink("/proc/self/ns/mnt")}
    found = []
    for number in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has ended
            if (namespace := os.readlink(f"/proc/{number}/ns/mnt")) in seen:
                continue
            if any(
                (one.type, one.source) == (FILESYSTEM_TYPE, f"fusejournal:{name}")
                and device in ("", one.device)
                for one in mounts(number)
            ):
                found.append(f"{number} ({_process_name(Path('/proc', number))})")
            seen.add(namespace)
    return found


def words_of_copies(name: str, mountpoint: Path, device: str = "") -> str:
    """Returns what to do about the :func:`copies` of a mount that is gone from *mountpoint*; empty
    where there are none, or it is not gone."""
    if device_of(mountpoint) or not (who := copies(name, device)):
        return ""
    return (
        f"whose mount is gone from {mountpoint}, but not from the mount namespace of "
        f"{', '.join(who[:_USERS_NAMED])}: stop that, or cut it off with "
        f"'fusejournal umount {shlex.quote(name)} --lazy'"
    )


def raise_read_ahead(mountpoint: Path) -> None:
    """Lets the kernel read ahead as much as one request can carry: its default is an eighth of
    that."""
    for entry in mounts():
        if entry.mountpoint == mountpoint and entry.type == FILESYSTEM_TYPE:
            path = Path(f"/sys/class/bdi/{entry.device}/read_ahead_kb")
            try:
                path.write_text(str(_READ_AHEAD_KIB))
            except OSError:
                return  # a matter of speed only
