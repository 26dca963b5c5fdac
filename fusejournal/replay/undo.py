"""Undo: take chosen operations back in a running volume.

What is wanted is the tree that a replay of everything *but* the chosen operations would give. The
plan finds, from the journal alone, where that differs from the tree as it is (select.py), and
which later operations rely on what would be taken back: those are in the way. Carrying it out goes
through the layer, as any user's changes do, so it is journaled, shipped, and can be undone itself.

Files that come back are made whole in a hidden directory at the volume's root first and then
renamed into their places; a file that is there keeps its fid. Before each step the name concerned
is looked at once more: on a volume st_ino is the fid, so a file that somebody changed meanwhile is
not touched."""

import itertools
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from fusejournal.backing import syscalls
from fusejournal.errors import ConflictError
from fusejournal.journal.criteria import Criteria, find, walk
from fusejournal.journal.lookup import Lookup, Place
from fusejournal.operations import (
    RENAME_NOREPLACE,
    Clean,
    Kind,
    Mark,
    NewEpoch,
    TreeOperation,
    Unlink,
    Void,
)
from fusejournal.replay.copying import copy_file
from fusejournal.replay.fold import Fold, Step, carry_out
from fusejournal.replay.scratch import UNDO_PREFIX, temporary_directory
from fusejournal.replay.select import Conflict, Divergence
from fusejournal.replay.target import Progress, Target
from fusejournal.types import NOBODY_ASKED, ROOT_FID, Fid, Seq

_IMPORTS = frozenset({Kind.IMPORT, Kind.IMPORT_DATA, Kind.IMPORT_LINK})
_DATA = frozenset({Kind.WRITE, Kind.TRUNCATE})
_ATTRIBUTES = frozenset({Kind.SETATTR, Kind.SETXATTR, Kind.REMOVEXATTR})
_DESCRIPTORS_MAX = 256
_FLAGS_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

What = Literal["bring back", "remove", "rename", "rewrite", "attributes"]


class Action(NamedTuple):
    """One thing that an undo does, for people: to a name, or to a file's content."""

    what: What
    fid: Fid
    path: bytes | None
    new_path: bytes | None
    because_of: Seq
    """A chosen operation that it takes back."""


@dataclass
class UndoPlan:
    """What is to be done, and what is in the way."""

    chosen: set[Seq]
    divergence: Divergence
    head_seq: Seq
    """The tree as it is: after this entry."""
    conflicts: list[Conflict] = field(default_factory=list)
    changed: dict[Fid, Seq] = field(default_factory=dict)
    """Files with content or attributes that a chosen operation made, and one such operation."""
    content: set[Fid] = field(default_factory=set)
    """Those of them where it was content."""
    kept: int = 0
    """Chosen operations that are not taken back, for others are in the way."""

    def counts(self, seq: Seq) -> bool:
        """Whether entry *seq* stays."""
        return seq not in self.chosen

    def now(self) -> dict[Place, Fid]:
        """What the names that are to change stand for now; nothing, where they are not in it."""
        return {place: fid for fid, places in self.divergence.lacking.items() for place in places}


