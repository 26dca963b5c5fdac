"""The watermarks of a journal that is a copy: what its node must know after a kill and cannot read
from the entries, for those tell of the node that wrote them.

One page, mapped: a store is in the kernel's hands at once, so it outlives the process at any
instruction, and costs nothing beside applying an entry. Each number is stored whole (one aligned
word). After the loss of the machine the page may be older than what it tells of, never newer: so
``durable_seq`` is then too low, which only means that more is fetched again.

=========  =====================================================================================
word       meaning
=========  =====================================================================================
0          magic
1          ``applying_seq``: all entries before it are applied; it may be, wholly, partly or not
2          ``settled_seq``: up to here the sender had applied: nothing beyond is ever applied
3          ``durable_seq``: the copy is on disk up to here
4          ``stopped_seq``: where an orderly stop left it, with everything on disk; 0 while it runs
5          ``epoch``: the highest of any sender that was accepted
=========  =====================================================================================

The event loop's thread writes; ``sync`` blocks, for a thread."""

import mmap
import os
from pathlib import Path

from fusejournal import storage
from fusejournal.errors import JournalError
from fusejournal.types import Epoch, Seq

_BYTES = 4096
_MAGIC = int.from_bytes(b"\x89FJCOPY1", "little")
_APPLYING, _SETTLED, _DURABLE, _STOPPED, _EPOCH = range(1, 6)


class CopyMarks:
    """See the module. Made if *path* is not there. Raises JournalError when it is something else,
    OSError."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            _make(path)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size != _BYTES:
                raise JournalError(f"{path}: not the watermarks of a mirror")
            self._map = mmap.mmap(fd, _BYTES)
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("Q")
        if self._words[0] != _MAGIC:
            self.close()
            raise JournalError(f"{path}: not the watermarks of a mirror")

    def close(self) -> None:
        """Unmap the page."""
        self._words.release()
        self._map.close()

    def sync(self) -> None:
        """Make the page durable. Blocks. Raises OSError."""
        storage.reached("marks.sync")
        self._map.flush()

    @property
    def applying_seq(self) -> Seq:
        """See the module."""
        return Seq(self._words[_APPLYING])

    @applying_seq.setter
    def applying_seq(self, seq: Seq) -> None:
        self._words[_APPLYING] = seq

    @property
    def settled_seq(self) -> Seq:
        """See the module."""
        return Seq(self._words[_SETTLED])

    @settled_seq.setter
    def settled_seq(self, seq: Seq) -> None:
        self._words[_SETTLED] = seq

    @property
    def durable_seq(self) -> Seq:
        """See the module."""
        return Seq(self._words[_DURABLE])

    @durable_seq.setter
    def durable_seq(self, seq: Seq) -> None:
        self._words[_DURABLE] = seq

    @property
    def stopped_seq(self) -> Seq:
        """See the module."""
        return Seq(self._words[_STOPPED])

    @stopped_seq.setter
    def stopped_seq(self, seq: Seq) -> None:
        self._words[_STOPPED] = seq

    @property
    def epoch(self) -> Epoch:
        """See the module."""
        return Epoch(self._words[_EPOCH])

    @epoch.setter
    def epoch(self, epoch: Epoch) -> None:
        self._words[_EPOCH] = epoch


def _make(path: Path) -> None:
    temporary = path.with_suffix(".new")
    with open(temporary, "wb") as file:
        file.write(_MAGIC.to_bytes(8, "little").ljust(_BYTES, b"\0"))
        file.flush()
        os.fsync(file.fileno())
    storage.rename("marks.rename", temporary, path)
