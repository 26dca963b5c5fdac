"""The greeting on the kernel's connection, by way of libfuse.

libfuse answers the kernel's INIT, through pyfuse3, and nothing else: requests are read and answered
by the request loop. It cannot be given a connection that has been greeted already (INIT is sent
once). So it gets one end of a socket: there it finds the INIT that was read from the kernel, now or
when the connection was new, and answers it; after that the connection takes the socket's place
under the same descriptor number, where pyfuse3 sends its notifications.

A request that a dead process had read and not answered would wait for ever. All such requests are
answered with TRY_AGAIN, by going through the numbers below the first request that the new process
reads: the kernel refuses those that no caller waits for, and those that no process has read.

Source: include/uapi/linux/fuse.h; the kernel's fs/fuse/dev.c (fuse_dev_do_write,
fuse_get_unique)."""

import errno
import os
import select
import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path

import pyfuse3
import trio

from fusejournal.errors import GreetingError, MountError
from fusejournal.layer.connection import KernelConnection
from fusejournal.layer.kernel_protocol import HANDLE_KILLPRIV_V2, IN_HEADER
from fusejournal.layer.kernel_replies import OUT_HEADER
from fusejournal.native.kernel import write_reply

_INIT_FLAGS = struct.Struct("<12sI")
"""Versions and read-ahead, then the flags: the beginning of fuse_init_in and fuse_init_out."""
_INIT_MAX_WRITE = struct.Struct("<20sI")
"""Versions, read-ahead, flags, bounds of the background; then the largest write."""
_AUTO_INVAL_DATA = 1 << 12
_ASYNC_DIO = 1 << 15
_CACHE_SYMLINKS = 1 << 23
TRY_AGAIN = errno.ENOMEM
"""The errno that says to the kernel that this time it was not possible, and by nfsd to a client
that it is to try again later (nfserrno). Of those that say so, it alone is taken for no more than
that where a file handle is decoded (EAGAIN makes a good one stale: exportfs_decode_fh,
nfsd_set_fh_dentry), and where a name is looked at again (others have it forgotten, with what is
mounted below: fuse_dentry_revalidate)."""
_NUMBER_STEP = 2
_ANSWERED_MAX = 1 << 16
"""The numbers among which an unanswered request is looked for, backwards."""
_REQUEST_HEAD_BYTES_MAX = 1 << 17
"""Everything of a WRITE but its data; an attribute with its name is smaller, too."""
_REQUEST_BYTES_MAX = (1 << 20) + _REQUEST_HEAD_BYTES_MAX


class _Greeting(pyfuse3.Operations):
    """The promises to the kernel that libfuse makes for the layer."""

    enable_acl = True
    supports_dot_lookup = True
    enable_writeback_cache = False


