"""Names in directories and states of files at moments that are asked for one after the other, as by
a slider: kept at the ends of sealed segments, so that a question costs what came since the last of
these, and not all since the journal's beginning.

Sealed segments do not change. Where entries were cut back, or the journal was pruned and has
another base, what is kept is dropped: by its chain, the last segment stands for all before it.

Not for use by two threads at a time."""

from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import Final, NamedTuple

from fusejournal.history.entry_lookup import Span
from fusejournal.history.file_states import State, fid_of, is_about
from fusejournal.history.lookup import Lookup
from fusejournal.journal.reader import END
from fusejournal.types import Fid, Seq

_STATES_MAX: Final = 60_000
_STATE_BYTES: Final = 512
"""The bytes of extended attributes by which a state counts as one more: each can have 64 KiB."""
_STEPS_MAX: Final = 64
"""States of one file; of more, every second is let go."""
_CHANGES_MAX: Final = 100_000
_MOMENTS_MAX: Final = 500_000


class _KeptState(NamedTuple):
    """A file after all entries below ``end_seq``. Between the step before and ``since_seq`` no
    entry is about it."""

    since_seq: Seq
    end_seq: Seq
    state: State


class _KnownFile:
    """The steps of one file, up to entry ``through_seq``, half-open."""

    __slots__ = ("steps", "through_seq", "weight")

    def __init__(self, begin: Seq, state: State) -> None:
        self.steps = [_KeptState(begin, begin, state)]
        self.through_seq = begin
        self.weight = _weight(state)
        """The number of states that this one's take the memory of."""

    def add(self, span: Span, state: State) -> None:
        """Has it be *state* at the end of a segment."""
        self.steps.append(_KeptState(span.first_seq, span.end_seq, state))
        self.weight += _weight(state)
        if len(self.steps) > _STEPS_MAX:
            first, *others = self.steps
            pairs = zip(others[::2], others[1::2], strict=False)
            thinned = [later._replace(since_seq=one.since_seq) for one, later in pairs]
            self.steps = [first, *thinned, *others[2 * len(thinned) :]]
            self.weight = sum(_weight(step.state) for step in self.steps)

    def before(self, before_seq: Seq) -> tuple[Seq, State]:
        """Returns a state, and the seq from which on entries below *before_seq* may have changed
        it."""
        at = bisect_right(self.steps, before_seq, key=lambda step: step.end_seq) - 1
        step = self.steps[at]
        is_last = at + 1 == len(self.steps)
        unchanged_to = self.through_seq if is_last else self.steps[at + 1].since_seq
        return max(step.end_seq, unchanged_to), step.state


def _weight(state: State) -> int:
    return 1 + sum(map(len, state.xattrs.values())) // _STATE_BYTES


class _KnownDirectory:
    """The changes of a directory's names, up to entry ``through_seq``, half-open."""

    __slots__ = ("changes", "through_seq")

    def __init__(self, begin: Seq) -> None:
        self.changes: list[tuple[Seq, bytes, Fid | None]] = []
        self.through_seq = begin


