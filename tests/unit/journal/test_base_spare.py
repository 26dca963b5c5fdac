"""The record of a base on a full disk: it goes into the block that is kept for it, in one step."""

import errno
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from fusejournal.disk import failpoints
from fusejournal.journal.base import JournalBase, keep_spare, load_base, save_base
from fusejournal.types import Epoch, Fid, Seq
from tests.support.losses import Died

_BASE = JournalBase(
    UUID(int=1), Epoch(1), Seq(10), 7, 8, "version", "store", "00" * 32, "11" * 32, Fid(20), 1 << 40
)
_NEXT = replace(_BASE, seq=Seq(20))
_SPARE = "base.spare"


class _Full:
    """A disk without a block: files cannot grow, and the process dies at *label*, if given."""

    def __init__(self, label: str = "") -> None:
        self._label = label
        self.reached: list[str] = []

    def __enter__(self) -> "_Full":
        failpoints.listen(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        failpoints.listen(None)

    def _listen(self, label: str) -> None:
        self.reached.append(label)
        if label in ("journal.base.write", "journal.spare.write"):
            raise OSError(errno.ENOSPC, "No space left on device")
        if label == self._label:
            raise Died


def test_the_block_becomes_the_record(tmp_path: Path) -> None:
    keep_spare(tmp_path)
    with _Full():
        save_base(tmp_path, _BASE)
        assert load_base(tmp_path) == _BASE
        assert not (tmp_path / _SPARE).exists()
        keep_spare(tmp_path)  # there is no room for another, which harms nothing
        with pytest.raises(OSError, match="No space"):
            save_base(tmp_path, _NEXT)
        assert load_base(tmp_path) == _BASE
    keep_spare(tmp_path)
    with _Full():
        save_base(tmp_path, _NEXT)
    assert load_base(tmp_path) == _NEXT


@pytest.mark.parametrize(
    ("label", "is_new"),
    [
        ("journal.spare.fill", False),
        ("journal.spare.flush", False),
        ("journal.spare.use", False),
        ("journal.spare.used", True),
    ],
)
def test_killed_at_each_step(tmp_path: Path, label: str, is_new: bool) -> None:
    save_base(tmp_path, _BASE)
    keep_spare(tmp_path)
    with _Full(label) as disk, pytest.raises(Died):
        save_base(tmp_path, _NEXT)
    assert label in disk.reached
    assert load_base(tmp_path) == (_NEXT if is_new else _BASE)
    keep_spare(tmp_path)
    with _Full():
        save_base(tmp_path, _NEXT)
    assert load_base(tmp_path) == _NEXT


def test_what_is_no_such_block_is_not_used(tmp_path: Path) -> None:
    (tmp_path / _SPARE).write_bytes(b"half")
    with _Full(), pytest.raises(OSError, match="No space"):
        save_base(tmp_path, _BASE)
    keep_spare(tmp_path)
    assert (tmp_path / _SPARE).stat().st_size == 4096
