"""The key that keeps file handles from being made up. Pure; nothing here does I/O.

A handle on the mount, which is what nfsd gives to its clients, is a fid and a generation. Fids are
numbers in a row, so the generation has to tell a client that was given a handle from one that
guesses it: it is a keyed hash of the fid. A fid's generation never changes, and every node of the
volume tells the same, because the key lies in the header of each segment of the journal (format.py)
and goes wherever a segment goes. A volume that was begun before there were keys has none; its
generations stay 0, so that handles which its clients hold go on working.

The kernel compares generations by itself, in 32 bits, and takes the root's for 0.

Source: fs/fuse/inode.c, fuse_get_dentry and fuse_iget; fs/fuse/dir.c, fuse_lookup_name; RFC 7693
(keyed BLAKE2)."""

import os
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from fusejournal.types import ROOT_FID, Fid

HANDLE_KEY_BYTES: Final = 16
_GENERATION_BYTES: Final = 4


class HandleKey(bytes):
    """A volume's key, of HANDLE_KEY_BYTES, or none (:data:`NO_HANDLE_KEY`, which is false). It does
    not show itself where it is printed."""

    __slots__ = ()

    @classmethod
    def random(cls) -> "HandleKey":
        """A key for a new volume."""
        return cls(os.urandom(HANDLE_KEY_BYTES))

    def generation(self, fid: Fid) -> int:
        """The generation of *fid*: 1 to 2^32 - 1; 0 for the root and where there is no key."""
        if not self or fid == ROOT_FID:
            return 0
        digest = _keyed(self).copy()
        digest.update(fid.to_bytes(8, "little"))
        return int.from_bytes(digest.digest(), "little") or 1

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>" if self else "<no handle key>"

    __str__ = __repr__


@lru_cache(maxsize=16)
def _keyed(key: HandleKey) -> blake2b:
    """The hash at its beginning, of which a copy takes less than another one does."""
    return blake2b(key=key, digest_size=_GENERATION_BYTES)


NO_HANDLE_KEY: Final = HandleKey()
