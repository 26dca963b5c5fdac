"""Samples of the objects of a store of versions: what is JSON or only a name, the nodes of both
kinds of trees, and the records of files."""

import json
from pathlib import Path
from stat import S_IFBLK, S_IFDIR, S_IFLNK, S_IFREG
from unittest import mock
from uuid import UUID

import msgpack

from fusejournal.types import Epoch, Fid, Seq
from fusejournal.versions.bases import pin
from fusejournal.versions.blocks import BlockReader, BlockWriter
from fusejournal.versions.chunk_list import ChunkItem, ChunkNodes, build_list
from fusejournal.versions.chunker import RULE
from fusejournal.versions.content import Content
from fusejournal.versions.creators import Worker, _put, finish_plan, put_plan
from fusejournal.versions.keys import StoreKey
from fusejournal.versions.manifest import Version, make_store, protect, put_version
from fusejournal.versions.records import (
    InodeRecord,
    Name,
    encode_inode,
    encode_name,
    inode_key,
    name_key,
)
from fusejournal.versions.sealed_store import SealedStore
from fusejournal.versions.sorted_tree import Nodes, empty_tree, update_tree
from tests.golden.files import NOW_NS, UUID_OF_GOLDENS
from tests.support.objects import MemoryStore

BLOCKS = (b"a chunk of a file", b"again " * 20)
"""The blocks of the golden store: one that is stored plain, one that is compressed."""
STORE_ID = UUID("89abcdef-0000-4000-8000-0123456789ab")
KEY_ID = "0123456789abcdef"
OWNER = 0x1111
"""The number of a state directory whose journal begins with the golden version."""
PACKS = frozenset((bytes(range(32)), b"\xff" * 32))
VERSION = Version(
    uuid=UUID_OF_GOLDENS, epoch=Epoch(2), seq=Seq(4711), chain=0x00C0FFEE, time_ns=NOW_NS,
    name="friday", made_by="east", made_ns=NOW_NS + 5, parent="0-1-2", rule=RULE,
    inodes=bytes(range(32)), names=bytes(range(32, 64)), next_fid=Fid(1 << 40), file_count=7,
    name_count=8, content_bytes=123_456, added_bytes=999,
)  # fmt: skip
WORKER = Worker(
    work="creator", node="east", machine="ab" * 32, boot="b0075eed", pids=4_026_531_836, pid=4711,
    began="123456", plan=2, nonce="0123456789abcdef0123456789abcdef",
)  # fmt: skip

NAMES = [
    (name_key(Fid(1), b"name %03d" % one), Name(Fid(one + 2), 4 + 2 * one)) for one in range(99)
]
"""Enough names for a tree of two levels."""
CHUNKS = [ChunkItem(None if one % 9 == 0 else bytes([one]) * 32, 4096 + one) for one in range(150)]
"""The same for a list."""
_ID = bytes(range(32))
_PLACES = ((Fid(1), b"a"), (Fid(3), b"b\xff"))
_XATTRS = ((b"system.posix_acl_access", b"\2\0\0\0"), (b"user.key", b"\0value"))


def _record(fid: int, mode: int, **fields: object) -> InodeRecord:
    base = InodeRecord(
        *(Fid(fid), mode, 1000, 100, 0, 0, NOW_NS + fid, _PLACES[:1], None, None, (), True)
    )
    return base._replace(**fields)  # type: ignore[arg-type]


LONG = "long xattrs"
RECORDS = {
    "root": _record(1, 0)._replace(mode=None, uid=None, gid=None, mtime_ns=None, links=()),
    "directory": _record(3, S_IFDIR | 0o2755, mtime_ns=-7, xattrs=_XATTRS),
    "inline": _record(2, S_IFREG | 0o644, size=7, content=Content(inline=b"content")),
    "items": _record(
        4, S_IFREG | 0o4755, size=12_288, links=_PLACES, file_flags=0b101,
        content=Content(items=(ChunkItem(_ID, 4096), ChunkItem(None, 8192))),
    ),
    "list": _record(5, S_IFREG, size=1 << 40, content=Content(root=_ID), complete=False),
    "symlink": _record(6, S_IFLNK | 0o777, target=b"../target"),
    "device": _record(7, S_IFBLK | 0o600, rdev=0x0801),
    LONG: _record(8, S_IFDIR, xattrs=((b"user.long", b"x" * 100),)),
}  # fmt: skip
"""A record of each form."""


