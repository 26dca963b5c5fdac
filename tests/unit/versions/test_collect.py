"""Collections: what no version has goes, what one has stays, no matter who is at work in between
and wherever one is killed."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

from fusejournal.disk import failpoints
from fusejournal.journal.reader import JournalReader
from fusejournal.objects.local import LocalStore
from fusejournal.objects.store import ObjectStore, StoreError
from fusejournal.operations import Write
from fusejournal.types import ROOT_FID, Fid, Seq
from fusejournal.versions import blocks as blocks_module
from fusejournal.versions import content as content_module
from fusejournal.versions import creators
from fusejournal.versions.bases import pin
from fusejournal.versions.blocks import BlockReader, BlockWriter
from fusejournal.versions.collect import Collected, collect
from fusejournal.versions.create import create_version, delete_version
from fusejournal.versions.creators import (
    BusyError,
    open_plan,
    put_plan,
    reading,
    register,
    workers,
)
from fusejournal.versions.manifest import Version, make_store, read_versions
from fusejournal.versions.packs import StoreDamagedError, pack_name
from fusejournal.versions.verify import verify_version
from tests.support.objects import MemoryStore
from tests.support.volumes import show_nothing
from tests.support.workload import UUID_OF_WORKLOADS, make_directory, make_file, workload_of


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> JournalReader:
    """A journal of files in directories."""
    files = [make_file(Fid(3 + number), Fid(2), b"file%d" % number) for number in range(60)]
    workload = workload_of(make_directory(Fid(2), ROOT_FID, b"d"), *files)
    path = tmp_path_factory.mktemp("journal")
    workload.write(path)
    return JournalReader(path, UUID_OF_WORKLOADS)


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "_NODE_PACK_BYTES", 1500)


def all_versions(store: ObjectStore) -> list[Version]:
    """Those of all volumes, each of which can be read."""
    found = read_versions(store, None)
    assert found.unreadable == []
    return found.versions


def _create(store: ObjectStore, reader: JournalReader, seq: int) -> None:
    create_version(store, reader, Seq(seq), "", "node", 1, show_nothing)


def _collect(store: ObjectStore) -> Collected:
    return collect(store, "node", show_nothing)


def _check(store: ObjectStore) -> None:
    """All versions are whole, and all that an index tells of is there."""
    blocks = BlockReader(store)
    for version in all_versions(store):
        verify_version(blocks, version, show_nothing, with_data=True)
    for table in blocks.indexes.values():
        for id_, _ in table:
            blocks.read(id_)


def _delete(store: ObjectStore, at: int) -> None:
    delete_version(store, all_versions(store)[at].key, "node")


def test_what_no_version_has_goes(reader: JournalReader) -> None:
    store = MemoryStore()
    for seq in range(10, 60, 5):
        _create(store, reader, seq)
    for _ in range(9):
        _delete(store, 0)
    (kept,) = all_versions(store)
    before = sum(map(len, store.objects.values()))
    planned = collect(store, "node", show_nothing, dry_run=True)
    assert planned.planned_packs > 3
    done = _collect(store)
    assert done.removed_packs >= planned.planned_packs
    assert done.removed_bytes > 0
    assert not done.waiting_for
    assert sum(map(len, store.objects.values())) < before / 2
    _check(store)
    assert all_versions(store) == [kept]
    assert _collect(store) == Collected(0, 0, 0, 0, ())
    # The next version is made of the one that was kept.
    _create(store, reader, 60)
    _check(store)
    fresh = MemoryStore()
    _create(fresh, reader, 60)
    assert all_versions(store)[-1].root == all_versions(fresh)[-1].root


def test_packs_of_killed_creators_go(reader: JournalReader) -> None:
    store = MemoryStore()
    _create(store, reader, 20)
    writer = BlockWriter(store)
    for number in range(100):
        writer.add_node(b"%d" % number * 50)  # some packs are put, and no index tells of them
    names = set(store.names("packs/"))
    assert _collect(store).removed_packs >= 1
    assert set(store.names("packs/")) < names
    _check(store)


def test_nothing_is_collected_where_a_version_lacks_a_block(reader: JournalReader) -> None:
    store = MemoryStore()
    _create(store, reader, 20)
    _create(store, reader, 40)
    _delete(store, 0)
    for index in list(store.names("index/")):
        del store.objects[index]
    before = set(store.names("packs/"))
    with pytest.raises(StoreDamagedError):
        _collect(store)
    assert set(store.names("packs/")) == before
    assert workers(store) == []


def test_nothing_goes_while_the_version_of_a_base_is_gone(reader: JournalReader) -> None:
    store = MemoryStore()
    _create(store, reader, 20)
    _create(store, reader, 40)
    base, _ = all_versions(store)
    pin(store, base.key, base.uuid, 7)
    content = store.objects.pop(f"versions/{base.key}")
    before = set(store.names("packs/"))
    done = _collect(store)
    assert [one.key for one in done.unreadable] == [base.key]
    assert "which a journal needs, is gone" in str(done.unreadable[0].error)
    assert not done.removed_packs
    assert set(store.names("packs/")) == before
    store.objects[f"versions/{base.key}"] = content
    assert _collect(store).unreadable == ()
    _check(store)


def test_a_collection_waits_for_who_began_before(
    reader: JournalReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    _create(store, reader, 20)
    _create(store, reader, 40)
    _delete(store, 0)
    creator = register(store, "creator", "east")
    waiting = _collect(store)
    assert [one.node for one in waiting.waiting_for] == ["east"]
    assert waiting.planned_packs
    with pytest.raises(BusyError, match="under way"):
        _delete(store, 0)
    # One that begins now has seen the plan, and does not hold it up.
    register(store, "creator", "west")
    assert [one.node for one in _collect(store).waiting_for] == ["east"]
    # Its process ended, or the machine was started anew.
    monkeypatch.setattr(creators, "boot_id", lambda: "another boot")
    assert workers(store) == []
    assert not creator.nonce.startswith("-")
    assert _collect(store).removed_packs
    _check(store)


def test_who_is_dead_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    worker = register(store, "creator", "east")
    assert workers(store) == [worker]
    monkeypatch.setattr(creators, "_began", lambda _: "")
    assert workers(store) == []
    with pytest.raises(BusyError, match="taken for dead"):
        creators.check_registered(store, worker)
    monkeypatch.undo()
    # Another machine's: only a person knows.
    register(store, "creator", "east")
    monkeypatch.setattr(creators, "boot_id", lambda: "another boot")
    monkeypatch.setattr(creators, "_machine", lambda: "another machine")
    assert len(workers(store)) == 1


def test_a_clone_of_a_machine_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines of one image have one machine id, and each a boot of its own: one must not take the
    other for a boot of its own past."""
    for name, id_ in (("_MACHINE_ID", b"of the image"), ("_HARDWARE_ID", b"one")):
        (tmp_path / name).write_bytes(id_)
        monkeypatch.setattr(creators, name, tmp_path / name)
    store = MemoryStore()
    worker = register(store, "creator", "east")
    monkeypatch.setattr(creators, "boot_id", lambda: "another boot")
    (tmp_path / "_HARDWARE_ID").write_bytes(b"another")
    assert workers(store) == [worker]
    (tmp_path / "_HARDWARE_ID").write_bytes(b"one")
    assert workers(store) == []


