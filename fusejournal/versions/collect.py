"""Collection: removing the packs whose blocks no version has any more.

1. *Mark*: all blocks that versions have, from their roots down. Packs of which much is unused are
   rewritten: what is used of them goes into new packs, with an index.
2. *Plan*: the packs that are to go are listed in a numbered object (creators.py). Nothing is
   removed yet.
3. *Wait*: for all who began to create or read a version before they could see the plan. One that
   creates later takes what is in planned packs as absent, and stores it again. No version is
   deleted while a plan is open, so that all that a creator builds on is seen in the next step. One
   that was taken for dead meanwhile publishes nothing. So no version comes to rely on a planned
   pack.
4. *Mark* again: a pack that a version has come to need meanwhile stays.
5. *Remove*: first the indexes give way to one without the packs, then the packs go, then the plan
   is done.

What cannot be read may need anything: while the object of a version is spoilt or a newer program's,
nothing goes that an index lists, nor while that of a journal's base is gone; while an index is
spoilt, nothing goes at all.

A kill at any point leaves a plan that the next collection takes up. Creating, reading, listing go
on all along; a process that reads a block which was put elsewhere looks again. If others are at
work at step 3, the collection ends there and reports it. Memory: 49 bytes a block in the store."""

from collections import Counter
from collections.abc import Collection, Set
from typing import Any, Final, NamedTuple

from fusejournal.objects.store import ObjectStore, StoreFullError, put_same
from fusejournal.types import Progress
from fusejournal.versions.bases import pinned_keys
from fusejournal.versions.blocks import BlockReader, BlockWriter
from fusejournal.versions.chunk_list import ChunkNodes
from fusejournal.versions.creators import (
    Work,
    Worker,
    alone,
    check_registered,
    finish_plan,
    newest_plan,
    open_plan,
    put_plan,
    register,
    unregister,
    workers,
)
from fusejournal.versions.manifest import FoundVersions, UnreadableVersion, read_versions
from fusejournal.versions.packs import (
    PACK_MAGIC_BYTES,
    StoreDamagedError,
    encode_index,
    holds_nodes,
    index_name,
    pack_name,
)
from fusejournal.versions.records import blocks_of_inode, fid_of_key
from fusejournal.versions.sorted_tree import Nodes

_UNUSED_MAX = 0.2
"""The part of a pack's bytes from which on it is rewritten."""
_HELD_UP_BY: Final[Set[Work]] = frozenset({"creator", "reader"})


class Collected(NamedTuple):
    """The result of a collection; or of a dry run: what would be removed, and who is at work now
    and so would be waited for."""

    removed_packs: int
    removed_bytes: int
    """The bytes of blocks in these."""
    rewritten_bytes: int
    """The bytes of new packs with what was used of them."""
    planned_packs: int
    """Packs that are to go, and could not yet."""
    waiting_for: tuple[Worker, ...]
    unreadable: tuple[UnreadableVersion, ...] = ()
    """Versions that cannot be read: all that they may need stayed."""

    def to_json(self) -> dict[str, Any]:
        """Returns what ``version collect --json`` prints."""
        waiting = [worker.node for worker in self.waiting_for]
        unreadable = [one.key for one in self.unreadable]
        return {**self._asdict(), "waiting_for": waiting, "unreadable": unreadable}


NOTHING_COLLECTED: Final = Collected(0, 0, 0, 0, ())


def collect(
    store: ObjectStore,
    node: str,
    progress: Progress,
    *,
    dry_run: bool = False,
    without: Collection[str] = (),
) -> Collected:
    """Collects *store*, which several volumes may share; goes on with a plan that is not done. With
    *dry_run*: returns what would go, and changes nothing; also as if the versions whose keys are
    *without* were deleted before. *progress* gets the blocks marked. Raises BusyError where another
    collection is under way; StoreDamagedError where a version lacks a block, or an index is spoilt,
    with nothing removed; StoreFullError, StoreError."""
    if dry_run:
        usage = _Usage(store, progress, without)
        packs = usage.going()
        sizes = sum(usage.unused_bytes(pack) for pack in packs)
        waiting_for = _at_work(store, _HELD_UP_BY, forgetting=False) if packs else ()
        return Collected(0, sizes, 0, len(packs), waiting_for, usage.unreadable)
    me = register(store, "collector", node)
    try:
        alone(store, me)
        rewritten = 0
        plan = open_plan(store)
        if plan is None:
            if readers := _at_work(store, {"reader"}):
                return NOTHING_COLLECTED._replace(waiting_for=readers)
            packs, rewritten, unreadable = _prepare(store, progress)
            if not packs:
                return Collected(0, 0, rewritten, 0, (), unreadable)
            plan = newest_plan(store) + 1, packs
            put_plan(store, *plan)
        return _carry_out(store, me, *plan, progress)._replace(rewritten_bytes=rewritten)
    finally:
        unregister(store, me)


def _at_work(
    store: ObjectStore, works: Set[Work], *, forgetting: bool = True
) -> tuple[Worker, ...]:
    return tuple(one for one in workers(store, forgetting=forgetting) if one.work in works)


