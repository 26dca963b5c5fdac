"""Files after a system crash, case by case. (Of all others: the property test.)"""

import os
import shutil
import time
from pathlib import Path

import pytest

from fusejournal.backing.fid_tag import FID_XATTR
from fusejournal.disk import failpoints
from fusejournal.errors import BackingError
from fusejournal.operations import Create, Import, Rename, Setattr, Write
from fusejournal.types import ROOT_FID, Fid, Seq
from fusejournal.volume.checkpoint import Checkpoint
from fusejournal.volume.reconcile.survey import staging_name
from tests.support.losses import Died, begin_another_boot, crash_system, dying_at
from tests.support.trees import difference, image, rebuild
from tests.support.volumes import SOMEBODY, OpenVolume, check_copies, open_volume

pytestmark = pytest.mark.mount


def save(volume: OpenVolume, content: bytes, replaced: Fid = Fid(0)) -> Fid:
    """Saves as editors do: writes another file and renames it. Returns its fid."""
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
    crash_system(tmp_path / "state", last_seq)
    with open_volume(tmp_path) as volume:
        assert (volume.backing / "text").read_bytes() == b"first"
        assert (volume.backing / "text.not-journaled").read_bytes() == b"second"
        (told,) = map(str, volume.opening.degraded)
        assert "text.not-journaled" in told
        catalog = volume.volume.catalog
        assert catalog.lookup(ROOT_FID, b"text") == fid
        assert catalog.lookup(ROOT_FID, b"text.not-journaled") is not None


def test_what_is_newer_than_the_journal_is_kept_before_it_is_overwritten(tmp_path: Path) -> None:
    """Once, however often the reconciliation is killed and begins again."""
    with open_volume(tmp_path, orderly=False) as volume:
        fid = volume.create("text", b"the journal's")
        untouched = volume.create("other", b"as it is")
        last_seq = volume.volume.journal.head_seq
        volume.volume.commit(Write(fid, 0, None), SOMEBODY, b"what a day's work has come to")
    crash_system(tmp_path / "state", last_seq)
    for death in range(1, 40):
        try:
            with dying_at("reconcile.", death) as left, open_volume(tmp_path) as volume:
                assert left[0] > 0
                break
        except Died:
            continue
    assert death > 3
    assert (tmp_path / "backing" / "text").read_bytes() == b"the journal's"
    (kept,) = (tmp_path / "state" / "overwritten").glob("*/[0-9]*")
    assert kept.name == str(fid) != str(untouched)
    assert kept.read_bytes() == b"what a day's work has come to"
    assert any(str(kept.parent) in told for told in volume.opening.repairs)


def test_a_file_whose_making_is_lost_is_imported(tmp_path: Path) -> None:
    with open_volume(tmp_path, orderly=False) as volume:
        volume.mkdir("there")
        last_seq = volume.volume.journal.head_seq
        lost = volume.create("file", b"content")
    crash_system(tmp_path / "state", last_seq)
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
        volume.make_checkpoint()
        volume.volume.commit(Write(fid, 3 << 20, None), SOMEBODY, b"later")
        last_seq = volume.volume.journal.head_seq
    handle = os.stat(volume.backing / "large").st_ino
    with open(volume.backing / "large", "r+b") as file:
        file.seek(3 << 20)
        file.write(b"\0\0\0\0\0")
        file.truncate(21 << 20)
    crash_system(tmp_path / "state", last_seq)
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
    crash_system(tmp_path / "state", last_seq)
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
    crash_system(tmp_path / "state", last_seq)
    tag = os.getxattr(volume.backing, FID_XATTR)
    volume.backing.rename(tmp_path / "original")
    shutil.copytree(tmp_path / "original", volume.backing)
    os.setxattr(volume.backing, FID_XATTR, tag)
    with pytest.raises(BackingError, match="is a copy"), open_volume(tmp_path):
        pass
    assert (volume.backing / "file").read_bytes() == b"content"


def test_a_machine_that_is_lost_soon_after_an_orderly_stop(tmp_path: Path) -> None:
    """The journal ends with the word of that stop; what came later it lost, the backing did not."""
    with open_volume(tmp_path) as volume:
        old = volume.create("old", b"old")
    with open_volume(tmp_path, orderly=False) as volume:
        last_seq = volume.volume.journal.head_seq
        lost = volume.create("lost")
        volume.unlink(old, "old")
    crash_system(tmp_path / "state", last_seq)
    with open_volume(tmp_path) as volume:
        assert volume.opening.system_crash
        assert volume.volume.journal.epoch == 2
        assert (volume.backing / "old").read_bytes() == b"old"
        assert volume.create("new") > lost + 1000


