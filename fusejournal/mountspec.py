"""What the command line asks of a node, and how the node talks back while it starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fusejournal.config import Config


@dataclass(frozen=True)
class MountSpec:
    """One mount. Paths are absolute and resolved; ``mount_flags`` out of nosuid, nodev, noexec."""

    name: str
    state_dir: Path
    backing: Path
    mountpoint: Path
    config: Config
    read_only: bool
    mount_flags: frozenset[str]
    listen_asked: str | None = None
    """What the command line says of where to listen: that is remembered."""

    @property
    def role(self) -> str | None:
        """``primary`` or ``mirror``; None: whatever the volume is."""
        return self.config.volume.role


class Reporter(Protocol):
    """Told by the node how its start goes."""

    def progress(self, stage: str, done: int, total: int | None, unit: str) -> None:
        """*done* of *total* (None: unknown) *unit*s of *stage*; called often."""

    def warning(self, text: str) -> None:
        """Something the admin should know, one line."""

    def ready(self) -> None:
        """The mount is live."""
