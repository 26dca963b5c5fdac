"""Pruning by random policies of random histories: each moment that is said to be restorable is,
with the tree that it had; and none is lost but those that the plan has named."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fusejournal.admin.prune import PrunePlan, Pruning
from fusejournal.admin.source import open_source
from fusejournal.admin.versions import VolumeVersions
from fusejournal.errors import FusejournalError
from fusejournal.journal.base import load_base
from fusejournal.operations import Void
from fusejournal.replay.restore import restore
from fusejournal.types import Seq
from tests.support.bases import stopped_volume
from tests.support.random_workloads import workloads
from tests.support.volumes import show_nothing
from tests.support.workload import Workload, unlike, workspace

_MOMENTS = st.lists(st.integers(0, 1 << 16), min_size=4, max_size=4)


@pytest.fixture(autouse=True, scope="module")
def _no_other_volumes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path_factory.mktemp("states")))
        yield


def _committed(workload: Workload, choice: int) -> Seq:
    """A seq whose entry no VOID follows; not 1, when nothing tells of the root yet."""
    seq = 2 + choice % (workload.head_seq - 1)
    while seq < workload.head_seq and isinstance(workload.steps[seq].operation, Void):
        seq += 1
    return Seq(seq)


def _prune(base: Path, state: Path) -> PrunePlan:
    work = Pruning(f"{state}/", base / "policy.toml")
    plan = work.plan()
    work.carry_out(plan, show_nothing)
    return plan


@settings(max_examples=12, phases=(Phase.generate,))
@given(
    workload=workloads(),
    moments=_MOMENTS,
    keep_last=st.integers(0, 2),
    keep_bytes=st.one_of(st.none(), st.integers(0, 4000)),
    asked=_MOMENTS,
)
def test_what_is_said_to_be_restorable_is(
    workload: Workload,
    moments: list[int],
    keep_last: int,
    keep_bytes: int | None,
    asked: list[int],
) -> None:
    with workspace() as base:
        workload = replace(workload, segment_entries=min(workload.segment_entries, 7))
        state = stopped_volume(base, workload, [_committed(workload, one) for one in moments])
        policy = f"[versions]\nkeep_last = {keep_last}\n"
        if keep_bytes is not None:
            policy += f"[journal]\nkeep_bytes = {keep_bytes}\n"
        (base / "policy.toml").write_text(policy)
        first = _prune(base, state)
        found = load_base(state)
        base_seq = found.seq if found is not None else 0
        assert base_seq == first.journal.base_seq
        assert (base_seq > 0) == (first.journal.segments > 0)
        source = open_source(f"{state}/")
        for seq in {max(base_seq, _committed(workload, one)) for one in asked}:
            target = base / f"by-journal-{seq}"
            restore(source.lookup, b"", Seq(seq + 1), target, show_nothing)
            assert not unlike(target, workload.models[seq])
        versions = VolumeVersions(f"{state}/", config=base / "policy.toml")
        kept = [one.version.seq for one in versions.all().versions]
        assert kept == sorted(kept)
        assert base_seq == 0 or base_seq in kept
        for seq in kept:
            target = base / f"by-version-{seq}"
            versions.restore(str(seq), b"", target, show_nothing)
            assert not unlike(target, workload.models[seq])
        # What is lost was named, with the nearest that are left; and nothing else is.
        lost = {one.seq: one for one in first.lost}
        for verdict in first.verdicts:
            seq = verdict.version.seq
            assert (seq in lost) == (seq < base_seq and seq not in kept)
        for seq, one in lost.items():
            with pytest.raises(FusejournalError):
                source.check_moment(seq)
            assert one.earlier == max((other for other in kept if other < seq), default=None)
            assert one.later == min(other for other in {*kept, base_seq} if other > seq)
        assert os.listdir(base / "kept/active") == []
        assert _prune(base, state).journal.segments == 0