def test_a_second_loss_keeps_what_the_first_one_kept(tmp_path: Path) -> None:
    """That the file has no owner had not come to the disk, while the new epoch had."""
    with open_volume(tmp_path, orderly=False) as volume:
        volume.mkdir("there")
        last_seq = volume.volume.journal.head_seq
        volume.create("thesis", b"content")
    thesis = volume.backing / "thesis"
    tag = os.getxattr(thesis, FID_XATTR)
    crash_system(tmp_path / "state", last_seq)
    with open_volume(tmp_path, begin=False, orderly=False) as volume:
        volume.opening.recover(read_only=False)
        next(volume.opening.start_epoch_and_import(read_only=False))
        assert volume.volume.journal.epoch == 2
    os.setxattr(thesis, FID_XATTR, tag)
    begin_another_boot(tmp_path / "state")
    with open_volume(tmp_path) as volume:
        assert thesis.read_bytes() == b"content"
        assert volume.volume.catalog.lookup(ROOT_FID, b"thesis") is not None


def test_a_file_made_anew_is_on_the_disk_before_it_has_its_name(tmp_path: Path) -> None:
    """Else a second loss would find it there, with its size and without its content."""
    with open_volume(tmp_path, orderly=False) as volume:
        volume.create("file", b"content")
        volume.make_checkpoint()
        volume.mkdir("later")
    (volume.backing / "file").unlink()
    begin_another_boot(tmp_path / "state")
    reached: list[str] = []
    failpoints.listen(reached.append)
    try:
        with open_volume(tmp_path):
            assert (volume.backing / "file").read_bytes() == b"content"
    finally:
        failpoints.listen(None)
    steps = [label for label in reached if label.startswith(("reconcile.", "checkpoint."))]
    order = [steps.index(f"reconcile.{step}") for step in ("write", "syncfs", "place")]
    assert order == sorted(order)
    assert steps[-1].startswith("checkpoint.")


def test_a_checkpoint_of_entries_that_are_gone_counts_for_nothing(tmp_path: Path) -> None:
    with open_volume(tmp_path, orderly=False) as volume:
        fid = volume.create("file", b"content")
        last_seq = volume.volume.journal.head_seq
        volume.volume.commit(Setattr(fid, 0o600, None, None, None, None), SOMEBODY)
        volume.make_checkpoint()
    os.chown(volume.backing / "file", 7, 7)
    crash_system(tmp_path / "state", last_seq)
    with open_volume(tmp_path, orderly=False) as volume:
        stat = (volume.backing / "file").stat()
        assert (stat.st_mode & 0o7777, stat.st_uid) == (0o644, 0)
        assert volume.opening.checkpoint.load().seq <= volume.volume.journal.head_seq


async def test_what_changes_while_the_journal_is_flushed_is_after_the_checkpoint(
    tmp_path: Path,
) -> None:
    with open_volume(tmp_path) as volume:
        volume.create("file")
        seconds = [0.2]
        failpoints.listen(lambda label: time.sleep(seconds.pop()) if seconds else None)
        begun_ns = time.time_ns()
        try:
            await volume.durability.checkpoint()
        finally:
            failpoints.listen(None)
        assert time.time_ns() - begun_ns > 200_000_000
        assert volume.opening.checkpoint.load().time_ns < begun_ns + 100_000_000


def test_an_import_ends_with_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "backing").mkdir()
    (tmp_path / "backing" / "first").write_bytes(b"content")
    with open_volume(tmp_path, orderly=False) as volume:
        assert volume.opening.checkpoint.load().seq == volume.volume.journal.head_seq


def test_an_import_under_way_of_a_file_that_the_disk_has_less_of(tmp_path: Path) -> None:
    """It was copied there just before. The journal has its first pieces."""
    (tmp_path / "backing").mkdir()
    big = tmp_path / "backing" / "big"
    big.write_bytes(b"x" * (5 << 20))
    with open_volume(tmp_path, begin=False, orderly=False) as volume:
        volume.opening.recover(read_only=False)
        for _ in volume.opening.start_epoch_and_import(read_only=False):
            if volume.volume.journal.head_seq >= 5:
                break
    os.truncate(big, 1 << 20)
    begin_another_boot(tmp_path / "state")
    with open_volume(tmp_path) as volume:
        assert big.stat().st_size == 5 << 20
        target = tmp_path / "replayed"
        target.mkdir()
        rebuild(tmp_path / "state", target, volume.volume.journal.uuid)
        assert not (found := difference(image(volume.backing), image(target))), found


