"""Undo: take chosen operations back in a running volume.

What is wanted is the tree that a replay of everything *but* the chosen operations would give. The
plan finds, from the journal alone, where that differs from the tree as it is (divergence.py), and
which later operations rely on what would be taken back: those are in the way. One that only took
the name of what comes back can be left where it is: that comes back beside it, and what is in a
directory goes with it, because dentries are by fid. undo_execute.py carries the plan out.

A journal that has lost its beginning is asked nothing that only the beginning could tell: that
raises JournalError."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from fusejournal.errors import UndoOverlapError
from fusejournal.history.lookup import Lookup
from fusejournal.history.name_changes import Dentry, name_changes
from fusejournal.history.query import Criteria, find, walk
from fusejournal.journal.format import Entry
from fusejournal.journal.reader import END
from fusejournal.operations import (
    ATTRIBUTE_KINDS,
    CONTENT_KINDS,
    ControlOperation,
    Import,
    ImportLink,
    Kind,
    Mkdir,
    Setattr,
    Setxattr,
    TreeOperation,
)
from fusejournal.replay.divergence import Aside, Conflict, Divergence
from fusejournal.replay.images import unknown_fid
from fusejournal.replay.undo_execute import UndoExecutor, WantedNames
from fusejournal.replay.undo_files import UndoFiles, pid_of_private
from fusejournal.replay.undo_others import Overlap
from fusejournal.replay.wanted import JournalFiles
from fusejournal.types import ROOT_FID, SYSTEM_CALLER, Fid, Progress, Seq

_IMPORTS = frozenset({Kind.IMPORT, Kind.IMPORT_DATA, Kind.IMPORT_LINK})

UndoStep = Literal["bring back", "remove", "rename", "rewrite", "attributes"]
OnUndoConflict = Literal["stop", "skip", "aside"]


class Action(NamedTuple):
    """One thing that an undo does, for people: to a name, or to a file's content."""

    what: UndoStep
    fid: Fid
    path: bytes | None
    new_path: bytes | None
    because_of: Seq
    """A chosen operation that it takes back."""
    taken_path: bytes | None = None
    """The path that what comes back would have, if another file did not have it by now."""


@dataclass
class UndoPlan:
    """A plan: what is to be done, and what is in the way."""

    chosen: set[Seq]
    divergence: Divergence
    head_seq: Seq
    """The tree as it is: after this entry."""
    conflicts: list[Conflict] = field(default_factory=list)
    changed: dict[Fid, Seq] = field(default_factory=dict)
    """Files with content or attributes that a chosen operation made, and one such operation."""
    content: set[Fid] = field(default_factory=set)
    """The ones where it was content."""
    directories: set[Fid] = field(default_factory=set)
    """Directories in which a chosen operation made or removed a name: their mtimes change back,
    too."""
    asides: dict[Dentry, Aside] = field(default_factory=dict)
    """Files that come back beside their names, which were taken since, by the names they get."""
    kept: int = 0
    """Chosen operations that are not taken back, because others are in the way."""
    overlaps: list[Overlap] = field(default_factory=list)
    """Found while it was carried out: what others changed at the same moment as the undo did."""

    def counts(self, seq: Seq) -> bool:
        """Returns whether entry *seq* stays."""
        return seq not in self.chosen

    def now(self) -> dict[Dentry, Fid]:
        """Returns what the names that are to change stand for now; those that stand for nothing are
        not in it."""
        return {
            dentry: fid for fid, dentries in self.divergence.lacking.items() for dentry in dentries
        }