def test_what_is_read_stays_until_that_is_over(reader: JournalReader) -> None:
    """Though the version is deleted meanwhile; others can be deleted, too."""
    store = MemoryStore()
    for seq in (20, 40, 60):
        _create(store, reader, seq)
    with reading(store, "east"):
        first, *_ = all_versions(store)
        blocks = BlockReader(store)
        _delete(store, 0)
        held = _collect(store)
        assert [one.node for one in held.waiting_for] == ["east"]
        assert open_plan(store) is None
        _delete(store, 0)
        verify_version(blocks, first, show_nothing, with_data=True)
    assert workers(store) == []
    assert _collect(store).removed_packs
    with pytest.raises(StoreDamagedError):
        verify_version(BlockReader(store), first, show_nothing, with_data=True)
    _check(store)


def test_who_reads_at_every_call_of_a_collection(reader: JournalReader) -> None:
    """A version that it has found then is there to the end, deleted and collected or not."""
    number = 0
    while True:
        number += 1
        store = _Interrupted(_before(reader))
        store.number = number
        with ExitStack() as stack:
            found: list[Version] = []

            def read(
                store: _Interrupted = store, stack: ExitStack = stack, found: list[Version] = found
            ) -> None:
                stack.enter_context(reading(store, "east"))
                found += all_versions(store)

            store.deed = read
            _collect(store)
            if store.calls < number:
                break
            store.number = -1
            while all_versions(store):
                try:
                    _delete(store, 0)
                except BusyError:
                    break
            _collect(store)
            for version in found:
                verify_version(BlockReader(store), version, show_nothing, with_data=True)
    assert number > 20