class Handshake:
    """libfuse's way to *connection*: see the module. After :meth:`greet` the connection is open as
    ``fd``, too, and pyfuse3 can send notifications until :meth:`close`. *changes_alone*: only the
    mount changes the tree."""

    def __init__(
        self, connection: KernelConnection, mountpoint: Path, *, changes_alone: bool
    ) -> None:
        self._connection = connection
        self._changes_alone = changes_alone
        self._mountpoint = mountpoint
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._ours = ours
        self._is_open = False
        self.fd = theirs.detach()

    @property
    def init_flags(self) -> int:
        """The flags of INIT that the kernel was given."""
        return int(_INIT_FLAGS.unpack_from(self._connection.reply, OUT_HEADER.size)[1])

    @property
    def request_bytes_max(self) -> int:
        """The room that the kernel wants for the largest request."""
        reply = self._connection.reply
        _, write_bytes_max = _INIT_MAX_WRITE.unpack_from(reply, OUT_HEADER.size)
        return int(write_bytes_max) + _REQUEST_HEAD_BYTES_MAX

    async def greet(self) -> bytes:
        """Have INIT answered. Returns the first request of a connection that was taken over, else
        nothing. Raises GreetingError when this process answers otherwise than the one that the
        connection was opened by. Cancelling leaves the kernel without an answer."""
        connection = self._connection
        pyfuse3.init(_Greeting(), f"/dev/fd/{self.fd}", set())
        self._is_open = True
        self._ours.send(connection.init)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main, 1, 1)
            await trio.lowlevel.wait_readable(self._ours)
            reply = self._ours.recv(_REQUEST_BYTES_MAX)
            pyfuse3.terminate()
        self._ours.close()
        reply = _in_our_words(reply, connection.init, self._changes_alone)
        first_request = b""
        if connection.taken_over:
            # The kernel goes by what it was told first. We can go along where that promises
            # less than we would, or has it drop more.
            told = _in_our_words(connection.reply, connection.init, self._changes_alone)
            if reply != told or (self._changes_alone and _has_async_dio(connection.reply)):
                raise GreetingError(
                    f"{self._mountpoint}: this version speaks to the kernel in another way "
                    "than the one that mounted it: unmount, then mount again"
                )
            first_request = self._first_request()
        else:
            os.write(connection.fd, reply)
            if len(reply) < OUT_HEADER.size + _INIT_MAX_WRITE.size:
                raise MountError(f"{self._mountpoint}: libfuse refuses to speak with this kernel")
            connection.note_reply(reply)
        os.dup2(connection.fd, self.fd, inheritable=False)
        return first_request

    def close(self) -> None:
        """Let libfuse and its descriptor go; the mount stays."""
        if self._is_open:
            self._is_open = False
            pyfuse3.close(unmount=False)

    def _first_request(self) -> bytes:
        """The next request, and an answer for all that the dead process left behind."""
        fd = self._connection.fd
        asking = threading.Thread(target=_ask_something, args=(self._mountpoint,), daemon=True)
        asking.start()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        request = b""
        while not request:
            poll.poll()
            # One that is interrupted is taken back, and may be gone before it is read.
            with suppress(BlockingIOError):
                request = os.read(fd, _REQUEST_BYTES_MAX)
        number: int = IN_HEADER.unpack_from(request)[2]
        number &= ~1  # an interrupt has the number of what it interrupts, and one more
        for back in range(1, _ANSWERED_MAX):
            if number <= back * _NUMBER_STEP:
                break
            with suppress(OSError):
                write_reply(fd, number - back * _NUMBER_STEP, TRY_AGAIN)
        return request


def _in_our_words(reply: bytes, init: bytes, changes_alone: bool) -> bytes:
    """libfuse's *reply* to the kernel's *init*, with what libfuse cannot say or says otherwise;
    *changes_alone* as in Handshake.

    The layer clears setuid and setgid by itself, where the kernel says so. So that need not ask
    for the capabilities of a file that it knows to have no privileges before every write. A
    symlink's target never changes, so the kernel may keep it. And where nothing but the mount
    changes the tree, the kernel is not to take each new mtime that its own writes have made for a
    reason to drop the file's pages.

    It then must drop them by itself where a write goes past them. It does so after a direct write
    that it waits for, and not after one that it answers asynchronously (generic_file_direct_write;
    fuse_direct_IO, fuse_aio_complete in fs/fuse/file.c): what a caller read in the midst of that
    would stay for good. So it is made to wait for all of them. (With both left on, a file whose
    mtime is set back right after such a write would still be read wrongly.)"""
    if len(reply) < OUT_HEADER.size + _INIT_FLAGS.size:
        return reply  # a refusal
    _, offered = _INIT_FLAGS.unpack_from(init, IN_HEADER.size)
    answer = bytearray(reply)
    before, flags = _INIT_FLAGS.unpack_from(answer, OUT_HEADER.size)
    flags |= offered & (HANDLE_KILLPRIV_V2 | _CACHE_SYMLINKS)
    if changes_alone:
        flags &= ~(_AUTO_INVAL_DATA | _ASYNC_DIO)
    _INIT_FLAGS.pack_into(answer, OUT_HEADER.size, before, flags)
    return bytes(answer)


def _has_async_dio(reply: bytes) -> bool:
    """Returns True if *reply* lets the kernel answer direct writes asynchronously."""
    _, flags = _INIT_FLAGS.unpack_from(reply, OUT_HEADER.size)
    return bool(flags & _ASYNC_DIO)


def _ask_something(mountpoint: Path) -> None:
    with suppress(OSError):
        os.statvfs(mountpoint)
