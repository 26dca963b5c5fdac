"""Versions in a store: an object for each, put last, when all that it relies on is there.

The object "versions/UUID-SEQ-CHAIN" (32 hex digits, 20 digits, 16 hex digits) is a JSON object, so
a volume has one version a position, whichever node made it. ``root`` is the version's root hash:
the BLAKE3 of the msgpack array (1, UUID's 16 bytes, the rule of cutting, root of ``inodes``, root
of ``names``, next fid). It is the same on every node that makes the version of this seq. ``check``
is the BLAKE3 of the JSON without it, with sorted keys and no spaces.

A version is protected by an empty object "protected/UUID-SEQ-CHAIN", because no object is changed.

The store, too, has an object that describes it: "store", JSON with its format (1) and an id; of an
encrypted store (format 2) also with the id of its key and the ciphers. It is never sealed."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import msgpack

from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.disk.json_records import checked, hash_of_hex, parse_object
from fusejournal.errors import FusejournalError
from fusejournal.objects.store import (
    ObjectExistsError,
    ObjectMissingError,
    ObjectNotFlushedError,
    ObjectStore,
    StoreError,
    StoreFullError,
    put_same,
)
from fusejournal.types import Epoch, Fid, Seq
from fusejournal.versions.chunker import RULE
from fusejournal.versions.packs import ID_BYTES, StoreDamagedError, block_id
from fusejournal.versions.trees import Trees

_FORMAT, _FORMAT_SEALED = 1, 2
_CIPHERS = "aes-256-gcm aes-256-siv hkdf-sha256"
_STORE = "store"
_KEY = re.compile(r"([0-9a-f]{32})-([0-9]{20})-([0-9a-f]{16})")


class NoStoreError(StoreError):
    """No store of versions is there."""


class NoSuchVersionError(FusejournalError):
    """No version of that name or seq."""

    exit_code = 43

    def __init__(self, volume: str, wanted: str, reason: str = "") -> None:
        self.volume = volume
        self.wanted = wanted
        super().__init__(
            f"no version {wanted!r} of {volume}{reason}: see 'fusejournal version list {volume}'"
        )


@dataclass(frozen=True)
class Version:
    """One version, as its object describes it."""

    uuid: UUID
    epoch: Epoch
    seq: Seq
    """The last entry that is in it."""
    chain: int
    """The journal's chain up to and including that entry."""
    time_ns: int
    """The time of that entry."""
    name: str
    """The name that an admin gave; may be empty."""
    made_by: str
    """The node that made it."""
    made_ns: int
    parent: str | None
    """The key of the version that it was made of; None for one made of the journal alone."""
    rule: str
    """The rule of cutting."""
    inodes: bytes
    names: bytes
    next_fid: Fid
    file_count: int
    """The number of files, directories and others, each counted once."""
    name_count: int
    content_bytes: int
    added_bytes: int
    """The bytes of packs that it brought to the store."""

    @property
    def key(self) -> str:
        """Its part of the object's name."""
        return f"{self.uuid.hex}-{self.seq:020d}-{self.chain:016x}"

    @property
    def trees(self) -> Trees:
        """Its trees."""
        return Trees(self.inodes, self.names, self.next_fid, self.epoch, self.content_bytes)

    @property
    def root(self) -> str:
        """The root hash, in hex."""
        return root_hash(self.uuid, self.rule, self.trees)

    @property
    def shown_name(self) -> str:
        """The name by which a person finds it."""
        return self.name or str(self.seq)

    def to_json(self) -> dict[str, Any]:
        """Returns what is in the object, but for its check, and what ``--json`` prints."""
        raw = asdict(self)
        raw["uuid"] = str(self.uuid)
        raw["chain"] = f"{self.chain:016x}"
        raw["inodes"], raw["names"] = self.inodes.hex(), self.names.hex()
        return {"format": _FORMAT, "root": self.root, **raw}


def root_hash(uuid: UUID, rule: str, trees: Trees) -> str:
    """Returns the root hash of the version with *trees*: see the module."""
    fields = (_FORMAT, uuid.bytes, rule, trees.inodes, trees.names, trees.next_fid)
    return block_id(msgpack.packb(fields)).hex()


def _check_of(raw: dict[str, Any]) -> str:
    return block_id(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()).hex()


def encode_version(version: Version) -> bytes:
    """Returns the content of its object."""
    raw = version.to_json()
    return json.dumps({**raw, "check": _check_of(raw)}, indent=1).encode()


def decode_version(where: str, content: bytes) -> Version:
    """Returns the version with this object. Raises StoreDamagedError, which names *where* it was
    read; StoreError where a newer program wrote it."""
    try:
        raw = parse_object(content)
        found_format, check, root = raw.pop("format"), raw.pop("check"), raw.pop("root")
        if isinstance(found_format, int) and found_format > _FORMAT:
            raise StoreError(where, "is a version of a newer fusejournal: upgrade this one")
        version = checked(
            Version(
                **{
                    **raw,
                    "uuid": UUID(raw["uuid"]),
                    "chain": int.from_bytes(hash_of_hex("chain", raw["chain"], 8), "big"),
                    "inodes": hash_of_hex("inodes", raw["inodes"], ID_BYTES),
                    "names": hash_of_hex("names", raw["names"], ID_BYTES),
                }
            )
        )
        if check != (found := _check_of(version.to_json())):
            raise ValueError(f"its check is {check}, and {found} of what is there")
        if root != version.root:
            raise ValueError(f"its root is {root}, and {version.root} of what is there")
    except UNREADABLE_JSON as error:
        raise StoreDamagedError(where, f"is no version: {error}") from None
    if version.rule != RULE:
        raise StoreError(where, f"is cut by another rule, {version.rule}: upgrade this fusejournal")
    return version


