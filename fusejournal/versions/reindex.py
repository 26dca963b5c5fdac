"""Rebuilds a damaged index from the packs that no other index lists, each of which has a directory
of its contents.

It excludes collections, as they exclude each other, so that no pack goes meanwhile. A pack that is
stored, but that its creator has not indexed yet, may get into the new index: it is listed twice
then, which does no harm. The new index is put before the spoilt one is removed, so that a kill at
any point leaves what the next attempt takes up."""

from collections.abc import Callable, Collection, Iterator
from itertools import count
from typing import NamedTuple

from fusejournal.objects.store import ObjectMissingError, ObjectStore, put_same
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.creators import alone, register, unregister
from fusejournal.versions.packs import (
    Place,
    StoreDamagedError,
    encode_index,
    index_name,
    pack_name,
    read_directory,
)


class Reindexed(NamedTuple):
    """The result of making indexes anew."""

    indexes: tuple[str, ...]
    """The names of those that were spoilt."""
    packs: int
    """The packs that were read for it."""
    blocks: int
    lost: tuple[StoreDamagedError, ...]
    """Packs whose directories cannot be read: what only they have is lost."""


def make_indexes_anew(
    store: ObjectStore, node: str, progress: Callable[[int, int | None], None]
) -> Reindexed:
    """Makes anew what spoilt indexes of *store* listed; *progress* gets the packs read and all.
    Raises BusyError where a collection is under way; StoreFullError, StoreError."""
    me = register(store, "collector", node)
    try:
        alone(store, me)
        reader = BlockReader(store)
        if not reader.spoilt_indexes:
            return Reindexed((), 0, 0, ())
        told = {pack_name(pack) for table in reader.indexes.values() for pack in table.packs}
        names = [name for name in store.names("packs/") if name not in told]
        blocks: list[tuple[bytes, Place]] = []
        lost: list[StoreDamagedError] = []
        for number, name in enumerate(names):
            progress(number, len(names))
            try:
                blocks += _blocks_of(store, name)
            except StoreDamagedError as fault:
                lost.append(fault)
            except ObjectMissingError:
                continue
        if blocks:
            _put_index(store, blocks, reader.spoilt_indexes)
        for name in reader.spoilt_indexes:
            store.remove(name)
        return Reindexed(tuple(reader.spoilt_indexes), len(names), len(blocks), tuple(lost))
    finally:
        unregister(store, me)


def _put_index(
    store: ObjectStore, blocks: list[tuple[bytes, Place]], taken: Collection[str]
) -> None:
    """Puts an index of *blocks* under a name that is not *taken*, as that of the spoilt one which
    had the same is. Raises StoreFullError, StoreError."""
    for repeats in count():
        content = encode_index(blocks, repeats=repeats)
        if (name := index_name(content)) not in taken:
            put_same(store, name, content)
            return


def _blocks_of(store: ObjectStore, name: str) -> Iterator[tuple[bytes, Place]]:
    """Yields the blocks of the pack *name* by its directory. Raises StoreDamagedError."""
    pack = bytes.fromhex(name.removeprefix("packs/"))
    for id_, offset, stored_bytes, plain_bytes in read_directory(
        f"{store.where}/{name}", store.get(name)
    ):
        yield id_, Place(pack, offset, stored_bytes, plain_bytes)
