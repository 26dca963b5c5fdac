"""The FUSE calls about a file's content, and about open files: the other half of handlers.py, whose
rules hold here.

Source: the FUSE protocol; fallocate(2), copy_file_range(2)."""

import errno
import logging
import os
from collections.abc import Iterable
from functools import partial
from typing import Final

import pyfuse3
import trio

from fusejournal.backing.space_ways import AT_ONCE_BYTES_MAX
from fusejournal.disk import syscalls
from fusejournal.disk.acls import CAPABILITY_XATTR
from fusejournal.errors import ShortWriteError
from fusejournal.file_operations import FALLOC_PUNCH_HOLE
from fusejournal.layer import resolve
from fusejournal.layer.access_times import AccessTimes
from fusejournal.layer.entry_replies import EntryReplies
from fusejournal.layer.file_flags import FileFlags
from fusejournal.layer.found_files import FoundFiles
from fusejournal.layer.interrupts import may_end_here
from fusejournal.layer.kernel_cache import KernelCache, is_known
from fusejournal.layer.kernel_protocol import Data
from fusejournal.layer.kernel_replies import encode_offset, encode_open, encode_written
from fusejournal.layer.open_files import OpenFiles
from fusejournal.layer.replies import (
    DONE,
    Answer,
    Body,
    OpenReply,
    ReplyWaits,
    awaited,
    changing,
    writing,
)
from fusejournal.layer.resolve import refusal
from fusejournal.native import kernel
from fusejournal.operations import DataOperation, Removexattr
from fusejournal.types import Caller, Fid, Seq
from fusejournal.volume.durability import Durability
from fusejournal.volume.importer import Importer
from fusejournal.volume.unnamed_files import UnnamedFiles
from fusejournal.volume.volume import EHELD, Volume
from fusejournal.volume.wait_policy import WaitPolicy

log = logging.getLogger(__name__)

_COPIED_BYTES_MAX: Final = 1 << 20
"""The most that a WRITE brings, too, so that others wait no longer for a copy."""


