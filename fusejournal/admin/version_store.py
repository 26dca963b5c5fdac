"""The store of a volume's versions: beginning one, opening it, and its key."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from fusejournal.config import StoreConfig, find_config, load_config
from fusejournal.control.reply import Reply
from fusejournal.errors import ConfigError, UsageError
from fusejournal.node.state_dir import VolumeState
from fusejournal.objects.local import LocalStore
from fusejournal.objects.service import holds_secrets, is_address, parse_address
from fusejournal.objects.store import ObjectStore, ObjectTraffic, StoreError, probe
from fusejournal.versions.keys import StoreKey, StoreKeyError, read_key, remove_key, write_key
from fusejournal.versions.manifest import NoStoreError, StoreHead, make_store, store_head
from fusejournal.versions.place import (
    StorePlace,
    open_place,
    open_store,
    read_place,
    unsealed,
    write_place,
)

OWN_STORE = "versions"
"""The directory of a store in the state directory, of a volume whose admin has named no other."""


@dataclass(frozen=True, kw_only=True)
class StoreInitialized(Reply):
    """The outcome of ``version store init``."""

    OMITTED: ClassVar[frozenset[str]] = frozenset({"recovery_key"})

    store: str
    """A directory, or an address."""
    id: str
    key_id: str
    """The id of the key that it is encrypted with; empty if it is not."""
    recovery_key: str | None = None
    """The key of a store that was made."""


@dataclass(frozen=True, kw_only=True)
class StoreKeyId(Reply):
    """The id of the key that a volume's versions are encrypted with."""

    key_id: str


class InitializedStore(NamedTuple):
    """A store that a volume's versions are kept in from now on."""

    place: StorePlace
    new_key: StoreKey | None
    """The key of a store that was made; None of one that was there, or that is not encrypted."""

    def reply(self) -> StoreInitialized:
        """Returns what is reported of it."""
        new_key = self.new_key.text if self.new_key is not None else None
        return StoreInitialized(**self.place._asdict(), recovery_key=new_key)


def load_store_config(path: Path | None) -> StoreConfig:
    """Returns how a store is to be dealt with, by the configuration in *path*. Raises ConfigError,
    also where others can read credentials in it."""
    config = load_config(path).store
    if path is not None and holds_secrets(config.options) and path.stat().st_mode & 0o077:
        raise ConfigError(f"{path}: others can read credentials in [store.options]: chmod 600")
    return config


