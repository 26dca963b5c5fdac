"""The making of a version: of the newest one before it whose position is on this journal, or of the
journal from its first entry, and of the entries since.

It reads the journal and the store, and no live tree, so that it can be done on any node, beside
anything. A kill at any moment leaves all versions as they were: what it put so far are blocks that
the next attempt finds."""

from typing import NamedTuple

from fusejournal.errors import JournalError, UsageError
from fusejournal.journal.reader import JournalReader
from fusejournal.objects.store import ObjectStore
from fusejournal.types import Seq
from fusejournal.versions.bases import pinned_keys
from fusejournal.versions.blocks import BlockWriter
from fusejournal.versions.builder import Progress, Trees, build_trees, no_trees
from fusejournal.versions.chunker import RULE
from fusejournal.versions.creators import (
    BusyError,
    Worker,
    check_registered,
    open_plan,
    register,
    unregister,
)
from fusejournal.versions.manifest import Version, list_versions, put_version, remove_version
from fusejournal.versions.sorted_tree import Nodes, SortedTree


class Created(NamedTuple):
    """A version that was asked for."""

    version: Version
    is_new: bool
    """False where it was there already."""
    entry_count: int
    """The entries that were read for it."""


def create_version(
    store: ObjectStore,
    reader: JournalReader,
    head_seq: Seq,
    name: str,
    made_by: str,
    made_ns: int,
    progress: Progress,
) -> Created:
    """Makes the version after entry *head_seq*, the last whose outcome is known. Raises UsageError
    where *name* is taken; JournalError where the journal begins later than any version;
    BusyError where it was taken for dead meanwhile; JournalDamagedError, StoreDamagedError,
    StoreFullError, StoreError."""
    chain, _ = _entry_at(reader, head_seq)
    assert reader.uuid is not None
    versions = list_versions(store, reader.uuid)
    for version in versions:
        if (version.seq, version.chain) == (head_seq, chain):
            _check_name_of(version, name)
            return Created(version, False, 0)
        if name and version.name == name:
            raise UsageError(f"a version {name!r} is there already, of seq {version.seq}")
    me = register(store, "creator", made_by)
    try:
        return _create_registered(store, me, reader, head_seq, name, made_ns, progress)
    finally:
        unregister(store, me)


def _create_registered(
    store: ObjectStore,
    me: Worker,
    reader: JournalReader,
    head_seq: Seq,
    name: str,
    made_ns: int,
    progress: Progress,
) -> Created:
    assert reader.uuid is not None
    chain, time_ns = _entry_at(reader, head_seq)
    base = newest_usable(list_versions(store, reader.uuid), reader, head_seq)
    plan = open_plan(store)
    blocks = BlockWriter(store, plan[1] if plan is not None else frozenset())
    trees = base.trees if base is not None else no_trees(blocks)
    from_seq = Seq(base.seq + 1) if base is not None else Seq(1)
    trees = build_trees(blocks, trees, reader, from_seq, Seq(head_seq + 1), progress)
    blocks.finish()
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
            remove_version(store, version)
        raise
    if made is not version:
        _check_name_of(made, name)
    blocks.merge_indexes()
    return Created(made, True, head_seq + 1 - from_seq)


def _check_name_of(version: Version, name: str) -> None:
    """Raises UsageError if *version*, which was there already, is not called *name*, if any."""
    if name and version.name != name:
        raise UsageError(
            f"the tree after seq {version.seq} is version {version.shown_name} already: no entry "
            "has come since"
        )


def newest_usable(versions: list[Version], reader: JournalReader, to_seq: Seq) -> Version | None:
    """Returns the newest of *versions* up to seq *to_seq* that is on this journal, whose entries
    after it are here; None where the journal is to be read from its first entry. Raises
    JournalError where neither is there."""
    first_seq = reader.first_seq
    for version in sorted(versions, key=lambda one: one.seq, reverse=True):
        if first_seq - 1 <= version.seq <= to_seq and is_on(version, reader):
            return version
    if first_seq > 1:
        raise JournalError(
            f"the journal here begins with seq {first_seq}, and no version in the store is of a "
            f"seq from {first_seq - 1} to {to_seq}: nothing tells the tree before"
        )
    return None


def is_on(version: Version, reader: JournalReader) -> bool:
    """Returns True if *version* was made of the history that *reader* reads, as far as its last
    entry, or the one behind it, is here. Raises JournalDamagedError."""
    first_seq = reader.first_seq
    if version.seq >= first_seq:
        return version.seq <= reader.head()[0] and _entry_at(reader, version.seq)[0] == (
            version.chain
        )
    header, _ = reader.beginning(reader.segments()[0])
    return version.seq + 1 == first_seq and header.chain_before == version.chain


def _entry_at(reader: JournalReader, seq: Seq) -> tuple[int, int]:
    """Returns chain and time of entry *seq*."""
    for entry in reader.read(seq, Seq(seq + 1)):
        return entry.chain, entry.time_ns
    raise JournalError(f"seq {seq} cannot be read: the journal ends before it")


def trees_at(
    blocks: BlockWriter, base: Version, reader: JournalReader, seq: Seq, progress: Progress
) -> Trees:
    """Returns the trees after entry *seq*, made of version *base* and the entries between; what is
    new in them goes to *blocks*. Raises as :func:`create_version`."""
    trees = build_trees(blocks, base.trees, reader, Seq(base.seq + 1), Seq(seq + 1), progress)
    blocks.finish()
    return trees


def delete_version(store: ObjectStore, version: Version, node: str) -> None:
    """Deletes *version*. Raises UsageError where a journal relies on it; BusyError while a
    collection is under way, which relies on all versions that it has seen; StoreError."""
    me = register(store, "deleter", node)
    try:
        if version.key in pinned_keys(store):
            raise UsageError(
                f"version {version.shown_name} stands for the beginning of a journal that was "
                "pruned: nothing else tells what was there then"
            )
        if open_plan(store) is not None:
            raise BusyError(
                store.where, "a collection is under way: 'version collect' goes on with it"
            )
        remove_version(store, version)
    finally:
        unregister(store, me)
