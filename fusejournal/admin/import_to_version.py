"""The first mount of a directory whose content is not to be twice on the state's disk: it is
imported in parts, and after each part a version is made in another store, read back, and the
journal's beginning let go.

Nothing here is new to a volume: an import that was stopped goes on at the next start, and a journal
is pruned behind a version as ever. So whatever is killed, the same command goes on, and so does a
plain mount."""

from collections.abc import Callable
from typing import NamedTuple

from fusejournal.admin.mount_options import MountOptions
from fusejournal.admin.prune_journal import BaseReading, JournalPruning
from fusejournal.admin.start import start_volume
from fusejournal.admin.versions import VolumeVersions
from fusejournal.config import JournalConfig
from fusejournal.errors import FusejournalError, ImportPausedError, UsageError
from fusejournal.node.spec import MountSpec, Reporter
from fusejournal.versions.keys import StoreKey


class ImportStore(NamedTuple):
    """The store that a directory is imported to."""

    where: str
    """A directory, or an address."""
    part_bytes: int
    """The bytes of content that go through the journal at a time, about."""


class ImportedVolume(NamedTuple):
    """A volume that is mounted."""

    parts: int
    """The parts in which its content was imported; 0 where it was less than one."""
    new_key: StoreKey | None
    """The key of a store that was made, and is encrypted."""


def start_importing(
    spec: MountSpec,
    asked: MountOptions,
    reporter: Reporter,
    store: ImportStore,
    waiting: Callable[[], None],
) -> ImportedVolume:
    """Does what start_volume does, with the content of the backing imported to *store*. *waiting*:
    see VolumeVersions. Raises UsageError for a mirror, StoreError, PruningRefusedError,
    FusejournalError; what is done by then is gone on with."""
    if spec.role == "mirror":
        raise UsageError(f"{spec.name} is a mirror, which imports nothing")
    new_key: StoreKey | None = None
    parts = 0
    reading = BaseReading()
    while True:
        try:
            start_volume(spec, asked, reporter, import_bytes=store.part_bytes)
        except FusejournalError as error:
            if error.exit_code != ImportPausedError.exit_code:
                raise
        else:
            reading.close()
            return ImportedVolume(parts, new_key)
        if not parts:
            kept = _versions(spec, waiting).kept
            new_key = kept.init(store.where).new_key
        _prune(spec, reporter, waiting, reading)
        parts += 1


def _versions(spec: MountSpec, waiting: Callable[[], None]) -> VolumeVersions:
    return VolumeVersions(f"{spec.state_dir}/", waiting, spec.config_file)


def _prune(
    spec: MountSpec, reporter: Reporter, waiting: Callable[[], None], reading: BaseReading
) -> None:
    """Has a version stand for all that is imported, and the journal begin behind it."""

    def progress(done: int, total: int | None) -> None:
        waiting()
        reporter.progress("making a version of it", done, total, "steps")

    # Before the volume is live there is no moment that a person could want back.
    pruning = JournalPruning(_versions(spec, waiting), JournalConfig(keep_bytes=0), reading)
    plan = pruning.plan()
    for reason in plan.held_by:
        reporter.warning(f"the journal keeps what is imported: {reason}")
    pruning.carry_out(plan, progress)
