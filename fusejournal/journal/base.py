"""The base of a journal: the entry after which its segments begin, once those before were pruned,
and what stands for them: a version, by the roots of its two trees (the room ``versions``).

The record STATE/base.json is replaced in one durable step before any segment goes. It is JSON, with
``check``, the xxh3-64 (16 hex digits) of itself without it, with sorted keys and no spaces. What is
found of segments up to the base is left over from a removal that was stopped, and passed over; the
next start removes it. On a full disk, which is when a journal is pruned that never was before, the
record is written into STATE/base.spare, a block that is kept for it from the first start on.

The tree at the base is shown to those who read a journal as entries which would make it: IMPORTs of
what was there first. Each file has its own, under the oldest name; further names are IMPORT_LINKs,
contents IMPORT_DATAs. Their seqs are negative, so that they come before all others, and tell what
they are about: those of contents the fid and the offset (:func:`base_seq_of`)."""

import json
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from uuid import UUID

import xxhash

from fusejournal.disk import calls
from fusejournal.disk.errnos import NO_SPACE
from fusejournal.disk.files import UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.disk.json_records import checked, hash_of_hex, read_object
from fusejournal.errors import JournalError
from fusejournal.types import Epoch, Fid, Position, Seq

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from fusejournal.journal.format import Entry
    from fusejournal.journal.index import Posting
    from fusejournal.operations import Import

_FORMAT = 1
_FILE = "base.json"
_SPARE = "base.spare"
_SPARE_BYTES = 4096
_OFFSET_BITS = 63
_ROOT_BYTES, _CHAIN_BYTES = 32, 8


@dataclass(frozen=True)
class JournalBase:
    """The record of a base."""

    uuid: UUID
    epoch: Epoch
    """The epoch that the last entry up to it is of."""
    seq: Seq
    """The last entry that is not in the journal any more."""
    chain: int
    """The journal's chain up to and including it."""
    time_ns: int
    """The time of that entry."""
    version: str
    """The key of the version that stands for all up to it."""
    store: str
    """The id of the store that has it."""
    inodes: str
    """The root of its tree of files, in hex."""
    names: str
    """The root of its tree of names, in hex."""
    next_fid: Fid
    content_bytes: int

    @property
    def position(self) -> Position:
        """The position of its last entry."""
        return Position(self.epoch, self.seq, self.chain)

    def to_json(self) -> dict[str, Any]:
        """Returns what is in the record, but for its format and check."""
        raw = asdict(self)
        return {**raw, "uuid": str(self.uuid), "chain": f"{self.chain:016x}"}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "JournalBase":
        """Returns the base that *raw* holds. Raises what UNREADABLE_JSON has."""
        for name in ("inodes", "names"):
            hash_of_hex(name, raw[name], _ROOT_BYTES)
        chain = int.from_bytes(hash_of_hex("chain", raw["chain"], _CHAIN_BYTES), "big")
        return checked(cls(**{**raw, "uuid": UUID(raw["uuid"]), "chain": chain}))


def base_path(state_dir: Path) -> Path:
    """Returns where the record of a volume's base is, if it has one."""
    return state_dir / _FILE


def load_base(state_dir: Path) -> JournalBase | None:
    """Returns the base of the journal in *state_dir*; None where it begins with entry 1, or never
    had one. Raises JournalError where the record cannot be read."""
    path = base_path(state_dir)
    try:
        raw = read_object(path)
        found_format, check = raw.pop("format"), raw.pop("check")
        if found_format != _FORMAT:
            raise JournalError(f"{path}: written by a newer version of fusejournal: upgrade this")
        if check != (found := _check_of(raw)):
            raise ValueError(f"its check is {check}, and {found} of what is there")
        return JournalBase.from_json(raw)
    except FileNotFoundError:
        return None
    except UNREADABLE_JSON as error:
        raise JournalError(
            f"{path}: cannot be read: {error}; without it nothing tells the tree before the "
            "journal's first entry: restore it"
        ) from None


def save_base(state_dir: Path, base: JournalBase) -> None:
    """Have *base* be the base, durably, in one step. Raises OSError: all is as before then."""
    raw = base.to_json()
    content = json.dumps({"format": _FORMAT, **raw, "check": _check_of(raw)}, indent=1).encode()
    try:
        write_atomically("journal.base", base_path(state_dir), content, Outlives.MACHINE)
    except OSError as error:
        if error.errno not in NO_SPACE or not _save_in_spare(state_dir, content):
            raise


def keep_spare(state_dir: Path) -> None:
    """Makes the spare block that :func:`save_base` uses on a full disk, durably, unless it is
    there. A disk that is full already is ignored; raises OSError otherwise."""
    path = state_dir / _SPARE
    try:
        if path.exists() and path.stat().st_size == _SPARE_BYTES:
            return
        write_atomically("journal.spare", path, bytes(_SPARE_BYTES), Outlives.MACHINE)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise


