"""Backing, state directory and journal of different times: seen and named before a byte is written.

In each test something comes back older, as a copy, or in part. The start is then refused in one
line and the backing is as it was; or what is there is made whole, and that is reported."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
import trio

from fusejournal.backing.fid_tag import FID_XATTR, pack_tag
from fusejournal.backing.root_mark import BackingRoot
from fusejournal.disk import failpoints
from fusejournal.disk.syscalls import handle_of
from fusejournal.errors import BackingError, JournalFailedError, RecoveryError
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import list_segments
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.operations import ImportLink
from fusejournal.types import ROOT_FID, Epoch, Position, Seq
from fusejournal.volume.checkpoint import NO_CHECKPOINT, Checkpoint, CheckpointFile
from fusejournal.volume.startup import VolumeStartup
from tests.support.layer import Layer
from tests.support.losses import begin_another_boot
from tests.support.mirrors import wait_for
from tests.support.pairs import level, shipping, until
from tests.support.power import power_disk
from tests.support.trees import difference, image
from tests.support.volumes import SMALL_SEGMENTS, OpenVolume, Quiet, open_volume

pytestmark = pytest.mark.mount

_CONFIG = """
[journal]
segment_bytes = 65536
compress = false
flush_interval_seconds = 60.0
checkpoint_interval_seconds = 600.0
"""


@pytest.fixture
def ledger(layer: Layer) -> Layer:
    """A stopped volume whose file was overwritten in place many times."""
    layer.reconfigure(_CONFIG)
    layer.start()
    (layer.mountpoint / "another").write_text("this one stays as it is")
    rewrite(layer, 0, 30)
    layer.stop()
    return layer


def rewrite(layer: Layer, first: int, last: int) -> None:
    """Overwrite the file in place with these versions, each of them durable."""
    fd = os.open(layer.mountpoint / "ledger", os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        for number in range(first, last):
            os.pwrite(fd, f"version {number:4}".encode() * 300, 0)
            os.fsync(fd)
    finally:
        os.close(fd)


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def refused(layer: Layer, code: int) -> str:
    """The one line by which the start is refused; the backing is as it was."""
    layer.detach()
    before = image(layer.backing)
    done = layer.run(*layer.mount_arguments(), check=False)
    assert done.returncode == code, done
    assert image(layer.backing) == before
    (line,) = done.stderr.splitlines()
    return line


# -- the journal's end -----------------------------------------------------------------------------


def _spoil_bit(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset + 200] ^= 1
    path.write_bytes(content)


def _spoil_sector(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + 4096] = bytes(4096)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "page"), [(_spoil_bit, "there"), (_spoil_sector, "there"), (_spoil_bit, "gone")]
)
@pytest.mark.parametrize("boot", ["this", "another"])
def test_durable_entries_are_no_torn_tail(
    layer: Layer, spoil: Callable[[Path, int], None], boot: str, page: str
) -> None:
    layer.reconfigure(_CONFIG.replace("65536", "1048576"))
    layer.start()
    rewrite(layer, 0, 40)
    layer.kill()
    if page == "gone":  # then the frames behind tell
        (layer.state / "watermarks").unlink()
        (layer.state / "checkpoint").unlink()
    (path,) = list_segments(layer.state / "journal")
    *_, (_, frame) = JournalReader(layer.state / "journal").frames(Seq(1), Seq(24))
    spoil(path, frame.offset)
    if boot == "another":
        begin_another_boot(layer.state)
    assert f"damaged at byte {frame.offset}" in refused(layer, 11)


@pytest.mark.parametrize("boot", ["this", "another"])
def test_missing_newest_segment_is_damage(ledger: Layer, boot: str) -> None:
    list_segments(ledger.state / "journal")[-1].unlink()
    shutil.rmtree(ledger.state / "catalog")
    if boot == "another":
        begin_another_boot(ledger.state)
    assert "segments are missing at the end" in refused(ledger, 11)


# -- older and copied ------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("boot", ["this", "another"])
def test_older_state_directory_is_refused(ledger: Layer, end: str, boot: str) -> None:
    older = ledger.base / "older"
    copy(ledger.state, older)
    ledger.reconfigure(_CONFIG.replace("600.0", "0.1"))
    ledger.start()
    rewrite(ledger, 30, 50)
    if end == "stop":
        ledger.stop()
    else:
        (ledger.mountpoint / "more").touch()
        _await_checkpoint(ledger)
        ledger.kill()
    shutil.rmtree(ledger.state)
    older.rename(ledger.state)
    if boot == "another":
        begin_another_boot(ledger.state)
    line = refused(ledger, 15)
    assert "older copy" in line
    assert "-o adopt" in line


def _await_checkpoint(layer: Layer) -> None:
    head_seq = layer.head_seq()
    wait_for(lambda: layer.ask()["checkpoint_seq"] >= head_seq, layer.ask)


def test_state_that_went_on_elsewhere_is_refused(tmp_path: Path) -> None:
    """A copy of the state directory has as many entries as the true one by now, but others."""
    with open_volume(tmp_path / "one"):
        pass
    copy(tmp_path / "one", tmp_path / "two")
    root_fd = os.open(tmp_path / "two" / "backing", os.O_RDONLY)
    with open_volume(tmp_path / "one") as one:
        uuid = one.volume.tree.uuid
        one.create("here")
        one.create("again")
    # What the copy has to go on with, so that it can.
    BackingRoot(root_fd, uuid).mark()
    os.close(root_fd)
    page = WatermarkPage(tmp_path / "two" / "state" / "watermarks")
    page.write_rooted(Seq(0))
    page.close()
    with open_volume(tmp_path / "two") as two:
        two.mkdir("there")
        two.mkdir("again")
        two.mkdir("and again")
    shutil.rmtree(tmp_path / "one" / "state")
    copy(tmp_path / "two" / "state", tmp_path / "one" / "state")
    before = image(tmp_path / "one" / "backing")
    page = WatermarkPage(tmp_path / "one" / "state" / "watermarks")
    page.write_rooted(Seq(0))
    page.close()
    with (
        pytest.raises(RecoveryError, match="has another entry there"),
        open_volume(tmp_path / "one"),
    ):
        pass
    assert image(tmp_path / "one" / "backing") == before


def test_copied_backing_is_refused(ledger: Layer) -> None:
    original = ledger.base / "original"
    ledger.backing.rename(original)
    copy(original, ledger.backing)
    assert "is a copy of the volume's backing" in refused(ledger, 5)
    shutil.rmtree(ledger.backing)
    original.rename(ledger.backing)
    ledger.start()
    ledger.stop()


def test_backing_from_a_backup_is_refused(ledger: Layer) -> None:
    """Put back into the same directory, whose own handle is right."""
    backup = ledger.base / "backup"
    copy(ledger.backing, backup)
    ledger.start()
    rewrite(ledger, 30, 50)
    ledger.stop()
    command = ["rsync", "-aHAX", "--delete", f"{backup}/", f"{ledger.backing}/"]
    subprocess.run(command, check=True)
    assert "is older than its journal" in refused(ledger, 15)


@pytest.fixture
def mirror_with_a_past(tmp_path: Path) -> Path:
    """A mirror that was stopped in order, and in ``older`` what it was some entries before."""
    mirror = tmp_path / "mirror"
    with open_volume(tmp_path / "primary") as primary:
        primary.work(5)
        trio.run(_ship, primary, mirror)
        copy(mirror, tmp_path / "older")
        primary.work(5, start=10)
        trio.run(_ship, primary, mirror)
        assert not difference(image(mirror / "backing"), image(primary.backing))
    return mirror


async def _ship(primary: OpenVolume, directory: Path) -> None:
    with open_volume(directory, mirror=True) as mirror:
        async with shipping(primary, mirror):
            await until("the mirror is level", level(primary, mirror))


@pytest.mark.parametrize("boot", ["this", "another"])
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("state", "is an older copy"),
        ("backing", "is older than its journal"),
        ("a copied backing", "is a copy of the volume's backing"),
    ],
)
def test_mirror_of_different_days_is_refused(
    mirror_with_a_past: Path, what: str, words: str, boot: str
) -> None:
    mirror = mirror_with_a_past
    older = mirror.with_name("older")
    if what == "state":
        shutil.rmtree(mirror / "state")
        copy(older / "state", mirror / "state")
    elif what == "backing":
        command = ["rsync", "-aHAX", "--delete", f"{older}/backing/", f"{mirror}/backing/"]
        subprocess.run(command, check=True)
    else:
        (mirror / "backing").rename(mirror / "original")
        copy(mirror / "original", mirror / "backing")
    if boot == "another":
        begin_another_boot(mirror / "state")
    before = image(mirror / "backing")
    with (
        pytest.raises((RecoveryError, BackingError), match=words) as refusal,
        open_volume(mirror, mirror=True),
    ):
        pass
    assert "\n" not in str(refusal.value)
    assert not difference(image(mirror / "backing"), before)


@pytest.mark.parametrize("kept", ["state", "nothing"])
def test_begin_anew_with_the_files_of_a_volume_that_is_no_more(ledger: Layer, kept: str) -> None:
    ledger.start()
    for number in range(30):
        (ledger.mountpoint / f"file{number}").write_text("theirs")
    before = image(ledger.mountpoint)
    ledger.stop()
    if kept == "state":
        ledger.state.rename(ledger.base / "old")
    else:
        shutil.rmtree(ledger.state)
    assert "-o adopt" in refused(ledger, 5)
    assert not ledger.state.exists()
    ledger.start("-o", "adopt")
    assert image(ledger.mountpoint) == before
    ledger.stop()
    ledger.start()
    assert image(ledger.mountpoint) == before
    ledger.stop()


# -- disks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_disk_that_went_away_and_came_back(tmp_path: Path, kind: str) -> None:
    """In the same boot: what was only in the page cache is gone."""
    with power_disk(tmp_path, kind) as disk, Layer(disk.mountpoint, config=_CONFIG) as layer:
        layer.start()
        for number in range(20):
            fd = os.open(layer.mountpoint / f"f{number}", os.O_CREAT | os.O_WRONLY, 0o644)
            os.write(fd, b"%4d" % number * 2500)
            os.fsync(fd)
            os.close(fd)
        disk.cut()
        layer.kill()
        layer.detach()
        disk.come_back()
        layer.start()
        status = layer.ask()
        assert status["epoch"] == 2
        for number in range(20):
            assert (layer.mountpoint / f"f{number}").read_bytes() == b"%4d" % number * 2500
        layer.stop()


@pytest.mark.parametrize("call", ["checkpoint.syncfs", "journal.sync"])
def test_disk_that_fails_at_the_stop_is_remembered(ledger: Layer, call: str) -> None:
    ledger.start(fault=f"{call}:1:EIO", wait=False)
    ledger.await_live()
    (ledger.mountpoint / "new").write_text("acknowledged")
    assert ledger.run("umount", "volume", check=False).returncode in (0, 1, 14)
    assert ledger.wait() in (1, 14), ledger.words()
    ledger.start()
    assert ledger.ask()["epoch"] == 2
    assert (ledger.mountpoint / "new").read_text() == "acknowledged"
    ledger.stop()


@pytest.mark.parametrize("call", ["checkpoint.syncfs", "journal.sync"])
def test_disk_that_fails_at_the_import_is_remembered(tmp_path: Path, call: str) -> None:
    with open_volume(tmp_path, orderly=False) as opened:
        opened.volume.catalog.imported = False
        failpoints.listen(failpoints.PlannedFault(call, 1, "EIO"))
        try:
            with pytest.raises((OSError, JournalFailedError)):
                for _ in opened.opening.start_epoch_and_import(read_only=False):
                    pass
        finally:
            failpoints.listen(None)
    with open_volume(tmp_path) as opened:
        assert opened.volume.journal.epoch == 2


def test_disk_that_fails_under_a_strict_volume_is_remembered(tmp_path: Path) -> None:
    """Though the process is killed before it has stopped."""
    with open_volume(tmp_path, orderly=False) as opened:
        opened.make_checkpoint()
        opened.policy.set("strict")
        failpoints.listen(failpoints.PlannedFault("journal.sync", 1, "EIO"))
        try:
            with pytest.raises(OSError, match="flushed"):
                opened.create("file")
        finally:
            failpoints.listen(None)
        assert opened.volume.write_errno == errno.EROFS
    with open_volume(tmp_path) as opened:
        assert opened.volume.journal.epoch == 2


def test_full_disk_does_not_hide_that_the_volume_is_used(ledger: Layer) -> None:
    done = _mount_with_fault(ledger, "boot.write:1:ENOSPC")
    assert done.returncode == 13
    assert "no space to write down" in done.stderr
    ledger.start()
    ledger.stop()


def _mount_with_fault(layer: Layer, fault: str) -> subprocess.CompletedProcess[str]:
    layer.environment["FUSEJOURNAL_FAULT"] = fault
    try:
        return layer.run(*layer.mount_arguments(), check=False)
    finally:
        del layer.environment["FUSEJOURNAL_FAULT"]


@pytest.mark.parametrize("content", [None, b"", b"{", b"\0" * 512])
def test_spoilt_boot_file_counts_as_a_system_crash(ledger: Layer, content: bytes | None) -> None:
    boot = ledger.state / "boot"
    if content is None:
        boot.unlink()
    else:
        boot.write_bytes(content)
    ledger.start()
    assert ledger.ask()["epoch"] == 2
    ledger.stop()
    ledger.start()
    assert ledger.ask()["epoch"] == 2
    ledger.stop()


@pytest.mark.parametrize("boot", ["this", "another"])
def test_watermarks_of_another_state_directory_are_refused(
    ledger: Layer, tmp_path: Path, boot: str
) -> None:
    """They are another mirror's, which has the same volume and has been shipped as much, or
    more."""
    with Layer(tmp_path / "other", config=_CONFIG) as other:
        other.start()
        other.stop()
        shutil.copyfile(other.state / "watermarks", ledger.state / "watermarks")
    if boot == "another":
        begin_another_boot(ledger.state)
    assert "the watermarks of another state directory" in refused(ledger, 10)
    assert "of another state directory" in ledger.run("status", "volume", check=False).stdout
    (ledger.state / "watermarks").unlink()
    ledger.start()
    assert (ledger.mountpoint / "ledger").read_text().startswith("version   29")
    ledger.stop()


def test_checkpoint_of_another_state_directory_counts_as_none(tmp_path: Path) -> None:
    """It would tell up to where another mirror's backing was flushed."""
    page = WatermarkPage(tmp_path / "watermarks", 5)
    other = WatermarkPage(tmp_path / "other", 6)
    checkpoint = Checkpoint(Seq(7), 8, Position(Epoch(1), Seq(9), 10))
    root_fd = os.open(tmp_path, os.O_RDONLY)
    root = BackingRoot(root_fd, UUID(int=1))
    root.mark()
    CheckpointFile(tmp_path / "checkpoint", page).make(checkpoint, root)
    assert CheckpointFile(tmp_path / "checkpoint", page).load().seq == 7
    assert CheckpointFile(tmp_path / "checkpoint", other).load() == NO_CHECKPOINT
    CheckpointFile(tmp_path / "checkpoint").make(checkpoint, root)  # as the version before
    assert CheckpointFile(tmp_path / "checkpoint", page).load().seq == 7
    os.close(root_fd)
    page.close()
    other.close()