def test_a_store_that_takes_no_object_is_read(tmp_path: Path) -> None:
    LocalStore.make(tmp_path / "store")
    store = LocalStore(tmp_path / "store")
    failpoints.listen(failpoints.PlannedFault("object.*", 1, "EROFS+"))
    try:
        with reading(store, "east"):
            assert workers(store) == []
    finally:
        failpoints.listen(None)


def test_one_collection_at_a_time(reader: JournalReader) -> None:
    store = MemoryStore()
    _create(store, reader, 20)
    other = register(store, "collector", "east")
    with pytest.raises(BusyError, match="east is collecting"):
        _collect(store)
    creators.unregister(store, other)
    put_plan(store, 1, frozenset())
    with pytest.raises(BusyError, match="planned meanwhile"):
        put_plan(store, 1, frozenset())
    _collect(store)
    assert open_plan(store) is None


def test_a_creator_taken_for_dead_publishes_nothing(reader: JournalReader) -> None:
    class Forgetting(MemoryStore):
        def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
            super().put_new(name, data)
            if name.startswith("versions/"):
                for active in list(self.names("active/")):
                    self.remove(active)

    store = Forgetting()
    with pytest.raises(BusyError, match="taken for dead"):
        _create(store, reader, 20)
    assert all_versions(store) == []


# -- in between, at every call ---------------------------------------------------------------------


