"""The work of ``restore --in-place``: plans what a path of a running volume lacks to be as it was,
and has its layer do it. The CLI shows what is returned here.

The tree as it was and the tree as it is are both made of versions in the store and the entries
after them, or of the journal alone, where there is no store; what is needed for it meanwhile lies
in a temporary directory."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fusejournal.admin.live import live_status
from fusejournal.admin.source import JournalSource, open_source
from fusejournal.admin.undo import DoneEntries
from fusejournal.admin.versions import VolumeVersions
from fusejournal.disk.temporary import temporary_directory
from fusejournal.errors import PrivilegeError, UndoOverlapError, UsageError
from fusejournal.history.json_values import exact, exact_or_none
from fusejournal.node.state_dir import VolumeState
from fusejournal.objects.local import LocalStore
from fusejournal.objects.overlay import OverlayStore
from fusejournal.objects.service import do_not_wait
from fusejournal.objects.store import ObjectStore
from fusejournal.replay.undo_execute import UndoExecutor
from fusejournal.replay.undo_files import UndoFiles
from fusejournal.replay.undo_others import Overlap
from fusejournal.types import Progress, Seq, SeqOrPosition
from fusejournal.versions.blocks import BlockWriter
from fusejournal.versions.builder import build_trees
from fusejournal.versions.create import trees_of_nearest
from fusejournal.versions.histories import is_on, newest_usable
from fusejournal.versions.in_place import InPlacePlan, plan_in_place, private_prefix
from fusejournal.versions.manifest import Version, list_versions
from fusejournal.versions.trees import Trees
from fusejournal.versions.version_tree import VersionTree


class Moment(NamedTuple):
    """A moment that a path is brought back to, in one way."""

    to_version: str | None = None
    to_seq: SeqOrPosition | None = None
    before_seq: SeqOrPosition | None = None
    to_time: str | None = None
    to_mark: str | None = None


class PlannedInPlace:
    """A restore in place that was planned, and can be carried out as long as the block that made it
    lasts.

    Args:
        source, state: the volume's journal, and its state.
        path, plan: what is brought back, and how.
        seq, version: the attributes of these names."""

    def __init__(
        self,
        source: JournalSource,
        state: VolumeState,
        path: bytes,
        plan: InPlacePlan,
        seq: Seq,
        version: Version | None,
    ) -> None:
        self.source = source
        self.plan = plan
        self.seq = seq
        """The last entry that counts."""
        self.version = version
        """The version that it is made of, if any."""
        self._state = state
        self._path = path
        self._overlaps: list[Overlap] = []

    def carry_out(self, progress: Progress) -> UndoOverlapError | None:
        """Have it done. Returns the error that is to be raised in the end where all is done, but
        other processes changed the same things at the same moment. Raises what
        :func:`check_can_apply` raises; ConflictError, JournalError, StoreError, OSError, and what
        *progress* raises: :meth:`done` returns what is done then."""
        check_can_apply(self._state)  # the role may have changed since
        plan = self.plan
        assert plan.files is not None
        with ExitStack() as stack:
            files = UndoFiles(
                self.source.lookup,
                self.source.head_seq,
                self._state.mountpoint,
                progress,
                stack,
                private_prefix(self._path),
            )
            executor = UndoExecutor(files, plan.names, plan.files, stack)
            try:
                executor.run(plan.changed, plan.with_content, plan.directories)
            finally:
                self._overlaps = executor.overlaps()
        if not self._overlaps:
            return None
        return UndoOverlapError(
            f"another process changed what was restored at the very moment, as entries "
            f"{', '.join(str(one.seq) for one in self._overlaps)}: look at them"
        )

    def done(self) -> DoneEntries:
        """Returns the entries that it has made so far. Raises NotRunningError."""
        last = live_status(self._state).head_seq or 0
        return DoneEntries(Seq(self.source.head_seq + 1), Seq(last), os.getpid())

    def to_json(self, done: DoneEntries | None) -> dict[str, Any]:
        """Returns what ``restore --in-place --json`` prints."""
        return {
            "path": exact(self._path),
            "as_of_seq": self.seq,
            "from_version": self.version.key if self.version is not None else None,
            "changes": [
                {
                    "action": one.what,
                    "path": exact(one.path),
                    "old_path": exact_or_none(one.old_path),
                    "bytes": one.written_bytes,
                    "shared": [exact(path) for path in one.shared],
                }
                for one in self.plan.changes
            ],
            "bytes": self.plan.written_bytes,
            "overlaps": [{"seq": one.seq, "pid": one.pid} for one in self._overlaps],
            "applied": None if done is None else done._asdict(),
        }


def check_can_apply(state: VolumeState) -> None:
    """Raises UsageError where a restore in place cannot be carried out, because the volume is a
    mirror; NotRunningError where none of its layers runs; PrivilegeError."""
    if os.geteuid() != 0:
        raise PrivilegeError("restoring in place needs root: try sudo")
    if live_status(state).role != "primary":
        raise UsageError(
            f"{state.name} is a mirror, which only its primary changes: restore there, or with "
            "--target"
        )


@contextmanager
def planned_in_place(
    volume: str,
    path: str | None,
    moment: Moment,
    progress: Progress,
    waiting: Callable[[], None] = do_not_wait,
    config: Path | None = None,
    *,
    to_apply: bool = False,
) -> Iterator[PlannedInPlace]:
    """Yields the plan that brings a path back; what it is made of is there for the length of the
    block.

    Args:
        volume, path: the volume, and the path in it; None: the whole tree.
        moment: the moment that it is brought back to.
        progress: called while journal and version are read.
        waiting, config: as in :class:`VolumeVersions`.
        to_apply: it is to be carried out: what :func:`check_can_apply` raises comes first.

    Raises UsageError, NoSuchMomentError, NoSuchSeqError, OtherHistoryError, NoSuchVersionError,
    PathNotFoundError, ConflictError, JournalError, StoreError."""
    source = open_source(volume)
    if source.state is None:
        raise UsageError(f"{source.name} is a copy of a journal: only a volume has a place")
    if to_apply:
        check_can_apply(source.state)
    versions = VolumeVersions(volume, waiting, config) if source.state.has_versions else None
    if versions is not None:
        source = versions.source
    assert source.state is not None
    raw = source.path(path) if path else b""
    with temporary_directory() as directory, ExitStack() as stack:
        store: ObjectStore = LocalStore(directory)
        kept: list[Version] = []
        if versions is not None:
            lower = stack.enter_context(versions.reading())
            kept = list_versions(lower, source.state.uuid)
            store = OverlayStore(lower, store)
        blocks = BlockWriter(store)
        work = _Trees(source, blocks, kept, progress)
        if moment.to_version is not None:
            if versions is None:
                raise UsageError(f"{source.name} has no store of versions: see 'version store'")
            base: Version | None = versions.find(moment.to_version).version
            assert base is not None
            then, seq = base.trees, base.seq
            is_here = is_on(base, source.reader)
        else:
            end = source.end_of(**{key: value for key, value in moment._asdict().items()
                                   if key != "to_version"})  # fmt: skip
            seq = Seq(end - 1)
            then, base = work.at(seq)
            is_here = True
        now = work.now(then, seq, is_here=is_here)
        plan = plan_in_place(VersionTree(blocks, then), then, VersionTree(blocks, now), now, raw)
        yield PlannedInPlace(source, source.state, raw, plan, seq, base)


class _Trees:
    """The making of trees of a volume at seqs."""

    def __init__(
        self, source: JournalSource, blocks: BlockWriter, kept: list[Version], progress: Progress
    ) -> None:
        self._source = source
        self._blocks = blocks
        self._kept = kept
        self._progress = progress

    def at(self, seq: Seq) -> tuple[Trees, Version | None]:
        """Returns the trees after entry *seq*, and the version that they are made of."""
        trees, base, _ = trees_of_nearest(
            self._blocks, self._kept, self._source.reader, seq, self._progress
        )
        return trees, base

    def now(self, then: Trees, seq: Seq, *, is_here: bool) -> Trees:
        """Returns the trees after the newest entry, made of those after *seq*, if that *is_here* in
        this journal, or of a version that is nearer."""
        head_seq = self._source.head_seq
        reader = self._source.reader
        nearest = newest_usable(self._kept, reader, head_seq) if self._kept else None
        if not is_here or (nearest is not None and nearest.seq > seq):
            return self.at(head_seq)[0]
        trees = build_trees(
            self._blocks, then, reader, Seq(seq + 1), Seq(head_seq + 1), self._progress
        )
        self._blocks.finish()
        return trees
