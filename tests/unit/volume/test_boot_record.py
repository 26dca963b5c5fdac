"""The record of a volume's last use."""

import json
import os
from pathlib import Path
from uuid import uuid4

import pytest

from fusejournal.backing.root_mark import BackingRoot
from fusejournal.journal.reader import END
from fusejournal.types import Seq
from fusejournal.volume.boot_record import BootRecord

_WRONG: tuple[object, ...] = (None, [], {}, "x", -1.5, float("inf"), float("nan"), ["x"])


def test_a_spoilt_record_vouches_for_nothing(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        record = BootRecord(tmp_path, BackingRoot(fd, uuid4()))
        assert not record.read().is_this
        record.remember(Seq(7))
        assert record.read() == (True, 7, "")
        path = tmp_path / "boot"
        whole = json.loads(path.read_text())
        for text in ("", "\0" * 512, "[" * 100_000, json.dumps(whole)[:-5], "{}", "null", '"x"'):
            path.write_text(text)
            assert (record.read().is_this, record.read().began_seq) == (False, END)
        path.write_bytes(b"\xff\xfe")
        assert not record.read().is_this
        for key in whole:
            for value in _WRONG:
                path.write_text(json.dumps({**whole, key: value}))
                told = record.read()
                assert not told.is_this or key == "began_seq"
                assert isinstance(told.began_seq, int)
    finally:
        os.close(fd)


@pytest.mark.parametrize("key", ["boot_id", "state", "backing"])
def test_another_boot_or_mounting(tmp_path: Path, key: str) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        record = BootRecord(tmp_path, BackingRoot(fd, uuid4()))
        record.remember(Seq(7))
        path = tmp_path / "boot"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: "another"}))
        told = record.read()
        assert (told.is_this, told.began_seq) == (False, 7)
        assert told.words
    finally:
        os.close(fd)
