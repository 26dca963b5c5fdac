"""The mirror applier: applies on a mirror what was received, in order, through the mirror's own
volume.

It never goes beyond what is durable here, nor beyond what the sender had applied, and an entry is
applied together with its VOID or not at all. Before each entry its seq is stored
(journal/watermarks.py): the one thing that a process killed at any instruction leaves in doubt is
that entry, and the next process decides it by looking, so that none is skipped and none done twice.

A backing without space is tried again and again, and reported. An entry that the backing's file
system cannot hold at all (backing/limits.py), and any other refusal of what held on the primary,
end applying: the entry stays the next one, is named with its path, and is tried again by the next
mount.

After each entry the kernel is made to forget the attributes that it knows and that are not so any
more (layer/kernel_cache.py).

Runs as one task of the event loop; a slice is a few milliseconds, so that readers are served in
between."""

import errno
import logging
import os
import time
from collections.abc import Iterator

import trio

from fusejournal.backing.catalog_store import COMMIT_CHANGES
from fusejournal.backing.limits import limit_met
from fusejournal.disk.errnos import NO_SPACE
from fusejournal.errors import FusejournalError
from fusejournal.history.lookup import Lookup
from fusejournal.history.mtimes import kept_mtimes
from fusejournal.journal.format import Entry
from fusejournal.journal.frame_range import FrameRangeReader, entries_in
from fusejournal.journal.outcomes import Outcome, with_outcomes
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import BadFrameError
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.operations import ControlOperation
from fusejournal.replication.wakeup import Wakeup
from fusejournal.types import Fid, Seq
from fusejournal.volume.durability import Durability
from fusejournal.volume.observer import ChangeObserver
from fusejournal.volume.refusals import path_of
from fusejournal.volume.volume import Volume

log = logging.getLogger(__name__)

_SLICE_SECONDS = 0.004
_FRAME_RANGE_BYTES = 256 << 10
_FULL_PAUSE_SECONDS = 1.0
_LIMIT_ADVICE = (
    "nothing after it is applied; give this mirror an empty backing, on a file system that holds "
    "it, and an empty state"
)


class EntryRefusedError(FusejournalError):
    """The backing refuses an entry that held on the primary."""

    def __init__(self, seq: Seq, kind: str, path: str, reason: str) -> None:
        self.seq = seq
        self.path = path
        self.reason = reason
        super().__init__(f"entry {seq} ({kind} of {path}) cannot be applied: {reason}")


