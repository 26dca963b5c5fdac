"""Pruning of a journal's beginning: how far the policy and all that relies on it let it go, and
having a verified version stand for it first. The layer need not be running."""

import fcntl
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fusejournal.address import node_name
from fusejournal.admin.live import ask_layer, live_status
from fusejournal.admin.versions import VolumeVersions
from fusejournal.config import JournalConfig
from fusejournal.errors import NotRunningError
from fusejournal.history.marks import all_marks
from fusejournal.journal.base import JournalBase, load_base
from fusejournal.journal.branches import versions_of_branches
from fusejournal.journal.segment import first_seq_of, list_segments
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.journal.window import (
    PrunableSegment,
    UncountedSpan,
    aged_by_entries,
    beyond_window,
    prunable_segments,
)
from fusejournal.node.holding import hold_volume
from fusejournal.node.journal_limits import (
    JournalLimit,
    PruningRefusedError,
    install_base,
    journal_limits,
)
from fusejournal.node.state_dir import VolumeState, load_state
from fusejournal.objects.store import ObjectStore
from fusejournal.types import Progress, Seq
from fusejournal.versions.base_tree import base_of, open_base_tree
from fusejournal.versions.bases import keys_pinned_by, pin, unpin
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.create import create_version
from fusejournal.versions.manifest import Version
from fusejournal.versions.verified_blocks import VERIFIED, VerifiedBlocks, forgetting
from fusejournal.versions.verify import VerifiedSeries
from fusejournal.volume.rollback import load_intent

_LOCK = "prune.lock"
_DAY_NS = 86_400 * 10**9


@dataclass(frozen=True)
class JournalPlan:
    """The part of a journal that goes."""

    wanted_seq: Seq
    """The last entry beyond the policy's window; 0 if it has none."""
    base_seq: Seq
    """The last entry that goes; that of the base there is, if nothing does."""
    segments: int
    bytes: int
    """The bytes that these occupy."""
    held_by: tuple[str, ...]
    """Everything that keeps entries that are beyond the window."""

    def to_json(self) -> dict[str, Any]:
        """Returns what ``prune --json`` prints of it."""
        return {
            "up_to_seq": self.base_seq if self.segments else None,
            "segments": self.segments,
            "bytes": self.bytes,
            "held_by": list(self.held_by),
        }


class BaseReading:
    """The reading back of the versions that one volume's journal is to begin with, by one process,
    one after the other."""

    def __init__(self) -> None:
        self._series = VerifiedSeries()
        self._known: VerifiedBlocks | None = None

    def verify(
        self, state: VolumeState, store_id: str, blocks: BlockReader, version: Version,
        progress: Progress,
    ) -> None:  # fmt: skip
        """Reads *version* back, as far as that was not done not long ago. Raises what
        verify_version raises; PruningRefusedError where damage was met meanwhile."""
        known = self._known
        self._known = None
        if known is None or known.is_forgotten:
            self._series = VerifiedSeries()
            today = int(time.time() * 10**9) // _DAY_NS
            known = VerifiedBlocks(state.directory / VERIFIED, store_id, today)
        with forgetting(state.directory):
            self._series.verify(blocks, version, progress, known)
        if known.is_forgotten:
            raise PruningRefusedError(
                "damage was met in the store of versions: see 'version verify'"
            )
        with suppress(OSError):  # a full disk: the next pruning reads more
            known.save_grown()
        self._known = known

    def close(self) -> None:
        """Writes down what was read back."""
        if self._known is not None and not self._known.is_forgotten:
            with suppress(OSError):
                self._known.save()


