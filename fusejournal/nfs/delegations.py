"""Recalling NFSv4 delegations of files of a mirror: a process beside the layer.

The kernel's nfsd gives a client a delegation of a file it reads, and tells it when another wants
to write: it takes a lease for that. An attempt to open the file for writing has the lease
broken, also where the open is then refused. But that open is a request to the layer itself; if the
layer dies before it answers, only a process that does not hold the mount's connection lets the
kernel see that.

    python -m fusejournal.nfs.delegations MOUNTPOINT

On its input come fids, each with its generation, in 12 bytes.

It ends with its input. Source: fs/open.c, do_dentry_open; fs/fuse/inode.c, fuse_encode_fh;
fcntl(2), leases."""

import errno
import itertools
import os
import select
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fusejournal.disk import syscalls
from fusejournal.disk.process import WORKING_DIRECTORY, python_module
from fusejournal.journal.handle_key import HandleKey
from fusejournal.journal.reader import JournalReader
from fusejournal.types import Fid

_FILE = struct.Struct("<QI")
"""Fid, generation."""
_READ_BYTES = 64 << 10
_PENDING_MAX = 1 << 20


class Generations:
    """The generations of the files of the volume whose journal is in *journal_dir*. The key that
    they are made with is read at the first question, by when there is a segment: of a new mirror
    none is there before."""

    def __init__(self, journal_dir: Path) -> None:
        self._journal_dir = journal_dir
        self._key: HandleKey | None = None

    def of(self, fid: Fid) -> int:
        """Returns the generation of *fid*. Raises OSError, JournalError, JournalDamagedError."""
        if self._key is None:
            self._key = JournalReader(self._journal_dir).handle_key()
        return self._key.generation(fid)


class Recaller:
    """Starts the process when it is first needed, and never waits for it. *generation* tells a
    fid's."""

    def __init__(self, mountpoint: Path, generation: Callable[[Fid], int]) -> None:
        self._mountpoint = mountpoint
        self._generation = generation
        self._process: subprocess.Popen[bytes] | None = None
        self._pending: set[Fid] = set()

    def recall(self, fids: set[Fid]) -> None:
        """Have delegations of *fids* given back, soon. Raises OSError when no process can be
        started, and what *generation* raises."""
        self._pending |= fids
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        assert self._process.stdin is not None
        while self._pending:
            some = list(itertools.islice(self._pending, select.PIPE_BUF // _FILE.size))
            content = b"".join(_FILE.pack(fid, self._generation(fid)) for fid in some)
            try:
                # No more than PIPE_BUF, so it is all or nothing (pipe(7)): half a record would put
                # all that follow out of step.
                os.write(self._process.stdin.fileno(), content)
            except (BlockingIOError, BrokenPipeError):
                break  # with the next ones
            self._pending.difference_update(some)
        if len(self._pending) > _PENDING_MAX:
            self._pending.clear()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            python_module("fusejournal.nfs.delegations", str(self._mountpoint)),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=WORKING_DIRECTORY,
        )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        return process

    def close(self) -> None:
        """Let the process end. (It may be waiting for this one.)"""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


def main(mountpoint: str) -> None:
    """The process."""
    while content := os.read(0, _READ_BYTES):
        while len(content) % _FILE.size:
            content += os.read(0, _FILE.size - len(content) % _FILE.size)
        try:
            root = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTCONN, errno.EACCES):
                return
            raise
        for fid, generation in _FILE.iter_unpack(content):
            with suppress(OSError):  # gone, no file, or refused, after the lease was broken
                flags = os.O_WRONLY | os.O_NONBLOCK
                handle = syscalls.fuse_handle(fid, generation)
                os.close(syscalls.open_by_handle(root, handle, flags))
        os.close(root)  # or an unmount would find it busy


if __name__ == "__main__":
    main(sys.argv[1])
