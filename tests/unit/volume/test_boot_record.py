"""The record of a volume's last use: what it vouches for, and that a spoilt one vouches for
nothing."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from fusejournal.backing.root_mark import BackingRoot
from fusejournal.journal.reader import END
from fusejournal.types import Seq
from fusejournal.volume.boot_record import BootRecord


@pytest.fixture
def root(tmp_path: Path) -> Iterator[BackingRoot]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield BackingRoot(fd, uuid4())
    os.close(fd)


def test_it_vouches_for_this_boot(tmp_path: Path, root: BackingRoot) -> None:
    record = BootRecord(tmp_path, root)
    assert not record.exists()
    record.remember(Seq(7))
    assert record.exists()
    assert record.read() == (True, 7, "")


def test_a_disk_that_failed_counts_as_another_boot(tmp_path: Path, root: BackingRoot) -> None:
    record = BootRecord(tmp_path, root)
    record.remember(Seq(7))
    record.mark_unclean(Seq(9))
    assert record.read() == (False, 9, "another boot of the machine")


@pytest.mark.parametrize(
    ("key", "words"),
    [("volume", "another volume's"), ("boot_id", "another boot"), ("backing", "went away")],
)
def test_what_is_different_is_said(tmp_path: Path, root: BackingRoot, key: str, words: str) -> None:
    record = BootRecord(tmp_path, root)
    record.remember(Seq(7))
    path = tmp_path / "boot"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: "other"}))
    found = record.read()
    assert not found.is_this
    assert words in found.words


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"boot_id": "x", "began_seq": Infinity}',
        b'{"boot_id": "x", "began_seq": null}',
        b'{"boot_id": "x", "began_seq": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
    ],
)
def test_a_spoilt_one_vouches_for_nothing(
    tmp_path: Path, root: BackingRoot, content: bytes
) -> None:
    (tmp_path / "boot").write_bytes(content)
    found = BootRecord(tmp_path, root).read()
    assert not found.is_this
    assert found.began_seq == END
