"""Entries as values for JSON: one form for every command, page and script that shows them. Pure."""

import errno
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from fusejournal.history.marks import removed_name
from fusejournal.history.query import Match
from fusejournal.journal.format import Entry
from fusejournal.operations import MOVES, ImportData, Mark, Void, Write
from fusejournal.types import Seq


def exact(raw: bytes) -> str:
    """Returns a file name or path for scripts: bytes that are not UTF-8 become lone surrogates
    (U+DC80 to U+DCFF), as Python's ``os.fsdecode`` makes them, so that the bytes can be had
    again."""
    return raw.decode("utf-8", "surrogateescape")


def exact_or_none(raw: bytes | None) -> str | None:
    """The same, of what may not be known."""
    return None if raw is None else exact(raw)


def utc(time_ns: int) -> str:
    """Returns a time as ISO 8601 in UTC, to the nanosecond."""
    seconds, nanoseconds = divmod(time_ns, 10**9)
    return f"{_utc_second(seconds)}.{nanoseconds:09d}+00:00"


@lru_cache(maxsize=256)
def _utc_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


def errno_name(void: Void) -> str:
    """Returns why an entry was refused: ENOSPC."""
    return errno.errorcode.get(void.errno, str(void.errno))


def match_to_json(match: Match) -> dict[str, Any]:
    """Returns an entry with its paths; a refused one has ``refused``, its errno's name."""
    entry, (_, void), path, new_path = match
    operation = entry.operation
    line: dict[str, Any] = {
        "seq": entry.seq,
        "time": utc(entry.time_ns),
        "time_ns": entry.time_ns,
        "op": operation.kind.name.lower(),
        **entry.who._asdict(),
        "fid": None,
        "path": exact_or_none(path),
    }
    for key, value in zip(operation._fields, operation, strict=True):
        # A file's owner is not the caller: both are told.
        line[f"new_{key}" if key in ("uid", "gid") else key] = _plain(value)
    if isinstance(operation, Write | ImportData):
        line["bytes"] = len(entry.data)
    if isinstance(operation, Mark) and (removed := removed_name(operation)) is not None:
        line |= {"name": None, "removed_name": removed}
    if operation.kind in MOVES:
        line["new_path"] = exact_or_none(new_path)
    if void is not None:
        line["refused"] = errno_name(void)
        line["written"] = void.written
    return line


class DatalessMatch(NamedTuple):
    """An entry that is kept to be shown, without its data: that is a view of all that was read with
    it, and would hold it in memory."""

    match: Match
    data_bytes: int

    @classmethod
    def of(cls, match: Match) -> "DatalessMatch":
        """Returns *match* without its data."""
        entry = match.entry
        return cls(match._replace(entry=entry._replace(data=b"")), len(entry.data))

    @property
    def kept_bytes(self) -> int:
        """Returns about how many bytes are left of it: its fields, among them the values of
        attributes, and its paths."""
        entry, _, *paths = self.match
        return entry.frame_bytes - self.data_bytes + sum(map(len, filter(None, paths)))

    def to_json(self) -> dict[str, Any]:
        """Returns what :func:`match_to_json` does of the whole one."""
        line = match_to_json(self.match)
        return {**line, "bytes": self.data_bytes} if "bytes" in line else line


def whole_match_to_json(match: Match, asked_seq: Seq) -> dict[str, Any]:
    """Returns an entry with its paths and its place, frame and checksum; with ``void_seq`` where
    it was asked for by its VOID, *asked_seq*."""
    entry = match.entry
    line = {
        **match_to_json(match),
        "frame_bytes": entry.frame_bytes,
        "frame_offset": entry.offset,
        "flushed": entry.flushed,
        "chain": f"{entry.chain:016x}",
    }
    if entry.seq != asked_seq:
        line["void_seq"] = asked_seq
    return line


def frame_to_json(entry: Entry) -> dict[str, Any]:
    """Returns an entry as it lies in its segment, with the paths that it records."""
    operation = entry.operation
    return {
        "seq": entry.seq,
        "offset": entry.offset,
        "frame_bytes": entry.frame_bytes,
        "time_ns": entry.time_ns,
        "uid": entry.who.uid,
        "gid": entry.who.gid,
        "pid": entry.who.pid,
        "op": operation.kind.name.lower(),
        "fields": {
            key: _plain(value) for key, value in zip(operation._fields, operation, strict=True)
        },
        "data_bytes": len(entry.data),
        "paths": {str(fid): exact(path) for fid, path in (entry.paths or {}).items()},
        "flushed": entry.flushed,
        "chain": f"{entry.chain:016x}",
    }


def _plain(value: Any) -> Any:
    """Returns a field's value."""
    if isinstance(value, bytes):
        return exact(value)
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value