def _prepare(
    store: ObjectStore, progress: Progress
) -> tuple[frozenset[bytes], int, tuple[UnreadableVersion, ...]]:
    """Marks, and rewrites packs of which much is unused. Returns the packs that can go, the bytes
    of new packs, and what could not be read."""
    # What is there now: a pack that a creator puts meanwhile is none of ours.
    there = {name.removeprefix("packs/") for name in store.names("packs/")}
    usage = _Usage(store, progress)
    packs = usage.going()
    told = {pack for table in usage.reader.indexes.values() for pack in table.packs}
    lost = {bytes.fromhex(name) for name in there} - told
    if not packs:
        return frozenset(lost), 0, usage.unreadable
    writer = BlockWriter(store, packs)
    try:
        for pack in sorted(packs):
            usage.copy_used(pack, writer)
        writer.finish()
    except StoreFullError:
        # What is unused as a whole can go all the same, and makes room for the others.
        unused = packs - usage.owning | lost
        if not unused:
            raise
        return frozenset(unused), 0, usage.unreadable
    return packs | lost, writer.added_bytes, usage.unreadable


def _carry_out(
    store: ObjectStore, me: Worker, number: int, packs: frozenset[bytes], progress: Progress
) -> Collected:
    before = tuple(one for one in _at_work(store, _HELD_UP_BY) if one.plan < number)
    if before:
        return Collected(0, 0, 0, len(packs), before)
    usage = _Usage(store, progress)
    packs -= usage.needed(packs)
    sizes = Counter[bytes]()
    old = {name: table for name, table in usage.reader.indexes.items() if packs & set(table.packs)}
    for table in old.values():
        for _, place in table:
            sizes[place.pack] += place.stored_bytes
    check_registered(store, me)
    if old:
        content = encode_index(
            block for table in old.values() for block in table if block[1].pack not in packs
        )
        name = index_name(content)
        put_same(store, name, content)
        for one in old:
            if one != name:
                store.remove(one)
    check_registered(store, me)
    for pack in sorted(packs):
        store.remove(pack_name(pack))
    finish_plan(store, number)
    removed_bytes = sum(sizes[pack] for pack in packs)
    return Collected(len(packs), removed_bytes, 0, 0, (), usage.unreadable)


def _lost_bases(store: ObjectStore, found: FoundVersions) -> list[UnreadableVersion]:
    """Returns the versions that journals begin with (bases.py), and whose objects are gone."""
    read = {one.key for one in found.versions} | {one.key for one in found.unreadable}
    # In this order: a node that pins one looks afterwards whether it is there.
    lost = sorted(pinned_keys(store) - read)
    there = set(store.names("versions/")) if lost else set()
    return [
        UnreadableVersion(
            key, StoreDamagedError(store.where, f"version {key}, which a journal needs, is gone")
        )
        for key in lost
        if f"versions/{key}" not in there
    ]


