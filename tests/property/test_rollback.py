"""A volume whose end lost to another history is taken back to where both agree, wherever that is,
and however often it is killed meanwhile; and what it had is in the branch."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusejournal.history.lookup import Lookup
from fusejournal.history.query import Criteria
from fusejournal.journal.branches import find_branch, list_branches, make_branch
from fusejournal.journal.reader import JournalReader
from fusejournal.replay.replay import Replay
from fusejournal.replay.target import Target
from fusejournal.types import Epoch, Position, Seq
from fusejournal.volume.reconcile import contents
from fusejournal.volume.rollback import REJOIN_FILE, Rollback
from tests.property.test_reconciling import leave
from tests.support.losses import Died, dying_at
from tests.support.random_workloads import workloads
from tests.support.trees import difference, image
from tests.support.volumes import open_volume
from tests.support.workload import UUID_OF_WORKLOADS, Workload, unlike, workspace

pytestmark = pytest.mark.mount


def position(reader: JournalReader, seq: int) -> Position:
    """The position of entry *seq*, but for its epoch, which does not matter here."""
    ((_, frame),) = reader.frames(Seq(seq), Seq(seq + 1))
    return Position(Epoch(1), Seq(seq), frame.checksum)


def rejoin(state: Path, seq: int) -> None:
    """Does what a rejoin does before the volume is opened."""
    reader = JournalReader(state / "journal", UUID_OF_WORKLOADS)
    if (state / REJOIN_FILE).exists() or reader.head()[0] == seq:
        return
    parted, head = position(reader, seq), position(reader, reader.head()[0])
    branch = make_branch(state, UUID_OF_WORKLOADS, parted, head, "another", "2/1")
    Rollback(parted, branch.name, may_be_ahead=False).save(state)


@settings(max_examples=40)
@given(
    workloads(min_size=25, max_size=100),
    st.integers(0, 1 << 16),
    st.integers(0, 1 << 16),
    st.booleans(),
    st.lists(st.integers(1, 60), max_size=2),
)
def test_it_is_taken_back_to_any_entry(
    workload: Workload, at: int, checkpoint: int, is_large: bool, deaths: list[int]
) -> None:
    head_seq = max(seq for seq, step in enumerate(workload.steps, 1) if step.void is None)
    parted_seq = 3 + at % (head_seq - 3)  # (The second tells what the root is.)
    with workspace() as volume, pytest.MonkeyPatch.context() as patch:
        if is_large:
            patch.setattr(contents, "_WHOLE_BYTES_MAX", 0)
        leave(volume, workload, 1 + checkpoint % head_seq, head_seq, head_seq)
        state = volume / "state"
        with open_volume(volume, mirror=True, uuid=UUID_OF_WORKLOADS) as mirror:
            pass  # it is whole again after the loss, and stops in order
        for death in [*deaths, 0]:
            with suppress(Died), dying_at("", death):
                rejoin(state, parted_seq)
                with open_volume(volume, mirror=True, uuid=UUID_OF_WORKLOADS) as mirror:
                    assert mirror.volume.journal.head_seq == parted_seq, death
                    applied_seq = mirror.volume.catalog.applied_seq
                    assert parted_seq - 1 <= applied_seq <= parted_seq
        assert not (state / REJOIN_FILE).exists()
        model = workload.models[applied_seq]
        assert not (found := unlike(mirror.backing, model)), found

        # All that lost is there, once, and is what it was.
        (branch,) = list_branches(state)
        assert find_branch(state, branch.name) == branch
        assert (branch.parted.seq, branch.head.seq) == (parted_seq, head_seq)
        target = volume / "before"
        target.mkdir()
        replay(branch.whole_reader(), target)
        assert not (found := difference(image(target), workload.models[head_seq].image())), found
        entries = list(branch.reader().read(branch.first_seq, Seq(head_seq + 1)))
        assert [entry.operation for entry in entries] == [
            step.operation for step in workload.steps[parted_seq:head_seq]
        ]
        assert all(os.stat(path).st_nlink == 1 for path in branch.directory.glob("*.fj*"))


def replay(reader: JournalReader, target: Path) -> None:
    """Make the tree of *reader*'s journal in *target*."""
    head_seq, _ = reader.head()
    work = Replay(Lookup(reader), Criteria(to_seq=Seq(head_seq + 1)))
    with Target(target, {"test": str(target)}) as goal:
        for result in work.run(goal, lambda done, total: None):
            assert result.conflict is None, result
        goal.finish()
