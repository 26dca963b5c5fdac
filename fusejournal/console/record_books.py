"""Records by name in one file of the console's directory: users, tokens, agents.

The file is read anew when it has changed, so that commands work beside a console that runs. A
change reads it just before and replaces it whole, alone: all changes take turns by a lock
in the directory, so that no process or thread loses what another has changed.

Source: flock(2)."""

import fcntl
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.disk.json_records import read_object
from fusejournal.errors import FusejournalError

Named = TypeVar("Named")


class RecordBook(ABC, Generic[Named]):
    """The records in one file. Blocks; any thread may call it."""

    def __init__(self, path: Path, kind: str) -> None:
        """*kind*: the name of the list in the file."""
        self._path = path
        self._kind = kind
        self._records: dict[str, Named] = {}
        self._stamp: tuple[int, int] | None = None

    @abstractmethod
    def _record_of(self, raw: dict[str, Any]) -> Named:
        """Returns the record of what the file has. Raises what UNREADABLE_JSON has."""

    @abstractmethod
    def _write(self, content: bytes) -> None:
        """Replaces the file. Raises OSError."""

    def all(self) -> dict[str, Named]:
        """Returns the records by name. Raises FusejournalError where the file cannot be read."""
        try:
            found = self._path.stat()
            stamp = found.st_ino, found.st_mtime_ns
            if stamp != self._stamp:
                self._records = self._read()
                self._stamp = stamp
        except FileNotFoundError:
            self._records, self._stamp = {}, None
        except (OSError, *UNREADABLE_JSON) as error:
            raise self._unreadable(error) from None
        return self._records

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Named]]:
        """Yields the records, for the length of the block no other's to change. What the block has
        made of them is kept at its end, unless it raises. Waits for those that are changing some.
        Raises FusejournalError, OSError."""
        fd = os.open(self._path.with_name("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            try:
                before = self._read()
            except FileNotFoundError:
                before = {}
            except (OSError, *UNREADABLE_JSON) as error:
                raise self._unreadable(error) from None
            records = dict(before)
            yield records
            if records != before:
                self._save(records)
        finally:
            os.close(fd)

    def _read(self) -> dict[str, Named]:
        raw = read_object(self._path)
        return {one["name"]: self._record_of(one) for one in raw[self._kind]}

    def _save(self, records: Mapping[str, Named]) -> None:
        ordered: list[Any] = [records[name] for name in sorted(records)]
        raw = {self._kind: [asdict(one) for one in ordered]}
        self._write(json.dumps(raw, indent=1).encode())

    def _unreadable(self, error: Exception) -> FusejournalError:
        return FusejournalError(f"{self._path}: cannot be read: {error}")
