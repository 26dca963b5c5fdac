"""Patterns of paths, as people type them, and what they mean: the paths themselves, what is below
them, and what they stood for."""

import re
from collections.abc import Collection, Iterator

from fusejournal.errors import UsageError
from fusejournal.history.lookup import Lookup, Tenure
from fusejournal.journal.format import Entry
from fusejournal.journal.index import SegmentIndex
from fusejournal.types import Fid

_WILD = frozenset(b"*?[")


class PathPattern:
    """A path, what is below it and what it stood for; or a pattern: ``*`` and ``?`` stop at a
    slash, ``**`` does not; one without a slash is held against the last name of each path."""

    def __init__(self, text: bytes, lookup: Lookup | None, *, is_glob: bool | None = None) -> None:
        """*lookup*: to find a file by all its names, where there is one; and to tell by itself
        whether *text* is a pattern, where that is not given as *is_glob*."""
        self.text = text = text.strip(b"/")
        self.is_glob = is_pattern(text, lookup) if is_glob is None else is_glob
        self._lookup = lookup
        self._tenures: dict[Fid, list[Tenure]] = {}
        self._match = _compile(text).fullmatch if self.is_glob else None
        self.by_name = b"/" not in text
        """True if it is held against last names."""
        self.plain_text = _plain_text(text) if self.is_glob else b""
        """The longest text that some name on each path that matches has; empty where none is known,
        and where it is no pattern."""
        if not self.is_glob and lookup is not None:
            for tenure in lookup.tenures(text):
                self._tenures.setdefault(tenure.fid, []).append(tenure)

    @property
    def fids(self) -> Collection[Fid]:
        """The files that it stood for, where it is no pattern and there is a lookup."""
        return self._tenures.keys()

    def may_be_in(self, index: SegmentIndex) -> bool:
        """Returns True if a segment can have an entry that matches."""
        if self._lookup is None or not self.text:
            return True
        if not self.is_glob:
            return any(map(index.has_fid, self._tenures)) or self._lookup.may_touch(
                index, self.text
            )
        fixed = b"/".join(_fixed_steps(self.text))
        return not fixed or self._lookup.may_touch(index, fixed)

    def matches(self, entry: Entry, *paths: bytes | None) -> bool:
        """Returns True if *entry*, which is about *paths*, is meant."""
        fid = getattr(entry.operation, "fid", None)
        if fid in self._tenures and any(
            one.from_seq <= entry.seq < one.to_seq for one in self._tenures[fid]
        ):
            return True
        return any(self._is(path) for path in paths if path is not None)

    def has_name(self, name: bytes) -> bool:
        """Returns True if it is a pattern of names, and *name* matches."""
        return self.by_name and self._match is not None and bool(self._match(name))

    def _is(self, path: bytes) -> bool:
        if self._match is not None:
            return bool(self._match(path.rpartition(b"/")[2] if self.by_name else path))
        return not self.text or path == self.text or path.startswith(self.text + b"/")


def is_pattern(text: bytes, lookup: Lookup | None) -> bool:
    """Returns True if *text* is a pattern. A name can have such characters, too: what was there
    once is meant as it is."""
    return bool(_WILD.intersection(text)) and not (lookup is not None and lookup.tenures(text))


def _compile(pattern: bytes) -> re.Pattern[bytes]:
    try:
        return re.compile(_glob_to_regex(pattern), re.DOTALL)
    except re.error as error:
        shown = pattern.decode("utf-8", "backslashreplace")
        raise UsageError(f"{shown!r} is no pattern: {error}") from None


def _fixed_steps(pattern: bytes) -> Iterator[bytes]:
    for step in pattern.split(b"/")[:-1]:
        if _WILD.intersection(step):
            return
        yield step


def _glob_to_regex(pattern: bytes) -> bytes:
    regex, at = b"", 0
    while at < len(pattern):
        char = pattern[at : at + 1]
        closing = pattern.find(b"]", at + 2)
        if pattern[at : at + 3] == b"**/":
            regex, at = regex + b"(?:.*/)?", at + 3
        elif pattern[at : at + 2] == b"**":
            regex, at = regex + b".*", at + 2
        elif char == b"[" and closing > 0:
            body = pattern[at + 1 : closing]
            negated = b"^" if body[:1] in (b"!", b"^") else b""
            body = body[1:] if negated else body
            # Only a dash between two characters means a range.
            body = negated + re.escape(body).replace(b"\\-", b"-")
            regex, at = regex + b"[" + body + b"]", closing + 1
        else:
            simple = {b"*": b"[^/]*", b"?": b"[^/]"}
            regex, at = regex + simple.get(char, re.escape(char)), at + 1
    return regex


def _plain_text(pattern: bytes) -> bytes:
    """Returns the longest run of bytes in *pattern* that stand for themselves, within a name."""
    longest, run, at = b"", b"", 0
    while at < len(pattern):
        char = pattern[at : at + 1]
        closing = pattern.find(b"]", at + 2) if char == b"[" else -1
        if closing > 0:
            run, at = b"", closing + 1
        else:
            run, at = b"" if char in b"*?/" else run + char, at + 1
        longest = max(longest, run, key=len)
    return longest
