"""Objects of versions: read as they were written, and what is not one is named."""

import json
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from fusejournal.disk import failpoints
from fusejournal.errors import FusejournalError, JournalError, UsageError
from fusejournal.journal.reader import JournalReader
from fusejournal.objects.local import LocalStore
from fusejournal.objects.store import ObjectNotFlushedError, StoreError
from fusejournal.types import Epoch, Fid, Seq
from fusejournal.versions import builder as builder_module
from fusejournal.versions.builder import Builder
from fusejournal.versions.chunker import RULE
from fusejournal.versions.create import create_version
from fusejournal.versions.histories import newest_usable
from fusejournal.versions.manifest import (
    NoSuchVersionError,
    Version,
    decode_version,
    encode_version,
    find_version,
    list_versions,
    make_store,
    objects_by_kind,
    protect,
    protected_keys,
    put_version,
    read_versions,
    remove_version,
    store_head,
)
from fusejournal.versions.packs import StoreDamagedError
from fusejournal.versions.place import StorePlace, open_place, read_place, write_place
from fusejournal.versions.trees import Trees
from tests.support.entries import UUID_OF_TESTS, write_samples
from tests.support.objects import MemoryStore
from tests.support.volumes import show_nothing

_VERSION = Version(
    UUID(int=7),
    Epoch(2),
    Seq(4711),
    0x1234,
    1_800_000_000_000_000_000,
    "monday",
    "node",
    1_800_000_001_000_000_000,
    None,
    RULE,
    bytes(32),
    bytes(31) + b"\1",
    Fid(99),
    5,
    6,
    7,
    8,
)


def test_a_version_is_read_as_it_was_written() -> None:
    assert decode_version("x", encode_version(_VERSION)) == _VERSION


@pytest.mark.parametrize(
    ("field", "value"),
    [("seq", 4712), ("name", "tuesday"), ("root", "00"), ("uuid", "x"), ("inodes", "0"), ("x", 1)],
)
def test_a_changed_version_is_named(field: str, value: object) -> None:
    raw = json.loads(encode_version(_VERSION))
    raw[field] = value
    with pytest.raises(StoreDamagedError):
        decode_version("x", json.dumps(raw).encode())


def test_what_is_newer_is_said_to_be() -> None:
    raw = json.loads(encode_version(_VERSION))
    with pytest.raises(StoreError, match="newer"):
        decode_version("x", json.dumps({**raw, "format": 2}).encode())
    with pytest.raises(StoreError, match="another rule"):
        decode_version("x", encode_version(replace(_VERSION, rule="other")))


def test_two_trees_at_one_position_are_named() -> None:
    store = MemoryStore()
    assert put_version(store, _VERSION) == _VERSION
    # Another node made the same.
    assert put_version(store, replace(_VERSION, made_by="other")) == _VERSION
    with pytest.raises(StoreDamagedError, match="another tree"):
        put_version(store, replace(_VERSION, inodes=b"\2" * 32))


def test_versions_are_listed_and_found() -> None:
    store = MemoryStore()
    later = replace(_VERSION, seq=Seq(5000), name="")
    other = replace(_VERSION, uuid=UUID(int=8))
    for version in (later, _VERSION, other):
        put_version(store, version)
    versions = list_versions(store, UUID(int=7))
    assert versions == [_VERSION, later]
    for wanted in ("monday", "4711", _VERSION.key):
        assert find_version(versions, "v", wanted) == _VERSION
    for wanted in ("", "tuesday", "47"):
        with pytest.raises(NoSuchVersionError):
            find_version(versions, "v", wanted)
    branch = replace(_VERSION, chain=0x99)
    with pytest.raises(NoSuchVersionError, match="may be any of"):
        find_version([_VERSION, branch], "v", "4711")
    protect(store, later.key, on=True)
    protect(store, later.key, on=True)
    assert protected_keys(store) == {later.key}
    protect(store, later.key, on=False)
    assert protected_keys(store) == set()
    remove_version(store, later.key)
    assert list_versions(store, UUID(int=7)) == [_VERSION]
    assert dict(objects_by_kind(store))["versions"] == 2
    # What cannot be read is named, and keeps no reader from the others.
    store.objects[f"versions/{later.key}"] = encode_version(_VERSION)
    store.objects["versions/stray"] = b""
    newer = json.loads(encode_version(replace(_VERSION, seq=Seq(9))))
    newer_key = replace(_VERSION, seq=Seq(9)).key
    store.objects[f"versions/{newer_key}"] = json.dumps({**newer, "format": 2}).encode()
    found = read_versions(store, UUID(int=7))
    assert found.versions == list_versions(store, UUID(int=7)) == [_VERSION]
    assert {key: error.reason for key, error in found.unreadable} == {
        later.key: "is another version's object",
        "stray": "is no version's name",
        newer_key: "is a version of a newer fusejournal: upgrade this one",
    }
    assert later.key in found.unreadable[1].error.where
    assert len(read_versions(store, UUID(int=8)).unreadable) == 1
    assert len(read_versions(store, None).unreadable) == 3


