"""The making of a version: of the newest one before it whose position is on this journal, or of the
journal from its first entry, and of the entries since.

It reads the journal and the store, and no live tree, so that it can be done on any node, beside
anything. A kill at any moment leaves all versions as they were: what it put so far are blocks that
the next attempt finds."""

from typing import Any, NamedTuple

from fusejournal.errors import JournalError, UsageError
from fusejournal.journal.reader import JournalReader
from fusejournal.objects.read_windows import WindowedStore
from fusejournal.objects.store import ObjectStore
from fusejournal.types import Progress, Seq
from fusejournal.versions.bases import pinned_keys, relied_on
from fusejournal.versions.blocks import WINDOWS_MAX, BlockWriter
from fusejournal.versions.builder import build_trees, no_trees
from fusejournal.versions.chunker import RULE
from fusejournal.versions.creators import (
    BusyError,
    Worker,
    check_registered,
    open_plan,
    register,
    unregister,
)
from fusejournal.versions.histories import newest_usable
from fusejournal.versions.manifest import (
    UnreadableVersion,
    Version,
    put_version,
    read_versions,
    remove_version,
)
from fusejournal.versions.packs import StoreDamagedError
from fusejournal.versions.sorted_tree import Nodes, SortedTree
from fusejournal.versions.trees import Trees


class Created(NamedTuple):
    """A version that was asked for."""

    version: Version
    is_new: bool
    """False where it was there already."""
    entry_count: int
    """The entries that were read for it."""
    unreadable: tuple[UnreadableVersion, ...]
    """Versions of the volume that were passed over, because they cannot be read."""
    faults: tuple[StoreDamagedError, ...]
    """Damage that was met: for the first kind it was not made of a nearer version; until spoilt
    indexes are made anew it may lack what only they listed."""

    def to_json(self) -> dict[str, Any]:
        """Returns what ``version create --json`` prints."""
        return {**self.version.to_json(), "is_new": self.is_new, "entries": self.entry_count}


def create_version(
    store: ObjectStore,
    reader: JournalReader,
    head_seq: Seq,
    name: str,
    made_by: str,
    made_ns: int,
    progress: Progress,
) -> Created:
    """Makes the version after entry *head_seq*. One that is there without a name is returned as it
    is, whatever *name* says.

    Args:
        store: where it is put.
        reader, head_seq: the journal, and its last entry whose outcome is known.
        name: the version's; empty: it has none.
        made_by, made_ns: the node that makes it, and the time of that, since 1970.
        progress: called between any two steps; may raise.

    Raises UsageError where *name* is taken, or the one that is there has another; JournalError
    where the journal begins later than any version; BusyError where it was taken for dead
    meanwhile; JournalDamagedError, StoreDamagedError, StoreFullError, StoreError."""
    chain, time_ns = _entry_at(reader, head_seq)
    assert reader.uuid is not None
    found = read_versions(store, reader.uuid)
    for version in found.versions:
        if (version.seq, version.chain) == (head_seq, chain):
            _check_name_of(version, name)
            return Created(version, False, 0, tuple(found.unreadable), ())
        if name and version.name == name:
            raise UsageError(f"a version {name!r} is there already, of seq {version.seq}")
    me = register(store, "creator", made_by)
    try:
        last = head_seq, chain, time_ns
        return _create_registered(store, me, reader, last, name, made_ns, progress)
    finally:
        unregister(store, me)


