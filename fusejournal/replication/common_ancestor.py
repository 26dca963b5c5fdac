"""Finds where two journals of one volume agree: the source's side and the sink's of that part of a
session (wire/session.py).

Reading chains blocks on the disk, and so is done in threads."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final
from uuid import UUID

import trio

from fusejournal.errors import FusejournalError, JournalDamagedError, JournalPrunedError
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import (
    BadFrameError,
    SegmentReader,
    first_seq_of,
    list_segments,
    without_unbegun,
)
from fusejournal.types import Position, Reign, Seq
from fusejournal.wire.comparison import Comparison
from fusejournal.wire.frames import AskChains, Begin, Chains, Diverged, End, WireError
from fusejournal.wire.session import Claim, is_proven
from fusejournal.wire.session_connection import SessionConnection

log = logging.getLogger(__name__)

SILENCE_SECONDS = 60.0
"""A peer that says nothing for so long is gone. A throttled disk can block it for many seconds."""
ASKED_MAX: Final = 64
"""The number of times that a source may ask for chains (:class:`Comparison` needs about ten),
because each answer costs reading in the journal."""


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
            f"{what}: nothing is shipped to it; there, 'fusejournal rejoin' keeps its own entries "
            "as a branch and brings it level"
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
        try:
            for _, frame in self._reader.frames(seq, Seq(seq + 1)):
                return frame.checksum
        except JournalPrunedError:
            pass
        return None


async def is_bound_by(claim: Claim, mine: Reign, chains: ChainFinder) -> bool:
    """Returns True if a node that goes by *mine*, and whose journal *chains* knows, is bound by
    *claim* (:func:`is_proven`). Cancelling is harmless. A damaged place in that journal is no
    reason to go on: it counts as another entry than the peer's."""
    try:
        (chain,) = await chains.at((claim.seq,))
    except JournalDamagedError:
        chain = None
    return is_proven(claim, mine, chain)


async def find_common(
    session: SessionConnection,
    chains: ChainFinder,
    my_head: Seq,
    theirs: Position,
) -> Seq:
    """Returns, as the source, the last seq at which both journals are the same, of those that both
    still have. Cancelling ends the comparison.

    Args:
        session: with the sink; its state is not left.
        chains, my_head: of this node's journal.
        theirs: the end of the sink's.

    Raises RefusedError, WireError, JournalDamagedError, trio.TooSlowError."""
    ask = partial(_ask, session, chains)
    seq = min(theirs.seq, my_head)
    if theirs.seq <= my_head:
        (mine,) = await chains.at((seq,))
        if mine == theirs.chain:
            return seq
        if mine is None and await chains.first_seq() > seq + 1:
            return seq  # it cannot be told, and what comes next is not here any more
        comparison = Comparison(Seq(0), seq)
    else:
        comparison = Comparison(Seq(0), Seq(my_head + 1))
        await ask(comparison, (seq,))
        if comparison.agreed_seq == my_head:
            return my_head
    # Of what came before this one's base nothing can be compared but its last entry. (The other's
    # is found by what is told.)
    base_seq = Seq(await chains.first_seq() - 1)
    if 0 < base_seq < comparison.differ_seq:
        await ask(comparison, (base_seq,))
    while not comparison.is_over:
        await ask(comparison, comparison.probes())
    if not comparison.is_told:
        log.warning(
            "%s: where the two journals part cannot be told: of one, all up to entry %d is gone",
            session.where,
            comparison.unknown_seq,
        )
    return comparison.agreed_seq


async def _ask(
    session: SessionConnection,
    chains: ChainFinder,
    comparison: Comparison,
    seqs: tuple[Seq, ...],
) -> None:
    if not seqs or seqs == (0,):
        return
    await session.send(AskChains(seqs))
    mine = await chains.at(seqs)
    with trio.fail_after(SILENCE_SECONDS):
        theirs: Chains = await session.receive()
    comparison.told(seqs, mine, theirs.chains)


async def answer_chains(session: SessionConnection, chains: ChainFinder) -> Begin | Diverged | End:
    """Answers, as the sink, the source's questions, and returns what the source says at last.
    Cancelling ends the session. Raises RefusedError, WireError, JournalDamagedError, OSError,
    trio.TooSlowError."""
    for _ in range(ASKED_MAX):
        with trio.fail_after(SILENCE_SECONDS):
            message: AskChains | Begin | Diverged | End = await session.receive()
        if not isinstance(message, AskChains):
            return message
        await session.send(Chains(await chains.at(message.seqs)))
    raise WireError(f"{session.where}: asks for chains again and again")
