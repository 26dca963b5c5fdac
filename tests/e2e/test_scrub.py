"""Scrubs: what was spoilt behind the layer is named on primary and mirror, and put right on a
primary, beside users who work on."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from fusejournal.admin.scrub import Scrub
from tests.support.layer import Layer
from tests.support.mirrors import await_level, check_equal, started
from tests.support.trees import difference, image
from tests.support.volumes import show_nothing

pytestmark = pytest.mark.mount


@pytest.fixture
def volume(live: Layer, tmp_path: Path) -> Layer:
    """A live volume with files, a store of versions in ``kept``, and a version."""
    _fill(live.mountpoint)
    live.run("version", "store", "init", str(live.state), "--store", str(tmp_path / "kept"))
    live.run("version", "create", str(live.state), "first")
    return live


def _fill(root: Path) -> None:
    (root / "d").mkdir()
    (root / "d/large").write_bytes(os.urandom(600_000))
    (root / "d/small").write_text("small")
    (root / "d/attributes").write_text("kept")
    os.symlink("large", root / "d/symlink")
    with open(root / "sparse", "wb") as file:
        file.truncate(1 << 20)


def _scrub(volume: Layer, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = volume.run("scrub", str(volume.state), "--json", *arguments, check=False)
    assert done.returncode == code, (done.stdout, done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _spoil(volume: Layer) -> None:
    """Changes files in the backing, around the layer."""
    backing = volume.backing
    for name, offset in (("d/large", 300_000), ("d/small", 1), ("sparse", 500_000)):
        times = os.stat(backing / name)
        with open(backing / name, "r+b") as file:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 1]))
        os.utime(backing / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.setxattr(backing / "d/attributes", "user.stray", b"1")


def test_what_is_spoilt_is_named_and_put_right(volume: Layer) -> None:
    root = volume.mountpoint
    (root / "d/later").write_text("after the version")
    assert _scrub(volume)["faults"] == []
    before = image(root)
    _spoil(volume)
    found = _scrub(volume, code=49)
    assert [line.partition(":")[0] for line in sorted(found["faults"])] == [
        *("/d/attributes", "/d/large", "/d/small", "/sparse"),
    ]
    assert found["phase"] == "done"
    assert found["files"] == 8
    status = json.loads(volume.run("status", str(volume.state), "--json").stdout)
    assert status["scrub"]["faults"] == found["faults"]
    assert any("the last scrub found" in line for line in status["degraded"])
    assert "4 faults" in volume.run("status", str(volume.state)).stdout
    head_seq = volume.head_seq()
    mended = _scrub(volume, "--repair")
    assert (mended["faults"], mended["repaired"], mended["stored_again"]) == ([], 4, 0)
    assert sorted(mended["mended"]) == [
        "/d/attributes: put right: xattrs",
        "/d/large: put right: content",
        "/d/small: put right: content",
        "/sparse: put right: content",
    ]
    assert volume.head_seq() > head_seq
    assert not difference(image(volume.backing), image(root))
    assert not difference(image(root), before)
    assert _scrub(volume)["faults"] == []
    assert "nothing wrong" in volume.run("status", str(volume.state)).stdout


def test_spoilt_packs_and_segments_are_named(volume: Layer, tmp_path: Path) -> None:
    (pack, *_) = sorted((tmp_path / "kept/packs").iterdir(), key=lambda one: one.stat().st_size)
    content = bytearray(pack.read_bytes())
    content[60] ^= 1
    pack.write_bytes(content)
    found = _scrub(volume, code=49)
    assert any(f"packs/{pack.name}" in line for line in found["faults"])


def test_a_stopped_scrub_goes_on(volume: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusejournal.admin import scrub as module

    monkeypatch.setattr(module, "_SLICE_FILES", 2)
    _spoil(volume)
    calls = 0

    def stop(_: int, __: int | None) -> None:
        nonlocal calls
        calls += 1
        if calls == limit:
            raise KeyboardInterrupt

    phases = set()
    limit = 0
    while True:
        limit += 3
        calls = 0
        work = Scrub(str(volume.state), stop)
        try:
            found = work.run()
            break
        except KeyboardInterrupt:
            phases.add(work.status.phase)
    assert "tree" in phases
    assert len(found.faults) == 4
    assert Scrub(str(volume.state), show_nothing).run().faults == found.faults


def test_files_that_change_meanwhile_are_no_faults(
    volume: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusejournal.admin import scrub as module

    monkeypatch.setattr(module, "_SLICE_FILES", 3)
    done = threading.Event()

    def work() -> None:
        number = 0
        while not done.is_set():
            number += 1
            path = volume.mountpoint / f"d/busy{number % 5}"
            path.write_bytes(os.urandom(5000))
            done.wait(0.005)
            os.rename(path, volume.mountpoint / f"d/moved{number % 7}")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert Scrub(str(volume.state), show_nothing, do_repair=True).run().faults == ()
    finally:
        done.set()
        thread.join()


def test_a_mirror_is_compared_too(tmp_path: Path) -> None:
    with started(tmp_path, None) as (primary, mirror):
        _fill(primary.mountpoint)
        check_equal(primary, mirror)
        assert _scrub(mirror)["faults"] == []
        _spoil(mirror)
        found = _scrub(mirror, code=49)
        assert len(found["faults"]) == 4
        (primary.mountpoint / "d/later").write_text("goes on meanwhile")
        await_level(primary, mirror)
        mended = _scrub(mirror, "--repair")
        assert (mended["faults"], mended["repaired"]) == ([], 4)
        check_equal(primary, mirror)
        assert not difference(image(mirror.backing), image(primary.backing))
        assert _scrub(mirror)["faults"] == _scrub(primary)["faults"] == []
        for node in (primary, mirror):
            node.stop()
