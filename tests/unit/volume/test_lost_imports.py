"""A system crash in the midst of an import: what was found may be gone from the disk, moved
or changed since, and the journal may end with any of the import's entries."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusejournal.backing.fid_tag import FID_XATTR
from fusejournal.journal.frame_range import FrameRange
from fusejournal.journal.outcomes import with_outcomes
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import Import, ImportData, Rename
from fusejournal.types import ROOT_FID, Fid, Seq
from tests.support.losses import begin_another_boot, crash_system
from tests.support.trees import difference, image
from tests.support.volumes import SOMEBODY, OpenVolume, check_copies, open_volume

pytestmark = pytest.mark.mount

_PIECES = 3


def put(place: Path, kind: str) -> None:
    """Make what an import is to find."""
    if kind == "directory":
        place.mkdir()
    elif kind == "symlink":
        place.symlink_to("somewhere")
    else:
        place.write_bytes(os.urandom(_PIECES << 20) if kind == "large" else kind.encode())
        place.chmod(0o640)
        os.chown(place, 7, 8)


def remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        place.rmdir()
    else:
        place.unlink()


def begin_import(directory: Path, kind: str, pieces: int = 0) -> None:
    """A process crash leaves the import of ``found``, with *pieces* of its content, as the last
    that the journal has."""
    (directory / "backing").mkdir()
    put(directory / "backing" / "found", kind)
    with open_volume(directory, begin=False, orderly=False) as volume:
        volume.opening.recover(read_only=False)
        catalog = volume.volume.catalog
        for _ in volume.opening.start_epoch_and_import(read_only=False):
            fid = catalog.lookup(ROOT_FID, b"found")
            if fid is not None and volume.volume.tree.node(fid).complete:
                break  # before a checkpoint
    seqs = [
        entry.seq
        for entry, _ in with_outcomes(volume.volume.journal.reader.read(Seq(1), END))
        if isinstance(entry.operation, Import | ImportData)
    ]
    crash_system(directory / "state", seqs[pieces])


@contextmanager
def started(directory: Path) -> Iterator[OpenVolume]:
    """Start after the loss; replay and a mirror come to the same tree."""
    with open_volume(directory) as volume:
        yield volume
        copies = directory / "copies"
        copies.mkdir()
        check_copies(directory, volume.volume.journal.uuid, copies)


@pytest.mark.parametrize("kind", ["content", "large", "directory", "symlink", ""])
def test_gone_and_its_import_is_the_last_entry(tmp_path: Path, kind: str) -> None:
    """It had never come to the disk, and nothing but its import tells of it: that is refused, and
    its name is free."""
    begin_import(tmp_path, kind)
    remove(tmp_path / "backing" / "found")
    with started(tmp_path) as volume:
        assert volume.volume.catalog.lookup(ROOT_FID, b"found") is None
        assert volume.opening.degraded == []
        assert not (volume.backing / "found").exists()
        volume.create("found", b"another")
        outcomes = with_outcomes(volume.volume.journal.reader.read(Seq(1), END))
        (void,) = (one.void for entry, one in outcomes if isinstance(entry.operation, Import))
        assert void is not None
        assert void.errno == errno.ENOENT


@pytest.mark.parametrize("kind", ["content", "directory", "symlink", ""])
def test_moved_by_an_entry_that_is_lost(tmp_path: Path, kind: str) -> None:
    """It is where it was found, whether the walk meets its new place before or after that."""
    begin_import(tmp_path, kind)
    backing = tmp_path / "backing"
    (backing / "found").rename(backing / "moved")
    with started(tmp_path) as volume:
        assert volume.volume.catalog.lookup(ROOT_FID, b"found") is not None
        assert volume.volume.catalog.lookup(ROOT_FID, b"moved") is None
        assert sorted(os.listdir(backing)) == ["found"]


@pytest.mark.parametrize("kind", ["content", "directory", "symlink", ""])
def test_its_fid_had_not_come_to_the_disk(tmp_path: Path, kind: str) -> None:
    begin_import(tmp_path, kind)
    os.removexattr(tmp_path / "backing" / "found", FID_XATTR, follow_symlinks=False)
    with started(tmp_path) as volume:
        assert volume.volume.catalog.lookup(ROOT_FID, b"found") is not None
        outcomes = with_outcomes(volume.volume.journal.reader.read(Seq(1), END))
        (void,) = (one.void for entry, one in outcomes if isinstance(entry.operation, Import))
        assert void is None


@pytest.mark.parametrize("kind", ["content", "large", "directory", ""])
def test_its_attributes_were_changed_by_entries_that_are_lost(tmp_path: Path, kind: str) -> None:
    begin_import(tmp_path, kind)
    found = tmp_path / "backing" / "found"
    before = found.stat()
    found.chmod(0o701)
    os.chown(found, 70, 80)
    os.setxattr(found, "user.later", b"later")
    with started(tmp_path) as volume:
        after = (volume.backing / "found").stat()
        assert (after.st_mode, after.st_uid, after.st_gid) == (
            before.st_mode,
            before.st_uid,
            before.st_gid,
        )
        assert "user.later" not in os.listxattr(found)


@pytest.mark.parametrize("later", [b"less", b"more than there was at first"])
def test_its_content_was_changed_by_entries_that_are_lost(tmp_path: Path, later: bytes) -> None:
    """Content that has come to it is imported with it; where it is less than was there, it is
    kept."""
    begin_import(tmp_path, "content")
    found = tmp_path / "backing" / "found"
    found.write_bytes(later)
    with started(tmp_path) as volume:
        kept = [path.read_bytes() for path in tmp_path.glob("state/overwritten/*/[0-9]*")]
        assert found.read_bytes() == later or later in kept
        assert volume.opening.degraded == []


def test_another_kind_of_file_is_in_its_place(tmp_path: Path) -> None:
    """That one is imported as what it is."""
    begin_import(tmp_path, "content")
    (tmp_path / "backing" / "found").unlink()
    (tmp_path / "backing" / "found").mkdir()
    with started(tmp_path) as volume:
        assert volume.volume.catalog.lookup(ROOT_FID, b"found") is not None
        assert (volume.backing / "found").is_dir()
        assert volume.opening.degraded == []


@pytest.mark.parametrize("pieces", [1, 2])
def test_gone_when_some_of_its_content_is_in_the_journal(tmp_path: Path, pieces: int) -> None:
    """It is made of what the journal has, because that is all there is; and it is said."""
    begin_import(tmp_path, "large", pieces)
    content = (tmp_path / "backing" / "found").read_bytes()
    remove(tmp_path / "backing" / "found")
    with started(tmp_path) as volume:
        found = volume.backing / "found"
        kept = pieces << 20
        assert found.read_bytes() == content[:kept] + bytes(len(content) - kept)
        stat = found.stat()
        assert (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) == (0o640, 7, 8)
        (told,) = map(str, volume.opening.degraded)
        assert "'found'" in told


def test_gone_when_other_entries_have_followed(tmp_path: Path) -> None:
    """So it is where a user went on while something was found in the backing."""
    with open_volume(tmp_path, orderly=False) as volume:
        put(volume.backing / "found", "large")
        items = volume.opening.importer.import_found(ROOT_FID, b"found")
        next(items)
        volume.create("other", b"other")
    (tmp_path / "backing" / "found").unlink()
    begin_another_boot(tmp_path / "state")
    with started(tmp_path) as volume:
        fid = volume.volume.catalog.lookup(ROOT_FID, b"found")
        assert fid is not None
        assert (volume.backing / "found").stat().st_size == _PIECES << 20
        volume.volume.commit(Rename(fid, ROOT_FID, b"found", ROOT_FID, b"x", 0, Fid(0)), SOMEBODY)


@pytest.mark.parametrize("pieces", [0, 1, _PIECES])
def test_mirror_loses_what_it_has_of_an_import(tmp_path: Path, pieces: int) -> None:
    """It makes it anew of what it has, and goes on with the rest."""
    (tmp_path / "primary" / "backing").mkdir(parents=True)
    put(tmp_path / "primary" / "backing" / "found", "large")
    with open_volume(tmp_path / "primary", options=JournalOptions()) as primary:
        reader = JournalReader(primary.journal_dir, primary.volume.journal.uuid)
        entries = list(with_outcomes(reader.read(Seq(1), END)))
        *_, (path, frame) = reader.frames(Seq(1), END)
        size = frame.offset + len(frame.content)
        everything = FrameRange(
            Seq(1), 0, Seq(1), frame.seq, 0, frame.checksum, path.read_bytes()[:size]
        )
        uuid = primary.volume.journal.uuid
    applied_seq = [
        entry.seq for entry, _ in entries if isinstance(entry.operation, Import | ImportData)
    ][pieces]
    copy = tmp_path / "mirror"
    with open_volume(copy, mirror=True, uuid=uuid, orderly=False) as mirror:
        mirror.volume.journal.receive(everything)
        mirror.volume.journal.sync()
        assert mirror.watermarks is not None
        mirror.watermarks.write_durable(mirror.volume.journal.head_seq)
        mirror.watermarks.write_committed(applied_seq)
        for entry, void in entries:
            if entry.seq <= applied_seq:
                mirror.watermarks.write_applying(entry.seq)
                mirror.volume.apply_received(entry, void, redo=False)
    remove(copy / "backing" / "found")
    begin_another_boot(copy / "state")
    with open_volume(copy, mirror=True, uuid=uuid) as mirror:
        assert mirror.opening.degraded == []
        for entry, void in entries:
            if entry.seq > applied_seq:
                mirror.volume.apply_received(entry, void, redo=False)
        assert not difference(image(mirror.backing), image(tmp_path / "primary" / "backing"))
