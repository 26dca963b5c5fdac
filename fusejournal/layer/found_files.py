"""Files that were put into the backing behind the layer: journaled first, then served.

Owns who waits for whom when several ask for one such file. Belongs to the event loop; others are
served between two pieces of a content."""

import errno
import logging
from collections.abc import Iterator

import trio

from fusejournal.layer.resolve import refusal
from fusejournal.native import kernel
from fusejournal.types import Fid
from fusejournal.volume.importer import Importer
from fusejournal.volume.volume import EHELD, Volume

log = logging.getLogger(__name__)


class FoundFiles:
    """Imports them when they are asked for. ``unfinished``: the fids whose content is not wholly in
    the journal."""

    def __init__(self, volume: Volume, importer: Importer) -> None:
        self._volume = volume
        self._importer = importer
        self.unfinished = importer.unfinished
        self._import_ended = trio.Event()
        """Set, and made anew, whenever an import has ended."""

    def has(self, parent: Fid, name: bytes) -> bool:
        """Returns True if *name*, which the catalog does not know, is in the backing for others to
        see. A read-only volume does not show it. Raises OSError ENOENT where that cannot be
        determined."""
        tree = self._volume.tree
        is_read_only = self._volume.write_errno not in (None, EHELD)
        if is_read_only or tree.is_hidden(parent, name):
            return False
        try:
            return kernel.exists(tree.descriptor(parent), name)
        except OSError:
            raise refusal(errno.ENOENT) from None

    async def import_name(self, parent: Fid, name: bytes) -> None:
        """Journal what was put there under *name*. Raises as Importer.run. Cancelling leaves
        the rest to the next caller that asks for it."""
        log.warning("found in the backing, imported: %r in fid %d", name, parent)
        await self._run(self._importer.import_found(parent, name))

    async def finish(self, fid: Fid) -> None:
        """Return when the content of *fid* is journaled: wait for the task that is at it, or do the
        rest. Raises OSError. Cancelling as in :meth:`import_name`."""
        while fid in self.unfinished:
            if fid in self._importer.active:
                await self._import_ended.wait()
            else:
                await self._run(self._importer.finish(fid))

    async def _run(self, steps: Iterator[object]) -> None:
        """Take all *steps*, and let others be served between two."""
        try:
            for _ in steps:
                await trio.lowlevel.checkpoint()
        finally:
            ended, self._import_ended = self._import_ended, trio.Event()
            ended.set()
