"""The effect of a range of operations when some of them are left out. Pure, but for questions that
it asks about the journal.

The journal's operations all held on the journal's own tree, J. Replaying only some of them makes
another tree, T. :class:`Divergence` keeps only where T differs from J: an operation on a name or
file where they agree works as it did; one that relies on a difference cannot, and what it lacks is
the left-out operation that made the difference.

What an operation relies on: its files and directories exist; a name that it makes is free, a name
that it takes away or moves stands for the same file; a directory that goes is empty and none moves
below itself; an attribute that it removes is there. What a rename replaces may be missing.

With *aside*, a name that an operation makes need not be free: what has it in T, and not in J, moves
aside first, to a name of its own beside it (the undo of a removal, whose name was taken since). It
moves back when the name is free at the end; see :meth:`Divergence.end_asides`."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from fusejournal.disk.acls import ACCESS_ACL_XATTR, CAPABILITY_XATTR, DEFAULT_ACL_XATTR
from fusejournal.history.name_changes import Dentry, NameChange, name_changes
from fusejournal.operations import (
    RENAME_EXCHANGE,
    Moving,
    Removexattr,
    Rename,
    Rmdir,
    Setxattr,
    TreeOperation,
    made_by,
)
from fusejournal.types import NAME_BYTES_MAX, ROOT_FID, Fid, Seq

_FREELY_REMOVED = frozenset({ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR, CAPABILITY_XATTR})


NAME_TAKEN = "another file has the name"


class Questions(Protocol):
    """Questions that have to be asked about the journal's own tree, seldom; *before_seq* is
    half-open."""

    def dentries(self, fid: Fid, before_seq: Seq) -> list[Dentry]:
        """Every name of *fid*."""
        ...

    def has_xattr(self, fid: Fid, name: bytes, before_seq: Seq) -> bool:
        """Returns whether *fid* had the attribute."""
        ...

    def fid_of_name(self, dentry: Dentry, before_seq: Seq) -> Fid | None:
        """Returns what a name stood for."""
        ...


class Conflict(NamedTuple):
    """An operation that cannot be carried out, and the reason."""

    seq: Seq
    reason: str
    because_of: Seq
    """The left-out operation that it lacks."""
    dentry: Dentry | None = None
    """The name it is about, if it is about one."""

    def to_json(self) -> dict[str, Any]:
        """Returns what commands print with --json."""
        return {"seq": self.seq, "reason": self.reason, "because_of": self.because_of}

    def __str__(self) -> str:
        return f"seq {self.seq}: {self.reason}, because seq {self.because_of} is left out"


class _Name(NamedTuple):
    """A name of T that differs from J's."""

    fid: Fid | None
    because_of: Seq


class Aside(NamedTuple):
    """A file of T that had to leave its name to another."""

    dentry: Dentry
    """The name it left."""
    conflict: Conflict
    """The conflict: what it had to make room for, and because of which left-out operation that is
    there."""


