"""The page that says how far a target is, shared with the kernel, so that it is right even
after a process crash.

======  =====  ==================================================================================
offset  bytes  field
======  =====  ==================================================================================
0       8      the last seq that was carried out
8       8      the seq that is being carried out; the same when none is
16      8      inode number of what that is about, before it; 0: none, or not noted
24      8      inode number of the file that it replaces
32      8      mtime of the directory that is to keep its, as ``types.time_to_word`` has it
======  =====  =================================================================================="""

import mmap
import struct

from fusejournal.types import Seq, time_to_word, word_to_time

_SEQS = struct.Struct("<QQ")
_BEFORE = struct.Struct("<QQQ")
assert _SEQS.size == 16
assert _BEFORE.size == 24


class ProgressPage:
    """The page in the file that is open on *fd*, which goes over to this object. Raises ValueError
    for a file that has no whole page, as after a crash of the system."""

    EMPTY = bytes(mmap.PAGESIZE)
    """The content of a new one."""

    def __init__(self, fd: int) -> None:
        with open(fd, "r+b") as file:
            self._page = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def close(self) -> None:
        """Unmap it."""
        self._page.close()

    def read(self) -> tuple[Seq, Seq]:
        """Returns the last seq that was carried out, and the one begun last."""
        done_seq, begun_seq = _SEQS.unpack_from(self._page)
        return Seq(done_seq), Seq(begun_seq)

    def write(self, done_seq: Seq, begun_seq: Seq) -> None:
        """Note both."""
        _SEQS.pack_into(self._page, 0, done_seq, begun_seq)

    def note(self, ino: int, replaced_ino: int, mtime_ns: int) -> None:
        """Note what an operation that is about to begin cannot be recognized by afterwards."""
        _BEFORE.pack_into(self._page, _SEQS.size, ino, replaced_ino, time_to_word(mtime_ns))

    def recall(self) -> tuple[int, int, int]:
        """Returns what was noted."""
        ino, replaced_ino, word = _BEFORE.unpack_from(self._page, _SEQS.size)
        return ino, replaced_ino, word_to_time(word)
