"""The version of a known history has the root hash that it always had: on every node, in every
release, or nodes could not compare theirs."""

from pathlib import Path

from fusejournal.journal.reader import JournalReader
from fusejournal.types import Seq
from fusejournal.versions.blocks import BlockReader, BlockWriter
from fusejournal.versions.builder import build_trees, no_trees
from fusejournal.versions.chunker import RULE
from fusejournal.versions.keys import parse_key
from fusejournal.versions.manifest import root_hash
from fusejournal.versions.packs import encode_index, read_directory
from fusejournal.versions.sealed_store import SealedStore
from fusejournal.versions.sorted_tree import Nodes, SortedTree, update_tree
from tests.golden.samples import BLOCKS, golden
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
