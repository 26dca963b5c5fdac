"""Keeps account of what the kernel remembers of a mirror's tree, and drops what is out of date.

The kernel is asked to keep attributes for long, because all changes come through the mount. On a
mirror they do not: the applier reports each here, right after it is applied. Of what the kernel
knows (it says when it looks a fid up, and when it forgets it) the attributes are then taken from
it. That cannot block, and is enough: with the attributes it has to ask for, the kernel sees that
the mtime is another one and drops a file's pages by itself. Where the mtime was set back to what it
was, it cannot see that: so the next process that opens a file that has changed has the kernel drop
its pages. A mirror that no user reads costs nothing. (A process that has mapped a file sees what
has changed when a process next asks for its attributes or reads it; one that has it open, after a
change that set the mtime back, when a process next opens it.)

The account is of so many files at the most. Beyond that, and where the kernel knows files from a
process before this one, it is asked each time whether it knows one; and where more files than that
are not as it may have them, all count as such.

Names are not kept by the kernel at all on a mirror. To take a name away is to wait for requests in
progress, which this process answers: where it dies meanwhile, the kernel would wait for ever.

Where the volume is exported, NFSv4 clients may hold delegations, which promise that no one else
changes a file. They are recalled by a process of its own (nfs/delegations.py), for the same reason.

Belongs to the event loop. Source: Documentation/filesystems/fuse.rst; fs/fuse/inode.c,
fuse_reverse_inval_inode, fuse_change_attributes; fs/fuse/file.c, fuse_cache_read_iter."""

from collections.abc import Callable

import pyfuse3

from fusejournal.layer.lost_replies import changed_fids
from fusejournal.operations import WRITING_KINDS, Operation
from fusejournal.types import ROOT_FID, Fid

_ACCOUNT_MAX = 200_000
"""The number of files of which an account is kept: some 15 MiB."""


class KernelCache:
    """The account of one mount. *recall* is given the fids of files whose content or attributes
    have changed. *everything*: the mount was taken over, and the kernel may know any fid."""

    def __init__(self, recall: Callable[[set[Fid]], None], everything: bool) -> None:
        self._recall = recall
        self._asks = everything
        """True if no account is kept of what the kernel knows: it is asked each time."""
        self._lookups: dict[Fid, int] = {}
        self._changed: set[Fid] = set()
        self._spoilt: set[Fid] = set()
        """Files of whose content the kernel may have pages that are not so any more."""
        self._all_spoilt = False
        """True if that may be any file."""

    # -- what the kernel says ----------------------------------------------------------------------

    def note_lookup(self, fid: Fid) -> None:
        """The kernel gets *fid* once more."""
        if self._asks:
            return
        self._lookups[fid] = self._lookups.get(fid, 0) + 1
        if len(self._lookups) > _ACCOUNT_MAX:
            self._asks = True
            self._lookups.clear()

    def note_forget(self, fid: Fid, times: int) -> None:
        """The kernel has forgotten *fid* as often as it got it."""
        left = self._lookups.get(fid, 0) - times
        if left > 0:
            self._lookups[fid] = left
            return
        self._lookups.pop(fid, None)
        if fid in self._spoilt and not (self._asks and fid in self):
            self._spoilt.discard(fid)

    def __contains__(self, fid: object) -> bool:
        """Returns True if the kernel knows *fid*, and will report when it forgets it. (It knows the
        root without ever asking.)"""
        if self._asks:
            assert isinstance(fid, int)
            return _is_there(Fid(fid))
        return fid in self._lookups or fid == ROOT_FID

    # -- what has changed --------------------------------------------------------------------------

    def invalidate(self, operation: Operation) -> None:
        """*operation* was applied."""
        for fid in changed_fids(operation):
            if (self._asks or fid in self) and _is_there(fid):
                self._changed.add(fid)
                if operation.kind in WRITING_KINDS:
                    self._note_spoilt(fid)

    def _note_spoilt(self, fid: Fid) -> None:
        if not self._all_spoilt:
            self._spoilt.add(fid)
            if len(self._spoilt) > _ACCOUNT_MAX:
                self._all_spoilt = True
                self._spoilt.clear()

    def opened(self, fid: Fid) -> bool:
        """Notes an open of *fid*. Returns True if the kernel may keep its pages."""
        if self._all_spoilt:
            return False
        if fid not in self._spoilt:
            return True
        self._spoilt.discard(fid)
        return False

    def recall(self) -> None:
        """Have delegations of what has changed given back."""
        if self._changed:
            changed, self._changed = self._changed, set()
            self._recall(changed)


def _is_there(fid: Fid) -> bool:
    """Returns True if the kernel has *fid* in memory, and takes the attributes from it."""
    try:
        return is_known(fid)
    except OSError:
        return False  # the mount is gone


def is_known(fid: Fid) -> bool:
    """Returns True if the kernel has *fid* in memory. What it says to forget may be of an earlier
    time: it lets requests pass that, and may have looked the file up again before it was removed.
    The attributes alone, which it then asks for again: cannot block."""
    try:
        pyfuse3.invalidate_inode(fid, attr_only=True)
    except FileNotFoundError:
        return False
    return True
