"""The store of objects, as a protocol of four calls and one condition: *create if absent*, the only
one that every kind of store keeps. An object is never changed and never replaced.

An object's name is one or two components joined by "/", of lower-case letters, digits, "-" and
"_". A creation that failed may have happened all the same, and another creator may have been
first: :func:`put_same` reads back, so that its callers need not know. All functions block.

What a store promises: an object that :meth:`ObjectStore.put_new` made, or said to be there, is
durable with its name when the call returns or raises; a reader finds it whole or not at all; of
several creators of one name one wins, and the others get an error."""

import re
from collections.abc import Iterator
from typing import Protocol
from uuid import uuid4

from fusejournal.errors import FusejournalError

_NAME = re.compile(r"[a-z0-9_-]{1,240}(/[a-z0-9_-]{1,240})?")
_PROBE = "probe"


class StoreError(FusejournalError):
    """A store of versions cannot be used, or did not do what it was asked."""

    exit_code = 40

    def __init__(self, where: str, reason: str) -> None:
        self.where = where
        self.reason = reason
        super().__init__(f"{where}: {reason}")


class StoreFullError(StoreError):
    """The store has no space left."""

    exit_code = 41


class StoreAwayError(StoreError):
    """The store has not answered, or not to the purpose, for as long as it was tried."""

    exit_code = 47


class ObjectNotFlushedError(StoreError):
    """The object is there, and may be gone after a system crash: to read it back proves nothing."""


class ObjectMissingError(StoreError):
    """No object of that name exists."""


class ObjectExistsError(StoreError):
    """An object of that name is there already."""


class ObjectTraffic:
    """The bytes of objects that went to a far store, and came from it, so far: for people to look
    at, because threads that add at once may lose some."""

    def __init__(self) -> None:
        self.sent_bytes = self.received_bytes = 0
        self.is_away = False
        """True while requests fail and are made again."""

    def note(self, *, sent_bytes: int = 0, received_bytes: int = 0) -> None:
        """Note that so many more went, and came."""
        self.sent_bytes += sent_bytes
        self.received_bytes += received_bytes

    def note_away(self, is_away: bool) -> None:
        """Note that a request has failed, and is made again, or that one was answered."""
        self.is_away = is_away


class ObjectStore(Protocol):
    """One store. ``where`` names it in messages; ``uploads`` is the number of objects that it pays
    to be putting at a time."""

    where: str
    uploads: int

    @property
    def traffic(self) -> ObjectTraffic | None:
        """The traffic with a far store; None of one that is at hand."""
        ...

    def waiting(self) -> None:
        """Raises what is to end a wait for the store, such as KeyboardInterrupt, if anything."""
        ...

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Makes the object *name*, durably. Raises ObjectExistsError, with all as it was, if there
        is one; StoreFullError; ObjectNotFlushedError; StoreError, after which it may be there or
        not."""
        ...

    def get(self, name: str) -> bytes:
        """Returns the whole object. Raises ObjectMissingError, StoreError."""
        ...

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Returns *length* bytes of the object from byte *start* on; fewer where it ends before.
        Raises ObjectMissingError, StoreError."""
        ...

    def names(self, prefix: str) -> Iterator[str]:
        """Yields the names of objects that begin with *prefix*, which ends with "/", sorted. Raises
        StoreError."""
        ...

    def remove(self, name: str) -> None:
        """Removes the object *name*, durably; it may be gone already. Raises StoreError."""
        ...


def check_name(name: str) -> str:
    """Returns *name*, if an object can have it. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of an object")
    return name


def put_same(store: ObjectStore, name: str, data: bytes | bytearray | memoryview) -> bool:
    """Has the object *name* with content *data* be there, made by this call or another. Returns
    True if this call did. Raises StoreFullError; ObjectNotFlushedError; StoreError, also if there
    is one with other content."""
    try:
        store.put_new(name, data)
    except ObjectExistsError:
        made = False
    except (StoreFullError, ObjectNotFlushedError):
        raise
    except StoreError as error:
        # The call may have been carried out and only its answer lost.
        try:
            found = store.get(name)
        except StoreError:
            raise error from None
        if found != data:
            raise
        return True
    else:
        return True
    if store.get(name) != data:
        raise StoreError(store.where, f"{name} is there already, with other content")
    return made


def probe(store: ObjectStore) -> None:
    """Tries whether *store* keeps what :class:`ObjectStore` promises, by objects of its own, which
    are gone again afterwards. Raises StoreError."""
    name = f"{_PROBE}/{uuid4().hex}"
    first, second = b"first", b"second"
    store.put_new(name, first)
    try:
        try:
            store.put_new(name, second)
        except ObjectExistsError:
            pass
        else:
            raise StoreError(store.where, "makes an object that is there already a second time")
        if store.get(name) != first or store.get_range(name, 1, 3) != first[1:4]:
            raise StoreError(store.where, "does not give back what was put into it")
        if name not in store.names(f"{_PROBE}/"):
            raise StoreError(store.where, "does not list what was put into it")
    finally:
        store.remove(name)
    if name in store.names(f"{_PROBE}/"):
        raise StoreError(store.where, "still lists what was removed from it")