class _Knowing:
    """Answers about files whose making is in the journal; of others it tells too little."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup

    def dentries(self, fid: Fid, before_seq: Seq) -> list[Dentry]:
        """Every name of *fid*. Raises JournalError."""
        check_known(self._lookup, {fid})
        return self._lookup.dentries(fid, before_seq)

    def has_xattr(self, fid: Fid, name: bytes, before_seq: Seq) -> bool:
        """Returns whether *fid* had the attribute. Raises JournalError."""
        check_known(self._lookup, {fid})
        return self._lookup.has_xattr(fid, name, before_seq)

    def fid_of_name(self, dentry: Dentry, before_seq: Seq) -> Fid | None:
        """Returns what a name stood for."""
        return self._lookup.fid_of_name(dentry, before_seq)


def check_known(lookup: Lookup, fids: set[Fid]) -> None:
    """Raises JournalError when the making of any of *fids* is before the journal's beginning."""
    if lookup.is_whole:
        return
    told = lookup.types_of_many(fids)
    for fid in fids:
        if fid not in told:
            raise unknown_fid(lookup, fid)


def begun_undos(lookup: Lookup) -> dict[int, Criteria]:
    """The processes that have begun an undo, and for each what chooses all that it has done from
    its last one on. Raises JournalDamagedError."""
    found: dict[int, Criteria] = {}
    made = lookup.entries_of(
        ROOT_FID,
        wanted=lambda one: one.is_parent and one.kind == Kind.MKDIR and not one.refused,
    )
    for entry, _ in made:
        assert isinstance(entry.operation, Mkdir)
        pid = pid_of_private(entry.operation.name)
        # (A layer in a container knows no pids: there it would be what anybody did.)
        if pid is not None and entry.who.pid:
            found[pid] = Criteria(from_seq=entry.seq, pid=entry.who.pid)
    return found


