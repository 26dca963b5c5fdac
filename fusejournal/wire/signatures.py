"""Signatures by which a node finds out later whether a peer hands back what it was given.

A batch is signed by a keyed hash of the segment that it lies in, from the segment's first byte to
the batch's last. The key is made of the node's own private key, which no other node has, so only
the node that made a signature can use it. (The chain in each frame finds damage, but any node can
make entries that have a wanted chain.) Peers keep signatures, and send them along when they hand
entries back. A node that verifies one has the segment up to where the entries begin itself, so
whatever it lost, one signature vouches for all that was lost of its segment up to there.

:class:`SegmentSigner` blocks on the disk where it has to read what comes before a range.

Source: RFC 7693 (BLAKE2), section 2.9: keyed hashing."""

import hashlib
import hmac
from contextlib import closing
from pathlib import Path
from typing import Final
from uuid import UUID

from fusejournal.errors import FusejournalError, JournalDamagedError, WireError
from fusejournal.journal.format import FormatError
from fusejournal.journal.frame_range import FrameRange
from fusejournal.journal.segment import BadFrameError, SegmentReader, segment_path
from fusejournal.types import Seq
from fusejournal.wire.identity import Identity

SIGNATURE_BYTES: Final = 32
_READ_BYTES: Final = 1 << 20
_UNSIGNED_BYTES_MAX: Final = 256 << 20
"""Far more than one batch, and what a node can hold in memory."""


def signing_key(identity: Identity) -> bytes:
    """Returns the key by which the node with *identity* signs. Raises FusejournalError."""
    try:
        private = identity.key_path.read_bytes()
    except OSError as error:
        raise FusejournalError(f"{identity.key_path}: cannot be read: {error.strerror}") from None
    return hashlib.blake2b(private, digest_size=32, person=b"fusejournal key").digest()


class SegmentSigner:
    """Signs ranges of the journal in *directory*, quickly where each follows the one before."""

    def __init__(self, key: bytes, uuid: UUID, directory: Path) -> None:
        self._key = key
        self._uuid = uuid
        self._directory = directory
        self._segment_seq = Seq(0)
        self._offset = 0
        self._hash = self._begin(Seq(0))

    def follows(self, frame_range: FrameRange) -> bool:
        """Returns True if *frame_range* can be signed without reading."""
        at = self._segment_seq, self._offset
        return frame_range.offset == 0 or (frame_range.segment_seq, frame_range.offset) == at

    def sign(self, frame_range: FrameRange) -> bytes:
        """Returns the signature of the segment of *frame_range* up to the range's end. Raises
        OSError, and JournalDamagedError where what comes before cannot be read, or is not there;
        the next range is signed as if this one had not been asked for."""
        if frame_range.offset == 0:
            self._hash = self._begin(frame_range.segment_seq)
        elif not self.follows(frame_range):
            self._hash = self._hash_of(frame_range.segment_seq, frame_range.offset)
        self._hash.update(frame_range.content)
        self._segment_seq = frame_range.segment_seq
        self._offset = frame_range.offset + len(frame_range.content)
        return self._hash.digest()

    def _begin(self, segment_seq: Seq) -> "hashlib.blake2b":
        about = self._uuid.bytes + segment_seq.to_bytes(8, "little")
        return hashlib.blake2b(
            about, digest_size=SIGNATURE_BYTES, key=self._key, person=b"fusejournal pos"
        )

    def _hash_of(self, segment_seq: Seq, end: int) -> "hashlib.blake2b":
        """The hash of the segment's bytes up to *end*. All of them have to be there: a signature
        of fewer would vouch for nothing, and be kept and believed in all the same."""
        path, at, hashed = segment_path(self._directory, segment_seq), 0, self._begin(segment_seq)
        try:
            with closing(SegmentReader(path)) as reader:
                while at < end:
                    part = reader.read_at(at, min(end - at, _READ_BYTES))
                    if not part:
                        raise FormatError(f"the segment ends at byte {at}, and has entries beyond")
                    hashed.update(part)
                    at += len(part)
        except BadFrameError as bad:
            raise bad.in_segment(path) from None
        except FormatError as error:
            raise JournalDamagedError(path, at, segment_seq, str(error)) from None
        return hashed


class SignatureCheck:
    """Lets ranges that a peer hands back through, once a signature vouches for them."""

    def __init__(self, signer: SegmentSigner) -> None:
        self._signer = signer
        self._held: list[FrameRange] = []
        self._held_bytes = 0

    @property
    def held(self) -> list[FrameRange]:
        """The ranges that no signature vouches for yet."""
        return self._held

    def take(self, frame_range: FrameRange, signature: bytes) -> list[FrameRange]:
        """Returns the ranges that are good now that *frame_range*, the next, has come with
        *signature* (empty: with none). Raises WireError when too much has none, and as the signer
        does."""
        signed = self._signer.sign(frame_range)
        self._held.append(frame_range)
        self._held_bytes += len(frame_range.content)
        is_one_segment = self._held[0].segment_seq == frame_range.segment_seq
        if is_one_segment and hmac.compare_digest(signed, signature):
            good, self._held, self._held_bytes = self._held, [], 0
            return good
        if self._held_bytes > _UNSIGNED_BYTES_MAX:
            raise WireError(f"more than {_UNSIGNED_BYTES_MAX >> 20} MiB without a signature")
        return []
