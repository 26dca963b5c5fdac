"""Times at both ends of what file systems hold, and beyond: set by users, kept, shipped, replayed,
and read again after every kind of stop."""

import os
import time
from pathlib import Path

import pytest

from fusejournal.journal.clock import now_ns
from fusejournal.replay.digest import digest_tree
from fusejournal.types import TIME_MAX_NS, TIME_MIN_NS, clamp_time
from tests.support.filesystems import filesystem
from tests.support.layer import Layer
from tests.support.mirrors import Node, check_equal, started

pytestmark = pytest.mark.mount

_YEAR_NS = int(365.2425 * 86400) * 10**9
_TIMES = [
    (year - 1970) * _YEAR_NS + 123_456_789
    for year in (1800, 1902, 1969, 1971, 2039, 2261, 2263, 2300, 2445, 2500)
]
_TIMES += [2**63 - 1, 2**63, TIME_MIN_NS, TIME_MAX_NS]


def _make_files(top: Path) -> None:
    for number, time_ns in enumerate(_TIMES):
        file, directory, link = (top / f"{kind}{number}" for kind in ("file", "dir", "link"))
        file.write_text(str(time_ns))
        directory.mkdir()
        (directory / "below").touch()
        link.symlink_to("nowhere")
        for path in (file, directory, link):
            os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)
    os.utime(top, ns=(0, 2**63 + 7))


def _check_times(top: Path) -> None:
    for number, time_ns in enumerate(_TIMES):
        for kind in ("file", "dir", "link"):
            path = top / f"{kind}{number}"
            assert os.lstat(path).st_mtime_ns == clamp_time(time_ns), (kind, time_ns)


def _check_replayed(node: Layer, target: Path) -> None:
    node.check_rebuilt(target)
    assert digest_tree(node.backing).digest == digest_tree(target).digest


def _check_commands(node: Layer, tmp_path: Path) -> None:
    """All that reads the journal takes such a time."""
    state = str(node.state)
    assert "2300-" in node.run("log", state, "file7").stdout
    assert "sound" in node.run("journal", "verify", state, "--deep").stdout
    target = tmp_path / "restored"
    head = str(len(node.entries()))
    node.run("restore", state, "/file7", "--to-seq", head, "--target", str(target))
    assert (target / "file7").stat().st_mtime_ns == clamp_time(_TIMES[7])


def test_users_times_outlive_everything(tmp_path: Path) -> None:
    with started(tmp_path, None) as (primary, mirror):
        assert isinstance(primary, Node)
        _make_files(primary.mountpoint)
        _check_times(primary.mountpoint)
        check_equal(primary, mirror)
        primary.kill()
        primary.detach()
        primary.start()
        check_equal(primary, mirror)
        primary.stop()
        primary.start()
        mirror.stop()
        mirror.start()
        _check_times(primary.mountpoint)
        check_equal(primary, mirror)
        for node in (primary, mirror):
            node.stop()
        _check_replayed(primary, tmp_path / "target")
        _check_commands(primary, tmp_path)


@pytest.mark.parametrize("kind", ["tmpfs", "xfs"])
def test_times_that_were_there_first(tmp_path: Path, kind: str) -> None:
    """These file systems hold times that others cannot: what is imported, and what is journaled,
    are the same."""
    with filesystem(kind, tmp_path, "disk", 512) as disk:
        backing = disk / "backing"
        backing.mkdir()
        _make_files(backing)
        with Layer(tmp_path, backing=backing) as layer:
            for _ in range(2):
                layer.start()
                _check_times(layer.mountpoint)
                layer.stop()
            # Behind the layer's back, and seen by it while it runs.
            layer.start()
            stray = backing / "stray"
            stray.mkdir()
            os.utime(stray, ns=(0, _TIMES[9]))
            assert (layer.mountpoint / "stray").stat().st_mtime_ns == clamp_time(_TIMES[9])
            layer.stop()
            _check_replayed(layer, tmp_path / "target")


def _await_tick() -> None:
    """Until the clock that files have has moved on."""
    before = now_ns()
    while now_ns() == before:
        time.sleep(0)


def test_what_is_touched_and_what_is_written_are_in_order(tmp_path: Path) -> None:
    """Make needs it so: neither is older than what came before it."""
    with Layer(tmp_path) as layer:
        layer.start()
        written, touched = layer.mountpoint / "written", layer.mountpoint / "touched"
        touched.touch()
        for number in range(200):
            written.write_text(str(number))
            os.utime(touched)
            assert touched.stat().st_mtime_ns >= written.stat().st_mtime_ns, number
            _await_tick()
            os.utime(touched)
            written.write_text("again")
            assert written.stat().st_mtime_ns >= touched.stat().st_mtime_ns, number
        layer.stop()
