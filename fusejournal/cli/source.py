"""What a command is told to read: a volume, running or stopped, or a bare copy of segments; and
the moments and ranges that people type."""

import os
import re
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from fusejournal.cli import text as texts
from fusejournal.cli.moments import parse_moment
from fusejournal.control.client import ask
from fusejournal.errors import (
    JournalError,
    NoSuchMomentError,
    NoSuchSeqError,
    NotRunningError,
    PathNotFoundError,
    UsageError,
    VolumeNotFoundError,
)
from fusejournal.history.lookup import Lookup
from fusejournal.history.query import PathPattern, SeqRange
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import is_segment, list_segments
from fusejournal.node.state_dir import VolumeState, find_volume
from fusejournal.operations import Kind
from fusejournal.types import Seq

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


class Source:
    """A journal to read. ``state`` is the volume's, or None for a bare copy."""

    def __init__(self, name: str, reader: JournalReader, state: VolumeState | None) -> None:
        self.name = name
        self.reader = reader
        self.state = state
        self._now_ns = time.time_ns()

    @cached_property
    def lookup(self) -> Lookup:
        """Answers about the journal as it is at the first use."""
        return Lookup(self.reader)

    @cached_property
    def head_seq(self) -> Seq:
        """:meth:`committed_head` at the first use."""
        return self.committed_head()

    def committed_head(self) -> Seq:
        """The last entry of which it is known whether it holds. Raises JournalDamagedError."""
        if self.state is not None:
            try:
                self.reader.must_reach = Seq(ask(self.state.directory, "status")["head_seq"])
                return self.reader.must_reach
            except NotRunningError:
                pass
        seq, has_outcome = self.reader.head()
        return seq if has_outcome else Seq(seq - 1)

    def check_seq(self, seq: int) -> Seq:
        """*seq* if the journal has it. Raises NoSuchSeqError."""
        first_seq = self.reader.first_seq
        if not first_seq <= seq <= self.head_seq:
            raise NoSuchSeqError(seq, first_seq, self.head_seq)
        return Seq(seq)

    def path(self, text: str) -> bytes:
        """A path in the volume as people type it: from the volume's root, or as it shows where the
        volume is mounted. Raises UsageError."""
        path = parse_path(text)
        if self.state is not None and text.startswith("/"):
            mountpoint = parse_path(str(self.state.mountpoint))
            if path == mountpoint or path.startswith(mountpoint + b"/"):
                path = path[len(mountpoint) + 1 :]
        return path

    def check_path(self, path: bytes) -> bytes:
        """*path*, if it is a pattern, or was ever there. Raises PathNotFoundError."""
        pattern = PathPattern(path, self.lookup)
        if path and not pattern.is_glob and self.lookup.is_whole and not self.lookup.tenures(path):
            shown = "/" + texts.name(path)
            raise PathNotFoundError(shown, f"never was in the journal of {self.name}")
        return path

    def since(self, text: str) -> Seq:
        """The first seq at or after a time or mark. Raises NoSuchMomentError."""
        time_ns = parse_moment(text, self._now_ns)
        if time_ns is not None:
            return self._seq_after(time_ns - 1)
        return self._mark(text)

    def until(self, text: str) -> Seq:
        """The first seq after a time or mark: the end, half-open, of all up to it. Raises
        NoSuchMomentError."""
        time_ns = parse_moment(text, self._now_ns)
        if time_ns is not None:
            return self._seq_after(time_ns)
        return Seq(self._mark(text) + 1)

    def time(self, text: str) -> Seq:
        """The end, half-open, of all up to a time, which must not be before the journal. Raises
        NoSuchMomentError."""
        time_ns = parse_moment(text, self._now_ns)
        if time_ns is None:
            raise NoSuchMomentError(f"{text!r} is no time (2026-01-31 14:00, '2 hours ago')")
        if time_ns > max(self._now_ns, self._dated_ns):
            raise NoSuchMomentError(f"{text!r} is yet to come")
        before_seq = self._seq_after(time_ns)
        if before_seq <= self.reader.first_seq:
            raise NoSuchMomentError(
                f"{text!r} is before the journal: its first entry is {self.reader.first_seq}"
            )
        return before_seq

    @cached_property
    def _dated_ns(self) -> int:
        """The date of the last entry, which is yet to come where the clock was put back since."""
        last = next(self.reader.read(self.head_seq, Seq(self.head_seq + 1)), None)
        return last.time_ns if last is not None else 0

    def _seq_after(self, time_ns: int) -> Seq:
        """The first seq after a time. One that is yet to come can only be an entry's date."""
        if time_ns > self._now_ns:
            return self.lookup.seq_dated_after(time_ns)
        return self.lookup.seq_after(time_ns)

    def mark(self, name: str) -> Seq:
        """The end, half-open, of all up to a mark. Raises NoSuchMomentError."""
        seq = self.lookup.mark(name)
        if seq is None:
            raise NoSuchMomentError(
                f"{self.name} has no mark {name!r}; it has: fusejournal log {self.name} --op mark"
            )
        return Seq(seq + 1)

    def _mark(self, name: str) -> Seq:
        seq = self.lookup.mark(name)
        if seq is None:
            raise NoSuchMomentError(
                f"{name!r} is neither a time (2026-01-31 14:00, '2 hours ago') nor a mark of "
                f"{self.name}; its marks: fusejournal log {self.name} --op mark"
            )
        return seq


