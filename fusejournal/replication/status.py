"""The state of replication as people, scripts and metrics read it: values, and no work.

Rates are of the last seconds. Lags in seconds are upper bounds (lag.py)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fusejournal.backing.limits import BackingLimits
from fusejournal.control.reply import Reply, ReportedState
from fusejournal.replication.states import MirrorState, PeerState


@dataclass(frozen=True, kw_only=True)
class PeerInfo(Reply):
    """The facts that a node keeps about a peer, mounted or not."""

    name: str
    address: str | None
    """The address that it listens at; None for one that only connects to this node."""
    fingerprint: str | None
    """The fingerprint of its certificate; None until the two are paired."""
    paused: bool
    needs_copy: str | None
    """The reason why the journal alone does not bring it up to date any more."""
    acked_seq: int
    return_address: str | None = None
    """The address where it is shipped to once this node is the primary."""


@dataclass(frozen=True, kw_only=True)
class PeerStatus(Reply):
    """Shipping to one peer. Counts are since the node began."""

    NESTED: ClassVar[Mapping[str, type[Reply] | type[ReportedState]]] = {
        "state": PeerState,
        "limits": BackingLimits,
    }

    name: str
    address: str | None
    state: PeerState
    """The state as the shipper has it."""
    retry_in_seconds: float | None
    shipped_seq: int
    acked_seq: int
    """The seq up to which the peer has everything on disk."""
    applied_seq: int
    lag_entries: int
    lag_bytes: int
    lag_seconds: float
    entries_per_second: float
    bytes_per_second: int
    eta_seconds: float | None
    batches: int
    batches_in_flight: int
    content_bytes: int
    """The size of entries that were sent, before compression."""
    sent_bytes: int
    """The size of entries that were sent, after compression."""
    compress_level: int
    resent_entries: int
    sessions: int
    errors: int
    last_error: str | None
    advice: str | None
    """Advice about the error."""
    notice: str | None
    """A notice of the peer, which this side should know."""
    protocol_version: int | None = None
    """The version that the two speak; None before they have."""
    limits: BackingLimits | None = None
    """The limits of the peer's backing; None where it has not given them."""
    notes: tuple[str, ...] = ()
    """Facts about the peer that are no fault yet, a line each."""


@dataclass(frozen=True, kw_only=True)
class MirrorStatus(Reply):
    """Receiving from the primary, on a mirror."""

    NESTED: ClassVar[Mapping[str, type[Reply] | type[ReportedState]]] = {"state": MirrorState}

    primary: str | None
    """The node that sends, or sent last."""
    address: str | None
    """None while it is not connected."""
    state: MirrorState
    source_head_seq: int
    """The last entry of the primary, as far as it has reported."""
    received_seq: int
    durable_seq: int
    applied_seq: int
    lag_entries: int
    lag_seconds: float
    entries_per_second: float
    bytes_per_second: int
    eta_seconds: float | None
    heard_seconds_ago: float | None
    received_bytes: int
    batches: int
    duplicates: int
    """Batches that were here already."""
    last_error: str | None
    trouble: str | None


@dataclass(frozen=True, kw_only=True)
class ReplicationStatus(Reply):
    """One node's place among others. ``mirror`` is only there on a mirror."""

    OMITTED: ClassVar[frozenset[str]] = frozenset({"mirror"})
    NESTED: ClassVar[Mapping[str, type[Reply] | type[ReportedState]]] = {
        "peers": PeerStatus,
        "mirror": MirrorStatus,
    }

    node: str
    reign: str
    instance: str
    listen: str | None
    """The address that other nodes connect to; None: there is none."""
    insecure: bool
    fingerprint: str
    mirrors: int
    """The number of mirrors whose disks a flush waits for."""
    mirrors_seq: int | None
    """The seq up to which as many mirrors that are connected have everything; None where none is
    waited for."""
    mirrors_waiting: int
    """The number of callers that wait for mirrors now."""
    peers: tuple[PeerStatus, ...]
    mirror: MirrorStatus | None = None
