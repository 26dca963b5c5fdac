"""What becomes of files after a lost machine, case by case. (Of all others: the property test.)"""

import os
import shutil
from pathlib import Path

import pytest

from fusejournal.backing.tree import FID_XATTR
from fusejournal.errors import BackingError
from fusejournal.operations import Create, Rename, Write
from fusejournal.types import ROOT_FID, Fid
from tests.support.losses import lose_machine
from tests.support.volumes import SOMEBODY, OpenVolume, open_volume

pytestmark = pytest.mark.mount


def save(volume: OpenVolume, content: bytes, replaced: Fid = Fid(0)) -> Fid:
    """As editors do: write another file and rename it. Returns its fid."""
    fid = volume.create("new", content)
    operation = Rename(fid, ROOT_FID, b"new", ROOT_FID, b"text", 0, replaced)
    volume.volume.commit(operation, SOMEBODY)
    return fid


def test_a_file_that_was_replaced_by_an_operation_that_is_lost(tmp_path: Path) -> None:
    """The journal's content comes back, and what is on the disk is kept beside it."""
    with open_volume(tmp_path, orderly=False) as volume:
        fid = save(volume, b"first")
        last_seq = volume.volume.journal.head_seq
        save(volume, b"second", fid)
    lose_machine(tmp_path / "state", last_seq)
    with open_volume(tmp_path) as volume:
        assert (volume.backing / "text").read_bytes() == b"first"
        assert (volume.backing / "text.not-journaled").read_bytes() == b"second"
        (told,) = volume.opening.degraded
        assert "text.not-journaled" in told
        catalog = volume.volume.catalog
        assert catalog.lookup(ROOT_FID, b"text") == fid
        assert catalog.lookup(ROOT_FID, b"text.not-journaled") is not None


def test_a_file_whose_making_is_lost_is_imported(tmp_path: Path) -> None:
    with open_volume(tmp_path, orderly=False) as volume:
        volume.mkdir("there")
        last_seq = volume.volume.journal.head_seq
        lost = volume.create("file", b"content")
    lose_machine(tmp_path / "state", last_seq)
    with open_volume(tmp_path) as volume:
        fid = volume.volume.catalog.lookup(ROOT_FID, b"file")
        assert fid not in (None, lost)
        assert (volume.backing / "file").read_bytes() == b"content"
        assert volume.opening.degraded == []


def test_a_large_file_gets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    """It is not written anew as a whole."""
    piece = bytes(1 << 20)
    with open_volume(tmp_path, orderly=False) as volume:
        fid = volume.create("large")
        for number in range(20):
            volume.volume.commit(Write(fid, number << 20, None), SOMEBODY, piece)
        volume.opening.checkpoint.make(
            volume.volume.catalog.applied_seq, volume.volume.tree.root_fd
        )
        volume.volume.commit(Write(fid, 3 << 20, None), SOMEBODY, b"later")
        last_seq = volume.volume.journal.head_seq
    handle = os.stat(volume.backing / "large").st_ino
    with open(volume.backing / "large", "r+b") as file:
        file.seek(3 << 20)
        file.write(b"\0\0\0\0\0")
        file.truncate(21 << 20)
    lose_machine(tmp_path / "state", last_seq)
    with open_volume(tmp_path) as volume:
        content = (volume.backing / "large").read_bytes()
        assert content == bytes(3 << 20) + b"later" + bytes((17 << 20) - 5)
        assert os.stat(volume.backing / "large").st_ino == handle


def test_half_made_files_are_finished(tmp_path: Path) -> None:
    """Their names had come to the disk, and nothing else."""
    with open_volume(tmp_path, orderly=False) as volume:
        fid = volume.volume.new_fid()
        operation = Create(fid, ROOT_FID, b"file", 0o100640, 7, 8, 0, None)
        volume.volume.commit(operation, SOMEBODY)
        volume.mkdir("later")
        last_seq = volume.volume.journal.head_seq
    file = volume.backing / "file"
    os.removexattr(file, FID_XATTR)
    os.chown(file, 0, 0)
    file.chmod(0o600)
    before = file.stat().st_ino
    lose_machine(tmp_path / "state", last_seq)
    with open_volume(tmp_path) as volume:
        stat = file.stat()
        assert (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) == (0o640, 7, 8)
        assert stat.st_ino == before
        assert volume.volume.catalog.lookup(ROOT_FID, b"file") == fid


def test_a_copied_backing_is_not_touched(tmp_path: Path) -> None:
    """Its files are not those that the journal knows, whatever they are called."""
    with open_volume(tmp_path, orderly=False) as volume:
        volume.create("file", b"content")
        last_seq = volume.volume.journal.head_seq
    lose_machine(tmp_path / "state", last_seq)
    tag = os.getxattr(volume.backing, FID_XATTR)
    volume.backing.rename(tmp_path / "original")
    shutil.copytree(tmp_path / "original", volume.backing)
    os.setxattr(volume.backing, FID_XATTR, tag)
    with pytest.raises(BackingError, match="is a copy"), open_volume(tmp_path):
        pass
    assert (volume.backing / "file").read_bytes() == b"content"
