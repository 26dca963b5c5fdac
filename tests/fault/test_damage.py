"""Damaged journals: a torn tail is cut off and kept, anything else is named and never skipped."""

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusejournal.disk import failpoints
from fusejournal.errors import JournalFullError
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import SegmentReader, list_segments
from fusejournal.types import Seq
from tests.support.layer import Layer
from tests.support.losses import begin_another_boot
from tests.support.trees import difference, image
from tests.support.volumes import open_volume

pytestmark = pytest.mark.mount

_CONFIG = "[journal]\nsegment_bytes = 65536\ncompress = false\n"


@pytest.fixture
def killed(layer: Layer) -> Layer:
    """A layer that was killed with some segments in its journal."""
    layer.reconfigure(_CONFIG)
    layer.start()
    for number in range(60):
        (layer.mountpoint / f"f{number}").write_bytes(os.urandom(5000))
    layer.kill()
    return layer


def segments(layer: Layer) -> list[Path]:
    return sorted((layer.state / "journal").glob("*.fj"))


def contents(layer: Layer) -> dict[str, bytes]:
    """The segments without the space ahead of their ends."""
    return {path.name: path.read_bytes().rstrip(b"\0") for path in segments(layer)}


def end(path: Path) -> int:
    """The offset at which the entries end; zeros follow in the segment that is written."""
    with SegmentReader(path) as reader:
        return reader.check().offset


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def refused(layer: Layer) -> str:
    layer.detach()  # else the dead mount is one more line
    done = layer.run(*layer.mount_arguments(), check=False)
    assert done.returncode == 11, done
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def write_torn(path: Path, offset: int) -> None:
    """A frame that was begun at *offset*."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(struct.pack("<IIQQQ", 40, 0, 99999, 0, 0) + b"begun")


def test_something_after_the_blank_is_no_torn_tail(killed: Layer) -> None:
    """A process that is killed fills pages in order."""
    last = segments(killed)[-1]
    write_torn(last, last.stat().st_size)
    assert "damaged at byte" in refused(killed)


def test_torn_tail_is_cut_off_and_kept(killed: Layer) -> None:
    last = segments(killed)[-1]
    whole = end(last)
    write_torn(last, whole)
    before = last.read_bytes()
    killed.start()
    assert end(last) == whole
    (saved,) = (killed.state / "journal" / "cut").iterdir()
    assert saved.read_bytes() == before[whole:]
    (repair,) = killed.ask()["repairs"]
    assert str(whole) in repair
    assert last.name in repair
    assert len(os.listdir(killed.mountpoint)) == 60
    killed.stop()
    assert "sound" in killed.run("journal", "verify", "volume").stdout


def test_the_operation_in_flight_is_torn(killed: Layer) -> None:
    """The frame was cut in the middle by the kill: no caller was told, so it did not happen."""
    last = segments(killed)[-1]
    os.truncate(last, end(last) - 100)
    # Its write is in the backing, as a kill between the two never leaves it; it must be found.
    shutil.rmtree(killed.state / "catalog")
    killed.start()
    assert len(killed.ask()["repairs"]) == 1


@pytest.mark.parametrize("where", ["last", "first", "header"])
def test_damage_is_named(killed: Layer, where: str) -> None:
    path = segments(killed)[0 if where == "first" else -1]
    offset = 70 if where == "header" else 128 + 500
    flip(path, offset)
    found = killed.run("journal", "verify", "volume", check=False)
    assert found.returncode == 11
    assert path.name in found.stdout
    if where == "first":
        # Durable segments are not read at each start: verify is what reads them all. A lost
        # catalog needs them.
        shutil.rmtree(killed.state / "catalog")
    line = refused(killed)
    assert str(path) in line
    assert "damaged at byte" in line
    assert "seq" in line
    before = contents(killed)
    killed.start("-o", "ro")
    status = killed.ask()
    assert status["state"] == "read-only"
    assert any(path.name in line for line in status["degraded"])
    shown = os.listdir(killed.mountpoint)
    assert len(shown) < 60  # what came after the damage is not known
    for name in shown:
        assert (killed.mountpoint / name).read_bytes() == (killed.backing / name).read_bytes()
    with pytest.raises(OSError, match="Read-only"):
        (killed.mountpoint / "new").mkdir()
    killed.stop()
    assert contents(killed) == before
    flip(path, offset)
    killed.start()
    killed.stop()


def test_missing_segment(killed: Layer) -> None:
    gone = segments(killed)[1]
    gone.rename(killed.base / "gone")
    assert gone.name not in killed.run("journal", "verify", "volume", check=False).stdout
    found = killed.run("journal", "verify", "volume", check=False)
    assert found.returncode == 11
    assert "does not follow" in found.stdout


def test_foreign_segment(killed: Layer, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with Layer(tmp_path / "other") as other:
        other.start()
        other.stop()
        for path in segments(killed):
            path.unlink()
        shutil.copy(segments(other)[0], killed.state / "journal")
    done = killed.run(*killed.mount_arguments(), check=False)
    assert done.returncode == 12
    assert "of volume" in done.stderr


def test_system_crash_cuts_above_the_flushed_watermark_and_begins_an_epoch(killed: Layer) -> None:
    (killed.state / "boot").write_text('{"boot_id": "another"}')
    last = segments(killed)[-1]
    flip(last, end(last) - 20)
    before = killed.run("journal", "verify", "volume", "--json", check=False)
    assert before.returncode == 11
    killed.start()
    status = killed.ask()
    assert status["epoch"] == 2
    assert ["torn tail" in repair for repair in status["repairs"]] == [True, False]
    (killed.mountpoint / "new").touch()
    assert (killed.mountpoint / "new").stat().st_ino > 1 << 40
    killed.stop()
    assert "sound" in killed.run("journal", "verify", "volume").stdout
    epochs = [entry for entry in killed.entries() if entry["op"] == "epoch"]
    assert [entry["epoch"] for entry in epochs] == [1, 2]


@pytest.mark.parametrize("gone", ["middle", "last", "all"])
@pytest.mark.parametrize("lost_catalog", [False, True])
def test_missing_segments_are_never_passed_over(
    layer: Layer, gone: str, lost_catalog: bool
) -> None:
    layer.reconfigure(_CONFIG)
    layer.start()
    with open(layer.mountpoint / "f", "wb", buffering=0) as file:
        for number in range(60):
            file.write(b"%d" % number * 3000)
    layer.stop()
    paths = segments(layer)
    taken = {"middle": paths[2:3], "last": paths[-2:], "all": paths}[gone]
    for path in taken:
        path.rename(layer.base / path.name)
    if lost_catalog:
        shutil.rmtree(layer.state / "catalog")
    done = layer.run(*layer.mount_arguments(), check=False)
    if gone == "middle" and not lost_catalog:
        # Old segments are not read at each start; verify reads them.
        assert done.returncode == 0
        layer.run("umount", "volume")
        assert layer.run("journal", "verify", "volume", check=False).returncode == 11
        return
    if gone == "last" and lost_catalog:
        return  # nothing is left that knows of them
    assert done.returncode in (10, 11)
    assert "Traceback" not in done.stderr
    for path in taken:
        (layer.base / path.name).rename(path)
    layer.start()
    layer.stop()


@pytest.mark.parametrize("how", ["head", "cut"])
def test_spoilt_catalog_is_made_anew(killed: Layer, how: str) -> None:
    path = killed.state / "catalog" / "data.mdb"
    killed.start()
    known = {
        name: (killed.mountpoint / name).stat().st_ino for name in os.listdir(killed.mountpoint)
    }
    killed.stop()
    content = bytearray(path.read_bytes())
    if how == "head":
        content[:8192] = os.urandom(8192)
    else:
        del content[20_000:]
    path.write_bytes(content)
    killed.start()
    assert any("catalog" in line for line in killed.ask()["repairs"])
    assert known == {name: (killed.mountpoint / name).stat().st_ino for name in known}


def test_a_catalog_that_has_changed_on_its_disk_is_made_anew(layer: Layer) -> None:
    """Single bits, which LMDB takes for what was put there: a name would be another, or gone."""
    layer.start()
    for number in range(60):
        (layer.mountpoint / f"file {number}").write_text(f"content {number}")
    layer.stop()
    path = layer.state / "catalog" / "data.mdb"
    known = image(layer.backing)
    for number in range(3):
        spoilt = bytearray(path.read_bytes())
        places = [at.start() for at in re.finditer(b"file 3", spoilt)]
        assert len(places) > 3
        spoilt[places[number]] ^= 1
        path.write_bytes(spoilt)
        layer.start()
        assert any("not as it was when it was closed" in line for line in layer.ask()["repairs"])
        assert not (found := difference(image(layer.mountpoint), known)), found
        layer.stop()


@pytest.fixture
def deep(layer: Layer) -> Iterator[Layer]:
    """A volume whose tree is deeper than Python's own tools go."""
    yield layer
    layer.kill()
    layer.detach()
    subprocess.run(["rm", "-rf", layer.backing], check=True)


