"""Flushes and checkpoints: what makes the journal, and after it the backing, durable.

Owns four background tasks of a running volume: the group flush (one fdatasync of the journal for
all who wait, at least every ``flush_interval_seconds``), the catalog's early commits, the
checkpoint (syncfs of the backing, then the catalog) and the tending of sealed segments (index,
compression). All disk waits happen in worker threads and processes; the event loop only wakes the
tasks that they concern.

A disk that flushes faster than a thread can be woken (a battery behind it, or no flush at all) is
flushed right where a caller waits. What counts is the average over many flushes, because what a
slow one among them costs all others is to be less than what the rest save. Waking a thread is
measured now and then for that, and is taken for a millisecond at most: what it takes when the loop
is busy says nothing, and no disk that is slower than that holds the loop up.

A flush or syncfs that fails is never retried as if nothing had been: it calls ``fail`` and the
volume is read-only from there on, and each caller that waits gets EIO. Source: fsync(2), syncfs(2);
the kernel reports a write error once."""

import errno
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import trio

from fusejournal.backing.catalog import Catalog
from fusejournal.backing.catalog_store import COMMIT_CHANGES
from fusejournal.backing.root_mark import BackingRoot
from fusejournal.config import JournalConfig
from fusejournal.disk.errnos import NO_MEANS, NO_SPACE
from fusejournal.disk.process import WORKING_DIRECTORY, python_module
from fusejournal.errors import JournalError, JournalFailedError
from fusejournal.journal.format import FormatError
from fusejournal.journal.journal import Journal
from fusejournal.journal.reader import END
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.types import Seq
from fusejournal.volume.checkpoint import Checkpoint, CheckpointFile
from fusejournal.volume.commit_due import CommitDue
from fusejournal.volume.flush_times import Average, Waits

if TYPE_CHECKING:
    from outcome import Outcome

_TEND_PAUSE_SECONDS = 5.0
_FULL_PAUSE_SECONDS = 300.0
_PASSES = NO_SPACE | NO_MEANS
_HOP_SECONDS_MAX = 0.001
_IN_PLACE_MAX = 256
"""The number of flushes in place after which one is left to a thread, to see what that takes
now."""

log = logging.getLogger(__name__)


class RemoteDurability(Protocol):
    """The nodes elsewhere that must have an entry, too, before it counts as durable."""

    def has(self, seq: Seq) -> bool:
        """True if nothing need wait for *seq*."""

    def want(self, seq: Seq) -> None:
        """Note that a caller is going to wait for *seq*."""

    async def wait(self, seq: Seq) -> None:
        """Return when *seq* is there. Cancelling is harmless."""

    def try_enter(self, uid: int) -> bool:
        """Take a place for a caller with *uid*, who is about to wait, if there is one."""

    async def enter(self, uid: int) -> None:
        """Take one when there is. Cancelling leaves the line."""

    def leave(self, uid: int) -> None:
        """Give it back."""


@dataclass(frozen=True)
class FlushHooks:
    """The part that replication has in flushes; by default, none."""

    quorum: RemoteDurability | None = None
    keep_uncompressed_from: Callable[[], Seq] = lambda: END
    """Segments with entries from here on stay as they are: a peer is about to read them."""
    has_backlog: Callable[[], bool] = lambda: False
    """True while there is more urgent work than tending sealed segments."""
    before_flush: Callable[[], None] = lambda: None
    """Runs in the thread that flushes the journal, before: makes durable what must not be
    missing where the journal is there. May raise OSError."""


