"""The state of a volume as people, scripts and metrics read it: values, and no work.

It is made by the volume's layer (status.py), or, where none is running, of what is on disk
(admin/status.py). Imports little, because each process that shows it loads it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from fusejournal.backing.limits import BackingLimits
from fusejournal.control.reply import Reply, ReportedState
from fusejournal.replication.status import ReplicationStatus
from fusejournal.volume.trouble import Trouble, TroubleKind


class Condition(ReportedState):
    """The state of a volume, as people see it: by its layer, and what that says of changes
    (volume/acceptance.py)."""

    RUNNING = "running"
    READ_ONLY = "read-only"
    HANDING_OVER = "handing over"
    STARTING = "starting"
    """A process has the volume, and does not answer yet."""
    STOPPED = "stopped"
    HELD = "held"
    """The layer has died, and its mount waits for the next."""


@dataclass(frozen=True, kw_only=True)
class FlushWaits(Reply):
    """A histogram of how long callers waited for the disk, and for mirrors where they wait for
    those."""

    bounds: tuple[float, ...]
    """Upper bounds in seconds; the last bucket has none."""
    counts: tuple[int, ...]
    seconds: float
    """All waits together."""


@dataclass(frozen=True, kw_only=True)
class BranchesStatus(Reply):
    """The branches of the volume together, and their bounds, which only a running layer knows."""

    count: int
    bytes: int
    keep_bytes: int | None = None
    keep_days: float | None = None


@dataclass(frozen=True, kw_only=True)
class ScrubStatus(Reply):
    """A scrub: the one under way, or the last."""

    started: float
    """The time when it began, in seconds since 1970."""
    finished: float | None = None
    """None while it is not done."""
    phase: str
    """The part that it is at: journal, versions, tree; or done."""
    position: str = ""
    """The place in that from which it goes on."""
    files: int = 0
    """Files of the tree that were compared."""
    bytes: int = 0
    """Everything that was read back."""
    seq: int = 0
    """The entry as of which the tree was compared last."""
    faults: tuple[str, ...] = ()
    """Everything that is wrong and was not repaired, a line each."""
    repaired: int = 0
    """Files that were put right."""
    busy: int = 0
    """Files that were not compared, because each look found them changed meanwhile."""
    mended: tuple[str, ...] = ()
    """The files that were put right, and in what, a line each."""
    stored_again: int = 0
    """Chunks of versions that the store had lost, and the live tree had yet."""


@dataclass(frozen=True, kw_only=True)
class VersionStatus(Reply):
    """A volume's versions and their store, as the last look found them. Times are in
    seconds since 1970, but for those that end in ``_ns``."""

    store: str
    """A directory, or an address."""
    store_id: str
    reachable: bool | None = None
    """None before the first look."""
    reachable_since: float | None = None
    """The first look since which this is so."""
    looked: float | None = None
    """The last look."""
    error: str | None = None
    """The reason why the last work failed; None if it did not."""
    failures: int = 0
    """Works that failed, one after the other, up to now."""
    count: int = 0
    """The number of versions of this history."""
    protected: int = 0
    """The number of these versions that are protected."""
    unreadable: int = 0
    """The number of versions that cannot be read."""
    first_seq: int | None = None
    """The entry of the oldest version, and its time."""
    first_time_ns: int | None = None
    last_seq: int | None = None
    """The entry of the newest, and its time."""
    last_time_ns: int | None = None
    last_name: str = ""
    last_key: str = ""
    last_made: float | None = None
    """The moment when the last version was made."""
    last_made_by: str = ""
    """The node that made the last version."""
    made: float | None = None
    """The last time that a version was made as [versions] says, or found to be there."""
    judged_key: str = ""
    """The newest version at the last such time."""
    pruned: float | None = None
    """The last time that the layer had things pruned."""
    freed_bytes: int = 0
    """The bytes that this freed in the store, and in the journal."""
    held_by: tuple[str, ...] = ()
    """Everything that held the journal back then."""
    waiting_for: tuple[str, ...] = ()
    """The nodes for which the rest of what can be freed waited then."""
    plan: int = 0
    """The newest plan of a collection that this node knows."""
    working: str | None = None
    """The work that the layer has under way; this and what follows only where one runs."""
    working_since: float | None = None
    next_make: float | None = None
    next_prune: float | None = None


@dataclass(frozen=True, kw_only=True)
class VolumeStatus(Reply):
    """All there is to know of a volume. Fields with a default are those that only a running layer
    can fill, or only a journal that can be read; those of flushes have no key in JSON where no
    layer is running.

    In JSON the texts of the troubles are under ``degraded`` once more, as a list of strings, which
    is all that a layer of a version before has."""

    OMITTED: ClassVar[frozenset[str]] = frozenset(
        {
            "flush_seconds", "flushes", "waits", "branches", "base_seq", "base_time_ns", "scrub",
            "configuration", "versions", "export_lacks", "state_directory",
        }
    )  # fmt: skip
    NESTED: ClassVar[Mapping[str, type[Reply] | type[ReportedState]]] = {
        "state": Condition,
        "waits": FlushWaits,
        "limits": BackingLimits,
        "replication": ReplicationStatus,
        "branches": BranchesStatus,
        "scrub": ScrubStatus,
        "versions": VersionStatus,
        "troubles": Trouble,
    }

    name: str
    uuid: str
    role: str
    epoch: int | None = None
    """The epoch of the reign that the node goes by."""
    pid: int | None = None
    backing: str
    mountpoint: str
    state_directory: str | None = None
    """The directory of the journal and what belongs to it; None in what a layer reports."""
    state: Condition
    durability: str | None = None
    """The mode that is in force."""
    configuration: str | None = None
    """The file that the running layer has its configuration of; None where that is of no file, and
    from a layer of a version before."""
    exported: bool
    """True if a file exports it, or the NFS server does."""
    export_lacks: str | None = None
    """Words for what is still to be done until clients reach it; None where nothing is, where it is
    not exported, and in what a layer reports."""
    held: bool
    """True where the mount outlives its layer, for another layer to take it over."""
    live_since: float | None = None
    """The time since when it is live, in seconds since 1970; None before the mount is live."""
    head_seq: int | None = None
    durable_seq: int | None = None
    checkpoint_seq: int | None = None
    entries_per_second: float = 0.0
    journal_bytes: int = 0
    segments: int = 0
    disk_free_bytes: int
    """Space left under the state directory."""
    backing_free_bytes: int | None = None
    limits: BackingLimits | None = None
    """The limits of the backing's file system; None in a read-only mount, and without a layer."""
    flush_seconds: float | None = None
    flushes: int | None = None
    waits: FlushWaits | None = None
    replication: ReplicationStatus | None = None
    """None in a read-only mount."""
    base_seq: int | None = None
    """The journal's base: any moment from this entry on can be restored. None where it begins with
    the first entry."""
    base_time_ns: int | None = None
    """The time of that entry."""
    branches: BranchesStatus | None = None
    """Everything that is kept of histories that lost; None from a layer of a version before."""
    scrub: ScrubStatus | None = None
    """The last one, as it is on disk; None where there was none."""
    versions: VersionStatus | None = None
    """None where the volume has no store of versions, and from a layer of a version before."""
    disk_low: bool = False
    """True if the space under the state directory comes to its end."""
    repairs: tuple[str, ...] = ()
    """Everything that the start has mended, a line each."""
    troubles: tuple[Trouble, ...] = ()
    """Everything that is wrong."""

    @property
    def degraded(self) -> tuple[str, ...]:
        """Everything that is wrong, a line each."""
        return tuple(one.text for one in self.troubles)

    def has(self, kind: TroubleKind) -> bool:
        """Returns True if there is a trouble of *kind*."""
        return any(one.kind is kind for one in self.troubles)

    def with_troubles(self, troubles: Iterable[Trouble]) -> "VolumeStatus":
        """Returns it with *troubles* besides."""
        return replace(self, troubles=(*self.troubles, *troubles))

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON object, keys in the order of the fields, ``degraded`` before
        ``repairs``."""
        raw = super().to_json()
        last = {name: raw.pop(name) for name in ("repairs", "troubles")}
        return raw | {"degraded": list(self.degraded)} | last

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Does what :meth:`Reply.from_json` does. What a layer of a version before calls degraded
        are troubles of the kind OTHER."""
        if isinstance(raw, Mapping) and "degraded" in raw and "troubles" not in raw:
            found = raw["degraded"]
            if isinstance(found, list):
                found = [{"kind": TroubleKind.OTHER.value, "text": line} for line in found]
            raw = {**raw, "troubles": found}
        return super().from_json(raw)
