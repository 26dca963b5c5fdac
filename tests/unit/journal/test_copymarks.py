"""A mirror's watermarks outlive their process."""

import os
import signal
from pathlib import Path

import pytest

from fusejournal.errors import JournalError
from fusejournal.journal.copymarks import CopyMarks
from fusejournal.types import Epoch, Seq

_BIG = (1 << 40) + 7


def test_new_ones_are_zero(tmp_path: Path) -> None:
    marks = CopyMarks(tmp_path / "marks")
    assert marks.applying_seq == marks.settled_seq == marks.durable_seq == 0
    assert marks.stopped_seq == marks.epoch == 0
    marks.close()


def test_they_outlive_a_killed_process(tmp_path: Path) -> None:
    CopyMarks(tmp_path / "marks").close()
    child = os.fork()
    if not child:
        marks = CopyMarks(tmp_path / "marks")
        marks.applying_seq = Seq(_BIG)
        marks.settled_seq = Seq(_BIG + 1)
        marks.durable_seq = Seq(_BIG + 2)
        marks.stopped_seq = Seq(_BIG + 3)
        marks.epoch = Epoch(5)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    marks = CopyMarks(tmp_path / "marks")
    assert (marks.applying_seq, marks.settled_seq) == (_BIG, _BIG + 1)
    assert (marks.durable_seq, marks.stopped_seq, marks.epoch) == (_BIG + 2, _BIG + 3, 5)
    marks.sync()
    marks.close()


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"x" * 4096, bytes(4096), bytes(8192)])
def test_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "marks").write_bytes(content)
    with pytest.raises(JournalError, match="not the watermarks"):
        CopyMarks(tmp_path / "marks")