class Undo:
    """Taking back what *criteria* choose. See the module."""

    def __init__(self, lookup: Lookup, criteria: Criteria, head_seq: Seq) -> None:
        self._lookup = lookup
        self._criteria = replace(criteria, to_seq=Seq(min(criteria.to_seq, head_seq + 1)))
        self._head_seq = head_seq
        self._known_places: dict[Fid, list[Place]] = {}
        self.imports = 0
        """Chosen entries that tell what was there before the volume: they stay."""

    # -- planning ----------------------------------------------------------------------------------

    def plan(self, progress: Progress, *, skip: bool = False) -> UndoPlan:
        """What taking them back comes to. With *skip*, chosen operations that others rely on stay,
        and so on until nothing is in the way. Raises JournalDamagedError."""
        chosen = self._choose(progress)
        count = len(chosen)
        while True:
            plan = self._plan_with(chosen, progress)
            if not plan.conflicts or not skip:
                plan.kept = count - len(plan.chosen)
                return plan
            chosen -= {conflict.because_of for conflict in plan.conflicts}

    def _choose(self, progress: Progress) -> set[Seq]:
        chosen: set[Seq] = set()
        self.imports = 0
        for entry, void, _, _ in find(self._lookup, self._criteria):
            progress(entry.seq, None)
            operation = entry.operation
            if isinstance(operation, Void | NewEpoch | Mark | Clean):
                continue
            if operation.kind in _IMPORTS or (
                entry.who == NOBODY_ASKED and operation.kind in _ATTRIBUTES
            ):
                # What was there before the volume was: an import, or the root's own attributes.
                self.imports += 1
                continue
            if void is None or void.written:
                chosen.add(entry.seq)
        return chosen

    def _plan_with(self, chosen: set[Seq], progress: Progress) -> UndoPlan:
        """One reading from the first chosen operation to the head."""
        plan = UndoPlan(set(chosen), Divergence(self._lookup), self._head_seq)
        if not chosen:
            return plan
        first = min(chosen)
        whole = Criteria(from_seq=first, to_seq=Seq(self._head_seq + 1))
        for (entry, void, _, _), _ in walk(self._lookup, whole):
            operation, seq = entry.operation, entry.seq
            progress(seq - first, self._head_seq - first)
            if isinstance(operation, Void | NewEpoch | Mark | Clean):
                continue
            if void is not None and not void.written:
                continue
            conflict = None
            if seq in chosen:
                self._note_change(plan, operation, seq)
            else:
                conflict = plan.divergence.include(operation, seq)
            if conflict is not None:
                plan.conflicts.append(conflict)
            if seq in chosen or conflict is not None:
                plan.divergence.leave_out(operation, seq)
        return plan

    def _note_change(self, plan: UndoPlan, operation: TreeOperation, seq: Seq) -> None:
        if operation.kind in _DATA or operation.kind in _ATTRIBUTES:
            plan.changed[operation.fid] = seq
            if operation.kind in _DATA:
                plan.content.add(operation.fid)

    def actions(self, plan: UndoPlan) -> Iterator[Action]:
        """What *plan* does, a line each, by path."""
        found = [*self._name_actions(plan), *self._content_actions(plan)]
        yield from sorted(found, key=lambda action: action.new_path or action.path or b"")

    def _name_actions(self, plan: UndoPlan) -> Iterator[Action]:
        end = Seq(self._head_seq + 1)
        gone: dict[Fid, bytes | None] = {}
        now = plan.now()
        for place, _, because_of in plan.divergence.changed_places():
            fid = now.get(place)
            if fid is not None:
                gone[fid] = path = self._lookup.join(*place, end)
                if fid in plan.divergence.missing or fid not in plan.divergence.extra:
                    yield Action("remove", fid, path, None, because_of)
        for place, wanted, because_of in plan.divergence.changed_places():
            if wanted is None:
                continue
            path = self._wanted_path(plan, place)
            if wanted in gone:
                yield Action("rename", wanted, gone[wanted], path, because_of)
            else:
                yield Action("bring back", wanted, None, path, because_of)

    def _wanted_path(self, plan: UndoPlan, place: Place) -> bytes | None:
        """The path of a name in the tree that is wanted."""
        parts = [place[1]]
        fid = place[0]
        while fid != ROOT_FID:
            extra = plan.divergence.extra.get(fid)
            found = next(iter(extra)) if extra else None
            if found is None:
                found = next(iter(self._places(fid)), None)
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
            is_there = fid == ROOT_FID or self._places(fid)
            if is_there and fid not in plan.divergence.missing:
                yield fid, seq

    def _places(self, fid: Fid) -> list[Place]:
        """The names of *fid* as it is now."""
        known = self._known_places.get(fid)
        if known is None:
            known = self._lookup.places(fid, Seq(self._head_seq + 1))
            self._known_places[fid] = known
        return known

    # -- carrying it out ---------------------------------------------------------------------------

    def carry_out(self, plan: UndoPlan, mountpoint: Path, work: Path, progress: Progress) -> None:
        """Do what *plan* says in the volume mounted at *mountpoint*; *work* is a directory outside
        of it for files on their way. Raises ConflictError when the volume was changed meanwhile,
        OSError; what is done by then is in the journal and can be undone."""
        with ExitStack() as stack:
            hands = _Hands(self._lookup, self._places, plan, mountpoint, work, stack)
            hands.run(list(self._changed_files(plan)), progress)