class FileCalls:
    """The calls about files' content of one mounted volume."""

    def __init__(
        self,
        volume: Volume,
        durability: Durability,
        importer: Importer,
        files: OpenFiles,
        policy: WaitPolicy,
        kernel_cache: KernelCache | None = None,
        access_times: AccessTimes | None = None,
    ) -> None:
        """Answers calls from now on.

        Args:
            volume, durability, importer: of the volume.
            files: those that the kernel has open.
            policy: which replies wait until their change is durable.
            kernel_cache: of a mirror, whose tree changes without the kernel; None on a primary.
            access_times: None where they are not kept."""
        self.volume = volume
        self._catalog = volume.catalog
        self._tree = volume.tree
        self._found = FoundFiles(volume, importer)
        self._entries = EntryReplies(volume, importer.unfinished, kernel_cache)
        self.policy = policy
        self.waits = ReplyWaits(durability, lambda: volume.journal.head_seq)
        self._kernel_cache = kernel_cache
        self._access_times = access_times
        self.files = files
        self._forgotten: set[Fid] = set()
        self._unnamed = UnnamedFiles(volume)
        self._flags = FileFlags(volume.tree, volume.catalog)

    def _change(self, operation: DataOperation, who: Caller, data: Data = b"") -> None:
        """Commit a change of a file that may have lost its last name."""
        if self._tree.is_orphan(operation.fid):
            self.volume.change_orphan(operation, who, data)
        else:
            self.volume.commit(operation, who, data)

    def opener(self, handle: int) -> Caller:
        """The caller who opened *handle*. Raises OSError ESTALE."""
        return self.files[handle][1]

    # -- open files --------------------------------------------------------------------------------

    def _opened(self, who: Caller, fid: Fid, entry: bytes = b"") -> OpenReply:
        """The reply that *fid* is open, behind the *entry* that says what it is."""
        handle = self.files.add(fid, who)
        keep_cache = self._kernel_cache is None or self._kernel_cache.opened(fid)
        body = entry + encode_open(handle, keep_cache=keep_cache)
        return OpenReply(body, partial(self.files.answered, handle))

    def open(self, who: Caller, fid: Fid, flags: int, clears: bool) -> Answer:
        """Open a file; with O_TRUNC this is a change, and takes privileges if it *clears* them. An
        import that is not finished is; cancelling leaves the rest of it to the next."""
        if fid in self._found.unfinished and self.volume.write_errno in (None, EHELD):
            return self._open_imported(who, fid, flags, clears)
        self._flags.check_open(fid, flags)
        if flags & os.O_TRUNC:
            return self._open_truncating(who, fid, clears)
        if flags & os.O_ACCMODE == os.O_RDONLY:
            self._tree.descriptor(fid)
        else:
            self._refuse_if_read_only()
            self._tree.writable(fid)
        if self._access_times is not None:
            self._access_times.note_open(fid, flags)
        return self._opened(who, fid)

    async def _open_imported(self, who: Caller, fid: Fid, flags: int, clears: bool) -> Body:
        await self._found.finish(fid)
        await may_end_here()
        return await awaited(self.open(who, fid, flags, clears))

    @changing
    def _open_truncating(self, who: Caller, fid: Fid, clears: bool) -> Body:
        stat = self._tree.stat(fid)
        self._drop_capabilities(fid, who)
        self._change(resolve.truncation(who, fid, 0, stat, clears), who)
        return self._opened(who, fid)

    def _refuse_if_read_only(self) -> None:
        if self.volume.write_errno is not None:
            raise refusal(self.volume.write_errno)

    def read(self, who: Caller, _: Fid, handle: int, offset: int, size: int) -> Body:
        """Returns up to *size* bytes at *offset*."""
        return os.pread(self._tree.descriptor(self.files[handle][0]), size, offset)

    def lseek(self, who: Caller, _: Fid, handle: int, offset: int, whence: int) -> Body:
        """Find where the next data, or the next hole, begins: as the backing has them."""
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise refusal(errno.EINVAL)
        return encode_offset(os.lseek(self._tree.descriptor(self.files[handle][0]), offset, whence))

    @writing
    def write(
        self, who: Caller, _: Fid, handle: int, offset: int, data: Data, clears: bool
    ) -> Body:
        """Write all of *data* at *offset*, or as much as the backing takes. The caller, which need
        not be the one that opened the file, takes privileges if that *clears* them."""
        fid, opener = self.files[handle]
        self._flags.check_write(fid, offset)
        stat = kernel.stat(self._tree.writable(fid))
        operation = resolve.write(who, fid, offset, stat, clears)
        try:
            self._change(operation, opener, data)
        except ShortWriteError as error:
            return encode_written(error.written)
        if operation.mode is not None:
            forget_attributes(fid)
        return encode_written(len(data))

    def copy_file_range(
        self,
        who: Caller,
        _: Fid,
        handle: int,
        offset: int,
        target: Fid,
        target_handle: int,
        target_offset: int,
        length: int,
    ) -> Answer:
        """Copy from one open file to another, at most a piece at a time: it is a write of what the
        one has, and each file's entries say all of its content."""
        fd = self._tree.descriptor(self.files[handle][0])
        data = os.pread(fd, min(length, _COPIED_BYTES_MAX), offset)
        if not data:
            return encode_written(0)
        return self.write(who, target, target_handle, target_offset, data, _clears(who))

    def fallocate(
        self, who: Caller, _: Fid, handle: int, offset: int, length: int, flags: int
    ) -> Answer:
        """Take space for a range of a file, or give it back, or have zeros there. Of a large range,
        cancelling may leave space taken."""
        fid, _opener = self.files[handle]
        self._check_allocation(fid, flags)
        if length <= AT_ONCE_BYTES_MAX or flags & FALLOC_PUNCH_HOLE:
            return self._fallocate(who, fid, offset, length, flags, None)
        return self._fallocate_ahead(who, fid, offset, length, flags)

    def _check_allocation(self, fid: Fid, flags: int) -> None:
        self._refuse_if_read_only()
        self._flags.check_allocation(fid, flags)
        if not self.volume.space_ways.has(flags):
            raise refusal(errno.EOPNOTSUPP)

    async def _fallocate_ahead(
        self, who: Caller, fid: Fid, offset: int, length: int, flags: int
    ) -> Body:
        descriptor, seq = partial(self._tree.writable, fid), self._last_seq(fid)
        taken: Seq | None = None
        for is_all in self.volume.space_ways.take_ahead(descriptor, offset, length):
            taken = seq if is_all else None
            await trio.lowlevel.checkpoint()
        await may_end_here()
        self._check_allocation(fid, flags)
        return await awaited(self._fallocate(who, fid, offset, length, flags, taken))

    @changing
    def _fallocate(
        self, who: Caller, fid: Fid, offset: int, length: int, flags: int, taken: Seq | None
    ) -> Body:
        """*taken*: the space is, if that is still the file's last entry."""
        stat = kernel.stat(self._tree.writable(fid))
        operation = resolve.allocation(who, fid, flags, offset, length, stat, _clears(who))
        if taken == self._last_seq(fid):
            with self.volume.applier.space.taken_ahead(operation):
                self._change(operation, who)
        else:
            self._change(operation, who)
        if operation.mode is not None:
            forget_attributes(fid)
        return DONE

    def release(self, who: Caller, _: Fid, handle: int) -> Body:
        """The last descriptor of an open was closed."""
        fid, is_open = self.files.remove(handle)
        if not is_open:
            self._drop_if_unused(fid)
        return DONE

    def fsync(self, who: Caller, _: Fid, handle: int) -> Answer:
        """Wait until the journal is durable up to the file's last entry."""
        fid, opener = self.files[handle]
        return self.waits.until_durable(opener.uid, self._last_seq(fid))

    def _last_seq(self, fid: Fid) -> Seq:
        node = self._catalog.node(fid)
        # What happened to a file before its last name went is somewhere below the head.
        return node.last_seq if node is not None else self.volume.journal.head_seq

    def _drop_capabilities(self, fid: Fid, who: Caller) -> None:
        """Drops them before a truncation or a new owner. Before a WRITE the kernel does so
        itself."""
        try:
            os.getxattr(self._tree.descriptor(fid), CAPABILITY_XATTR)
        except OSError as error:
            if not syscalls.missing(error):
                raise
        else:
            self._change(Removexattr(fid, CAPABILITY_XATTR), who)

    def forget(self, who: Caller, fid: Fid, times: int) -> None:
        """The kernel has dropped *fid*. Only an orphan minds: everything else is found again by
        its fid."""
        if self._kernel_cache is not None:
            self._kernel_cache.note_forget(fid, times)
        if not self._tree.is_orphan(fid):
            return
        try:
            if not is_known(fid):
                self._forgotten.add(fid)
                self._drop_if_unused(fid)
        except Exception:  # there is no reply to say it in
            log.exception("fid %d, which no process uses any more, is kept", fid)

    def batch_forget(self, who: Caller, _: Fid, forgets: Iterable[tuple[Fid, int]]) -> None:
        """The same of several fids."""
        for fid, times in forgets:
            self.forget(who, fid, times)

    def _drop_if_unused(self, fid: Fid) -> None:
        """The kernel may forget an orphan before it says that the last open is over."""
        if fid in self._forgotten and fid not in self.files:
            self._forgotten.discard(fid)
            self.volume.drop_orphan(fid)


def _clears(who: Caller) -> bool:
    """Returns True if *who* takes setuid and setgid away by a call with which the kernel does not
    say it: all but root lack CAP_FSETID."""
    return who.uid != 0


def forget_attributes(fid: Fid) -> None:
    """The kernel does not know that a call has changed attributes of *fid*: it would go on to run a
    file whose setuid or setgid was taken away by the mode that it remembers. Have it ask.
    (Attributes alone: that cannot block.)"""
    pyfuse3.invalidate_inode(fid, attr_only=True)
