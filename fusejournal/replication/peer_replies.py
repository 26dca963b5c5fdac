"""The answers of a node to an admin who asks about its peers, as they are sent (peer_commands.py)
and read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fusejournal.control.reply import Reply, ReportedState
from fusejournal.replication.status import PeerInfo
from fusejournal.wire.code_state import CodeState


@dataclass(frozen=True, kw_only=True)
class PeerAdded(Reply):
    """A peer that was added, or that was there."""

    OMITTED: ClassVar[frozenset[str]] = frozenset({"insecure"})
    NESTED: ClassVar[Mapping[str, type[Reply]]] = {"peer": PeerInfo}

    added: bool
    """False where all was so before."""
    insecure: bool | None = None
    """True where the layer ships without TLS, and needs no pairing; None where none runs."""
    peer: PeerInfo


@dataclass(frozen=True, kw_only=True)
class PeerRemoved(Reply):
    """A peer that was removed, as it was."""

    NESTED: ClassVar[Mapping[str, type[Reply]]] = {"peer": PeerInfo}

    peer: PeerInfo


@dataclass(frozen=True, kw_only=True)
class PeerChanged(Reply):
    """A peer that was paused, or goes on."""

    NESTED: ClassVar[Mapping[str, type[Reply]]] = {"peer": PeerInfo}

    changed: bool
    peer: PeerInfo


@dataclass(frozen=True, kw_only=True)
class PeerList(Reply):
    """This node, which only a running layer knows, and its peers by name."""

    NESTED: ClassVar[Mapping[str, type[Reply]]] = {"peers": PeerInfo}

    node: str | None = None
    fingerprint: str | None = None
    peers: tuple[PeerInfo, ...]


@dataclass(frozen=True, kw_only=True)
class OpenedCode(Reply):
    """A code that was given out."""

    id: int
    code: str
    node: str
    fingerprint: str
    listen: str
    """The address where the node listens."""
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class PairingState(Reply):
    """The state of a code that was given out."""

    OMITTED: ClassVar[frozenset[str]] = frozenset({"peer"})
    NESTED: ClassVar[Mapping[str, type[Reply] | type[ReportedState]]] = {
        "state": CodeState,
        "peer": PeerInfo,
    }

    state: CodeState
    seconds_left: float = 0
    wrong_tries: int = 0
    log: tuple[str, ...] = ()
    """The last lines about what was tried."""
    logged: int = 0
    """The number of all lines there were."""
    peer: PeerInfo | None = None
    """The peer that was paired by it."""


@dataclass(frozen=True, kw_only=True)
class PairedWith(Reply):
    """The outcome of using a code: the peer, and what it calls itself."""

    NESTED: ClassVar[Mapping[str, type[Reply]]] = {"peer": PeerInfo}

    peer: PeerInfo
    node: str
