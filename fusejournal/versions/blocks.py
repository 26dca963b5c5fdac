"""Blocks in a store: chunks and nodes by their ids. Read by :class:`BlockReader`; what is new is
gathered into packs by :class:`BlockWriter`.

The order in which a writer works is what makes a kill harmless: packs, then the index that tells of
them; a process that wants them to be kept puts the version's own object last. So whatever an index
lists is there. Data and nodes go into separate packs: a process that browses or compares reads
nodes alone.

Small indexes are merged now and then: the new one is put before the old ones are removed, and a
reader to whom one of these vanished looks again.

Memory: 48 bytes for each block in the store, a pack or two, and those under way to the store."""

from collections.abc import Iterable, Iterator

from fusejournal.objects.read_windows import WindowedStore
from fusejournal.objects.store import ObjectMissingError, ObjectStore, put_same
from fusejournal.objects.uploads import Uploads
from fusejournal.versions.packs import (
    IndexTable,
    Pack,
    Place,
    StoreDamagedError,
    block_id,
    encode_index,
    index_name,
    pack_name,
    plain_block,
)

_DATA_PACK_BYTES = 16 << 20
_NODE_PACK_BYTES = 4 << 20
_INDEX_BLOCKS = 100_000
"""Blocks after which a writer puts an index, so that a killed one has not worked for nothing."""
_INDEXES_MAX = 16
"""Indexes of which a writer, at its end, merges the smaller ones."""
_ATTEMPTS = 5
WINDOWS_MAX = 32
"""Windows on packs that a reader of many blocks keeps: 8 MiB."""


def read_indexes(
    store: ObjectStore, spoilt: dict[str, StoreDamagedError] | None = None
) -> dict[str, IndexTable]:
    """Returns all indexes of *store*, checked. Those that are not what was put there go into
    *spoilt*, by name; without it they raise StoreDamagedError. Raises StoreError."""
    known: dict[str, IndexTable] = {}
    for attempt in range(_ATTEMPTS):
        try:
            names = list(store.names("index/"))
            for name in names:
                try:
                    if name not in known:
                        known[name] = _read_index(store, name)
                except StoreDamagedError as fault:
                    if spoilt is None:
                        raise
                    spoilt[name] = fault
            return {name: known[name] for name in names if name in known}
        except ObjectMissingError:
            # Merged meanwhile: a newer one has its blocks.
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError


def _read_index(store: ObjectStore, name: str) -> IndexTable:
    content = store.get(name)
    where = f"{store.where}/{name}"
    if index_name(content) != name:
        raise StoreDamagedError(
            where,
            "is not what was put there: 'fusejournal version store check --repair' makes it anew "
            "from the packs",
        )
    return IndexTable(where, content)


