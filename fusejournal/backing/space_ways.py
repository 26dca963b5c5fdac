"""The ways of fallocate(2) that a backing's file system has.

A caller is refused what the backing cannot do, as without a layer: some programs then take another
way of their own. (An entry of another node is carried out in any case: apply_space.py.)

Source: fallocate(2), open(2) (O_TMPFILE)."""

import errno

from fusejournal.backing.limits import unnamed_file
from fusejournal.disk import calls

_NO_WAY = frozenset((errno.EOPNOTSUPP, errno.ENOSYS))
_TRIED_BYTES = 1 << 16


class SpaceWays:
    """The ways of the file system that directory *root_fd* is on. Each is tried when it is asked
    for first, on a file that has no name."""

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._known: dict[int, bool] = {}

    def has(self, flags: int) -> bool:
        """Returns whether fallocate(2) takes *flags*; True also where that cannot be tried now."""
        known = self._known.get(flags)
        if known is None:
            try:
                with unnamed_file(self._root_fd) as fd:
                    known = self._known[flags] = _takes(fd, flags)
            except OSError:
                return True  # a full disk, for instance
        return known


def _takes(fd: int, flags: int) -> bool:
    try:
        calls.fallocate("space.try", fd, 0, _TRIED_BYTES, flags)
    except OSError as error:
        if error.errno in _NO_WAY:
            return False
        raise
    return True
