"""Versions of a volume: what the commands of ``version`` do, as data. No layer need be running.

What only some of them need is loaded by those: a list of versions should not wait for it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fusejournal.address import node_name
from fusejournal.admin.version_store import VolumeStore
from fusejournal.admin.volume_path import volume_path
from fusejournal.errors import JournalError, UsageError, VolumeNotFoundError
from fusejournal.node.registry import find_volume
from fusejournal.node.state_dir import VolumeState
from fusejournal.objects.service import do_not_wait
from fusejournal.objects.store import ObjectStore, ObjectTraffic, StoreError, probe
from fusejournal.types import Progress, Seq
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.creators import reading, unregister, workers
from fusejournal.versions.manifest import (
    NoSuchVersionError,
    UnreadableVersion,
    Version,
    find_version,
    is_called,
    list_versions,
    objects_by_kind,
    protect,
    protected_keys,
    read_versions,
)
from fusejournal.versions.packs import StoreDamagedError, pack_name
from fusejournal.versions.place import StorePlace
from fusejournal.versions.verified_blocks import forget, forgetting

if TYPE_CHECKING:
    from fusejournal.admin.source import JournalSource
    from fusejournal.history.changes import Change
    from fusejournal.replay.made_aside import Restored
    from fusejournal.versions.collect import Collected
    from fusejournal.versions.create import Created
    from fusejournal.versions.histories import History
    from fusejournal.versions.reindex import Reindexed
    from fusejournal.versions.verify import Verified

_FAR_ENTRIES = 20_000
"""The number of entries after a version from which on a path is restored by its own entries."""


@dataclass(frozen=True)
class StoreFacts:
    """A store, and how many objects of each kind it has."""

    place: StorePlace
    objects: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Returns what ``version store show --json`` prints."""
        return {**self.place._asdict(), "objects": self.objects}


@dataclass(frozen=True)
class ListedVersion:
    """A version, and what is known beside it."""

    version: Version
    is_protected: bool
    history: "History"

    def to_json(self) -> dict[str, Any]:
        """Returns what ``version list --json`` and ``show --json`` print."""
        raw = self.version.to_json()
        beside = {"protected": self.is_protected, "history": self.history}
        return {**raw, "key": self.version.key, **beside}


def with_advice(volume: str, unreadable: UnreadableVersion) -> StoreError:
    """Returns the error of a version of *volume* that cannot be read, with what can be done about
    it."""
    key, error = unreadable
    if not isinstance(error, StoreDamagedError):
        return error
    return StoreDamagedError(
        error.where,
        f"{error.reason}: 'fusejournal version delete {volume} {key}' gives it up; until then "
        "nothing that it may need is collected",
    )


class ListedVersions(NamedTuple):
    """The versions of a volume, by seq, and those that cannot be read."""

    versions: list[ListedVersion]
    unreadable: list[UnreadableVersion]

    def find(self, name: str, wanted: str) -> ListedVersion:
        """Returns the version of volume *name* that is called *wanted*, or is of this seq, or has
        this key; of the history that is here, if there is one. Raises NoSuchVersionError; the error
        of the object where *wanted* is the key of one that cannot be read."""
        for one in self.unreadable:
            if one.key == wanted:
                raise one.error
        try:
            here = [one.version for one in self.versions if one.history != "lost"]
            version = find_version(here, name, wanted)
        except NoSuchVersionError:
            version = find_version([one.version for one in self.versions], name, wanted)
        return next(one for one in self.versions if one.version is version)


def versions_before(state: VolumeState, seq: Seq) -> list[Version]:
    """Returns the versions of a volume before entry *seq*, by seq. Raises StoreDamagedError,
    StoreError."""
    store = VolumeStore(state, do_not_wait, None).open(writing=False)
    return [one for one in list_versions(store, state.uuid) if one.seq < seq]


