"""Chunks that a store has lost, stored again from the live tree: a file that still has the bytes
tells so by their hash, which is the chunk's id. Whatever else happened to the file does not
matter."""

from stat import S_IFREG
from typing import NamedTuple

from fusejournal.objects.store import ObjectStore
from fusejournal.types import Fid, Progress
from fusejournal.versions.blocks import BlockReader, BlockWriter
from fusejournal.versions.content import items_of
from fusejournal.versions.creators import check_registered, open_plan, register, unregister
from fusejournal.versions.live_tree import LiveTree
from fusejournal.versions.packs import StoreDamagedError
from fusejournal.versions.records import decode_inode, fid_of_key
from fusejournal.versions.trees import Trees
from fusejournal.versions.version_tree import VersionTree


class LostChunk(NamedTuple):
    """A chunk that cannot be read, and a file that has it."""

    fid: Fid
    offset: int
    """The place of the chunk in the file."""
    length: int
    fault: StoreDamagedError


def lost_chunks(
    reader: BlockReader, trees: Trees, progress: Progress
) -> dict[bytes, list[LostChunk]]:
    """Returns the chunks of a version that cannot be read, with the places where files have them.
    All are read. Raises StoreDamagedError where the trees cannot be; StoreError."""
    tree = VersionTree(reader, trees)
    found: dict[bytes, list[LostChunk]] = {}
    good: set[bytes] = set()
    for number, (key, value) in enumerate(tree.inodes.items()):
        progress(number, len(tree.inodes))
        record = decode_inode(fid_of_key(key), value, reader)
        content = record.content
        if record.type != S_IFREG or content is None or content.inline is not None:
            continue
        for offset, item in items_of(tree.chunk_nodes, content):
            if item.id is None or item.id in good:
                continue
            try:
                reader.read(item.id)
            except StoreDamagedError as fault:
                place = LostChunk(record.fid, offset, item.length, fault)
                found.setdefault(item.id, []).append(place)
            else:
                good.add(item.id)
    return found


def store_again(
    store: ObjectStore,
    node: str,
    reader: BlockReader,
    lost: dict[bytes, list[LostChunk]],
    live: LiveTree,
) -> dict[bytes, LostChunk]:
    """Puts those chunks of *lost* into *store* again that files of *live* have yet; *reader* is the
    one that has found them lost. Returns the others. Raises BusyError, StoreFullError, StoreError,
    OSError."""
    left = {}
    me = register(store, "creator", node)
    try:
        plan = open_plan(store)
        blocks = BlockWriter(store, plan[1] if plan is not None else frozenset())
        blocks.spoilt.update(reader.spoilt)
        for id_, places in lost.items():
            for place in places:
                data = live.piece(place.fid, place.offset, place.length, id_)
                if data is not None:
                    blocks.add_chunk(data)
                    break
            else:
                left[id_] = places[0]
        blocks.finish()
        check_registered(store, me)
    finally:
        unregister(store, me)
    return left