def make_store_of_blocks(_: Path) -> object:
    """A store with two blocks: a pack and an index."""
    store = MemoryStore()
    blocks = BlockWriter(store)
    for content in BLOCKS:
        blocks.add_chunk(content)
    blocks.finish()
    return {name: content.hex() for name, content in store.objects.items()}


def make_sealed(_: Path) -> object:
    """An encrypted store with an object of two segments, and the text of its key."""
    beneath = MemoryStore()
    key = StoreKey(bytes(range(32)))
    store = SealedStore(beneath, key, "id-of-goldens")
    store.put_new("packs/object", BLOCKS[0] * 1000)
    return {
        "key": key.text,
        "key_id": key.id,
        "objects": {name: content.hex() for name, content in beneath.objects.items()},
    }


def make_store_heads(_: Path) -> object:
    """The object that tells what a store is, and that of an encrypted one."""
    found = []
    for key_id in ("", KEY_ID):
        store = MemoryStore()
        with mock.patch("fusejournal.versions.manifest.uuid4", return_value=STORE_ID):
            make_store(store, key_id)
        found.append(json.loads(store.get("store")))
    return found


def make_store_objects(_: Path) -> object:
    """A version that is protected and that a journal begins with, one who is at work, a plan, and a
    plan that is done: each object's content by its name, JSON as such."""
    store = MemoryStore()
    put_version(store, VERSION)
    protect(store, VERSION.key, on=True)
    pin(store, VERSION.key, VERSION.uuid, OWNER)
    _put(store, WORKER)
    with mock.patch("fusejournal.versions.creators.uuid4", return_value=STORE_ID):
        put_plan(store, 1, frozenset())
        put_plan(store, 2, PACKS)
        finish_plan(store, 2)
        put_plan(store, 3, PACKS)
    objects = sorted(store.objects.items())
    return {name: json.loads(content) if content else None for name, content in objects}


def _node(blocks: BlockReader, id_: bytes) -> list[str]:
    return [id_.hex(), blocks.read(id_).hex()]


def make_tree_nodes(_: Path) -> object:
    """The root of each kind of tree and one node below it: id and bytes. An empty tree, too."""
    blocks = BlockWriter(MemoryStore())
    nodes, lists = Nodes(blocks), ChunkNodes(blocks)
    empty = empty_tree(blocks)
    names = update_tree(nodes, empty, [(key, encode_name(name)) for key, name in NAMES])
    chunks = build_list(blocks, CHUNKS)
    assert (nodes.read(names)[0], lists.read(chunks)[0]) == (1, 1)
    return {
        "empty": [_node(blocks, empty)],
        "names": [_node(blocks, names), _node(blocks, nodes.read(names)[1][0][1])],
        "chunks": [_node(blocks, chunks), _node(blocks, lists.read(chunks)[1][0][0])],
    }


def make_records(_: Path) -> object:
    """Key and value of each record; with it the block of xattrs, and key and value of a name."""
    blocks = BlockWriter(MemoryStore())
    found = {
        what: [inode_key(record.fid).hex(), encode_inode(record, blocks).hex()]
        for what, record in RECORDS.items()
    }
    key, name = NAMES[0]
    xattrs = msgpack.unpackb(encode_inode(RECORDS[LONG], blocks))[8]
    return {
        "records": found,
        "block of xattrs": _node(blocks, xattrs),
        "name": [key.hex(), encode_name(name).hex()],
    }
