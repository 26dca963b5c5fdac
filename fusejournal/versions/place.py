"""The place of a volume's versions: STATE/store.json, a JSON object with the store and its id.

The id tells a store from another that lies at the same path: an empty directory where a disk is not
mounted, or a store that was made anew. The id of the key, of an encrypted store, keeps one that
says that it is not encrypted from being given anything."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fusejournal.config import StoreConfig
from fusejournal.disk.files import UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.disk.json_records import checked, read_object
from fusejournal.errors import FusejournalError
from fusejournal.objects.local import LocalStore
from fusejournal.objects.service import do_not_wait, is_address, open_service, parse_address
from fusejournal.objects.store import ObjectStore, StoreError
from fusejournal.versions.keys import StoreKey, StoreKeyError
from fusejournal.versions.manifest import StoreHead, store_head

_FORMAT = 1
_FILE = "store.json"
_DEFAULTS = StoreConfig()


class StorePlace(NamedTuple):
    """The place where a volume's versions are kept."""

    store: str
    """A directory, or an address."""
    id: str
    key_id: str = ""
    """The id of the key that it is encrypted with; empty if it is not."""


def read_place(state_dir: Path) -> StorePlace | None:
    """Returns where the versions of the volume with this state directory are kept, or None. Raises
    FusejournalError where the file is spoilt or a newer program's; OSError."""
    path = state_dir / _FILE
    try:
        raw = read_object(path)
        if raw["format"] != _FORMAT:
            raise FusejournalError(f"{path}: written by another version of fusejournal")
        return checked(StorePlace(raw["store"], raw["id"], raw.get("key_id", "")))
    except FileNotFoundError:
        return None
    except UNREADABLE_JSON as error:
        raise FusejournalError(
            f"{path}: cannot be read: {error}; delete it and say 'version store init' again"
        ) from None


def write_place(state_dir: Path, place: StorePlace) -> None:
    """Writes down where a volume's versions are kept, durably. Raises OSError."""
    raw = {"format": _FORMAT, **place._asdict()}
    if not place.key_id:
        del raw["key_id"]
    content = json.dumps(raw, indent=2).encode()
    write_atomically("version.place", state_dir / _FILE, content, Outlives.MACHINE)


def open_store(
    where: str,
    *,
    writing: bool,
    config: StoreConfig = _DEFAULTS,
    waiting: Callable[[], None] = do_not_wait,
) -> ObjectStore:
    """Opens the store at *where*, a directory or an address, whatever is in it. *config* and
    *waiting* are for an address: see open_service. Raises StoreError."""
    if is_address(where):
        return open_service(parse_address(where), config, waiting)
    return LocalStore(Path(where), writing=writing)


def open_place(
    place: StorePlace,
    *,
    writing: bool,
    key: StoreKey | None = None,
    config: StoreConfig = _DEFAULTS,
    waiting: Callable[[], None] = do_not_wait,
) -> ObjectStore:
    """Opens the store of *place*, with its *key* if it is encrypted: see open_store. Raises
    StoreError where it is another one, or not there; StoreKeyError."""
    store = open_store(place.store, writing=writing, config=config, waiting=waiting)
    found = store_head(store)
    if found.id != place.id:
        raise StoreError(
            place.store,
            f"is another store ({found.id}) than the one of this volume ({place.id}): is its disk "
            "mounted?",
        )
    if place.key_id and not found.key_id:
        raise StoreError(place.store, "was encrypted, and says that it is not any more")
    return unsealed(store, found, key)


def unsealed(store: ObjectStore, head: StoreHead, key: StoreKey | None) -> ObjectStore:
    """Returns *store*, which says of itself what is in *head*, as what its objects are read and
    put by. Raises StoreKeyError where it is encrypted, and *key* is not its key."""
    if not head.key_id:
        return store
    if key is None:
        raise StoreKeyError(
            store.where,
            f"is encrypted with key {head.key_id}, which is not here: "
            "'fusejournal version key import VOLUME', or --key-file",
        )
    if key.id != head.key_id:
        raise StoreKeyError(
            store.where, f"is encrypted with key {head.key_id}, and this is key {key.id}"
        )
    # Only here: see keys.py.
    from fusejournal.versions.sealed_store import SealedStore

    return SealedStore(store, key, head.id)
