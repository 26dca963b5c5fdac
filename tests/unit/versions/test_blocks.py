"""Blocks and packs: found again, damage named, and whole at every moment at which a writer dies."""

import random
from pathlib import Path

import pytest

from fusejournal.disk import failpoints
from fusejournal.objects.local import LocalStore
from fusejournal.objects.store import ObjectExistsError, StoreError, put_same
from fusejournal.versions import blocks as module
from fusejournal.versions.blocks import BlockReader, BlockWriter, read_indexes
from fusejournal.versions.packs import (
    IndexTable,
    Pack,
    Place,
    StoreDamagedError,
    block_id,
    encode_index,
    pack_name,
    plain_block,
    read_directory,
)
from tests.support.objects import MemoryStore


def _fill(store: MemoryStore | LocalStore, *contents: bytes) -> list[bytes]:
    writer = BlockWriter(store)
    ids = [writer.add_chunk(content) for content in contents]
    writer.finish()
    return ids


def test_blocks_are_found_again() -> None:
    store = MemoryStore()
    contents = [b"text " * 1000, random.Random(1).randbytes(5000), b"x"]
    ids = _fill(store, *contents)
    reader = BlockReader(store)
    assert [reader.read(id_) for id_ in ids] == contents
    assert reader.place(block_id(b"none")) is None
    with pytest.raises(StoreDamagedError, match="missing"):
        reader.read(block_id(b"none"))


def test_blocks_are_read_before_their_pack_is_put() -> None:
    writer = BlockWriter(MemoryStore())
    id_ = writer.add_chunk(b"content " * 100)
    assert writer.read(id_) == b"content " * 100


def test_a_block_is_stored_once() -> None:
    store = MemoryStore()
    _fill(store, b"one", b"two", b"one")
    before = dict(store.objects)
    _fill(store, b"two", b"one")
    assert store.objects == before


def test_full_packs_are_put_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DATA_PACK_BYTES", 10_000)
    monkeypatch.setattr(module, "_INDEX_BLOCKS", 10)
    store = MemoryStore()
    contents = [random.Random(number).randbytes(3000) for number in range(40)]
    writer = BlockWriter(store)
    ids = [writer.add_chunk(content) for content in contents]
    # A writer that is killed here has not worked for nothing.
    assert len(list(store.names("packs/"))) == 10
    assert len(read_indexes(store)) == 3
    assert [writer.read(id_) for id_ in ids] == contents
    writer.finish()
    assert [BlockReader(store).read(id_) for id_ in ids] == contents


def test_many_small_indexes_are_merged() -> None:
    store = MemoryStore()
    ids = [_fill(store, b"%d" % number)[0] for number in range(20)]
    assert len(read_indexes(store)) == 20
    writer = BlockWriter(store)
    writer.merge_indexes()
    assert len(read_indexes(store)) < 10
    for reader in (writer, BlockReader(store)):
        assert [reader.read(id_) for id_ in ids] == [b"%d" % number for number in range(20)]
    before = dict(store.objects)
    BlockWriter(store).merge_indexes()
    assert store.objects == before


class _Merging(MemoryStore):
    """A store whose indexes are merged while they are read."""

    merged = False

    def get(self, name: str) -> bytes:
        if name.startswith("index/") and not self.merged:
            self.merged = True
            BlockWriter(self).merge_indexes()
        return super().get(name)


def test_indexes_that_are_merged_meanwhile_are_read() -> None:
    store = _Merging()
    ids = [_fill(store, b"%d" % number)[0] for number in range(20)]
    store.merged = False
    reader = BlockReader(store)
    assert all(reader.place(id_) is not None for id_ in ids)


@pytest.mark.parametrize("step", range(0, 40, 3))
def test_a_writer_that_ends_at_any_call_leaves_all_as_it_was(tmp_path: Path, step: int) -> None:
    store = LocalStore.make(tmp_path / "store")
    kept = [_fill(store, b"kept %d" % number)[0] for number in range(17)]
    plan = failpoints.PlannedFault("object.*", step + 1, "EIO+")
    failpoints.listen(plan)
    try:
        writer = BlockWriter(store)
        writer.add_chunk(b"new")
        writer.finish()
        writer.merge_indexes()
    except StoreError:
        pass
    finally:
        failpoints.listen(None)
    store = LocalStore(tmp_path / "store", writing=True)
    reader = BlockReader(store)
    assert [reader.read(id_) for id_ in kept] == [b"kept %d" % number for number in range(17)]
    # All that an index tells of is there.
    for table in reader.indexes.values():
        for id_, _ in table:
            assert block_id(reader.read(id_)) == id_
    new = BlockWriter(store)
    new.add_chunk(b"new")
    new.finish()
    new.merge_indexes()
    assert BlockReader(store).read(block_id(b"new")) == b"new"