def put_version(store: ObjectStore, version: Version) -> Version:
    """Puts *version*. Returns it, or the one of the same position that another node has put.
    Raises StoreDamagedError where that is another tree; StoreFullError,
    ObjectNotFlushedError, StoreError."""
    name = f"versions/{version.key}"
    try:
        put_same(store, name, encode_version(version))
    except (StoreFullError, ObjectNotFlushedError):
        raise
    except StoreError:
        try:
            found = decode_version(f"{store.where}/{name}", store.get(name))
        except ObjectMissingError:
            found = None
        if found is None:
            raise
        if found.root != version.root:
            raise StoreDamagedError(
                store.where,
                f"has another tree at seq {version.seq}, made by {found.made_by}: one of the two "
                "was made of something else than the journal: 'version verify --data' it",
            ) from None
        return found
    return version


class UnreadableVersion(NamedTuple):
    """The object of a version that cannot be read, because it is spoilt, or a newer program's."""

    key: str
    """Its part of the object's name."""
    error: StoreError


class FoundVersions(NamedTuple):
    """The versions in a store: one that cannot be read keeps no reader from the others."""

    versions: list[Version]
    """The versions by volume and seq."""
    unreadable: list[UnreadableVersion]


def read_versions(store: ObjectStore, uuid: UUID | None) -> FoundVersions:
    """Returns the versions of volume *uuid*, or of all (None). Raises StoreError."""
    found = FoundVersions([], [])
    for name in store.names("versions/"):
        key = name.removeprefix("versions/")
        match = _KEY.fullmatch(key)
        if match is not None and uuid is not None and match[1] != uuid.hex:
            continue
        try:
            content = store.get(name)
        except ObjectMissingError:
            continue  # removed meanwhile
        except StoreDamagedError as error:
            found.unreadable.append(UnreadableVersion(key, error))
            continue
        where = f"{store.where}/{name}"
        try:
            if match is None:
                raise StoreDamagedError(where, "is no version's name")
            version = decode_version(where, content)
            if version.key != key:
                raise StoreDamagedError(where, "is another version's object")
            found.versions.append(version)
        except StoreError as error:
            found.unreadable.append(UnreadableVersion(key, error))
    return found


def list_versions(store: ObjectStore, uuid: UUID) -> list[Version]:
    """Returns those versions of volume *uuid* that can be read, by seq. Raises StoreError."""
    return read_versions(store, uuid).versions


def is_called(version: Version, wanted: str) -> bool:
    """Returns True if *wanted* is the version's name, seq or key."""
    return bool(wanted) and wanted in (version.name, str(version.seq), version.key)


def find_version(versions: list[Version], volume: str, wanted: str) -> Version:
    """Returns the one of *versions* that is called *wanted*, or is of this seq, or has this key.
    Raises NoSuchVersionError."""
    found = [version for version in versions if is_called(version, wanted)]
    if len(found) > 1:
        keys = ", ".join(version.key for version in found)
        raise NoSuchVersionError(volume, wanted, f": it may be any of {keys}")
    if not found:
        raise NoSuchVersionError(volume, wanted)
    return found[0]


def remove_version(store: ObjectStore, key: str) -> None:
    """Removes the object of the version with *key*. Raises StoreError."""
    store.remove(f"versions/{key}")


def protected_keys(store: ObjectStore) -> set[str]:
    """Returns the keys of all protected versions. Raises StoreError."""
    return {name.removeprefix("protected/") for name in store.names("protected/")}


def protect(store: ObjectStore, key: str, *, on: bool) -> None:
    """Protects the version with *key* from being deleted, or no longer. Raises StoreFullError,
    StoreError."""
    name = f"protected/{key}"
    if on:
        put_same(store, name, b"")
    else:
        store.remove(name)


# -- the store itself ------------------------------------------------------------------------------


class StoreHead(NamedTuple):
    """The things that a store of versions says of itself."""

    id: str
    key_id: str
    """The id of the key that it is encrypted with; empty if it is not."""


def make_store(store: ObjectStore, key_id: str = "") -> StoreHead:
    """Makes a store of versions of *store*, if it is none; *key_id*: one that is encrypted with
    that key. Returns what it is. Raises StoreFullError, StoreError."""
    raw: dict[str, Any] = {"format": _FORMAT, "id": str(uuid4())}
    if key_id:
        raw |= {"format": _FORMAT_SEALED, "key_id": key_id, "ciphers": _CIPHERS}
    with suppress(ObjectExistsError):
        store.put_new(_STORE, json.dumps(raw).encode())
    return store_head(store)


def store_head(store: ObjectStore) -> StoreHead:
    """Returns what a store of versions is. Raises NoStoreError where it is none; StoreError where
    it is a newer program's."""
    try:
        raw = parse_object(store.get(_STORE))
        found_format, id_ = raw["format"], raw["id"]
        key_id = raw["key_id"] if found_format == _FORMAT_SEALED else ""
        head = checked(StoreHead(id_, key_id))
        is_known = found_format == _FORMAT or bool(key_id and raw["ciphers"] == _CIPHERS)
    except ObjectMissingError:
        raise NoStoreError(
            store.where, "holds no versions: 'fusejournal version store init' makes it a store"
        ) from None
    except UNREADABLE_JSON as error:
        raise StoreDamagedError(f"{store.where}/{_STORE}", f"is spoilt: {error}") from None
    if not is_known:
        raise StoreError(store.where, "is of a newer version of fusejournal: upgrade this one")
    return head


def objects_by_kind(store: ObjectStore) -> Iterator[tuple[str, int]]:
    """Yields what kinds of objects the store has, and how many of each. Raises StoreError."""
    for kind in ("versions", "protected", "index", "packs", "active"):
        yield kind, sum(1 for _ in store.names(f"{kind}/"))
