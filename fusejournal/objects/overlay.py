"""A store over another one, which it leaves as it is: what is made goes into the upper one. For
what is needed for a moment only, such as the state between two versions."""

from collections.abc import Iterator

from fusejournal.objects.store import (
    ObjectExistsError,
    ObjectMissingError,
    ObjectStore,
    StoreError,
)


class OverlayStore:
    """The objects of *lower* and *upper* together. Raises what the two do."""

    def __init__(self, lower: ObjectStore, upper: ObjectStore) -> None:
        self.where = lower.where
        self.uploads = upper.uploads
        self.traffic = lower.traffic
        self._lower = lower
        self._upper = upper

    def waiting(self) -> None:
        """Raises what is to end a wait."""
        self._lower.waiting()

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Makes the object *name* in the upper store."""
        try:
            self._lower.get_range(name, 0, 1)
        except ObjectMissingError:
            self._upper.put_new(name, data)
        else:
            raise ObjectExistsError(self.where, f"{name} is there already")

    def get(self, name: str) -> bytes:
        """Returns the whole object."""
        try:
            return self._upper.get(name)
        except ObjectMissingError:
            return self._lower.get(name)

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Returns a range of the object."""
        try:
            return self._upper.get_range(name, start, length)
        except ObjectMissingError:
            return self._lower.get_range(name, start, length)

    def names(self, prefix: str) -> Iterator[str]:
        """Yields the names of both."""
        yield from sorted({*self._upper.names(prefix), *self._lower.names(prefix)})

    def remove(self, name: str) -> None:
        """Removes an object of the upper store. Raises StoreError for one of the lower."""
        self._upper.remove(name)
        try:
            self._lower.get_range(name, 0, 1)
        except ObjectMissingError:
            return
        raise StoreError(self.where, f"{name} is only to be read")
