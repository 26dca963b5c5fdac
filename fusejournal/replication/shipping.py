"""The parts of a node that all its shippers share."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from fusejournal.config import ReplicationConfig
from fusejournal.replication.append_notifier import AppendNotifier
from fusejournal.replication.lag import LagMeter
from fusejournal.replication.member_record import MemberRecord
from fusejournal.replication.membership import Membership
from fusejournal.replication.peers import PeerBook
from fusejournal.replication.quorum import Quorum
from fusejournal.types import Seq
from fusejournal.volume.volume import Volume
from fusejournal.wire.identity import Identity
from fusejournal.wire.log_limiter import LogLimiter
from fusejournal.wire.session import Claim, HandshakeState


@dataclass
class Shipping:
    """The volume, the node and its configuration, as shippers need them."""

    volume: Volume
    me: Callable[[], HandshakeState]
    append_notifier: AppendNotifier
    quorum: Quorum
    config: ReplicationConfig
    identity: Identity
    book: PeerBook
    insecure: bool
    lag_meter: LagMeter
    log_limiter: LogLimiter
    on_claim: Callable[[Claim, str], Awaitable[None]]
    """Receives what a peer says of a higher reign, and the peer's name."""
    turn_back: Callable[[str], Awaitable[None]]
    """Has the peer that it is given by name not be shipped to any more, as long as this node is no
    primary. Raises FusejournalError where that cannot be written down."""
    members: MemberRecord
    membership: Membership | None
    """None on a mirror, which tells what its primary has told."""
    nodes: dict[int, str] = field(default_factory=dict)
    """The peers that are shipped to now, by the nodes that they are."""

    def note_witness(self, name: str, is_witness: bool) -> None:
        """The peer *name* reports whether it *is_witness*."""
        if self.book.note_witness(name, is_witness) and self.membership is not None:
            self.membership.look_again()

    @property
    def directory(self) -> Path:
        """The journal's directory."""
        return self.volume.journal.directory

    @property
    def applied_seq(self) -> Seq:
        """The seq up to which entries may be shipped."""
        return self.volume.catalog.applied_seq
