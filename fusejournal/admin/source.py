"""The journals that can be read: a volume's, running or stopped, or a bare copy of segments.

Much that is done with a journal asks nothing of its history: what answers that is loaded by the
first question."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fusejournal.admin.volume_path import volume_path
from fusejournal.config import StoreConfig, find_config
from fusejournal.errors import (
    FusejournalError,
    JournalError,
    NoSuchMomentError,
    NoSuchSeqError,
    NotRunningError,
    OtherHistoryError,
    PathNotFoundError,
    UsageError,
    VolumeNotFoundError,
)
from fusejournal.journal.base import JournalBase, load_base
from fusejournal.journal.positions import position_at
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.segment import is_segment, list_segments
from fusejournal.node.registry import find_volume
from fusejournal.node.state_dir import VolumeState
from fusejournal.types import Position, Seq, SeqOrPosition

if TYPE_CHECKING:
    from fusejournal.history.changes import Change
    from fusejournal.history.life import Life
    from fusejournal.history.lookup import Lookup
    from fusejournal.history.moments import Moments
    from fusejournal.history.query import Criteria, Match

_FOLLOW_PAUSE_SECONDS = 0.2


class JournalSource:
    """A journal to read. ``state`` is the volume's, or None for a bare copy."""

    def __init__(self, name: str, reader: JournalReader, state: VolumeState | None) -> None:
        self.name = name
        self.reader = reader
        self.state = state

    @cached_property
    def lookup(self) -> "Lookup":
        """Answers about the journal as it is at the first use."""
        from fusejournal.history.lookup import Lookup

        return Lookup(self.reader)

    @cached_property
    def moments(self) -> "Moments":
        """The seqs of times and marks; "now" is the first use."""
        from fusejournal.history.moments import Moments

        return Moments(self.name, self.lookup, lambda: self.head_seq)

    @cached_property
    def head_seq(self) -> Seq:
        """:meth:`committed_head` at the first use."""
        return self.committed_head()

    def committed_head(self) -> Seq:
        """Returns the last seq whose outcome is known: applied, or refused by a VOID. Asks the
        layer where one is running. Raises JournalDamagedError."""
        from fusejournal.admin.live import live_status

        if self.state is not None:
            try:
                head_seq = Seq(live_status(self.state).head_seq or 0)
            except NotRunningError:
                pass
            else:
                self.reader.note_reach(head_seq)
                return head_seq
        seq, has_outcome = self.reader.head()
        return seq if has_outcome else Seq(seq - 1)

    def check_seq(self, named: SeqOrPosition) -> Seq:
        """Returns the seq of the entry that is *named* if the journal has it. Raises
        NoSuchSeqError, OtherHistoryError."""
        seq = _seq_of(named)
        first_seq = self.reader.first_seq
        if not first_seq <= seq <= self.head_seq:
            nearest = self.nearest_words(Seq(seq)) if seq < first_seq else ""
            raise NoSuchSeqError(seq, first_seq, self.head_seq, nearest)
        self._check_history(named)
        return seq

    def check_moment(self, named: SeqOrPosition) -> Seq:
        """Returns the seq of the entry that is *named* if the journal records the tree after it: of
        its base, too, and of 0 if it begins with the first entry. Raises NoSuchSeqError,
        OtherHistoryError."""
        seq = _seq_of(named)
        if not (self.lookup.is_whole and seq == self.reader.first_seq - 1):
            return self.check_seq(named)
        self._check_history(named)
        return seq

    def _check_history(self, named: SeqOrPosition) -> None:
        """Raises OtherHistoryError where *named* is a position that is not this journal's."""
        if isinstance(named, Position):
            found = position_at(self.reader, named.seq)
            if named != found:
                raise OtherHistoryError(
                    str(named), str(found), named.seq, self.reader.first_seq, self.head_seq
                )

    def nearest_words(self, seq: Seq) -> str:
        """Returns which moments can be had in place of that after entry *seq*, which is before the
        journal's base, in words to go on with; nothing where it has none."""
        if self.state is None or self.lookup.base is None:
            return ""
        later = f"; the tree can be restored as of seq {self.lookup.base.base.seq} and later"
        # Only here: this needs the libraries of versions.
        from fusejournal.admin.versions import versions_before

        try:
            earlier = versions_before(self.state, seq)
        except FusejournalError as error:
            return f"{later}; of versions before that nothing is known ({error})"
        if not earlier:
            return f"{later}, and no version is of a seq before"
        newest = earlier[-1]
        return f"{later}; before it, as of seq {newest.seq}, with --to-version {newest.shown_name}"

    def check_since(self, text: str) -> str:
        """Returns *text*, a time or a mark, if the journal has all entries since then. Raises
        NoSuchMomentError."""
        base = self.lookup.base
        if base is not None and self.moments.is_before(text, base.base.time_ns):
            raise NoSuchMomentError(
                f"{text!r} is before entry {base.base.seq + 1}, with which the journal of "
                f"{self.name} begins"
            )
        return text

    @property
    def gone_before(self) -> str | None:
        """The entries that are not in the journal any more, in words; None where all are there."""
        base = self.lookup.base
        if base is None:
            return None
        return (
            f"entries 1 to {base.base.seq} are not in the journal any more: what is shown "
            "begins after them"
        )

    def entry(self, named: SeqOrPosition) -> "Match":
        """Returns the entry that is *named* with its paths; of a VOID, the entry that it refused.
        Raises NoSuchSeqError, OtherHistoryError, JournalDamagedError."""
        from fusejournal.history.query import Criteria, find

        seq = self.check_seq(named)
        end = Seq(seq + 1)
        criteria = Criteria(from_seq=Seq(max(1, seq - 1)), to_seq=end)
        return [found for found in find(self.lookup, criteria) if found.entry.seq < end][-1]

    def path(self, text: str) -> bytes:
        """Returns the path in the volume that *text* means: see volume_path. Raises UsageError."""
        return volume_path(self.state, text)

    def check_path(self, path: bytes) -> bytes:
        """Returns *path* if it is a pattern, or was ever there. Raises PathNotFoundError."""
        from fusejournal.history.path_pattern import PathPattern

        pattern = PathPattern(path, self.lookup)
        if path and not pattern.is_glob and self.lookup.is_whole and not self.lookup.tenures(path):
            raise PathNotFoundError(
                "/" + os.fsdecode(path), f"never was in the journal of {self.name}"
            )
        return path

    def criteria(
        self,
        *,
        from_seq: SeqOrPosition = 1,
        to_seq: SeqOrPosition | None = None,
        since: str | None = None,
        until: str | None = None,
        ops: Sequence[str] = (),
        uid: int | None = None,
        pid: int | None = None,
        paths: Sequence[str] = (),
        only: Sequence[str] = (),
        without: Sequence[str] = (),
        bytes_min: int | None = None,
        bytes_max: int | None = None,
        check_paths: bool = True,
    ) -> "Criteria":
        """Returns what an entry must be, of words that people type. Raises UsageError,
        NoSuchMomentError, PathNotFoundError; where an entry is named by its position,
        NoSuchSeqError, OtherHistoryError.

        Args:
            from_seq, to_seq: the first entry, and the last. A seq need not be in the journal.
            since, until: times or marks, both ends included.
            ops: names of operations, or several of them with commas.
            uid, pid: of the caller that asked for it.
            paths: paths, or patterns of them.
            only, without: seqs or ranges of seqs, both ends included.
            bytes_min, bytes_max: of the data that an entry brings, both included.
            check_paths: whether a path that never was is an error."""
        from fusejournal.history.query import Criteria, parse_kinds, parse_ranges

        if isinstance(from_seq, Position):
            from_seq = self.check_seq(from_seq)
        if isinstance(to_seq, Position):
            to_seq = self.check_seq(to_seq)
        found = [self.path(path) for path in paths]
        for path in found if check_paths else ():
            self.check_path(path)
        return Criteria(
            from_seq=Seq(max(from_seq, self.moments.since(since) if since else 1)),
            to_seq=Seq(
                min(to_seq + 1 if to_seq else END, self.moments.until(until) if until else END)
            ),
            kinds=parse_kinds(ops) if ops else frozenset(),
            uid=uid,
            pid=pid,
            paths=tuple(path for path in found if path),
            only=parse_ranges(only),
            without=parse_ranges(without),
            bytes_min=bytes_min,
            bytes_max=bytes_max,
        )

    def changes(
        self, from_seq: SeqOrPosition, to_seq: SeqOrPosition, path: str | None
    ) -> Iterator["Change"]:
        """Yields what differs between the trees after two entries, at *path* and below. Raises
        UsageError, NoSuchSeqError, OtherHistoryError, JournalDamagedError."""
        from fusejournal.history.changes import find_changes

        first, last = self.check_moment(from_seq), self.check_moment(to_seq)
        if first > last:
            raise UsageError(f"SEQ1 {first} is after SEQ2 {last}: the older one comes first")
        below = self.path(path) if path else b""
        yield from find_changes(self.lookup, Seq(first + 1), Seq(last + 1), below)

    def lives(self, path: str) -> list["Life"]:
        """Returns the files that *path* ever stood for. Raises UsageError, PathNotFoundError where
        it never was, JournalDamagedError."""
        from fusejournal.history.life import find_lives

        if found := find_lives(self.lookup, self.path(path)):
            return found
        first = "" if self.gone_before is None else f" since entry {self.reader.first_seq}"
        raise PathNotFoundError(path, f"never was in the journal of {self.name}{first}")

    def follow(self, criteria: "Criteria", count: int | None) -> Iterator["Match"]:
        """Returns what *criteria* ask for, with *count* only the newest so many of what is there,
        then what is appended, as it becomes known whether it held; without an end. Raises
        JournalDamagedError."""
        from fusejournal.history.query import Follower, find_newest

        end = Seq(self.head_seq + 1)
        yield from find_newest(self.lookup, replace(criteria, to_seq=end), count)
        follower = Follower(self.reader, criteria, end)
        while True:
            yield from follower.new(self.committed_head())
            time.sleep(_FOLLOW_PAUSE_SECONDS)

    def end_of(
        self,
        *,
        to_seq: SeqOrPosition | None = None,
        before_seq: SeqOrPosition | None = None,
        to_time: str | None = None,
        to_mark: str | None = None,
    ) -> Seq:
        """Returns the end, half-open, of all entries up to a moment that the caller gives in
        exactly one way. Raises UsageError, NoSuchSeqError, OtherHistoryError, NoSuchMomentError.

        Args:
            to_seq: the last entry.
            before_seq: the entry right after the last.
            to_time: a time that people type, which must not be before the journal.
            to_mark: the name of a mark."""
        if sum(one is not None for one in (to_seq, before_seq, to_time, to_mark)) != 1:
            raise UsageError("give one of --to-seq, --before-seq, --to-time and --to-mark")
        if to_seq is not None:
            return Seq(self.check_moment(to_seq) + 1)
        if before_seq is not None:
            return self.check_seq(before_seq)
        moments = self.moments
        if to_mark is not None:
            end = moments.at_mark(to_mark)
        else:
            end = moments.at_time(to_time or "", self.nearest_words)
        # An entry whose outcome is not known is not there yet.
        return Seq(min(end, self.head_seq + 1))


