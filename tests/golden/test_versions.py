"""The version of a known history has the root hash that it always had: on every node, in every
release, or nodes could not compare theirs."""

import json
from pathlib import Path

from fusejournal.journal.reader import JournalReader
from fusejournal.types import Seq
from fusejournal.versions.bases import keys_pinned_by, pinned_keys
from fusejournal.versions.blocks import BlockReader, BlockWriter
from fusejournal.versions.builder import build_trees, no_trees
from fusejournal.versions.chunk_list import ChunkList, ChunkNodes, count_of
from fusejournal.versions.chunker import RULE
from fusejournal.versions.creators import open_plan, workers
from fusejournal.versions.keys import parse_key
from fusejournal.versions.manifest import protected_keys, read_versions, root_hash, store_head
from fusejournal.versions.packs import encode_index, read_directory
from fusejournal.versions.records import decode_inode, decode_name, fid_of_key, name_of_key
from fusejournal.versions.sealed_store import SealedStore
from fusejournal.versions.sorted_tree import Nodes, SortedTree, update_tree
from tests.golden.files import UUID_OF_GOLDENS, golden
from tests.golden.store_objects import (
    BLOCKS,
    CHUNKS,
    KEY_ID,
    NAMES,
    OWNER,
    PACKS,
    RECORDS,
    STORE_ID,
    VERSION,
    WORKER,
)
from tests.support.entries import SAMPLES, UUID_OF_TESTS, write_samples
from tests.support.objects import MemoryStore
from tests.support.volumes import show_nothing


def test_the_root_of_a_known_history(tmp_path: Path) -> None:
    write_samples(tmp_path).close()
    reader = JournalReader(tmp_path, UUID_OF_TESTS)
    blocks = BlockWriter(MemoryStore())
    trees = build_trees(
        blocks, no_trees(blocks), reader, Seq(1), Seq(len(SAMPLES) + 1), show_nothing
    )
    assert (
        root_hash(UUID_OF_TESTS, RULE, trees)
        == "3b3ac868a8800e611da9384c8e3769d446f4ac503260379013913aa03ba0e85e"
    )


def test_the_root_of_a_known_map() -> None:
    blocks = BlockWriter(MemoryStore())
    nodes = Nodes(blocks)
    trees = no_trees(blocks)
    root = update_tree(
        nodes, trees.names, [(b"%06d" % number, b"value") for number in range(20_000)]
    )
    assert SortedTree(nodes, root).height == 2
    assert root.hex() == "dd7c7c38754ec9a5f740c6240a111b58208d2f87edde96c5e945ef4f5ea747c2"


def test_packs_and_indexes_of_today_are_read() -> None:
    store = MemoryStore()
    store.objects = {name: bytes.fromhex(content) for name, content in golden("store-v1").items()}
    reader = BlockReader(store)
    (table,) = reader.indexes.values()
    found = {id_: reader.read(id_) for id_, _ in table}
    assert sorted(found.values()) == sorted(BLOCKS)
    (name,) = store.names("packs/")
    assert {row[0] for row in read_directory(name, store.get(name))} == found.keys()
    assert encode_index(table) == store.get(next(store.names("index/")))


def test_sealed_objects_of_today_are_opened() -> None:
    found = golden("sealed-v1")
    key = parse_key("golden", found["key"])
    assert key.id == found["key_id"]
    beneath = MemoryStore()
    beneath.objects = {name: bytes.fromhex(raw) for name, raw in found["objects"].items()}
    store = SealedStore(beneath, key, "id-of-goldens")
    assert list(store.names("packs/")) == ["packs/object"]
    content = store.get("packs/object")
    assert len(content) > 16_384
    assert content.startswith(BLOCKS[0])
    assert store.get_range("packs/object", 16_380, 100) == content[16_380:16_480]


def test_what_stores_tell_of_themselves_is_read() -> None:
    store = MemoryStore()
    for raw, key_id in zip(golden("store-heads-v1"), ("", KEY_ID), strict=True):
        store.objects["store"] = json.dumps(raw).encode()
        assert store_head(store) == (str(STORE_ID), key_id)


def test_the_objects_of_a_store_are_read() -> None:
    store = MemoryStore()
    store.objects = {
        name: b"" if raw is None else json.dumps(raw).encode()
        for name, raw in golden("store-objects-v1").items()
    }
    found = read_versions(store, UUID_OF_GOLDENS)
    assert (found.versions, found.unreadable) == ([VERSION], [])
    assert protected_keys(store) == pinned_keys(store) == {VERSION.key}
    assert keys_pinned_by(store, OWNER) == {VERSION.key}
    assert workers(store, forgetting=False) == ([] if WORKER.is_dead() else [WORKER])
    assert open_plan(store) == (3, PACKS)
    del store.objects["plans/0000000003"]
    assert open_plan(store) is None  # the one before is done


def test_the_nodes_of_trees_are_read() -> None:
    found = golden("tree-nodes-v1")
    blocks = BlockWriter(MemoryStore())
    for rows in found.values():
        for id_, content in rows:
            assert blocks.add_node(bytes.fromhex(content)).hex() == id_
    nodes, lists = Nodes(blocks), ChunkNodes(blocks)
    roots = {what: bytes.fromhex(rows[0][0]) for what, rows in found.items()}
    assert nodes.read(roots["empty"]) == (0, [])
    names = SortedTree(nodes, roots["names"])
    assert (names.height, len(names)) == (1, len(NAMES))
    key, name = NAMES[0]
    assert decode_name(names.get(key) or b"") == name
    chunks = ChunkList(lists, roots["chunks"])
    assert (chunks.height, chunks.size) == (1, sum(one.length for one in CHUNKS))
    assert next(chunks.items()) == (0, CHUNKS[0])
    assert count_of(lists, roots["chunks"]) == len(CHUNKS)


def test_records_of_files_and_names_are_read() -> None:
    found = golden("records-v1")
    blocks = BlockWriter(MemoryStore())
    id_, content = found["block of xattrs"]
    assert blocks.add_node(bytes.fromhex(content)).hex() == id_
    assert set(found["records"]) == set(RECORDS)
    for what, (key, value) in found["records"].items():
        fid = fid_of_key(bytes.fromhex(key))
        assert decode_inode(fid, bytes.fromhex(value), blocks) == RECORDS[what]
    key, value = map(bytes.fromhex, found["name"])
    assert (fid_of_key(key), name_of_key(key)) == (1, b"name 000")
    assert decode_name(value) == NAMES[0][1]
