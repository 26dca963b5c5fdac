"""Differences of two maps: all of them, and in time of the difference."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from fusejournal.versions.blocks import BlockReader, BlockWriter
from fusejournal.versions.difference import differing
from fusejournal.versions.sorted_tree import Nodes, empty_tree, update_tree
from tests.support.objects import MemoryStore

_MAPS = st.dictionaries(st.integers(0, 3000), st.binary(max_size=1), max_size=400)


def _root(nodes: Nodes, content: dict[int, bytes]) -> bytes:
    assert isinstance(nodes.blocks, BlockWriter)
    changes: list[tuple[bytes, bytes | None]] = [
        (number.to_bytes(4, "big"), value) for number, value in sorted(content.items())
    ]
    return update_tree(nodes, empty_tree(nodes.blocks), changes)


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, 3000), one=_MAPS, other=_MAPS, gone=st.integers(0, 3000))
def test_all_differences_are_found(
    start: int, one: dict[int, bytes], other: dict[int, bytes], gone: int
) -> None:
    nodes = Nodes(BlockWriter(MemoryStore()))
    common = dict.fromkeys(range(start), b"common")
    old, new = common | one, common | other
    new.pop(gone, None)
    found = {
        int.from_bytes(key, "big"): (was, now)
        for key, was, now in differing(nodes, _root(nodes, old), _root(nodes, new))
    }
    assert found == {
        number: (old.get(number), new.get(number))
        for number in old.keys() | new.keys()
        if old.get(number) != new.get(number)
    }


class _Counting(BlockReader):
    reads = 0

    def read(self, id_: bytes) -> bytes:
        self.reads += 1
        return super().read(id_)


def test_a_difference_costs_what_differs() -> None:
    store = MemoryStore()
    writer = BlockWriter(store)
    nodes = Nodes(writer)
    old = {number: b"value" for number in range(50_000)}
    new = old | {random.Random(number).randrange(50_000): b"other" for number in range(5)}
    roots = _root(nodes, old), _root(nodes, new)
    writer.finish()
    reader = _Counting(store)
    assert 1 <= len(list(differing(Nodes(reader), *roots))) <= 5
    assert reader.reads < 60
