"""Packs that an index tells of, and that are gone: lost with a disk, left out when a store was
copied, or collected before their creator, which was taken for dead, put its index. What is in
another pack counts, and what is nowhere is stored again by who has it."""

from pathlib import Path
from random import Random

import pytest

from fusejournal.journal.reader import JournalReader
from fusejournal.objects.store import StoreError, StoreFullError
from fusejournal.operations import Write
from fusejournal.types import ROOT_FID, Fid
from fusejournal.versions.blocks import BlockReader, BlockWriter
from fusejournal.versions.collect import collect
from fusejournal.versions.create import create_version
from fusejournal.versions.creators import unregister, workers
from fusejournal.versions.manifest import read_versions
from fusejournal.versions.packs import StoreDamagedError, pack_name
from fusejournal.versions.verify import verify_version
from tests.support.objects import MemoryStore
from tests.support.volumes import show_nothing
from tests.support.workload import UUID_OF_WORKLOADS, make_file, workload_of

_ONE = b"one block" * 10
_TWO = b"another one" * 10


def _lose_packs(store: MemoryStore) -> dict[str, bytes]:
    """Has all packs be gone. Returns them."""
    lost = {name: store.objects.pop(name) for name in list(store.names("packs/"))}
    assert lost
    return lost


def _put(store: MemoryStore, *contents: bytes) -> list[bytes]:
    writer = BlockWriter(store)
    ids = [writer.add_chunk(one) for one in contents]
    writer.finish()
    return ids


def test_what_is_gone_is_stored_again() -> None:
    store = MemoryStore()
    (one,) = _put(store, _ONE)
    _lose_packs(store)
    with pytest.raises(StoreDamagedError, match="is missing with its pack"):
        BlockReader(store).read(one)
    assert _put(store, _ONE) == [one]
    assert BlockReader(store).read(one) == _ONE
    assert not BlockWriter(store).has(_put(MemoryStore(), _TWO)[0])
    assert BlockWriter(store).has(one)


def _keep(store: MemoryStore, reader: JournalReader) -> None:
    create_version(store, reader, reader.head()[0], "", "node", 1, show_nothing)


def _check(store: MemoryStore) -> None:
    blocks = BlockReader(store)
    (version,) = read_versions(store, None).versions
    for with_data in (True, False):
        verify_version(blocks, version, show_nothing, with_data=with_data)


@pytest.fixture
def reader(tmp_path: Path) -> JournalReader:
    """A journal of files with contents."""
    files = [make_file(Fid(2 + number), ROOT_FID, b"file%d" % number) for number in range(20)]
    writes = [Write(one.fid, 0, None) for one in files]
    workload = workload_of(*files, *writes)
    random = Random(1)
    workload.steps = [
        step._replace(data=random.randbytes(5000)) if step.data else step for step in workload.steps
    ]
    workload.write(tmp_path / "journal")
    return JournalReader(tmp_path / "journal", UUID_OF_WORKLOADS)


def _mix(store: MemoryStore, reader: JournalReader) -> set[bytes]:
    """Has a version be in *store* all whose packs are lost, and what was in them be in one other,
    beside a block that is not used. Returns the packs that are lost."""
    _keep(store, reader)
    blocks = BlockReader(store)
    plain = [blocks.read(id_) for table in blocks.indexes.values() for id_, _ in table]
    lost = _lose_packs(store)
    _put(store, *plain, Random(2).randbytes(100_000))
    return {bytes.fromhex(name.removeprefix("packs/")) for name in lost}


def test_the_copy_that_is_there_stays(reader: JournalReader) -> None:
    """A collection must not take the copy that is left for one too many, because more of the pack
    that is lost was used."""
    store = MemoryStore()
    lost = _mix(store, reader)
    _check(store)
    for _ in range(3):
        collect(store, "node", show_nothing)
        _check(store)
    assert not lost & {
        pack for table in BlockReader(store).indexes.values() for pack in table.packs
    }


def test_the_copy_that_is_whole_stays(reader: JournalReader) -> None:
    """A collection must not take a block that was stored again for one too many, because more of
    the pack with the spoilt one is used."""
    store = MemoryStore()
    _keep(store, reader)
    blocks = BlockReader(store)
    chunks = {
        id_: place
        for table in blocks.indexes.values()
        for id_, place in table
        if place.plain_bytes == 5000
    }
    id_, place = max(chunks.items())
    plain = blocks.read(id_)
    name = pack_name(place.pack)
    spoilt = bytearray(store.objects[name])
    spoilt[place.offset] ^= 1
    store.objects[name] = bytes(spoilt)
    with pytest.raises(StoreDamagedError):
        _check(store)
    writer = BlockWriter(store)
    writer.spoilt.add((place.pack, id_))
    # Beside what is not used, so that the spoilt one is in the better home.
    writer.add_chunk(Random(2).randbytes(100_000))
    assert writer.add_chunk(plain) == id_
    writer.finish()
    _check(store)
    for _ in range(3):
        collect(store, "node", show_nothing)
        _check(store)


def test_what_a_creator_leaves_that_was_taken_for_dead_counts_for_nothing(
    reader: JournalReader,
) -> None:
    """Its packs were collected, and then it put the index that tells of them."""

    class Interrupted(MemoryStore):
        def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
            if name.startswith("index/") and (ours := workers(self)):
                for worker in ours:
                    unregister(self, worker)  # a person says so, of a machine that sleeps
                assert collect(self, "other", show_nothing).removed_packs
            super().put_new(name, data)

    store = Interrupted()
    with pytest.raises(StoreError):
        _keep(store, reader)
    resumed = MemoryStore()
    resumed.objects = store.objects
    _keep(resumed, reader)
    _check(resumed)


def test_what_nothing_has_goes_from_a_full_store(reader: JournalReader) -> None:
    """There is no room to write a pack anew of which a part is used: one of which nothing is goes
    all the same, and makes some."""

    class Full(MemoryStore):
        is_full = False

        def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
            if self.is_full and name.startswith("packs/"):
                raise StoreFullError(self.where, "no space left")
            super().put_new(name, data)

    store = Full()
    _mix(store, reader)
    (unused,) = _put(store, Random(3).randbytes(50_000))
    store.is_full = True
    collect(store, "node", show_nothing)
    _check(store)
    assert BlockReader(store).place(unused) is None
    before = len(list(store.names("packs/")))
    assert before == 1
    with pytest.raises(StoreFullError):
        collect(store, "node", show_nothing)
    assert workers(store) == []
    store.is_full = False
    assert collect(store, "node", show_nothing).rewritten_bytes > 0
    _check(store)
    assert sum(map(len, store.objects.values())) < 150_000
