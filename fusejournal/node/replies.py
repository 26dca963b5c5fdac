"""The answers of a running volume (node.py) or witness (witness_process.py) to an admin, as they
are sent and read, but for the status of a volume (volume_status.py); and those of the process for
hooks. Loads little."""

from dataclasses import dataclass
from typing import ClassVar

from fusejournal.control.reply import Reply


@dataclass(frozen=True, kw_only=True)
class Restarting(Reply):
    """A layer that begins again, with the process id that it keeps."""

    pid: int


@dataclass(frozen=True, kw_only=True)
class LayerArguments(Reply):
    """The command line by which a restart begins again, without the program."""

    arguments: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ModeFollowed(Reply):
    """The mode in which replies wait, now that the exports were looked at."""

    durability: str


@dataclass(frozen=True, kw_only=True)
class SegmentsPruned(Reply):
    """The number of segments that were removed."""

    segments: int


@dataclass(frozen=True, kw_only=True)
class Demoting(Reply):
    """A primary that becomes a mirror: the reign that it leaves, and the end of its journal."""

    reign: str
    head_seq: int


@dataclass(frozen=True, kw_only=True)
class PromotionProgress(Reply):
    """The progress of a promotion."""

    OMITTED: ClassVar[frozenset[str]] = frozenset({"left_to_apply"})

    left_to_apply: int | None = None
    """The entries that are yet to be applied; None where no mirror runs."""


@dataclass(frozen=True, kw_only=True)
class WitnessStatus(Reply):
    """The status of a witness."""

    node: str
    fingerprint: str
    listen: str
    volume: str | None
    """The volume's UUID; None before its first primary has called."""
    reign: str
    """The highest reign that it has seen."""
    begun: str
    """The highest reign that has begun."""
    primary: str | None
    """The peer that reports to it who counts, as long as it does."""
    peers: tuple[str, ...]
    failure: str | None
    """The reason why it refuses, as a full disk is."""


@dataclass(frozen=True, kw_only=True)
class HookOutcome(Reply):
    """The outcome of a hook that the process for shipped ones has run."""

    status: int
    output: str