def test_deep_trees_are_recovered_and_imported(deep: Layer) -> None:
    layer = deep
    layer.start()
    for number in range(1300):
        (layer.mountpoint / f"d{number}").mkdir()
    for number in range(1299):
        os.rename(layer.mountpoint / f"d{number}", layer.mountpoint / f"d{number + 1}" / "c")
    layer.kill()
    shutil.rmtree(layer.state / "catalog")
    layer.start()
    assert layer.ask()["degraded"] == []
    layer.stop()
    shutil.rmtree(layer.state)
    os.removexattr(layer.backing, "trusted.fusejournal")
    assert "belongs to volume" in layer.run(*layer.mount_arguments(), check=False).stderr
    shutil.rmtree(layer.state)
    subprocess.run(["setfattr", "-x", "trusted.fusejournal", layer.backing], check=True)
    fd = os.open(layer.backing, os.O_RDONLY)
    for name in ("d1299", *["c"] * 1299):
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
        os.removexattr(fd, "trusted.fusejournal")
    os.close(fd)
    layer.start()
    layer.stop()


def test_backing_that_holds_another_volumes_is_refused(tmp_path: Path) -> None:
    inner = tmp_path / "tree" / "inner"
    with (
        Layer(tmp_path / "A", backing=inner) as one,
        Layer(tmp_path / "B", backing=tmp_path / "tree") as other,
    ):
        one.start()
        (one.mountpoint / "file").write_text("x")
        one.stop()
        done = other.run(*other.mount_arguments(), check=False)
        assert done.returncode == 5
        assert "belongs to volume" in done.stderr
        one.start()
        assert (one.mountpoint / "file").read_text() == "x"