class BlockReader:
    """Reads blocks of *store*, as its indexes were when this was made."""

    def __init__(self, store: ObjectStore, indexes: dict[str, IndexTable] | None = None) -> None:
        """*indexes*: those of *store*, where they have been read. Raises StoreError."""
        self.store = store
        self.spoilt_indexes: dict[str, StoreDamagedError] = {}
        """Indexes that are not what was put there: of what they told nothing is known."""
        self.spoilt: set[tuple[bytes, bytes]] = set()
        """Blocks that were read and are not what was put there: pack and id."""
        self.gone: set[bytes] = set()
        """Packs that an index lists, and that were looked for and are not there."""
        self.indexes: dict[str, IndexTable] = indexes or {}
        if indexes is None:
            self.look_again()

    def by_windows(self) -> "BlockReader":
        """Returns a reader of the same blocks that reads many in the order of their packs with few
        calls. Not of a BlockWriter that has not finished."""
        store = WindowedStore(self.store, ("packs/",), WINDOWS_MAX)
        return BlockReader(store, self.indexes)

    def look_again(self) -> None:
        """Reads the indexes again. Raises StoreError."""
        self.indexes = read_indexes(self.store, self.spoilt_indexes)

    def place(self, id_: bytes) -> Place | None:
        """Returns where block *id_* is, as far as is known with its bytes; or None if it is not in
        the store."""
        lost = None
        for place in self.places(id_):
            if place.pack not in self.gone and (place.pack, id_) not in self.spoilt:
                return place
            lost = place
        return lost

    def places(self, id_: bytes) -> Iterator[Place]:
        """Yields all places where block *id_* was put, as far as indexes list them."""
        for table in self.indexes.values():
            if (place := table.find(id_)) is not None:
                yield place

    def read(self, id_: bytes) -> bytes:
        """Returns block *id_*, checked, from whichever pack has it as it was put there. May be
        called by several threads. Raises StoreDamagedError, StoreError."""
        try:
            return self._read_any(id_)
        except ObjectMissingError:
            # A collection may have put it elsewhere meanwhile.
            self.look_again()
        return self._read_any(id_, is_last=True)

    def read_chunk(self, id_: bytes, length: int) -> bytes:
        """Returns chunk *id_*, which by what lists it has *length* bytes. Raises
        StoreDamagedError, also where it has not; StoreError."""
        chunk = self.read(id_)
        if len(chunk) != length:
            raise StoreDamagedError(
                self.store.where, f"chunk {id_.hex()} has {len(chunk)} bytes in place of {length}"
            )
        return chunk

    def _read_any(self, id_: bytes, *, is_last: bool = False) -> bytes:
        while (place := self.place(id_)) is not None:
            try:
                return self._read_at(id_, place)
            except ObjectMissingError:
                if not is_last:
                    raise
                if place.pack in self.gone:
                    raise self.missing(id_, " with its pack") from None
                self.gone.add(place.pack)
            except StoreDamagedError:
                if (place.pack, id_) in self.spoilt:
                    raise
                self.spoilt.add((place.pack, id_))
        raise self.missing(id_)

    def is_whole(self, id_: bytes, place: Place) -> bool:
        """Returns True if *place* has block *id_* as it was put there. Raises StoreError."""
        try:
            self._read_at(id_, place)
        except (ObjectMissingError, StoreDamagedError):
            return False
        return True

    def missing(self, id_: bytes, how: str = "") -> StoreDamagedError:
        """The error where block *id_* is missing, which may be for a spoilt index."""
        why = f"block {id_.hex()} is missing{how}"
        if self.spoilt_indexes:
            why += "; " + "; ".join(f"{fault}" for fault in self.spoilt_indexes.values())
        return StoreDamagedError(self.store.where, why)

    def _read_at(self, id_: bytes, place: Place) -> bytes:
        name = pack_name(place.pack)
        stored = self.store.get_range(name, place.offset, place.stored_bytes)
        return plain_block(f"{self.store.where}/{name}", id_, stored, place.plain_bytes)


