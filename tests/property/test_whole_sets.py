"""A mirror that becomes a version, from nothing or from another tree of the volume, has what the
journal says: whatever was in either, and wherever it was killed."""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from fusejournal.backing.root_mark import BackingRoot
from fusejournal.journal.base import JournalBase
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import first_seq_of, list_segments
from fusejournal.types import Seq
from fusejournal.versions.base_tree import base_of
from fusejournal.versions.create import create_version
from fusejournal.versions.manifest import Version
from fusejournal.volume.reconcile import contents
from fusejournal.volume.whole_set import NEW_JOURNAL, WholeSet
from tests.support.bases import STORES, possible_bases
from tests.support.losses import Died, dying_at
from tests.support.objects import MemoryStore
from tests.support.random_workloads import workloads
from tests.support.volumes import open_volume
from tests.support.workload import UUID_OF_WORKLOADS, Workload, unlike, workspace

_CHOICE = st.integers(0, 1 << 16)
_TICK_SECONDS = 0.01
"""Longer than a tick of the clock that change times are by."""


@pytest.fixture(autouse=True, scope="module")
def _no_slack() -> Iterator[None]:
    """Has changes before a moment not count as changes since: only the difference of the two
    trees tells of it."""
    with mock.patch("fusejournal.volume.checkpoint.CLOCK_SLACK_NS", 0):
        yield


class Mirror:
    """A mirror in *directory* of the journal in *source*; its store has versions of that."""

    def __init__(self, directory: Path, source: Path) -> None:
        self.state, self.backing = directory / "state", directory / "backing"
        self._directory = directory
        self._source = source
        self._store = MemoryStore()
        self._name = f"whole{len(STORES)}"
        STORES[self._name] = self._store
        self.backing.mkdir(parents=True)
        self.state.mkdir()
        root_fd = os.open(self.backing, os.O_RDONLY | os.O_DIRECTORY)
        BackingRoot(root_fd, UUID_OF_WORKLOADS).mark()
        os.close(root_fd)

    def version(self, seq: Seq) -> Version:
        """The version after entry *seq*."""
        reader = JournalReader(self._source, UUID_OF_WORKLOADS)
        return create_version(self._store, reader, seq, "", "node", 1, lambda *_: None).version

    def begin(self, seq: Seq, upto_seq: Seq | None, own: Version | None) -> None:
        """Has it be about to become the version after *seq*, with the segments behind it that
        begin before *upto_seq*; *own*: its tree."""
        base: JournalBase = base_of(self.version(seq), self._name)
        new = self.state / NEW_JOURNAL
        new.mkdir()
        for path in list_segments(self._source):
            if seq < first_seq_of(path) and (upto_seq is None or first_seq_of(path) <= upto_seq):
                shutil.copy(path, new / path.name)
        roots = (None, None) if own is None else (own.inodes.hex(), own.names.hex())
        time.sleep(_TICK_SECONDS)
        WholeSet.begun(base, *roots).save(self.state)

    def go_through(self, workload: Workload, death: int) -> Seq:
        """Opens it, killed at the call of number *death*, and then not. Returns what it has
        applied, which is checked."""
        if death:
            with dying_at("", death):
                try:
                    with open_volume(self._directory, mirror=True, uuid=UUID_OF_WORKLOADS):
                        pass
                except Died:
                    pass
        with open_volume(self._directory, mirror=True, uuid=UUID_OF_WORKLOADS) as volume:
            applied_seq = volume.volume.catalog.applied_seq
            found = unlike(self.backing, workload.models[applied_seq])
            assert not found, (applied_seq, found)
        return applied_seq


@settings(max_examples=60, phases=(Phase.generate,), deadline=None)
@given(
    workload=workloads(),
    one=_CHOICE,
    other=_CHOICE,
    death=st.just(0) | st.integers(1, 200),
    later_death=st.just(0) | st.integers(1, 200),
    whole_bytes_max=st.sampled_from((0, 16 << 20)),
)
def test_a_mirror_becomes_a_version(
    workload: Workload, one: int, other: int, death: int, later_death: int, whole_bytes_max: int
) -> None:
    with (
        workspace() as directory,
        mock.patch.object(contents, "_WHOLE_BYTES_MAX", whole_bytes_max),
    ):
        source = directory / "source"
        replace(workload, segment_entries=min(workload.segment_entries, 7)).write(source)
        seqs = [seq for seq in possible_bases(source) if seq > 1]
        assume(seqs)
        mirror = Mirror(directory / "mirror", source)
        first, second = seqs[one % len(seqs)], seqs[other % len(seqs)]
        mirror.begin(first, Seq(first + 1 + other % 20), None)
        applied_seq = mirror.go_through(workload, death)
        # Then another one, before or after it.
        mirror.begin(second, None, mirror.version(applied_seq))
        mirror.go_through(workload, later_death)