class _Usage:
    """The blocks that versions have."""

    def __init__(
        self, store: ObjectStore, progress: Progress, without: Collection[str] = ()
    ) -> None:
        # Versions first: what one relies on was told by an index before it was there.
        found = read_versions(store, None)
        versions = [one for one in found.versions if one.key not in without]
        self.unreadable = (*found.unreadable, *_lost_bases(store, found))
        self.reader = reader = BlockReader(store)
        for fault in reader.spoilt_indexes.values():
            raise StoreDamagedError(fault.where, f"{fault.reason}; nothing is collected before")
        # After the indexes: each pack is put before one tells of it.
        there = set(store.names("packs/"))
        told = {pack for table in reader.indexes.values() for pack in table.packs}
        self._gone = {pack for pack in told if pack_name(pack) not in there}
        """Packs that indexes list, and that are lost: what another has, these have not."""
        self._progress = progress
        self._tables = list(reader.indexes.values())
        self._flags = [bytearray(len(table)) for table in self._tables]
        self._marked = 0
        self._nodes, self._lists = Nodes(reader), ChunkNodes(reader)
        for version in versions:
            self._mark_tree(version.inodes, with_contents=True)
            self._mark_tree(version.names, with_contents=False)
        self._count()

    def _mark(self, id_: bytes) -> bool:
        """Marks a block, wherever it is. Returns False if it was marked before."""
        is_new = is_there = False
        for table, flags in zip(self._tables, self._flags, strict=True):
            at = table.number(id_)
            if at is not None:
                is_there = True
                is_new = is_new or not flags[at]
                flags[at] = 1
        if not is_there:
            raise StoreDamagedError(
                self.reader.store.where, f"a version lacks block {id_.hex()}: nothing is collected"
            )
        self._marked += is_new
        self._progress(self._marked, None)
        return is_new

    def _mark_tree(self, root: bytes, *, with_contents: bool) -> None:
        todo = [root]
        while todo:
            id_ = todo.pop()
            if not self._mark(id_):
                continue
            level, items = self._nodes.read(id_)
            if level:
                todo += [item[1] for item in items]
            elif with_contents:
                for key, value in items:
                    self._mark_inode(key, value)

    def _mark_inode(self, key: bytes, value: bytes) -> None:
        ids, root = blocks_of_inode(fid_of_key(key), value, self.reader.store.where)
        for id_ in ids:
            self._mark(id_)
        todo = [root] if root is not None else []
        while todo:
            id_ = todo.pop()
            if self._mark(id_):
                level, items = self._lists.read(id_)
                below = [item[0] for item in items if item[0] is not None]
                if level:
                    todo += below
                else:
                    for one in below:
                        self._mark(one)

    def _count(self) -> None:
        """Counts the bytes of each pack, and those that only it has of what is used: of a block in
        several packs, the one of which the most is used counts."""
        self._bytes, used = Counter[bytes](), Counter[bytes]()
        for table, flags in zip(self._tables, self._flags, strict=True):
            for (_, place), flag in zip(table, flags, strict=True):
                self._bytes[place.pack] += place.stored_bytes
                used[place.pack] += place.stored_bytes if flag else 0
        self._rank = {
            pack: (-1.0 if pack in self._gone else used[pack] / max(size, 1), pack)
            for pack, size in self._bytes.items()
        }
        self._find_spoilt()
        self._owned = Counter[bytes]()
        for number, (table, flags) in enumerate(zip(self._tables, self._flags, strict=True)):
            for (id_, place), flag in zip(table, flags, strict=True):
                if flag and self._owns(number, id_, place.pack):
                    self._owned[place.pack] += place.stored_bytes

    def _find_spoilt(self) -> None:
        """Reads the used blocks that are in several packs: where one of these is spoilt, and has
        been stored again, that copy must be the one that stays."""
        self._spoilt: set[tuple[bytes, bytes]] = set()
        for table, flags in zip(self._tables, self._flags, strict=True):
            for (id_, place), flag in zip(table, flags, strict=True):
                if not flag:
                    continue
                packs = {one.pack for one in self.reader.places(id_)} - self._gone
                if len(packs) > 1 and not self.reader.is_whole(id_, place):
                    self._spoilt.add((place.pack, id_))

    def _rank_of(self, id_: bytes, pack: bytes) -> tuple[float, bytes]:
        """Returns by what *pack* is preferred to another as the home of block *id_*."""
        return (-1.0, pack) if (pack, id_) in self._spoilt else self._rank[pack]

    def _owns(self, number: int, id_: bytes, pack: bytes) -> bool:
        """Returns True if *pack* is the one that block *id_* is kept in, and table *number* the
        first that tells so."""
        for other, table in enumerate(self._tables):
            place = table.find(id_) if other != number else None
            if place is None:
                continue
            mine, theirs = self._rank_of(id_, pack), self._rank_of(id_, place.pack)
            if theirs > mine or (theirs == mine and other < number):
                return False
        return True

    def unused_bytes(self, pack: bytes) -> int:
        """Returns the bytes of blocks in *pack* that no version has, or that are in another,
        too."""
        return self._bytes[pack] - self._owned[pack]

    @property
    def owning(self) -> frozenset[bytes]:
        """The packs that have a used block which no other pack is to keep."""
        return frozenset(pack for pack, owned in self._owned.items() if owned)

    def going(self) -> frozenset[bytes]:
        """Returns the packs of which so much is unused that they can go."""
        if self.unreadable:
            return frozenset()
        return frozenset(
            pack
            for pack, size in self._bytes.items()
            if not self._owned[pack]
            or (pack not in self._gone and self.unused_bytes(pack) > _UNUSED_MAX * size)
        )

    def copy_used(self, pack: bytes, writer: BlockWriter) -> None:
        """Adds the used blocks of *pack*, if no other has them, to *writer*."""
        if not self._owned[pack]:
            return
        name = pack_name(pack)
        head = self.reader.store.get_range(name, 0, PACK_MAGIC_BYTES)
        is_of_nodes = holds_nodes(f"{self.reader.store.where}/{name}", head)
        add = writer.add_node if is_of_nodes else writer.add_chunk
        for number, (table, flags) in enumerate(zip(self._tables, self._flags, strict=True)):
            for (id_, place), flag in zip(table, flags, strict=True):
                if flag and place.pack == pack and self._owns(number, id_, pack):
                    add(self.reader.read(id_))

    def needed(self, packs: frozenset[bytes]) -> frozenset[bytes]:
        """Returns those of *packs* that have a used block which is in no pack there outside of
        them, or that a version which cannot be read may need."""
        if self.unreadable:
            told = (pack for table in self._tables for pack in table.packs)
            return packs.intersection(told)
        found: set[bytes] = set()
        for table, flags in zip(self._tables, self._flags, strict=True):
            for (id_, place), flag in zip(table, flags, strict=True):
                if flag and place.pack in packs and place.pack not in found:
                    places = (one.find(id_) for one in self._tables)
                    if not any(
                        one is not None
                        and one.pack not in packs | self._gone
                        and (one.pack, id_) not in self._spoilt
                        for one in places
                    ):
                        found.add(place.pack)
        return frozenset(found)
