"""The volume: journal, tree and catalog as one, and the one ordered place where a change happens.

:meth:`Volume.commit` is the way of every change: append the entry, apply it to the backing, record
it in the catalog; on a refusal, a VOID entry at once. There is no await in it, so the order of
entries is the order of effects.

What is on disk if the process dies in between: before the append, nothing; between append and
apply, an entry that recovery decides by looking (the caller got no answer); after apply, a change
with its entry. The catalog may be behind at any time: recovery records what it lacks.

Owns the decision whether changes are taken at all (``write_errno``). Called from the event loop's
thread only."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from stat import S_IFDIR, S_IFREG
from typing import Final

from fusejournal.backing.apply import Applier
from fusejournal.backing.apply_results import Made
from fusejournal.backing.catalog import Catalog
from fusejournal.backing.catalog_store import CatalogNode
from fusejournal.backing.reserve import RootReserve
from fusejournal.backing.space_ways import SpaceWays
from fusejournal.backing.tree import Tree
from fusejournal.disk import calls, failpoints, syscalls
from fusejournal.disk.errnos import NO_SPACE
from fusejournal.errors import ApplyBrokenError, JournalError, JournalFullError, ShortWriteError
from fusejournal.file_operations import Fallocate, SetFlags
from fusejournal.journal.format import Entry
from fusejournal.journal.journal import Journal
from fusejournal.journal.outcomes import Outcome
from fusejournal.operations import (
    MOVES,
    REMOVALS,
    RENAME_EXCHANGE,
    ControlOperation,
    Create,
    DataOperation,
    Import,
    ImportOperation,
    Moving,
    NewEpoch,
    Removal,
    TreeOperation,
    Truncate,
    Void,
)
from fusejournal.types import SYSTEM_CALLER, Caller, Fid, Seq, clamp_time
from fusejournal.volume.acceptance import ACCEPTANCE_TRANSITIONS, Acceptance, AcceptanceEvent
from fusejournal.volume.observer import Unobserved, VolumeObserver
from fusejournal.volume.trouble import Trouble, TroubleKind
from fusejournal.volume.wait_policy import WaitPolicy

log = logging.getLogger(__name__)

EHELD: Final = 516
"""The ``write_errno`` while changes are held: none is made, and none is refused, because the caller
is to wait (layer/request_loop.py). The kernel's ERESTART_RESTARTBLOCK; no caller sees
it."""
_MAY_ORPHAN = REMOVALS | MOVES
_NONE = Fid(0)
_RANGES_LOOKED_AT_MAX = 64


class Volume:
    """The one ordered place of a volume: see the module."""

    def __init__(
        self,
        journal: Journal,
        catalog: Catalog,
        tree: Tree,
        observer: VolumeObserver | None = None,
        policy: WaitPolicy | None = None,
    ) -> None:
        """*observer* knows how the volume is used; *policy* is what changes wait for."""
        self._observer = observer or Unobserved()
        self._policy = policy or WaitPolicy()
        self.journal = journal
        self.catalog = catalog
        self.tree = tree
        self.applier = Applier(tree)
        self._reserve = RootReserve(tree.root_fd)
        self.space_ways = SpaceWays(tree.root_fd)
        self.acceptance = Acceptance.TAKING
        self.write_errno: int | None = None
        """errno that every change gets (EROFS, or EHELD), or None while changes are taken."""
        self.in_pieces = 0
        """Changes of many entries that have begun and are not done: they are not held."""
        self.failure: Trouble | None = None
        """The reason why the volume turned read-only."""
        self.journal_full = False
        """True if the newest change was refused because of lack of space under the journal."""

    @contextmanager
    def coming_in_pieces(self) -> Iterator[None]:
        """The block makes one change of many entries: what asks that all changes be whole waits
        for its end."""
        self.in_pieces += 1
        try:
            yield
        finally:
            self.in_pieces -= 1

    def must_refuse_growth(self) -> bool:
        """True while a change that is no removal would be refused with ENOSPC."""
        return self.catalog.is_full

    def new_fid(self) -> Fid:
        """The fid for the next new file. It counts as given only when an entry with it is
        recorded."""
        return self.catalog.next_fid

    def fail(self, reason: str, kind: TroubleKind = TroubleKind.FAILED) -> None:
        """Turn read-only for good, until the volume is mounted again."""
        if self.failure is None:
            self.failure = Trouble(kind, reason)
            self._move(AcceptanceEvent.FAIL, errno.EROFS)
            log.critical("the volume is read-only from here: %s", reason)

    def refuse_changes(self, number: int = errno.EROFS) -> None:
        """Refuse each change with errno *number*, until :meth:`take_changes`."""
        self._move(AcceptanceEvent.REFUSE, number)

    def hold_changes(self) -> None:
        """Hold each change until :meth:`take_changes` or :meth:`refuse_changes`. They are taken
        now."""
        self._move(AcceptanceEvent.HOLD, EHELD)

    def take_changes(self) -> None:
        """Take changes again, unless the volume has failed."""
        self._move(AcceptanceEvent.TAKE, None)

    def _move(self, event: AcceptanceEvent, number: int | None) -> None:
        self.acceptance = ACCEPTANCE_TRANSITIONS[self.acceptance][event]
        self.write_errno = errno.EROFS if self.acceptance is Acceptance.FAILED else number

    def commit(self, operation: TreeOperation, who: Caller, data: bytes | memoryview = b"") -> Seq:
        """Journal *operation* and carry it out. Returns its seq. Raises OSError: the backing's
        refusal (with nothing done), EROFS, ENOSPC, or ShortWriteError when only the beginning of a
        WRITE was taken."""
        kind = operation.kind
        if self.write_errno is not None:
            raise OSError(self.write_errno, os.strerror(self.write_errno))
        makes_space = kind in REMOVALS or self._is_cut(operation)
        if not makes_space and self.catalog.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if makes_space and self.journal.is_short:
            self._refuse_locked(operation)
        # No await from here to the end: entry, effect (or VOID) and catalog belong together.
        time_ns = self.entry_time()
        seq = self._append(operation, who, time_ns, data, makes_space=makes_space)
        if self._policy.is_strict:
            self._flush()
        orphan = _orphan_of(operation) if kind in _MAY_ORPHAN else _NONE
        try:
            self._carry_out(operation, seq, time_ns, data, orphan, uid=who.uid)
        except ShortWriteError as error:
            self._void_rest(seq, operation, time_ns, error)
            raise
        except OSError as error:
            self.void(seq, operation, error.errno or errno.EIO)
            raise
        except ApplyBrokenError as error:
            raise OSError(errno.EIO, str(error)) from error
        self._observer.entry_applied(self.catalog.applied_seq, self.journal.appended_bytes)
        return seq

    def _carry_out(
        self,
        operation: TreeOperation,
        seq: Seq,
        time_ns: int,
        data: bytes | memoryview,
        orphan: Fid,
        *,
        uid: int = 0,
        redo: bool = False,
    ) -> None:
        """Pin, apply, record, unpin: entry *seq* comes to its effect, for user *uid*. *orphan*: the
        file to pin, because the operation may take its last name and it is in use; or 0. With
        *redo* all may be done already.

        Raises OSError: the backing's refusal, with nothing done or recorded, or ShortWriteError.
        On anything else the volume fails."""
        is_pinned = False
        try:
            if orphan:
                is_pinned = self._pin(orphan, redo)
            made = self._apply_for(uid, operation, time_ns, data, redo)
        except OSError:
            if is_pinned:
                self._unpin(self.tree.node(orphan))
            raise
        except BaseException as error:
            self.fail(f"entry {seq} ({operation.kind.name}) is half done: {error}")
            raise
        if not is_pinned:
            self._record(operation, seq, time_ns, made.handle, made.ino)
            return
        node = self.tree.node(orphan)  # while it is known
        self._record(operation, seq, time_ns, made.handle, made.ino)
        self._unpin(node)

    def _unpin(self, node: CatalogNode) -> None:
        """Unpins after the operation, which is done, or to be voided, whatever comes of this."""
        try:
            self.tree.unpin(node)
        except ApplyBrokenError as error:
            self.fail(str(error))

    def _pin(self, fid: Fid, redo: bool) -> bool:
        """Keep the descriptor of *fid*. Returns False where it is gone already. Raises OSError."""
        try:
            self.tree.pin(fid, self._observer.is_open(fid))
        except OSError:
            if not redo:
                raise
            return False
        return True

    def _apply_for(
        self,
        uid: int,
        operation: TreeOperation,
        time_ns: int,
        data: bytes | memoryview,
        redo: bool = False,
    ) -> Made:
        """Carry out *operation* for a user, who is to take no space that is kept back for root,
        but to make some (a removal)."""
        apply = self.applier.apply
        size = operation.length if isinstance(operation, Fallocate) else len(data)
        if uid and self._reserve.is_near(size, time_ns) and operation.kind not in REMOVALS:
            return syscalls.as_user(uid, apply, operation, time_ns, data)
        return apply(operation, time_ns, data, redo)

    def apply_received(self, entry: Entry, outcome: Outcome, redo: bool) -> None:
        """Carry out *entry*, which is in the journal because another node wrote it, and has its
        *outcome* there. With *redo* it may have been done before, by a process that died.

        Raises OSError: the backing's refusal, which is for now, for the entry held where it was
        made; nothing was done, or the beginning of a WRITE, which can be written again. On
        anything else the volume fails."""
        operation, seq, void = entry.operation, entry.seq, outcome.void
        epoch = operation.epoch if isinstance(operation, NewEpoch) else None
        self.journal.follow(entry.time_ns, epoch)
        if isinstance(operation, ControlOperation):
            self.catalog.record_control(operation, seq)
        elif outcome.held:
            orphan = _orphan_of(operation) if operation.kind in _MAY_ORPHAN else _NONE
            if orphan and not self._observer.is_in_use(orphan):
                orphan = _NONE
            data = outcome.data_of(entry)
            # Flags that the backing here lacks are left out: see apply_flags.py.
            redo = redo or isinstance(operation, SetFlags)
            self._carry_out(operation, seq, entry.time_ns, data, orphan, redo=redo)
        if void is not None:
            self.catalog.record_control(operation, Seq(seq + 1))
        self._observer.entry_applied(self.catalog.applied_seq, self.journal.appended_bytes)

    def set_mtime(self, fid: Fid, mtime_ns: int) -> None:
        """Give *fid* the mtime that entries say it has. Raises OSError."""
        syscalls.set_times(self.tree.descriptor(fid), None, mtime_ns)

    def make_unnamed(self, operation: Create, who: Caller) -> None:
        """Make the regular file of *operation*, but without its name: not journaled, because no one
        sees it by a name. Its fid is one of :meth:`reserve_fids`. Raises OSError."""
        if self.write_errno is not None:
            raise OSError(self.write_errno, os.strerror(self.write_errno))
        if self.catalog.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        time_ns = self.entry_time()
        make = self.applier.make_unnamed
        try:
            if who.uid and self._reserve.is_near(0, time_ns):
                syscalls.as_user(who.uid, make, operation, time_ns)
            else:
                make(operation, time_ns)
        except ApplyBrokenError as error:
            self.fail(str(error))
            raise OSError(errno.EIO, str(error)) from error

    def reserve_fids(self, count: int) -> Fid:
        """Have *count* fids that no entry gives to a file. Returns the first. A reader of the
        journal takes them as given, because it has an entry with the last of them, refused: that of
        a file in a directory that was never there. Raises OSError."""
        if self.write_errno is not None:
            raise OSError(self.write_errno, os.strerror(self.write_errno))
        first = self.new_fid()
        last = Fid(first + count - 1)
        operation = Create(last, last, b"-", S_IFREG, 0, 0, 0, None)
        seq = self._append(operation, SYSTEM_CALLER, self.entry_time(), b"")
        self.void(seq, operation, errno.ESTALE)
        return first

    def change_orphan(
        self, operation: DataOperation, who: Caller, data: bytes | memoryview = b""
    ) -> None:
        """Change a file that has no name any more: not journaled, because no one sees it again
        by a name. Raises OSError as :meth:`commit`; half of it done fails the volume."""
        if self.write_errno is not None:
            raise OSError(self.write_errno, os.strerror(self.write_errno))
        node = self.tree.node(operation.fid)
        # No entry keeps it apart from the change before.
        time_ns = max(self.entry_time(), node.ctime_ns + 1)
        try:
            self._apply_for(who.uid, operation, time_ns, data)
        except ShortWriteError:
            node.note_change(time_ns)  # the beginning was written
            raise
        except ApplyBrokenError as error:
            self.fail(f"a change of a removed file ({operation.kind.name}) is half done: {error}")
            raise OSError(errno.EIO, str(error)) from error
        if isinstance(operation, SetFlags):
            self.catalog.note_flags(node, operation.flags)
        node.note_change(time_ns)

    def drop_orphan(self, fid: Fid) -> None:
        """The kernel has forgotten *fid* and has it open no more: let an orphan go for good."""
        try:
            self.tree.drop_orphan(fid)
        except ApplyBrokenError as error:
            self.fail(str(error))

    def note(self, operation: ControlOperation) -> Seq:
        """Append an entry that changes no tree. Raises JournalError."""
        seq = self.journal.append(operation, SYSTEM_CALLER, self.entry_time(), self.catalog.path)
        self.catalog.record_control(operation, seq)
        self._observer.entry_applied(self.catalog.applied_seq, self.journal.appended_bytes)
        return seq

    def journal_existing(
        self,
        operation: ImportOperation | DataOperation,
        handle: bytes = b"",
        ino: int = 0,
        data: bytes = b"",
        who: Caller = SYSTEM_CALLER,
    ) -> Seq:
        """Journal something that is in the backing already; an IMPORT's object (with *handle*)
        gets its fid. Raises OSError when the object cannot be tagged, with a VOID appended,
        when the journal is full, while changes are held, or once the volume has failed."""
        if self.write_errno is not None and (self.write_errno == EHELD or self.failure is not None):
            raise OSError(self.write_errno, os.strerror(self.write_errno))
        time_ns = self.entry_time()
        seq = self._append(operation, who, time_ns, data)
        if isinstance(operation, Import):
            try:
                self.tag_imported(operation, handle)
            except OSError as error:
                self.void(seq, operation, error.errno or errno.EIO)
                raise
        self._record(operation, seq, time_ns, handle, ino)
        self._observer.entry_applied(self.catalog.applied_seq, self.journal.appended_bytes)
        return seq

    def tag_imported(self, operation: Import, handle: bytes) -> None:
        """Write the fid to the object that *operation* imports, leaving its times alone; but an
        mtime that not every backing can hold becomes the one that is journaled."""
        fd = os.open(
            operation.name,
            os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC,
            dir_fd=self.tree.descriptor(operation.parent),
        )
        try:
            failpoints.reached("import.tag")
            self.tree.tag(syscalls.descriptor_path(fd), operation.fid, handle)
            mtime_ns = os.fstat(fd).st_mtime_ns
            if mtime_ns != clamp_time(mtime_ns):
                syscalls.set_times(fd, None, clamp_time(mtime_ns))
        finally:
            os.close(fd)

    def entry_time(self) -> int:
        """The next entry's time: now, but always later than the last entry's."""
        return self.journal.next_time()

    def redo_last(self, operation: TreeOperation, seq: Seq, time_ns: int, data: bytes) -> bool:
        """Recovery's end of :meth:`commit` for the entry that was in flight when the process died.
        Returns whether the operation holds (else it is VOID now)."""
        orphan = _orphan_of(operation) if operation.kind in _MAY_ORPHAN else _NONE
        if not self._observer.is_open(orphan):
            orphan = _NONE  # whose mount is taken over has files open, and no other process
        try:
            self._carry_out(operation, seq, time_ns, data, orphan, redo=True)
        except ShortWriteError as error:
            self._void_rest(seq, operation, time_ns, error)
        except OSError as error:
            self.void(seq, operation, error.errno or errno.EIO)
            return False
        return True

    def _flush(self) -> None:
        """Make the entry just appended durable before it is applied. Raises OSError EIO; what then
        becomes of the entry is for recovery to say, by looking."""
        self.journal.write_ahead()
        try:
            self.journal.sync()
        except JournalError as error:
            self.fail(f"the journal could not be flushed: {error}")
            raise OSError(errno.EIO, str(error)) from error

    def _is_cut(self, operation: TreeOperation) -> bool:
        """Returns True if a file is to have half of what it has, at the most: of its length by a
        TRUNCATE, of its data by a hole. That makes space, and can be done but 63 times, because on
        a full disk the file does not grow again; cut byte by byte, one file would take what is kept
        for removals."""
        if isinstance(operation, Truncate):
            size = self.tree.stat(operation.fid).st_size
            return 0 < size >= 2 * operation.size
        if not isinstance(operation, Fallocate) or not operation.punches:
            return False
        fd = self.tree.descriptor(operation.fid)
        ranges = calls.data_ranges(fd, operation.offset, operation.end)
        cut = sum(end - start for start, end in islice(ranges, _RANGES_LOOKED_AT_MAX))
        return 0 < os.fstat(fd).st_blocks * 512 <= 2 * cut

    def _refuse_locked(self, operation: TreeOperation) -> None:
        """Raises PermissionError for a removal, truncation or hole that the backing would refuse
        because of chattr +i or +a: while the journal lives on its reserve, a refusal is to cost
        none."""
        fids = [operation.fid]
        if isinstance(operation, Removal):
            fids.append(operation.parent)
        for fid in fids:
            has_flags = self.tree.node(fid).type in (S_IFREG, S_IFDIR)
            if has_flags and syscalls.is_locked(self.tree.descriptor(fid)):
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def _append(
        self,
        operation: TreeOperation,
        who: Caller,
        time_ns: int,
        data: bytes | memoryview,
        *,
        makes_space: bool = False,
    ) -> Seq:
        try:
            seq = self.journal.append(
                operation, who, time_ns, self.catalog.path, data, makes_space=makes_space
            )
        except JournalFullError as error:
            self.journal_full = error.errno in NO_SPACE
            raise OSError(error.errno, os.strerror(error.errno)) from None
        except JournalError as error:
            self.fail(str(error))
            raise OSError(errno.EROFS, str(error)) from error
        self.journal_full = False
        return seq

    def void(self, seq: Seq, operation: TreeOperation, number: int) -> None:
        """Append the VOID of *operation*, the last entry, which was refused with errno *number*."""
        self._append_void(Void(seq, number, 0))
        self.catalog.record_control(operation, Seq(seq + 1))
        self._observer.entry_applied(self.catalog.applied_seq, self.journal.appended_bytes)

    def _void_rest(
        self, seq: Seq, operation: TreeOperation, time_ns: int, error: ShortWriteError
    ) -> None:
        self._append_void(Void(seq, error.errno or errno.EIO, error.written))
        self._record(operation, seq, time_ns, b"", 0)
        self.catalog.record_control(operation, Seq(seq + 1))
        self._observer.entry_applied(self.catalog.applied_seq, self.journal.appended_bytes)

    def _append_void(self, void: Void) -> None:
        try:
            self.journal.append(void, SYSTEM_CALLER, self.entry_time(), self.catalog.path)
        except JournalError as error:
            # Recovery will decide the entry by looking; until then nothing may follow it.
            self.fail(f"the refusal of entry {void.seq} could not be journaled: {error}")
            raise OSError(errno.EROFS, str(error)) from error

    def _record(
        self, operation: TreeOperation, seq: Seq, time_ns: int, handle: bytes, ino: int
    ) -> None:
        try:
            self.catalog.record(operation, seq, time_ns, handle, ino)
        except BaseException as error:
            self.fail(f"the catalog contradicts entry {seq}: {error!r}")
            raise


def _orphan_of(operation: TreeOperation) -> Fid:
    """The file whose last name *operation*, a removal or a move, may take; or 0."""
    if not isinstance(operation, Moving):
        return operation.fid
    return _NONE if operation.flags & RENAME_EXCHANGE else operation.replaced
