"""A mirror asks for the blocks that it lacks of a version, and for no others; what is not what it
asked for is refused."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from stat import S_IFDIR, S_IFREG
from uuid import UUID

import msgpack
import pytest

from fusejournal.types import ROOT_FID, Epoch, Fid, Seq
from fusejournal.versions.block_source import (
    OfferedTree,
    answer_blocks,
)
from fusejournal.versions.blocks import BlockReader, BlockWriter
from fusejournal.versions.chunk_list import ChunkItem, build_list
from fusejournal.versions.chunker import RULE
from fusejournal.versions.content import Content
from fusejournal.versions.manifest import Version
from fusejournal.versions.missing_blocks import GoneError, MissingBlocks
from fusejournal.versions.packs import StoreDamagedError
from fusejournal.versions.records import (
    InodeRecord,
    Name,
    encode_inode,
    encode_name,
    inode_key,
    name_key,
)
from fusejournal.versions.sorted_tree import Nodes, empty_tree, update_tree
from fusejournal.versions.trees import Trees
from fusejournal.versions.verify import verify_version
from fusejournal.wire.block_messages import (
    Blocks,
    TreeProgress,
    TreeReport,
    is_last_report,
    offered_bytes,
    report_fields,
)
from fusejournal.wire.frames import WireError
from tests.support.objects import MemoryStore

_FILES = 300
_XATTR = b"user.long", b"value" * 40


def _chunk(number: int) -> bytes:
    return random.Random(number).randbytes(2000)


def make_version(store: MemoryStore, changed: int = 0, name: bytes = b"file%d") -> Version:
    """A version of some files and a large one; *changed* of them have another content."""
    blocks = BlockWriter(store)
    nodes = Nodes(blocks)
    inodes: dict[bytes, bytes] = {}
    names: dict[bytes, bytes] = {}
    root = InodeRecord(ROOT_FID, S_IFDIR | 0o755, 0, 0, 0, 0, 1, (), None, None, (), True)
    inodes[inode_key(ROOT_FID)] = encode_inode(root, blocks)
    for number in range(_FILES):
        fid, its = Fid(number + 2), name % number if b"%" in name else name
        kind = number + 1000 if number < changed else number
        content = Content(items=(ChunkItem(blocks.add_chunk(_chunk(kind)), 2000),))
        size = 2000
        if number == _FILES - 1:
            chunks = [_chunk(10_000 + one) for one in range(700)]
            if changed:
                chunks[350] = _chunk(99_999)
            items = [(blocks.add_chunk(chunk), 2000) for chunk in chunks]
            content, size = Content(root=build_list(blocks, items)), 1_400_000
        links = ((ROOT_FID, its),)
        record = InodeRecord(
            *(fid, S_IFREG | 0o644, 0, 0, 0, size, 1, links, None, content, (_XATTR,), True)
        )
        inodes[inode_key(fid)] = encode_inode(record, blocks)
        names[name_key(ROOT_FID, its)] = encode_name(Name(fid, 4 + number))
    inodes_root, names_root = (
        update_tree(nodes, empty_tree(blocks), sorted(one.items())) for one in (inodes, names)
    )
    blocks.finish()
    content_bytes = 2000 * (_FILES - 1) + 1_400_000
    return Version(
        uuid=UUID(int=7),
        epoch=Epoch(1),
        seq=Seq(9),
        chain=0x77,
        time_ns=5,
        name="",
        made_by="node",
        made_ns=6,
        parent=None,
        rule=RULE,
        inodes=inodes_root,
        names=names_root,
        next_fid=Fid(_FILES + 2),
        file_count=len(inodes),
        name_count=len(names),
        content_bytes=content_bytes,
        added_bytes=0,
    )


def copy(
    source: MemoryStore,
    blocks: BlockWriter,
    version: Version,
    own: Trees | None = None,
    alter: Callable[[Blocks], Blocks] = lambda answer: answer,
    answers_max: int = 10**9,
) -> MissingBlocks:
    """Copy *version* as two nodes do, up to so many answers."""
    walk, reader, questions = MissingBlocks(blocks, version, own), BlockReader(source), []
    while not walk.is_done:
        while len(walk) < 3 and (asked := walk.next_question()) is not None:
            questions.append(asked)
        for answer in answer_blocks(reader, questions.pop(0)) if questions else ():
            if not answers_max:
                return walk
            answers_max -= 1
            walk.take(alter(answer))
    return walk


def test_all_is_copied_and_what_is_there_is_not() -> None:
    source, sink = MemoryStore(), MemoryStore()
    version = make_version(source)
    blocks = BlockWriter(sink)
    walk = copy(source, blocks, version)
    blocks.finish()
    assert walk.files == _FILES + 1
    found = verify_version(BlockReader(sink), version, lambda *_: None, with_data=True)
    assert found.files == _FILES + 1
    assert found.bytes == 2000 * (_FILES - 1) + 1_400_000
    # Once more there is nothing to ask for.
    again = MissingBlocks(BlockWriter(sink), version, None)
    assert again.next_question() is None
    assert again.is_done
    # A later one: what differs.
    later = make_version(source, 5)
    blocks = BlockWriter(sink)
    walk = copy(source, blocks, later, version.trees)
    blocks.finish()
    assert walk.files == _FILES + 1
    assert 6 <= walk.fetched_blocks < 40
    verify_version(BlockReader(sink), later, lambda *_: None, with_data=True)


def test_a_copy_that_was_stopped_goes_on() -> None:
    source, sink = MemoryStore(), MemoryStore()
    version = make_version(source)
    blocks = BlockWriter(sink)
    first = copy(source, blocks, version, answers_max=6)
    assert not first.is_done
    blocks.finish()
    blocks = BlockWriter(sink)
    second = copy(source, blocks, version)
    blocks.finish()
    whole = copy(source, BlockWriter(MemoryStore()), version)
    assert first.fetched_blocks > 100
    assert first.fetched_blocks + second.fetched_blocks == whole.fetched_blocks
    verify_version(BlockReader(sink), version, lambda *_: None, with_data=True)


@pytest.mark.parametrize(
    ("alter", "error"),
    [
        (lambda one: one._replace(stored=one.stored[:-1]), WireError),
        (lambda one: one._replace(content=one.content + b"more"), WireError),
        (lambda one: one._replace(plain=(1 << 40, *one.plain[1:])), WireError),
        (lambda one: Blocks((), (), b""), WireError),
        (lambda one: Blocks(one.stored * 70, one.plain * 70, one.content * 70), WireError),
        (lambda one: one._replace(content=bytes(len(one.content))), StoreDamagedError),
        (lambda one: Blocks((0,), (0,), b""), GoneError),
    ],
)
def test_what_was_not_asked_for_is_refused(
    alter: Callable[[Blocks], Blocks], error: type[Exception]
) -> None:
    source = MemoryStore()
    version = make_version(source)
    with pytest.raises((error, StoreDamagedError)):
        copy(source, BlockWriter(MemoryStore()), version, alter=alter)


@pytest.mark.parametrize("name", [b"..", b".", b"a/b", b"a\0b", b"x" * 256])
def test_a_name_that_cannot_be_is_refused(name: bytes) -> None:
    source = MemoryStore()
    version = make_version(source, name=name)
    with pytest.raises(WireError, match="a name that cannot be"):
        copy(source, BlockWriter(MemoryStore()), version)


def _map_version(store: MemoryStore, make: Callable[[BlockWriter], bytes]) -> Version:
    """A version whose tree of files has the root that *make* makes."""
    version = make_version(store)
    blocks = BlockWriter(store)
    root = make(blocks)
    blocks.finish()
    return replace(version, inodes=root)


def _levels_of_the_same(blocks: BlockWriter) -> bytes:
    """Many levels of nodes, each with two that have the same two below them."""
    keys = [number.to_bytes(8, "big") for number in range(4)]
    below = [blocks.add_node(msgpack.packb((0, [(inode_key(Fid(99 + n)), b"")]))) for n in range(2)]
    for level in range(1, 40):
        items = [(key, id_, 1) for key, id_ in zip(keys, below, strict=False)]
        other = [(key, id_, 1) for key, id_ in zip(keys[2:], below, strict=False)]
        below = [blocks.add_node(msgpack.packb((level, one))) for one in (items, other)]
    return below[0]


def test_a_tree_that_names_the_same_again_and_again_ends() -> None:
    source = MemoryStore()
    version = _map_version(source, _levels_of_the_same)
    checks = itertools.count()

    def check() -> None:
        assert next(checks) < 10_000

    walk = MissingBlocks(BlockWriter(source), version, None, check)
    with pytest.raises(StoreDamagedError, match="is spoilt"):
        list(iter(walk.next_question, None))


@pytest.mark.parametrize(
    ("level", "items", "error"),
    [
        (0, [(b"short", b"")], "a key that cannot be"),
        (0, [(inode_key(Fid(9)), msgpack.packb([1 << 63, *[0] * 8]))], "is spoilt"),
        (0, [(inode_key(Fid(9)), msgpack.packb([0, *[0] * 5, [], [1, 5], []]))], "is spoilt"),
        (1, [(b"a", bytes(32), 1), (b"b", bytes(32), 1)], "below it twice"),
        (0.5, [(b"a", bytes(32), 1)], "is no node"),
    ],
)
def test_a_node_that_cannot_be_is_refused(level: int, items: list[object], error: str) -> None:
    source = MemoryStore()
    version = _map_version(source, lambda blocks: blocks.add_node(msgpack.packb((level, items))))
    with pytest.raises((WireError, StoreDamagedError), match=error):
        copy(source, BlockWriter(MemoryStore()), version)


def test_a_block_that_is_gone_is_told() -> None:
    source = MemoryStore()
    version = make_version(source)
    for name in list(source.names("packs/"))[:1]:
        source.remove(name)
    with pytest.raises(GoneError, match="is gone at the source"):
        copy(source, BlockWriter(MemoryStore()), version)


def test_the_tree_that_is_told() -> None:
    version = make_version(MemoryStore())
    for one in (version, None):
        offered = OfferedTree(one, "store", Seq(3), Seq(11), 12345)
        raw = report_fields(offered.told())
        assert OfferedTree.from_fields("there", raw) == offered
        assert is_last_report(offered.told())
    assert report_fields(TreeProgress(3, None).told()) == {"done": 3, "total": None}
    assert not is_last_report(TreeProgress(3, None).told())
    assert TreeProgress.of(TreeProgress(3, None).told()) == (3, None)
    assert offered_bytes(OfferedTree(version, "", Seq(3), Seq(11), 1).told()) == (
        version.content_bytes
    )
    assert offered_bytes(OfferedTree(None, "", Seq(3), Seq(11), 1).told()) is None
    for fields in (b"{}", b'{"done": "3"}', b'{"done": 3, "total": -0.5}'):
        with pytest.raises(WireError, match="a progress that cannot be read"):
            TreeProgress.of(TreeReport(fields))
    for version_text in ("5", '"["', '"{}"', '"{\\"content_bytes\\": -1}"'):
        with pytest.raises(WireError, match="a tree that cannot be read"):
            offered_bytes(TreeReport(f'{{"version": {version_text}}}'.encode()))
    for fields in (b"", b"[]", b"\xff", b"[" * 100_000):
        with pytest.raises(WireError, match="cannot be read"):
            report_fields(TreeReport(fields))
    with pytest.raises(WireError, match="cannot be"):
        OfferedTree.from_fields("there", {"version": None, "store": "x"})
    for name in ("first_seq", "head_seq", "journal_bytes"):
        with pytest.raises(WireError, match="cannot be"):
            OfferedTree.from_fields("there", {**raw, name: float("inf")})
    with pytest.raises(StoreDamagedError):
        OfferedTree.from_fields("there", {**raw, "version": "{}"})
