"""File handles on the mount, as nfsd uses them: good for the life of the file, and no longer."""

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fusejournal.disk import syscalls
from fusejournal.journal.handle_key import NO_HANDLE_KEY
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import list_segments
from tests.support.entries import without_handle_key
from tests.support.handles import generation_of, handle_of, made_up
from tests.support.layer import Layer

pytestmark = pytest.mark.mount


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
    # Another name for an ancestor, which no process looks up again.
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
    found = {name: handle_of(root / "moved" / name[2:]) for name in handles if name != "."}
    assert found == {name: handles[name] for name in found}


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "evicted"])
def test_no_handle_can_be_made_up(layer: Layer, cached: bool) -> None:
    """Fids are numbers in a row. A client that may not enter a directory must not reach the files
    in it by counting on from the handle of a file of its own."""
    layer.start()
    own, closed = layer.mountpoint / "own", layer.mountpoint / "closed"
    own.write_text("public")
    closed.mkdir(mode=0o700)
    (closed / "secret").write_text("secret")
    (closed / "secret").chmod(0o644)
    handles = {path: handle_of(path) for path in (own, closed, closed / "secret")}
    fids = {path: path.stat().st_ino for path in handles}
    assert sorted(fids.values()) == list(range(fids[own], fids[own] + 3))
    generations = {path: generation_of(handle) for path, handle in handles.items()}
    assert len({0, *generations.values()}) == 4
    for path in (closed, closed / "secret"):
        distance = fids[path] - fids[own]
        for guess in (0, 1, generations[own], generations[own] + distance, fids[path]):
            if not cached:
                drop_caches()
            assert_stale(layer, made_up(handles[own], fids[path], guess))
        # The right one would have been found, so nothing but the generation keeps it out.
        fd = open_handle(layer, made_up(handles[own], fids[path], generations[path]), os.O_PATH)
        assert os.fstat(fd).st_ino == fids[path]
        os.close(fd)


_MAKERS: dict[str, Callable[[Path], None]] = {
    "create": lambda path: path.touch(),
    "mkdir": lambda path: path.mkdir(),
    "mknod": lambda path: os.mknod(path, stat.S_IFIFO | 0o600),
    "symlink": lambda path: path.symlink_to("target"),
}


@pytest.mark.parametrize("maker", _MAKERS)
def test_every_answer_tells_the_same_handle(layer: Layer, maker: str) -> None:
    layer.start()
    directory = layer.mountpoint / "directory"
    directory.mkdir()
    path = directory / "name"
    _MAKERS[maker](path)
    handle = handle_of(path)
    assert generation_of(handle) != 0
    if maker != "mkdir":
        drop_caches()
        os.link(path, directory / "another", follow_symlinks=False)
        assert handle_of(directory / "another") == handle
    # LOOKUP, and READDIRPLUS, of which the kernel makes inodes, too.
    for look in (os.lstat, lambda path: os.listdir(path.parent)):
        drop_caches()
        look(path)
        assert handle_of(path) == handle
    # By LOOKUP of "." and "..": an inode that was made so is the one that names lead to.
    directory_handle = handle_of(directory)
    drop_caches()
    fd = open_handle(layer, handle, os.O_PATH)
    assert handle_of(path) == handle
    assert handle_of(directory) == directory_handle
    os.close(fd)


def test_handles_of_a_volume_of_an_earlier_version(layer: Layer) -> None:
    """Its journal has no key: the generation stays 0, in segments that are begun later, too."""
    layer.reconfigure("[journal]\nsegment_entries = 256\n")
    layer.start()
    (layer.mountpoint / "old").write_text("old")
    layer.stop()
    without_handle_key(layer.state / "journal")
    layer.start()
    handle = handle_of(layer.mountpoint / "old")
    assert generation_of(handle) == 0
    for number in range(600):
        (layer.mountpoint / f"{number}").touch()
    assert len(list_segments(layer.state / "journal")) > 2
    layer.kill()
    shutil.rmtree(layer.state / "catalog")
    layer.start()
    assert read_handle(layer, handle) == b"old"
    assert generation_of(handle_of(layer.mountpoint / "599")) == 0
    assert JournalReader(layer.state / "journal").handle_key() == NO_HANDLE_KEY


@pytest.mark.from_first_entry
def test_nothing_prints_the_key(layer: Layer) -> None:
    layer.start()
    (layer.mountpoint / "file").write_text("content")
    key = JournalReader(layer.state / "journal").handle_key()
    assert len(key) == 16
    segment = str(list_segments(layer.state / "journal")[0])
    commands = [
        ("journal", "dump", "volume"),
        ("journal", "dump", "volume", "--json"),
        ("journal", "dump", segment, "--json"),
        ("journal", "verify", "volume", "--json"),
        ("journal", "stats", "volume", "--json"),
        ("log", "volume"),
        ("log", "volume", "--json"),
        ("show", "volume", "1"),
        ("show", "volume", "1", "--json"),
        ("status", "volume"),
        ("status", "volume", "--json"),
    ]
    forms = [bytes(key), key.hex().encode(), repr(bytes(key))[2:-1].encode()]
    for command in commands:
        done = layer.run(*command)
        shown = (done.stdout + done.stderr).encode("utf-8", "surrogateescape").lower()
        assert shown
        assert not any(form.lower() in shown for form in forms), command
    assert not any(form in layer.words().encode() for form in forms)


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
