"""Temporary directories of works that are killed, that go on, and that are none of ours."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fusejournal.disk.temporary import temporary_directory

_WORK = """
import os, signal, sys
from fusejournal.disk.temporary import temporary_directory
with temporary_directory() as work:
    (work / "below").mkdir()
    (work / "below" / "file").write_text("content")
    print(work, flush=True)
    sys.stdin.read()
    if sys.argv[1:] == ["killed"]:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of temporary ones."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("TMPDIR", str(place))
    return place


def _start(*arguments: str) -> tuple[subprocess.Popen[str], Path]:
    command = [sys.executable, "-c", _WORK, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().rstrip("\n"))


def test_a_directory_goes_with_its_work(place: Path) -> None:
    with temporary_directory() as work:
        assert work.stat().st_mode & 0o777 == 0o700
        assert work.parent.parent == place
        (work / "file").write_text("content")
    assert os.listdir(place) == []


def test_what_a_killed_work_has_left_goes_with_the_next(place: Path) -> None:
    process, work = _start("killed")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (work / "below/file").exists()
    with temporary_directory() as mine:
        assert os.listdir(place) == [mine.parent.name]


def test_a_work_that_goes_on_keeps_its_directory(place: Path) -> None:
    process, work = _start()
    with temporary_directory(), temporary_directory():
        assert (work / "below/file").exists()
    assert os.listdir(place) == [work.parent.name]
    process.communicate()
    assert process.returncode == 0
    assert os.listdir(place) == []


def test_one_that_was_killed_before_it_was_locked_goes(place: Path) -> None:
    (place / "fusejournal-work.new").mkdir(mode=0o700)
    with temporary_directory() as mine:
        assert os.listdir(place) == [mine.parent.name]


@pytest.mark.mount
def test_what_others_have_there_stays(place: Path, tmp_path: Path) -> None:
    open_to_all = place / "fusejournal-work.open"
    another_users = place / "fusejournal-work.another"
    unlocked = place / "fusejournal-work.unlocked"
    of_before = place / "fusejournal.before"
    elsewhere = tmp_path / "elsewhere"
    for one in (open_to_all, another_users, of_before, elsewhere, unlocked):
        one.mkdir(mode=0o700)
        (one / "work").mkdir()
        if one is not unlocked:
            (one / "lock").touch(0o600)
    open_to_all.chmod(0o755)
    os.chown(another_users, 1, 1)
    (place / "fusejournal-work.link").symlink_to(elsewhere)
    (place / "fusejournal-work.file").touch()
    before = sorted(map(str, tmp_path.rglob("*")))
    with temporary_directory():
        pass
    assert sorted(map(str, tmp_path.rglob("*"))) == before