def test_a_store_keeps_its_id(tmp_path: Path) -> None:
    store = LocalStore.make(tmp_path / "store")
    with pytest.raises(StoreError, match="holds no versions"):
        store_head(store)
    id_ = make_store(store).id
    assert make_store(store).id == id_
    place = StorePlace(str(tmp_path / "store"), id_)
    assert read_place(tmp_path) is None
    write_place(tmp_path, place)
    assert read_place(tmp_path) == place
    open_place(place, writing=False)
    with pytest.raises(StoreError, match="another store"):
        open_place(place._replace(id="other"), writing=True)
    (tmp_path / "store.json").write_text('{"format": 9}')
    with pytest.raises(FusejournalError, match="another version"):
        read_place(tmp_path)
    (tmp_path / "store.json").write_text("[")
    with pytest.raises(FusejournalError, match="cannot be read"):
        read_place(tmp_path)
    memory = MemoryStore()
    memory.objects["store"] = b'{"format": 3, "id": "x"}'
    with pytest.raises(StoreError, match="newer"):
        store_head(memory)
    memory.objects["store"] = b"{"
    with pytest.raises(StoreDamagedError):
        store_head(memory)


def test_a_version_of_another_history_is_not_gone_on_from(tmp_path: Path) -> None:
    write_samples(tmp_path).close()
    reader = JournalReader(tmp_path, UUID_OF_TESTS)
    store = MemoryStore()
    made = create_version(store, reader, Seq(12), "one", "node", 1, show_nothing)
    assert made.is_new
    version = made.version
    assert newest_usable([version], reader, Seq(20)) == version
    assert newest_usable([version], reader, Seq(11)) is None
    assert newest_usable([replace(version, chain=5)], reader, Seq(20)) is None
    with pytest.raises(UsageError, match="is there already"):
        create_version(store, reader, Seq(14), "one", "node", 1, show_nothing)
    with pytest.raises(UsageError, match="is version one already"):
        create_version(store, reader, Seq(12), "two", "node", 1, show_nothing)
    unnamed = create_version(store, reader, Seq(14), "", "node", 1, show_nothing).version
    again = create_version(store, reader, Seq(14), "late", "node", 1, show_nothing)
    assert (again.version, again.is_new) == (unnamed, False)
    later = create_version(store, reader, Seq(20), "two", "node", 1, show_nothing)
    assert later.version.parent == unnamed.key
    assert later.entry_count == 6


class _Raced(MemoryStore):
    """A store into which another node puts the same version just before."""

    def __init__(self, reader: JournalReader) -> None:
        super().__init__()
        self._reader = reader
        self._is_raced = False

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        if name.startswith("versions/") and not self._is_raced:
            self._is_raced = True
            create_version(self, self._reader, Seq(12), "theirs", "other", 1, show_nothing)
        super().put_new(name, data)


def test_a_name_is_not_lost_where_another_node_is_first(tmp_path: Path) -> None:
    write_samples(tmp_path).close()
    reader = JournalReader(tmp_path, UUID_OF_TESTS)
    with pytest.raises(UsageError, match="is version theirs already"):
        create_version(_Raced(reader), reader, Seq(12), "mine", "node", 1, show_nothing)
    made = create_version(_Raced(reader), reader, Seq(12), "", "node", 1, show_nothing)
    assert made.version.name == "theirs"


def test_a_long_history_is_folded_a_stretch_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little each entry changes."""
    write_samples(tmp_path).close()
    reader = JournalReader(tmp_path, UUID_OF_TESTS)
    whole = create_version(MemoryStore(), reader, Seq(20), "", "node", 1, show_nothing).version
    held: list[int] = []
    finish = Builder.finish

    def count(builder: Builder) -> Trees:
        held.append(builder._taken)
        return finish(builder)

    monkeypatch.setattr(Builder, "finish", count)
    monkeypatch.setattr(builder_module, "_FOLDED_ENTRIES_MAX", 6)
    made = create_version(MemoryStore(), reader, Seq(20), "", "node", 1, show_nothing).version
    assert held[:3] == [6, 6, 6]
    assert made.root == whole.root


def test_a_journal_without_its_beginning_needs_a_version(tmp_path: Path) -> None:
    from tests.support.workload import UUID_OF_WORKLOADS, make_directory, workload_of

    steps = [make_directory(Fid(2 + number), Fid(1), b"%d" % number) for number in range(30)]
    workload = workload_of(*steps, segment_entries=10)
    workload.write(tmp_path / "journal")
    store = MemoryStore()
    reader = JournalReader(tmp_path / "journal", UUID_OF_WORKLOADS)
    starts = [int(path.stem) for path in reader.segments()]
    base = create_version(store, reader, Seq(starts[1] - 1), "", "node", 1, show_nothing).version
    whole = create_version(MemoryStore(), reader, Seq(25), "", "node", 1, show_nothing).version
    for path in (tmp_path / "journal").glob(f"{starts[0]:020d}*"):
        path.unlink()
    reader = JournalReader(tmp_path / "journal", UUID_OF_WORKLOADS)
    made = create_version(store, reader, Seq(25), "", "node", 1, show_nothing).version
    assert (made.parent, made.root) == (base.key, whole.root)
    with pytest.raises(JournalError, match="nothing tells the tree before"):
        create_version(MemoryStore(), reader, Seq(25), "", "node", 1, show_nothing)
    # A version of another history, with the same seq.
    with pytest.raises(JournalError, match="nothing tells the tree before"):
        newest_usable([replace(base, chain=base.chain ^ 1)], reader, Seq(25))


def test_a_version_that_is_not_flushed_is_not_made(tmp_path: Path) -> None:
    store = LocalStore.make(tmp_path / "store")
    failpoints.listen(failpoints.PlannedFault("object.directory", 1, "EIO"))
    try:
        with pytest.raises(ObjectNotFlushedError):
            put_version(store, _VERSION)
    finally:
        failpoints.listen(None)
    assert put_version(store, _VERSION) == _VERSION
