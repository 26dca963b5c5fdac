"""A restore beside a volume, into a new directory: from the nearest version and the entries after
it, or by the journal alone."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fusejournal.admin.source import JournalSource
from fusejournal.objects.service import do_not_wait
from fusejournal.objects.store import ObjectTraffic, StoreError
from fusejournal.replay.made_aside import Restored
from fusejournal.replay.restore import restore
from fusejournal.types import Progress, Seq

if TYPE_CHECKING:
    from fusejournal.admin.versions import VolumeVersions
    from fusejournal.versions.manifest import Version


class AsideRestore:
    """A restore of a path as it was before an entry.

    Args:
        path, end: the path (``b""``: the whole tree), and the entry.
        volume: the name of *source*, as the admin says it.
        source: its journal, or a copy.
        config: the configuration, where it is not the one that the volume has.
        waiting: called now and then while a far store is waited for; may raise.
        from_journal: True if no version is to be used.
    """

    def __init__(
        self,
        volume: str,
        source: JournalSource,
        path: bytes,
        end: Seq,
        *,
        config: Path | None = None,
        waiting: Callable[[], None] = do_not_wait,
        from_journal: bool = False,
    ) -> None:
        self._source = source
        self._path = path
        self._end = end
        self.version: Version | None = None
        """The version that it was made from, once it is done."""
        self._versions: VolumeVersions | None = None
        if source.state is not None and source.state.has_versions and not from_journal:
            self._versions = _versions_of(volume, waiting, config)

    def traffic(self) -> ObjectTraffic | None:
        """Returns what went to and came from the store, if it is a far one that was opened."""
        return None if self._versions is None else self._versions.traffic()

    def run(self, target: Path, progress: Progress, warn: Callable[[str], None]) -> Restored:
        """Restores into *target*. *warn* is called with why the journal alone is used, where a
        store fails. Raises what restore and VolumeVersions.restore_after raise, but StoreError; and
        what *progress* raises."""
        if self._versions is not None:
            try:
                if (done := self._run_after_version(self._versions, target, progress)) is not None:
                    return done
            except StoreError as error:
                self.version = None
                warn(f"{error}: restoring from the journal alone")
        return restore(self._source.lookup, self._path, self._end, target, progress)

    def _run_after_version(
        self, versions: "VolumeVersions", target: Path, progress: Progress
    ) -> Restored | None:
        seq = Seq(self._end - 1)
        self.version = versions.nearest(seq, self._path)
        if self.version is None:
            return None
        return versions.restore_after(self.version, seq, self._path, target, progress)


def _versions_of(volume: str, waiting: Callable[[], None], config: Path | None) -> "VolumeVersions":
    # Only here: a volume without versions should not wait for these libraries to load.
    from fusejournal.admin.versions import VolumeVersions

    return VolumeVersions(volume, waiting, config)