def open_source(text: str) -> Source:
    """What *text* means: a volume's name, mountpoint or state directory, a directory with segments,
    or a segment file. Raises VolumeNotFoundError, JournalError."""
    try:
        state = find_volume(text)
    except VolumeNotFoundError:
        state = None
    except PermissionError:
        # A copy that somebody may read needs no right to look at the volumes here.
        if not os.access(text, os.R_OK):
            raise
        state = None
    if state is not None:
        source = Source(state.name, JournalReader(state.journal_dir, state.uuid), state)
    else:
        source = Source(text, JournalReader(_find_segments([text])), None)
    if not source.reader.segments():
        raise JournalError(f"{source.name}: there is no journal yet")
    return source


def open_sources(texts: Sequence[str]) -> tuple[str, JournalReader]:
    """As :func:`open_source`, for one volume or any number of segments. Raises the same."""
    if len(texts) == 1:
        source = open_source(texts[0])
        return source.name, source.reader
    return ", ".join(texts), JournalReader(_find_segments(texts))


def _find_segments(texts: Sequence[str]) -> list[Path]:
    found: list[Path] = []
    for text in texts:
        path = Path(text)
        if path.is_dir():
            found += list_segments(path) or list_segments(path / "journal")
        elif path.is_file() and is_segment(path):
            found.append(path)
        elif path.exists():
            raise UsageError(f"{text}: no segment (those are called SEQ.fj or SEQ.fjz)")
    if not found:
        raise VolumeNotFoundError(texts[0])
    return found


def parse_ranges(texts: Sequence[str]) -> tuple[SeqRange, ...]:
    """Ranges of seqs as people type them: ``7`` or ``7-12``, both ends included, also several with
    commas. Raises UsageError."""
    found = []
    for text in (part.strip() for whole in texts for part in whole.split(",")):
        match = _RANGE.fullmatch(text)
        first = int(match[1]) if match else 0
        last = int(match[2] or match[1]) if match else 0
        if first < 1 or last < first:
            raise UsageError(f"{text!r} is no seq or range of seqs (7, or 7-12)")
        found.append(SeqRange(Seq(first), Seq(last + 1)))
    return tuple(found)


def parse_kinds(texts: Sequence[str]) -> frozenset[Kind]:
    """Operations by name, also several with commas. Raises UsageError."""
    found = set()
    for word in (part.strip() for whole in texts for part in whole.split(",")):
        try:
            found.add(Kind[word.upper()])
        except KeyError:
            known = ", ".join(kind.name.lower() for kind in Kind)
            raise UsageError(f"{word!r} is no operation; there are: {known}") from None
    return frozenset(found)


def parse_path(text: str) -> bytes:
    """A path in a volume, from its root. Raises UsageError."""
    steps = [step for step in text.encode("utf-8", "surrogateescape").split(b"/") if step]
    if b".." in steps:
        raise UsageError(f"{text!r}: a path from the volume's root, without '..'")
    return b"/".join(step for step in steps if step != b".")