class BlockWriter(BlockReader):
    """Reads and adds blocks. :meth:`finish` before any object that relies on them is put. Not for
    use by two threads at a time."""

    def __init__(self, store: ObjectStore, going: frozenset[bytes] = frozenset()) -> None:
        """*going*: packs that a collection has planned to remove. What is in them is read, and
        stored again where it is added; indexes that tell of them are left alone. What is in packs
        that are gone is stored again, too."""
        super().__init__(store)
        self._going = going
        # After the indexes: each pack is put before one tells of it.
        there = set(store.names("packs/"))
        told = {pack for table in self.indexes.values() for pack in table.packs}
        self.gone = {pack for pack in told if pack_name(pack) not in there}
        self.added_bytes = 0
        """Bytes of packs put so far."""
        self.added_blocks = 0
        self._data, self._nodes = Pack(nodes=False), Pack(nodes=True)
        self._open: dict[bytes, tuple[Pack, Place]] = {}
        """Blocks in packs that are not put yet."""
        self._closed: dict[bytes, Place] = {}
        """Blocks in packs of which no index tells yet."""
        self._uploads: Uploads[tuple[int, list[tuple[bytes, Place]]]] = Uploads(store)

    def place(self, id_: bytes) -> Place | None:
        return self._closed.get(id_) or super().place(id_)

    def read(self, id_: bytes) -> bytes:
        held = self._open.get(id_)
        if held is None:
            return super().read(id_)
        pack, place = held
        return plain_block(self.store.where, id_, pack.stored(place), place.plain_bytes)

    def add_chunk(self, plain: bytes | bytearray | memoryview) -> bytes:
        """Adds a chunk, if it is new. Returns its id. Raises StoreFullError, StoreError."""
        return self._add(plain, self._data)

    def add_node(self, plain: bytes) -> bytes:
        """Adds a node, if it is new. Returns its id. Raises StoreFullError, StoreError."""
        return self._add(plain, self._nodes)

    def add_stored(self, id_: bytes, stored: bytes, plain_bytes: int, *, is_node: bool) -> None:
        """Adds block *id_* as another store has it, if it is new. Raises StoreDamagedError where it
        is another block; StoreFullError, StoreError."""
        plain_block(self.store.where, id_, stored, plain_bytes)
        if not self.has(id_):
            pack = self._nodes if is_node else self._data
            self._added(id_, pack, pack.add_stored(id_, stored, plain_bytes))

    def has(self, id_: bytes) -> bool:
        """Returns True if the block need not be added."""
        return id_ in self._open or self._stays(id_)

    def _add(self, plain: bytes | bytearray | memoryview, pack: Pack) -> bytes:
        id_ = block_id(plain)
        if not self.has(id_):
            self._added(id_, pack, pack.add(id_, plain))
        return id_

    def _added(self, id_: bytes, pack: Pack, place: Place) -> None:
        self._open[id_] = pack, place
        self.added_blocks += 1
        if len(pack) >= (_DATA_PACK_BYTES if pack is self._data else _NODE_PACK_BYTES):
            self._put(pack)

    def _stays(self, id_: bytes) -> bool:
        """Returns True if the block is in a pack that is there, and is not about to be
        removed."""
        if id_ in self._closed:
            return True
        return any(
            place.pack not in self._going
            and place.pack not in self.gone
            and (place.pack, id_) not in self.spoilt
            for place in self.places(id_)
        )

    def _put(self, pack: Pack) -> None:
        """Puts *pack*; another takes its place."""
        if pack is self._data:
            self._data = Pack(nodes=False)
        else:
            self._nodes = Pack(nodes=True)
        id_, content, blocks = pack.finish()
        self._close(self._uploads.put(pack_name(id_), content, (len(content), blocks)))

    def _close(self, done: list[tuple[tuple[int, list[tuple[bytes, Place]]], bool]]) -> None:
        """Has the blocks of packs that are put be ready for an index."""
        for (content_bytes, blocks), is_new in done:
            self.added_bytes += content_bytes if is_new else 0
            self._closed.update(blocks)
            for one, _ in blocks:
                del self._open[one]
        if len(self._closed) >= _INDEX_BLOCKS:
            self._put_index(self._closed.items())
            self._closed = {}

    def _put_index(self, blocks: Iterable[tuple[bytes, Place]]) -> str:
        """Puts an index of *blocks*. Returns its name."""
        content = encode_index(blocks)
        name = index_name(content)
        put_same(self.store, name, content)
        self.indexes[name] = IndexTable(f"{self.store.where}/{name}", content)
        return name

    def finish(self) -> None:
        """Puts all that was added, and the index that tells of it. Raises StoreFullError,
        StoreError."""
        for pack in (self._data, self._nodes):
            if not pack.is_empty:
                self._put(pack)
        self._close(self._uploads.finish())
        if self._closed:
            self._put_index(self._closed.items())
            self._closed = {}

    def merge_indexes(self) -> None:
        """Merges small indexes, where there are many: each number of blocks gets a tenth of it
        merged into it at most, so that a block is written again a few times only. Raises
        StoreFullError, StoreError."""
        staying = {
            name: table
            for name, table in self.indexes.items()
            if not self._going.intersection(table.packs)
        }
        if len(staying) <= _INDEXES_MAX:
            return
        by_size = sorted(staying.items(), key=lambda item: len(item[1]))
        chosen: list[str] = []
        total = 0
        for name, table in by_size:
            if len(chosen) > 1 and len(table) > 2 * total and len(by_size) - len(chosen) < 8:
                break
            chosen.append(name)
            total += len(table)
        tables = [self.indexes[name] for name in chosen]
        merged = self._put_index(block for table in tables for block in table)
        for name in chosen:
            # A merge that was killed may have put the very same before.
            if name != merged:
                del self.indexes[name]
                self.store.remove(name)
