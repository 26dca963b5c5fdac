"""The status page of a running volume: everything about it that people and scripts can ask for, and
what is wrong with it, in words.

Only reads. Used from the event loop's thread."""

import os
from collections import deque
from collections.abc import Iterator

import trio

from fusejournal.journal.branches import occupied_by_branches
from fusejournal.node.disk_space import disk_space, low_disk
from fusejournal.node.spec import MountSpec
from fusejournal.node.state_dir import VolumeState
from fusejournal.node.version_schedule import VersionSchedule
from fusejournal.node.volume_status import BranchesStatus, Condition, FlushWaits, VolumeStatus
from fusejournal.replication.supervisor import Replication
from fusejournal.roles.role import Role
from fusejournal.volume.acceptance import Acceptance
from fusejournal.volume.durability import Durability
from fusejournal.volume.startup import VolumeStartup
from fusejournal.volume.trouble import Trouble, TroubleKind

_RATE_WINDOW_SECONDS = 10
_CONDITIONS = {
    Acceptance.TAKING: Condition.RUNNING,
    Acceptance.HOLDING: Condition.HANDING_OVER,
    Acceptance.REFUSING: Condition.READ_ONLY,
    Acceptance.FAILED: Condition.READ_ONLY,
}


class StatusPage:
    """The page of one run.

    Args:
        spec, state, role: what was asked for, the volume's state, and the role of this run.
        startup, durability, versions: of the volume.
        replication: None for a reader."""

    def __init__(
        self,
        spec: MountSpec,
        state: VolumeState,
        role: Role,
        startup: VolumeStartup,
        durability: Durability,
        replication: Replication | None,
        versions: VersionSchedule,
    ) -> None:
        self._spec = spec
        self._state = state
        self._role = role
        self._startup = startup
        self._durability = durability
        self._replication = replication
        self._versions = versions
        self._samples: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW_SECONDS)

    def sample(self) -> None:
        """Runs about once a second, and before the first status."""
        self._samples.append((trio.current_time(), self._startup.volume.journal.head_seq))

    def status(
        self, *, durability: str, exported: bool, held: bool, live_since: float | None
    ) -> VolumeStatus:
        """The page, with what only the node knows: the mode of *durability*, whether the volume is
        *exported*, whether its mount is *held* for another layer, and since when (Unix time) it is
        live."""
        volume, spec, tasks = self._startup.volume, self._spec, self._durability
        journal, replication = volume.journal, self._replication
        base = journal.reader.base
        disk = disk_space(spec.state_dir)
        versions = self._versions.status()
        return VolumeStatus(
            name=spec.name,
            uuid=str(journal.uuid),
            role=self._state.role_word,
            epoch=replication.epoch if replication is not None else journal.epoch,
            pid=os.getpid(),
            backing=str(spec.backing),
            mountpoint=str(spec.mountpoint),
            state=self._condition(),
            durability=durability,
            configuration=str(spec.config_file) if spec.config_file else None,
            exported=exported,
            held=held,
            live_since=live_since,
            head_seq=journal.head_seq,
            durable_seq=journal.durable_seq,
            checkpoint_seq=volume.catalog.checkpoint_seq,
            entries_per_second=self._rate(),
            journal_bytes=journal.total_bytes,
            segments=journal.segment_count,
            disk_free_bytes=disk.free_bytes,
            backing_free_bytes=_free_bytes(volume.tree.root_fd),
            limits=volume.tree.limits if replication is not None else None,
            flush_seconds=round(tasks.flush_seconds, 6),
            flushes=tasks.flushes,
            waits=FlushWaits(
                bounds=tasks.waits.BOUNDS,
                counts=tuple(tasks.waits.counts),
                seconds=round(tasks.waits.seconds, 6),
            ),
            replication=replication.status() if replication is not None else None,
            base_seq=base.base.seq if base is not None else None,
            base_time_ns=base.base.time_ns if base is not None else None,
            branches=self._branches(),
            versions=versions,
            disk_low=disk.is_low,
            repairs=tuple(self._startup.repairs),
            troubles=(
                *self._troubles(),
                *low_disk(spec.name, spec.state_dir, disk),
                *self._versions.degraded(versions),
            ),
        )

    def _branches(self) -> BranchesStatus:
        count, occupied_bytes = occupied_by_branches(self._spec.state_dir)
        bounds = self._spec.config.branches
        return BranchesStatus(
            count=count,
            bytes=occupied_bytes,
            keep_bytes=bounds.keep_bytes,
            keep_days=bounds.keep_days,
        )

    def _rate(self) -> float:
        (first_time, first_seq), (last_time, last_seq) = self._samples[0], self._samples[-1]
        seconds = last_time - first_time
        return round((last_seq - first_seq) / seconds, 1) if seconds else 0.0

    def _troubles(self) -> Iterator[Trouble]:
        volume, tasks = self._startup.volume, self._durability
        yield from self._startup.degraded
        if (failure := volume.failure) is not None:
            yield Trouble(failure.kind, f"read-only: {failure.text}")
        if not self._state.is_mirror and volume.write_errno is None:
            for words in volume.journal.clock.faults(volume.journal.last_time_ns):
                yield Trouble(TroubleKind.CLOCK, words)
        if tasks.compression_failure is not None:
            words = f"segments are not compressed: {tasks.compression_failure}"
            yield Trouble(TroubleKind.COMPRESSION, words)
        if volume.journal_full or tasks.full:
            place = self._spec.state_dir
            words = f"no space under {place}: changes are refused until there is some"
            yield Trouble(TroubleKind.NO_SPACE, words)
        if self._replication is not None:
            yield from self._replication.degraded()

    def _condition(self) -> Condition:
        acceptance = self._startup.volume.acceptance
        if acceptance is Acceptance.REFUSING and self._role.takes_batches:
            return Condition.RUNNING
        return _CONDITIONS[acceptance]


def _free_bytes(fd: int) -> int:
    space = os.fstatvfs(fd)
    return space.f_bavail * space.f_frsize