class Divergence:
    """The differences of T from J so far. Feed it every operation that held, in order: to
    :meth:`include` or to :meth:`leave_out`. Memory grows with the differences."""

    def __init__(self, questions: Questions, *, aside: bool = False) -> None:
        self._questions = questions
        self._moves_aside = aside
        self.asides: dict[Dentry, Aside] = {}
        """Files that moved aside, by the names that they have now."""
        self.names: dict[Dentry, _Name] = {}
        """The files that names stand for in T, where those are not what they stand for in J."""
        self.missing: dict[Fid, Seq] = {}
        """Files that J has and T has not."""
        self.extra: dict[Fid, set[Dentry]] = {}
        """Names that a file has in T and not in J."""
        self.lacking: dict[Fid, dict[Dentry, Seq]] = {}
        """Names that a file has in J and not in T."""
        self._in_directory: dict[Fid, set[Dentry]] = {}
        self._xattrs: dict[tuple[Fid, bytes], tuple[bool, Seq]] = {}

    # -- operations --------------------------------------------------------------------------------

    def include(self, operation: TreeOperation, seq: Seq) -> Conflict | None:
        """Carry out *operation*, which is entry *seq*; or say why that cannot be, and leave
        everything as it is (then it has to be left out)."""
        if not self._differs():
            return None
        conflict = self._find_conflict(operation, seq)
        if conflict is not None:
            return conflict
        if isinstance(operation, Setxattr | Removexattr):
            self._xattrs.pop((operation.fid, operation.name), None)
        if self._moves_aside:
            for change in self._crowded(operation):
                self._move_aside(change, seq)
        for change in name_changes(operation):
            self._agree(change)
        for change in name_changes(operation):
            if change.before is not None:
                self._check_alive(change.before, seq)
        return None

    def leave_out(self, operation: TreeOperation, seq: Seq) -> None:
        """J carries out *operation*, T does not."""
        if (making := made_by(operation)) is not None:
            self.missing[making.fid] = seq
        if isinstance(operation, Setxattr | Removexattr):
            self._leave_out_xattr(operation, seq)
        changes = name_changes(operation)
        held = [self._in_t(change) for change in changes]
        for change, fid in zip(changes, held, strict=True):
            self._differ(change, fid, seq)

    def _differs(self) -> bool:
        return bool(self.names or self.missing or self._xattrs)

    def _find_conflict(self, operation: TreeOperation, seq: Seq) -> Conflict | None:
        for fid in operation.touched_fids:
            if fid in self.missing:
                what = "its file" if fid == operation.fid else "its directory"
                return Conflict(seq, f"{what} is missing", self.missing[fid])
        changes = name_changes(operation)
        for number, change in enumerate(changes):
            known = self.names.get(change[:2])
            if known is None or known.fid == change.before:
                continue
            if number == 1 and known.fid is None and not _is_exchange(operation):
                continue  # nothing to replace any more
            if self._moves_aside and change in self._crowded(operation):
                continue
            reason = "the name is missing" if known.fid is None else NAME_TAKEN
            return Conflict(seq, reason, known.because_of, change[:2])
        return self._directory_conflict(operation, seq) or self._xattr_conflict(operation, seq)

    def _directory_conflict(self, operation: TreeOperation, seq: Seq) -> Conflict | None:
        """A directory that goes must be empty; one that moves must not get below itself."""
        gone = operation.fid if isinstance(operation, Rmdir) else None
        if isinstance(operation, Moving):
            change = name_changes(operation)[1]
            if not _is_exchange(operation) and self._in_t(change) == operation.replaced:
                gone = operation.replaced
            if operation.parent != operation.new_parent:
                looped = self._loop(operation.fid, operation.new_parent, seq)
                if looped is None and _is_exchange(operation):
                    looped = self._loop(operation.replaced, operation.parent, seq)
                if looped is not None:
                    return Conflict(seq, "the directory would get below itself", looped)
        for dentry in self._in_directory.get(gone, ()) if gone is not None else ():
            known = self.names[dentry]
            if known.fid is not None:
                return Conflict(seq, "the directory is not empty", known.because_of, dentry)
        return None

    def _loop(self, moved: Fid, into: Fid, seq: Seq) -> Seq | None:
        """The left-out operation because of which *moved*, put into directory *into*, would get
        below itself."""
        if not self.extra:
            return None
        fid, because_of = into, None
        while fid != ROOT_FID:
            if fid == moved:
                return because_of
            dentry = next(iter(self.extra.get(fid, ())), None)
            if dentry is not None:
                # The move that J made of it, not what came to its old name in J since. (A directory
                # that J has no more lacks no name; the way to it begins with one that J has.)
                found = because_of or self.names[dentry].because_of
                because_of = max(self.lacking.get(fid, {}).values(), default=found)
            else:
                dentry = next(iter(self._questions.dentries(fid, seq)), None)
            if dentry is None:
                return None
            fid = dentry[0]
        return None

    def _xattr_conflict(self, operation: TreeOperation, seq: Seq) -> Conflict | None:
        if isinstance(operation, Removexattr):
            there, because_of = self._xattrs.get((operation.fid, operation.name), (True, seq))
            if not there:
                return Conflict(seq, "the attribute is missing", because_of)
        return None

    def _leave_out_xattr(self, operation: Setxattr | Removexattr, seq: Seq) -> None:
        if operation.name in _FREELY_REMOVED:
            return  # removing one that is not there is no error
        key = (operation.fid, operation.name)
        known = self._xattrs.get(key)
        there = (
            known[0]
            if known is not None
            else isinstance(operation, Removexattr)
            or self._questions.has_xattr(operation.fid, operation.name, seq)
        )
        if there == isinstance(operation, Setxattr):
            self._xattrs.pop(key, None)
        else:
            self._xattrs[key] = there, seq

    # -- moving aside ------------------------------------------------------------------------------

    def _crowded(self, operation: TreeOperation) -> Iterator[NameChange]:
        """The changes of an operation that make a name which T has for another file."""
        if _is_exchange(operation):
            return
        for change in name_changes(operation):
            known = self.names.get(change[:2])
            if change.after is None or change.before == operation.fid or known is None:
                continue
            if known.fid is not None and known.fid != change.before:
                yield change

    def _move_aside(self, change: NameChange, seq: Seq) -> None:
        """Give what has the name of *change* in T another one, beside it."""
        dentry = change[:2]
        held, because_of = self.names[dentry]
        assert held is not None
        number = 0
        while True:
            aside = dentry[0], aside_name(dentry[1], because_of, number)
            if aside not in self.names and self._questions.fid_of_name(aside, seq) is None:
                break
            number += 1
        left = self.asides.pop(dentry, None)
        conflict = Conflict(seq, NAME_TAKEN, because_of, dentry)
        self.asides[aside] = left or Aside(dentry, conflict)
        self._move(dentry, aside, change.before)

    def _move(self, dentry: Dentry, new: Dentry, in_j: Fid | None) -> None:
        """Rename in T what has the name *dentry*, where J has *in_j*, to *new*, where J has
        nothing."""
        held, because_of = self.names[dentry]
        assert held is not None
        self._not_extra(held, dentry)
        self._forget(dentry)
        if in_j is not None:
            self._set_name(dentry, _Name(None, because_of))
        self._set_name(new, _Name(held, because_of))
        self.extra.setdefault(held, set()).add(new)

    def end_asides(self, before_seq: Seq) -> list[tuple[Dentry, Aside]]:
        """Moves back, at the end, before entry *before_seq*, what moved aside, where its name is
        free by now. Returns what has to stay aside, by the names that it has."""
        staying = []
        for aside, (dentry, conflict) in list(self.asides.items()):
            name = self.names.get(aside)
            if name is None or name.fid is None:
                continue  # it was taken away from there
            in_j = self._questions.fid_of_name(dentry, before_seq)
            in_t = self.names[dentry].fid if dentry in self.names else in_j
            if in_t is not None:
                staying.append((aside, Aside(dentry, conflict)))
                continue
            fid = name.fid
            self._not_extra(fid, aside)
            self._forget(aside)
            self._forget(dentry)
            if in_j == fid:
                self._lost(fid, dentry)
                continue
            self._set_name(dentry, name)
            self.extra.setdefault(fid, set()).add(dentry)
        return staying

    def _set_name(self, dentry: Dentry, name: _Name) -> None:
        self.names[dentry] = name
        self._in_directory.setdefault(dentry[0], set()).add(dentry)

    # -- names -------------------------------------------------------------------------------------

    def _in_t(self, change: NameChange) -> Fid | None:
        """Returns what the name of *change* stands for in T, before it."""
        known = self.names.get(change[:2])
        return change.before if known is None else known.fid

    def _agree(self, change: NameChange) -> None:
        """T and J both do *change*: the name is the same in both from here."""
        dentry = change[:2]
        held = self._in_t(change)
        if held != change.before:
            self._lost(change.before, dentry)
            self._not_extra(held, dentry)
        self._forget(dentry)

    def _differ(self, change: NameChange, held: Fid | None, seq: Seq) -> None:
        """J does *change*, T, where the name stands for *held*, does not."""
        dentry = change[:2]
        if change.before != held:
            self._lost(change.before, dentry)
            self._not_extra(held, dentry)
        self._forget(dentry)
        if change.after == held:
            return
        self._set_name(dentry, _Name(held, seq))
        if held is not None:
            self.extra.setdefault(held, set()).add(dentry)
        if change.after is not None:
            self.lacking.setdefault(change.after, {})[dentry] = seq

    def _lost(self, fid: Fid | None, dentry: Dentry) -> None:
        if fid is not None and fid in self.lacking:
            self.lacking[fid].pop(dentry, None)
            if not self.lacking[fid]:
                del self.lacking[fid]

    def _not_extra(self, fid: Fid | None, dentry: Dentry) -> None:
        if fid is not None and fid in self.extra:
            self.extra[fid].discard(dentry)
            if not self.extra[fid]:
                del self.extra[fid]

    def _forget(self, dentry: Dentry) -> None:
        if self.names.pop(dentry, None) is not None:
            below = self._in_directory[dentry[0]]
            below.discard(dentry)
            if not below:
                del self._in_directory[dentry[0]]

    def _check_alive(self, fid: Fid, seq: Seq) -> None:
        """A file may lose in T the last name it has there, while J has others of it."""
        lacking = self.lacking.get(fid)
        if not lacking or fid in self.missing or self.extra.get(fid):
            return
        if set(self._questions.dentries(fid, Seq(seq + 1))) <= lacking.keys():
            self.missing[fid] = max(lacking.values())

    # -- results -----------------------------------------------------------------------------------

    def children(self, directory: Fid, names: dict[bytes, Fid]) -> dict[bytes, Fid]:
        """The names in *directory* in T, when J has *names*."""
        found = dict(names)
        for dentry in self._in_directory.get(directory, ()):
            fid = self.names[dentry].fid
            if fid is None:
                found.pop(dentry[1], None)
            else:
                found[dentry[1]] = fid
        return found

    def changed_dentries(self) -> Iterator[tuple[Dentry, Fid | None, Seq]]:
        """Every name that differs: what it stands for in T, and because of which operation."""
        for dentry, (fid, because_of) in self.names.items():
            yield dentry, fid, because_of


def aside_name(name: bytes, because_of: Seq, number: int) -> bytes:
    """Returns what *name* is called aside, for the sake of entry *because_of*, at the *number*-th
    try."""
    suffix = b".undone-%d" % because_of + (b".%d" % number if number else b"")
    kept = name[: NAME_BYTES_MAX - len(suffix)]
    if len(kept) < len(name):
        # No half character at the end.
        while kept and kept[-1] & 0xC0 == 0x80:
            kept = kept[:-1]
        kept = kept[:-1] if kept and kept[-1] & 0xC0 == 0xC0 else kept
    return kept + suffix


def _is_exchange(operation: TreeOperation) -> bool:
    return isinstance(operation, Rename) and bool(operation.flags & RENAME_EXCHANGE)
