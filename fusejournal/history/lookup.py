"""Questions about names and files at a moment, answered by the indexes: which fid a path stood
for, where a fid was, what a directory held. Reads only the entries that say so.

A moment is a seq, half-open as everywhere: *before_seq* N asks for the state after all entries
below N. Where a journal has a base (journal/base.py), what was there first is recorded by that, as
entries with seqs below all others. Where it does not begin with seq 1 and has none (a copy of some
segments), what was there first is known as far as later entries record it."""

from bisect import bisect_left
from collections.abc import Collection, Iterator
from stat import S_IFDIR, S_IFLNK, S_IFMT
from typing import NamedTuple

from fusejournal.history.entry_lookup import EntryLookup
from fusejournal.history.name_changes import Dentry, NameChange, name_changes
from fusejournal.history.timeline import Moves, moves_in, paths_of
from fusejournal.journal.format import Entry
from fusejournal.journal.index import SegmentIndex
from fusejournal.journal.outcomes import Outcome
from fusejournal.journal.reader import END, JournalReader
from fusejournal.operations import (
    MAKERS,
    NAME_KINDS,
    Create,
    Import,
    Kind,
    Removexattr,
    Setxattr,
    made_by,
)
from fusejournal.types import ROOT_FID, Fid, Seq

_NAMING = sum(1 << kind for kind in NAME_KINDS)


class Tenure(NamedTuple):
    """A time in which a path stood for a fid: the entries in [from_seq, to_seq)."""

    fid: Fid
    from_seq: Seq
    to_seq: Seq


