"""A flipped byte in a store: what is damaged is named, nothing that it may need goes, and all else
goes on."""

from dataclasses import replace
from pathlib import Path

import pytest

from fusejournal.journal.reader import JournalReader
from fusejournal.objects.store import StoreError
from fusejournal.types import ROOT_FID, Epoch, Fid, Seq
from fusejournal.versions import blocks as blocks_module
from fusejournal.versions.base_tree import VersionBase, base_of
from fusejournal.versions.blocks import BlockReader, BlockWriter
from fusejournal.versions.collect import Collected, collect
from fusejournal.versions.create import (
    Created,
    create_version,
    delete_version,
)
from fusejournal.versions.creators import BusyError, open_plan, put_plan, register, workers
from fusejournal.versions.histories import histories, newest_usable
from fusejournal.versions.manifest import read_versions
from fusejournal.versions.packs import StoreDamagedError
from fusejournal.versions.reindex import make_indexes_anew
from fusejournal.versions.verify import verify_version
from tests.support.objects import MemoryStore
from tests.support.workload import UUID_OF_WORKLOADS, make_directory, make_file, workload_of


def _nothing(_: int, __: int | None) -> None:
    """No progress to be shown."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> JournalReader:
    """A journal of files in a directory."""
    files = [make_file(Fid(3 + number), Fid(2), b"file%d" % number) for number in range(60)]
    path = tmp_path_factory.mktemp("journal")
    workload_of(make_directory(Fid(2), ROOT_FID, b"d"), *files).write(path)
    return JournalReader(path, UUID_OF_WORKLOADS)


@pytest.fixture
def store(reader: JournalReader, monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """A store with versions of seqs 10 to 50, and something to collect."""
    monkeypatch.setattr(blocks_module, "_NODE_PACK_BYTES", 1500)
    store = MemoryStore()
    for seq in (10, 20, 30, 40, 50):
        _create(store, reader, seq)
    for key in [one.key for one in read_versions(store, None).versions][:2]:
        delete_version(store, key, "node")
    return store


def _create(store: MemoryStore, reader: JournalReader, seq: int) -> Created:
    return create_version(store, reader, Seq(seq), "", "node", 1, _nothing)


def _collect(store: MemoryStore) -> Collected:
    return collect(store, "node", _nothing)


def _check(store: MemoryStore) -> None:
    found = read_versions(store, None)
    assert found.unreadable == []
    for version in found.versions:
        verify_version(BlockReader(store), version, _nothing, with_data=True)


def _flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


@pytest.mark.parametrize("at", range(0, 1000, 37))
def test_a_spoilt_version_stops_nobody(store: MemoryStore, reader: JournalReader, at: int) -> None:
    name = list(store.names("versions/"))[1]
    whole = store.objects[name]
    store.objects[name] = _flip(whole, at % len(whole))
    found = read_versions(store, UUID_OF_WORKLOADS)
    assert [one.seq for one in found.versions] == [30, 50]
    assert [one.key for one in found.unreadable] == [name.removeprefix("versions/")]
    assert name in str(found.unreadable[0].error)
    made = _create(store, reader, 60)
    assert made.is_new
    assert [one.key for one in made.unreadable] == [found.unreadable[0].key]
    delete_version(store, found.versions[0].key, "node")
    packs = set(store.names("packs/"))
    done = _collect(store)
    assert (done.removed_packs, [one.key for one in done.unreadable]) == (
        0,
        [found.unreadable[0].key],
    )
    assert set(store.names("packs/")) == packs
    assert collect(store, "node", _nothing, dry_run=True).planned_packs == 0
    # It comes back, from another copy of the store: all that it needs is there.
    store.objects[name] = whole
    _check(store)
    assert _collect(store).removed_packs
    _check(store)


def test_a_spoilt_version_can_be_given_up(store: MemoryStore, reader: JournalReader) -> None:
    name = list(store.names("versions/"))[1]
    store.objects[name] = b"{"
    writer = BlockWriter(store)
    for number in range(100):
        writer.add_node(b"%d" % number * 50)
    # Packs of which no index tells are no version's, whatever a version needs.
    assert _collect(store).removed_packs
    delete_version(store, name.removeprefix("versions/"), "node")
    assert _collect(store).removed_packs
    _check(store)


def test_a_plan_removes_nothing_that_a_version_spoilt_since_may_need(
    store: MemoryStore, reader: JournalReader
) -> None:
    creator = register(store, "creator", "east")
    assert _collect(store).waiting_for
    packs = set(store.names("packs/"))
    assert open_plan(store) is not None
    name = next(iter(store.names("versions/")))
    whole, store.objects[name] = store.objects[name], b""
    store.remove(creator.name)
    done = _collect(store)
    assert done.removed_packs == 0
    assert len(done.unreadable) == 1
    assert set(store.names("packs/")) == packs
    assert open_plan(store) is None
    store.objects[name] = whole
    assert _collect(store).removed_packs
    _check(store)


@pytest.mark.parametrize("at", [0, 9, 40, -1])
def test_a_spoilt_index_stops_nobody(store: MemoryStore, reader: JournalReader, at: int) -> None:
    """The blocks it told of are stored again, or found in the packs."""
    names = list(store.names("index/"))
    whole = dict(store.objects)
    for name in names:
        store.objects = dict(whole)
        store.objects[name] = _flip(whole[name], at % len(whole[name]))
        assert len(read_versions(store, None).versions) == 3
        assert any(name in str(fault) for fault in _create(store, reader, 60).faults)
        delete_version(store, read_versions(store, None).versions[0].key, "node")
        with pytest.raises(StoreDamagedError, match=rf"{name}: .*--repair'.*nothing is collected"):
            _collect(store)
        done = make_indexes_anew(store, "node", _nothing)
        assert (done.indexes, done.lost) == ((name,), ())
        _check(store)
        assert make_indexes_anew(store, "node", _nothing).indexes == ()
        _collect(store)
        _check(store)
        assert workers(store) == []


def test_a_version_is_made_of_an_earlier_one_where_the_nearest_is_spoilt(
    reader: JournalReader,
) -> None:
    store = MemoryStore()
    _create(store, reader, 20)
    packs = set(store.names("packs/"))
    nearest = _create(store, reader, 40).version
    (pack,) = set(store.names("packs/")) - packs
    store.objects[pack] = _flip(store.objects[pack], 40)
    made = _create(store, reader, 50)
    assert [str(fault).startswith(f"memory/{pack}: block ") for fault in made.faults] == [True]
    assert made.version.parent != nearest.key
    verify_version(BlockReader(store), made.version, _nothing, with_data=True)
    fresh = MemoryStore()
    assert made.version.root == _create(fresh, reader, 50).version.root


def test_a_spoilt_pack_is_told_when_indexes_are_made_anew(
    store: MemoryStore, reader: JournalReader
) -> None:
    whole = dict(store.objects)
    packs = sorted(store.names("packs/"))
    for name in store.names("index/"):
        store.objects[name] = b"spoilt"
    store.objects[packs[0]] = whole[packs[0]][:-1]
    done = make_indexes_anew(store, "node", _nothing)
    assert [packs[0] in str(fault) for fault in done.lost] == [True]
    assert done.packs == len(packs)
    register(store, "collector", "east")
    with pytest.raises(BusyError, match="east is collecting"):
        make_indexes_anew(store, "node", _nothing)


def test_a_stopped_remaking_of_indexes_goes_on(store: MemoryStore, reader: JournalReader) -> None:
    """Killed between the new index and the removal of the spoilt one, and while a plan is open."""

    class Killed(MemoryStore):
        def remove(self, name: str) -> None:
            if name.startswith("index/"):
                raise KeyboardInterrupt
            super().remove(name)

    put_plan(store, 7, frozenset())
    killed = Killed()
    killed.objects = store.objects
    for name in store.names("index/"):
        store.objects[name] += b"!"
    with pytest.raises(KeyboardInterrupt):
        make_indexes_anew(killed, "node", _nothing)
    assert make_indexes_anew(store, "node", _nothing).indexes
    _check(store)
    _collect(store)
    _collect(store)
    _check(store)


# -- histories that lost ---------------------------------------------------------------------------


def test_versions_of_other_histories_are_told_apart(reader: JournalReader, tmp_path: Path) -> None:
    store = MemoryStore()
    first = _create(store, reader, 10).version
    here = _create(store, reader, 20).version
    lost = replace(here, chain=here.chain ^ 1, parent=first.key)
    of_lost = replace(here, seq=Seq(1000), epoch=Epoch(5), parent=lost.key)
    old_reign = replace(here, seq=Seq(1001), epoch=Epoch(0), parent=None)
    ahead = replace(here, seq=Seq(1000), epoch=Epoch(5), parent=here.key, chain=3)
    versions = [first, lost, here, of_lost, old_reign, ahead]
    wanted = ["this", "lost", "this", "lost", "lost", "ahead"]
    found = histories(versions, reader)
    assert [found[one.key] for one in versions] == wanted
    assert newest_usable(versions, reader, Seq(60)) == here
    assert newest_usable([lost, of_lost, old_reign, ahead], reader, Seq(60)) is None


def test_what_a_version_was_made_of_is_of_its_history(tmp_path: Path) -> None:
    """Nothing else tells it, once the journal has lost its beginning."""
    steps = [make_directory(Fid(2 + number), Fid(1), b"%d" % number) for number in range(30)]
    workload_of(*steps, segment_entries=10).write(tmp_path)
    reader = JournalReader(tmp_path, UUID_OF_WORKLOADS)
    store = MemoryStore()
    old, base = (_create(store, reader, seq).version for seq in (5, 25))
    unknown = replace(old, seq=Seq(6), chain=1)
    for path in tmp_path.glob(f"{int(reader.segments()[0].stem):020d}*"):
        path.unlink()
    reader = JournalReader(tmp_path, UUID_OF_WORKLOADS)
    found = histories([old, unknown, base], reader)
    assert [found[one.key] for one in (old, unknown, base)] == ["this", "before", "this"]


def test_whether_a_base_is_there_is_known_without_an_index(store: MemoryStore) -> None:
    version = read_versions(store, None).versions[0]
    base = base_of(version, "store")
    for name in list(store.names("index/")):
        store.objects[name] = b"spoilt"
    VersionBase(base, lambda: store).check_there()
    other = VersionBase(replace(base, inodes=base.names), lambda: store)
    with pytest.raises(StoreDamagedError, match="is not the version that it was"):
        other.check_there()
    store.remove(f"versions/{version.key}")
    with pytest.raises(StoreError, match="is missing"):
        VersionBase(base, lambda: store).check_there()
