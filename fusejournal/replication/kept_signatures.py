"""Signatures of batches that a mirror keeps for the node that made them (wire/signatures.py).

::

    STATE/signatures    ``_SLOTS`` slots of 64 bytes, written over in turn:

======  ====  ==================================================================================
offset  size  field
======  ====  ==================================================================================
0       8     seq of the batch's last entry
8       8     number of the slot's writing, from 1
16      32    signature
48      8     zero
56      8     xxh3-64 of bytes 0 to 55
======  ====  ==================================================================================

The file has its size from the beginning, so a full disk does not keep a signature out. One is
written before its batch is appended, and durable before the batch counts as durable: ``sync`` comes
before each flush of the journal. So what was acknowledged can be handed back with its signature.

The event loop's thread writes; ``sync`` blocks, for a thread."""

import errno
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import xxhash

from fusejournal.disk import calls
from fusejournal.disk.files import Outlives, write_atomically
from fusejournal.errors import FusejournalError
from fusejournal.types import Seq
from fusejournal.wire.signatures import SIGNATURE_BYTES

_SLOTS: Final = 8192
_SLOT: Final = struct.Struct(f"<QQ{SIGNATURE_BYTES}sQ")
_CHECK: Final = struct.Struct("<Q")
_NUMBERS: Final = struct.Struct("<QQ48x")
_SLOT_BYTES: Final = 64
assert _SLOT.size + _CHECK.size == _NUMBERS.size == _SLOT_BYTES


class Kept(NamedTuple):
    """One signature."""

    seq: Seq
    signature: bytes


class KeptSignatures:
    """The file *path*, made if it is not there. Raises OSError, FusejournalError for a file that is
    something else."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            nothing = bytes(_SLOTS * _SLOT_BYTES)
            write_atomically("signatures.make", path, nothing, Outlives.MACHINE)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        content = os.pread(self._fd, _SLOTS * _SLOT_BYTES + 1, 0)
        if len(content) != _SLOTS * _SLOT_BYTES:
            os.close(self._fd)
            raise FusejournalError(f"{path}: not the signatures that a mirror keeps: remove it")
        slots = sorted(one for _, one in _written(content))
        self._kept = {seq: signature for _, seq, signature in slots}
        self._number = slots[-1][0] if slots else 0
        # (A process that was killed may have left some in the kernel's pages alone.)
        self._newest, self._synced = (self._number, Seq(0)), (0, Seq(0))
        """The last that was written since this start, and the last that is on the disk: the number
        of its writing, and of which entry it is. (An entry's may be written anew.)"""
        self._has_failed = False
        self._lock = threading.Lock()

    @property
    def durable_seq(self) -> Seq:
        """The newest signature since this start that is on the disk is of this entry; 0: none."""
        return self._synced[1]

    def close(self) -> None:
        """Close the file; nothing more is written."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def keep(self, seq: Seq, signature: bytes) -> None:
        """Keep *signature*, of the journal up to entry *seq*. Raises OSError."""
        number = self._number + 1
        slot = _SLOT.pack(seq, number, signature, 0)
        slot += _CHECK.pack(xxhash.xxh3_64_intdigest(slot))
        calls.write_all("signatures.write", self._fd, slot, number % _SLOTS * _SLOT_BYTES)
        self._number = number
        self._kept.pop(seq, None)
        self._kept[seq] = signature
        if len(self._kept) > _SLOTS:
            del self._kept[next(iter(self._kept))]
        self._newest = number, seq

    def forget_after(self, seq: Seq) -> None:
        """Forget those of entries after *seq*, where the journal ends: they came before their
        batch, which never did, or of a history that was given up. They would vouch for none of
        what will have these seqs. Blocks. Raises OSError."""
        content = os.pread(self._fd, _SLOTS * _SLOT_BYTES, 0)
        slots = [slot for slot, (_, one, _) in _written(content) if one > seq]
        for slot in slots:
            nothing = bytes(_SLOT_BYTES)
            calls.write_all("signatures.forget", self._fd, nothing, slot * _SLOT_BYTES)
        if slots:
            calls.fdatasync("signatures.forget.sync", self._fd)
        self._kept = {one: signature for one, signature in self._kept.items() if one <= seq}

    def sync(self) -> None:
        """Make all that are kept durable. Blocks. Raises OSError, and from then on EIO: the kernel
        reports a write error once."""
        with self._lock:
            newest = self._newest
            if self._fd < 0 or newest == self._synced:
                return
            if self._has_failed:
                raise OSError(errno.EIO, "an earlier flush of the signatures failed")
            try:
                calls.fdatasync("signatures.sync", self._fd)
            except OSError:
                self._has_failed = True
                raise
            self._synced = newest

    def after(self, seq: Seq) -> list[Kept]:
        """The signatures of entries after *seq*, in order."""
        return [Kept(*one) for one in sorted(self._kept.items()) if one[0] > seq]


def _written(content: bytes) -> Iterator[tuple[int, tuple[int, Seq, bytes]]]:
    """Yields the index of each slot of *content* that holds a signature, and what
    :func:`_decode` makes of it. (Most are empty: a check of each would take longer than all else
    that an opening does.)"""
    for index, (_, number) in enumerate(_NUMBERS.iter_unpack(content)):
        if number and (one := _decode(content, index)) is not None:
            yield index, one


def _decode(content: bytes, index: int) -> tuple[int, Seq, bytes] | None:
    slot = content[index * _SLOT_BYTES : (index + 1) * _SLOT_BYTES]
    (check,) = _CHECK.unpack_from(slot, _SLOT.size)
    if check != xxhash.xxh3_64_intdigest(slot[: _SLOT.size]):
        return None
    seq, number, signature, _ = _SLOT.unpack_from(slot)
    return number, Seq(seq), signature
