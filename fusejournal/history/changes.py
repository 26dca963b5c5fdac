"""The changes between two moments: for each file, what many entries come to when taken together.

Content and attributes are gathered by fid, names by what they stood for before and after. Paths of
files of which only the inside changed are followed along; those of changed names are looked up at
both moments, a question for each directory."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from fusejournal.history.json_values import exact_or_none
from fusejournal.history.lookup import Lookup
from fusejournal.history.name_changes import Dentry, name_changes
from fusejournal.history.paths import PathTracker
from fusejournal.journal.format import Entry
from fusejournal.journal.outcomes import Outcome, with_outcomes
from fusejournal.operations import (
    ATTRIBUTE_KINDS,
    RENAME_EXCHANGE,
    WRITING_KINDS,
    Moving,
    made_by,
)
from fusejournal.types import Fid, Seq

_WORDS = {"A": "added", "D": "removed", "R": "renamed", "M": "content", "P": "attributes"}


def _is_below(path: bytes | None, below: bytes) -> bool:
    return path is not None and (path == below or path.startswith(below + b"/"))


class Change(NamedTuple):
    """The difference that entries made to one file, or to one further name of it (``link``)."""

    fid: Fid
    old_path: bytes | None
    new_path: bytes | None
    content: bool
    attributes: bool
    link: bool
    entries: int
    uids: tuple[int, ...]

    def letters(self) -> str:
        """Returns those that hold of A (added), D (removed), R (renamed), M (content was written),
        P (attributes were set). The first two stand alone."""
        found = ""
        if self.old_path is None:
            return "A"
        if self.new_path is None:
            return "D"
        found += "R" if self.old_path != self.new_path else ""
        found += "M" if self.content else ""
        return found + ("P" if self.attributes else "")

    def main_path(self) -> bytes:
        """The new path, if there is one, or else the old one."""
        return self.new_path or self.old_path or b""

    def to_json(self) -> dict[str, Any]:
        """Returns what ``diff --json`` prints."""
        letters = self.letters()
        return {
            "fid": self.fid,
            "old_path": exact_or_none(self.old_path),
            "new_path": exact_or_none(self.new_path),
            **{word: letter in letters for letter, word in _WORDS.items()},
            "hard_link": self.link,
            "entries": self.entries,
            "uids": list(self.uids),
        }

    def trees_to_json(self) -> dict[str, Any]:
        """Returns what ``version diff --json`` prints: two trees do not tell by whom it was."""
        raw = self.to_json()
        return {key: raw[key] for key in raw if key not in ("entries", "uids")}


class _Touched:
    """Everything that happened to one fid so far."""

    __slots__ = ("attributes", "content", "entries", "made", "moves", "names", "old_path", "uids")

    def __init__(self, old_path: bytes | None, moves: int, made: bool) -> None:
        self.old_path = old_path
        self.moves = moves
        """The number of renames that came before that path was seen."""
        self.made = made
        self.entries = 0
        self.uids: tuple[int, ...] = ()
        self.content = self.attributes = False
        self.names: dict[Dentry, tuple[bool, bool]] = {}
        """Names of it that changed: whether it had them before, and has them now."""


def find_changes(lookup: Lookup, from_seq: Seq, to_seq: Seq, below: bytes = b"") -> list[Change]:
    """Returns what the entries in [from_seq, to_seq) changed, taken together, by path; memory grows
    with the number of files they touch. With *below*, a path: only that and what is below it, by
    the old or the new name. Raises JournalDamagedError."""
    comparison = _Comparison(lookup, from_seq, to_seq)
    start = lookup.reader.segment_start(from_seq)
    for entry, outcome in with_outcomes(lookup.reader.read(start, Seq(to_seq + 1))):
        if entry.seq < to_seq:
            comparison.take(entry, outcome)
    found = [
        change
        for change in comparison.result()
        if not below or any(_is_below(one, below) for one in (change.old_path, change.new_path))
    ]
    return sorted(found, key=Change.main_path)


class _Comparison:
    """A comparison under way. See the module."""

    def __init__(self, lookup: Lookup, from_seq: Seq, to_seq: Seq) -> None:
        self._lookup = lookup
        self._from_seq = from_seq
        self._to_seq = to_seq
        self._tracker = PathTracker()
        self._touched: dict[Fid, _Touched] = {}
        self._moves: list[tuple[bytes, bytes, bool]] = []
        """Old path, new path, and whether the two were exchanged."""

    def take(self, entry: Entry, outcome: Outcome) -> None:
        """Take in one entry, which counts if it is in the range."""
        operation = entry.operation
        self._tracker.learn(entry)
        if not outcome.held:
            return
        fid = getattr(operation, "fid", None)
        if entry.seq >= self._from_seq and fid is not None:
            self._note(entry, fid)
        self._tracker.follow(operation)

    def _note(self, entry: Entry, fid: Fid) -> None:
        operation, kind = entry.operation, entry.operation.kind
        touched = self._touch(entry, fid)
        touched.content |= kind in WRITING_KINDS
        touched.attributes |= kind in ATTRIBUTE_KINDS
        for change in name_changes(operation):
            dentry = change[:2]
            for one, has in ((change.before, False), (change.after, True)):
                if one is not None:
                    names = self._touched.get(one) or self._touch(entry, one)
                    was, _ = names.names.get(dentry, (not has, has))
                    names.names[dentry] = was, has
        if isinstance(operation, Moving):
            old = self._tracker.join(operation.parent, operation.name)
            new = self._tracker.join(operation.new_parent, operation.new_name)
            if old is not None and new is not None:
                self._moves.append((old, new, bool(operation.flags & RENAME_EXCHANGE)))

    def _touch(self, entry: Entry, fid: Fid) -> _Touched:
        touched = self._touched.get(fid)
        if touched is None:
            making = made_by(entry.operation)
            made = making is not None and making.fid == fid
            old_path = None if made else self._tracker.path(fid)
            touched = self._touched[fid] = _Touched(old_path, len(self._moves), made)
        touched.entries += 1
        if entry.who.uid not in touched.uids:
            touched.uids += (entry.who.uid,)
        return touched

    def result(self) -> Iterator[Change]:
        """A change for each file that is not as it was."""
        for fid, touched in self._touched.items():
            if not touched.names:
                if touched.content or touched.attributes:
                    old = self._before(touched.old_path, touched.moves)
                    yield _change(fid, touched, old, self._tracker.path(fid))
                continue
            yield from self._named(fid, touched)

    def _named(self, fid: Fid, touched: _Touched) -> Iterator[Change]:
        """The changes of a file some of whose names changed."""
        old, new = self._dentries(fid, touched)
        had = {dentry: self._lookup.join(*dentry, self._from_seq) for dentry in old}
        has = {dentry: self._lookup.join(*dentry, self._to_seq) for dentry in new}
        kept = [dentry for dentry in old if dentry in has]
        lost = [dentry for dentry in old if dentry not in has]
        gained = [dentry for dentry in new if dentry not in had]
        first = kept[0] if kept else None
        if first is not None:
            if touched.content or touched.attributes:
                yield _change(fid, touched, had[first], has[first])
        elif lost or gained:
            before = had[lost.pop(0)] if lost else None
            after = has[gained.pop(0)] if gained else None
            yield _change(fid, touched, before, after)
        for dentry in lost:
            yield _change(fid, touched, had[dentry], None, link=True)
        for dentry in gained:
            yield _change(fid, touched, None, has[dentry], link=True)

    def _dentries(self, fid: Fid, touched: _Touched) -> tuple[list[Dentry], list[Dentry]]:
        """All names of a file at both moments."""
        if not touched.made and self._lookup.has_links(fid):
            dentries = self._lookup.dentries
            return dentries(fid, self._from_seq), dentries(fid, self._to_seq)
        names = touched.names.items()
        return [one for one, (was, _) in names if was], [one for one, (_, now) in names if now]

    def _before(self, path: bytes | None, moves: int) -> bytes | None:
        """Returns the name of *path*, seen after so many renames, before them all."""
        for old, new, exchanged in reversed(self._moves[:moves]):
            if path is not None and _is_below(path, new):
                path = old + path[len(new) :]
            elif path is not None and exchanged and _is_below(path, old):
                path = new + path[len(old) :]
        return path


def _change(
    fid: Fid, touched: _Touched, old: bytes | None, new: bytes | None, link: bool = False
) -> Change:
    content, attributes = touched.content and not link, touched.attributes and not link
    return Change(fid, old, new, content, attributes, link, touched.entries, touched.uids)
