"""Keeps access times, where the volume is configured to, as a local file system does with relatime:
set when a file or directory is opened to be read, if the one it has is not later than its last
change, or a day old.

They are the backing's own and no change: nothing is journaled, each node keeps those of its own
readers, and they are no part of the digest. (One that a user sets is an entry, as ever.) Mounted
strictatime, each opening counts; nodiratime, none of a directory. What is read is not asked of the
layer while the kernel has it in memory, so it is the opening that counts, and a file that stays
open is not read anew by it.

Belongs to the event loop. Source: mount(8), relatime; the kernel's fs/inode.c
(relatime_need_update)."""

import os
from contextlib import suppress
from stat import S_IFDIR
from typing import Final

import pyfuse3

from fusejournal.disk import syscalls
from fusejournal.file_operations import FLAG_NOATIME
from fusejournal.types import Fid
from fusejournal.volume.volume import Volume

_DAY_NS: Final = 24 * 60 * 60 * 10**9


class AccessTimes:
    """The access times of one *volume*, whose mount has *flags*."""

    def __init__(self, volume: Volume, flags: frozenset[str] = frozenset()) -> None:
        self._volume = volume
        self._each_counts = "strictatime" in flags
        self._directories_count = "nodiratime" not in flags
        self._is_suspended = False

    def follow_mount(self, *, is_read_only: bool) -> None:
        """Leave them all as they are while the mount *is_read_only*, as a remount makes it."""
        self._is_suspended = is_read_only

    def note_open(self, fid: Fid, flags: int) -> None:
        """Note that *fid*, which is there, is opened with *flags*. Costs 5 microseconds where the
        time stays as it is, 15 where it is set: once a day, or after each change. A backing that
        refuses (a file with +i) leaves it as it is."""
        reads = flags & os.O_ACCMODE != os.O_WRONLY and not flags & os.O_NOATIME
        if not reads or self._is_suspended or self._volume.write_errno is not None:
            return
        tree = self._volume.tree
        fd, node = tree.descriptor(fid), tree.node(fid)
        if node.file_flags & FLAG_NOATIME or (node.type == S_IFDIR and not self._directories_count):
            return
        stat = os.fstat(fd)
        now_ns = self._volume.entry_time()  # no later than any change that is still to come
        latest_ns = max(stat.st_mtime_ns, node.ctime_ns, now_ns - _DAY_NS)
        if latest_ns < stat.st_atime_ns and not self._each_counts:
            return
        with suppress(OSError):
            syscalls.set_times(fd, now_ns, None)
            # The kernel knows another one. Attributes alone: cannot block.
            pyfuse3.invalidate_inode(fid, attr_only=True)