class _Hands:
    """Carries out one plan on the live volume. All names are (directory descriptor, name), so that
    a directory may move while it is worked in."""

    def __init__(
        self,
        lookup: Lookup,
        places: Callable[[Fid], list[Place]],
        plan: UndoPlan,
        mountpoint: Path,
        work: Path,
        stack: ExitStack,
    ) -> None:
        self._lookup = lookup
        self._places = places
        self._plan = plan
        self._end = Seq(plan.head_seq + 1)
        self._fold = Fold(lookup, self._end, plan.counts, plan.divergence)
        self._stack = stack
        self._mountpoint = mountpoint
        self._descriptors: OrderedDict[Fid, int] = OrderedDict()
        self._handles: dict[Fid, bytes] = {}
        stack.callback(self._close)
        self._affected: set[Fid] = {ROOT_FID}
        """Directories whose mtime has to be set right."""
        scratch = stack.enter_context(temporary_directory(UNDO_PREFIX, work))
        (scratch / "files").mkdir()
        self._scratch = stack.enter_context(Target(scratch / "files", {"undo": os.getpid()}))
        self._steps = 0
        self._ours: set[Fid] = set()
        """Files that this has changed itself."""
        (head,) = lookup.reader.read(plan.head_seq, self._end)
        self._planned_ns = head.time_ns

    def run(self, changed: list[tuple[Fid, Seq]], progress: Progress) -> None:
        """Everything, in the order that the module tells."""
        wanted = {place: fid for place, fid, _ in self._plan.divergence.changed_places()}
        now = self._plan.now()
        self._find_directories(wanted, now, changed)
        self._check_all(now, changed)
        root = self._directory(ROOT_FID)
        staging_name = _make_staging(root)
        staging = _open_directory(staging_name, root)
        self._stack.callback(os.close, staging)
        staged: dict[Place, bytes] = {}
        made: dict[Fid, bytes] = {}
        for number, (place, fid) in enumerate(wanted.items(), 1):
            progress(number, None)
            if fid is None:
                continue
            name = b"%d.%d" % (fid, number)
            if fid in made:
                os.link(
                    made[fid], name, src_dir_fd=staging, dst_dir_fd=staging, follow_symlinks=False
                )
            elif self._comes_back(fid):
                self._make(fid, staging, name)
                made[fid] = name
            else:
                self._stage_alive(fid, now, staging, name)
            staged[place] = name
        self._remove(now)
        for place, name in staged.items():
            syscalls.rename(staging, name, self._directory(place[0]), place[1], RENAME_NOREPLACE)
        for number, (fid, _) in enumerate(changed, 1):
            progress(number, len(changed))
            self._rewrite(fid)
        os.rmdir(staging_name, dir_fd=root)
        self._set_directory_times()
        os.fsync(root)  # the journal's flush, and with it everything above

    # -- directories -------------------------------------------------------------------------------

    def _comes_back(self, fid: Fid) -> bool:
        """Whether *fid* is not there now, and has to be made anew."""
        return fid != ROOT_FID and not self._places(fid)

    def _find_directories(
        self,
        wanted: dict[Place, Fid | None],
        now: dict[Place, Fid],
        changed: list[tuple[Fid, Seq]],
    ) -> None:
        """Get hold of every directory that is to be worked in, while it is where its path says."""
        fids = {fid for fid in wanted.values() if fid is not None}
        places = [*wanted, *now, *(place for fid in fids for place in self._places(fid))]
        for fid, _ in changed:
            places += self._places(fid)
            if self._fold.is_directory(fid):
                self._directory(fid)
                self._affected.add(fid)
        for place in places:
            if not self._comes_back(place[0]):
                self._directory(place[0])
        self._affected.update(place[0] for place in wanted if not self._comes_back(place[0]))

    def _directory(self, fid: Fid) -> int:
        """A descriptor of directory *fid*, good for some time: not all can be open at once, but a
        layer finds a directory by its handle wherever it went."""
        fd = self._descriptors.get(fid)
        if fd is not None:
            self._descriptors.move_to_end(fid)
            return fd
        handle = self._handles.get(fid)
        if handle is not None:
            root = self._directory(ROOT_FID)
            return self._keep(fid, syscalls.open_by_handle(root, handle, _FLAGS_DIRECTORY))
        path = self._lookup.paths_of(fid, self._end)[0]
        fd = self._keep(fid, _open_path(self._mountpoint, path))
        if os.fstat(fd).st_ino != fid:
            raise _changed_meanwhile(path)
        self._handles[fid] = syscalls.handle_of(fd)
        return fd

    def _keep(self, fid: Fid, fd: int) -> int:
        self._descriptors[fid] = fd
        if len(self._descriptors) > _DESCRIPTORS_MAX:
            old = next(one for one in self._descriptors if one != ROOT_FID)
            os.close(self._descriptors.pop(old))
        return fd

    def _close(self) -> None:
        for fd in self._descriptors.values():
            os.close(fd)

    def _set_directory_times(self) -> None:
        for fid in self._affected:
            mtime_ns = self._fold.directory(fid).mtime_ns
            if mtime_ns is not None:
                syscalls.set_times(self._directory(fid), None, mtime_ns)

    # -- names -------------------------------------------------------------------------------------

    def _stage_alive(self, fid: Fid, now: dict[Place, Fid], staging: int, name: bytes) -> None:
        """A further name for a file that is there; a directory moves."""
        place = next((one for one in self._places(fid) if one in now), self._places(fid)[0])
        parent = self._directory(place[0])
        self._check(place, fid)
        if self._fold.is_directory(fid):
            syscalls.rename(parent, place[1], staging, name, RENAME_NOREPLACE)
            now.pop(place, None)
            return
        os.link(place[1], name, src_dir_fd=parent, dst_dir_fd=staging, follow_symlinks=False)
        self._ours.add(fid)

    def _remove(self, doomed: dict[Place, Fid]) -> None:
        """Take names away: what is in a directory before it."""
        depth = {
            place: (self._lookup.join(*place, self._end) or b"").count(b"/") for place in doomed
        }
        for place, fid in sorted(doomed.items(), key=lambda pair: depth[pair[0]], reverse=True):
            self._check(place, fid)
            directory = self._directory(place[0])
            if self._fold.is_directory(fid):
                os.rmdir(place[1], dir_fd=directory)
                self._affected.discard(fid)
            else:
                os.unlink(place[1], dir_fd=directory)
                self._ours.add(fid)

    def _check(self, place: Place, fid: Fid) -> None:
        """Raises ConflictError when the name does not stand for *fid* any more."""
        try:
            found = os.stat(place[1], dir_fd=self._directory(place[0]), follow_symlinks=False)
        except FileNotFoundError:
            raise _changed_meanwhile(place[1]) from None
        if found.st_ino != fid or self._is_newer(fid, found):
            raise _changed_meanwhile(place[1])

    def _check_all(self, now: dict[Place, Fid], changed: list[tuple[Fid, Seq]]) -> None:
        """Before anything is written; each is looked at again when its turn comes."""
        for place, fid in now.items():
            self._check(place, fid)
        for fid, _ in changed:
            for place in self._places(fid)[:1]:
                self._check(place, fid)

    def _is_newer(self, fid: Fid, found: os.stat_result) -> bool:
        """Whether somebody else changed *fid* since the plan: on a volume, ctime is the time of
        its last entry. (A directory's is also that of its names, which are looked at
        themselves.)"""
        is_ours = fid in self._ours or stat.S_ISDIR(found.st_mode)
        return not is_ours and found.st_ctime_ns > self._planned_ns

    # -- files -------------------------------------------------------------------------------------

    def _folded(self, fid: Fid) -> tuple[int, bytes]:
        """Make *fid* as it is wanted in the scratch directory; its directory descriptor and
        name there."""
        name = b"%d" % fid
        place = (ROOT_FID, name)
        steps = (
            self._fold.empty_directory(fid, place)
            if self._fold.is_directory(fid)
            else self._fold.file(fid, place)
        )
        self._apply(steps)
        return self._scratch.tree.root_fd, name

    def _apply(self, steps: Iterator[Step]) -> None:
        def count(done: int, _: int | None) -> None:
            self._steps += 1

        carry_out(self._scratch, steps, count, first_seq=self._steps + 1)

    def _drop(self, fid: Fid, name: bytes) -> None:
        """What was folded has served."""
        if not self._fold.is_directory(fid):
            self._apply(iter([Step(Unlink(fid, ROOT_FID, name), 0)]))

    def _make(self, fid: Fid, staging: int, name: bytes) -> None:
        """Make *fid*, which is gone, anew below *staging*."""
        source, source_name = self._folded(fid)
        found = os.stat(source_name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            os.mkdir(name, 0o700, dir_fd=staging)
            fd = self._keep(fid, _open_directory(name, staging))
            self._handles[fid] = syscalls.handle_of(fd)
            self._affected.add(fid)
        elif stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(source_name, dir_fd=source), name, dir_fd=staging)
        elif stat.S_ISREG(found.st_mode):
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=staging))
        else:
            os.mknod(name, stat.S_IFMT(found.st_mode) | 0o600, found.st_rdev, dir_fd=staging)
        copy_file(source, source_name, staging, name)
        self._drop(fid, source_name)

    def _rewrite(self, fid: Fid) -> None:
        """Give *fid*, which is there, the content and attributes that are wanted."""
        source, source_name = self._folded(fid)
        if self._fold.is_directory(fid):
            copy_file(source, source_name, self._directory(fid), b".")
        else:
            place = self._place_now(fid)
            copy_file(source, source_name, self._directory(place[0]), place[1])
        self._drop(fid, source_name)

    def _place_now(self, fid: Fid) -> Place:
        """A name of *fid* after the names were put right."""
        extra = self._plan.divergence.extra.get(fid)
        place = next(iter(extra)) if extra else None
        if place is None:
            lacking = self._plan.divergence.lacking.get(fid, {})
            names = self._places(fid)
            place = next(name for name in names if name not in lacking)
        self._check(place, fid)
        return place


def _make_staging(root: int) -> bytes:
    """A new hidden directory below *root*; its name."""
    for number in itertools.count():
        name = b".fusejournal-undo.%d.%d" % (os.getpid(), number)
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=root)
            return name
    raise AssertionError  # there is no last number


def _open_directory(name: bytes, directory: int) -> int:
    return os.open(name, _FLAGS_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)


def _open_path(mountpoint: Path, path: bytes) -> int:
    """Open directory *path* step by step, for it may be longer than a path can be."""
    fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in path.split(b"/") if path else ():
        try:
            following = _open_directory(name, fd)
        except OSError as error:
            raise _changed_meanwhile(path) from error
        finally:
            os.close(fd)
        fd = following
    return fd


def _changed_meanwhile(path: bytes) -> ConflictError:
    shown = path.decode("utf-8", "backslashreplace")
    return ConflictError(f"{shown}: somebody changed it since this was planned")