def _save_in_spare(state_dir: Path, content: bytes) -> bool:
    """Writes *content* into the block that is kept for it, which then gets the record's name.
    Returns False where there is none."""
    path = state_dir / _SPARE
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if os.fstat(fd).st_size != _SPARE_BYTES or len(content) > _SPARE_BYTES:
            return False
        calls.write_all("journal.spare.fill", fd, content.ljust(_SPARE_BYTES), 0)
        calls.fsync("journal.spare.flush", fd)
    finally:
        os.close(fd)
    calls.rename("journal.spare.use", path, base_path(state_dir))
    calls.fsync_directory("journal.spare.used", state_dir)
    return True


def _check_of(raw: dict[str, Any]) -> str:
    content = json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()
    return f"{xxhash.xxh3_64_intdigest(content):016x}"


IsRead = Callable[[Fid, int, int], bool]
"""Receives a file and a range of its content, half-open: True if its bytes are wanted."""


def all_read(_: Fid, __: int, ___: int) -> bool:
    """Wants all bytes."""
    return True


class BaseNode(NamedTuple):
    """A file or directory at the base."""

    fid: Fid
    type: int
    """The type bits of its mode."""
    size: int
    mtime_ns: int | None
    """None for the root while no entry has recorded it."""
    complete: bool
    """False while an import had not brought all of its content."""
    dentries: tuple[tuple[Fid, bytes, int], ...]
    """Its names: directory, name and cookie, the oldest first."""
    flags: int
    """The journaled file flags."""


class BaseFile(NamedTuple):
    """Everything of a file or directory at the base, but for its content."""

    making: "Import"
    """The operation that makes it under the oldest of its names."""
    node: BaseNode


class BasePiece(NamedTuple):
    """A piece of a regular file's content at the base."""

    fid: Fid
    start: int
    data: bytes
    is_last: bool
    """True for the last one of the file."""


class FileChange(NamedTuple):
    """A file or directory of which another tree has something else than the base."""

    fid: Fid
    other_path: bytes | None
    """Its path in the other tree; None where it was not there."""
    size: int | None
    """The size of its content at the base; None where it has none, or is not there."""
    ranges: tuple[tuple[int, int], ...]
    """Offset and length of those parts of that which the other has not at the same place."""
    has_flags: bool
    """True if either has file flags."""


class BaseTree(Protocol):
    """The tree at a journal's base. Methods raise StoreError where the store cannot be read,
    StoreDamagedError."""

    base: JournalBase

    def check_there(self) -> None:
        """Raises StoreError where the version that stands for it cannot be had. It loads no
        index."""
        ...

    def node(self, fid: Fid) -> BaseNode | None:
        """Returns what *fid* was; None where it had no name."""
        ...

    def nodes(self) -> Iterator[BaseNode]:
        """Yields all, the root too, by fid."""
        ...

    def fid_of_name(self, directory: Fid, name: bytes) -> Fid | None:
        """Returns the fid that a name stood for."""
        ...

    def children(self, directory: Fid) -> Iterator[tuple[bytes, Fid]]:
        """Yields the names in a directory, and what they stood for."""
        ...

    def file(self, fid: Fid) -> BaseFile | None:
        """Returns what makes *fid*; None where it had no name."""
        ...

    def contents(
        self, is_wanted: Callable[[BaseFile], bool], pool: "Executor"
    ) -> Iterator[BasePiece]:
        """Yields the contents of files, which *pool* reads ahead: those of a file, at least one
        piece, together, and the files by fid. *is_wanted* is called with each file but the root, by
        fid, some time before its pieces would come; False: they are not to come."""
        ...

    def changes_from(self, inodes: str, names: str) -> Iterator[FileChange]:
        """Yields the files that differ in the tree with these roots (in hex), in time proportional
        to the difference. Its blocks have to be in the same store."""
        ...

    def entries(
        self,
        fids: Collection[Fid],
        wanted: "Callable[[Posting], bool]",
        is_read: IsRead = all_read,
    ) -> "Iterator[Entry]":
        """Yields those entries for *fids* for which *wanted* holds, a fid's together: of a
        directory, also one for each name in it. Contents for which *is_read* does not hold have as
        many zeros for data."""
        ...

    def data(self, seq: Seq) -> "Entry":
        """Returns the entry with a content that has this seq."""
        ...

    def forget(self) -> None:
        """Drops what it keeps in memory, until the next question."""
        ...


def base_seq_of(fid: Fid, offset: int = 0) -> Seq:
    """Returns the seq that the entry with the content of *fid* from byte *offset* on has."""
    return Seq(-1 - (fid << _OFFSET_BITS | offset))


def content_at(seq: Seq) -> tuple[Fid, int]:
    """Returns the fid and the offset that :func:`base_seq_of` has made *seq* of."""
    number = -1 - seq
    return Fid(number >> _OFFSET_BITS), number & (1 << _OFFSET_BITS) - 1