def test_refused_removals_hold_no_descriptors(layer: Layer) -> None:
    for number in range(50):
        (layer.backing / f"f{number}").touch()
    layer.start()
    layer.stop()
    layer.start(fault="journal.append:1:ENOSPC+")
    for number in range(50):
        with pytest.raises(OSError, match="No space"):
            (layer.mountpoint / f"f{number}").unlink()
    pinned = len(os.listdir(f"/proc/{layer.pid}/fd"))
    assert pinned < 40 + 50
    assert (layer.mountpoint / "f7").exists()


def test_fsync_of_a_read_only_mount_returns(killed: Layer) -> None:
    killed.start("-o", "ro")
    fd = os.open(killed.mountpoint / "f59", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def test_what_a_refused_start_has_repaired_is_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The start after it has nothing to repair any more."""
    with open_volume(tmp_path, orderly=False) as opened:
        opened.work(3)
        opened.make_checkpoint()
        opened.work(3, start=10)
        head_seq = opened.volume.journal.head_seq
    (path,) = list_segments(tmp_path / "state" / "journal")
    *_, (_, frame) = JournalReader(tmp_path / "state" / "journal").frames(Seq(1), head_seq)
    with open(path, "r+b") as file:
        file.seek(frame.offset)
        file.write(bytes(len(frame.content)))
    begin_another_boot(tmp_path / "state")
    failpoints.listen(failpoints.PlannedFault("boot.write", 1, "ENOSPC"))
    try:
        with pytest.raises(JournalFullError), open_volume(tmp_path):
            pass
    finally:
        failpoints.listen(None)
    assert "torn tail cut off" in caplog.text
    with open_volume(tmp_path) as opened:
        assert not any("torn tail" in line for line in opened.opening.repairs)