def _create_registered(
    store: ObjectStore,
    me: Worker,
    reader: JournalReader,
    last: tuple[Seq, int, int],
    name: str,
    made_ns: int,
    progress: Progress,
) -> Created:
    assert reader.uuid is not None
    head_seq, chain, time_ns = last
    found = read_versions(store, reader.uuid)
    plan = open_plan(store)
    # Nodes lie in packs beside those that are asked for next.
    windows = WindowedStore(store, ("packs/",), WINDOWS_MAX)
    blocks = BlockWriter(windows, plan[1] if plan is not None else frozenset())
    made_of = trees_of_nearest(blocks, found.versions, reader, head_seq, progress)
    trees, base, faults = made_of
    from_seq = Seq(base.seq + 1) if base is not None else Seq(1)
    nodes = Nodes(blocks)
    version = Version(
        reader.uuid,
        trees.epoch,
        head_seq,
        chain,
        time_ns,
        name,
        me.node,
        made_ns,
        base.key if base is not None else None,
        RULE,
        trees.inodes,
        trees.names,
        trees.next_fid,
        len(SortedTree(nodes, trees.inodes)),
        len(SortedTree(nodes, trees.names)),
        trees.content_bytes,
        blocks.added_bytes,
    )
    check_registered(store, me)
    made = put_version(store, version)
    try:
        check_registered(store, me)
    except BusyError:
        # A collection that did not wait may have taken what it relies on.
        if made is version:
            remove_version(store, version.key)
        raise
    if made is not version:
        _check_name_of(made, name)
    blocks.merge_indexes()
    faults += blocks.spoilt_indexes.values()
    return Created(made, True, head_seq + 1 - from_seq, tuple(found.unreadable), tuple(faults))


def _check_name_of(version: Version, name: str) -> None:
    """Raises UsageError if *version*, which was there already, has a name, and that is not *name*,
    if any. (One without a name keeps none: objects are never changed.)"""
    if name and version.name not in ("", name):
        raise UsageError(
            f"the tree after seq {version.seq} is version {version.name} already: no entry has "
            "come since; use that name"
        )


def _entry_at(reader: JournalReader, seq: Seq) -> tuple[int, int]:
    """Returns chain and time of entry *seq*."""
    for entry in reader.read(seq, Seq(seq + 1)):
        return entry.chain, entry.time_ns
    raise JournalError(f"seq {seq} cannot be read: the journal ends before it")


def trees_of_nearest(
    blocks: BlockWriter,
    versions: list[Version],
    reader: JournalReader,
    seq: Seq,
    progress: Progress,
) -> tuple[Trees, Version | None, list[StoreDamagedError]]:
    """Returns the trees after entry *seq*, made of the nearest of *versions* that is whole as far
    as it takes, and the entries between; what is new in them goes to *blocks*. Also returns that
    version, or None where they are made of the journal alone, and the faults of those that were
    passed over. Raises as :func:`create_version`."""
    faults: list[StoreDamagedError] = []
    left = list(versions)
    while True:
        try:
            base = newest_usable(left, reader, seq)
        except JournalError:
            if faults:
                raise faults[0] from None
            raise
        try:
            if base is not None:
                return trees_at(blocks, base, reader, seq, progress), base, faults
            trees = build_trees(blocks, no_trees(blocks), reader, Seq(1), Seq(seq + 1), progress)
            blocks.finish()
        except StoreDamagedError as fault:
            if base is None:
                raise
            faults.append(fault)
            left.remove(base)
        else:
            return trees, None, faults


def trees_at(
    blocks: BlockWriter, base: Version, reader: JournalReader, seq: Seq, progress: Progress
) -> Trees:
    """Returns the trees after entry *seq*, made of version *base* and the entries between; what is
    new in them goes to *blocks*. Raises as :func:`create_version`."""
    trees = build_trees(blocks, base.trees, reader, Seq(base.seq + 1), Seq(seq + 1), progress)
    blocks.finish()
    return trees


def delete_version(store: ObjectStore, key: str, node: str) -> None:
    """Deletes the version with *key*, which need not be readable. Raises UsageError where a journal
    relies on it; BusyError while a collection is under way, which relies on all versions that it
    has seen; StoreError."""
    me = register(store, "deleter", node)
    try:
        if key in pinned_keys(store):
            raise relied_on(key)
        if open_plan(store) is not None:
            raise BusyError(
                store.where, "a collection is under way: 'version collect' goes on with it"
            )
        remove_version(store, key)
    finally:
        unregister(store, me)
