"""What the kernel remembers of a mirror's tree, and what of it is not so any more.

The kernel is told to keep names, attributes and pages for long, for all changes come through the
mount. On a mirror they do not: the updater tells each here. Of what the kernel knows (it says when
it looks a fid up, and when it forgets it) names, attributes and pages are then taken from it; a
mirror that nobody reads costs nothing.

Taking names and pages away may wait for requests in progress, which the event loop serves: it is
done in a thread. Where the volume is exported, NFSv4 clients may hold delegations, which promise
that nobody changes a file: an attempt to open it for writing has them recalled.

``changed`` and ``drop_stale`` belong to the event loop. Source:
Documentation/filesystems/fuse.rst; libfuse's fuse_lowlevel_notify_inval_entry,
fuse_lowlevel_notify_inval_inode; fcntl(2) on leases."""

from collections.abc import Callable

import trio

from fusejournal.layer.stale import Stale, add_changed, drop
from fusejournal.operations import Operation
from fusejournal.types import ROOT_FID, Fid


class Remembered:
    """See the module. *recall* is given the fids whose content has changed, in a thread, before
    the kernel's pages of them are dropped."""

    def __init__(self, recall: Callable[[set[Fid]], None], everything: bool) -> None:
        """*everything*: the mount was taken over, and the kernel may know any fid."""
        self._recall = recall
        self._everything = everything
        self._lookups: dict[Fid, int] = {}
        self._stale = Stale(set(), set())
        self._wanted = trio.Event()
        self._dropped = trio.Event()

    # -- what the kernel says ----------------------------------------------------------------------

    def looked_up(self, fid: Fid) -> None:
        """The kernel is told of *fid* once more."""
        self._lookups[fid] = self._lookups.get(fid, 0) + 1

    def forgotten(self, fid: Fid, times: int) -> None:
        """The kernel has forgotten *fid* as often as it was told of it."""
        left = self._lookups.get(fid, 0) - times
        if left > 0:
            self._lookups[fid] = left
        else:
            self._lookups.pop(fid, None)

    def __contains__(self, fid: object) -> bool:
        """Whether the kernel may know *fid*. (It knows the root without ever asking.)"""
        return self._everything or fid in self._lookups or fid == ROOT_FID

    # -- what has changed --------------------------------------------------------------------------

    def changed(self, operation: Operation) -> None:
        """*operation* was applied."""
        add_changed(self._stale, operation, self)

    def drop_stale(self) -> None:
        """Have the kernel forget what has changed."""
        if self._stale.names or self._stale.fids:
            self._wanted.set()

    async def run(self) -> None:
        """Take from the kernel what is stale, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            stale, self._stale = self._stale, Stale(set(), set())
            if stale.fids:
                await trio.to_thread.run_sync(self._recall, stale.fids)
            await trio.to_thread.run_sync(drop, stale)