class _Interrupted(MemoryStore):
    """A store at whose *number*-th call something else is done first."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        super().__init__()
        self.objects = dict(objects)
        self.calls = 0
        self.number = -1
        self.deed: Callable[[], None] = lambda: None

    def _call(self) -> None:
        self.calls += 1
        if self.calls == self.number:
            self.deed()

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self._call()
        super().put_new(name, data)

    def get(self, name: str) -> bytes:
        self._call()
        return super().get(name)

    def get_range(self, name: str, start: int, length: int) -> bytes:
        self._call()
        return MemoryStore.get(self, name)[start : start + length]

    def names(self, prefix: str) -> Iterator[str]:
        self._call()
        return super().names(prefix)

    def remove(self, name: str) -> None:
        self._call()
        super().remove(name)


def _before(reader: JournalReader) -> dict[str, bytes]:
    """A store with something to collect, and a version to build on."""
    store = MemoryStore()
    for seq in (10, 20, 30, 40, 50):
        _create(store, reader, seq)
    for _ in range(3):
        _delete(store, 0)
    return store.objects


def _interrupt(
    before: dict[str, bytes],
    deed: Callable[[ObjectStore], None],
    others: Callable[[ObjectStore], None],
) -> int:
    """Does *others* at every call that *deed* makes, and finishes the collection. Returns how many
    calls there are."""
    number = 0
    while True:
        number += 1
        store = _Interrupted(before)
        store.number = number

        def interrupted(store: _Interrupted = store) -> None:
            with suppress(BusyError):
                others(store)

        store.deed = interrupted
        with suppress(BusyError):
            deed(store)
        if store.calls < number:
            return number
        store.number = -1
        _check(store)
        for worker in workers(store):
            creators.unregister(store, worker)
        while _collect(store).planned_packs:
            pass
        _check(store)
        assert workers(store) == []
        assert open_plan(store) is None


def test_a_collection_at_every_call_of_a_creator(reader: JournalReader) -> None:
    calls = _interrupt(
        _before(reader),
        lambda store: _create(store, reader, 60),
        lambda store: _collect(store) and None,
    )
    assert calls > 20


def test_a_creator_at_every_call_of_a_collection(reader: JournalReader) -> None:
    calls = _interrupt(
        _before(reader),
        lambda store: _collect(store) and None,
        lambda store: _create(store, reader, 60),
    )
    assert calls > 20


def test_creating_and_deleting_at_every_call_of_a_collection(reader: JournalReader) -> None:
    """A version that was deleted may come again, of the very same blocks."""

    def others(store: ObjectStore) -> None:
        _delete(store, 0)
        _create(store, reader, 60)
        _delete(store, 0)
        _create(store, reader, 20)

    _interrupt(_before(reader), lambda store: _collect(store) and None, others)


def test_deleting_what_a_creator_builds_on(reader: JournalReader) -> None:
    def others(store: ObjectStore) -> None:
        while all_versions(store):
            _delete(store, 0)
        _collect(store)

    _interrupt(_before(reader), lambda store: _create(store, reader, 60), others)


def test_a_collection_goes_on_at_every_call_of_a_creator(
    reader: JournalReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One who has seen the plan, and makes a version of blocks that are still there, and planned
    to go."""
    store = MemoryStore()
    store.objects = _before(reader)
    monkeypatch.setattr(blocks_module, "_INDEXES_MAX", 1)
    waited_for = register(store, "creator", "east")
    assert _collect(store).waiting_for

    def others(store: ObjectStore) -> None:
        creators.unregister(store, waited_for)
        _collect(store)

    for seq in (20, 60):
        _interrupt(store.objects, partial(_create, reader=reader, seq=seq), others)


# -- killed at every call --------------------------------------------------------------------------


def test_a_collection_that_ends_at_any_call_is_gone_on_with(
    tmp_path: Path, reader: JournalReader
) -> None:
    made = LocalStore.make(tmp_path / "made")
    make_store(made)
    for name, content in _before(reader).items():
        made.put_new(name, content)
    number = 0
    while True:
        number += 1
        directory = tmp_path / f"store{number}"
        shutil.copytree(tmp_path / "made", directory)
        store = LocalStore(directory, writing=True)
        plan = failpoints.PlannedFault("object.*", number, "EIO+")
        failpoints.listen(plan)
        try:
            _collect(store)
            break
        except StoreError:
            pass
        finally:
            failpoints.listen(None)
        store = LocalStore(directory, writing=True)
        _check(store)
        # It could not take its own object away.
        for worker in workers(store):
            creators.unregister(store, worker)
        _create(store, reader, 60)
        _check(store)
        while _collect(store).planned_packs:
            pass
        _check(store)
        assert len(all_versions(store)) == 3
        shutil.rmtree(directory)
    assert number > 20


def test_a_pack_that_is_gone_is_found_without_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_module, "_INLINE_BYTES_MAX", 0)
    workload_of(make_file(Fid(2), ROOT_FID, b"file"), Write(Fid(2), 0, None)).write(tmp_path)
    store = MemoryStore()
    _create(store, JournalReader(tmp_path, UUID_OF_WORKLOADS), 4)
    (version,) = all_versions(store)
    blocks = BlockReader(store)
    assert verify_version(blocks, version, show_nothing, with_data=True).bytes == 1
    verify_version(blocks, version, show_nothing, with_data=False)
    places = [place for table in blocks.indexes.values() for _, place in table]
    (chunk,) = (place for place in places if place.plain_bytes == 1)
    store.remove(pack_name(chunk.pack))
    with pytest.raises(StoreDamagedError, match="missing with its pack"):
        verify_version(BlockReader(store), version, show_nothing, with_data=False)