class TreeCache:
    """Answers as Lookup.children and read_states do, of one journal."""

    def __init__(self) -> None:
        self._moments: OrderedDict[Fid, tuple[Seq, array[int]]] = OrderedDict()
        """The moments of files, up to a seq, half-open."""
        self._files: OrderedDict[Fid, _KnownFile] = OrderedDict()
        self._directories: OrderedDict[Fid, _KnownDirectory] = OrderedDict()
        self._base_seq: Seq | None = None
        self._sealed: tuple[Seq, int] | None = None
        """The first seq and the chain of the last segment that something kept is of."""

    def children(self, lookup: Lookup, directory: Fid, before_seq: Seq) -> dict[bytes, Fid]:
        """Returns the names in *directory* and what they stood for. Raises JournalDamagedError."""
        spans = self._begin(lookup, before_seq)
        known = self._directories.pop(directory, None) or _KnownDirectory(Seq(0))
        end = spans[-1].end_seq if spans else Seq(0)
        if known.through_seq < end:
            known.changes += _changes(lookup, directory, known.through_seq, end)
            known.through_seq = end
        names: dict[bytes, Fid] = {}
        later = _changes(lookup, directory, max(known.through_seq, end), before_seq)
        kept = takewhile(lambda change: change[0] < before_seq, known.changes)
        for found in (kept, later):
            for _, name, fid in found:
                if fid is None:
                    names.pop(name, None)
                else:
                    names[name] = fid
        if len(known.changes) <= _CHANGES_MAX:
            self._directories[directory] = known
        count = sum(len(one.changes) for one in self._directories.values())
        while count > _CHANGES_MAX:
            count -= len(self._directories.popitem(last=False)[1].changes)
        return names

    def states(self, lookup: Lookup, fids: Collection[Fid], before_seq: Seq) -> dict[Fid, State]:
        """Returns the states of *fids* before entry *before_seq*, for reading alone; their floors
        mean nothing. Raises JournalDamagedError."""
        spans = self._begin(lookup, before_seq)
        files = self._known(lookup, fids)
        self._go_on(lookup, spans, files)
        found = {fid: known.before(before_seq) for fid, known in files.items()}
        states = {fid: state for fid, (_, state) in found.items()}
        begins = {fid: begin for fid, (begin, _) in found.items() if begin < before_seq}
        if begins:
            first = min(begins.values())
            for span in lookup.segments(first, before_seq):
                asked = {fid for fid, begin in begins.items() if begin <= span.first_seq}
                _fold(lookup, states, asked, span, Seq(min(span.end_seq, before_seq)))
        self._forget_oldest(len(files))
        return states

    def moments(self, lookup: Lookup, fid: Fid, before_seq: Seq) -> Sequence[int]:
        """Returns the seqs below *before_seq* at which *fid* changed, in order: of a directory its
        names, too. Raises JournalDamagedError."""
        spans = self._begin(lookup, before_seq)
        end = spans[-1].end_seq if spans else Seq(0)
        through, known = self._moments.pop(fid, (Seq(0), array("q")))
        if through < end:
            known.extend(lookup.moments_of(fid, through, end))
            through = end
        found = known[: bisect_left(known, before_seq)] if through > before_seq else known[:]
        found.extend(lookup.moments_of(fid, max(through, end), before_seq))
        if len(known) <= _MOMENTS_MAX:
            self._moments[fid] = through, known
        count = sum(len(one) for _, one in self._moments.values())
        while count > _MOMENTS_MAX:
            count -= len(self._moments.popitem(last=False)[1][1])
        return found

    def _begin(self, lookup: Lookup, before_seq: Seq) -> list[Span]:
        """Returns the sealed segments that end below *before_seq*, and drops what is kept of
        another journal than there is now."""
        base_seq = lookup.base.base.seq if lookup.base is not None else None
        spans = {span.first_seq: span for span in lookup.segments() if span.end_seq != END}
        if self._sealed is not None:
            span = spans.get(self._sealed[0])
            is_same = span is not None and lookup.contents(span).chain == self._sealed[1]
            if not is_same or base_seq != self._base_seq:
                self._files.clear()
                self._directories.clear()
                self._moments.clear()
                self._sealed = None
        self._base_seq = base_seq
        whole = [span for span in spans.values() if span.end_seq <= before_seq]
        if whole and (self._sealed is None or whole[-1].first_seq > self._sealed[0]):
            self._sealed = whole[-1].first_seq, lookup.contents(whole[-1]).chain
        return whole

    def _known(self, lookup: Lookup, fids: Collection[Fid]) -> dict[Fid, _KnownFile]:
        """Returns what is known of *fids*, which become the last to be forgotten."""
        new = {fid: State(fid) for fid in fids if fid not in self._files}
        begin = next((span.first_seq for span in lookup.segments()), Seq(1))
        if new:
            _fold(lookup, new, new, None, begin)
        files: dict[Fid, _KnownFile] = {}
        for fid in fids:
            known = self._files.pop(fid, None) or _KnownFile(begin, new[fid])
            self._files[fid] = files[fid] = known
        return files

    def _go_on(self, lookup: Lookup, spans: list[Span], files: dict[Fid, _KnownFile]) -> None:
        """Takes in what *spans* have of *files* that is not known yet."""
        for span in spans:
            behind = {fid for fid, known in files.items() if known.through_seq <= span.first_seq}
            if not behind:
                continue
            states = {fid: files[fid].steps[-1].state for fid in behind}
            for fid in _fold(lookup, states, behind, span, span.end_seq):
                files[fid].add(span, states[fid])
            for fid in behind:
                files[fid].through_seq = span.end_seq

    def _forget_oldest(self, kept: int) -> None:
        """Forgets files, but for the last *kept* ones, until there are few enough states; of states
        that are far too large, these too."""
        weight = sum(known.weight for known in self._files.values())
        while weight > _STATES_MAX and (len(self._files) > kept or weight > 2 * _STATES_MAX):
            weight -= self._files.popitem(last=False)[1].weight


def _changes(
    lookup: Lookup, directory: Fid, from_seq: Seq, before_seq: Seq
) -> list[tuple[Seq, bytes, Fid | None]]:
    if from_seq >= before_seq:
        return []
    return [
        (seq, change.name, change.after)
        for seq, change in lookup.changes_in(directory, before_seq, from_seq)
    ]


def _fold(
    lookup: Lookup,
    states: dict[Fid, State],
    asked: Collection[Fid],
    span: Span | None,
    before_seq: Seq,
) -> set[Fid]:
    """Has *states* of the fids *asked* be what they are after the entries of *span* below
    *before_seq*, or, None, after what the base records; returns those that have changed, each a
    copy of what it was."""
    changed: set[Fid] = set()
    from_seq = span.first_seq if span is not None else Seq(0)
    # (Of contents the lengths alone are asked for.)
    entries = lookup.entries_of_many(asked, before_seq, is_about, lambda *_: False, from_seq)
    for entry, outcome in entries:
        if not outcome.held:
            continue
        fid = fid_of(entry)
        if fid not in changed:
            changed.add(fid)
            states[fid] = states[fid].copy()
        states[fid].take(entry, outcome)
    return changed
