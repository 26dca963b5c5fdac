"""The journal of one volume: append, flush, roll. The only code that writes segments (reader.py
reads them).

:meth:`Journal.append` and everything else but ``sync`` and ``compress_one`` belong to the event
loop's thread; those two block and run in worker threads beside it. An appended frame is in the
kernel's hands when ``append`` returns (one pwritev, no buffer of our own), so it outlives this
process; ``sync`` makes it outlive the machine.

Space is taken ahead of the end, and a reserve of it kept: an entry that does not fit is refused
before a byte of it is written, while VOID and CLEAN entries, and removals within limits, still
find room. An error of the disk itself ends the journal's life: every later append fails, for
nobody knows what the pages hold.

A segment is rolled before an entry, never between an entry and its VOID. Source: fallocate(2),
pwritev(2), fdatasync(2)."""

import errno
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

from fusejournal.disk import calls
from fusejournal.errors import (
    JournalDamagedError,
    JournalFailedError,
    JournalForeignError,
    JournalFullError,
)
from fusejournal.journal import tail
from fusejournal.journal.clock import EntryClock
from fusejournal.journal.format import (
    DATA_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    SEGMENT_HEADER_BYTES,
    FormatError,
    SegmentHeader,
    encode_frame,
    encode_payload,
)
from fusejournal.journal.frame_range import FrameRange, JournalEnd
from fusejournal.journal.handle_key import NO_HANDLE_KEY, HandleKey
from fusejournal.journal.index import has_index
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.seekable import compress_file
from fusejournal.journal.segment import (
    COMPRESSED_SUFFIX,
    PLAIN_SUFFIX,
    SPACE_BYTES,
    BadFrameError,
    SegmentReader,
    first_seq_of,
    list_segments,
)
from fusejournal.journal.segment_writer import ALWAYS, JournalOptions, SegmentWriter
from fusejournal.operations import (
    MAKERS,
    REMOVALS,
    TOUCHED,
    Kind,
    NewEpoch,
    Operation,
    Rename,
    Whiteout,
)
from fusejournal.types import Caller, Epoch, Fid, Position, Seq

_VOID_ROOM_BYTES = 256
_SMALL_FLUSH_BYTES = 64 << 10