class JournalPruning:
    """Pruning of the journal of a volume with *versions*, by *policy*. *reading*: what this process
    has done for the same volume before."""

    def __init__(
        self,
        versions: VolumeVersions,
        policy: JournalConfig,
        reading: BaseReading | None = None,
    ) -> None:
        self._reading = reading or BaseReading()
        self._versions = versions
        self._policy = policy
        self._state = versions.state

    def plan(self) -> JournalPlan:
        """Returns what would go. Raises JournalDamagedError, FusejournalError, OSError."""
        segments = prunable_segments(self._versions.source.reader)
        by_bytes_seq = beyond_window(segments, 0, self._policy.keep_bytes, None)
        by_days_seq, doubts = self._beyond_days(segments)
        wanted_seq = max(by_bytes_seq, by_days_seq)
        limits = [JournalLimit(max(by_bytes_seq, one.seq), one.why) for one in doubts]
        limits += self._limits() if wanted_seq else []
        limit_seq = min([wanted_seq, *(one.seq for one in limits)])
        going = [one for one in segments if one.last_seq <= limit_seq]
        base_seq = going[-1].last_seq if going else self._known_base_seq
        if going:
            limits += self._marks(base_seq)
            base_seq, going = self._below(segments, min(base_seq, *_seqs(limits)))
        return JournalPlan(
            wanted_seq,
            base_seq,
            len(going),
            sum(one.size for one in going),
            tuple(one.why for one in limits if one.seq < wanted_seq),
        )

    def _beyond_days(self, segments: list[PrunableSegment]) -> tuple[Seq, list[JournalLimit]]:
        """Returns the last entry that is older than ``keep_days`` by the clock, and what keeps
        entries up to there because the clock may be ahead."""
        if self._policy.keep_days is None:
            return Seq(0), []
        keep_ns = int(self._policy.keep_days * _DAY_NS)
        reader, moments = self._versions.source.reader, self._versions.source.moments
        now_ns = min(time.time_ns(), moments.last_time_ns)
        seq = beyond_window(segments, now_ns, None, keep_ns)
        if not seq:
            return seq, []
        aged_seq, span = aged_by_entries(reader, keep_ns)
        if aged_seq >= seq:
            return seq, []
        return seq, [JournalLimit(aged_seq, _doubt(span))]

    def _below(
        self, segments: list[PrunableSegment], seq: Seq
    ) -> tuple[Seq, list[PrunableSegment]]:
        going = [one for one in segments if one.last_seq <= seq]
        return (going[-1].last_seq if going else self._known_base_seq), going

    @property
    def _known_base_seq(self) -> Seq:
        base = self._versions.source.reader.base
        return base.base.seq if base is not None else Seq(0)

    def _limits(self) -> list[JournalLimit]:
        state = self._state
        acked: dict[str, Seq] = {}
        try:
            replication = live_status(state).replication
            for peer in replication.peers if replication is not None else ():
                acked[peer.name] = Seq(peer.acked_seq)
        except NotRunningError:
            pass
        with closing(WatermarkPage(state.watermarks, state.created_ns)) as page:
            return list(journal_limits(state, page, acked.get))

    def _marks(self, base_seq: Seq) -> list[JournalLimit]:
        """Returns the oldest mark up to entry *base_seq*: what a person has named stays."""
        for mark in all_marks(self._versions.source.lookup)[:1]:
            if mark.seq <= base_seq:
                name = self._state.name
                why = (
                    f"mark {mark.name!r} is entry {mark.seq}: 'fusejournal mark {name} "
                    f"{shlex.quote(mark.name)} --remove' lets it go; what is to be kept for long "
                    "is better a version"
                )
                return [JournalLimit(Seq(mark.seq - 1), why)]
        return []

    def carry_out(self, plan: JournalPlan, progress: Progress) -> JournalPlan:
        """Have a version stand for what goes, read back what of it was not read back not long ago
        (versions/verified_blocks.py), and then have it go. Returns *plan*. Raises what
        create_version and verify_version raise, with nothing gone; PruningRefusedError, also where
        another pruning is under way, BusyError, StoreError, FusejournalError, OSError."""
        with pruning_alone(self._state):
            store = self._versions.store(writing=True)
            if plan.segments:
                self._prune(store, plan, progress)
            else:
                self._finish()
            self._pin_base(store)
        return plan

    def _prune(self, store: ObjectStore, plan: JournalPlan, progress: Progress) -> None:
        version = create_version(
            store,
            self._versions.source.reader,
            plan.base_seq,
            "",
            node_name(self._state.name),
            time.time_ns(),
            progress,
        ).version
        pin(store, version.key, version.uuid, self._state.created_ns)
        # Of what is in the store by now, nothing is taken on trust but what was read not long ago.
        kept = self._versions.kept
        base = base_of(version, kept.place.id)
        fresh = open_base_tree(self._state.directory, base, kept.config).blocks
        self._reading.verify(self._state, base.store, fresh, version, progress)
        self._install(base)

    def _finish(self) -> None:
        """Have what an earlier pruning left go, if it was stopped once its base was there."""
        base = load_base(self._state.directory)
        left = list_segments(self._state.journal_dir)[:1]
        if base is not None and left and first_seq_of(left[0]) <= base.seq:
            self._install(base)

    def _install(self, base: JournalBase) -> None:
        state = self._state
        try:
            ask_layer(state, "prune", base=base.to_json())
        except NotRunningError:
            with hold_volume(state):
                state = load_state(state.directory)
                with closing(WatermarkPage(state.watermarks, state.created_ns)) as page:
                    install_base(state, base, page)

    def _pin_base(self, store: ObjectStore) -> None:
        """Have the version that the journal's base names pinned, whatever was done to it, and no
        other by this journal, but for those that its branches begin with. Nothing is done where a
        rejoin has begun, which needs others yet."""
        base = load_base(self._state.directory)
        if load_intent(self._state.directory) is not None:
            return
        if base is None or base.store != self._versions.kept.place.id:
            return
        owner = self._state.created_ns
        pinned = keys_pinned_by(store, owner)
        if base.version not in pinned:
            pin(store, base.version, base.uuid, owner)
        for key in pinned - {base.version} - versions_of_branches(self._state.directory):
            unpin(store, key, owner)


@contextmanager
def pruning_alone(state: VolumeState) -> Iterator[None]:
    """Raises PruningRefusedError where the volume is being pruned by another process. Source:
    flock(2)."""
    fd = os.open(state.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PruningRefusedError(
                f"volume {state.name} is being pruned by another process: say it again after that"
            ) from None
        yield
    finally:
        os.close(fd)


def _doubt(span: UncountedSpan | None) -> str:
    where = "before its last entries"
    if span is not None:
        days = span.span_ns / _DAY_NS
        where = f"by {days:,.1f} days after entry {span.after_seq}"
    return (
        f"the clock may have leapt ahead, {where}: so long a time without an entry counts for "
        "nothing; put the clock right if it is wrong; if not, these go once keep_days have passed "
        "beside it, or by keep_bytes"
    )


def _seqs(limits: list[JournalLimit]) -> list[Seq]:
    return [one.seq for one in limits]
