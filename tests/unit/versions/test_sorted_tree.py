"""Maps as trees: the root follows from what is in it, and a change costs what it changes."""

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusejournal.versions.blocks import BlockReader, BlockWriter
from fusejournal.versions.packs import StoreDamagedError
from fusejournal.versions.sorted_tree import Nodes, SortedTree, empty_tree, update_tree
from tests.support.objects import MemoryStore

_KEYS = st.integers(0, 3000).map(lambda number: number.to_bytes(2, "big"))
_CHANGES = st.dictionaries(_KEYS, st.none() | st.binary(max_size=3), max_size=300)


def _build(nodes: Nodes, content: dict[bytes, bytes]) -> bytes:
    assert isinstance(nodes.blocks, BlockWriter)
    return update_tree(nodes, empty_tree(nodes.blocks), sorted(content.items()))


def _nodes() -> Nodes:
    return Nodes(BlockWriter(MemoryStore()))


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, 3000), steps=st.lists(_CHANGES, max_size=5))
def test_the_root_follows_from_the_content(start: int, steps: list[dict[bytes, bytes]]) -> None:
    nodes = _nodes()
    content = {number.to_bytes(2, "big"): b"first" for number in range(start)}
    root = _build(nodes, content)
    for changes in steps:
        root = update_tree(nodes, root, sorted(changes.items()))
        for key, value in changes.items():
            if value is None:
                content.pop(key, None)
            else:
                content[key] = value
        assert root == _build(nodes, content)
        tree = SortedTree(nodes, root)
        assert dict(tree.items()) == content
        assert len(tree) == len(content)
        for key in changes:
            assert tree.get(key) == content.get(key)


def test_removing_everything_gives_the_empty_map() -> None:
    nodes = _nodes()
    assert isinstance(nodes.blocks, BlockWriter)
    content = {number.to_bytes(4, "big"): b"value" for number in range(20_000)}
    root = _build(nodes, content)
    assert SortedTree(nodes, root).height >= 2
    assert update_tree(nodes, root, [(key, None) for key in sorted(content)]) == empty_tree(
        nodes.blocks
    )


def test_a_change_costs_what_it_changes() -> None:
    nodes = _nodes()
    assert isinstance(nodes.blocks, BlockWriter)
    content = {number.to_bytes(8, "big"): b"value" * 10 for number in range(50_000)}
    root = _build(nodes, content)
    before = nodes.blocks.added_blocks
    changed = {number.to_bytes(8, "big"): b"other" for number in range(7, 50_000, 5000)}
    root = update_tree(nodes, root, sorted(changed.items()))
    assert nodes.blocks.added_blocks - before < 40
    assert root == _build(nodes, content | changed)


def test_keys_are_found_from_any_place_on() -> None:
    nodes = _nodes()
    content = {b"%05d" % number: b"" for number in range(0, 10_000, 2)}
    tree = SortedTree(nodes, _build(nodes, content))
    for number in (0, 1, 4999, 9998, 9999):
        wanted = [key for key in content if key >= b"%05d" % number]
        assert [key for key, _ in tree.items(b"%05d" % number)] == wanted
    assert len(list(tree.below(b"0123"))) == 5


def test_a_tree_is_read_back_from_the_store() -> None:
    store = MemoryStore()
    writer = BlockWriter(store)
    content = {b"%05d" % number: b"v" for number in range(5_000)}
    root = _build(Nodes(writer), content)
    writer.finish()
    assert dict(SortedTree(Nodes(BlockReader(store)), root).items()) == content


def test_a_tree_that_contradicts_itself_is_not_changed() -> None:
    """It would be looked through without an end."""
    nodes = _nodes()
    assert isinstance(nodes.blocks, BlockWriter)
    content = {b"%05d" % number: b"v" for number in range(2_000)}
    root = _build(nodes, content)
    level, (first, *others) = nodes.read(root)
    later = (first[0] + b"x", *first[1:])
    spoilt = nodes.blocks.add_node(msgpack.packb((level, [later, *others])))
    with pytest.raises(StoreDamagedError, match="ends before the key"):
        update_tree(nodes, spoilt, [(first[0] + b"a", b"new")])
