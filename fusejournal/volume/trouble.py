"""Troubles: the things that are wrong with a volume, each with its kind, which programs go by, and
its sentence, which people read.

A trouble is made where its state arises, and goes to status, metrics, alerts and page as it is:
nothing reads a kind back out of a sentence. The values of kinds stay as they are, because scripts
and the keys of alerts have them. ``MANUAL.md`` lists them. Pure."""

from dataclasses import dataclass
from typing import ClassVar

from fusejournal.control.reply import Reply, ReportedState
from fusejournal.errors import JournalDamagedError, JournalVersionError


class TroubleKind(ReportedState):
    """The kinds of troubles."""

    # Changes are refused.
    FAILED = "failed"
    FENCED = "fenced"
    LOST_PAGE = "lost-page"
    NO_SPACE = "no-space"
    # Space, clock, process.
    LOW_SPACE = "space"
    COMPRESSION = "compression"
    CLOCK = "clock"
    LIMITS = "limits"
    OPEN_BACKING = "open-backing"
    MOUNT_OPTIONS = "mount-options"
    # Journal and backing, as the start has found them.
    DAMAGE = "damage"
    NEWER = "newer"
    UNREADABLE = "unreadable"
    UNRECOVERED = "unrecovered"
    UNFINISHED_IMPORT = "import"
    STORE_AWAY = "store-away"
    MISSING_FILES = "missing-files"
    SET_ASIDE = "set-aside"
    LOST_IMPORTS = "lost-imports"
    SCRUB = "scrub"
    # A volume without a layer, or whose layer is not live yet.
    WAITING = "waiting"
    LAYER = "layer"
    UNCLEAN = "unclean"
    REJOIN = "rejoin"
    COPY = "copy"
    # Peers.
    PEER_AWAY = "peer-away"
    PEER_FULL = "peer-full"
    PEER_FAILED = "peer-failed"
    PAUSED = "paused"
    DIVERGED = "diverged"
    REFUSED = "refused"
    NEEDS_COPY = "needs-copy"
    LOST_ENTRIES = "lost-entries"
    RUNS_TWICE = "runs-twice"
    NOT_TAKEN_BACK = "not-taken-back"
    OLDER_COPY = "older-copy"
    MIRRORS = "mirrors"
    QUORUM = "quorum"
    MEMBERS = "members"
    PRIMARY_AWAY = "primary-away"
    # Changes of the role.
    HANDOFF = "handoff"
    HOOK = "hook"
    # Versions.
    NO_STORE = "no-store"
    VERSIONS = "versions"
    UNREADABLE_VERSIONS = "unreadable-versions"
    LATE_VERSION = "late-version"
    OTHER = "other"
    """Anything, from a layer of a version before, which says no kinds."""


@dataclass(frozen=True)
class Trouble(Reply):
    """One thing that is wrong. ``text`` is a line for people, and changes while the trouble is
    there; ``about`` names the peer of a kind that each peer may have."""

    OMITTED: ClassVar[frozenset[str]] = frozenset({"about"})
    NESTED: ClassVar = {"kind": TroubleKind}

    kind: TroubleKind
    text: str
    about: str | None = None

    def __str__(self) -> str:
        return self.text

    @classmethod
    def of_damage(cls, error: JournalDamagedError) -> "Trouble":
        """Returns the trouble that *error* is, which names what of the journal cannot be read."""
        is_newer = isinstance(error, JournalVersionError)
        kind = TroubleKind.NEWER if is_newer else TroubleKind.DAMAGE
        return cls(kind, f"{error.verdict}: {error}")
