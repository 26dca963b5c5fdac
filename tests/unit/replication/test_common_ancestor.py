"""The last entry in which two journals agree."""

from pathlib import Path
from typing import Any

import pytest

from fusejournal.journal.segment import first_seq_of, list_segments
from fusejournal.replication.common_ancestor import ChainFinder, find_common
from fusejournal.types import Epoch, Position, Seq
from tests.support.volumes import open_volume

pytestmark = pytest.mark.mount


async def test_the_chain_before_the_first_entry_that_is_left(tmp_path: Path) -> None:
    """A journal may lack its first segments: the next one's header has it."""
    with open_volume(tmp_path / "one") as one:
        one.work(100)
        journal = one.volume.journal
        paths = list_segments(one.journal_dir)
        first_seq = first_seq_of(paths[2])
        (before,) = [
            frame.checksum for _, frame in journal.reader.frames(Seq(first_seq - 1), first_seq)
        ]
        for path in paths[:2]:
            path.unlink()
        chains = ChainFinder(one.journal_dir, journal.uuid)
        seqs = (Seq(first_seq - 2), Seq(first_seq - 1))
        assert await chains.at(seqs) == (None, before)
        theirs = Position(Epoch(1), Seq(first_seq - 1), before)
        wire: Any = None  # no peer is asked
        assert await find_common(wire, chains, journal.head_seq, theirs) == (first_seq - 1)
