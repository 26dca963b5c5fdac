"""Space on a mirror's disk for what does not fit: a batch, a signature, a watermark.

Sessions are refused until there is space for it, because a connection that is not read would be
cut in any case. Used from the event loop's thread."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from fusejournal.disk.errnos import NO_SPACE
from fusejournal.journal.journal import Journal
from fusejournal.replication.wakeup import Wakeup
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import RefusedError


class MirrorSpace:
    """Space for *journal*; *wakeup* is set when ``full`` has changed."""

    def __init__(self, journal: Journal, wakeup: Wakeup) -> None:
        self._journal = journal
        self._wakeup = wakeup
        self.full: str | None = None
        """The reason why nothing more is taken for now, in words."""
        self._lacking_bytes = 0

    def lacks(self, why: str, lacking_bytes: int) -> RefusedError:
        """Note that so many bytes do not fit. Returns what the sender is refused with."""
        self.full, self._lacking_bytes = why, lacking_bytes
        self._wakeup.set()
        return RefusedError(RefusalCode.FULL, why)

    def suffices(self) -> None:
        """Note that what came last has fitted."""
        if self.full is not None:
            self.full = None
            self._wakeup.set()

    def check(self) -> None:
        """Raise RefusedError while what did not fit does not fit yet."""
        if self.full is None:
            return
        options = self._journal.options
        need = self._lacking_bytes + options.reserve_bytes + options.preallocate_bytes
        if shutil.disk_usage(self._journal.directory).free < need:
            raise RefusedError(RefusalCode.FULL, self.full)
        self.full = None

    @contextmanager
    def refusing_without(self, what: str) -> Iterator[None]:
        """Raise RefusedError where the block, which writes *what*, finds the disk full."""
        try:
            yield
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            raise self.lacks(f"no space left for {what}: {error}", 0) from None
