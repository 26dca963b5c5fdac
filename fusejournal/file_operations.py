"""The operations on one file's content and space beyond WRITE and TRUNCATE. The rules of
operations.py hold for these classes, too.

Source: fallocate(2); include/uapi/linux/falloc.h."""

from typing import Final, NamedTuple

from fusejournal.kinds import Kind
from fusejournal.types import Fid

FALLOC_KEEP_SIZE: Final = 0x01
FALLOC_PUNCH_HOLE: Final = 0x02
FALLOC_ZERO_RANGE: Final = 0x10

FALLOCATE_FLAGS: Final = frozenset(
    {
        0,
        FALLOC_KEEP_SIZE,
        FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE,
        FALLOC_ZERO_RANGE,
        FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE,
    }
)
"""The flags that can be given together. (The kernel passes no others on: fs/fuse/file.c,
fuse_file_fallocate.)"""
_END_MAX: Final = 2**63 - 1


class Fallocate(NamedTuple):
    """Space is taken for, or taken from, ``length`` bytes at ``offset``, as the ``flags`` of
    fallocate(2) say; ``mode`` as in Write.

    Its content is what counts: the file becomes as large as the range reaches, unless it keeps its
    size, and what is punched or zeroed reads as zeros. Blocks are taken and given back where the
    file system can do that."""

    fid: Fid
    flags: int
    offset: int
    length: int
    mode: int | None

    @property
    def kind(self) -> Kind:
        return Kind.FALLOCATE

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return (self.fid,)

    @property
    def end(self) -> int:
        """The end of the range."""
        return self.offset + self.length

    @property
    def empties(self) -> bool:
        """True if the range reads as zeros afterwards."""
        return bool(self.flags & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE))

    @property
    def punches(self) -> bool:
        """True if it gives space back, and takes none."""
        return bool(self.flags & FALLOC_PUNCH_HOLE)

    def size_after(self, size: int) -> int:
        """The size of a file that had *size*."""
        return size if self.flags & FALLOC_KEEP_SIZE else max(size, self.end)

    def can_be(self) -> bool:
        """Returns whether fallocate(2) takes it."""
        return self.flags in FALLOCATE_FLAGS and 0 < self.length <= _END_MAX - self.offset
