"""Stores of objects for tests: one in memory, and one that loses answers."""

from collections.abc import Iterator

import pytest

from fusejournal.config import StoreConfig
from fusejournal.objects.service import do_not_wait
from fusejournal.objects.store import (
    ObjectExistsError,
    ObjectMissingError,
    ObjectStore,
    StoreError,
    check_name,
)
from fusejournal.versions.keys import StoreKey
from fusejournal.versions.sealed_store import SealedStore


class MemoryStore:
    """A store that ends with the process."""

    where = "memory"
    uploads = 1
    traffic = None

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def waiting(self) -> None:
        """Raises nothing."""

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        if check_name(name) in self.objects:
            raise ObjectExistsError(self.where, f"{name} is there already")
        self.objects[name] = bytes(data)

    def get(self, name: str) -> bytes:
        try:
            return self.objects[check_name(name)]
        except KeyError:
            raise ObjectMissingError(self.where, f"{name} is missing") from None

    def get_range(self, name: str, start: int, length: int) -> bytes:
        return self.get(name)[start : start + length]

    def names(self, prefix: str) -> Iterator[str]:
        check_name(prefix.removesuffix("/"))
        yield from sorted(name for name in self.objects if name.startswith(prefix))

    def remove(self, name: str) -> None:
        self.objects.pop(check_name(name), None)


class LossyStore(MemoryStore):
    """A store whose creations fail: before they are made, or, *late*, only the answer is lost."""

    def __init__(self, *, late: bool) -> None:
        super().__init__()
        self._late = late
        self.fails = True

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        if self._late or not self.fails:
            super().put_new(name, data)
        if self.fails:
            raise StoreError(self.where, "no answer")


def library_store() -> ObjectStore:
    """The store that reaches a service, with the library's own store in memory in its place."""
    stores = pytest.importorskip("obstore.store", reason="obstore is not installed")
    from fusejournal.objects.remote import RemoteStore

    return RemoteStore(stores.MemoryStore(), "library", StoreConfig(), do_not_wait)


KEY_OF_TESTS = StoreKey(bytes(range(32)))


def sealed_store(beneath: ObjectStore) -> SealedStore:
    """An encrypted store."""
    return SealedStore(beneath, KEY_OF_TESTS, "id-of-tests")
