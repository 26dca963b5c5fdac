"""The promises of every store of objects, by one suite for all of them."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusejournal.disk import failpoints
from fusejournal.objects.local import LocalStore
from fusejournal.objects.overlay import OverlayStore
from fusejournal.objects.store import (
    ObjectExistsError,
    ObjectMissingError,
    ObjectNotFlushedError,
    ObjectStore,
    StoreError,
    StoreFullError,
    probe,
    put_same,
)
from tests.support.objects import LossyStore, MemoryStore, library_store, sealed_store
from tests.support.seaweed import open_seaweed


@pytest.fixture(
    params=[
        "local",
        "memory",
        "overlay",
        "service",
        "library",
        "sealed",
        "sealed-local",
        "sealed-service",
    ]
)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    match request.param:
        case "local":
            return LocalStore.make(tmp_path / "store")
        case "overlay":
            return OverlayStore(MemoryStore(), LocalStore.make(tmp_path / "store"))
        case "service":
            return open_seaweed(request.getfixturevalue("seaweed"))
        case "library":
            return library_store()
        case "sealed":
            return sealed_store(MemoryStore())
        case "sealed-service":
            return sealed_store(open_seaweed(request.getfixturevalue("seaweed")))
        case "sealed-local":
            return sealed_store(LocalStore.make(tmp_path / "store"))
    return MemoryStore()


def test_what_is_put_is_there(store: ObjectStore) -> None:
    store.put_new("packs/one", b"content of one")
    store.put_new("config", bytearray(b""))
    assert store.get("packs/one") == b"content of one"
    assert store.get("config") == b""
    assert store.get_range("packs/one", 8, 2) == b"of"
    assert store.get_range("packs/one", 8, 100) == b"of one"
    assert store.get_range("packs/one", 100, 1) == b""


def test_an_object_is_made_once(store: ObjectStore) -> None:
    store.put_new("a/b", b"first")
    for content in (b"second", b"first"):
        with pytest.raises(ObjectExistsError):
            store.put_new("a/b", content)
    assert store.get("a/b") == b"first"


def test_of_many_creators_one_wins(store: ObjectStore) -> None:
    won: list[int] = []

    def create(number: int) -> None:
        try:
            store.put_new("race/one", b"%d" % number * 1000)
            won.append(number)
        except ObjectExistsError:
            pass

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get("race/one") == b"%d" % won[0] * 1000


def test_names_are_listed_sorted_and_by_prefix(store: ObjectStore) -> None:
    for name in ("b/2", "b/1", "c/1", "config"):
        store.put_new(name, b"")
    assert list(store.names("b/")) == ["b/1", "b/2"]
    assert list(store.names("none/")) == []


def test_what_is_removed_is_gone(store: ObjectStore) -> None:
    store.put_new("a/b", b"")
    store.remove("a/b")
    store.remove("a/b")
    store.remove("none/b")
    assert list(store.names("a/")) == []
    with pytest.raises(ObjectMissingError):
        store.get("a/b")
    with pytest.raises(ObjectMissingError):
        store.get_range("a/b", 0, 1)
    store.put_new("a/b", b"again")


@pytest.mark.parametrize("name", ["", "../x", "a/../b", ".x", "/a", "a/", "a/b/c", "A", "a b", "ä"])
def test_other_names_are_refused(store: ObjectStore, name: str) -> None:
    for call in (lambda: store.put_new(name, b""), lambda: store.get(name)):
        with pytest.raises(ValueError, match="no name"):
            call()


def test_put_same_is_content_with_what_is_there(store: ObjectStore) -> None:
    assert put_same(store, "a/b", b"content")
    assert not put_same(store, "a/b", b"content")
    with pytest.raises(StoreError, match="other content"):
        put_same(store, "a/b", b"another")


def test_put_same_reads_back_when_the_answer_was_lost() -> None:
    store = LossyStore(late=True)
    assert put_same(store, "a/b", b"content")
    with pytest.raises(StoreError, match="no answer"):
        put_same(LossyStore(late=False), "a/b", b"content")


def test_probe_leaves_nothing_behind(store: ObjectStore) -> None:
    probe(store)
    assert list(store.names("probe/")) == []


class _Overwriting(MemoryStore):
    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self.objects[name] = bytes(data)


def test_probe_finds_a_store_that_makes_an_object_twice() -> None:
    with pytest.raises(StoreError, match="a second time"):
        probe(_Overwriting())


class _Forgetful(MemoryStore):
    def names(self, prefix: str) -> Iterator[str]:
        return iter(())


def test_probe_finds_a_store_that_does_not_list() -> None:
    with pytest.raises(StoreError, match="does not list"):
        probe(_Forgetful())


# -- one over another ------------------------------------------------------------------------------


def test_what_is_beneath_is_read_and_left_as_it_is() -> None:
    lower, upper = MemoryStore(), MemoryStore()
    lower.put_new("a/lower", b"lower")
    before = dict(lower.objects)
    store = OverlayStore(lower, upper)
    store.put_new("a/upper", b"upper")
    assert list(store.names("a/")) == ["a/lower", "a/upper"]
    assert store.get("a/lower") == b"lower"
    assert store.get_range("a/lower", 1, 2) == b"ow"
    with pytest.raises(ObjectExistsError):
        store.put_new("a/lower", b"other")
    with pytest.raises(StoreError, match="only to be read"):
        store.remove("a/lower")
    assert lower.objects == before
    assert list(upper.objects) == ["a/upper"]


# -- the local one ---------------------------------------------------------------------------------


def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(StoreError, match="0700"):
        LocalStore(tmp_path / "open")
    with pytest.raises(StoreError, match="No such file"):
        LocalStore(tmp_path / "none")


@pytest.mark.parametrize(
    "label", ["object.write", "object.sync", "object.link", "object.directory"]
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_creation_that_fails_leaves_no_file_behind(
    tmp_path: Path, label: str, number: int
) -> None:
    store = LocalStore.make(tmp_path / "store")
    failpoints.listen(failpoints.PlannedFault(label, 1, errno.errorcode[number]))
    try:
        with pytest.raises(StoreFullError if number == errno.ENOSPC else StoreError):
            store.put_new("a/b", b"content")
    finally:
        failpoints.listen(None)
    left = [path.name for path in (tmp_path / "store" / "a").iterdir()]
    assert left == (["b"] if label == "object.directory" else [])


def test_what_killed_writers_left_is_removed_and_what_is_written_is_not(tmp_path: Path) -> None:
    store = LocalStore.make(tmp_path / "store")
    store.put_new("a/b", b"content")
    left = tmp_path / "store" / "a" / ".left"
    left.write_bytes(b"half")
    written, fd = store._open_temporary(left.parent)
    LocalStore(tmp_path / "store")
    assert left.exists()
    LocalStore(tmp_path / "store", writing=True)
    assert not left.exists()
    assert written.exists()
    os.close(fd)
    assert list(store.names("a/")) == ["a/b"]


def test_what_is_there_and_not_flushed_is_not_made(tmp_path: Path) -> None:
    """Reading it back would tell of the page cache."""
    store = LocalStore.make(tmp_path / "store")
    for label in ("object.directory", "object.exists.directory"):
        failpoints.listen(failpoints.PlannedFault(label, 1, "EIO"))
        try:
            with pytest.raises(ObjectNotFlushedError, match="not on the disk"):
                put_same(store, "a/b", b"content")
        finally:
            failpoints.listen(None)
        assert store.get("a/b") == b"content"
    assert not put_same(store, "a/b", b"content")


def test_a_store_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    """So it is when its disk is unmounted meanwhile, and was mounted there, or above."""
    directory = tmp_path / "disk"
    store = LocalStore.make(directory)
    directory.rename(tmp_path / "away")
    with pytest.raises(StoreError, match="No such file"):
        store.put_new("a/b", b"content")
    assert not directory.exists()
    directory.mkdir(0o700)
    with pytest.raises(StoreError, match="is its disk mounted"):
        store.put_new("a/b", b"content")
    assert not list(directory.iterdir())


def test_a_file_system_without_links_is_named(tmp_path: Path) -> None:
    store = LocalStore.make(tmp_path / "store")
    failpoints.listen(failpoints.PlannedFault("object.link", 1, "EOPNOTSUPP"))
    try:
        with pytest.raises(StoreError, match="no hard links"):
            store.put_new("a/b", b"content")
    finally:
        failpoints.listen(None)


@pytest.mark.parametrize(
    ("weaken", "is_refused"),
    [
        ("owner", True),  # who owns a directory can rename what is in it
        ("group", True),
        ("others", True),
        ("symlink", True),
        ("sticky", False),  # there only the owners can
        ("nothing", False),
    ],
)
def test_a_store_that_others_could_replace_is_refused(
    tmp_path: Path, weaken: str, is_refused: bool
) -> None:
    above = tmp_path / "above"
    directory = above / "between" / "store"
    LocalStore.make(directory).put_new("a/b", b"kept")
    named, told = directory, above
    if weaken == "owner":
        os.chown(above, 1000, 0)
    elif weaken == "symlink":
        named, told = tmp_path / "way" / "store", tmp_path / "way"
        told.symlink_to(directory.parent)
        os.lchown(told, 1000, 1000)
    else:
        modes = {"group": 0o770, "others": 0o707, "sticky": 0o1777, "nothing": 0o755}
        above.chmod(modes[weaken])
    if is_refused:
        with pytest.raises(StoreError, match=rf"others than root own {told} .*chmod go-w {told}'"):
            LocalStore(named)
    else:
        assert LocalStore(named).get("a/b") == b"kept"
