"""The side of a copy that has the tree: answers what a mirror asks (wire/block_messages.py), from
the versions and blocks of a store. It changes nothing there.

Blocks go as they lie in the store, so it costs no compression; the mirror that gets them checks
them by their ids. A peer that knows no id gets nothing: of what else is in the store a mirror
learns nothing.

The JSON of a TREE_REPORT: ``{"done", "total"}`` while a version is made; else ``{"version"}``, the
version's object as the store has it, or null, ``{"head_seq", "first_seq", "journal_bytes"}`` of the
journal beside it, and ``{"store"}``, the id of the store."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.objects.store import ObjectMissingError
from fusejournal.types import Seq
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.manifest import Version, decode_version, encode_version
from fusejournal.versions.packs import Place, StoreDamagedError, pack_name
from fusejournal.wire.block_messages import AskBlocks, Blocks, TreeReport
from fusejournal.wire.frames import WireError

_ANSWER_BYTES = 1 << 20
"""A message with blocks is sent when it has as many."""


@dataclass(frozen=True)
class OfferedTree:
    """The tree that a source offers, and the journal beside it."""

    version: Version | None
    """None where there is none yet."""
    store: str
    """The id of the store that it is in."""
    first_seq: Seq
    """The first entry of the source's journal."""
    head_seq: Seq
    """The last entry of the source's journal."""
    journal_bytes: int
    """The bytes that all of the source's journal occupies."""

    def told(self) -> TreeReport:
        """Returns the message that reports it."""
        version = encode_version(self.version).decode() if self.version is not None else None
        raw = {
            "version": version,
            "store": self.store,
            "first_seq": self.first_seq,
            "head_seq": self.head_seq,
            "journal_bytes": self.journal_bytes,
        }
        return TreeReport(json.dumps(raw).encode())

    @classmethod
    def from_fields(cls, where: str, raw: dict[str, Any]) -> "OfferedTree":
        """Returns the tree that *raw* describes, which came from *where*. Raises WireError,
        StoreError."""
        try:
            version = raw["version"]
            if version is not None:
                version = decode_version(where, str(version).encode())
            return cls(
                version,
                str(raw["store"]),
                Seq(int(raw["first_seq"])),
                Seq(int(raw["head_seq"])),
                int(raw["journal_bytes"]),
            )
        except UNREADABLE_JSON as error:
            raise WireError(f"{where}: a tree that cannot be: {error!r}") from None


def answer_blocks(blocks: BlockReader, asked: AskBlocks) -> Iterator[Blocks]:
    """Yields what *asked* wants, as far as *blocks* has it. Raises StoreError."""
    stored: list[bytes] = []
    plain: list[int] = []
    size = 0
    for id_ in asked.ids:
        found = _stored(blocks, id_)
        stored.append(found[0])
        plain.append(found[1])
        size += len(found[0])
        if size >= _ANSWER_BYTES:
            yield Blocks(tuple(map(len, stored)), tuple(plain), b"".join(stored))
            stored, plain, size = [], [], 0
    if stored:
        yield Blocks(tuple(map(len, stored)), tuple(plain), b"".join(stored))


def _stored(blocks: BlockReader, id_: bytes) -> tuple[bytes, int]:
    """Returns a block as the store has it, and its size uncompressed; nothing where it is gone."""
    for is_second in (False, True):
        if is_second:
            blocks.look_again()  # a collection may have put it elsewhere
        if (place := blocks.place(id_)) is None:
            continue
        try:
            return _read(blocks, place), place.plain_bytes
        except (StoreDamagedError, ObjectMissingError):
            continue
    return b"", 0


def _read(blocks: BlockReader, place: Place) -> bytes:
    name = pack_name(place.pack)
    stored = blocks.store.get_range(name, place.offset, place.stored_bytes)
    if len(stored) != place.stored_bytes:
        raise StoreDamagedError(f"{blocks.store.where}/{name}", "ends too early")
    return stored