class Undo:
    """Taking back what *criteria* choose. See the module."""

    def __init__(
        self,
        lookup: Lookup,
        criteria: Criteria,
        head_seq: Seq,
        *,
        unfinished: Sequence[Criteria] = (),
    ) -> None:
        """*unfinished*: what undos of the same have done that were stopped (:func:`begun_undos`).
        It is taken back in the same course, which leaves what they would have left."""
        self._lookup = lookup
        self._criteria = [
            replace(one, to_seq=Seq(min(one.to_seq, head_seq + 1)))
            for one in (criteria, *unfinished)
        ]
        self._head_seq = head_seq
        self._known_dentries: dict[Fid, list[Dentry]] = {}
        self.imports = 0
        """Chosen entries that tell what was there before the volume: they stay."""

    # -- planning ----------------------------------------------------------------------------------

    def plan(self, progress: Progress, *, on_conflict: OnUndoConflict = "stop") -> UndoPlan:
        """Returns what taking them back comes to. With ``skip``, chosen operations that others rely
        on stay, and so on until nothing is in the way; with ``aside``, what lost its name to
        another since comes back beside it. Raises JournalDamagedError, and JournalError where the
        journal lacks what it takes to know."""
        chosen = self._choose(progress)
        count = len(chosen)
        while True:
            plan = self._plan_with(chosen, progress, on_conflict)
            if not plan.conflicts or on_conflict != "skip":
                plan.kept = count - len(plan.chosen)
                break
            chosen -= {conflict.because_of for conflict in plan.conflicts}
        self._know_dentries(plan)
        return plan

    def _choose(self, progress: Progress) -> set[Seq]:
        chosen: set[Seq] = set()
        self.imports = 0
        matches = (find(self._lookup, one) for one in self._criteria)
        for entry, outcome, _, _ in chain.from_iterable(matches):
            progress(entry.seq, None)
            operation = entry.operation
            if isinstance(operation, ControlOperation):
                continue
            if self._is_of_import(entry):
                self.imports += 1
                continue
            if outcome.held:
                chosen.add(entry.seq)
        return chosen

    def _is_of_import(self, entry: Entry) -> bool:
        """Returns whether *entry* only tells what was there before the volume, or behind the layer.

        The layer asks for that itself; but so, it seems, do processes that it cannot see (from a
        container, those of the machine have pid 0). The import is told by its form: the root's
        xattrs come together, and then all its attributes at once, as no system call sets them; a
        directory's mtime comes with the import of a name in it."""
        operation = entry.operation
        if operation.kind in _IMPORTS:
            return True
        if entry.who != SYSTEM_CALLER:
            return False
        if isinstance(operation, Setattr):
            if _is_all_of_root(operation):
                return True
            if operation == Setattr(operation.fid, None, None, None, None, operation.mtime_ns):
                following = next(self._after(entry), None)
                return (
                    following is not None
                    and isinstance(following.operation, Import | ImportLink)
                    and following.operation.parent == operation.fid
                )
        if isinstance(operation, Setxattr) and operation.fid == ROOT_FID:
            for following in self._after(entry):
                other = following.operation
                if following.who != SYSTEM_CALLER:
                    return False
                if not isinstance(other, Setxattr) or other.fid != ROOT_FID:
                    return isinstance(other, Setattr) and _is_all_of_root(other)
        return False

    def _after(self, entry: Entry) -> Iterator[Entry]:
        return self._lookup.reader.read(Seq(entry.seq + 1), END)

    def _plan_with(
        self, chosen: set[Seq], progress: Progress, on_conflict: OnUndoConflict
    ) -> UndoPlan:
        """One reading from the first chosen operation to the head."""
        divergence = Divergence(_Knowing(self._lookup), aside=True)
        plan = UndoPlan(set(chosen), divergence, self._head_seq)
        if not chosen:
            return plan
        first = min(chosen)
        whole = Criteria(from_seq=first, to_seq=Seq(self._head_seq + 1))
        for (entry, outcome, _, _), _ in walk(self._lookup, whole):
            operation, seq = entry.operation, entry.seq
            progress(seq - first, self._head_seq - first)
            if isinstance(operation, ControlOperation) or not outcome.held:
                continue
            conflict = None
            if seq in chosen:
                self._note_change(plan, operation, seq)
            else:
                conflict = divergence.include(operation, seq)
            if conflict is not None:
                plan.conflicts.append(conflict)
            if seq in chosen or conflict is not None:
                divergence.leave_out(operation, seq)
        staying = divergence.end_asides(Seq(self._head_seq + 1))
        if on_conflict == "aside":
            plan.asides = dict(staying)
        else:
            plan.conflicts += [aside.conflict for _, aside in staying]
        return plan

    def _know_dentries(self, plan: UndoPlan) -> None:
        """Read the present names of all that *plan* is about at once."""
        fids = plan.changed.keys() | plan.divergence.extra.keys()
        fids -= {ROOT_FID}
        check_known(self._lookup, fids)
        fids |= plan.directories - {ROOT_FID}
        found = self._lookup.dentries_of_many(fids, Seq(self._head_seq + 1))
        self._known_dentries.update(found)

    def _note_change(self, plan: UndoPlan, operation: TreeOperation, seq: Seq) -> None:
        plan.directories.update(change.parent for change in name_changes(operation))
        if operation.kind in CONTENT_KINDS or operation.kind in ATTRIBUTE_KINDS:
            plan.changed[operation.fid] = seq
            if operation.kind in CONTENT_KINDS:
                plan.content.add(operation.fid)

    def actions(self, plan: UndoPlan) -> Iterator[Action]:
        """Yields what *plan* does, an action each, by path."""
        found = [*self._name_actions(plan), *self._content_actions(plan)]
        yield from sorted(found, key=lambda action: action.new_path or action.path or b"")

    def _name_actions(self, plan: UndoPlan) -> Iterator[Action]:
        end = Seq(self._head_seq + 1)
        gone: dict[Fid, bytes | None] = {}
        now = plan.now()
        for dentry, _, because_of in plan.divergence.changed_dentries():
            fid = now.get(dentry)
            if fid is not None:
                gone[fid] = path = self._lookup.join(*dentry, end)
                if fid in plan.divergence.missing or fid not in plan.divergence.extra:
                    yield Action("remove", fid, path, None, because_of)
        for dentry, wanted, because_of in plan.divergence.changed_dentries():
            if wanted is None:
                continue
            path = self._wanted_path(plan, dentry)
            aside = plan.asides.get(dentry)
            taken = None if aside is None else self._wanted_path(plan, aside.dentry)
            if wanted in gone:
                yield Action("rename", wanted, gone[wanted], path, because_of, taken)
            else:
                yield Action("bring back", wanted, None, path, because_of, taken)

    def _wanted_path(self, plan: UndoPlan, dentry: Dentry) -> bytes | None:
        """The path of a name in the tree that is wanted."""
        parts = [dentry[1]]
        fid = dentry[0]
        while fid != ROOT_FID:
            extra = plan.divergence.extra.get(fid)
            found = next(iter(extra)) if extra else None
            if found is None:
                found = next(iter(self._dentries(fid)), None)
            if found is None:
                return None
            parts.append(found[1])
            fid = found[0]
        return b"/".join(reversed(parts))

    def _content_actions(self, plan: UndoPlan) -> Iterator[Action]:
        for fid, seq in self._changed_files(plan):
            path = self._lookup.path_before(fid, Seq(self._head_seq + 1))
            yield Action("rewrite" if fid in plan.content else "attributes", fid, path, None, seq)

    def _changed_files(self, plan: UndoPlan) -> Iterator[tuple[Fid, Seq]]:
        """Files to be rewritten: those that are there, and stay."""
        for fid, seq in plan.changed.items():
            is_there = fid == ROOT_FID or self._dentries(fid)
            if is_there and fid not in plan.divergence.missing:
                yield fid, seq

    def _dentries(self, fid: Fid) -> list[Dentry]:
        """The names of *fid* as it is now."""
        known = self._known_dentries.get(fid)
        if known is None:
            known = self._lookup.dentries(fid, Seq(self._head_seq + 1))
            self._known_dentries[fid] = known
        return known

    # -- carrying it out ---------------------------------------------------------------------------

    def carry_out(self, plan: UndoPlan, mountpoint: Path, progress: Progress) -> None:
        """Do what *plan* says in the volume mounted at *mountpoint*; *progress* is called between
        any two steps, and may raise. What other processes changed at the very moment when this one
        did is in the plan's ``overlaps`` afterwards, whatever was raised.

        Raises UndoOverlapError when all is done but there are any, ConflictError when the volume
        was changed meanwhile, JournalError, OSError; what is done by then is in the journal and
        can be undone."""
        changed = dict(self._changed_files(plan))
        with ExitStack() as stack:
            files = UndoFiles(self._lookup, plan.head_seq, mountpoint, progress, stack)
            wanted = JournalFiles(self._lookup, plan.counts, Seq(plan.head_seq + 1))
            executor = UndoExecutor(files, self._names(plan), wanted, stack)
            directories = {
                fid for fid in plan.directories if fid == ROOT_FID or self._dentries(fid)
            }
            try:
                executor.run(changed.keys(), plan.content & changed.keys(), directories)
            finally:
                plan.overlaps = executor.overlaps()
        if plan.overlaps:
            first, *more = plan.overlaps
            path = self.path_of(first)
            shown = "?" if path is None else "/" + path.decode("utf-8", "backslashreplace")
            others = f", and {len(more):,} more like it" if more else ""
            raise UndoOverlapError(
                f"{shown}: another process changed it at the very moment when it was taken back, "
                f"as entry {first.seq}: look at it{others}"
            )

    def _names(self, plan: UndoPlan) -> WantedNames:
        wanted = {dentry: fid for dentry, fid, _ in plan.divergence.changed_dentries()}
        is_there = {ROOT_FID, *(fid for fid, dentries in self._known_dentries.items() if dentries)}
        new = {fid for fid in wanted.values() if fid is not None} - is_there
        return WantedNames(wanted, plan.now(), new, self._known_dentries)

    def path_of(self, overlap: Overlap) -> bytes | None:
        """The path, at the time of the plan, of what *overlap* is about."""
        end = Seq(self._head_seq + 1)
        if overlap.name is None:
            return self._lookup.path_before(overlap.fid, end)
        return self._lookup.join(overlap.fid, overlap.name, end)


def _is_all_of_root(operation: Setattr) -> bool:
    return operation.fid == ROOT_FID and all(
        value is not None
        for value in (operation.mode, operation.uid, operation.gid, operation.mtime_ns)
    )
