"""A node's page of watermarks: what it must know after a kill, or after its system crashed, and
cannot read from the entries. (Of a mirror, those tell of the node that wrote them; of a primary,
the last of them may be gone.)

One page, each number written by a pwrite of its own: it is in the kernel's hands when that returns,
whole or not at all, so it outlives the process at any instruction. (Mapped memory would be cheaper
by a microsecond an entry; but where a file system writes a page to a new place, a full disk would
then end the process.) After a system crash the page may be older than what it describes, never
newer: so ``durable_seq`` is then too low, which only means that less is known to have been on disk.

=========  =====================================================================================
word       meaning
=========  =====================================================================================
0          magic
1          ``applying_seq``: all entries before it are applied; it may be, wholly, partly or not
           (of a mirror)
2          ``committed_seq``: up to here the sender had applied: nothing beyond is ever applied
           (of a mirror)
3          ``durable_seq``: the journal is on disk up to here
4          ``stopped_seq``: where an orderly stop left it, with everything on disk; 0 while it runs
           (of a mirror)
5, 6       ``fence``: the highest reign that was seen, its epoch and its node
7          ``instance``: a number made at the last start
8          ``rooted_seq``: the position that is kept with the backing's root (ties.py) has at least
           this seq on the backing's disk
9          ``owner``: a number of the state directory that the page is of; 0 where it has none
10         ``is_unconfirmed``: 1 from when the page is made until a start has got through with it
11, 12     ``followed``: the instance of a node that was followed last, its node and its number (of
           a mirror)
13 to 28   ``rivals``: other instances of that node that have been met, the oldest first; 0 behind
           the last (of a mirror)
=========  =====================================================================================

Writing one raises OSError: ENOSPC on a full disk, and the number is as it was. The event loop's
thread writes them; ``sync`` blocks, for a thread. After one that failed every later one fails, too,
because the kernel drops what it could not write, and tells of that once (fsync(2))."""

import errno
import os
import struct
from pathlib import Path
from typing import NamedTuple

from fusejournal.disk import calls
from fusejournal.disk.files import Outlives, write_atomically
from fusejournal.errors import JournalError
from fusejournal.types import Epoch, Reign, Seq

_BYTES = 4096
_MAGIC = int.from_bytes(b"\x89FJCOPY1", "little")
_WORD = struct.Struct("<Q")
RIVALS_MAX = 16
_APPLYING, _COMMITTED, _DURABLE, _STOPPED, _EPOCH, _NODE, _INSTANCE, _ROOTED = range(1, 9)
_OWNER, _UNCONFIRMED, _FOLLOWED = 9, 10, 11
_WORDS = _FOLLOWED + 2 + RIVALS_MAX


class Following(NamedTuple):
    """The instance, and its node, that a mirror follows, and the others of the same that it has
    met."""

    node_id: int = 0
    number: int = 0
    rivals: tuple[int, ...] = ()