class Lookup(EntryLookup):
    """Answers from the journal that *reader* reads. What the journal gains after the first
    question is not seen."""

    def __init__(self, reader: JournalReader) -> None:
        super().__init__(reader)
        self._timelines: dict[Fid, list[tuple[Seq, bytes | None]]] = {}
        self._moves: dict[Fid, Moves] = {}
        self._tenures: dict[bytes, list[Tenure]] = {}

    # -- entries about names -----------------------------------------------------------------------

    def _namings(self, fids: Collection[Fid], before_seq: Seq) -> Iterator[tuple[Entry, Outcome]]:
        """Yields the entries below *before_seq* that held and gave or took a name of any of *fids*,
        in order."""
        yield from self._from_base(
            fids,
            before_seq,
            lambda one: not one.is_parent and one.kind in NAME_KINDS and not one.refused,
        )
        for span in self.segments(to_seq=before_seq):
            named = list(filter(self.contents(span).may_be_named, fids))
            if not named:
                continue
            index = self.index(span)
            numbers = {
                number
                for fid in named
                for number in index.held_of_fid(fid, _NAMING)
                if index.first_seq + number < before_seq
            }
            yield from self.reader.pick(span.path, sorted(numbers))

    def _changes_of_name(
        self, dentry: Dentry, from_seq: Seq, to_seq: Seq, *, newest_first: bool = False
    ) -> Iterator[tuple[Seq, NameChange]]:
        """The changes of one name that held, in [from_seq, to_seq)."""
        for span in self.segments(from_seq, to_seq, newest_first=newest_first):
            if not self.contents(span).may_have_name(*dentry):
                continue
            index = self.index(span)
            numbers = sorted(
                {
                    posting.number
                    for posting in index.of_name(*dentry)
                    if not posting.refused and from_seq <= index.first_seq + posting.number < to_seq
                }
            )
            found = [
                (entry.seq, change)
                for entry, _ in self.reader.pick(span.path, numbers)
                for change in name_changes(entry.operation)
                if (change.parent, change.name) == dentry
            ]
            yield from reversed(found) if newest_first else found

    # -- names -------------------------------------------------------------------------------------

    def fid_of_name(self, dentry: Dentry, before_seq: Seq) -> Fid | None:
        """Returns the fid that a name stood for; as far as this journal has entries about it."""
        return self._known_fid(dentry, before_seq)[1]

    def _known_fid(self, dentry: Dentry, before_seq: Seq) -> tuple[bool, Fid | None]:
        """Returns whether entries record what a name stood for, and what that was."""
        for _, change in self._changes_of_name(dentry, Seq(1), before_seq, newest_first=True):
            return True, change.after
        if self.base is not None:
            is_told = self.base.base.seq < before_seq
            return is_told, self.base.fid_of_name(*dentry) if is_told else None
        if not self.is_whole:
            for _, change in self._changes_of_name(dentry, before_seq, END):
                return True, change.before
        return self.is_whole, None

    def fid_at(self, path: bytes, before_seq: Seq) -> Fid | None:
        """Returns the fid that *path* (relative to the root, ``b""``) stood for."""
        fid = ROOT_FID
        walked = b""
        for name in path.split(b"/") if path else ():
            walked = walked + b"/" + name if walked else name
            is_known, found = self._known_fid((fid, name), before_seq)
            found = found if is_known else self._told(walked)
            if found is None:
                return None
            fid = found
        return fid

    def _told(self, path: bytes) -> Fid | None:
        """Returns the fid that some entry says had *path*, where the journal lacks its
        beginning."""
        if self.is_whole:
            return None
        for span in self.segments():
            for one in self.index(span).path_table().at(path):
                return one.fid
        return None

    def tenures(self, path: bytes) -> list[Tenure]:
        """Every file that *path* ever stood for, and when, in order."""
        known = self._tenures.get(path)
        if known is not None:
            return known
        found = [Tenure(ROOT_FID, Seq(1), END)]
        walked = b""
        for name in path.split(b"/") if path else ():
            walked = walked + b"/" + name if walked else name
            found = [
                tenure for above in found for tenure in self._tenures_below(above, name, walked)
            ]
        self._tenures[path] = sorted(found, key=lambda tenure: tenure.from_seq)
        return self._tenures[path]

    def _tenures_below(self, above: Tenure, name: bytes, path: bytes) -> Iterator[Tenure]:
        changes = list(self._changes_of_name((above.fid, name), Seq(1), END))
        if self.base is not None:
            fid = self.base.fid_of_name(above.fid, name)
        else:
            fid = changes[0][1].before if changes else self._told(path)
        begun = Seq(1)
        for seq, change in [*changes, (END, None)]:
            first, last = max(begun, above.from_seq), min(Seq(seq + 1), above.to_seq)
            # The entry that ends a tenure is still about the file, so it is in.
            if fid is not None and first < last:
                yield Tenure(fid, first, last)
            if change is not None:
                fid, begun = change.after, seq

    def children(self, directory: Fid, before_seq: Seq) -> dict[bytes, Fid]:
        """The names in *directory* and what they stood for."""
        names: dict[bytes, Fid] = {}
        for _, change in self.changes_in(directory, before_seq):
            if change.after is None:
                names.pop(change.name, None)
            else:
                names[change.name] = change.after
        return names

    def changes_in(
        self, directory: Fid, before_seq: Seq, from_seq: Seq = Seq(0)
    ) -> Iterator[tuple[Seq, NameChange]]:
        """Returns the changes of names in *directory* in [from_seq, before_seq), in order."""
        entries = self.entries_of_many(
            (directory,),
            before_seq,
            lambda one: one.is_parent and one.kind in NAME_KINDS and not one.refused,
            from_seq=from_seq,
        )
        for entry, _ in entries:
            for change in name_changes(entry.operation):
                if change.parent == directory:
                    yield entry.seq, change

    def moments_of(self, fid: Fid, from_seq: Seq, before_seq: Seq) -> Iterator[int]:
        """Yields the seqs in [from_seq, before_seq) of the entries that held and changed *fid*, of
        a directory its names, too, in order."""
        for span in self.segments(from_seq, before_seq) if from_seq < before_seq else ():
            index = self._naming(span, (fid,))
            for posting in index.of_fid(fid) if index is not None else ():
                is_change = not posting.is_parent or posting.kind in NAME_KINDS
                seq = span.first_seq + posting.number
                if is_change and not posting.refused and from_seq <= seq < before_seq:
                    yield seq

    def dentries(self, fid: Fid, before_seq: Seq) -> list[Dentry]:
        """Every name of *fid*, the oldest first."""
        dentries: dict[Dentry, None] = {}
        for entry, _ in self._namings((fid,), before_seq):
            for change in name_changes(entry.operation):
                if change.before == fid:
                    dentries.pop((change.parent, change.name), None)
                if change.after == fid:
                    dentries[change.parent, change.name] = None
        return list(dentries)

    def dentries_of_many(self, fids: Collection[Fid], before_seq: Seq) -> dict[Fid, list[Dentry]]:
        """Every name of each of *fids*, the oldest first, read in one pass."""
        dentries: dict[Fid, dict[Dentry, None]] = {fid: {} for fid in fids}
        for entry, _ in self._namings(fids, before_seq):
            for change in name_changes(entry.operation):
                dentry = change.parent, change.name
                if change.before in dentries:
                    dentries[change.before].pop(dentry, None)
                if change.after in dentries:
                    dentries[change.after][dentry] = None
        return {fid: list(found) for fid, found in dentries.items()}

    def types_of_many(self, fids: Collection[Fid]) -> dict[Fid, int]:
        """The type bits of the mode that each of *fids* was made with, but for those whose making
        is not in this journal."""
        types: dict[Fid, int] = {}
        if self.base is not None:
            nodes = map(self.base.node, fids)
            types = {node.fid: node.type for node in nodes if node is not None}
        for span in self.segments():
            index = self._naming(span, fids)
            if index is None:
                continue
            others = []
            for fid in index.which_of(fids):
                for posting in index.of_fid(fid):
                    if posting.is_parent or posting.refused or posting.kind not in MAKERS:
                        continue
                    if posting.kind == Kind.MKDIR:
                        types[fid] = S_IFDIR
                    elif posting.kind == Kind.SYMLINK:
                        types[fid] = S_IFLNK
                    else:
                        others.append(posting.number)
            for entry, _ in self.reader.pick(span.path, sorted(others)):
                making = made_by(entry.operation)
                assert isinstance(making, Create | Import)
                types[making.fid] = S_IFMT(making.mode)
        return types

    def has_links(self, fid: Fid) -> bool:
        """Returns True if *fid* ever got a further name."""
        links = (Kind.LINK, Kind.IMPORT_LINK)
        node = self.base.node(fid) if self.base is not None else None
        if node is not None and len(node.dentries) > 1:
            return True
        return not self.is_whole or any(
            posting.kind in links and not posting.is_parent
            for span in self.segments()
            for posting in self.index(span).of_fid(fid)
        )

    def paths_of(self, fid: Fid, before_seq: Seq) -> list[bytes]:
        """Every path of *fid*, the oldest name first; empty when it was gone, or its names are not
        known."""
        if fid == ROOT_FID:
            return [b""]
        found = []
        for parent, name in self.dentries(fid, before_seq):
            above = self._directory_path(parent, before_seq)
            if above is not None:
                found.append(above + b"/" + name if above else name)
        return found

    def _directory_path(self, fid: Fid, before_seq: Seq) -> bytes | None:
        """The path of a directory, which has one name. A loop, because trees can be deep."""
        names: list[bytes] = []
        while fid != ROOT_FID:
            dentries = self.dentries(fid, before_seq)
            if not dentries:
                return None
            fid, name = dentries[0]
            names.append(name)
        return b"/".join(reversed(names))

    def timeline(self, fid: Fid) -> list[tuple[Seq, bytes | None]]:
        """The paths of *fid* through time, with those that directories above gave it by moving:
        from each seq (after that entry) on, the path of its oldest name; None without one."""
        known = self._timelines.get(fid)
        if known is None:
            known = self._timelines[fid] = list(paths_of(fid, self._moves_of))
        return known

    def _moves_of(self, fid: Fid) -> Moves:
        moves = self._moves.get(fid)
        if moves is None:
            moves = self._moves[fid] = list(moves_in(fid, self._namings((fid,), END)))
        return moves

    def learn_moves(self, fids: Collection[Fid]) -> None:
        """Reads what moved *fids* and the directories above them, level by level, so that many
        questions about their paths cost one pass over the segments for each level."""
        todo = {fid for fid in fids if fid not in self._moves and fid != ROOT_FID}
        while todo:
            found: dict[Fid, list[tuple[Entry, Outcome]]] = {fid: [] for fid in todo}
            for entry, outcome in self._namings(todo, END):
                changes = name_changes(entry.operation)
                for fid in {one for change in changes for one in (change.before, change.after)}:
                    if fid in found:
                        found[fid].append((entry, outcome))
            for fid, pairs in found.items():
                self._moves[fid] = list(moves_in(fid, pairs))
            above = {
                dentry[0] for fid in todo for _, dentry in self._moves[fid] if dentry is not None
            }
            todo = {fid for fid in above if fid not in self._moves and fid != ROOT_FID}

    def path_before(self, fid: Fid, seq: Seq) -> bytes | None:
        """The path of *fid* just before entry *seq*, or that it got by it; None if it is not
        known."""
        timeline = self.timeline(fid)
        at = bisect_left(timeline, seq, key=lambda step: step[0])
        if at > 0:
            return timeline[at - 1][1]
        return timeline[0][1] if timeline else None

    def join(self, directory: Fid, name: bytes, seq: Seq) -> bytes | None:
        """The path of *name* in *directory* just before entry *seq*."""
        above = self.path_before(directory, seq)
        if above is None:
            return None
        return above + b"/" + name if above else name

    def has_xattr(self, fid: Fid, name: bytes, before_seq: Seq) -> bool:
        """Returns True if *fid* had the extended attribute *name* (no ACL)."""
        has = False
        kinds = (Kind.SETXATTR, Kind.REMOVEXATTR, Kind.IMPORT)
        entries = self.entries_of(
            fid,
            before_seq,
            wanted=lambda one: one.kind in kinds and not one.is_parent and not one.refused,
        )
        for entry, _ in entries:
            operation = entry.operation
            if isinstance(operation, Import):
                has = any(key == name for key, _ in operation.xattrs)
            elif isinstance(operation, Setxattr | Removexattr) and operation.name == name:
                has = isinstance(operation, Setxattr)
        return has

    # -- moments -----------------------------------------------------------------------------------

    def seq_after(self, time_ns: int) -> Seq:
        """The first seq later than *time_ns* by the clock: asked with it as *before_seq*, the state
        at that time. Where the clock was put back, it said some times twice: the later is
        meant."""
        for at in reversed(range(len(self._paths))):
            header, first = self.reader.beginning(self._paths[at])
            begun_ns = header.time_ns
            if first is not None:
                begun_ns = min(begun_ns, first.time_ns)
            if begun_ns <= time_ns:
                return self._seq_after_in(at, time_ns + self.reader.lead_ns(self._paths[at]))
        return self._starts[0] if self._starts else Seq(1)

    def seq_dated_after(self, time_ns: int) -> Seq:
        """The first seq whose entry is dated later than *time_ns*, which may be ahead of what the
        clock said then."""
        low, high = 0, len(self._paths)
        while low < high:
            middle = (low + high) // 2
            _, first = self.reader.beginning(self._paths[middle])
            if first is not None and first.time_ns <= time_ns:
                low = middle + 1
            else:
                high = middle
        if low == 0:
            return self._starts[0] if self._starts else Seq(1)
        return self._seq_after_in(low - 1, time_ns)

    def _seq_after_in(self, at: int, time_ns: int) -> Seq:
        index = self.reader.index(self._paths[at])
        if not index.entries:
            return index.first_seq
        end = Seq(index.last_seq + 1)
        for entry in self.reader.read(index.point_before_time(time_ns).seq, end):
            if entry.time_ns > time_ns:
                return entry.seq
        return end

    def may_touch(self, index: SegmentIndex, path: bytes) -> bool:
        """Returns True if a segment can have an entry about *path* or something below it: one of
        them, or the directory where a name on the way to it was changed, is recorded in it."""
        table = index.path_table()
        if next(table.below(path), None) is not None:
            return True
        names = path.split(b"/")
        for depth in range(len(names)):
            for one in table.at(b"/".join(names[:depth])):
                if next(index.of_name(one.fid, names[depth]), None) is not None:
                    return True
        return False
