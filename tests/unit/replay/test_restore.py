"""A restore's last step: the tree gets its name."""

import errno
import os

import pytest

from fusejournal.errors import TargetError
from fusejournal.replay.made_aside import Filled, make_aside
from fusejournal.replay.scratch import Scratch, Spot
from fusejournal.replay.staged_tree import StagedTree
from tests.support.workload import workspace

pytestmark = pytest.mark.mount


PURPOSE = {"is": "a test's"}


def stage(_: Spot, scratch: Scratch) -> StagedTree:
    return StagedTree.within(scratch, PURPOSE)


def fill(_: StagedTree) -> Filled:
    return Filled("", 0, lambda: None)


def test_a_name_that_cannot_be_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree is where it was wanted, and nowhere else: that is what the error says."""

    def sync(_: Spot) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Spot, "sync", sync)
    with workspace() as base:
        with pytest.raises(TargetError, match="is restored, and may be gone after a system crash"):
            make_aside(base / "target", PURPOSE, stage, fill)
        assert os.listdir(base) == ["target"]