def test_names_like_that_of_the_staging_directory(tmp_path: Path) -> None:
    """A user's own directory of that name is left alone, and what is left in ours comes out."""
    with open_volume(tmp_path, orderly=False) as volume:
        name = os.fsdecode(staging_name(volume.volume))
        own = volume.mkdir(name)
        volume.create("a.new", b"precious", own)
        volume.create("file", b"content")
        volume.mkdir("later")
    (volume.backing / "file").unlink()
    staging = volume.backing / os.fsdecode(name + ".")
    staging.mkdir()
    (staging / "unknown").mkdir()
    (staging / "unknown" / "kept").write_bytes(b"kept")
    begin_another_boot(tmp_path / "state")
    with open_volume(tmp_path) as volume:
        assert (volume.backing / name / "a.new").read_bytes() == b"precious"
        assert (volume.backing / "file").read_bytes() == b"content"
        assert not staging.exists()
        (found,) = volume.backing.rglob("kept")
        assert "not-journaled" in str(found)


def test_a_file_that_was_changed_right_after_its_import(tmp_path: Path) -> None:
    """The import is the last entry that the machine's loss has left: the file is what it was then,
    what came to it since is kept."""
    (tmp_path / "backing").mkdir()
    (tmp_path / "backing" / "found").touch()
    with open_volume(tmp_path, orderly=False) as opened:
        volume = opened.volume
        imported_seq = volume.journal.head_seq
        (entry,) = volume.journal.reader.read(imported_seq, Seq(imported_seq + 1))
        assert isinstance(entry.operation, Import)
        fid = entry.operation.fid
        volume.commit(Write(fid, 0, None), SOMEBODY, b"later")
    crash_system(tmp_path / "state", imported_seq)
    with open_volume(tmp_path) as opened:
        assert opened.volume.catalog.lookup(ROOT_FID, b"found") == fid
        check_copies(tmp_path, opened.volume.journal.uuid, tmp_path)
        assert any("newer than the journal" in line for line in opened.opening.repairs)
        (kept,) = (tmp_path / "state" / "overwritten").glob(f"*/{fid}")
        assert kept.read_bytes() == b"later"


def test_a_clock_that_was_put_back_since_the_checkpoint(tmp_path: Path) -> None:
    """It tells nothing of what was changed after that, so all there is is looked at."""
    with open_volume(tmp_path, orderly=False) as opened:
        fid = opened.create("file", b"the journal's")
        opened.volume.journal.sync()
        checkpoint = Checkpoint.begin(opened.volume.catalog.applied_seq, opened.volume.journal.head)
        ahead = checkpoint._replace(time_ns=checkpoint.time_ns + 3600 * 10**9)
        opened.opening.checkpoint.make(ahead, opened.opening.root)
        opened.create("other")
        last_seq = opened.volume.journal.head_seq
        opened.volume.commit(Write(fid, 100, None), SOMEBODY, b"what is lost")
        opened.volume.commit(Setattr(fid, 0o4711, None, None, None, 5), SOMEBODY)
    crash_system(tmp_path / "state", last_seq)
    with open_volume(tmp_path) as opened:
        check_copies(tmp_path, opened.volume.journal.uuid, tmp_path)


@pytest.mark.parametrize("death", [1, 2, 3])
def test_a_reconciliation_is_cut_off_while_the_clock_is_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: int
) -> None:
    """The next start, whose clock is right again, finds what it had begun to write anew."""
    with open_volume(tmp_path, orderly=False) as opened:
        for number in range(3):
            opened.create(f"old{number}", b"the journal's")
        opened.volume.journal.sync()
        checkpoint = Checkpoint.begin(opened.volume.catalog.applied_seq, opened.volume.journal.head)
        ahead = checkpoint._replace(time_ns=checkpoint.time_ns + 3600 * 10**9)
        opened.opening.checkpoint.make(ahead, opened.opening.root)
        opened.create("other", b"x")
        last_seq = opened.volume.journal.head_seq
    crash_system(tmp_path / "state", last_seq)
    with (
        pytest.raises(Died),
        dying_at("reconcile.write", death),
        open_volume(tmp_path),
    ):
        pass
    now_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + 7200 * 10**9)
    with open_volume(tmp_path) as opened:
        contents = [(opened.backing / f"old{number}").read_bytes() for number in range(3)]
        assert contents == [b"the journal's"] * 3


def test_what_was_half_made_goes_where_its_file_has_another_name_since(tmp_path: Path) -> None:
    """A process died between the file's name and its fid, and its system crashed after that: what
    lies there without a fid is no stranger's."""
    with open_volume(tmp_path, orderly=False) as volume:
        fid = save(volume, b"content")
        last_seq = volume.volume.journal.head_seq
        (volume.backing / "new").touch()
        (volume.backing / "strange").touch()
    crash_system(tmp_path / "state", last_seq)
    with open_volume(tmp_path) as volume:
        assert {one.name for one in volume.backing.iterdir() if one.name[0] != "."} == {
            "text",
            "strange",
        }
        assert volume.volume.catalog.lookup(ROOT_FID, b"text") == fid
