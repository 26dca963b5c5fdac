"""Finds where two journals of one volume agree: the source's side and the sink's of that part of a
session (wire/session.py), and what is kept of a sink's entries that its source does not have.

Reading chains blocks on the disk, and so is done in threads."""

import errno
import logging
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID

import trio

from fusejournal.disk import calls, failpoints
from fusejournal.errors import FusejournalError, JournalDamagedError, JournalError
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import (
    COMPRESSED_SUFFIX,
    PLAIN_SUFFIX,
    BadFrameError,
    SegmentReader,
    first_seq_of,
    list_segments,
    without_unbegun,
)
from fusejournal.types import Position, Reign, Seq
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import AskChains, Chains
from fusejournal.wire.session import Claim, Comparison, expect, is_proven

log = logging.getLogger(__name__)

SILENCE_SECONDS = 60.0
"""A peer that says nothing for so long is gone. A throttled disk can block it for many seconds."""
ASKED_MAX: Final = 64
"""For more chains than this many times no source has to ask (:class:`Comparison` needs about ten),
and each answer costs reading in the journal."""
_KEPT: Final = re.compile(r"diverged\.(\d{1,19})-(\d{1,19})")
_SPARE_BYTES: Final = 16 << 20
"""Space that a copy leaves free for the journal itself."""


class DivergedError(FusejournalError):
    """Two journals of one volume that are the same up to ``seq`` and no further."""

    exit_code = 30

    def __init__(self, node: str, seq: Seq, my_head: Seq, their_head: Seq) -> None:
        self.node = node
        self.seq = seq
        if seq == my_head:
            what = f"{node} has entries {seq + 1} to {their_head}, which are not here"
        else:
            what = (
                f"{node} has other entries from {seq + 1} on: they part after entry {seq} "
                f"(entries {seq + 1} to {their_head} are there, {seq + 1} to {my_head} here)"
            )
        super().__init__(
            f"{what}: nothing is shipped to it; to begin anew, give it an empty backing and state"
        )


def first_error(error: BaseException) -> BaseException:
    """Returns what a group of errors, out of a nursery, began with."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class ChainFinder:
    """Chain checksums of a journal at any seq. Not for two tasks at a time."""

    def __init__(self, directory: Path, uuid: UUID) -> None:
        self._directory = directory
        self._reader = JournalReader(directory, uuid)

    async def at(self, seqs: Sequence[Seq]) -> tuple[int | None, ...]:
        """Returns the chains at *seqs*, None where there is no such entry (any more). Cancelling is
        harmless. Raises JournalDamagedError, OSError."""
        return await trio.to_thread.run_sync(self._look, tuple(seqs))

    async def first_seq(self) -> Seq:
        """Returns the seq of the first entry that there is. Cancelling is harmless."""
        return await trio.to_thread.run_sync(lambda: self._reader.first_seq)

    def _look(self, seqs: Sequence[Seq]) -> tuple[int | None, ...]:
        paths = without_unbegun(list_segments(self._directory))
        return tuple(self._chain(paths, seq) for seq in seqs)

    def _chain(self, paths: Sequence[Path], seq: Seq) -> int | None:
        if seq == 0:
            return 0
        if not paths or seq + 1 < first_seq_of(paths[0]):
            return None
        if seq + 1 == first_seq_of(paths[0]):  # the entry is gone, and its chain is told
            try:
                with SegmentReader(paths[0]) as reader:
                    return reader.header.chain_before
            except BadFrameError as bad:
                raise JournalDamagedError(paths[0], bad.offset, bad.seq, bad.reason) from None
        for _, frame in self._reader.frames(seq, Seq(seq + 1)):
            return frame.checksum
        return None


async def is_bound_by(claim: Claim, mine: Reign, chains: ChainFinder) -> bool:
    """Tells whether a node that goes by *mine*, and whose journal *chains* knows, is bound by
    *claim* (:func:`is_proven`). Cancelling is harmless. A damaged place in that journal is no
    reason to go on: it counts as another entry than the peer's."""
    try:
        (chain,) = await chains.at((claim.seq,))
    except JournalDamagedError:
        chain = None
    return is_proven(claim, mine, chain)


async def find_common(
    connection: Connection, chains: ChainFinder, my_head: Seq, theirs: Position
) -> Seq:
    """Returns, as the source, the last seq at which both journals are the same. Cancelling ends the
    comparison. Raises WireError, JournalDamagedError."""
    seq = min(theirs.seq, my_head)
    if theirs.seq <= my_head:
        (mine,) = await chains.at((seq,))
        if mine == theirs.chain:
            return seq
        if mine is None and await chains.first_seq() > seq + 1:
            return seq  # it cannot be told, and what comes next is not here any more
        comparison = Comparison(Seq(0), seq)
    else:
        comparison = Comparison(Seq(0), Seq(theirs.seq + 1))
        await _ask(connection, chains, comparison, (seq,))
        if comparison.agreed_seq == my_head:
            return my_head
    while not comparison.is_over:
        await _ask(connection, chains, comparison, comparison.probes())
    return comparison.agreed_seq


async def _ask(
    connection: Connection, chains: ChainFinder, comparison: Comparison, seqs: tuple[Seq, ...]
) -> None:
    if not seqs or seqs == (0,):
        return
    await connection.send(AskChains(seqs))
    mine = await chains.at(seqs)
    with trio.fail_after(SILENCE_SECONDS):
        theirs = expect(await connection.receive(), Chains)
    comparison.told(seqs, mine, theirs.chains)


