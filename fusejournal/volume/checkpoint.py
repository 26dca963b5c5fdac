"""The checkpoint that a system crash leaves: up to which entry the backing is known to be on disk.

It cannot be in the catalog, whose pages reach the disk in any order. So it lies in a small file of
its own (STATE/checkpoint), written only once the backing was flushed, and made durable at once: it
may be older than what it describes, never newer. One that was torn counts as none, and so does one
of another state directory, which would describe another backing; that only means that more is
looked at after the loss.

Little-endian: seq (8 bytes), Unix time in nanoseconds when that was the last entry (8, signed),
xxh3-64 of both, seeded with the number of the state directory (journal/watermarks.py; of an older
version, with 0)."""

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import xxhash

from fusejournal.backing.root_mark import BackingRoot
from fusejournal.disk import calls
from fusejournal.disk.errnos import NO_SPACE
from fusejournal.errors import JournalFullError
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.types import Position, Seq

CLOCK_SLACK_NS = 10**9
"""A change time this much before a moment may be of a change after it."""

_CONTENT = struct.Struct("<Qq")
_CHECKSUM = struct.Struct("<Q")


class Checkpoint(NamedTuple):
    """Everything up to ``seq`` is on the backing's disk; what came later changed the backing at
    ``time_ns`` (Unix) or later. ``position``: where the journal ended when it was begun; None of
    one that was read."""

    seq: Seq
    time_ns: int
    position: Position | None = None

    @classmethod
    def begin(cls, seq: Seq, position: Position) -> "Checkpoint":
        """One for now, when *seq* is the last entry that was applied and *position* where the
        journal ends; to be made."""
        return cls(seq, time.time_ns(), position)

    @property
    def since_ns(self) -> int:
        """The change time from which on an inode may have been changed after it."""
        since_ns = self.time_ns - CLOCK_SLACK_NS
        # By a clock that was set back since, what came later may bear any time.
        return since_ns if since_ns <= time.time_ns() else NO_CHECKPOINT.time_ns


NO_CHECKPOINT = Checkpoint(Seq(0), -(1 << 63))


class CheckpointFile:
    """The file at *path*; what else a checkpoint makes durable is in the *page* of watermarks."""

    def __init__(self, path: Path, page: WatermarkPage | None = None) -> None:
        self._path = path
        self._page = page

    def load(self) -> Checkpoint:
        """Read the file; ``NO_CHECKPOINT`` where there is none. Raises OSError."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return NO_CHECKPOINT
        words, checksum = content[: _CONTENT.size], content[_CONTENT.size :]
        if len(words) != _CONTENT.size or checksum not in (
            _checksum(words, self._owner),
            _checksum(words, 0),
        ):
            return NO_CHECKPOINT
        seq, time_ns = _CONTENT.unpack(words)
        return Checkpoint(Seq(seq), time_ns)

    @property
    def _owner(self) -> int:
        return self._page.owner if self._page is not None else 0

    def make(self, checkpoint: Checkpoint, root: BackingRoot) -> None:
        """Flush the backing whose *root* that is, which learns of it, and write *checkpoint* down,
        up to which the journal is on its disk; where that is full, what was written before stays.
        Blocks. Raises OSError."""
        assert checkpoint.position is not None
        rooted = root.try_mark(checkpoint.position)
        calls.syncfs("checkpoint.syncfs", root.fd)
        with suppress_full():
            self._write(_CONTENT.pack(checkpoint.seq, checkpoint.time_ns))
            if self._page is not None:
                if rooted:
                    self._page.write_rooted(checkpoint.position.seq)
                self._page.sync()

    def lower(self, seq: Seq) -> None:
        """Write down that no more than the entries up to *seq* are on the backing's disk as they
        should be; the time stays. Blocks. Raises OSError."""
        known = self.load()
        if known.seq > seq:
            self._write(_CONTENT.pack(seq, known.time_ns))

    def forget_time(self, checkpoint: Checkpoint) -> Checkpoint:
        """Write *checkpoint* down without its time: any file may have changed since. Blocks. Raises
        OSError."""
        timeless = checkpoint._replace(time_ns=NO_CHECKPOINT.time_ns)
        self._write(_CONTENT.pack(timeless.seq, timeless.time_ns))
        return timeless

    def _write(self, content: bytes) -> None:
        fd = calls.open_with_reserve(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            calls.write_all("checkpoint.write", fd, content + _checksum(content, self._owner), 0)
            calls.fdatasync("checkpoint.sync", fd)
        finally:
            os.close(fd)


@contextmanager
def suppress_full() -> Iterator[None]:
    """Go on after the block where a full disk ends it."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise


@contextmanager
def explain_full(state_dir: Path, words: str) -> Iterator[None]:
    """Raises JournalFullError with *words* where the block finds the state's disk full."""
    try:
        yield
    except (OSError, JournalFullError) as error:
        if error.errno not in NO_SPACE:
            raise
        raise JournalFullError(f"{state_dir}: no space left {words}") from None


def _checksum(content: bytes, owner: int) -> bytes:
    return _CHECKSUM.pack(xxhash.xxh3_64_intdigest(content, seed=owner))
