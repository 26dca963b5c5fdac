"""File handles on the mount, as nfsd uses them: good for the life of the file, and no longer."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from fusejournal.disk import syscalls
from tests.support.layer import Layer

pytestmark = pytest.mark.mount


def handle_of(path: Path) -> bytes:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        return syscalls.handle_of(fd)
    finally:
        os.close(fd)


def open_handle(layer: Layer, handle: bytes, flags: int = os.O_RDONLY) -> int:
    root = os.open(layer.mountpoint, os.O_RDONLY)
    try:
        return syscalls.open_by_handle(root, handle, flags)
    finally:
        os.close(root)


def read_handle(layer: Layer, handle: bytes) -> bytes:
    fd = open_handle(layer, handle)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def assert_stale(layer: Layer, handle: bytes) -> None:
    with pytest.raises(OSError, match="Stale") as caught:
        open_handle(layer, handle)
    assert caught.value.errno == errno.ESTALE


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


@pytest.mark.parametrize("event", ["drop", "restart", "kill", "lost catalog"])
def test_handles_outlive(layer: Layer, event: str) -> None:
    layer.start()
    root = layer.mountpoint
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "a" / "b" / "c" / "file").write_text("content")
    os.symlink("target", root / "a" / "link")
    handles = {name: handle_of(root / name) for name in ("a/b/c/file", "a/b/c", "a/link", ".")}
    inodes = {name: os.lstat(root / name).st_ino for name in handles}
    # Another name for an ancestor, which nobody looks up again.
    os.rename(root / "a", root / "moved")
    if event == "drop":
        drop_caches()
    elif event == "restart":
        layer.stop()
        layer.start()
    else:
        layer.kill()
        if event == "lost catalog":
            shutil.rmtree(layer.state / "catalog")
        layer.start()
    assert read_handle(layer, handles["a/b/c/file"]) == b"content"
    fd = open_handle(layer, handles["a/b/c"], os.O_RDONLY | os.O_DIRECTORY)
    assert os.listdir(fd) == ["file"]
    # The kernel finds its way up to the root by "..".
    assert os.readlink(f"/proc/self/fd/{fd}") == str(root / "moved/b/c")
    os.close(fd)
    for name, handle in handles.items():
        fd = open_handle(layer, handle, os.O_PATH)
        assert os.fstat(fd).st_ino == inodes[name]
        os.close(fd)


def test_handle_of_a_removed_file_is_stale(layer: Layer) -> None:
    layer.start()
    file, directory = layer.mountpoint / "file", layer.mountpoint / "directory"
    file.write_text("one")
    directory.mkdir()
    handles = [handle_of(file), handle_of(directory)]
    file.unlink()
    directory.rmdir()
    file.write_text("another")
    directory.mkdir()
    drop_caches()
    for handle in handles:
        assert_stale(layer, handle)
    assert read_handle(layer, handle_of(file)) == b"another"
    layer.kill()
    layer.start()
    for handle in handles:
        assert_stale(layer, handle)


def test_handle_of_one_of_two_names(layer: Layer) -> None:
    layer.start()
    (layer.mountpoint / "sub").mkdir()
    (layer.mountpoint / "one").write_text("content")
    handle = handle_of(layer.mountpoint / "one")
    os.link(layer.mountpoint / "one", layer.mountpoint / "sub" / "two")
    (layer.mountpoint / "one").unlink()
    drop_caches()
    assert read_handle(layer, handle) == b"content"


def test_fids_are_never_given_twice(layer: Layer) -> None:
    layer.start()
    seen: set[int] = set()
    for round_ in range(3):
        for number in range(20):
            file = layer.mountpoint / f"{round_}-{number}"
            file.touch()
            assert file.stat().st_ino not in seen
            seen.add(file.stat().st_ino)
            file.unlink()
        if round_ == 0:
            layer.kill()
        else:
            layer.stop()
        shutil.rmtree(layer.state / "catalog")
        layer.start()


def test_a_copied_attribute_is_no_identity(layer: Layer) -> None:
    layer.start()
    (layer.mountpoint / "file").write_text("x")
    fid = (layer.mountpoint / "file").stat().st_ino
    layer.stop()
    shutil.copy2(layer.backing / "file", layer.backing / "copy")
    attribute = "trusted.fusejournal"
    os.setxattr(layer.backing / "copy", attribute, os.getxattr(layer.backing / "file", attribute))
    layer.start()
    assert (layer.mountpoint / "copy").read_text() == "x"
    assert (layer.mountpoint / "copy").stat().st_ino != fid
    assert (layer.mountpoint / "file").stat().st_ino == fid