def keep_extra(state_dir: Path, agreed_seq: Seq, head_seq: Seq) -> Path:
    """Keep the segments with the entries after *agreed_seq*, up to *head_seq*, in a directory of
    their own, which can be read as a journal is; returns it.

    What parted once is kept once: a directory that has the beginning of it grows by what is new.
    The first segment and the newest are copied, the others are links to the journal's own, which
    no one changes; so it takes little space, and none that is not there. Blocks. Raises OSError
    (ENOSPC when there is not enough space, with all as before), JournalDamagedError."""
    journal = JournalReader(state_dir / "journal")
    known = {path: span for path in _kept(state_dir) if (span := _span(path, journal)) is not None}
    for path, span in known.items():
        if span.first_seq <= agreed_seq + 1 and span.head_seq >= head_seq:
            return path  # it has that, too
    grown = next((path for path in known if known[path].first_seq <= agreed_seq + 1), None)
    first_seq = known[grown].first_seq if grown is not None else Seq(agreed_seq + 1)
    directory = state_dir / f"diverged.{first_seq}-{head_seq}"
    temporary = grown or directory.with_name(f".{directory.name}.new")
    if grown is None:
        shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(mode=0o700, exist_ok=True)
        _fill(temporary, journal, first_seq, known[grown] if grown is not None else None)
    except OSError:
        if grown is None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    calls.fsync_directory("diverged.new.directory", temporary)
    calls.rename("diverged.rename", temporary, directory)
    calls.fsync_directory("diverged.directory", state_dir)
    for path in known:
        if path != grown:
            shutil.rmtree(path)  # one is enough, whatever else the peer says
    log.error(
        "entries %d to %d are not in the primary's journal: kept in %s (read them with "
        "'fusejournal log %s')",
        agreed_seq + 1,
        head_seq,
        directory,
        directory,
    )
    return directory


class _Span(NamedTuple):
    """The part of the journal's history that a directory keeps: its first entry that is not in the
    other's, its last, and where that ends in which segment."""

    first_seq: Seq
    head_seq: Seq
    segment_seq: Seq
    end: int


def _kept(state_dir: Path) -> list[Path]:
    return sorted(path for path in state_dir.glob("diverged.*") if _KEPT.fullmatch(path.name))


def _span(path: Path, journal: JournalReader) -> _Span | None:
    """Returns what *path* keeps; None where that is not of *journal*'s history."""
    name = _KEPT.fullmatch(path.name)
    assert name is not None
    first_seq, head_seq = Seq(int(name[1])), Seq(int(name[2]))
    try:
        kept = next(JournalReader(path).frames(head_seq, Seq(head_seq + 1)), None)
        mine = next(journal.frames(head_seq, Seq(head_seq + 1)), None)
    except JournalError:  # spoilt, or cut off half-way by a lost machine
        return None
    if kept is None or mine is None or kept[1].checksum != mine[1].checksum:
        return None
    segment, frame = kept
    return _Span(first_seq, head_seq, first_seq_of(segment), frame.offset + len(frame.content))


def _fill(directory: Path, journal: JournalReader, first_seq: Seq, span: _Span | None) -> None:
    """Bring what *directory* lacks of the entries from *first_seq* on; it has *span*."""
    for left in directory.glob(".*.new"):
        left.unlink()
    paths = journal.segments()
    starts = [first_seq_of(path) for path in paths]
    first = max((n for n, start in enumerate(starts) if start <= first_seq), default=0)
    for path in paths[first:]:
        failpoints.reached("diverged.copy")
        if path not in (paths[first], paths[-1]):
            _link(path, directory)
        elif span is None or first_seq_of(path) > span.segment_seq:
            _copy(path, directory / path.name, 0)
        elif first_seq_of(path) == span.segment_seq and path.suffix == PLAIN_SUFFIX:
            _copy(path, directory / path.name, span.end)
        elif first_seq_of(path) == span.segment_seq and not (directory / path.name).exists():
            _copy(path, directory / path.name, 0)  # it was compressed meanwhile
            (directory / path.name).with_suffix(PLAIN_SUFFIX).unlink(missing_ok=True)
        # (Else it was whole by then.)


def _link(path: Path, directory: Path) -> None:
    """Have the segment *path*, which is whole, in *directory*, too, in the form that it has."""
    twin = directory / path.name
    if twin.exists() and twin.samefile(path):
        return
    temporary = directory / f".{path.name}.new"
    with open(path, "rb") as source:
        calls.fsync("diverged.link.sync", source.fileno())
    os.link(path, temporary)
    calls.rename("diverged.link.rename", temporary, twin)
    if path.suffix == COMPRESSED_SUFFIX:
        twin.with_suffix(PLAIN_SUFFIX).unlink(missing_ok=True)


def _copy(path: Path, target: Path, begin: int) -> None:
    """Make *target* what there is of *path*, of which it has *begin* bytes."""
    size = _end_of(path)
    if shutil.disk_usage(target.parent).free < size - begin + _SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with open(path, "rb") as source, open(target, "r+b" if begin else "wb") as copy:
        copy.truncate(begin)
        copy.seek(begin)
        source.seek(begin)
        while begin < size and (piece := source.read(min(1 << 20, size - begin))):
            copy.write(piece)
            begin += len(piece)
        copy.flush()
        calls.fsync("diverged.copy.sync", copy.fileno())


def _end_of(path: Path) -> int:
    """Returns how much of the segment *path* is more than space ahead of its end."""
    if path.suffix == COMPRESSED_SUFFIX:
        return path.stat().st_size
    end = SEGMENT_HEADER_BYTES
    with suppress(BadFrameError), SegmentReader(path) as reader:
        for frame in reader.frames():
            end = frame.offset + len(frame.content)
    return end
