"""Contents cut anew where they changed are as those cut from nothing."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusejournal.replay.extents import Extents
from fusejournal.types import Seq
from fusejournal.versions.blocks import BlockWriter
from fusejournal.versions.chunk_list import (
    ChunkItem,
    ChunkList,
    ChunkNodes,
    Splice,
    build_list,
    splice_list,
)
from fusejournal.versions.chunker import Cutter
from fusejournal.versions.content import (
    EMPTY,
    Content,
    Overlay,
    cut_content,
    items_of,
    read_content,
)
from fusejournal.versions.packs import block_id
from tests.support.objects import MemoryStore

_KIB = 1 << 10


def _nodes() -> ChunkNodes:
    return ChunkNodes(BlockWriter(MemoryStore()))


def _some_bytes(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def _from_nothing(nodes: ChunkNodes, plain: bytes) -> Content:
    extents = Extents()
    extents.put(0, len(plain), Seq(1))
    overlay = Overlay(nodes, EMPTY, 0, list(extents), {Seq(1): (0, plain)}, len(plain))
    return cut_content(nodes, overlay, 0)


def _changed(
    nodes: ChunkNodes, content: Content, plain: bytes, writes: list[tuple[int, bytes]], size: int
) -> tuple[Content, bytes]:
    """The result of writes, and of a truncation before them to where all that is kept ends."""
    extents = Extents()
    data: dict[Seq, tuple[int, bytes | None]] = {}
    kept = min(size, len(plain))
    wanted = bytearray(plain[:kept].ljust(size, b"\0"))
    for number, (offset, written) in enumerate(writes, 1):
        part = written[: max(size - offset, 0)]
        wanted[offset : offset + len(part)] = part
        extents.put(offset, offset + len(part), Seq(number))
        data[Seq(number)] = offset, part if part.strip(b"\0") else None
    overlay = Overlay(nodes, content, kept, list(extents), data, size)
    return cut_content(nodes, overlay, len(plain)), bytes(wanted)


_LENGTHS = st.sampled_from((1, 100, 4096, 30_000, 65_536, 70_000, 200_000))
_WRITES = st.lists(
    st.tuples(st.integers(0, 3_000_000), _LENGTHS, st.integers(0, 9)), min_size=0, max_size=4
)


@settings(max_examples=60, deadline=None)
@given(
    base=st.integers(0, 2_500_000),
    holes=st.lists(st.tuples(st.integers(0, 2_500_000), st.integers(1, 400_000)), max_size=3),
    steps=st.lists(st.tuples(_WRITES, st.integers(0, 3_000_000) | st.none()), max_size=3),
)
def test_cut_anew_is_as_cut_from_nothing(
    base: int,
    holes: list[tuple[int, int]],
    steps: list[tuple[list[tuple[int, int, int]], int | None]],
) -> None:
    nodes = _nodes()
    before = bytearray(_some_bytes(1, base))
    for start, length in holes:
        before[start : start + length] = bytes(len(before[start : start + length]))
    plain = bytes(before)
    content = _from_nothing(nodes, plain)
    for drawn, size in steps:
        # A seed of 0 writes zeros.
        writes = [
            (offset, _some_bytes(seed, length) if seed else bytes(length))
            for offset, length, seed in drawn
        ]
        end = size
        if end is None:
            end = max([len(plain), *(offset + len(data) for offset, data in writes)])
        content, plain = _changed(nodes, content, plain, writes, end)
        assert read_content(nodes, content, 0, len(plain)) == plain
        assert content == _from_nothing(nodes, plain)


def test_a_small_change_of_a_large_content_cuts_little() -> None:
    nodes = _nodes()
    assert isinstance(nodes.blocks, BlockWriter)
    plain = _some_bytes(2, 20 << 20)
    content = _from_nothing(nodes, plain)
    assert content.root is not None
    before = nodes.blocks.added_blocks
    after, wanted = _changed(nodes, content, plain, [(10 << 20, b"x")], len(plain))
    assert nodes.blocks.added_blocks - before <= 5
    assert after == _from_nothing(nodes, wanted)


def test_a_terabyte_of_nothing_is_one_hole() -> None:
    nodes = _nodes()
    size = 1 << 40
    overlay = Overlay(nodes, EMPTY, 0, [], {}, size)
    content = cut_content(nodes, overlay, 0)
    assert content.items == (ChunkItem(None, size),)
    extents = Extents()
    extents.put(1 << 39, (1 << 39) + 5, Seq(1))
    overlay = Overlay(nodes, content, size, list(extents), {Seq(1): (1 << 39, b"hello")}, size)
    content = cut_content(nodes, overlay, size)
    assert [item.length for item in content.items if item.id is None] == [1 << 39, (1 << 39) - 4096]
    assert read_content(nodes, content, (1 << 39) - 1, (1 << 39) + 6) == b"\0hello\0"
    extents = Extents()
    extents.put(5000, 1 << 62, Seq(2))
    overlay = Overlay(nodes, content, size, list(extents), {Seq(2): (5000, None)}, size)
    assert cut_content(nodes, overlay, size).items == (ChunkItem(None, size),)


def test_the_rule_of_cutting_stays() -> None:
    """Roots of one tree are equal only while all cut alike: a new rule needs a new name."""
    data = b"".join(number.to_bytes(4, "little") for number in range(0, 1 << 21, 3))
    cutter = Cutter(0)
    items = [*cutter.data(data), *cutter.finish()]
    lengths = [len(item) for item in items if isinstance(item, bytes)]
    assert len(lengths) == len(items) == 14
    assert lengths[:3] == [76047, 151361, 308075]
    assert block_id(repr(lengths).encode()).hex()[:16] == "eff7f5078bd56a6d"


@pytest.mark.parametrize("count", [1, 5, 100, 5000])
def test_lists_follow_from_their_items(count: int) -> None:
    nodes = _nodes()
    assert isinstance(nodes.blocks, BlockWriter)
    choice = random.Random(count)
    items = [ChunkItem(choice.randbytes(32), choice.randrange(1, 99)) for _ in range(count)]
    root = build_list(nodes.blocks, items)
    for _ in range(30):
        first = choice.randrange(len(items) + 1)
        last = min(len(items), first + choice.choice((0, 1, 3, 200)))
        new = [ChunkItem(choice.randbytes(32), 7) for _ in range(choice.choice((0, 1, 4, 300)))]
        ends = [0]
        for item in items:
            ends.append(ends[-1] + item.length)
        if first == last and first < len(items):
            continue  # something is always replaced, but at the end
        spliced = splice_list(nodes, root, [Splice(ends[first], ends[last], list(new))])
        items = items[:first] + new + items[last:]
        if not items:
            assert spliced is None
            return
        assert spliced is not None
        root = spliced
        assert root == build_list(nodes.blocks, items)
        assert [item for _, item in ChunkList(nodes, root).items()] == items
        middle = sum(item.length for item in items) // 2
        assert next(items_of(nodes, Content(root=root), middle))[0] <= middle
