"""The tree of a volume at any moment, and its files' lives: what a file manager shows, answered by
the indexes of the journal."""

import base64
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from fusejournal.admin.source import JournalSource
from fusejournal.agent.accounts import account_names
from fusejournal.agent.archives import content_of_image, members_of_moment
from fusejournal.agent.command_lines import command_line
from fusejournal.agent.fields import Fields
from fusejournal.agent.kept_versions import TYPES
from fusejournal.agent.zips import archived
from fusejournal.errors import PathNotFoundError, UsageError
from fusejournal.history.changes import find_changes
from fusejournal.history.file_states import State, target_of, type_of
from fusejournal.history.json_values import DatalessMatch, exact
from fusejournal.history.life import Life, find_lives, read_life
from fusejournal.history.lookup import Lookup
from fusejournal.history.tree_cache import TreeCache
from fusejournal.replay.fold import find_file
from fusejournal.replay.images import read_images, unknown_fid
from fusejournal.types import ROOT_FID, Fid, Seq

_NAMES_MAX: Final = 1000
_MOMENTS_MAX: Final = 2000
_LIFE_MAX: Final = 500
"""The number of entries of one file that are returned."""
_LIVES_MAX: Final = 2000
"""The number of entries returned of all files that had one path: of a file that is saved by
renames, each save is one."""
_LIVES_BYTES_MAX: Final = 2 << 20
"""The number of bytes that the entries returned of all these files have at most, without their
data: values of attributes can be 64 KiB each, and one byte of them six of the answer."""
_CHANGES_MAX: Final = 1000
_PIECE_BYTES: Final = 256 << 10


def path_of(source: JournalSource, fields: Fields) -> bytes:
    """Returns the path asked for, as bytes; ``b""`` is the root. Raises UsageError."""
    return source.path(fields.text("path", ""))


def before_of(source: JournalSource, fields: Fields) -> Seq:
    """Returns the moment asked for by ``at`` (a seq, the last that counts), ``time`` or ``mark``,
    half-open; without any, now. Raises NoSuchSeqError, NoSuchMomentError, UsageError."""
    at, time = fields.number_or_none("at", least=1), fields.text_or_none("time")
    mark = fields.text_or_none("mark")
    if at is None and time is None and mark is None:
        return Seq(source.head_seq + 1)
    return source.end_of(to_seq=at, to_time=time, to_mark=mark)


def tree(source: JournalSource, fields: Fields, trees: TreeCache) -> dict[str, Any]:
    """Returns a directory at a moment: its names from ``after`` (a name) on, with what each was.
    Raises PathNotFoundError, FusejournalError."""
    path, before = path_of(source, fields), before_of(source, fields)
    lookup = source.lookup
    fid = find_file(lookup, path, before)
    names = trees.children(lookup, fid, before)
    ordered = sorted(names)
    after = fields.text_or_none("after")
    start = 0
    if after is not None:
        raw = after.encode("utf-8", "surrogateescape")
        start = bisect_left(ordered, raw) + (raw in names)
    shown = ordered[start : start + _NAMES_MAX]
    states = trees.states(lookup, {fid, *(names[name] for name in shown)}, before)
    own = states[fid]
    shown_path = exact(path)
    options = [("--to-seq", int(before - 1)), ("--target", "DIR")]
    words = [source.name, *([shown_path] if path else [])]
    return {
        "path": shown_path,
        "fid": int(fid),
        "at": int(before - 1),
        "time_ns": _time_of(source, before),
        "head_seq": int(source.head_seq),
        "first_seq": int(source.reader.first_seq),
        "is_directory": fid == ROOT_FID or _type(own) in ("directory", "unknown"),
        "file": _describe(path.rpartition(b"/")[2], fid, own),
        "names": [_describe(name, names[name], states[names[name]]) for name in shown],
        "users": account_names(state.uid for state in states.values()),
        "count": len(ordered),
        "more": start + len(shown) < len(ordered),
        "command": command_line("restore", *words, options=options),
    }


def _time_of(source: JournalSource, before: Seq) -> int | None:
    """Returns the time of the last entry before *before*."""
    for entry in source.reader.read(Seq(before - 1), before):
        return entry.time_ns
    return None


def _type(state: State) -> str:
    if state.fid == ROOT_FID:
        return "directory"
    if state.maker is None:
        return "unknown"
    return TYPES.get(type_of(state.maker), "unknown")


def _describe(name: bytes, fid: Fid, state: State) -> dict[str, Any]:
    target = target_of(state.maker) if state.maker is not None else None
    return {
        "name": exact(name),
        "fid": int(fid),
        "type": _type(state),
        "size": state.size,
        "mtime_ns": state.mtime_ns if state.mtime_ns is not None else state.last_time_ns,
        "uid": state.uid,
        "gid": state.gid,
        "target": exact(target) if target is not None else None,
    }