def _seq_of(named: SeqOrPosition) -> Seq:
    return named.seq if isinstance(named, Position) else Seq(named)


def open_source(text: str, config: Path | None = None) -> JournalSource:
    """Opens the journal that *text* names: by a volume's name, mountpoint or state directory, a
    directory with segments, or a segment file. *config* as for :func:`with_base`. Raises
    VolumeNotFoundError, JournalError."""
    try:
        state = find_volume(text)
    except VolumeNotFoundError:
        state = None
    except PermissionError:
        # A copy that the caller may read needs no right to look at the volumes here.
        if not os.access(text, os.R_OK):
            raise
        state = None
    if state is not None:
        return source_of(state, config)
    return _with_segments(JournalSource(text, JournalReader(_find_segments([text])), None))


def source_of(state: VolumeState, config: Path | None = None) -> JournalSource:
    """Opens the journal of *state*. *config* as for :func:`with_base`. Raises JournalError."""
    reader = with_base(JournalReader(state.journal_dir, state.uuid), state, config)
    return _with_segments(JournalSource(state.name, reader, state))


def _with_segments(source: JournalSource) -> JournalSource:
    """Returns *source*. Raises JournalError where there are no entries."""
    if not source.reader.segments():
        raise JournalError(f"{source.name}: there is no journal yet")
    return source


def with_base(
    reader: JournalReader, state: VolumeState, config: Path | None = None
) -> JournalReader:
    """Returns *reader*, of the journal of *state*, which knows by now what that begins with.
    *config*: the configuration, where it is not the one that the volume has. Raises
    JournalError."""
    return on_base(reader, load_base(state.directory), state, config)


def on_base(
    reader: JournalReader,
    base: JournalBase | None,
    state: VolumeState,
    config: Path | None = None,
) -> JournalReader:
    """Returns *reader*, which knows by now that it begins with *base*, if it does. *state*,
    *config*: as for :func:`with_base`."""
    if base is not None:
        # Only here: other volumes' commands need not load the libraries of versions.
        from fusejournal.admin.version_store import load_store_config
        from fusejournal.versions.base_tree import open_base_tree

        def store_config() -> StoreConfig:
            return load_store_config(config or find_config(state.name))

        reader.begin_behind(open_base_tree(state.directory, base, store_config))
    return reader


def open_reader(texts: Sequence[str]) -> JournalReader:
    """Opens the journal of one volume or of any number of segments, as :func:`open_source` does.
    Raises the same."""
    if len(texts) == 1:
        return open_source(texts[0]).reader
    return JournalReader(_find_segments(texts))


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