# -- damage ----------------------------------------------------------------------------------------


def test_spoilt_objects_are_named() -> None:
    store = MemoryStore()
    content = random.Random(3).randbytes(1000)
    (id_,) = _fill(store, content)
    (pack,), (index,) = store.names("packs/"), store.names("index/")
    whole = dict(store.objects)
    reader = BlockReader(store)
    store.objects[pack] = whole[pack][:500] + b"!" + whole[pack][501:]
    with pytest.raises(StoreDamagedError, match="not what was put there"):
        reader.read(id_)
    store.objects[pack] = whole[pack][:100]
    with pytest.raises(StoreDamagedError):
        reader.read(id_)
    del store.objects[pack]
    with pytest.raises(StoreDamagedError, match="is missing"):
        reader.read(id_)
    store.objects[index] = whole[index] + b"!"
    with pytest.raises(StoreDamagedError, match="not what was put there"):
        read_indexes(store)
    spoilt = BlockReader(store)
    with pytest.raises(StoreDamagedError, match=rf"is missing; memory/{index}: .*--repair'"):
        spoilt.read(id_)


def test_a_block_is_read_from_whichever_pack_has_it() -> None:
    store = MemoryStore()
    content = random.Random(3).randbytes(1000)
    (id_,) = _fill(store, content)
    (pack,) = store.names("packs/")
    store.objects[pack] = store.objects[pack][:500] + b"!" + store.objects[pack][501:]
    writer = BlockWriter(store)
    assert writer.add_chunk(content) == id_
    writer.finish()
    assert writer.added_blocks == 0  # no reader has had it yet
    with pytest.raises(StoreDamagedError):
        writer.read(id_)
    assert writer.add_chunk(content) == id_
    assert writer.read(id_) == content
    writer.finish()
    assert (writer.added_blocks, writer.read(id_)) == (1, content)
    assert BlockReader(store).read(id_) == content


def test_compressed_bytes_that_are_spoilt_are_named() -> None:
    pack = Pack(nodes=False)
    plain = b"text " * 1000
    place = pack.add(block_id(plain), plain)
    stored = pack.stored(place)
    assert plain_block("x", block_id(plain), stored, len(plain)) == plain
    for spoilt in (b"\0" + stored[1:], stored[:-3], stored[:20]):
        with pytest.raises(StoreDamagedError):
            plain_block("x", block_id(plain), spoilt, len(plain))


def test_a_pack_tells_what_is_in_it() -> None:
    pack = Pack(nodes=True)
    contents = [b"one", b"two " * 100]
    for content in contents:
        pack.add(block_id(content), content)
    id_, packed, blocks = pack.finish()
    content = bytes(packed)
    assert pack_name(id_) == f"packs/{block_id(content).hex()}"
    told = {row[0]: Place(id_, *row[1:]) for row in read_directory("x", content)}
    assert told == dict(blocks)
    for spoilt in (b"", b"x" * 100, content[:-1], content[:8] + content[-8:]):
        with pytest.raises(StoreDamagedError):
            list(read_directory("x", spoilt))


def test_an_index_of_nothing_and_of_another_length() -> None:
    assert len(IndexTable("x", encode_index([]))) == 0
    for spoilt in (b"", b"FJINDEX1", encode_index([]) + b"\0"):
        with pytest.raises(StoreDamagedError):
            IndexTable("x", spoilt)


def test_put_same_is_told_of_another_content() -> None:
    store = MemoryStore()
    store.put_new("packs/a", b"1")
    with pytest.raises(StoreError):
        put_same(store, "packs/a", b"2")
    with pytest.raises(ObjectExistsError):
        store.put_new("packs/a", b"1")


@pytest.mark.parametrize("spread", [1, 1 << 40, 1 << 247])
def test_an_index_finds_what_it_has(spread: int) -> None:
    """However its ids lie, though hashes lie evenly."""
    chosen = random.Random(spread)
    numbers = sorted({chosen.randrange(spread * 300) for _ in range(400)})
    ids = [number.to_bytes(32, "big") for number in numbers[::2]]
    table = IndexTable("", encode_index((id_, Place(bytes(32), 1, 2, 3)) for id_ in ids))
    assert [table.number(id_) for id_ in ids] == list(range(len(ids)))
    absent = (number.to_bytes(32, "big") for number in numbers[1::2])
    assert not any(table.number(id_) is not None for id_ in absent)
    assert table.number(bytes(32)) == (0 if ids[0] == bytes(32) else None)
    assert table.number(b"\xff" * 32) is None
    assert IndexTable("", encode_index([])).number(bytes(32)) is None
