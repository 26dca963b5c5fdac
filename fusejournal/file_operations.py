"""The operations on one file's space and flags. The rules of operations.py hold for these classes,
too.

Source: fallocate(2), ioctl_iflags(2); include/uapi/linux/falloc.h and fs.h."""

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

FLAG_SYNC: Final = 0x08
FLAG_IMMUTABLE: Final = 0x10
FLAG_APPEND: Final = 0x20
FLAG_NODUMP: Final = 0x40
FLAG_NOATIME: Final = 0x80
FLAG_LETTERS: Final = {
    0x01: "s",
    0x02: "u",
    FLAG_SYNC: "S",
    0x10000: "D",
    FLAG_IMMUTABLE: "i",
    FLAG_APPEND: "a",
    FLAG_NODUMP: "d",
    FLAG_NOATIME: "A",
    0x04: "c",
    0x8000: "t",
    0x20000: "T",
    0x800000: "C",
    0x400: "m",
}
"""The flags that are journaled, with the letters that chattr(1) has for them, in the order in which
lsattr(1) shows them."""
JOURNALED_FLAGS: Final = sum(FLAG_LETTERS)
LOCKING_FLAGS: Final = FLAG_IMMUTABLE | FLAG_APPEND
"""The flags that keep everybody from changing a file, root too. In a volume no file of the backing
has them: the layer holds them itself."""


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


class SetFlags(NamedTuple):
    """The file flags of ``fid`` are ``flags``, of those that are journaled (JOURNALED_FLAGS; a
    later version may know more)."""

    fid: Fid
    flags: int

    @property
    def kind(self) -> Kind:
        return Kind.SETFLAGS

    @property
    def touched_fids(self) -> tuple[Fid, ...]:
        return (self.fid,)


def flag_letters(flags: int) -> str:
    """Returns *flags* as letters of chattr(1); a dash for none."""
    return "".join(letter for flag, letter in FLAG_LETTERS.items() if flags & flag) or "-"
