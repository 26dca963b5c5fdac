"""The work of ``scrub``: reads everything back that a volume has, at low priority, and compares the
live tree of this node with what its versions and journal record.

Three phases, each in slices, after which STATE/scrub.json says where it is: the segments of the
journal by their checksums; the versions with their data, each block once; the files of the tree, in
the order of fids, beside the trees of the nearest version and the entries after it, which follow
the journal from slice to slice. A scrub that was stopped goes on where it was."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from fusejournal.address import node_name
from fusejournal.admin.live import live_status
from fusejournal.admin.mend import mend
from fusejournal.admin.scrub_record import load_scrub, save_scrub
from fusejournal.admin.source import JournalSource, open_source
from fusejournal.admin.versions import VolumeVersions
from fusejournal.disk.temporary import temporary_directory
from fusejournal.errors import ConflictError, FusejournalError, PrivilegeError, UsageError
from fusejournal.journal.verify import verify
from fusejournal.node.volume_status import ScrubStatus
from fusejournal.objects.local import LocalStore
from fusejournal.objects.overlay import OverlayStore
from fusejournal.objects.service import do_not_wait
from fusejournal.objects.store import ObjectStore
from fusejournal.replay.undo_files import UndoFiles
from fusejournal.types import Fid, Progress, Seq
from fusejournal.versions.blocks import BlockReader, BlockWriter
from fusejournal.versions.builder import build_trees
from fusejournal.versions.create import trees_of_nearest
from fusejournal.versions.live_tree import LiveTree, TouchedSince, TreeFault, repair
from fusejournal.versions.manifest import Version, list_versions, read_versions
from fusejournal.versions.packs import StoreDamagedError
from fusejournal.versions.records import InodeRecord, decode_inode, fid_of_key, inode_key
from fusejournal.versions.sorted_tree import Nodes, SortedTree
from fusejournal.versions.store_again import LostChunk, lost_chunks, store_again
from fusejournal.versions.trees import Trees
from fusejournal.versions.verified_blocks import forget
from fusejournal.versions.verify import verify_version
from fusejournal.versions.version_tree import VersionTree

_SEGMENTS = 16
"""Segments that are read between two looks at the clock."""
_SLICE_FILES = 2000
_SLICE_SECONDS = 20.0
_ROUNDS = 5
"""Attempts at files that are changed again and again; at large ones, one."""
_LARGE_BYTES = 64 << 20
_LINES_MAX = 1000
"""Faults, and files that were put right, that are named."""
_PAUSE_SECONDS = 0.1


class Pace:
    """Spreads reading over time: no more than so many bytes a second on average."""

    def __init__(self, bytes_per_second: int, progress: Progress) -> None:
        """*progress* is called while it waits, and may raise."""
        self._rate = bytes_per_second
        self._progress = progress
        self._began = time.monotonic()
        self.bytes = 0

    def read(self, count: int) -> None:
        """Waits for as long as *count* bytes more should have taken; with 0, not at all."""
        self.bytes += count
        while self._rate and time.monotonic() - self._began < self.bytes / self._rate:
            self._progress(0, None)
            time.sleep(_PAUSE_SECONDS)


class PacedReader(BlockReader):
    """Reads blocks at a pace."""

    def __init__(self, store: ObjectStore, pace: Pace) -> None:
        self._pace = pace
        super().__init__(store)

    def read(self, id_: bytes) -> bytes:
        data = super().read(id_)
        self._pace.read(len(data))
        return data


class Scrub:
    """One scrub of a running volume."""

    def __init__(
        self,
        volume: str,
        progress: Progress,
        waiting: Callable[[], None] = do_not_wait,
        *,
        bytes_per_second: int = 0,
        do_repair: bool = False,
        anew: bool = False,
    ) -> None:
        """Reads nothing yet.

        Args:
            volume: its name, mountpoint or state directory.
            progress: called between any two steps; may raise.
            waiting: as in :class:`VolumeVersions`.
            bytes_per_second: how much is read at most; 0: as much as can be.
            do_repair: what is wrong of a file is put right, on a primary.
            anew: one that was stopped is not gone on with.

        Raises VolumeNotFoundError, NotRunningError, UsageError, PrivilegeError."""
        source = open_source(volume)
        if source.state is None:
            raise UsageError(f"{source.name} is a copy of a journal: see 'journal verify'")
        if os.geteuid() != 0:
            raise PrivilegeError("reading everything back needs root: try sudo")
        status = live_status(source.state)
        if do_repair and status.role not in ("primary", "mirror"):
            raise UsageError(f"{source.name} is mounted read-only: scrub it without --repair")
        self._is_mirror = status.role == "mirror"
        self._source: JournalSource = source
        self._state = source.state
        self._versions = VolumeVersions(volume, waiting) if self._state.has_versions else None
        self._progress = progress
        self._pace = Pace(bytes_per_second, progress)
        self._do_repair = do_repair
        known = load_scrub(self._state.directory)
        goes_on = known is not None and known.finished is None and not anew
        if known is None or not goes_on:
            known = ScrubStatus(started=time.time(), phase="journal")
        self._begun_bytes = known.bytes
        self.status: ScrubStatus = known

    def run(self) -> ScrubStatus:
        """Scrubs, from where it was on, to the end. Returns what it found. Raises JournalError,
        StoreError, OSError, and what *progress* raises; what is done by then is written down."""
        if self.status.phase == "journal":
            self._read_journal()
            self._go_on("versions")
        if self.status.phase == "versions":
            self._read_versions()
            self._go_on("tree")
        with temporary_directory() as directory:
            _TreeScrub(self, directory).run()
        self._go_on("done")
        return self.status

    def _go_on(self, phase: str, position: str = "", files: int = 0, seq: int = 0) -> None:
        self.status = replace(
            self.status,
            phase=phase,
            position=position,
            files=self.status.files + files,
            bytes=self._begun_bytes + self._pace.bytes,
            seq=seq or self.status.seq,
            finished=time.time() if phase == "done" else None,
        )
        save_scrub(self._state.directory, self.status)

    def _found(self, line: str) -> None:
        self.status = replace(self.status, faults=_with(self.status.faults, line))

    def _mended(self, line: str) -> None:
        status = self.status
        mended = _with(status.mended, line)
        self.status = replace(status, repaired=status.repaired + 1, mended=mended)

    def _read_journal(self) -> None:
        paths = self._source.reader.segments()
        first = next(
            (at for at, path in enumerate(paths) if path.stem >= self.status.position), len(paths)
        )
        for at in range(first, len(paths), _SEGMENTS):
            # With the one before, whose chain the first goes on from.
            some = paths[max(at - 1, 0) : at + _SEGMENTS]
            report = verify(some, self._source.reader.uuid, lambda _, __: None)
            for damage in report.damages:
                self._found(str(damage))
            self._progress(at, len(paths))
            self._pace.read(report.bytes)
            following = paths[at + _SEGMENTS :]
            self._go_on("journal", following[0].stem if following else "")

    def _read_versions(self) -> None:
        if self._versions is None:
            return
        store = self._versions.store()
        found = read_versions(store, self._state.uuid)
        for one in found.unreadable:
            self._found(str(one.error))
        blocks = PacedReader(store, self._pace)
        for fault in blocks.spoilt_indexes.values():
            self._found(str(fault))
        seen: set[bytes] = set()
        for version in found.versions:
            if version.key < self.status.position:
                continue
            self._go_on("versions", version.key)
            try:
                verify_version(blocks, version, self._progress, with_data=True, seen=seen)
            except StoreDamagedError as fault:
                forget(self._state.directory)
                # What was deleted and collected meanwhile is no damage.
                if version.key not in {one.key for one in list_versions(store, version.uuid)}:
                    continue
                if not self._do_repair or not self._store_again(blocks, version):
                    self._found(str(fault))

    def _store_again(self, reader: BlockReader, version: Version) -> bool:
        """Stores chunks of *version* again that cannot be read and that the live tree has. Returns
        False where it cannot be verified all the same; what is lost of files is reported."""
        assert self._versions is not None
        try:
            lost = lost_chunks(reader, version.trees, self._progress)
            root = os.open(self._state.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                live = LiveTree(root, self._source.reader, VersionTree(reader, version.trees))
                store = self._versions.store(writing=True)
                left = store_again(store, node_name(self._state.name), reader, lost, live)
            finally:
                os.close(root)
            reader.look_again()
            again = self.status.stored_again + len(lost) - len(left)
            self.status = replace(self.status, stored_again=again)
            if left:
                for one in left.values():
                    self._found(_lost_line(version, one))
                return True
            verify_version(reader, version, self._progress, with_data=True)
        except StoreDamagedError:
            return False
        return True


def _with(lines: tuple[str, ...], line: str) -> tuple[str, ...]:
    """Returns *lines*, with *line*, if there is room for it and it is none of them."""
    return lines if len(lines) >= _LINES_MAX or line in lines else (*lines, line)


def _lost_line(version: Version, lost: LostChunk) -> str:
    tree = f"version {version.shown_name}: fid {lost.fid}, {lost.length} bytes from {lost.offset}"
    return (
        f"{tree}: lost ({lost.fault}), and no file of the live tree has them: a version from here "
        "on can do without once that part of the file is written anew; 'version delete' gives up "
        "this one, if no journal begins with it"
    )


class _TreeScrub:
    """The comparison of the live tree."""

    def __init__(self, scrub: Scrub, directory: Path) -> None:
        self._scrub = scrub
        self._source = scrub._source
        store: ObjectStore = LocalStore(directory)
        kept = []
        if scrub._versions is not None:
            lower = scrub._versions.store()
            kept = list_versions(lower, scrub._state.uuid)
            store = OverlayStore(lower, store)
        self._blocks = BlockWriter(store)
        self._seq = self._committed_seq()
        self._trees: Trees = trees_of_nearest(
            self._blocks, kept, self._source.reader, self._seq, scrub._progress
        )[0]
        self._later: set[Fid] = set()
        """Files that were changed while they were looked at."""

    def _committed_seq(self) -> Seq:
        """Returns the last entry of which the live tree is known to have it, or its refusal."""
        status = live_status(self._scrub._state)
        mirror = status.replication.mirror if status.replication is not None else None
        return Seq(mirror.applied_seq if mirror is not None else status.head_seq or 0)

    def _follow(self) -> None:
        """Brings the trees to the journal's end."""
        seq = self._committed_seq()
        if seq > self._seq:
            self._trees = build_trees(
                self._blocks,
                self._trees,
                self._source.reader,
                Seq(self._seq + 1),
                Seq(seq + 1),
                self._scrub._progress,
            )
            self._blocks.finish()
            self._seq = seq

    def run(self) -> None:
        scrub = self._scrub
        position = int(scrub.status.position or 0)
        # Files that are made from here on are the next scrub's: it would never end, where they are
        # made faster than compared.
        end = self._trees.next_fid
        while True:
            nodes = Nodes(self._blocks)
            inodes = SortedTree(nodes, self._trees.inodes)
            slice_: list[InodeRecord] = []
            for key, value in inodes.items(inode_key(Fid(position))):
                if fid_of_key(key) >= end:
                    break
                slice_.append(decode_inode(fid_of_key(key), value, self._blocks))
                if len(slice_) >= _SLICE_FILES:
                    break
            if not slice_:
                break
            count = self._compare(slice_)
            position = slice_[count - 1].fid + 1
            scrub._go_on("tree", str(position), count, self._seq)
            self._follow()
        for number in range(_ROUNDS):
            self._follow()
            tree = VersionTree(self._blocks, self._trees)
            again = [tree.find_record(fid) for fid in sorted(self._later)]
            records = [record for record in again if record is not None]
            left = [one for one in records if number and one.size > _LARGE_BYTES]
            records = [one for one in records if not (number and one.size > _LARGE_BYTES)]
            self._later.clear()
            count = self._compare(records)
            self._later.update(one.fid for one in (*left, *records[count:]))
        scrub.status = replace(scrub.status, busy=len(self._later))

    def _compare(self, records: list[InodeRecord]) -> int:
        """Compares files, until it is time to follow the journal. Returns how many it came to."""
        scrub = self._scrub
        tree = VersionTree(self._blocks, self._trees)
        touched = TouchedSince(self._source.reader, self._seq)
        until = time.monotonic() + _SLICE_SECONDS
        faults: list[tuple[InodeRecord, TreeFault]] = []
        count = 0
        root = os.open(scrub._state.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            live = LiveTree(root, self._source.reader, tree)
            for record in records:
                before = live.read_bytes
                fault = live.compare(record)
                if fault is not None:
                    faults.append((record, fault))
                count += 1
                scrub._progress(scrub.status.files + count, None)
                scrub._pace.read(live.read_bytes - before)
                if time.monotonic() > until:
                    break
            touched.look()
            for record, fault in faults:
                if touched.has(record):
                    self._later.add(record.fid)
                else:
                    self._take(live, tree, record, fault)
        finally:
            os.close(root)
        return count

    def _take(
        self, live: LiveTree, tree: VersionTree, record: InodeRecord, fault: TreeFault
    ) -> None:
        scrub = self._scrub
        path = b"" if not record.links else tree.path(*record.links[0])
        shown = "/" + path.decode("utf-8", "backslashreplace")
        what = ", ".join(fault.what)
        if scrub._do_repair:
            try:
                if self._repair(tree, record, fault) and live.compare(record) is None:
                    scrub._mended(f"{shown}: put right: {what}")
                    return
            except ConflictError:
                self._later.add(record.fid)
                return
            except (FusejournalError, OSError) as error:
                shown += f" (not repaired: {error})"
        scrub._found(f"{shown}: not as the journal has it: {what}")

    def _repair(self, tree: VersionTree, record: InodeRecord, fault: TreeFault) -> bool:
        if self._scrub._is_mirror:
            return mend(self._scrub._state, tree, record, fault, self._seq)
        with ExitStack() as stack:
            files = UndoFiles(
                self._source.lookup,
                self._seq,
                self._scrub._state.mountpoint,
                self._scrub._progress,
                stack,
            )
            return repair(files, tree, record, fault)
