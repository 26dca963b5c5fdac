"""A restore's last step: the tree gets its name."""

import errno
import os

import pytest

from fusejournal.errors import TargetError
from fusejournal.replay.restore import Filled, restore_into
from fusejournal.replay.scratch import Spot
from fusejournal.replay.target import Target
from tests.support.workload import workspace

pytestmark = pytest.mark.mount


def fill(_: Target) -> Filled:
    return Filled("", 0, lambda: None)


def test_a_name_that_cannot_be_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree is where it was wanted, and nowhere else: that is what the error says."""

    def sync(_: Spot) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Spot, "sync", sync)
    with workspace() as base:
        with pytest.raises(TargetError, match="is restored, and may be gone after a system crash"):
            restore_into(base / "target", {"is": "a test's"}, fill)
        assert os.listdir(base) == ["target"]