def moments(source: JournalSource, fields: Fields, trees: TreeCache) -> dict[str, Any]:
    """Returns the seqs at which what is shown changed, in order: of a directory its names, of a
    file all of it. Of very many, every so many-th. Raises FusejournalError."""
    path, before = path_of(source, fields), before_of(source, fields)
    fid = find_file(source.lookup, path, before)
    found = list(trees.moments(source.lookup, fid, Seq(source.head_seq + 1)))
    count = len(found)
    if count > _MOMENTS_MAX:
        step = -(-count // _MOMENTS_MAX)
        found = sorted({*found[::step], found[-1]})
    return {
        "seqs": found,
        "count": count,
        "head_seq": int(source.head_seq),
        "first_seq": int(source.reader.first_seq),
        "command": command_line("history", source.name, exact(path) or "/"),
    }


def life(source: JournalSource, fields: Fields) -> dict[str, Any]:
    """Returns the lives of the files that had a path, each with its newest entries first: of very
    many the last, beside their number. Raises PathNotFoundError, FusejournalError."""
    path = path_of(source, fields)
    lives = find_lives(source.lookup, path)
    if not lives:
        raise PathNotFoundError("/" + exact(path), f"never was in the journal of {source.name}")
    found: list[dict[str, Any]] = []
    left, left_bytes = _LIVES_MAX, _LIVES_BYTES_MAX
    for one in reversed(lives):
        newest = _NewestOfLife(source.lookup, one)
        left -= len(newest.steps)
        left_bytes -= newest.kept_bytes
        if min(left, left_bytes) < 0 and found:
            break
        found.append(newest.to_json())
    command = command_line("history", source.name, exact(path))
    users = account_names(one["uid"] for each in found for one in each["entries"])
    return {
        "path": exact(path),
        "lives": found[::-1],
        "count": len(lives),
        "users": users,
        "command": command,
    }


class _NewestOfLife:
    """The newest entries of a life, without their data, and the number of all: only these are kept
    while it is read, however many it has."""

    def __init__(self, lookup: Lookup, life: Life) -> None:
        self.steps: deque[tuple[DatalessMatch, int | None]] = deque()
        self.kept_bytes = 0
        self._life = life
        self._count = 0
        for match, size in read_life(lookup, life.fid):
            self._count += 1
            self._add(DatalessMatch.of(match), size)

    def _add(self, match: DatalessMatch, size: int | None) -> None:
        self.steps.append((match, size))
        self.kept_bytes += match.kept_bytes
        while len(self.steps) > _LIFE_MAX or (
            self.kept_bytes > _LIVES_BYTES_MAX and len(self.steps) > 1
        ):
            gone, _ = self.steps.popleft()
            self.kept_bytes -= gone.kept_bytes

    def to_json(self) -> dict[str, Any]:
        """Returns the life, its newest entries first."""
        return {
            "fid": int(self._life.fid),
            "tenures": [
                {"from_seq": int(spell.from_seq), "to_seq": int(spell.to_seq - 1)}
                for spell in self._life.tenures
            ],
            "count": self._count,
            "entries": [
                {**match.to_json(), "size_after": size} for match, size in reversed(self.steps)
            ],
        }


def difference(source: JournalSource, fields: Fields) -> dict[str, Any]:
    """Returns what changed between two moments, by path. Fields: ``from_seq``, ``to_seq``,
    ``path``. Raises UsageError, NoSuchSeqError, FusejournalError."""
    first = fields.number("from_seq", least=0)
    last = fields.number("to_seq", int(source.head_seq), least=0)
    if first > last:
        raise UsageError(f"entry {first} is after entry {last}: the older one comes first")
    for seq in (first, last):
        if seq:
            source.check_seq(seq)
    path = path_of(source, fields)
    changes = find_changes(source.lookup, Seq(first + 1), Seq(last + 1), path)
    words = [source.name, str(first), str(last), *([exact(path)] if path else [])]
    return {
        "changes": [{**one.to_json(), "letters": one.letters()} for one in changes[:_CHANGES_MAX]],
        "users": account_names(uid for one in changes[:_CHANGES_MAX] for uid in one.uids),
        "count": len(changes),
        "command": command_line("diff", *words),
    }


def content(source: JournalSource, fields: Fields) -> Iterator[bytes]:
    """Yields the bytes of a file as it was, in order. Raises PathNotFoundError, UsageError,
    FusejournalError, OSError."""
    path, before = path_of(source, fields), before_of(source, fields)
    fid = find_file(source.lookup, path, before)
    image = read_images(source.lookup, {fid}, before, None, lambda _, __: None)[fid]
    state = image.state
    if state.maker is None:
        raise unknown_fid(source.lookup, fid)
    if _type(state) != "file":
        raise UsageError(f"/{exact(path)} is no file but a {_type(state)}: restore it instead")
    yield from content_of_image(source.lookup, image)


def archive(source: JournalSource, fields: Fields) -> Iterator[bytes]:
    """Yields the bytes of a directory as it was, as an archive: ``format`` is "tar" or "zip".
    Raises PathNotFoundError, UsageError, FusejournalError, OSError."""
    members = members_of_moment(source, path_of(source, fields), before_of(source, fields))
    return archived(members, fields.text("format", "tar"))


def preview(source: JournalSource, fields: Fields) -> dict[str, Any]:
    """Returns the beginning of a file as it was, in base64. Raises as :func:`content`."""
    wanted = min(fields.number("bytes", 64 << 10, least=1), _PIECE_BYTES)
    found = bytearray()
    for piece in content(source, fields):
        found += piece
        if len(found) >= wanted:
            break
    return {"data": base64.b64encode(bytes(found[:wanted])).decode(), "bytes": len(found[:wanted])}