@pytest.mark.parametrize("is_flushed", [True, False])
@pytest.mark.parametrize("before", ["nothing", "a look", "a kill"])
def test_lost_page_of_a_mirror_counts_until_it_is_made_whole(
    tmp_path: Path, before: str, is_flushed: bool
) -> None:
    """A read-only mount makes the page anew as well, and so does a start that is killed; also
    before anything of the backing was flushed."""
    with open_volume(tmp_path / "primary", orderly=False) as primary:
        primary.work(5)
        primary.volume.journal.sync()
        uuid, head_seq = primary.volume.journal.uuid, primary.volume.journal.head_seq
    mirror, state = tmp_path / "mirror", tmp_path / "mirror" / "state"
    shutil.copytree(primary.journal_dir, state / "journal")
    (mirror / "backing").mkdir()
    root_fd = os.open(mirror / "backing", os.O_RDONLY)
    BackingRoot(root_fd, uuid).mark()
    os.close(root_fd)
    with open_volume(mirror, mirror=True, uuid=uuid, orderly=False) as opened:
        if is_flushed:
            opened.make_checkpoint()
        opened.volume.catalog.commit()
        assert opened.watermarks is not None
        assert opened.watermarks.applying_seq == head_seq + 1
    (state / "watermarks").unlink()
    if before == "a look":
        root_fd = os.open(mirror / "backing", os.O_RDONLY)
        page = WatermarkPage(state / "watermarks")
        looking = VolumeStartup(
            state, uuid, mirror / "backing", root_fd, SMALL_SEGMENTS, Quiet(), page, is_mirror=True
        )
        looking.open(read_only=True)
        looking.recover(read_only=True)
        looking.close()
    elif before == "a kill":
        with open_volume(mirror, mirror=True, uuid=uuid, orderly=False, begin=False):
            pass
    with open_volume(mirror, mirror=True, uuid=uuid) as opened:
        assert opened.opening.system_crash
        assert opened.watermarks is not None
        assert opened.watermarks.applying_seq == head_seq + 1
        assert opened.volume.catalog.applied_seq == head_seq
        assert not difference(image(opened.backing), image(primary.backing))


# -- numbers ---------------------------------------------------------------------------------------


def test_fid_that_two_files_bear_makes_no_hard_link(tmp_path: Path) -> None:
    with open_volume(tmp_path / "one") as one:
        fid = one.create("first", b"first's")
        path = one.backing / "second"
        path.write_bytes(b"second's")
        fd = os.open(path, os.O_RDONLY)
        os.setxattr(fd, FID_XATTR, pack_tag(one.volume.tree.uuid, fid, handle_of(fd)))
        os.close(fd)
        for _ in one.opening.importer.import_name(ROOT_FID, b"second"):
            pass
        entries = list(JournalReader(one.journal_dir).read(Seq(1), Seq(1 << 40)))
        assert not any(isinstance(entry.operation, ImportLink) for entry in entries)
        assert one.volume.catalog.lookup(ROOT_FID, b"second") not in (fid, None)
