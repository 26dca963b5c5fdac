"""The journals of volumes that no layer runs, as a status shows them: read from the newest segment,
and kept as long as none of the files has changed.

A file is known by its inode, size and time of change. Where one has changed in the last seconds,
nothing is kept, because a further change could leave it the same time. Not for two threads at a
time."""

import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import Final, NamedTuple

from fusejournal.errors import JournalDamagedError
from fusejournal.journal.journal import Journal
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node.state_dir import VolumeState
from fusejournal.types import Epoch, Seq

_QUIET_NS: Final = 3 * 10**9
_KEPT: Final = 256
_Files = tuple[tuple[str, int, int, int, int], ...]


class StoppedJournal(NamedTuple):
    """The part of a status that is about the journal."""

    epoch: Epoch
    head_seq: Seq
    durable_seq: Seq
    total_bytes: int
    segment_count: int
    damage: JournalDamagedError | None
    is_clean: bool
    """True if it was closed in order."""


class StoppedJournals:
    """Reads them, and keeps what it read."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Path, tuple[VolumeState, _Files, StoppedJournal]] = OrderedDict()

    def read(self, state: VolumeState) -> StoppedJournal:
        """Returns what the journal of a volume has. Raises JournalError, OSError."""
        now_ns, files = time.time_ns(), _files(state)
        known = self._kept.pop(state.directory, None)
        if known is not None and known[:2] == (state, files):
            self._kept[state.directory] = known
            return known[2]
        found = _read(state)
        if all(abs(now_ns - changed_ns) > _QUIET_NS for *_, changed_ns in files):
            self._kept[state.directory] = state, files, found
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found


def _files(state: VolumeState) -> _Files:
    """Returns the files that a reading depends on, as they are now. Raises OSError."""
    found = []
    with os.scandir(state.journal_dir) as entries:
        for entry in entries:
            about = entry.stat()
            found.append((entry.name, *_of(about)))
    if state.watermarks.exists():
        found.append(("", *_of(state.watermarks.stat())))
    return tuple(sorted(found))


def _of(about: os.stat_result) -> tuple[int, int, int, int]:
    return about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _read(state: VolumeState) -> StoppedJournal:
    page = None
    if state.watermarks.exists():
        page = WatermarkPage(state.watermarks, state.created_ns)
    journal = Journal.open(
        state.journal_dir,
        state.uuid,
        JournalOptions(),
        unclean_machine=False,
        read_only=True,
        is_copy=state.is_mirror,
        known_durable=page.durable_seq if page is not None else Seq(0),
    )
    is_clean = journal.ends_clean
    if page is not None:
        if state.is_mirror:
            is_clean = page.stopped_seq == journal.head_seq
        page.close()
    return StoppedJournal(
        journal.epoch,
        journal.head_seq,
        journal.durable_seq,
        journal.total_bytes,
        journal.segment_count,
        journal.damage,
        is_clean,
    )
