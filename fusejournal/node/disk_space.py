"""The space of the file system with a state directory. That it comes to its end is reported early
enough to do something about it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fusejournal.volume.trouble import Trouble, TroubleKind

_SHARE = 0.05
_BYTES_MAX = 4 << 30


class DiskSpace(NamedTuple):
    """The space of a file system, in bytes: what is left to others than root, and all of it."""

    free_bytes: int
    size_bytes: int

    @property
    def is_low(self) -> bool:
        """True if less than a twentieth of it is left, and less than 4 GiB."""
        return self.free_bytes < min(_SHARE * self.size_bytes, _BYTES_MAX)


def disk_space(place: Path) -> DiskSpace:
    """Returns the space of the file system at *place*. Raises OSError."""
    space = os.statvfs(place)
    return DiskSpace(space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize)


def low_disk(volume: str, place: Path, space: DiskSpace) -> Iterator[Trouble]:
    """Yields the trouble with *space*, at *place*, for the status of *volume*, where it is low."""
    if space.is_low:
        yield Trouble(
            TroubleKind.LOW_SPACE,
            f"only {space.free_bytes / (1 << 20):,.0f} MiB are left under {place}, and changes "
            f"are refused without any: make space, or see 'fusejournal prune {volume} --dry-run'",
        )
