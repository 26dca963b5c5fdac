"""What is kept of entries that the primary does not have."""

import itertools
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.segment import first_seq_of, list_segments
from fusejournal.replication.common_ancestor import ChainFinder, find_common, keep_extra
from fusejournal.types import Epoch, Position, Seq
from tests.support.losses import Died, dying_at
from tests.support.volumes import SMALL_SEGMENTS, content, open_volume

pytestmark = pytest.mark.mount


def test_what_is_kept_has_everything_from_where_they_part(tmp_path: Path) -> None:
    with open_volume(tmp_path / "one") as one:
        one.work(200)
        head_seq = one.volume.journal.head_seq
    state, journal = tmp_path / "one" / "state", one.journal_dir
    assert len(list_segments(journal)) > 3

    late = keep_extra(state, Seq(head_seq - 5), head_seq)
    assert late.name == f"diverged.{head_seq - 4}-{head_seq}"
    assert len(list_segments(late)) == 1
    assert keep_extra(state, Seq(head_seq - 3), head_seq) == late  # it has that, too

    early = keep_extra(state, Seq(5), head_seq)
    assert early.name == f"diverged.6-{head_seq}"
    assert content(early) == content(journal)
    # Which has all that the other one had.
    assert list(state.glob("diverged.*")) == [early]
    assert keep_extra(state, Seq(head_seq - 5), head_seq) == early


def test_what_was_kept_of_another_journal_stays(tmp_path: Path) -> None:
    for name, start in (("old", 1), ("new", 701)):
        with open_volume(tmp_path / name) as volume:
            volume.work(50, start)
            head_seq = volume.volume.journal.head_seq
    state = tmp_path / "new" / "state"
    old = keep_extra(tmp_path / "old" / "state", Seq(head_seq - 30), head_seq)
    old = old.rename(state / old.name)
    assert old.name.endswith(f"-{head_seq}")
    new = keep_extra(state, Seq(head_seq - 200), head_seq)
    assert sorted(state.glob("diverged.*")) == sorted([old, new])


def _occupied(directory: Path, journal: Path) -> int:
    """What the files in *directory* occupy that the journal does not have as well."""
    shared = {path.stat().st_ino for path in journal.iterdir()}
    return sum(
        path.stat().st_blocks * 512
        for path in directory.iterdir()
        if path.stat().st_ino not in shared
    )


@pytest.mark.parametrize("compress", [False, True])
def test_what_parted_is_kept_once_and_grows(tmp_path: Path, compress: bool) -> None:
    """However often it is asked for while the journal goes on: nothing is copied twice, and what is
    copied does not grow with the journal."""
    with open_volume(tmp_path / "one") as one:
        state, journal = tmp_path / "one" / "state", one.volume.journal
        one.work(40)
        agreed_seq = Seq(journal.head_seq - 300)
        occupied = []
        for turn in range(6):
            one.work(40, start=100 + 40 * turn)
            if compress:
                journal.sync()
                for path in journal.sealed.compressible()[:-1]:
                    journal.sealed.compress(path)
            kept = keep_extra(state, agreed_seq, journal.head_seq)
            assert list(state.glob("*diverged.*")) == [kept]
            assert kept.name == f"diverged.{agreed_seq + 1}-{journal.head_seq}"
            entries = list(JournalReader(kept).read(Seq(agreed_seq + 1), END))
            mine = list(journal.reader.read(Seq(agreed_seq + 1), END))
            assert [entry[:6] for entry in entries] == [entry[:6] for entry in mine]
            occupied.append(_occupied(kept, one.journal_dir))
        assert max(occupied) < 3 * SMALL_SEGMENTS.segment_bytes
        for path in (list_segments(kept)[0], list_segments(kept)[-1]):
            assert path.stat().st_nlink == 1  # a later cut of the journal is none of this


@pytest.mark.parametrize("again", [False, True])
def test_a_kill_while_it_is_kept(tmp_path: Path, again: bool) -> None:
    """At any call: the next time it is whole, and once."""
    with open_volume(tmp_path / "one") as one:
        state, journal = tmp_path / "one" / "state", one.volume.journal
        one.work(100)
        agreed_seq = Seq(journal.head_seq - 700)
        for death in itertools.count(1):
            if again:  # it grows
                with suppress(Died):
                    keep_extra(state, agreed_seq, Seq(journal.head_seq))
                one.work(3, start=200 + 3 * death)
            else:
                for path in state.glob("*diverged.*"):
                    shutil.rmtree(path)
            with dying_at("diverged.", death) as left, suppress(Died):
                keep_extra(state, agreed_seq, journal.head_seq)
            kept = keep_extra(state, agreed_seq, journal.head_seq)
            seqs = [entry.seq for entry in JournalReader(kept).read(Seq(agreed_seq + 1), END)]
            assert seqs == list(range(agreed_seq + 1, journal.head_seq + 1))
            assert list(state.glob("diverged.*")) == [kept]
            if left[0] > 0:
                break
        assert death > 3


def test_nothing_is_kept_where_there_is_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_volume(tmp_path / "one") as one:
        state, journal = tmp_path / "one" / "state", one.volume.journal
        one.work(100)
        full = shutil.disk_usage(state)._replace(free=1 << 20)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
        with pytest.raises(OSError, match="No space"):
            keep_extra(state, Seq(5), journal.head_seq)
        assert not list(state.glob("*diverged.*"))


async def test_the_chain_before_the_first_entry_that_is_left(tmp_path: Path) -> None:
    """Of a journal without its first segments: the next one's header has it."""
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
        wire: Any = None  # nobody is asked
        assert await find_common(wire, chains, journal.head_seq, theirs) == first_seq - 1
