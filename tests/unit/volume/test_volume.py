"""The ordered place: what is on disk, and in which order, when a change is made."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusejournal.backing.root_mark import BackingRoot
from fusejournal.disk import failpoints
from fusejournal.errors import FusejournalError, JournalFullError
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import Rmdir, Truncate, Write
from fusejournal.types import Fid
from fusejournal.volume.acceptance import Acceptance
from tests.support.volumes import SOMEBODY, OpenVolume, open_volume

pytestmark = pytest.mark.mount


@pytest.fixture
def labels() -> Iterator[list[str]]:
    seen: list[str] = []
    failpoints.listen(seen.append)
    yield seen
    failpoints.listen(None)


def test_strict_flushes_before_it_applies(tmp_path: Path, labels: list[str]) -> None:
    with open_volume(tmp_path) as opened:
        opened.policy.set("strict")
        del labels[:]
        opened.mkdir("directory")
        steps = [label for label in labels if label.partition(".")[0] in ("journal", "apply")]
        assert steps.index("journal.append") < steps.index("journal.sync")
        assert steps.index("journal.sync") < steps.index("apply.mkdir")
        assert opened.volume.journal.durable_seq == opened.volume.journal.head_seq
        with pytest.raises(FileExistsError):
            opened.mkdir("directory")
        assert opened.volume.journal.head_seq == opened.volume.journal.durable_seq + 1  # the VOID


def test_strict_applies_nothing_that_was_not_flushed(tmp_path: Path) -> None:
    with open_volume(tmp_path) as opened:
        opened.policy.set("strict")
        failpoints.listen(failpoints.PlannedFault("journal.sync", 1, "EIO"))
        try:
            with pytest.raises(OSError, match="flushed") as caught:
                opened.mkdir("directory")
        finally:
            failpoints.listen(None)
        assert caught.value.errno == errno.EIO
        assert not (opened.backing / "directory").exists()
        assert opened.volume.write_errno == errno.EROFS


def test_async_flushes_nothing_by_itself(tmp_path: Path, labels: list[str]) -> None:
    with open_volume(tmp_path) as opened:
        del labels[:]
        opened.mkdir("directory")
        assert "journal.sync" not in labels


def _opened_below(directory: Path) -> list[str]:
    paths = []
    for name in os.listdir("/proc/self/fd"):
        try:
            paths.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # what listed them
            continue
    return [path for path in paths if path.startswith(str(directory))]


@pytest.mark.parametrize("label", ["journal.close", "checkpoint.syncfs", "journal.sync"])
def test_a_disk_that_fails_at_the_end_leaves_nothing_open(tmp_path: Path, label: str) -> None:
    """Or its file system could not be unmounted while the process lives."""

    def fail(reached: str) -> None:
        if reached == label:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def live() -> None:
        with open_volume(tmp_path) as opened:
            opened.mkdir("directory")
            failpoints.listen(fail)

    try:
        with pytest.raises((OSError, FusejournalError)):
            live()
    finally:
        failpoints.listen(None)
    assert _opened_below(tmp_path) == []


@pytest.mark.parametrize("label", ["catalog.reserve", "journal.append"])
def test_a_stop_on_a_full_disk_says_where_and_loses_nothing(tmp_path: Path, label: str) -> None:
    def live() -> None:
        with open_volume(tmp_path) as opened:
            opened.create("file", b"content")
            failpoints.listen(failpoints.PlannedFault(label, 1, "ENOSPC+"))

    with open_volume(tmp_path):
        pass
    try:
        with pytest.raises(JournalFullError, match=f"^{tmp_path}/state: no space left") as caught:
            live()
    finally:
        failpoints.listen(None)
    assert "nothing is lost" in str(caught.value)
    with open_volume(tmp_path) as opened:
        assert (opened.backing / "file").read_bytes() == b"content"
        assert opened.opening.repairs == []
        assert opened.opening.degraded == []


def _make_directories(opened: OpenVolume) -> None:
    for number in range(100_000):
        opened.mkdir(f"directory{number}")


def _errno_of_cut(opened: OpenVolume, fid: Fid, size: int) -> int | None:
    try:
        opened.volume.commit(Truncate(fid, size, None), SOMEBODY)
    except OSError as error:
        return error.errno
    return None


@contextmanager
def _full_journal(opened: OpenVolume) -> Iterator[None]:
    """Its disk is full until the end of the block."""
    failpoints.listen(failpoints.PlannedFault("journal.fallocate", 1, "ENOSPC+"))
    try:
        with pytest.raises(OSError, match="space"):
            _make_directories(opened)
        yield
    finally:
        failpoints.listen(None)


_SMALL_RESERVE = JournalOptions(preallocate_bytes=1 << 16, reserve_bytes=1 << 16)


def test_small_cuts_leave_the_reserve_to_removals(tmp_path: Path) -> None:
    """Or a user who shortens one file byte by byte takes from all others what removes theirs."""
    with open_volume(tmp_path, options=_SMALL_RESERVE) as opened:
        cut = opened.create("cut", bytes(4000))
        others = [opened.create(f"other{number}") for number in range(20)]
        with _full_journal(opened):
            refused = [_errno_of_cut(opened, cut, size) for size in range(3999, 2000, -1)]
            assert refused[-1] == errno.ENOSPC
            for number, fid in enumerate(others):
                opened.unlink(fid, f"other{number}")
            # A file that is cut by half or more still is; an empty one is not cut.
            sizes = (1500, 751, 750, 100, 1, 0, 0)
            wanted = [None, errno.ENOSPC, None, None, None, None, errno.ENOSPC]
            assert [_errno_of_cut(opened, cut, size) for size in sizes] == wanted


def test_cuts_of_many_files_leave_the_reserve_to_removals(tmp_path: Path) -> None:
    with open_volume(tmp_path, options=_SMALL_RESERVE) as opened:
        cut = [opened.create(f"cut{number}", bytes(1 << 12)) for number in range(100)]
        others = [opened.create(f"other{number}") for number in range(100)]
        with _full_journal(opened):
            sizes = (1 << bits for bits in range(11, -1, -1))
            refused = [_errno_of_cut(opened, fid, size) for size in sizes for fid in cut]
            assert (refused[0], refused[-1]) == (None, errno.ENOSPC)
            for number, fid in enumerate(others):
                opened.unlink(fid, f"other{number}")


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_the_backing_refuses_takes_nothing_of_the_reserve(tmp_path: Path, what: str) -> None:
    """A user can ask for it without end: an entry and its VOID each time."""
    with open_volume(tmp_path, options=_SMALL_RESERVE) as opened:
        directory = opened.mkdir("directory")
        fid = opened.create("file", bytes(1000), directory)
        inside = opened.mkdir("inside", directory)
        path = opened.backing / "directory" / ("" if what == "directory" else "file")
        subprocess.run(["chattr", "+i", path], check=True)
        try:
            with _full_journal(opened):
                head_seq = opened.volume.journal.head_seq
                for _ in range(1000):
                    with pytest.raises(PermissionError):
                        opened.unlink(fid, "file", directory)
                    if what == "file":
                        assert _errno_of_cut(opened, fid, 0) == errno.EPERM
                    else:
                        with pytest.raises(PermissionError):
                            opened.volume.commit(Rmdir(inside, directory, b"inside"), SOMEBODY)
                # (One and its VOID may have found their place before the reserve.)
                assert opened.volume.journal.head_seq <= head_seq + 2
        finally:
            subprocess.run(["chattr", "-i", path], check=True)
        opened.unlink(fid, "file", directory)


@pytest.mark.parametrize("number", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("label", ["watermarks.write:1", "watermarks.sync:2"])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_page_that_fails_at_the_end_is_remembered(
    tmp_path: Path, mirror: bool, label: str, number: str
) -> None:
    """By the next start, of a mirror as of a primary; but a full disk is none that failed. (The
    checkpoint flushes the page first.)"""
    with open_volume(tmp_path / "primary") as primary:
        primary.work(3)
        uuid = primary.volume.journal.uuid
    directory = tmp_path / ("mirror" if mirror else "primary")
    if mirror:
        shutil.copytree(primary.journal_dir, directory / "state" / "journal")
        (directory / "backing").mkdir()
        root_fd = os.open(directory / "backing", os.O_RDONLY)
        BackingRoot(root_fd, uuid).mark()
        os.close(root_fd)

    def live() -> None:
        with open_volume(directory, mirror=mirror, uuid=uuid) as opened:
            if not mirror:
                opened.mkdir("directory")
            place, count = label.split(":")
            failpoints.listen(failpoints.PlannedFault(place, int(count), number))

    with open_volume(directory, mirror=mirror, uuid=uuid):
        pass
    try:
        if number == "EIO":
            with pytest.raises(OSError, match="planned at watermarks") as caught:
                live()
            assert caught.value.errno == errno.EIO
        else:
            live()
    finally:
        failpoints.listen(None)
    for has_failed in (number == "EIO", False):
        with open_volume(directory, mirror=mirror, uuid=uuid) as opened:
            assert opened.opening.system_crash == has_failed


def test_a_volume_that_has_failed_takes_no_change_again(tmp_path: Path) -> None:
    with open_volume(tmp_path, orderly=False) as opened:
        volume = opened.volume
        volume.hold_changes()
        volume.fail("a test has it fail")
        volume.take_changes()
        volume.refuse_changes(errno.EAGAIN)
        assert volume.acceptance is Acceptance.FAILED
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            opened.create("late")


def test_a_volume_that_has_failed_gets_no_entry(tmp_path: Path) -> None:
    """Nor one of a change that is many: behind an entry that is half done, none may follow, for
    the next start looks at the last one alone."""
    with open_volume(tmp_path) as opened:
        fid, volume = opened.create("large", b"first"), opened.volume
        volume.fail("planned")
        head_seq = volume.journal.head_seq
        with pytest.raises(OSError, match="Read-only"):
            volume.journal_existing(Write(fid, 0, None), data=b"other")
        assert volume.journal.head_seq == head_seq
