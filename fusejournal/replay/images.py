"""Images: files and directories as they were at a moment, attributes and content, folded from their
own entries in memory; a content is where to find it in the journal, and small ones with it.

The fold of files for a target directory (fold.py) carries operations out; this one carries out
nothing, so that what is made from an image is made once, as it is to be."""

from collections.abc import Callable, Collection, Iterator

from fusejournal.errors import JournalError
from fusejournal.history.file_states import State, fid_of, is_about
from fusejournal.history.lookup import Lookup
from fusejournal.journal.base import all_read
from fusejournal.operations import ContentOperation, Create, ImportData, Write, made_by
from fusejournal.replay.extents import Extents, read_extents
from fusejournal.types import Fid, Progress, Seq

_KEPT_BYTES_MAX = 1 << 20
"""The most that is kept of one file."""
_ALL_KEPT_BYTES_MAX = 32 << 20
"""The most that is kept of all that are read together."""
_PIECE_BYTES = 1 << 20


class Image:
    """One file or directory."""

    __slots__ = ("data", "extents", "state")

    def __init__(self, fid: Fid) -> None:
        self.state = State(fid)
        self.extents = Extents()
        self.data: dict[Seq, tuple[int, bytes]] | None = {}
        """Offset and bytes of each entry; None where that would be much."""

    def pieces(
        self, lookup: Lookup, from_byte: int = 0, to_byte: int | None = None
    ) -> Iterator[tuple[int, bytes | memoryview]]:
        """The content of [from_byte, to_byte), to its end where that is None, that is no hole,
        piece by piece with its offset; not always in order. Raises JournalDamagedError."""
        extents = self.extents if to_byte is None else self.extents.within(from_byte, to_byte)
        if self.data is None:
            yield from read_extents(lookup, list(extents))
            return
        begun, joined = 0, bytearray()
        for start, end, seq in extents:
            assert seq is not None
            offset, data = self.data[seq]
            if joined and (start != begun + len(joined) or len(joined) >= _PIECE_BYTES):
                yield begun, bytes(joined)
                joined.clear()
            if not joined:
                begun = start
            joined += data[start - offset : end - offset]
        if joined:
            yield begun, bytes(joined)


def read_images(
    lookup: Lookup,
    fids: Collection[Fid],
    before_seq: Seq,
    counts: Callable[[Seq], bool] | None,
    progress: Progress,
    *,
    with_data: bool = False,
) -> dict[Fid, Image]:
    """The images of files before an entry. Each segment is read once.

    Args:
        lookup: questions to the journal.
        fids: the files.
        before_seq: the entry.
        counts: returns True for seqs that count; None: all do. A file's making does in any case.
        progress: called with each seq.
        with_data: the data of small contents are kept, too.

    Raises JournalDamagedError."""
    images = {fid: Image(fid) for fid in fids}
    if not with_data:
        for image in images.values():
            image.data = None
    kept_bytes = 0
    # (Of contents that are not kept, the lengths alone are asked for.)
    is_read = all_read if with_data else _none_is_read
    for entry, outcome in lookup.entries_of_many(fids, before_seq, is_about, is_read):
        operation = entry.operation
        progress(entry.seq, None)
        if not outcome.held:
            continue
        if counts is not None and made_by(operation) is None and not counts(entry.seq):
            continue
        image = images[fid_of(entry)]
        image.state.take(entry, outcome)
        if not isinstance(operation, ContentOperation | ImportData):
            if isinstance(operation, Create):
                image.extents.cut(0)  # made anew, where a naming was taken back
            continue
        data = outcome.data_of(entry)
        image.extents.take(operation, entry.seq, len(data))
        if image.data is not None and isinstance(operation, Write | ImportData):
            kept_bytes += len(data)
            image.data[entry.seq] = operation.offset, bytes(data)
            if image.state.written_bytes > _KEPT_BYTES_MAX or kept_bytes > _ALL_KEPT_BYTES_MAX:
                kept_bytes -= sum(len(kept) for _, kept in image.data.values())
                image.data = None
    return images


def _none_is_read(*_: object) -> bool:
    return False


def unknown_fid(lookup: Lookup, fid: Fid) -> JournalError:
    """The error for a file whose making is not in the journal."""
    return JournalError(
        f"fid {fid} was made before seq {lookup.reader.first_seq}, where the journal here begins: "
        "what it was then is not known"
    )
