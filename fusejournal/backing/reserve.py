"""The space that a file system keeps back for root, which users' changes must not take.

The layer is root, and ext4 gives what it keeps back to a caller with root's file-system uid. So
while space is short a user's change is applied with the user's own: the backing then decides as it
would without a layer. Capabilities stay as they are, because permissions are the kernel's matter
above. To change the uid costs 12 microseconds, so it is only done near the reserve; how near is
asked once a second, or after as many bytes as cannot have brought it there (0.7 microseconds).

Called from the event loop's thread only. Source: setfsuid(2), capabilities(7) (securebits),
statvfs(3); the kernel's fs/ext4/balloc.c, ext4_has_free_clusters."""

import os

_NEAR_BYTES = 64 << 20
_ASK_AGAIN_NS = 10**9
_CHANGE_BYTES = 64 << 10
"""More than a change takes beside its data."""


class RootReserve:
    """The reserve of the file system that *root_fd* is on."""

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._left_bytes = 0
        """Bytes that may be taken before asking again."""
        self._ask_ns = 0

    def is_near(self, size: int, time_ns: int) -> bool:
        """Returns whether a change that writes *size* bytes, at *time_ns*, may come near the
        reserve."""
        self._left_bytes -= size + _CHANGE_BYTES
        if self._left_bytes < 0 or not 0 <= self._ask_ns - time_ns <= _ASK_AGAIN_NS:
            space = os.fstatvfs(self._root_fd)
            self._left_bytes = space.f_bavail * space.f_frsize - _NEAR_BYTES - size
            self._ask_ns = time_ns + _ASK_AGAIN_NS
            if space.f_bavail == space.f_bfree:
                self._left_bytes = max(self._left_bytes, _NEAR_BYTES)  # none is kept back
        return self._left_bytes < 0
