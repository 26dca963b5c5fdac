"""Runs the reconciliation of a volume whose backing is in an unknown state: chooses from where on,
makes a checkpoint of the result, and reports in words what was found."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fusejournal.errors import RecoveryError
from fusejournal.journal.format import Entry
from fusejournal.types import Seq, StageProgress
from fusejournal.volume.checkpoint import NO_CHECKPOINT, CheckpointFile
from fusejournal.volume.reconcile.losing import LosingEntries
from fusejournal.volume.reconcile.reconcile import Reconciliation
from fusejournal.volume.trouble import Trouble, TroubleKind
from fusejournal.volume.volume import Volume


def reconcile_after_loss(
    volume: Volume,
    backing: Path,
    checkpoints: CheckpointFile,
    before_seq: Seq,
    in_flight: Entry | None,
    progress: StageProgress,
    make_checkpoint: Callable[[], None],
    *,
    may_be_ahead: bool,
    losing: LosingEntries | None,
) -> Reconciliation:
    """Make the backing what the journal says, and have that on the disk.

    Args:
        volume, backing: the volume, and where its backing is.
        checkpoints: the newest checkpoint is read from here.
        make_checkpoint: makes one of the result.
        before_seq, in_flight, progress, may_be_ahead, losing: as in :class:`Reconciliation`.

    Raises RecoveryError, JournalDamagedError."""
    checkpoint = checkpoints.load()
    if checkpoint.seq >= before_seq:
        checkpoint = NO_CHECKPOINT  # of entries that are not there any more
    elif checkpoint.time_ns > time.time_ns():
        # Before a byte is written: what is cut off in the midst under this clock, another start
        # could not tell by its change times once the clock is right again.
        checkpoint = checkpoints.forget_time(checkpoint)
    work = Reconciliation(volume, checkpoint, before_seq, in_flight, may_be_ahead, progress, losing)
    try:
        work.run()
        # Before anything else is journaled: another loss would see it in the light of that.
        make_checkpoint()
    except OSError as error:
        why = "the system crashed" if losing is None else "its end lost to another history"
        raise RecoveryError(
            f"{backing}: cannot be made what the journal says after {why}: {error.strerror}; mend "
            "that and mount again: it begins anew"
        ) from error
    return work


def troubles_of(work: Reconciliation, *, is_mirror: bool) -> Iterator[Trouble]:
    """Yields what *work* could not put right, or put aside."""
    if work.aside:
        first = os.fsdecode(work.aside[0])
        yield Trouble(
            TroubleKind.SET_ASIDE,
            f"{len(work.aside)} files that the journal does not know were in the way of others "
            f"and have another name now, the first is {first!r}: see whether they are wanted",
        )
    if work.in_part and not is_mirror:
        yield Trouble(
            TroubleKind.LOST_IMPORTS,
            f"{len(work.in_part)} files were lost before their import had come to its end, the "
            f"first is {os.fsdecode(work.in_part[0])!r}: what the journal does not have of "
            "them is zeros now; put them there again",
        )
