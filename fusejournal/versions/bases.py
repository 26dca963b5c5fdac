"""Versions that stand for the beginning of a journal: while one does, it may not be deleted, on any
node. A pin is an empty object "bases/UUID-SEQ-CHAIN-OWNER": the key of the version, and the number
of the state directory whose journal has this base (16 hex digits).

A node that pins looks afterwards whether a deletion is under way, and whether the version is still
there; one that deletes says that first (creators.py), and then looks for pins. So one of the two
sees the other."""

from collections.abc import Iterator
from uuid import UUID

from fusejournal.errors import UsageError
from fusejournal.objects.store import ObjectStore, put_same
from fusejournal.versions.creators import BusyError, workers
from fusejournal.versions.manifest import read_versions
from fusejournal.versions.packs import StoreDamagedError

_PREFIX = "bases/"


def _name(key: str, owner: int) -> str:
    return f"{_PREFIX}{key}-{owner:016x}"


def pin(store: ObjectStore, key: str, uuid: UUID, owner: int) -> None:
    """Keeps the version from deletion that has *key*, of volume *uuid*, while the journal of
    *owner* relies on it. Raises BusyError while versions are being deleted; StoreDamagedError where
    it is gone; StoreFullError, StoreError."""
    put_same(store, _name(key, owner), b"")
    for worker in workers(store):
        if worker.work == "deleter":
            unpin(store, key, owner)
            raise BusyError(
                store.where, f"{worker.node} is deleting versions (pid {worker.pid}): try again"
            )
    found = read_versions(store, uuid)
    if key not in {*(one.key for one in found.versions), *(one.key for one in found.unreadable)}:
        unpin(store, key, owner)
        raise StoreDamagedError(store.where, f"version {key} is gone")


def unpin(store: ObjectStore, key: str, owner: int) -> None:
    """Removes the record that the journal of *owner* relies on the version *key*. Raises
    StoreError."""
    store.remove(_name(key, owner))


def relied_on(key: str) -> UsageError:
    """Returns the refusal to delete the version with *key*, which a journal relies on."""
    return UsageError(
        f"version {key} stands for the beginning of a journal that was pruned: nothing else tells "
        "what was there then"
    )


def pinned_keys(store: ObjectStore) -> frozenset[str]:
    """Returns the keys of versions that a journal relies on. Raises StoreError."""
    return frozenset(key for key, _ in _pins(store))


def keys_pinned_by(store: ObjectStore, owner: int) -> frozenset[str]:
    """Returns the keys of those that *owner*'s relies on. Raises StoreError."""
    return frozenset(key for key, other in _pins(store) if other == f"{owner:016x}")


def _pins(store: ObjectStore) -> Iterator[tuple[str, str]]:
    for name in store.names(_PREFIX):
        key, _, owner = name.removeprefix(_PREFIX).rpartition("-")
        yield key, owner