class WatermarkPage:
    """The page of one node. Made if *path* is not there. *owner*: a number of the state directory
    that it is to be of; 0: of any. Raises JournalError when it is something else, or another's;
    OSError."""

    def __init__(self, path: Path, owner: int = 0) -> None:
        if not path.exists():
            _make(path)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._has_failed = False
        content = os.pread(self._fd, _BYTES + 1, 0)
        if len(content) != _BYTES or _WORD.unpack_from(content)[0] != _MAGIC:
            self.close()
            raise JournalError(f"{path}: not the watermarks of a node")
        self._words = [word for (word,) in _WORD.iter_unpack(content[: _WORD.size * _WORDS])]
        self._wanted_owner = owner
        if 0 != owner != self._words[_OWNER] != 0:
            self.close()
            raise JournalError(
                f"{path}: the watermarks of another state directory: put this one's own back; if "
                "they are gone, remove the file, and the next start looks the backing over"
            )

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def sync(self) -> None:
        """Make all of them durable. Blocks. Raises OSError, and from then on EIO."""
        if self._has_failed:
            raise OSError(errno.EIO, "an earlier flush of it failed")
        try:
            calls.fdatasync("watermarks.sync", self._fd)
        except OSError:
            self._has_failed = True
            raise

    def sync_stopped(self, head_seq: Seq) -> None:
        """An orderly stop of a mirror, with all up to *head_seq* on the disk: make that durable.
        Blocks. Raises OSError, and then it is none."""
        self.write_durable(head_seq)
        self.write_stopped(head_seq)
        try:
            self.sync()
        except OSError:
            self.write_stopped(Seq(0))  # or the next start would see no need to look
            raise

    def lower_to(self, seq: Seq) -> None:
        """Have nothing tell of what comes after *seq* any more, and make that durable: whether its
        last entry held, another history says. Blocks. Raises OSError."""
        self.write_stopped(Seq(0))
        self.write_rooted(Seq(0))
        self.write_durable(min(self.durable_seq, seq))
        self.write_committed(Seq(0))
        self.write_applying(min(self.applying_seq, seq))
        self.sync()

    def _set(self, first: int, *numbers: int) -> None:
        """Sets words that go together, from *first* on, in one step: with some old and some new
        ones they would describe what never was."""
        if numbers != tuple(self._words[first : first + len(numbers)]):
            packed = struct.pack(f"<{len(numbers)}Q", *numbers)
            self._write(first, packed)
            self._words[first : first + len(numbers)] = numbers

    def _write(self, first: int, packed: bytes) -> None:
        calls.write_all("watermarks.write", self._fd, packed, first * _WORD.size)

    @property
    def owner(self) -> int:
        """The number of the state directory that the page is of; 0 where it has none."""
        return self._wanted_owner or self._words[_OWNER]

    @property
    def is_unconfirmed(self) -> bool:
        """True if no start has got through since the page was made: what was in one before it, if
        there was one, is lost."""
        return bool(self._words[_UNCONFIRMED])

    def confirm(self) -> None:
        """A start has got through: from now on the page records all that is to be known. Raises
        OSError."""
        if self.is_unconfirmed or self.owner != self._words[_OWNER]:
            self._set(_OWNER, self.owner, 0)

    @property
    def following(self) -> Following:
        """Words 11 to 28."""
        node_id, number, *rivals = self._words[_FOLLOWED : _FOLLOWED + 2 + RIVALS_MAX]
        return Following(node_id, number, tuple(filter(None, rivals)))

    def write_following(self, following: Following) -> None:
        """Write down which instance is followed, and which others of its node were met. Raises
        OSError."""
        node_id, number, rivals = following
        assert len(rivals) <= RIVALS_MAX
        self._set(_FOLLOWED, node_id, number, *rivals, *(0,) * (RIVALS_MAX - len(rivals)))

    @property
    def applying_seq(self) -> Seq:
        """The entry that a mirror may be applying: all before it are applied."""
        return Seq(self._words[_APPLYING])

    def write_applying(self, seq: Seq) -> None:
        """Write down that entry *seq* is being applied from here on. Raises OSError."""
        # For each entry anew, so without what the general way costs.
        self._write(_APPLYING, _WORD.pack(seq))
        self._words[_APPLYING] = seq

    @property
    def committed_seq(self) -> Seq:
        """The seq up to which a mirror's sender had applied."""
        return Seq(self._words[_COMMITTED])

    def write_committed(self, seq: Seq) -> None:
        """Write down that the sender had applied all up to *seq*. Raises OSError."""
        self._set(_COMMITTED, seq)

    @property
    def durable_seq(self) -> Seq:
        """The seq up to which the journal is on this node's disk."""
        return Seq(self._words[_DURABLE])

    def write_durable(self, seq: Seq) -> None:
        """Write down that the journal is on the disk up to *seq*. Raises OSError."""
        self._set(_DURABLE, seq)

    def raise_durable(self, seq: Seq) -> None:
        """Note that the journal is known to be on the disk up to *seq*: a checkpoint may have told
        of more than the page did, and nothing beyond that is ever applied. Raises OSError."""
        self.write_durable(max(self.durable_seq, seq))

    @property
    def rooted_seq(self) -> Seq:
        """The seq of the position that the backing's root has on its disk."""
        return Seq(self._words[_ROOTED])

    def write_rooted(self, seq: Seq) -> None:
        """Write down that the backing's root has a position of *seq* on its disk, at least. Raises
        OSError."""
        self._set(_ROOTED, seq)

    @property
    def stopped_seq(self) -> Seq:
        """The seq where an orderly stop left a mirror; 0 while it runs."""
        return Seq(self._words[_STOPPED])

    def write_stopped(self, seq: Seq) -> None:
        """Write down that an orderly stop has left a mirror at *seq*; 0: that it runs. Raises
        OSError."""
        self._set(_STOPPED, seq)

    @property
    def instance(self) -> int:
        """The number of this node's last start."""
        return int(self._words[_INSTANCE])

    def write_instance(self, number: int) -> None:
        """Write down the *number* of this start. Raises OSError."""
        self._set(_INSTANCE, number)

    @property
    def epoch(self) -> Epoch:
        """The fence's."""
        return Epoch(self._words[_EPOCH])

    @property
    def fence(self) -> Reign:
        """The highest reign that was seen."""
        return Reign(Epoch(self._words[_EPOCH]), self._words[_NODE])

    def write_fence(self, reign: Reign) -> None:
        """Write down that *reign* is the highest. Raises OSError."""
        self._set(_EPOCH, *reign)

    def raise_fence(self, reign: Reign) -> None:
        """Write down that *reign* was seen, which is the highest unless a higher was. Raises
        OSError."""
        self.write_fence(self.fence.after(reign))


def _make(path: Path) -> None:
    words = [_MAGIC, *(0,) * (_WORDS - 1)]
    words[_UNCONFIRMED] = 1
    content = b"".join(map(_WORD.pack, words)).ljust(_BYTES, b"\0")
    # What is written to it later is flushed with fdatasync, which on ext4 leaves its name out.
    write_atomically("watermarks.make", path, content, Outlives.MACHINE)