class VolumeStore:
    """The store of the volume with *state*. See VolumeVersions for the other arguments."""

    def __init__(
        self, state: VolumeState, waiting: Callable[[], None], config: Path | None
    ) -> None:
        self._state = state
        self._waiting = waiting
        self._config_file = config
        self.traffic: ObjectTraffic | None = None
        """The bytes that went to and came from the store that was opened last, if it is far."""

    # -- the store ---------------------------------------------------------------------------------

    def init(
        self,
        where: str,
        *,
        encrypt: bool | None = None,
        ask: Callable[[bool], bool] = bool,
        key: StoreKey | None = None,
    ) -> InitializedStore:
        """Has the versions be kept at *where*, a directory, which is made, or an address; tries
        whether it keeps what a store must.

        Args:
            encrypt: whether a store that is made is encrypted; one that is there has to be as this
                says. None: *ask* is called, with what is usual, where one is made.
            key: the key of one that is there, or is to be made, if the volume has none.

        Raises UsageError, ConfigError, StoreKeyError, StoreError, OSError."""
        where, store = self._open_for_init(where)
        probe(store)
        head = self._find_head(store)
        known = read_place(self._state.directory)
        if known is not None and (head is None or known.id != head.id):
            raise UsageError(
                f"the versions of {self._state.name} are in {known.store} already: move what is "
                f"there, and name its new place, or delete {self._state.directory / 'store.json'} "
                "to begin anew elsewhere"
            )
        new_key = None
        if head is None:
            is_encrypted = ask(is_address(where)) if encrypt is None else encrypt
            head, new_key = self._make(store, key, is_encrypted=is_encrypted)
        elif encrypt is not None and encrypt != bool(head.key_id):
            word = "encrypted" if head.key_id else "not encrypted"
            raise UsageError(f"{where} holds versions already, and is {word}: name another place")
        if key is not None and not head.key_id:
            raise UsageError(f"{where} is not encrypted: there is no key of it")
        if head.key_id:
            key = new_key or key or self.key()
            unsealed(store, head, key)
            assert key is not None
            self._keep_key(key, head.key_id)
        place = StorePlace(where, *head)
        write_place(self._state.directory, place)
        return InitializedStore(place, new_key)

    def _open_for_init(self, where: str) -> tuple[str, ObjectStore]:
        if is_address(where):
            where = str(parse_address(where))
            config = self.config()
            return where, open_store(where, writing=True, config=config, waiting=self._waiting)
        where = os.path.realpath(where)
        for above, what in (
            (self._state.mountpoint, "the volume's mountpoint"),
            (self._state.backing, "its backing"),
            (self._state.directory, "its state directory"),
        ):
            if Path(where).is_relative_to(os.path.realpath(above)):
                raise UsageError(
                    f"{where} is below {what}: versions need a place of their own, best on "
                    "another disk"
                )
        return where, LocalStore.make(Path(where))

    @staticmethod
    def _find_head(store: ObjectStore) -> StoreHead | None:
        try:
            return store_head(store)
        except NoStoreError:
            return None

    def _make(
        self, store: ObjectStore, key: StoreKey | None, *, is_encrypted: bool
    ) -> tuple[StoreHead, StoreKey | None]:
        """Makes a store. The key is on the disk before anything is encrypted with it."""
        if not is_encrypted:
            return make_store(store), None
        held = self.key()
        key = key or held or StoreKey.make()
        self._keep_key(key)
        head = make_store(store, key.id)
        if head.key_id != key.id and held is None:
            remove_key(self._state.directory)  # another node was first, with its own
        return head, key

    def config(self) -> StoreConfig:
        """Returns how the store is dealt with. Raises ConfigError."""
        return load_store_config(self._config_file or find_config(self._state.name))

    @property
    def place(self) -> StorePlace:
        """The place where they are kept. Raises StoreError where that is not said yet."""
        place = read_place(self._state.directory)
        if place is None:
            raise StoreError(
                self._state.name,
                "has no store of versions yet: 'fusejournal version store init "
                f"{self._state.name} --store DIR|s3://BUCKET/PREFIX'",
            )
        return place

    def open(self, *, writing: bool = False) -> ObjectStore:
        """Opens the store. Raises ConfigError, StoreKeyError, StoreError."""
        place = self.place
        store = open_place(
            place,
            writing=writing,
            key=self.key() if place.key_id else None,
            config=self.config(),
            waiting=self._waiting,
        )
        self.traffic = store.traffic
        return store

    def open_or_begin(self) -> ObjectStore:
        """Opens the store for writing; where none was named yet, one in the state directory is
        made, which is as closed to others, and on the same disk, as the journal. Raises
        ConfigError, StoreKeyError, StoreFullError, StoreError, OSError."""
        if read_place(self._state.directory) is None:
            where = self._state.directory / OWN_STORE
            head = make_store(LocalStore.make(where))
            write_place(self._state.directory, StorePlace(str(where), *head))
        return self.open(writing=True)

    # -- the key -----------------------------------------------------------------------------------

    def key(self) -> StoreKey | None:
        """Returns the volume's key, if it has one. Raises StoreKeyError, OSError."""
        return read_key(self._state.directory)

    def needed_key(self) -> StoreKey:
        """Returns the volume's key. Raises StoreKeyError where it has none; OSError."""
        key = self.key()
        if key is None:
            raise StoreKeyError(self._state.name, "has no key: its versions are not encrypted")
        return key

    def import_key(self, key: StoreKey) -> None:
        """Has *key* be the volume's. Raises StoreKeyError where it is not that of the store, or,
        without one, another is there; OSError."""
        place = read_place(self._state.directory)
        if place is not None and place.key_id not in ("", key.id):
            raise StoreKeyError(
                place.store, f"is encrypted with key {place.key_id}, and this is key {key.id}"
            )
        self._keep_key(key, place.key_id if place is not None else "")

    def _keep_key(self, key: StoreKey, wanted_id: str = "") -> None:
        """Writes down *key*, in place of another only if that of the store, *wanted_id*, is
        known."""
        try:
            held = self.key()
        except StoreKeyError:
            if not wanted_id:
                raise
            held = None  # spoilt, or open to others: it is written anew
        if held is not None and held.id != key.id and not wanted_id:
            raise StoreKeyError(
                str(self._state.directory),
                f"has key {held.id} already, and this is key {key.id}: move store.key away first",
            )
        if held is None or held.id != key.id:
            write_key(self._state.directory, key)
