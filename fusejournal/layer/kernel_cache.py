"""Keeps account of what the kernel remembers of a mirror's tree, and drops what is out of date.

The kernel is told to keep attributes for long, for all changes come through the mount. On a mirror
they do not: the updater tells each here, right after it is applied. Of what the kernel knows (it
says when it looks a fid up, and when it forgets it) the attributes are then taken from it. That
cannot block, and is enough: with the attributes it has to ask for, the kernel sees that the mtime
is another one and drops a file's pages by itself. Where the mtime was set back to what it was, it
cannot see that: so the next who opens a file that has changed has the kernel drop its pages. A
mirror that nobody reads costs nothing. (Who has mapped a file sees what has changed when somebody
next asks for its attributes or reads it; who has it open, after a change that set the mtime back,
when somebody next opens it.)

Names are not kept by the kernel at all on a mirror. To take a name away is to wait for requests in
progress, which this process answers: where it dies meanwhile, the kernel would wait for ever.

Where the volume is exported, NFSv4 clients may hold delegations, which promise that nobody changes
a file. They are recalled by a process of its own (nfs/delegations.py), for the same reason.

Belongs to the event loop. Source: Documentation/filesystems/fuse.rst; fs/fuse/inode.c,
fuse_reverse_inval_inode, fuse_change_attributes; fs/fuse/file.c, fuse_cache_read_iter."""

from collections.abc import Callable

import pyfuse3

from fusejournal.layer.lost_replies import changed_fids
from fusejournal.operations import CONTENT_KINDS, Kind, Operation
from fusejournal.types import ROOT_FID, Fid

_CONTENT = CONTENT_KINDS | {Kind.IMPORT_DATA}


class KernelCache:
    """The account of one mount. *recall* is given the fids of files whose content or attributes
    have changed. *everything*: the mount was taken over, and the kernel may know any fid."""

    def __init__(self, recall: Callable[[set[Fid]], None], everything: bool) -> None:
        self._recall = recall
        self._everything = everything
        self._lookups: dict[Fid, int] = {}
        self._changed: set[Fid] = set()
        self._spoilt: set[Fid] = set()
        """Files of whose content the kernel may have pages that are not so any more."""

    # -- what the kernel says ----------------------------------------------------------------------

    def note_lookup(self, fid: Fid) -> None:
        """The kernel is told of *fid* once more."""
        self._lookups[fid] = self._lookups.get(fid, 0) + 1

    def note_forget(self, fid: Fid, times: int) -> None:
        """The kernel has forgotten *fid* as often as it was told of it."""
        left = self._lookups.get(fid, 0) - times
        if left > 0:
            self._lookups[fid] = left
        else:
            self._lookups.pop(fid, None)
            self._spoilt.discard(fid)

    def __contains__(self, fid: object) -> bool:
        """Returns True if the kernel was told of *fid* by this process, and will say when it
        forgets it. (It knows the root without ever asking.)"""
        return fid in self._lookups or fid == ROOT_FID

    # -- what has changed --------------------------------------------------------------------------

    def invalidate(self, operation: Operation) -> None:
        """*operation* was applied."""
        for fid in changed_fids(operation):
            if self._everything or fid in self:
                try:
                    pyfuse3.invalidate_inode(fid, attr_only=True)
                except OSError:
                    continue  # it does not know it
                self._changed.add(fid)
                if operation.kind in _CONTENT:
                    self._spoilt.add(fid)

    def opened(self, fid: Fid) -> bool:
        """Somebody opens *fid*: whether the kernel may keep its pages."""
        if fid not in self._spoilt:
            return True
        self._spoilt.discard(fid)
        return False

    def recall(self) -> None:
        """Have delegations of what has changed given back."""
        if self._changed:
            changed, self._changed = self._changed, set()
            self._recall(changed)


def is_known(fid: Fid) -> bool:
    """Returns True if the kernel has *fid* in memory. What it says to forget may be of an earlier
    time: it lets requests pass that, and may have looked the file up again before it was removed.
    The attributes alone, which it then asks for again: cannot block."""
    try:
        pyfuse3.invalidate_inode(fid, attr_only=True)
    except FileNotFoundError:
        return False
    return True
