"""The users of a directory: real processes, also in other mount namespaces."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusejournal.disk import mounts
from fusejournal.errors import VolumeBusyError
from tests.support.patience import wait_until

pytestmark = pytest.mark.mount

_WAIT = "echo; exec sleep 60"


@contextmanager
def _process(*command: str) -> Iterator[int]:
    """A process that has done its steps when the block begins."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        comm = Path(f"/proc/{process.pid}/comm")
        wait_until(lambda: comm.read_text() != "sh\n")  # it is about to be another program
        try:
            yield process.pid
        finally:
            process.kill()


def _elsewhere(script: str, *words: Path) -> list[str]:
    """A command for a shell in a mount namespace of its own."""
    return ["unshare", "-m", "sh", "-ec", f"{script}; {_WAIT}", "sh", *map(str, words)]


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    (made / "sub").mkdir(parents=True)
    (made / "file").write_bytes(bytes(4096))
    return made


def _check(backing: Path) -> None:
    mounts.check_places(backing, backing, backing.parent / "state")


@pytest.mark.parametrize("inside", ["", "/sub"])
def test_another_file_system_by_the_same_name_is_no_use(backing: Path, inside: str) -> None:
    script = f'mount -t tmpfs none "$1"; mkdir -p "$1/sub"; cd "$1{inside}"; exec 9> "$1/file"'
    with _process(*_elsewhere(script, backing)):
        _check(backing)
        assert mounts.users(backing) == []


@pytest.mark.parametrize("step", ['cd "$1/sub"', 'exec 9< "$1/file"'])
def test_the_same_directory_in_another_namespace(backing: Path, step: str) -> None:
    with _process(*_elsewhere(step, backing)) as pid:
        with pytest.raises(VolumeBusyError, match=f"process {pid} "):
            _check(backing)
        assert mounts.users(backing) == [f"{pid} (sleep)"]
    _check(backing)


@pytest.mark.parametrize("part", ["", "/sub"])
def test_the_same_directory_by_another_name(backing: Path, tmp_path: Path, part: str) -> None:
    (other := tmp_path / "other").mkdir()
    script = f'mount --bind "$1{part}" "$2"; cd "$2"'
    with (
        _process(*_elsewhere(script, backing, other)) as pid,
        pytest.raises(VolumeBusyError, match=f"process {pid} "),
    ):
        _check(backing)


def test_a_neighbour_with_a_longer_name_is_no_use(backing: Path, tmp_path: Path) -> None:
    (other := tmp_path / "data2").mkdir()
    with _process("sh", "-ec", f'cd "$1"; {_WAIT}', "sh", str(other)):
        _check(backing)


@pytest.mark.parametrize("name", ["plain", "new\nline", "a\\012b", "bytes\udcff"])
def test_a_mapped_file_is_in_use(backing: Path, name: str) -> None:
    (backing / "file").rename(backing / name)
    program = (
        "import mmap, os, sys, time; fd = os.open(sys.argv[1], os.O_RDWR); "
        "kept = mmap.mmap(fd, 4096, trackfd=False) if sys.version_info >= (3, 13) else "
        "mmap.mmap(fd, 4096); os.closerange(3, 99); print(flush=True); time.sleep(60)"
    )
    file = str(backing / name)
    with (
        _process(sys.executable, "-c", program, file) as pid,
        pytest.raises(VolumeBusyError, match=f"process {pid} "),
    ):
        _check(backing)


def test_users_among_some_processes(backing: Path) -> None:
    with _process("sh", "-ec", f'cd "$1"; {_WAIT}', "sh", str(backing)) as pid:
        assert mounts.users(backing, {str(pid), "1"}) == [f"{pid} (sleep)"]
        assert mounts.users(backing, {"1"}) == []
        assert mounts.users(backing) == [f"{pid} (sleep)"]


def test_a_directory_below_a_mount_over_a_mount(backing: Path) -> None:
    """The one on top tells which file system it is in."""
    covered = 'mount -t tmpfs none "$1"; mount --bind "$2" "$1"'
    script = f'{covered}; mkdir -p "$1/deep/er"; cd "$1/deep/er"'
    with _process(*_elsewhere(script, backing / "sub", backing)) as pid:
        assert mounts.users(backing) == [f"{pid} (sleep)"]
        assert mounts.users(backing / "deep") == [f"{pid} (sleep)"]
        assert mounts.users(backing / "de") == mounts.users(backing / "sub/deep") == []
