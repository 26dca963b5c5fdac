"""The content of a batch: a range of frames, compressed or as it is, and back. Pure.

``method`` is ``raw`` or ``zstd`` (one frame, with its content size). Nothing is uncompressed to
more than the batch says, and no batch may say more than ``BATCH_CONTENT_BYTES_MAX``.

Source: RFC 8878 (Zstandard)."""

import zstandard

from fusejournal.journal.format import FormatError, NewerFormatError
from fusejournal.journal.frame_range import (
    FRAME_RANGE_BYTES_MAX,
    FrameRange,
    check_frame_range,
    entries_in,
)
from fusejournal.journal.segment import BadFrameError
from fusejournal.operations import NewEpoch
from fusejournal.types import Epoch, Seq
from fusejournal.wire.frames import BATCH_CONTENT_BYTES_MAX, Batch, WireError
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import RefusedError

assert FRAME_RANGE_BYTES_MAX <= BATCH_CONTENT_BYTES_MAX

RAW, ZSTD = "raw", "zstd"

_SMALL_BYTES = 256


def compress(content: bytes, level: int) -> tuple[str, bytes]:
    """Returns method and content: by zstd at *level*, or as it is where that gains nothing (or
    *level* is 0)."""
    if level and len(content) > _SMALL_BYTES:
        compressed = zstandard.ZstdCompressor(level=level).compress(content)
        if len(compressed) < len(content):
            return ZSTD, compressed
    return RAW, content


def batch_of(
    frame_range: FrameRange,
    method: str,
    content: bytes,
    epoch: Epoch,
    applied_seq: Seq,
    head_seq: Seq,
    reign_node: int = 0,
) -> Batch:
    """Returns the message that ships a range of frames.

    Args:
        frame_range: the range.
        method, content: how its content is compressed, and what that comes to.
        epoch, reign_node: the sender's reign; 0: its node is not known.
        applied_seq, head_seq: what it has applied, and where its journal ends."""
    return Batch(
        epoch,
        frame_range.first_seq,
        frame_range.last_seq,
        frame_range.chain_before,
        frame_range.chain,
        frame_range.segment_seq,
        frame_range.offset,
        len(frame_range.content),
        method,
        applied_seq,
        head_seq,
        content,
        reign_node,
    )


def frame_range_of(batch: Batch) -> FrameRange:
    """Returns the frames in *batch*, each checked and its entry decoded, so that nothing is taken
    and acknowledged that cannot be read here. Raises WireError, and RefusedError where the
    sender is of a newer version."""
    content = _uncompress(batch)
    frame_range = FrameRange(
        batch.segment_seq,
        batch.offset,
        batch.first_seq,
        batch.last_seq,
        batch.chain_before,
        batch.chain,
        content,
    )
    try:
        check_frame_range(frame_range)
        epochs = (
            entry.operation.epoch
            for entry in entries_in(frame_range)
            if isinstance(entry.operation, NewEpoch)
        )
        return frame_range._replace(epoch=max(epochs, default=Epoch(0)))
    except FormatError as error:
        raise _unreadable(error, f"entries {batch.first_seq} to {batch.last_seq}") from None
    except BadFrameError as bad:
        raise _unreadable(bad, f"entry {bad.seq}") from None


def _unreadable(error: FormatError | BadFrameError, what: str) -> WireError:
    is_newer = error.is_newer if isinstance(error, BadFrameError) else False
    if is_newer or isinstance(error, NewerFormatError):
        return RefusedError(
            RefusalCode.VERSION, f"{what}: made by a newer version of fusejournal ({error})"
        )
    return WireError(f"{what}: {error}")


def _uncompress(batch: Batch) -> bytes:
    where = f"entries {batch.first_seq} to {batch.last_seq}"
    size = batch.content_bytes
    if size > BATCH_CONTENT_BYTES_MAX:
        raise WireError(f"{where}: {size} bytes, {BATCH_CONTENT_BYTES_MAX} are allowed")
    if batch.method == RAW:
        content = batch.content
    elif batch.method == ZSTD:
        try:
            # What its own header says is what the library would allocate.
            if zstandard.frame_content_size(batch.content) != size:
                raise WireError(f"{where}: compressed, but not {size} bytes")
            content = zstandard.ZstdDecompressor().decompress(batch.content)
        except zstandard.ZstdError as error:
            raise WireError(f"{where}: cannot be uncompressed: {error}") from None
    else:
        raise WireError(f"{where}: stored by an unknown method {batch.method!r}")
    if len(content) != size:
        raise WireError(f"{where}: {len(content)} bytes instead of {size}")
    return content
