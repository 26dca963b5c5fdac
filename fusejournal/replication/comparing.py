"""Where two journals of one volume agree: the source's side and the sink's of that part of a
session (wire/session.py), and what is kept of a sink's entries that its source does not have.

Reading chains blocks on the disk, and so is done in threads."""

import filecmp
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import trio

from fusejournal import storage
from fusejournal.errors import FusejournalError
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import first_seq_of, list_segments
from fusejournal.types import Position, Seq
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import AskChains, Chains
from fusejournal.wire.session import Comparison, expect

log = logging.getLogger(__name__)

SILENCE_SECONDS = 60.0
"""A peer that says nothing for so long is gone. A throttled disk can block it for many seconds."""


class DivergedError(FusejournalError):
    """Two journals of one volume that are the same up to ``seq`` and no further."""

    exit_code = 29

    def __init__(self, node: str, seq: Seq, my_head: Seq, their_head: Seq) -> None:
        self.node = node
        self.seq = seq
        if seq == my_head:
            what = f"{node} has entries {seq + 1} to {their_head}, which are not here"
        else:
            what = (
                f"{node} has other entries from {seq + 1} on: they part after entry {seq} "
                f"(it has {their_head} entries, here are {my_head})"
            )
        super().__init__(
            f"{what}: nothing is shipped to it; to begin anew, give it an empty backing and state"
        )


def first_error(error: BaseException) -> BaseException:
    """What a group of errors, out of a nursery, began with."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class ChainFinder:
    """Chain checksums of a journal at any seq. Not for two tasks at a time."""

    def __init__(self, directory: Path, uuid: UUID) -> None:
        self._directory = directory
        self._reader = JournalReader(directory, uuid)

    async def at(self, seqs: Sequence[Seq]) -> tuple[int | None, ...]:
        """The chains at *seqs*, None where there is no such entry (any more). Raises
        JournalDamagedError."""
        return await trio.to_thread.run_sync(self._look, tuple(seqs))

    async def first_seq(self) -> Seq:
        """The first entry that there is."""
        return await trio.to_thread.run_sync(lambda: self._reader.first_seq)

    def _look(self, seqs: Sequence[Seq]) -> tuple[int | None, ...]:
        paths = list_segments(self._directory)
        first = first_seq_of(paths[0]) if paths else Seq(0)
        return tuple(self._chain(first, seq) for seq in seqs)

    def _chain(self, first: Seq, seq: Seq) -> int | None:
        if seq == 0:
            return 0
        if not first or seq < first:
            return None
        for _, frame in self._reader.frames(seq, Seq(seq + 1)):
            return frame.checksum
        return None


async def find_common(
    connection: Connection, chains: ChainFinder, my_head: Seq, theirs: Position
) -> Seq:
    """As the source: the last seq at which both journals are the same. Raises WireError,
    JournalDamagedError."""
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
    """Copy the segments with the entries after *agreed_seq* to a directory of their own, which can
    be read as a journal is; returns it, or one that has them already. Blocks. Raises OSError."""
    known = list(state_dir.glob(f"diverged.*-{head_seq}"))
    for path in known:
        first_seq = path.name.removeprefix("diverged.").partition("-")[0]
        if first_seq.isdecimal() and int(first_seq) <= agreed_seq + 1:
            return path
    directory = state_dir / f"diverged.{agreed_seq + 1}-{head_seq}"
    temporary = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o700)
    paths = list_segments(state_dir / "journal")
    starts = [first_seq_of(path) for path in paths]
    first = max((n for n, start in enumerate(starts) if start <= agreed_seq + 1), default=0)
    try:
        for path in paths[first:]:
            storage.reached("diverged.copy")
            with open(path, "rb") as source, open(temporary / path.name, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
                target.flush()
                storage.fsync("diverged.sync", target.fileno())
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    storage.fsync_directory("diverged.directory", temporary)
    storage.rename("diverged.rename", temporary, directory)
    storage.fsync_directory("diverged.directory", state_dir)
    for path in known:
        names = os.listdir(path)
        if filecmp.cmpfiles(path, directory, names, shallow=False)[0] == names:
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
