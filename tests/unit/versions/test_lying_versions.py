"""A version as a node sends it that lies: each block is what its id says, and what it says of the
tree cannot be. Nothing is made of it, and what is read is bounded."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from stat import S_IFDIR, S_IFREG

import msgpack
import pytest

from fusejournal.types import ROOT_FID, Fid
from fusejournal.versions.agreement import check_agreement
from fusejournal.versions.base_tree import VersionBase, base_of
from fusejournal.versions.blocks import BlockReader, BlockWriter
from fusejournal.versions.chunk_list import ChunkItem, build_list
from fusejournal.versions.content import Content
from fusejournal.versions.difference import find_version_changes
from fusejournal.versions.manifest import Version
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
from tests.support.objects import MemoryStore
from tests.unit.versions.test_missing_blocks import make_version

_CHUNK = b"content" * 100
_ROOT = InodeRecord(ROOT_FID, S_IFDIR | 0o755, 0, 0, 0, 0, 1, (), None, None, (), True)
_FILE = InodeRecord(
    Fid(2), S_IFREG | 0o644, 0, 0, 0, len(_CHUNK), 1, ((ROOT_FID, b"file"),), None, None, (), True
)


def _make(
    store: MemoryStore, records: list[InodeRecord], names: dict[tuple[int, bytes], Name]
) -> Version:
    """A version with these *records* and *names*."""
    blocks = BlockWriter(store)
    nodes, empty = Nodes(blocks), empty_tree(blocks)
    inodes = [(inode_key(one.fid), encode_inode(one, blocks)) for one in [_ROOT, *records]]
    found = [(name_key(Fid(above), name), encode_name(one)) for (above, name), one in names.items()]
    roots = [update_tree(nodes, empty, sorted(one)) for one in (inodes, found)]
    blocks.finish()
    return replace(
        make_version(MemoryStore()),
        inodes=roots[0],
        names=roots[1],
        file_count=len(inodes),
        name_count=len(found),
        content_bytes=sum(one.size for one in records if one.content is not None),
    )


def _read_all(store: MemoryStore, version: Version) -> bytes:
    """The contents of all files, as a copy of the tree reads them."""
    base = VersionBase(base_of(version, "store"), lambda: store)
    with ThreadPoolExecutor(1) as pool:
        return b"".join(piece.data for piece in base.contents(lambda _: True, pool))


def _of(items: list[tuple[bytes | None, int]]) -> Content:
    return Content(items=tuple(ChunkItem(*item) for item in items))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda id_, _: _of([(id_, 600)]), "not the 700 bytes"),
        (lambda id_, _: _of([(id_, 600), (None, 100)]), "has 700 bytes in place of 600"),
        (lambda id_, _: _of([(id_, 700), (id_, 700)]), "not the 700 bytes"),
        (lambda id_, _: _of([(id_, 700), (None, 1 << 62)]), "not the 700 bytes"),
        (lambda id_, _: _of([]), "not the 700 bytes"),
        (lambda id_, _: _of([(id_, 1 << 40)]), "no content"),
        (lambda id_, _: Content(inline=b"short"), "not the 700 bytes"),
        (lambda id_, blocks: Content(root=build_list(blocks, [(id_, 1 << 40)])), "is no node"),
        (lambda id_, blocks: Content(root=build_list(blocks, [(id_, 350)] * 2)), "of 350"),
    ],
)
def test_a_content_that_is_no_such_file_s(
    make: Callable[[bytes, BlockWriter], Content], error: str
) -> None:
    store = MemoryStore()
    blocks = BlockWriter(store)
    content = make(blocks.add_chunk(_CHUNK), blocks)
    blocks.finish()
    names = {(1, b"file"): Name(Fid(2), 4)}
    version = _make(store, [_FILE._replace(content=content)], names)
    with pytest.raises(StoreDamagedError, match=error):
        _read_all(store, version)
    good = _make(store, [_FILE._replace(content=_of([(blocks.add_chunk(_CHUNK), 700)]))], names)
    assert _read_all(store, good) == _CHUNK
    # Before anything is made of it, too, alone and beside what was there before.
    empty = _make(store, [], {})
    for one, whole in itertools.product((version, good), (None, empty.trees, good.trees)):
        if one is good:
            check_agreement(BlockReader(store), good, whole, lambda: None)
            continue
        with pytest.raises(StoreDamagedError):
            check_agreement(BlockReader(store), version, whole, lambda: None)


def test_a_list_whose_nodes_do_not_agree() -> None:
    """The list's root has the file's size; below it are more bytes, and fewer."""
    store = MemoryStore()
    blocks = BlockWriter(store)
    chunk = blocks.add_chunk(_CHUNK)
    leaf = blocks.add_node(msgpack.packb((0, [(chunk, 700)])))
    names = {(1, b"file"): Name(Fid(2), 4)}
    for said in ((600, 800), (800, 600), (700, 700)):
        root = blocks.add_node(msgpack.packb((1, [(leaf, one, 1) for one in said])))
        blocks.finish()
        file = _FILE._replace(content=Content(root=root), size=1400)
        version = _make(store, [file], names)
        if said == (700, 700):
            check_agreement(BlockReader(store), version, None, lambda: None)
            continue
        with pytest.raises(StoreDamagedError, match=r"is said above|in place of"):
            check_agreement(BlockReader(store), version, None, lambda: None)


@pytest.mark.parametrize("names", [{}, {(1, b"file"): Name(Fid(3), 4)}])
def test_a_name_that_no_directory_has(names: dict[tuple[int, bytes], Name]) -> None:
    store = MemoryStore()
    version = _make(store, [_FILE._replace(content=Content(inline=b""), size=0)], names)
    base = VersionBase(base_of(version, "store"), lambda: store)
    for look in (lambda: base.node(Fid(2)), lambda: base.file(Fid(2)), lambda: list(base.nodes())):
        with pytest.raises(StoreDamagedError, match="fid 2 has a name that no directory has"):
            look()


@pytest.mark.parametrize(("above", "error"), [(2, "lies in itself"), (9, "and no record")])
def test_a_directory_that_is_in_no_tree(above: int, error: str) -> None:
    store = MemoryStore()
    directory = _ROOT._replace(fid=Fid(2), links=((Fid(above), b"d"),))
    version = _make(store, [directory], {(above, b"d"): Name(Fid(2), 4)})
    empty = _make(store, [], {})
    old, new = (
        Trees(one.inodes, one.names, one.next_fid, one.epoch, 0) for one in (empty, version)
    )
    with pytest.raises(StoreDamagedError, match=error):
        find_version_changes(BlockReader(store), old, new, b"", lambda *_: None)