class Journal:
    """See the module. Make one with :meth:`create` or :meth:`open`."""

    def __init__(
        self,
        directory: Path,
        uuid: UUID,
        options: JournalOptions,
        on_flush_failed: Callable[[], None] = lambda: None,
    ) -> None:
        """*on_flush_failed* is called, in the thread that flushes, when the disk fails at it."""
        self.directory = directory
        self.uuid = uuid
        self.options = options
        self._on_flush_failed = on_flush_failed
        self.reader = JournalReader(directory, uuid)
        """Reads what was appended, up to the head."""
        self.handle_key = NO_HANDLE_KEY
        """What generations of fids are made with; a journal that is received from elsewhere has it
        from its first segment on."""
        self.epoch = Epoch(0)
        self.head_seq = Seq(0)
        self.chain = 0
        self.last_time_ns = 0
        self.clock = EntryClock()
        self.durable_seq = Seq(0)
        """Everything up to here is on disk."""
        self.durable_when_opened = Seq(0)
        """What the process before this one knew to be on disk."""
        self.ends_clean = False
        """Whether the last entry is a CLEAN."""
        self.repairs: list[tail.Cut] = []
        self.damage: JournalDamagedError | None = None
        """What keeps a read-only opened journal from being whole."""
        self.is_writable = True
        """Whether entries can be appended: False when it was opened for reading only."""
        self.appended_bytes = 0
        """What was appended since it was opened."""
        self._current: SegmentWriter | None = None
        self._failure: str | None = None
        # Shared with the thread that flushes: only the loop's appends on the right and counts up,
        # only the flush takes from the left and catches up.
        self._unsynced: deque[tuple[Path, int]] = deque()
        self._synced_end = 0
        self._names_made = 0
        self._names_synced = 0
        self._sync_lock = threading.Lock()
        self._sealed: dict[Seq, Path] = {}
        """Segments that are written no more, in order, and what each occupies: listed once, for
        there can be many, and kept up to date by the one who changes them."""
        self._sealed_bytes: dict[Seq, int] = {}
        self._without_index: dict[Seq, None] = {}
        """Those of them that may have no index."""

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
        journal.handle_key = HandleKey.random() if handle_key is None else handle_key
        journal._current = journal._begin_segment(journal._next_header())
        return journal

    @classmethod
    def expect(
        cls,
        directory: Path,
        uuid: UUID,
        options: JournalOptions,
        on_flush_failed: Callable[[], None] = lambda: None,
    ) -> "Journal":
        """A journal in *directory* that has no segment yet: the first one will be received."""
        return cls(directory, uuid, options, on_flush_failed)

    def adopt(self, uuid: UUID) -> None:
        """Become the journal of volume *uuid*, while there is nothing in it."""
        assert self.head_seq == 0, "only an empty journal can become another volume's"
        self.uuid = self.reader.uuid = uuid

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
        """The journal in *directory*.

        What is torn at its end is cut off, saved aside and told in ``repairs``; with
        *unclean_machine* (the machine went down since) anything bad above the flushed watermark
        counts as torn. Any other damage raises JournalDamagedError; with *read_only* nothing is
        changed and the journal ends before the damage, which is in ``damage``. One that *is_copy*
        is received from elsewhere and begins no segment by itself, and its frames tell only what
        was on the disk of the node that wrote them. *known_durable*: what was on disk here, as is
        known from elsewhere. Raises JournalForeignError when the segments are another
        volume's."""
        journal = cls(directory, uuid, options, on_flush_failed)
        journal.is_writable = not read_only
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
        journal.head_seq = journal.reader.must_reach = found.head_seq
        journal.chain = found.chain
        journal.last_time_ns = found.last_time_ns
        journal.ends_clean = found.ends_clean
        journal.durable_seq = journal.durable_when_opened = found.flushed
        for path in list_segments(directory):
            journal._add_sealed(path, path.stat().st_size)
        journal.handle_key = journal.reader.handle_key()
        if not read_only:
            journal._resume(found, is_copy)
        return journal

    def _resume(self, found: tail.Found, is_copy: bool) -> None:
        """Go on writing where the newest segment ends, or begin one where there is none to go on
        with."""
        # What the last process wrote may still be in the page cache alone: the first flush covers
        # the sealed segments that do not end below the watermark, too.
        paths = list(self._sealed.values())
        for path in paths:
            _remove_leftover(path)
        for path, following in itertools.pairwise(paths):
            _seal(path)
            last_seq = first_seq_of(following) - 1
            if path.suffix != COMPRESSED_SUFFIX and last_seq > self.durable_seq:
                self._unsynced.append((path, os.open(path, os.O_RDWR | os.O_CLOEXEC)))
        self._names_made += 1
        if found.last is None or found.last.suffix == COMPRESSED_SUFFIX:
            if not is_copy:
                if not self.head_seq:
                    # The one that was begun for the first entry did not get its header.
                    self.handle_key = self.handle_key or HandleKey.random()
                self._current = self._begin_segment(self._next_header())
            return
        fd = os.open(found.last, os.O_RDWR | os.O_CLOEXEC)
        self._current = SegmentWriter(
            found.last, fd, first_seq_of(found.last), found.end, self.options
        )
        for known in (self._sealed, self._sealed_bytes, self._without_index):
            known.pop(self._current.first_seq, None)
        if not is_copy:
            # What is damaged further back is told by whoever reads it.
            with suppress(JournalDamagedError):
                self.clock.lead_ns = self.reader.lead_ns(found.last)

    # -- appending ---------------------------------------------------------------------------------

    @property
    def head(self) -> Position:
        """Where the log stands."""
        return Position(self.epoch, self.head_seq, self.chain)

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
    ) -> Seq:
        """Append one entry; when this returns it is in the kernel's hands. *path_of* tells a fid's
        path as it is now.

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
        paths = self._paths(current, operation, path_of)
        payload = _encode(operation, who, time_ns, paths)
        if len(payload) > PAYLOAD_BYTES_MAX or len(data) > DATA_BYTES_MAX:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))  # no reader would take it
        need = len(payload) + len(data) + 32
        is_long = (
            current.end + need + _VOID_ROOM_BYTES > self.options.segment_bytes
            or self.head_seq - current.first_seq + 1 >= self.options.segment_entries
        )
        if self.clock.begins_ns is not None and current.end == SEGMENT_HEADER_BYTES:
            self._begin_anew(current)
        elif (is_long or self.clock.begins_ns is not None) and self._may_roll(current, kind):
            rolled = self._roll(kind)
            if rolled is not None:
                current = rolled
                paths = self._paths(current, operation, path_of)
                payload = _encode(operation, who, time_ns, paths)
                need = len(payload) + len(data) + 32
        seq = Seq(self.head_seq + 1)
        head, chain = encode_frame(payload, data, seq, self.durable_seq, self.chain)
        try:
            current.write(head, data, kind)
        except JournalFailedError as error:
            self._failure = str(error)
            raise
        self.appended_bytes += need
        self.head_seq = seq
        self.chain = chain
        self.last_time_ns = time_ns
        if paths:
            current.named.update(paths)
        if kind in REMOVALS:
            # It may have further names, of which this segment does not know.
            current.named.discard(operation[0])  # type: ignore[misc]
        elif isinstance(operation, Rename):
            current.named.discard(operation.replaced)
        elif isinstance(operation, Whiteout):
            current.named.discard(operation.replaced)
            current.named.add(operation.whiteout)
        if kind in MAKERS:
            current.named.add(operation[0])  # type: ignore[arg-type, misc]
        elif isinstance(operation, NewEpoch):
            self.epoch = operation.epoch
        return seq

    @property
    def end(self) -> JournalEnd:
        """Where the next frame will be."""
        current = self._current
        if current is None:
            return JournalEnd(Seq(self.head_seq + 1), 0, self.head)
        return JournalEnd(current.first_seq, current.end, self.head)

    def receive(self, frame_range: FrameRange) -> None:
        """Append *stretch*, frames of another node's journal of the same volume that were checked,
        byte for byte, and begin a segment where it does. When this returns it is in the kernel's
        hands. (``epoch`` and ``last_time_ns`` follow when its entries are applied.)

        Raises JournalForeignError (it does not follow what is here; nothing was written),
        JournalFullError (the same), JournalFailedError (the journal is dead)."""
        if self._failure is not None:
            raise JournalFailedError(self._failure)
        if (frame_range.first_seq, frame_range.chain_before) != (self.head_seq + 1, self.chain):
            raise JournalForeignError(
                f"{self.directory}: the received range starts with entry {frame_range.first_seq}, "
                f"but the journal ends with entry {self.head_seq}, or has another one there"
            )
        current = self._current
        frames = memoryview(frame_range.content)
        if frame_range.offset == 0:
            frames = frames[SEGMENT_HEADER_BYTES:]
            current = self._receive_header(bytes(frame_range.content[:SEGMENT_HEADER_BYTES]))
        elif current is None or (frame_range.segment_seq, frame_range.offset) != (
            current.first_seq,
            current.end,
        ):
            here = f"byte {current.end} of segment {current.first_seq}" if current else "no segment"
            raise JournalForeignError(
                f"{self.directory}: the received range starts at byte {frame_range.offset} of "
                f"segment {frame_range.segment_seq}, but the journal ends at {here}"
            )
        with self._failing_for_good():
            current.write(b"", frames, Kind.WRITE)
        self.appended_bytes += len(frames)
        self.head_seq = frame_range.last_seq
        self.chain = frame_range.chain

    def _receive_header(self, content: bytes) -> SegmentWriter:
        """Begin the segment whose header is *content*."""
        try:
            header = SegmentHeader.decode(content)
        except FormatError as error:
            raise JournalForeignError(f"{self.directory}: {error}") from None
        if (header.uuid, header.first_seq, header.chain_before) != (
            self.uuid,
            self.head_seq + 1,
            self.chain,
        ):
            raise JournalForeignError(
                f"{self.directory}: segment {header.first_seq} of volume {header.uuid} does not "
                f"follow entry {self.head_seq} of {self.uuid}"
            )
        old = self._current
        if not self._sealed and (old is None or old.first_seq == header.first_seq):
            self.handle_key = header.handle_key
        elif header.handle_key not in (self.handle_key, NO_HANDLE_KEY):
            raise JournalForeignError(
                f"{self.directory}: segment {header.first_seq} has another handle key than those "
                "before it"
            )
        if old is not None and old.first_seq == header.first_seq:
            # Whoever began it here died before the first entry: perhaps by another header.
            try:
                old.write_header(content)
            except OSError as error:
                raise self._fail(f"{old.path}: cannot be written: {error.strerror}") from error
            return old
        new = self._begin_segment(header)
        if old is not None:
            self._seal(old)
        self._current = new
        return new

    def _paths(
        self, current: SegmentWriter, operation: Operation, path_of: Callable[[Fid], bytes | None]
    ) -> dict[Fid, bytes] | None:
        """The paths that this segment has not told yet."""
        paths: dict[Fid, bytes] | None = None
        for index in TOUCHED[operation.kind]:
            fid: Fid = operation[index]  # type: ignore[assignment]
            if fid not in current.named:
                path = path_of(fid)
                if path is not None:
                    paths = paths or {}
                    paths[fid] = path
        return paths

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

    def _may_roll(self, current: SegmentWriter, kind: Kind) -> bool:
        return kind != Kind.VOID and current.end > SEGMENT_HEADER_BYTES

    def _roll(self, kind: Kind) -> SegmentWriter | None:
        """Seal the current segment and begin the next; None when there is no space and *kind* may
        go on in the old."""
        old = self._current
        assert old is not None
        try:
            new = self._begin_segment(self._next_header())
        except JournalFullError:
            if kind in ALWAYS or kind in REMOVALS:
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
        self._add_sealed(old.path, old.end)
        self._unsynced.append((old.path, old.fd))

    def _add_sealed(self, path: Path, size: int) -> None:
        first_seq = first_seq_of(path)
        self._sealed[first_seq] = path
        self._sealed_bytes[first_seq] = size
        self._without_index[first_seq] = None

    def _next_header(self) -> SegmentHeader:
        return SegmentHeader(
            self.uuid,
            self.epoch,
            Seq(self.head_seq + 1),
            self.chain,
            self.clock.header_ns(self.last_time_ns),
            self.handle_key,
        )

    def _begin_anew(self, current: SegmentWriter) -> None:
        """Give *current*, which has no entry yet, a header with the clock's time as it is now."""
        header = self._next_header()
        try:
            current.write_header(header.encode())
        except OSError as error:
            raise self._fail(f"{current.path}: cannot be written: {error.strerror}") from error
        self.clock.begun(header.time_ns, self.last_time_ns)

    def _begin_segment(self, header: SegmentHeader) -> SegmentWriter:
        with self._failing_for_good():
            writer = SegmentWriter.begin(self.directory, header, self.options)
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
            sealed = list(self._unsynced)
            names_made = self._names_made
            try:
                for _, fd in sealed:
                    calls.fdatasync("journal.sync", fd)
                if current is not None:
                    calls.fdatasync("journal.sync", current.fd)
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
                    self._unsynced.popleft()
                    os.close(fd)
            self.durable_seq = max(self.durable_seq, seq)
            return self.durable_seq

    def is_flush_small(self) -> bool:
        """Whether a flush now would write little, and to the current segment alone, and no other
        flush runs."""
        current = self._current
        return (
            current is not None
            and not self._unsynced
            and self._names_made == self._names_synced
            and current.end - self._synced_end <= _SMALL_FLUSH_BYTES
            and not self._sync_lock.locked()
        )

    def close(self) -> None:
        """Close the files. Flush first what is to last. Raises OSError, with all of them closed."""
        with self._sync_lock:
            current, self._current = self._current, None
            if current is not None:
                for _, fd in self._unsynced:
                    os.close(fd)
                current.close()

    # -- sealed segments ---------------------------------------------------------------------------

    @property
    def segment_count(self) -> int:
        """How many segments there are."""
        return len(self._sealed_bytes) + (self._current is not None)

    @property
    def total_bytes(self) -> int:
        """What the segments occupy."""
        return sum(self._sealed_bytes.values()) + (
            self._current.end if self._current is not None else 0
        )

    def bytes_from(self, seq: Seq) -> int:
        """About how much of what the segments occupy is entries from *seq* on."""
        current = self._current
        total = 0
        next_seq, size = Seq(self.head_seq + 1), current.end if current is not None else 0
        starts = [(current.first_seq, size)] if current is not None else []
        starts += sorted(self._sealed_bytes.items(), reverse=True)
        for first_seq, size in starts:
            if first_seq <= seq:
                share = (next_seq - seq) / max(1, next_seq - first_seq)
                return total + int(size * min(1.0, max(0.0, share)))
            total += size
            next_seq = first_seq
        return total

    def sealed_segments(self) -> list[Path]:
        """Segments that are sealed and durable: those that can have an index and be
        compressed."""
        busy = {path for path, _ in list(self._unsynced)}  # a copy: a flush may run beside us
        return [path for path in self._sealed.values() if path not in busy]

    def without_index(self) -> list[Path]:
        """Sealed segments that have no sidecar index yet."""
        found = []
        for path in self.sealed_segments() if self._without_index else ():
            first_seq = first_seq_of(path)
            if first_seq in self._without_index:
                if has_index(path):
                    del self._without_index[first_seq]
                else:
                    found.append(path)
        return found

    def compressible(self, to_seq: Seq = END) -> list[Path]:
        """Sealed segments with entries before *to_seq* alone that are not compressed yet."""
        sealed = self.sealed_segments()
        ends = [first_seq_of(path) for path in sealed[1:]] + [Seq(self.head_seq + 1)]
        return [
            path
            for path, end in zip(sealed, ends, strict=False)
            if path.suffix != COMPRESSED_SUFFIX and end <= to_seq
        ]

    def compress_one(self, path: Path) -> None:
        """Compress a sealed segment in place. Blocks: call it in a thread. Raises OSError,
        FormatError."""
        compressed = path.with_suffix(COMPRESSED_SUFFIX)
        compress_file(path, compressed, self.options.compress_level)
        first_seq = first_seq_of(path)
        self._sealed_bytes[first_seq] = compressed.stat().st_size
        self._sealed[first_seq] = compressed