class VolumeVersions:
    """The versions of one volume."""

    def __init__(
        self,
        volume: str,
        waiting: Callable[[], None] = do_not_wait,
        config: Path | None = None,
    ) -> None:
        """*waiting* is called now and then while a store that is no directory is waited for, and
        may raise. *config*: the configuration, where it is not the one that the volume has.
        Raises VolumeNotFoundError, JournalError, UsageError."""
        self._volume = volume
        self._config = config
        self.state = self._find_state()
        self.name = self.state.name
        self.kept = VolumeStore(self.state, waiting, config)

    def _find_state(self) -> VolumeState:
        try:
            state = find_volume(self._volume)
        except (VolumeNotFoundError, PermissionError):
            from fusejournal.admin.source import open_source

            # It says what there is in its place.
            open_source(self._volume)
            raise UsageError(
                f"{self._volume} is a copy of a journal: versions are a volume's"
            ) from None
        if not state.has_journal():
            raise JournalError(f"{state.name}: there is no journal yet")
        return state

    @cached_property
    def source(self) -> "JournalSource":
        """The journal, opened by the first question to it. Raises JournalError."""
        from fusejournal.admin.source import source_of

        return source_of(self.state, self._config)

    # -- the store ---------------------------------------------------------------------------------

    def store(self, *, writing: bool = False) -> ObjectStore:
        """Opens the store. Raises ConfigError, StoreKeyError, StoreError."""
        return self.kept.open(writing=writing)

    @contextmanager
    def reading(self) -> Iterator[ObjectStore]:
        """Yields the store, of which nothing is collected for the length of the block that a
        version needs which is found in it: see creators.reading. Where damage is met, the next
        pruning reads all. Raises what :meth:`store` raises."""
        store = self.store()
        with forgetting(self.state.directory), reading(store, node_name(self.name)):
            yield store

    def traffic(self) -> ObjectTraffic | None:
        """Returns what went to and came from the store, if it is a far one that was opened."""
        return self.kept.traffic

    def store_facts(self) -> StoreFacts:
        """Returns what the store is and has. Raises StoreError."""
        return StoreFacts(self.kept.place, dict(objects_by_kind(self.store())))

    def check_store(self) -> StoreFacts:
        """Tries whether the store keeps what it must, whether its indexes and the objects of its
        versions can be read, and whether each pack that an index names is there. Raises
        StoreDamagedError, StoreError."""
        store = self.store(writing=True)
        probe(store)
        there = set(store.names("packs/"))
        reader = BlockReader(store)
        for fault in reader.spoilt_indexes.values():
            raise fault
        for unreadable in read_versions(store, None).unreadable:
            raise unreadable.error
        for table in reader.indexes.values():
            for pack in table.packs:
                if pack_name(pack) not in there:
                    raise StoreDamagedError(store.where, f"{pack_name(pack)} is missing")
        return self.store_facts()

    def repair_store(self, progress: Progress) -> "Reindexed":
        """Makes anew what spoilt indexes listed. Raises what make_indexes_anew raises."""
        from fusejournal.versions.reindex import make_indexes_anew

        return make_indexes_anew(self.store(writing=True), node_name(self.name), progress)

    # -- versions ----------------------------------------------------------------------------------

    def create(self, name: str, progress: Progress) -> "Created":
        """Makes a version of the tree as the journal has it now. Raises what create_version
        raises."""
        from fusejournal.node.version_record import note_made
        from fusejournal.versions.create import create_version

        if name.isdigit() or not name.isprintable():
            raise UsageError(f"{name!r} cannot be a version's name: it must not read as a seq")
        with forgetting(self.state.directory):
            made = create_version(
                self.store(writing=True),
                self.source.reader,
                self.source.head_seq,
                name,
                node_name(self.name),
                time.time_ns(),
                progress,
            )
        if made.faults:
            forget(self.state.directory)
        note_made(self.state.directory, made.version, is_new=made.is_new)
        return made

    def all(self) -> ListedVersions:
        """Returns all versions. Raises JournalError, JournalDamagedError, StoreError."""
        store = self.store()
        protected = protected_keys(store)
        found = read_versions(store, self.state.uuid)
        from fusejournal.versions.histories import histories

        stand = histories(found.versions, self.source.reader)
        listed = [
            ListedVersion(version, version.key in protected, stand[version.key])
            for version in found.versions
        ]
        return ListedVersions(listed, found.unreadable)

    def find(self, wanted: str) -> ListedVersion:
        """Returns a version: see ListedVersions.find. Raises StoreError."""
        return self.all().find(self.name, wanted)

    def _version(self, wanted: str) -> Version:
        """Returns what :meth:`find` finds. It reads the journal only where several versions are
        called so, of which the one of this history is meant."""
        found = read_versions(self.store(), self.state.uuid)
        for one in found.unreadable:
            if one.key == wanted:
                raise one.error
        named = [one for one in found.versions if is_called(one, wanted)]
        return named[0] if len(named) == 1 else self.find(wanted).version

    def changes(self, old: str, new: str, path: str | None, progress: Progress) -> "list[Change]":
        """Returns what differs between two versions; see find_version_changes."""
        from fusejournal.versions.difference import find_version_changes

        first, second = self._version(old), self._version(new)
        if first.seq > second.seq:
            raise UsageError(f"{old} is after {new}: the older one comes first")
        below = self.path(path) if path else b""
        blocks = BlockReader(self.store())
        return find_version_changes(blocks, first.trees, second.trees, below, progress)

    def verify(self, wanted: str, progress: Progress, *, with_data: bool) -> "Verified":
        """Verifies a version: see verify_version."""
        from fusejournal.versions.verify import verify_version

        with self.reading() as store:
            version = self._version(wanted)
            return verify_version(BlockReader(store), version, progress, with_data=with_data)

    def protect(self, wanted: str, *, on: bool) -> str:
        """Protects a version from being deleted, or no longer. Returns a name for it. Raises
        NoSuchVersionError, StoreError."""
        key, name = self._key_of(wanted)
        protect(self.store(writing=True), key, on=on)
        return name

    def _key_of(self, wanted: str) -> tuple[str, str]:
        """Returns the key of a version, which need not be readable, and a name for it. Raises
        NoSuchVersionError, StoreError."""
        if wanted in {one.key for one in self.all().unreadable}:
            return wanted, f"{wanted}, which cannot be read"
        version = self.find(wanted).version
        return version.key, f"{version.shown_name} of seq {version.seq}"

    def key_to_delete(self, wanted: str) -> tuple[str, str]:
        """Returns the key of a version, and a name for it. Raises UsageError where it is protected
        or the volume's journal begins with it; NoSuchVersionError, JournalError, StoreError."""
        from fusejournal.journal.base import load_base
        from fusejournal.versions.bases import relied_on

        key, name = self._key_of(wanted)
        base = load_base(self.state.directory)
        if base is not None and base.version == key:  # also where its pin was lost
            raise relied_on(key)
        if key in protected_keys(self.store()):
            raise UsageError(f"version {wanted} is protected: 'version protect --off' comes first")
        return key, name

    def delete(self, wanted: str) -> None:
        """Deletes a version. Raises what key_to_delete raises; BusyError."""
        from fusejournal.versions.create import delete_version

        key, _ = self.key_to_delete(wanted)
        delete_version(self.store(writing=True), key, node_name(self.name))

    def collect(
        self, progress: Progress, *, forget: str | None = None, dry_run: bool = False
    ) -> "Collected":
        """Collects the store, after forgetting those at work on node *forget*, which a person says
        are no more. Raises what collect raises; UsageError where that node has no process at
        work."""
        from fusejournal.versions.collect import collect

        store = self.store(writing=not dry_run)
        if forget is not None:
            gone = [worker for worker in workers(store) if worker.node == forget]
            if not gone:
                raise UsageError(f"no process of a node {forget!r} is at work on {store.where}")
            for worker in gone:
                unregister(store, worker)
        return collect(store, node_name(self.name), progress, dry_run=dry_run)

    def nearest(self, seq: Seq, path: bytes) -> Version | None:
        """Returns the version from which on *path* (``b""``: the whole tree) is best restored as
        it was after entry *seq*; None where the journal alone is better. Raises StoreError."""
        from fusejournal.versions.histories import newest_usable

        store = self.store()
        reader = self.source.reader
        version = newest_usable(list_versions(store, self.state.uuid), reader, seq)
        if version is None:
            return None
        is_far = bool(path) and seq - version.seq > _FAR_ENTRIES
        return None if is_far and self.source.lookup.is_whole else version

    def restore_after(
        self, version: Version, seq: Seq, path: bytes, target: Path, progress: Progress
    ) -> "Restored":
        """Restores *path* as it was after entry *seq*, from *version* and the entries between;
        what they come to is put together in a temporary directory. Raises what restore_trees and
        create_version raise; NoSuchVersionError where *version* is deleted by now."""
        with self.reading() as store:
            if version.key not in {one.key for one in list_versions(store, version.uuid)}:
                raise NoSuchVersionError(self.name, version.key, "was deleted meanwhile: try again")
            return self._restore_after(store, version, seq, path, target, progress)

    def _restore_after(
        self,
        store: ObjectStore,
        version: Version,
        seq: Seq,
        path: bytes,
        target: Path,
        progress: Progress,
    ) -> "Restored":
        from fusejournal.versions.restore import restore_trees, restore_version

        if version.seq == seq:
            return restore_version(BlockReader(store), version, path, target, progress)
        from fusejournal.disk.temporary import temporary_directory
        from fusejournal.objects.local import LocalStore
        from fusejournal.objects.overlay import OverlayStore
        from fusejournal.versions.blocks import BlockWriter
        from fusejournal.versions.create import trees_at

        with temporary_directory() as directory:
            blocks = BlockWriter(OverlayStore(store, LocalStore(directory)))
            trees = trees_at(blocks, version, self.source.reader, seq, progress)
            return restore_trees(blocks, version.uuid, trees, path, target, progress)

    def path(self, text: str) -> bytes:
        """Returns the path below the root that *text* stands for: see volume_path."""
        return volume_path(self.state, text)

    def restore(
        self, wanted: str, path: bytes, target: Path, progress: Progress
    ) -> "tuple[Restored, Version]":
        """Restores *path* as it is in a version: see restore_version."""
        from fusejournal.versions.restore import restore_version

        with self.reading() as store:
            version = self._version(wanted)
            return restore_version(BlockReader(store), version, path, target, progress), version
