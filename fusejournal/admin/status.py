"""The status of volumes: as their layers have it, or else of what is on disk."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fusejournal.admin.live import live_status
from fusejournal.admin.scrub_record import load_scrub
from fusejournal.admin.stopped_journals import StoppedJournals
from fusejournal.disk import mounts
from fusejournal.errors import JournalDamagedError, JournalError, NotRunningError
from fusejournal.journal.base import JournalBase, load_base
from fusejournal.journal.branches import occupied_by_branches
from fusejournal.layer.connection import is_held
from fusejournal.nfs.exports import is_exported, lacking
from fusejournal.node.disk_space import disk_space, low_disk
from fusejournal.node.registry import all_volumes, copies_of
from fusejournal.node.state_dir import VolumeState
from fusejournal.node.version_record import load_version_status
from fusejournal.node.volume_status import BranchesStatus, Condition, ScrubStatus, VolumeStatus
from fusejournal.volume.trouble import Trouble, TroubleKind


def volume_status(state: VolumeState, journals: StoppedJournals | None = None) -> VolumeStatus:
    """Returns the status of a volume, and, among what is wrong with it, what here looks like the
    same volume. Never touches the mountpoint. *journals* keeps what was read for the status before,
    where one is asked for again and again. Raises FusejournalError."""
    found = _status(state, journals or StoppedJournals())
    copies = (
        Trouble(TroubleKind.COPY, f"{copy} has a copy of its state: keep it somewhere else")
        for copy in copies_of(state)
    )
    scrub = load_scrub(state.directory)
    return replace(
        found,
        state_directory=str(state.directory),
        export_lacks=lacking(state.mountpoint) if found.exported else None,
        scrub=scrub,
    ).with_troubles((*copies, *_scrubbed(scrub)))


def _scrubbed(scrub: ScrubStatus | None) -> Iterator[Trouble]:
    if scrub is not None and scrub.faults:
        more = f", and {len(scrub.faults) - 1:,} more" if len(scrub.faults) > 1 else ""
        words = f"the last scrub found: {scrub.faults[0]}{more}: see 'fusejournal scrub --repair'"
        yield Trouble(TroubleKind.SCRUB, words)


def all_statuses() -> list[VolumeStatus]:
    """Returns :func:`volume_status` of all volumes, by name."""
    return [volume_status(state) for state in all_volumes()]


def _status(state: VolumeState, journals: StoppedJournals) -> VolumeStatus:
    try:
        return live_status(state)
    except NotRunningError:
        holder = state.holder()
        if holder is None and is_held(state.directory / "connection"):
            return _status_from_disk(state, journals, Condition.HELD, None)
        if holder is None:
            return _status_from_disk(state, journals, Condition.STOPPED, None)
        waits_for = holder.get("waits_for")
        pid = holder.get("pid")
        return _status_from_disk(state, journals, Condition.STARTING, pid, waits_for)


def _status_from_disk(
    state: VolumeState,
    journals: StoppedJournals,
    condition: Condition,
    pid: int | None,
    waits_for: str | None = None,
) -> VolumeStatus:
    troubles = []
    if waits_for:
        troubles.append(Trouble(TroubleKind.WAITING, f"it is not mounted yet: {waits_for}"))
    if condition is Condition.STOPPED and _is_mounted(state):
        words = (
            f"its mount is dead: 'fusejournal mount {state.name}' makes it anew, "
            f"'fusejournal umount {state.name}' takes it away"
        )
        troubles.append(Trouble(TroubleKind.LAYER, words))
    journal = base = None
    clean = True
    try:
        base = load_base(state.directory)
        if any(state.journal_dir.glob("*.fj*")):
            journal = journals.read(state)
            clean = journal.is_clean
            if journal.damage is not None:
                troubles.append(Trouble.of_damage(journal.damage))
            elif condition is Condition.HELD:
                words = (
                    f"its layer died, and its users wait: 'fusejournal mount {state.name}' goes on"
                )
                troubles.append(Trouble(TroubleKind.LAYER, words))
            elif not clean and condition is Condition.STOPPED:
                words = "was not stopped in order; the next mount recovers it"
                troubles.append(Trouble(TroubleKind.UNCLEAN, words))
    except JournalDamagedError as error:
        troubles.append(Trouble.of_damage(error))
    except (JournalError, OSError) as error:
        troubles.append(Trouble(TroubleKind.UNREADABLE, str(error)))
    if condition is Condition.STOPPED:
        troubles += _unfinished(state)
    count, occupied_bytes = occupied_by_branches(state.directory)
    disk = disk_space(state.directory)
    found = VolumeStatus(
        name=state.name,
        uuid=str(state.uuid),
        role=state.role_word,
        pid=pid,
        backing=str(state.backing),
        mountpoint=str(state.mountpoint),
        state=condition,
        exported=is_exported(state.mountpoint),
        held=condition is Condition.HELD,
        disk_free_bytes=disk.free_bytes,
        backing_free_bytes=_free(state),
        branches=BranchesStatus(count=count, bytes=occupied_bytes),
        versions=load_version_status(state.directory),
        disk_low=disk.is_low,
        troubles=(*troubles, *low_disk(state.name, state.directory, disk)),
    )
    if journal is None:
        return found
    return replace(
        found,
        epoch=journal.epoch,
        head_seq=journal.head_seq,
        durable_seq=journal.head_seq if clean else journal.durable_seq,
        checkpoint_seq=journal.head_seq if clean and not state.is_mirror else None,
        journal_bytes=journal.total_bytes,
        segments=journal.segment_count,
        **_covered(base),
    )


def _covered(base: JournalBase | None) -> dict[str, Any]:
    return {} if base is None else {"base_seq": base.seq, "base_time_ns": base.time_ns}


def _unfinished(state: VolumeState) -> Iterator[Trouble]:
    """Yields what was begun and is not at its end."""
    # Only here: of a mounted volume nothing is asked of a rejoin.
    from fusejournal.volume.rollback import load_intent

    begun = load_intent(state.directory)
    if begun is not None:
        words = (
            f"a rejoin has begun, to entry {begun.position.seq}: "
            f"'fusejournal rejoin {state.name}' goes on"
        )
        yield Trouble(TroubleKind.REJOIN, words)


def _is_mounted(state: VolumeState) -> bool:
    source = f"fusejournal:{state.name}"
    return any(
        (one.mountpoint, one.type, one.source) == (state.mountpoint, mounts.FILESYSTEM_TYPE, source)
        for one in mounts.mounts()
    )


def _free(state: VolumeState) -> int | None:
    if state.backing == state.mountpoint:
        return None  # under a dead mount there is no way to ask
    try:
        space = os.statvfs(state.backing)
    except OSError:
        return None
    return space.f_bavail * space.f_frsize