def _encode(
    operation: Operation, who: Caller, time_ns: int, paths: dict[Fid, bytes] | None
) -> bytes:
    """The payload of an entry. Raises OSError EINVAL where no reader would take it."""
    try:
        return encode_payload(operation, who, time_ns, paths)
    except FormatError as error:
        raise OSError(errno.EINVAL, f"{os.strerror(errno.EINVAL)}: {error}") from None


def _remove_leftover(path: Path) -> None:
    """Remove the plain file of a compressed segment, where its compression was interrupted before
    that was done. One that is not the same size is left alone. Raises OSError."""
    if path.suffix != COMPRESSED_SUFFIX:
        return
    plain = path.with_suffix(PLAIN_SUFFIX)
    if plain.exists():
        with SegmentReader(path) as reader:
            is_same = reader.size == plain.stat().st_size
        if is_same:
            calls.unlink("journal.compress.unlink", plain)


def _seal(path: Path) -> None:
    """Give a segment that another follows its exact size: its writer died, or its machine, before
    that was done. Raises OSError."""
    if path.suffix == COMPRESSED_SUFFIX:
        return
    size = path.stat().st_size
    if size % SPACE_BYTES:
        return
    try:
        with SegmentReader(path) as reader:
            end = reader.check().offset
    except BadFrameError as bad:
        raise JournalDamagedError(path, bad.offset, bad.seq, bad.reason) from None
    if end < size:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            calls.ftruncate("journal.seal", fd, end)
            calls.fsync("journal.seal.sync", fd)
        finally:
            os.close(fd)
