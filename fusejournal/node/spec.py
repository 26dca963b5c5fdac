"""The specification of a mount, which the command line gives to a node, and the reports that the
node gives back while it starts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fusejournal.address import check_peer_name, parse_address, parse_remote
from fusejournal.config import Config, load_config
from fusejournal.errors import ConfigError, UsageError
from fusejournal.types import NOWHERE


@dataclass(frozen=True)
class MountSpec:
    """One mount. Paths are absolute and resolved; ``mount_flags`` out of those of
    disk/mount_flags.py, but ro."""

    name: str
    state_dir: Path
    backing: Path
    mountpoint: Path
    config: Config
    read_only: bool
    mount_flags: frozenset[str]
    listen_asked: str | None = None
    """The place to listen at, as the command line says: that is remembered."""
    config_file: Path | None = None
    """The file that *config* is of, before what the command line changes in it, if there is one."""
    adopt: bool = False
    """True if files that bear the mark of another volume, which is no more, become this one's."""

    import_bytes: int | None = None
    """An import ends with ImportPausedError when it has come to so many bytes; None: it does
    not."""

    @property
    def role(self) -> str | None:
        """``primary`` or ``mirror``; None: whatever the volume is."""
        return self.config.volume.role


def load_checked(path: Path | None) -> Config:
    """Does what :func:`load_config` does, and looks at all addresses. Raises ConfigError."""
    config = load_config(path)

    def check(key: str, parse: Callable[[str], object], value: str) -> None:
        try:
            parse(value)
        except UsageError as error:
            raise ConfigError(f"{path}: {key}: {error}") from None

    if config.replication.listen not in (None, NOWHERE):
        check("replication.listen", parse_address, config.replication.listen)
    if config.metrics.listen is not None:
        check("metrics.listen", parse_address, config.metrics.listen)
    for name, address in config.replication.peers.items():
        check("replication.peers", check_peer_name, name)
        check(f"replication.peers.{name}", parse_remote, address)
    return config


class Reporter(Protocol):
    """The one to whom the node reports how its start goes."""

    def progress(self, stage: str, done: int, total: int | None, unit: str) -> None:
        """*done* of *total* (None: unknown) *unit*s of *stage*; called often."""

    def warning(self, text: str) -> None:
        """Something the admin should know, one line."""

    def ready(self, imported: int) -> None:
        """The mount is live; of what was in the backing, *imported* files and directories are new
        to the journal."""
