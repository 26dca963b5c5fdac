"""The record of members that a node has (wire/members.py): a primary its own, a mirror that of its
primary.

::

    STATE/members.json    {"format": 1, "members": [numbers as on the wire]}, mode 0600

It is written atomically and durably. A loss of it means that a promotion of this node needs the
votes of all peers, of the former primary, too, unless another node that answers has a record. What
members are known to hold is saved now and then; everything else before any other node gets it. Used
from the event loop's thread, but for :meth:`MemberRecord.write`."""

import json
import threading
from pathlib import Path
from typing import Any, Final

import trio

from fusejournal.disk.files import UNREADABLE_JSON, Outlives, remove, write_atomically
from fusejournal.errors import FusejournalError, WireError
from fusejournal.types import Reign
from fusejournal.wire.members import Members, members_of, newest

MEMBERS_FILE: Final = "members.json"
_FORMAT: Final = 1
_FILE_BYTES_MAX: Final = 1 << 20


class MemberRecord:
    """The record in the state directory *directory*. Raises FusejournalError for a file that cannot
    be used."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / MEMBERS_FILE
        self.current: Members | None = _load(self.path)
        self._on_disk = self.current
        self._told: tuple[Members | None, tuple[int, ...]] = None, ()
        """The record that was made numbers of last, and these."""
        self._changed = trio.Event()
        self._writing = threading.Lock()
        self._changing = trio.Lock()

    @property
    def numbers(self) -> tuple[int, ...]:
        """The record as messages have it; empty where there is none. (Each batch asks who this node
        is, and a record of 65 nodes takes longer to write out than a small batch to send.)"""
        current = self.current
        if current is not self._told[0]:
            self._told = current, current.to_wire() if current is not None else ()
        return self._told[1]

    @property
    def is_unsaved(self) -> bool:
        """True if the file has not all that is known."""
        return self.current != self._on_disk

    def version_on_disk(self, reign: Reign) -> int:
        """Returns the version of the record of *reign* that is on the disk; 0 where none is."""
        on_disk = self._on_disk
        return on_disk.version if on_disk is not None and on_disk.reign == reign else 0

    def note(self, told: Members) -> bool:
        """Know what *told* says, in memory. Returns True if that is another record, and to be
        written now; False where it tells at most of what members hold."""
        current = self.current
        if current is None or told.order > current.order:
            self.current = told
            self._wake()
            return True
        if told.order == current.order:
            self.note_held(dict(told.held))
        return False

    def note_held(self, held: dict[int, Any]) -> None:
        """Know that members have acknowledged what *held* says, by node id."""
        current = self.current
        if current is None:
            return
        known = dict(current.held)
        further = {one: seq for one, seq in held.items() if seq > known.get(one, 0)}
        if further:
            told = current.holding(known | further)
            if told != current:
                self.current = told
                self._wake()

    def note_newest(self, records: list[Members | None]) -> None:
        """Know the newest of *records* and this one, in memory."""
        found = newest([self.current, *records])
        if found != self.current:
            self.current = found
            self._wake()

    def write(self, members: Members | None) -> None:
        """Have *members* in the file, or no file; when it returns, that is on the disk. A record
        that comes after *members* stays there. Any thread; blocks. Raises FusejournalError, and the
        file is as before; also where *members* could not be read again."""
        with self._writing:
            members = newest([members, self._on_disk]) if members is not None else None
            try:
                self._replace(members)
            except OSError as error:
                raise FusejournalError(f"{self.path}: cannot be saved: {error.strerror}") from None
            except WireError as error:
                raise FusejournalError(f"{self.path}: cannot be saved: {error}") from None
            self._on_disk = members

    def _replace(self, members: Members | None) -> None:
        if members is None:
            remove("members.removed", self.path)
            return
        numbers = members.to_wire()
        members_of(numbers)
        content = json.dumps({"format": _FORMAT, "members": numbers}).encode()
        write_atomically("members", self.path, content, Outlives.MACHINE)

    async def save(self) -> None:
        """Have all that is known in the file. Cancelled, it may be there or not. Raises
        FusejournalError."""
        async with self._changing:
            if self.is_unsaved:
                await trio.to_thread.run_sync(self.write, self.current)

    async def change(self, members: Members | None) -> None:
        """Make *members* the record: on the disk first, then for everybody, with what was heard
        meanwhile of what members hold. Cancelled, it may be on the disk alone. Raises
        FusejournalError, and all is as before."""
        async with self._changing:
            await trio.to_thread.run_sync(self.write, members)
            self.current = newest([members, self.current]) if members is not None else None
            self._wake()

    async def wait_past(self, told: tuple[int, ...]) -> tuple[int, ...]:
        """Return the record as messages have it when that is another than *told*. Cancelling is
        harmless."""
        while (numbers := self.numbers) == told:
            await self._changed.wait()
        return numbers

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


def _load(path: Path) -> Members | None:
    try:
        with open(path, "rb") as file:
            raw = json.loads(file.read(_FILE_BYTES_MAX))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FusejournalError(f"{path}: {error.strerror}") from None
    except UNREADABLE_JSON as error:
        raise _unusable(path, str(error)) from None
    try:
        if raw["format"] != _FORMAT:
            raise WireError("written by another version of fusejournal")
        numbers = raw["members"]
        if not all(type(one) is int and 0 <= one < 1 << 64 for one in numbers):
            raise WireError("what is no number")
        return members_of(numbers)
    except (WireError, *UNREADABLE_JSON) as error:
        raise _unusable(path, str(error)) from None


def _unusable(path: Path, why: str) -> FusejournalError:
    return FusejournalError(
        f"{path}: cannot be used: {why}; remove it: until a primary has told its members again, a "
        "promotion of this node needs the votes of all its peers"
    )