class Durability:
    """The flushes, the checkpoint and the sealed segments of one volume. ``durable_seq`` and
    ``checkpoint_seq`` only grow."""

    def __init__(
        self,
        journal: Journal,
        catalog: Catalog,
        root: BackingRoot,
        checkpoint: CheckpointFile,
        config: JournalConfig,
        fail: Callable[[str], None],
        page: WatermarkPage,
        commit_due: CommitDue,
        hooks: "FlushHooks | None" = None,
    ) -> None:
        """Flushes nothing yet.

        Args:
            journal, catalog: what is flushed and committed.
            root, checkpoint: the backing's root, and where its checkpoint is kept.
            config: how often.
            fail: turns the volume read-only, with the reason in words.
            page: the node's watermarks.
            commit_due: tells that the catalog is to be committed.
            hooks: the part of replication; None: it has none."""
        self.hooks = hooks or FlushHooks()
        self._journal = journal
        self._catalog = catalog
        self._root = root
        self._checkpoint = checkpoint
        self._config = config
        self._fail = fail
        self._page = page
        self._commit_due = commit_due
        self._failed = False
        self._is_running = False
        """False in a read-only mount, where there is nothing to wait for."""
        self._wanted_seq = Seq(0)
        """The seq up to which the journal is to be flushed, or was."""
        self._is_flushing = False
        """True while a thread flushes."""
        self._flushed = trio.Event()
        self._to_call: list[tuple[Seq, float, Callable[[OSError | None], None]]] = []
        """Calls that :meth:`call_when_flushed` is to make."""
        self.compression_failure: str | None = None
        """The reason why sealed segments are not compressed any more."""
        self._flush_average = Average()
        """Seconds that a flush takes."""
        self._hop_average = Average()
        """Seconds that having it done by a thread takes beside."""
        self._in_place = 0
        """Flushes made in place since a thread made one."""
        self._without_index: set[Path] = set()
        self.tending = trio.Lock()
        """Held by the task that works on sealed segments, or removes some."""
        self._compress_again_at = 0.0
        self._tend_failure: str | None = None
        self.waits = Waits()
        self.flush_seconds = 0.0
        """The time of all flushes so far."""
        self.flushes = 0
        """The number of flushes so far."""

    @property
    def full(self) -> bool:
        """True while the catalog's disk has no space for what has to be committed."""
        return self._catalog.is_full

    @property
    def durable_seq(self) -> Seq:
        """Everything up to this entry survives the system crash."""
        return self._journal.durable_seq

    def flush_if_quick(self) -> float | None:
        """Flush at once, in the event loop, if the disk has shown that this costs less than having
        it done by a thread. All is durable then: returns what it took, in seconds; None if it was
        not done."""
        if (
            not self._is_running
            or self._failed
            or self._flush_average.value >= self._hop_average.value
            or self._in_place >= _IN_PLACE_MAX
            or not self._journal.is_flush_small()
        ):
            return None
        self._journal.write_ahead()
        try:
            took = self._timed_sync()
        except JournalError as error:
            self.disk_failed(f"the journal could not be flushed: {error}")
            return None
        self._in_place += 1
        self._note_flushed()
        return took

    def try_flush_inline(self, seq: Seq) -> float | None:
        """Make *seq* durable by a flush right here at the most. Returns None if that is enough;
        else the ``time.perf_counter`` since when the caller that wants it has waited, for
        :meth:`wait`."""
        if self.hooks.quorum is not None:
            self.hooks.quorum.want(seq)
        took = 0.0 if self.durable_seq >= seq else self.flush_if_quick()
        if took is None or (self.hooks.quorum is not None and not self.hooks.quorum.has(seq)):
            return time.perf_counter() - (took or 0.0)
        self.waits.took(took)
        return None

    def is_durable(self, seq: Seq) -> bool:
        """True if *seq* is durable here and where else it must be: nothing is to be waited for."""
        quorum = self.hooks.quorum
        return self.durable_seq >= seq and (quorum is None or quorum.has(seq))

    def want(self) -> None:
        """Have all that is in the journal now flushed: at once, or by the next flush where one is
        going on; or as soon as the tasks run."""
        if self._is_running:
            self._want(self._journal.head_seq)

    def _want(self, seq: Seq) -> None:
        self._wanted_seq = max(self._wanted_seq, seq)
        if not self._is_flushing and not self._failed:
            self._journal.write_ahead()
            self._begin_flush()

    def _timed_sync(self) -> float:
        began = time.perf_counter()
        # What is appended from here on has nothing made durable before it: the next flush's.
        head_seq = self._journal.head_seq
        try:
            self.hooks.before_flush()
        except OSError as error:
            raise JournalError(str(error)) from error
        self._journal.sync(head_seq)
        took = time.perf_counter() - began
        self.flush_seconds += took
        self.flushes += 1
        self._flush_average.add(took)
        return took

    async def wait(self, seq: Seq, since: float | None = None) -> None:
        """Return when the journal is durable up to *seq*, here and where else it must be; the
        caller has waited *since* then, or waits from now on. Raises OSError EIO when it cannot be.
        Cancelling is harmless: the flush goes on for the others."""
        began = time.perf_counter() if since is None else since
        if self._is_running:
            await self._flushed_up_to(seq)
            if self._journal.durable_seq < seq:
                raise _cannot_be()
        if self.hooks.quorum is not None:
            await self.hooks.quorum.wait(seq)
        self.waits.took(time.perf_counter() - began)

    def call_when_flushed(
        self, seq: Seq, since: float, done: Callable[[OSError | None], None]
    ) -> None:
        """Call *done* when the journal is durable up to *seq*, here: with None, or with an error
        when it cannot be. The caller that wants it has waited *since* then. (A task that waits
        costs much more than the call.)"""
        if not self._is_running:
            done(None)
        elif self._failed:
            done(_cannot_be())
        else:
            self._to_call.append((seq, since, done))
            self._want(seq)

    async def run(self) -> None:
        """Run all background tasks until cancelled."""
        self._is_running = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._flush_loop)
                nursery.start_soon(self._commit_loop)
                nursery.start_soon(self._checkpoint_loop)
                nursery.start_soon(self._tend_sealed_segments)
        finally:
            with trio.CancelScope(shield=True):
                while self._is_flushing:
                    await self._flushed.wait()

    async def _flush_loop(self) -> None:
        """Flush also what no caller waits for."""
        while not self._failed:
            await self.flush()
            if self._catalog.changes > COMMIT_CHANGES or self.full:
                self.commit_catalog()
            await trio.sleep(self._config.flush_interval_seconds)

    async def _commit_loop(self) -> None:
        """Commit the catalog as soon as much has changed, however much changes until the next
        flush: what a commit takes holds everything up."""
        while not self._failed:
            await self._commit_due.wait()
            self.commit_catalog()

    async def flush(self) -> None:
        """Flush the journal, up to its head now, unless the disk has failed. Cancelling leaves the
        flush going on."""
        await self._flushed_up_to(self._journal.head_seq)

    async def _flushed_up_to(self, seq: Seq) -> None:
        """Return when the journal is durable up to *seq*, or the disk has failed."""
        while self._journal.durable_seq < seq and not self._failed:
            self._want(seq)
            await self._flushed.wait()

    def _begin_flush(self) -> None:
        """Have the journal flushed by a thread, for all who wait now."""
        began = time.perf_counter()
        token = trio.lowlevel.current_trio_token()

        def deliver(result: "Outcome[float]") -> None:
            # Where trio is no more, no task waits.
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(self._end_flush, result, began)

        trio.lowlevel.start_thread_soon(self._timed_sync, deliver)
        self._is_flushing = True

    def _end_flush(self, result: "Outcome[float]", began: float) -> None:
        """The thread is done. The next flush begins at once, if some wait for one already."""
        self._is_flushing = False
        try:
            took = result.unwrap()
        except JournalError as error:
            self.disk_failed(f"the journal could not be flushed: {error}")
            return
        hop = time.perf_counter() - began - took
        self._hop_average.add(min(hop, _HOP_SECONDS_MAX))
        self._in_place = 0
        self._note_flushed()
        if self._wanted_seq > self._journal.durable_seq:
            self._want(self._wanted_seq)

    def _note_flushed(self) -> None:
        # On a disk that is too full for it, the next flush tries again.
        with suppress(OSError):
            self._page.write_durable(self._journal.durable_seq)
        self._wake()

    async def next_flush(self) -> None:
        """Return after the next flush, or when one has failed. Cancelling is harmless."""
        await self._flushed.wait()

    async def flush_watermarks(self) -> None:
        """Flush the page of watermarks. Cancelling waits for that: what was raised in memory would
        not be looked at again. Raises JournalFailedError, and has the volume fail."""
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(self._page.sync)
            except OSError as error:
                reason = f"the page of watermarks could not be flushed: {error}"
                self.disk_failed(reason)
                raise JournalFailedError(reason) from error

    def commit_catalog(self) -> None:
        """Commit the catalog to the page cache; a full disk is recorded in ``full`` and tried again
        later."""
        try:
            self._catalog.try_commit()
        except OSError as error:
            self.disk_failed(f"the catalog could not be committed: {error}")

    async def checkpoint(self) -> None:
        """Bring backing and catalog to disk up to what is applied now. Cancelling leaves the
        checkpoint as it was, or made."""
        checkpoint = Checkpoint.begin(self._catalog.applied_seq, self._journal.head)
        if checkpoint.seq == self._catalog.checkpoint_seq or self._failed:
            return
        try:
            # The journal first: the backing must never be ahead of it on disk.
            await self.flush()
            if self._failed:
                return
            await trio.to_thread.run_sync(self._checkpoint.make, checkpoint, self._root)
            self._catalog.note_checkpoint(checkpoint.seq)
            self.commit_catalog()
            await trio.to_thread.run_sync(self._catalog.sync)
        except OSError as error:
            self.disk_failed(f"the backing could not be flushed: {error}")

    async def _checkpoint_loop(self) -> None:
        while not self._failed:
            await trio.sleep(self._config.checkpoint_interval_seconds)
            await self.checkpoint()

    async def _tend_sealed_segments(self) -> None:
        """Give sealed segments their index, then compress them."""
        failure: str | None
        while not self._failed:
            await trio.sleep(_TEND_PAUSE_SECONDS)
            if self.hooks.has_backlog():
                continue
            try:
                async with self.tending:
                    await self._tend_once()
                failure = None
            except* OSError as errors:
                # Nothing is lost by it: it is tried again, and what writes the journal finds out
                # for itself whether its disk has failed.
                failure = str(errors.exceptions[0])
            if failure is not None and failure != self._tend_failure:
                log.warning("sealed segments are not tended for now: %s", failure)
            self._tend_failure = failure

    async def _tend_once(self) -> None:
        for segment in self._journal.sealed.without_index():
            # Tried once until the next mount: a damaged segment will not get better.
            if segment not in self._without_index and not await self._make_index(segment):
                self._without_index.add(segment)
        if (
            self._config.compress
            and self.compression_failure is None
            and time.monotonic() >= self._compress_again_at
        ):
            await self._compress()

    async def _make_index(self, segment: Path) -> bool:
        """Returns True if that worked. It may fail, because of a full disk or a damaged segment: an
        index is only a cache, and a reader of the segment reports what is wrong with it."""
        done = await trio.run_process(
            python_module("fusejournal.journal.index_making", str(segment)),
            check=False,
            cwd=WORKING_DIRECTORY,
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
        )
        if done.returncode != 0:
            reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            log.info("no index for %s: %s", segment, reason)
        return done.returncode == 0

    async def _compress(self) -> None:
        for segment in self._journal.sealed.compressible(self.hooks.keep_uncompressed_from()):
            try:
                await trio.to_thread.run_sync(_when_idle, self._journal.sealed.compress, segment)
            except OSError as error:
                if error.errno not in _PASSES:
                    self.compression_failure = f"{segment}: {error.strerror}"
                # A full disk passes, and the plain segment is as good.
                self._compress_again_at = time.monotonic() + _FULL_PAUSE_SECONDS
                return
            except FormatError as error:
                self.compression_failure = str(error)
                return

    def disk_failed(self, reason: str) -> None:
        """A flush has failed, for *reason*: the volume is read-only, and callers that wait get
        EIO."""
        self._failed = True
        self._fail(reason)
        self._wake()

    def _wake(self) -> None:
        flushed, self._flushed = self._flushed, trio.Event()
        flushed.set()
        to_call, self._to_call = self._to_call, []
        for one in to_call:
            seq, since, done = one
            if seq <= self._journal.durable_seq:
                self.waits.took(time.perf_counter() - since)
                done(None)
            elif self._failed:
                done(_cannot_be())
            else:
                self._to_call.append(one)


def _cannot_be() -> OSError:
    """The error for those who wait for an entry that cannot be durable any more."""
    return OSError(errno.EIO, os.strerror(errno.EIO))


def _when_idle(work: Callable[[Path], None], segment: Path) -> None:
    """Do *work* on *segment* in this thread, which only gets what time others leave.

    Source: setpriority(2): in Linux, threads have a priority each."""
    thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, thread)
    os.setpriority(os.PRIO_PROCESS, thread, 19)
    try:
        work(segment)
    finally:
        os.setpriority(os.PRIO_PROCESS, thread, before)
