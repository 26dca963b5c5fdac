"""What is kept of entries that the primary does not have."""

from pathlib import Path

import pytest

from fusejournal.journal.segment import list_segments
from fusejournal.replication.comparing import keep_extra
from fusejournal.types import Seq
from tests.support.volumes import content, open_volume

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
