"""The journal of one volume: append, flush, roll. The only code that writes segments (reader.py
reads them).

:meth:`Journal.append` and everything else but ``sync`` belong to the event loop's thread; that
one blocks and runs in a worker thread beside it. An appended frame is in the
kernel's hands when ``append`` returns (one pwritev, no buffer of our own), so it outlives this
process; ``sync`` makes it outlive the machine.

Space is taken ahead of the end, and a reserve of it kept: an entry that does not fit is refused
before a byte of it is written, while VOID and CLEAN entries, and removals within limits, still
find room. An error of the disk itself ends the journal's life: every later append fails, for
it is unknown what the pages hold.

A segment is rolled before an entry, never between an entry and its VOID. Source: fallocate(2),
pwritev(2), fdatasync(2)."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

from fusejournal.disk import calls
from fusejournal.errors import (
    JournalDamagedError,
    JournalFailedError,
    JournalFullError,
)
from fusejournal.journal import tail
from fusejournal.journal.base import BaseTree
from fusejournal.journal.clock import EntryClock
from fusejournal.journal.format import (
    DATA_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    encode_frame,
    encode_new,
)
from fusejournal.journal.frame_range import FrameRange, JournalEnd
from fusejournal.journal.handle_key import NO_HANDLE_KEY, HandleKey
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.received import check_follows, check_goes_on, check_key, header_after
from fusejournal.journal.sealed_segments import SealedSegments, share_from
from fusejournal.journal.segment import COMPRESSED_SUFFIX, first_seq_of
from fusejournal.journal.segment_header import SEGMENT_HEADER_BYTES, SegmentHeader
from fusejournal.journal.segment_writer import FROM_RESERVE, JournalOptions, SegmentWriter
from fusejournal.operations import Kind, NewEpoch, Operation
from fusejournal.types import Caller, Epoch, Fid, Position, Seq

_VOID_ROOM_BYTES = 256
_NOTHING = Position(Epoch(0), Seq(0), 0)
_SMALL_FLUSH_BYTES = 64 << 10


class Journal:
    """The one object that writes segments. Make one with :meth:`create` or :meth:`open`; by itself
    the constructor makes one that has no segment yet, because it will receive its first."""

    def __init__(
        self,
        directory: Path,
        uuid: UUID,
        options: JournalOptions,
        on_flush_failed: Callable[[], None] = lambda: None,
        after: Position = _NOTHING,
    ) -> None:
        """*on_flush_failed* is called, in the thread that flushes, when the disk fails at it. The
        first entry will be the one after *after*."""
        self.directory = directory
        self.uuid = uuid
        self.options = options
        self._on_flush_failed = on_flush_failed
        self._is_copy = True
        self.reader = JournalReader(directory, uuid)
        """Reads what was appended, up to the head."""
        self.handle_key = NO_HANDLE_KEY
        """Makes the generations of fids; one that is received has it from its first segment on."""
        self.epoch, self.head_seq, self.chain = after
        self.last_time_ns = 0
        self.clock = EntryClock()
        self.durable_seq = Seq(0)
        """Everything up to here is on disk."""
        self.durable_when_opened = Seq(0)
        """The durable seq that the process before this one knew of."""
        self.ends_clean = False
        """True if the last entry is a CLEAN."""
        self.repairs: list[tail.Cut] = []
        self.damage: JournalDamagedError | None = None
        """The damage that keeps a read-only opened journal from being whole."""
        self.is_writable = True
        """True if entries can be appended: False when it was opened for reading only."""
        self.appended_bytes = 0
        """The bytes that were appended since it was opened."""
        self._current: SegmentWriter | None = None
        self._failure: str | None = None
        self.sealed = SealedSegments(options.compress_level)
        """Segments that are written no more."""
        # Shared with the thread that flushes: only the loop counts up, only the flush catches up.
        self._synced_end = 0
        self._names_made = 0
        self._names_synced = 0
        self._sync_lock = threading.Lock()

    # -- opening -----------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        directory: Path,
        uuid: UUID,
        options: JournalOptions,
        handle_key: HandleKey | None = None,
        on_flush_failed: Callable[[], None] = lambda: None,
    ) -> "Journal":
        """A new, empty journal in *directory*; *handle_key* None makes a key. Raises
        JournalFullError, OSError."""
        journal = cls(directory, uuid, options, on_flush_failed)
        journal._is_copy = False
        journal.handle_key = HandleKey.random() if handle_key is None else handle_key
        journal._current = journal._begin_segment(journal._next_header())
        return journal

    def join_volume(self, uuid: UUID) -> None:
        """Become the journal of volume *uuid*, while there is nothing in it."""
        assert self.head_seq == 0, "only an empty journal can become another volume's"
        self.uuid = uuid
        self.reader.join_volume(uuid)

    def begin_behind(self, base: BaseTree) -> None:
        """Have the journal begin right behind *base* from now on: the entries before are gone. The
        next entry is later than it, where none is there."""
        self.sealed.remove_first(base.base.seq)
        self.reader.begin_behind(base)
        self.last_time_ns = max(self.last_time_ns, base.base.time_ns)

    @classmethod
    def open(
        cls,
        directory: Path,
        uuid: UUID,
        options: JournalOptions,
        on_flush_failed: Callable[[], None] = lambda: None,
        *,
        unclean_machine: bool,
        read_only: bool = False,
        is_copy: bool = False,
        known_durable: Seq = Seq(0),
    ) -> "Journal":
        """The journal in *directory*. What is torn at its end is cut off, saved aside and listed in
        ``repairs``.

        Args:
            directory, uuid, options: where it is, of which volume, and how it is written.
            on_flush_failed: called in the thread whose flush has failed.
            unclean_machine: the machine went down since: anything bad above the flushed watermark
                counts as torn.
            read_only: nothing is changed, and the journal ends before a damage, which is in
                ``damage``.
            is_copy: it is received from elsewhere and begins no segment by itself; its frames prove
                only what was on the disk of the node that wrote them.
            known_durable: what was on disk here, as is known from elsewhere.

        Raises JournalDamagedError for any other damage, JournalForeignError when the segments are
        another volume's, OSError."""
        journal = cls(directory, uuid, options, on_flush_failed)
        journal.is_writable = not read_only
        journal._is_copy = is_copy
        found = tail.examine(
            directory, uuid, unclean_machine, known_durable, follows_frames=not is_copy
        )
        if found.damage is not None and not read_only:
            raise found.damage
        journal.damage = found.damage
        if found.cut is not None and not read_only:
            tail.cut(directory, found.cut)
            journal.repairs.append(found.cut)
        journal.epoch = found.epoch
        journal.head_seq = found.head_seq
        journal.reader.note_reach(found.head_seq)
        journal.chain = found.chain
        journal.last_time_ns = found.last_time_ns
        journal.ends_clean = found.ends_clean
        journal.durable_seq = journal.durable_when_opened = found.flushed
        journal.sealed.read_directory(directory, Seq(found.head_seq + 1))
        journal.handle_key = journal.reader.handle_key()
        if not read_only:
            journal._resume(found)
        return journal

    def _resume(self, found: tail.Found) -> None:
        """Go on writing where the newest segment ends, or begin one where there is none to go on
        with."""
        self.sealed.mend(self.durable_seq)
        self._names_made += 1
        if found.last is None or found.last.suffix == COMPRESSED_SUFFIX:
            if not self._is_copy:
                if not self.head_seq:
                    # The one that was begun for the first entry did not get its header.
                    self.handle_key = self.handle_key or HandleKey.random()
                self._current = self._begin_segment(self._next_header())
            return
        fd = os.open(found.last, os.O_RDWR | os.O_CLOEXEC)
        self._current = SegmentWriter(
            found.last, fd, first_seq_of(found.last), found.end, self.options
        )
        self.sealed.remove_last()
        if not self._is_copy:
            # What is damaged further back is reported by its readers.
            with suppress(JournalDamagedError):
                self.clock.go_on(self.reader.lead_ns(found.last))

    # -- appending ---------------------------------------------------------------------------------

    @property
    def head(self) -> Position:
        """The position of the log."""
        return Position(self.epoch, self.head_seq, self.chain)

    def follow(self, time_ns: int, epoch: Epoch | None = None) -> None:
        """Have the next entry be later than *time_ns*, that of one that was made elsewhere, and has
        begun *epoch*, if any: this journal may be of a later one."""
        self.last_time_ns = time_ns
        if epoch is not None:
            self.epoch = max(self.epoch, epoch)

    def next_time(self) -> int:
        """The time for the entry that is appended next: now, but always later than the last
        one's."""
        return self.clock.next(self.last_time_ns)

    def append(
        self,
        operation: Operation,
        who: Caller,
        time_ns: int,
        path_of: Callable[[Fid], bytes | None],
        data: bytes | memoryview = b"",
        *,
        makes_space: bool = False,
    ) -> Seq:
        """Append one entry; when this returns it is in the kernel's hands.

        Args:
            operation, data: what is done, and the bytes of a WRITE.
            who: the caller who does it.
            time_ns: the entry's time: :meth:`next_time`.
            path_of: returns a fid's path as it is now.
            makes_space: as a removal does: it may use some of the reserve.

        What no reader would take is refused, with nothing written: OSError EFBIG where the entry is
        larger than the format allows, EINVAL where a field cannot be what it is. Raises also
        JournalFullError (nothing was written) and JournalFailedError (the journal is dead).
        """
        if self._failure is not None:
            raise JournalFailedError(self._failure)
        kind = operation.kind
        current = self._current
        assert current is not None, "the journal is open for reading only"
        assert time_ns > self.last_time_ns, "entry times must grow"
        paths = current.paths_to_record(operation, path_of)
        payload = encode_new(operation, who, time_ns, paths)
        if len(payload) > PAYLOAD_BYTES_MAX or len(data) > DATA_BYTES_MAX:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))  # no reader would take it
        need = len(payload) + len(data) + 32
        is_long = (
            current.end + need + _VOID_ROOM_BYTES > self.options.segment_bytes
            or self.head_seq - current.first_seq + 1 >= self.options.segment_entries
        )
        is_empty = current.end == SEGMENT_HEADER_BYTES
        if self.clock.begins_ns is not None and is_empty:
            self._begin_anew(current)
        elif (is_long or self.clock.begins_ns is not None) and not is_empty and kind != Kind.VOID:
            rolled = self._roll(may_stay=makes_space or kind in FROM_RESERVE)
            if rolled is not None:
                current = rolled
                paths = current.paths_to_record(operation, path_of)
                payload = encode_new(operation, who, time_ns, paths)
                need = len(payload) + len(data) + 32
        seq = Seq(self.head_seq + 1)
        head, chain = encode_frame(payload, data, seq, self.durable_seq, self.chain)
        try:
            current.write(head, data, kind, makes_space=makes_space)
        except JournalFailedError as error:
            self._failure = str(error)
            raise
        self.appended_bytes += need
        self.head_seq = seq
        self.chain = chain
        self.last_time_ns = time_ns
        if paths or kind != Kind.WRITE:  # which does nothing to names
            current.note_named(operation, paths)
        if isinstance(operation, NewEpoch):
            self.epoch = operation.epoch
        return seq

    @property
    def is_short(self) -> bool:
        """True while entries that make space have to use the reserve."""
        return self._current is not None and self._current.is_short

    @property
    def end(self) -> JournalEnd:
        """The place of the next frame."""
        current = self._current
        if current is None:
            return JournalEnd(Seq(self.head_seq + 1), 0, self.head)
        return JournalEnd(current.first_seq, current.end, self.head)

    def receive(self, frame_range: FrameRange) -> None:
        """Append *frame_range*, frames of another node's journal of the same volume that were
        checked, byte for byte, and begin a segment where it does. When this returns it is in the
        kernel's hands. (``last_time_ns`` follows when its entries are applied.)

        Raises JournalForeignError (it does not follow what is here; nothing was written),
        JournalFullError (the same), JournalFailedError (the journal is dead)."""
        if self._failure is not None:
            raise JournalFailedError(self._failure)
        check_follows(frame_range, self.directory, self.head_seq, self.chain)
        current = self._current
        frames = memoryview(frame_range.content)
        if frame_range.offset == 0:
            frames = frames[SEGMENT_HEADER_BYTES:]
            current = self._receive_header(bytes(frame_range.content[:SEGMENT_HEADER_BYTES]))
        else:
            current = check_goes_on(frame_range, self.directory, current)
        with self._failing_for_good():
            current.write(b"", frames, Kind.WRITE)
        self.appended_bytes += len(frames)
        self.head_seq = frame_range.last_seq
        self.chain = frame_range.chain
        self.epoch = max(self.epoch, frame_range.epoch)

    def _receive_header(self, content: bytes) -> SegmentWriter:
        """Begin the segment whose header is *content*."""
        header = header_after(content, self.directory, self.uuid, self.head_seq, self.chain)
        old = self._current
        is_first = not self.sealed and (old is None or old.first_seq == header.first_seq)
        if is_first or (self._is_copy and not self.handle_key):
            # (A release that knew of no keys may have received all before it.)
            self.handle_key = header.handle_key
        else:
            check_key(header, self.directory, self.handle_key)
        if old is not None and old.first_seq == header.first_seq:
            # The process that began it here died before the first entry: perhaps by another header.
            self._replace_header(old, content)
            return old
        new = self._begin_segment(header, content)
        if old is not None:
            self._seal(old)
        self._current = new
        return new

    @contextmanager
    def _failing_for_good(self) -> Iterator[None]:
        """A disk that fails in the block ends the journal's life."""
        try:
            yield
        except JournalFailedError as error:
            self._failure = str(error)
            raise

    def _fail(self, reason: str) -> JournalFailedError:
        self._failure = reason
        return JournalFailedError(reason)

    # -- rolling -----------------------------------------------------------------------------------

    def _roll(self, *, may_stay: bool) -> SegmentWriter | None:
        """Seal the current segment and begin the next; None when there is no space, and the entry
        *may_stay* in the old."""
        old = self._current
        assert old is not None
        try:
            new = self._begin_segment(self._next_header())
        except JournalFullError:
            if may_stay:
                return None
            raise
        self._seal(old)
        self._current = new
        return new

    def _seal(self, old: SegmentWriter) -> None:
        with self._failing_for_good():
            old.seal()
        # Before the next one is the current one: a flush beside us takes the current segment first
        # and the sealed ones after.
        self.sealed.add(old.path, old.end, Seq(self.head_seq + 1))
        self.sealed.unflushed.append((old.path, old.fd))

    def _next_header(self) -> SegmentHeader:
        time_ns, next_seq = self.clock.header_ns(self.last_time_ns), Seq(self.head_seq + 1)
        return SegmentHeader(self.uuid, self.epoch, next_seq, self.chain, time_ns, self.handle_key)

    def _begin_anew(self, current: SegmentWriter) -> None:
        """Give *current*, which has no entry yet, a header with the clock's time as it is now."""
        header = self._next_header()
        self._replace_header(current, header.encode())
        self.clock.begun(header.time_ns, self.last_time_ns)

    def _replace_header(self, current: SegmentWriter, content: bytes) -> None:
        try:
            current.write_header(content)
        except OSError as error:
            raise self._fail(f"{current.path}: cannot be written: {error.strerror}") from error

    def _begin_segment(self, header: SegmentHeader, content: bytes = b"") -> SegmentWriter:
        """*content*: its bytes as they were received, which may have more than is known here."""
        content = content or header.encode()
        with self._failing_for_good():
            writer = SegmentWriter.begin(self.directory, header.first_seq, content, self.options)
        self.clock.begun(header.time_ns, self.last_time_ns)
        self._names_made += 1
        return writer

    # -- flushing ----------------------------------------------------------------------------------

    def sync(self, upto_seq: Seq = END) -> Seq:
        """Make everything appended so far durable, and count it as that up to *upto_seq*; returns
        the seq up to which that is. Blocks: call it in a thread.

        Raises JournalFailedError; the journal is dead then, and nothing is tried again.
        """
        with self._sync_lock:
            if self._failure is not None:
                raise JournalFailedError(self._failure)
            # The head first, then the current segment, then the sealed ones: a roll meanwhile
            # loses none of them.
            seq = min(self.head_seq, upto_seq)
            current = self._current
            end = current.end if current is not None else 0
            sealed = list(self.sealed.unflushed)
            names_made = self._names_made
            try:
                written = [fd for _, fd in sealed] + ([current.fd] if current is not None else [])
                for fd in written:
                    calls.fdatasync("journal.sync", fd)
                if names_made != self._names_synced:
                    calls.fsync_directory("journal.sync.directory", self.directory)
            except OSError as error:
                failed = self._fail(f"{self.directory}: cannot be flushed: {error.strerror}")
                self._on_flush_failed()
                raise failed from error
            self._names_synced = names_made
            self._synced_end = end
            for _, fd in sealed:
                # If it was sealed meanwhile there may be more in it: next time.
                if current is None or fd != current.fd:
                    self.sealed.unflushed.popleft()
                    os.close(fd)
            self.durable_seq = max(self.durable_seq, seq)
            return self.durable_seq

    def write_ahead(self) -> None:
        """Prepare the disk for small flushes that callers wait for."""
        if self._current and self._current.end - self._synced_end <= _SMALL_FLUSH_BYTES:
            self._current.write_ahead()

    def is_flush_small(self) -> bool:
        """Returns True if a flush now would write little, and to the current segment alone, and no
        other flush runs."""
        current = self._current
        return (
            current is not None
            and not self.sealed.unflushed
            and self._names_made == self._names_synced
            and current.end - self._synced_end <= _SMALL_FLUSH_BYTES
            and not self._sync_lock.locked()
        )

    def close(self) -> None:
        """Close the files. Flush first what is to last. Raises OSError, with all of them closed."""
        with self._sync_lock:
            current, self._current = self._current, None
            if current is not None:
                for _, fd in self.sealed.unflushed:
                    os.close(fd)
                current.close()

    # -- sizes -------------------------------------------------------------------------------------

    @property
    def segment_count(self) -> int:
        """The number of segments, with the one that is written."""
        return len(self.sealed) + (self._current is not None)

    @property
    def total_bytes(self) -> int:
        """The bytes that the segments occupy."""
        return self.sealed.total_bytes + (self._current.end if self._current is not None else 0)

    def bytes_from(self, seq: Seq) -> int:
        """Estimates how much of what the segments occupy is entries from *seq* on."""
        current = self._current
        if current is None:
            return self.sealed.bytes_from(seq)
        total = share_from(seq, current.first_seq, Seq(self.head_seq + 1), current.end)
        return total if current.first_seq <= seq else total + self.sealed.bytes_from(seq)