class MirrorApplier:
    """Applies received entries.

    Args:
        volume, watermarks, durability: of the mirror.
        kernel_cache: learns of each entry that was applied.
        redo_until_seq: entries up to here may have been applied before, by a process or machine
            that is gone.
        wakeup: set when ``applied_seq``, ``full`` or ``failure`` has changed.
    """

    def __init__(
        self,
        volume: Volume,
        watermarks: WatermarkPage,
        durability: Durability,
        kernel_cache: ChangeObserver,
        redo_until_seq: Seq,
        wakeup: Wakeup,
    ) -> None:
        self._volume = volume
        self._watermarks = watermarks
        self._durability = durability
        self._kernel_cache = kernel_cache
        self._redo_until_seq = redo_until_seq
        self._in_doubt = watermarks.applying_seq
        self._wakeup = wakeup
        self._more = Wakeup()
        self.full: str | None = None
        """The reason why nothing is applied for now, in words."""
        self.failure: str | None = None
        """The reason why nothing is applied any more, in words."""

    @property
    def applied_seq(self) -> Seq:
        """The last entry that was applied."""
        return self._volume.catalog.applied_seq

    def wake(self) -> None:
        """Wakes the applier: there may be more to apply."""
        self._more.set()

    async def run(self) -> None:
        """Apply until cancelled, or until an entry cannot be applied."""
        journal = self._volume.journal
        reader: FrameRangeReader | None = None
        try:
            while True:
                if reader is None and journal.head_seq:  # it has joined a volume
                    reader = FrameRangeReader(journal.directory, journal.uuid)
                if reader is None or not await self._apply_what_is_there(reader):
                    await self._more.wait()
        except Exception as error:
            # Whatever it is: nothing more may be applied, and readers are still to be served.
            if not isinstance(error, FusejournalError | BadFrameError | OSError):
                log.exception("applying failed on a bug")
            self.failure = str(error)
            if not isinstance(error, EntryRefusedError):
                self.failure = f"entry {self.applied_seq + 1} cannot be applied: {error}"
            self._volume.fail(self.failure)
            self._wakeup.set()
        finally:
            if reader is not None:
                reader.close()

    def _limit(self) -> Seq:
        return min(self._watermarks.committed_seq, self._watermarks.durable_seq)

    async def _apply_what_is_there(self, reader: FrameRangeReader) -> bool:
        """Apply the next range up to the limit of now. Returns True if there was any."""
        limit = self._limit()
        if self.applied_seq >= limit:
            return False
        if reader.seq != self.applied_seq + 1:
            reader.seek(self.applied_seq)
        frame_range = reader.next_checked(self._volume.journal.end, limit, _FRAME_RANGE_BYTES)
        if frame_range is None:
            return False
        entries = with_outcomes(entries_in(frame_range))
        while await self._apply_slice(entries):
            await trio.lowlevel.checkpoint()
        return True

    async def _apply_slice(self, entries: Iterator[tuple[Entry, Outcome]]) -> bool:
        """Apply for a while. Returns True if there may be more."""
        ends = time.perf_counter() + _SLICE_SECONDS
        more = False
        for entry, outcome in entries:
            redo = entry.seq <= self._redo_until_seq
            if self.full is not None or entry.seq == self._in_doubt:
                await self._apply(entry, outcome, redo)
            else:
                # The way of nearly all: with nothing to wait for, and so with no coroutine.
                try:
                    self._watermarks.write_applying(entry.seq)
                    self._volume.apply_received(entry, outcome, redo)
                except OSError:
                    await self._apply(entry, outcome, redo=True)
                else:
                    self._kernel_cache.invalidate(entry.operation)
            if time.perf_counter() > ends:
                more = True
                break
        if self._volume.catalog.changes > COMMIT_CHANGES:
            self._durability.commit_catalog()
            while self._durability.full:
                await self._wait_for_space("no space for the catalog")
                self._durability.commit_catalog()
            self.full = None
        self._kernel_cache.recall()
        self._wakeup.set()
        return more

    async def _apply(self, entry: Entry, outcome: Outcome, redo: bool) -> None:
        """Apply one that may have to wait for space, or is in doubt. *redo*: it may have been
        applied before, in part too. Raises EntryRefusedError. Cancelling leaves it undone."""
        mtimes: dict[Fid, int] = {}
        if entry.seq == self._in_doubt:
            lookup = self._lookup()
            mtimes = await trio.to_thread.run_sync(kept_mtimes, lookup, entry)
        is_limit_met = False
        while True:
            try:
                self._watermarks.write_applying(entry.seq)
                self._volume.apply_received(entry, outcome, redo)
                break
            except OSError as error:
                number, redo = error.errno or errno.EIO, True
            limit = self._limit_met(entry, outcome, number)
            if limit is not None:
                # Tried once more, because space that came in between looks like a limit.
                if is_limit_met:
                    reason = "this backing's file system has no place for it"
                    raise self._refused(entry, f"{reason}: {limit}; {_LIMIT_ADVICE}")
                is_limit_met = True
            elif number in NO_SPACE:
                why = os.strerror(number)
                await self._wait_for_space(f"no space to apply entry {entry.seq}: {why}")
            else:
                raise self._refused(entry, os.strerror(number))
        for fid, mtime_ns in mtimes.items():
            self._volume.set_mtime(fid, mtime_ns)
        if self.full is not None:
            self.full = None
            self._wakeup.set()
        self._kernel_cache.invalidate(entry.operation)

    def _lookup(self) -> Lookup:
        """Returns what answers about the whole journal, what its base records too."""
        journal = self._volume.journal
        base = journal.reader.base
        return Lookup(JournalReader(journal.directory, journal.uuid, base=base))

    def _limit_met(self, entry: Entry, outcome: Outcome, number: int) -> str | None:
        """The limit of the backing that *entry* was refused for with errno *number*, in words."""
        tree, operation = self._volume.tree, entry.operation
        if isinstance(operation, ControlOperation):
            return None
        size = len(outcome.data_of(entry))
        return limit_met(operation, number, size, tree.root_fd, tree.limits)

    def _refused(self, entry: Entry, reason: str) -> EntryRefusedError:
        operation = entry.operation
        assert not isinstance(operation, ControlOperation)
        path = path_of(self._volume.catalog, operation)
        return EntryRefusedError(entry.seq, operation.kind.name, path, reason)

    async def _wait_for_space(self, what: str) -> None:
        if self.full is None:
            self.full = what
            log.warning("%s: waiting for space", what)
            self._wakeup.set()
        await trio.sleep(_FULL_PAUSE_SECONDS)
