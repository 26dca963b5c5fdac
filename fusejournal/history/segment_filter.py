"""The entries of a segment that a question can mean, by its index alone: by user, kind and path
together, so that a segment which has each of them, but in no one entry, is passed over."""

from collections.abc import Callable, Collection, Sequence
from stat import S_IFDIR

from fusejournal.history.entry_lookup import Span
from fusejournal.history.lookup import Lookup
from fusejournal.history.path_candidates import candidates
from fusejournal.history.path_pattern import PathPattern
from fusejournal.history.pattern_candidates import pattern_candidates
from fusejournal.journal.index import SegmentIndex
from fusejournal.types import Fid

Numbers = Sequence[int] | None
"""Numbers of entries in a segment, growing; None where any can be meant."""


class SegmentFilter:
    """Answers for one question, a segment at a time. Not for two threads at a time."""

    def __init__(
        self,
        lookup: Lookup,
        uid: int | None,
        kind_mask: int,
        patterns: Sequence[PathPattern],
        *,
        keep: Callable[[SegmentIndex, PathPattern, Callable[[], Numbers]], Numbers] | None = None,
    ) -> None:
        """Makes a filter.

        Args:
            lookup: answers about the journal.
            uid: who asked for the entries; None: anyone.
            kind_mask: their kinds, as a bit mask; 0: any.
            patterns: their paths: one of these; empty: any.
            keep: returns what can be about a path in a segment, which the function that it gets
                finds out, or what it kept of an earlier question."""
        self._lookup = lookup
        self._uid = uid
        self._kind_mask = kind_mask
        self._patterns = patterns
        self._keep = keep
        self._are_files: dict[PathPattern, bool] = {}

    @property
    def is_any(self) -> bool:
        """True if all entries are meant."""
        return not self._patterns and not self._kind_mask and self._uid is None

    def excludes(self, span: Span) -> bool:
        """Returns True if no entry of the segment can be meant. Raises JournalDamagedError."""
        if self.is_any:
            return False
        numbers = self.numbers(span)
        return numbers is not None and not numbers

    def numbers(self, span: Span) -> Numbers:
        """Returns the numbers of the entries that can be meant. Raises JournalDamagedError."""
        index = self._lookup.index(span)
        if not index.has_deed(self._uid, self._kind_mask):
            return ()
        found: Numbers = None
        for pattern in self._patterns:
            of_path = self._of_path(span, pattern)
            if of_path is None:
                return None
            found = of_path if found is None else sorted({*found, *of_path})
        return index.of_deed(self._uid, self._kind_mask, found)

    def _of_path(self, span: Span, pattern: PathPattern) -> Numbers:
        index = self._lookup.index(span)

        def find() -> Numbers:
            if not pattern.text:
                return None
            if not pattern.is_glob:
                return candidates(
                    index, pattern.text, pattern.fids, lambda fids: self._has_files(pattern, fids)
                )
            if not pattern.may_be_in(index):
                return ()
            return pattern_candidates(self._lookup, span, pattern)

        return find() if self._keep is None else self._keep(index, pattern, find)

    def _has_files(self, pattern: PathPattern, fids: Collection[Fid]) -> bool:
        """Returns True if none of *fids*, those of *pattern*, was ever a directory."""
        known = self._are_files.get(pattern)
        if known is None:
            types = self._lookup.types_of_many(fids)
            known = len(types) == len(fids) and S_IFDIR not in types.values()
            self._are_files[pattern] = known
        return known
