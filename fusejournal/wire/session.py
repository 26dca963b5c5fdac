"""The rules of a session: what follows from each message, and which is refused. Pure: no sockets
and no journal; the caller gives messages in, and carries out what is returned.

One side, the *source*, has the journal; the other, the *sink*, gets it. Mostly the source has
connected (``ship``); a primary that lost entries by a system crash connects to fetch them, and is
then the sink (``fetch``). Which message may come when, and what it leads to, is a table:
session_states.py.

A batch that comes twice is acknowledged again. One that does not follow, or of a lower reign than
was seen, ends the session with an error that names it; the connector comes back, and the
positions are compared anew: nothing is ever resumed from what one side remembers of the other.

Reigns: every greeting, BEGIN and BATCH carries the sender's, an epoch and the node that began it. A
lower epoch is refused (``fenced``), and so is the same epoch of another node, because no node can
know which of the two is right. A higher one comes to a node as a :class:`Claim`, in a greeting, its
answer or a refusal. Where :func:`is_proven` says so the node is bound by it, and has it on its disk
before it answers.

Votes: a node that is to begin a reign asks others first for their *vote* (purpose ``vote``, version
2): a mirror that gives it has that reign on its disk as the highest that it has seen, before it
answers, and takes nothing more from a primary that reigns by a lower. The answer tells where its
journal ends then. A vote is given for one reign of an epoch.

Members: from version 4 on the source sends which nodes count, and by which rule (MEMBERS), and the
sink keeps that (members.py).

Instances: a node makes a number at each start, and gives that of the start before, too. Two nodes
that have one key, as a machine and its clone, are distinguished by it (instances.py).

Versions: a session speaks the newest version that both sides do (versions.py)."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from fusejournal.types import EPOCH_MAX, Epoch, Position, Reign, Seq
from fusejournal.wire.frames import (
    Ack,
    Batch,
    Begin,
    Hello,
    Refusal,
    Welcome,
    WireError,
    uuid_of,
)
from fusejournal.wire.members import Members, members_of
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.versions import (
    MEMBERS_VERSION,
    OWN_VERSIONS,
    Versions,
    common_version,
    no_common_version,
    versions_of,
)

SHIP, FETCH = "ship", "fetch"
VOTE = "vote"
"""The purpose of a node that asks for a vote: from then on the listener takes nothing of a lower
reign."""
HANDOFF = "handoff"
"""The purpose of a primary that wants the listener to reign in its place."""
WHOLE = "whole"
"""The purpose of a mirror that copies a tree: see block_messages.py."""
OK, FULL, FAILED = "ok", "full", "failed"
PRIMARY, MIRROR, WITNESS = "primary", "mirror", "witness"
"""The words for the roles of a node that greets."""


class Claim(NamedTuple):
    """A peer's word about a reign: which it is, and the end of the peer's journal, which has
    the beginning of ``held_epoch``."""

    reign: Reign
    held_epoch: Epoch
    seq: Seq
    chain: int

    @property
    def has_begun(self) -> bool:
        """True if the peer says that it has the reign's beginning, and not only a vote for it."""
        return self.held_epoch == self.reign.epoch


class RefusedError(WireError):
    """A session goes no further, and would not the next time. *claim*: of a higher reign, where
    that is the reason."""

    def __init__(self, code: RefusalCode, reason: str, claim: Claim | None = None) -> None:
        self.code = code
        self.reason = reason
        self.claim = claim
        super().__init__(reason)

    @classmethod
    def of(cls, message: Refusal) -> "RefusedError":
        """Returns the error for the refusal *message* of the other side."""
        reign = Reign(message.epoch, message.reign_node)
        claim = Claim(reign, message.held_epoch, message.seq, message.chain)
        code = RefusalCode.of(message.code)
        return cls(code, message.reason, claim if message.epoch else None)

    def message(self) -> Refusal:
        """Returns the message by which the other side gets the refusal."""
        claim = self.claim
        if claim is None:
            return Refusal(self.code.value, self.reason)
        return Refusal(
            self.code.value, self.reason, *claim.reign, claim.held_epoch, claim.seq, claim.chain
        )


class HandshakeState(NamedTuple):
    """One side as it greets: its name, its volume (None: any), where its journal ends,
    applied or not, the highest epoch that it goes by and who began that; what its key makes it, and
    which instance of that it is; the limits of its backing, as WELCOME gives them, and the versions
    that it speaks and reads; the port where it listens (0: none), its role in a word, and its
    record of members (members.py)."""

    node: str
    uuid: UUID | None
    position: Position
    fence: Epoch
    applied_seq: Seq
    reign_node: int = 0
    node_id: int = 0
    instance: int = 0
    before: int = 0
    limits: tuple[int, ...] = ()
    versions: Versions = OWN_VERSIONS
    listen_port: int = 0
    role: str = ""
    members: tuple[int, ...] = ()

    @property
    def reign(self) -> Reign:
        """The reign that goes into each message, and that each message is held against."""
        return Reign(max(self.fence, self.position.epoch), self.reign_node)

    @property
    def claim(self) -> Claim:
        """The node's reign, and what it has of that."""
        return Claim(self.reign, *self.position)


def hello(me: HandshakeState, purpose: str, wanted_epoch: Epoch = Epoch(0)) -> Hello:
    """Returns the connector's greeting; *wanted_epoch* is the one that it asks a vote for."""
    uuid = me.uuid.bytes if me.uuid is not None else b""
    reign, position, versions = me.reign, me.position, me.versions
    return Hello(
        versions.oldest,
        uuid,
        me.node,
        purpose,
        reign.epoch,
        position.seq,
        position.chain,
        reign.node_id,
        position.epoch,
        me.node_id,
        me.instance,
        me.before,
        *versions[1:],
        me.listen_port,
        wanted_epoch,
    )


def welcome(me: HandshakeState, greeting: Hello, *, is_mirror: bool, detail: str = "") -> Welcome:
    """Returns the listener's answer; *detail* is something that the connector should know. Raises
    RefusedError, WireError."""
    _check_same(me, greeting)
    if greeting.purpose not in (SHIP, FETCH, VOTE, HANDOFF, WHOLE):
        raise WireError(f"a session for {greeting.purpose!r}")
    is_shipping = greeting.purpose == SHIP
    if is_shipping and not is_mirror:
        raise RefusedError(RefusalCode.ROLE, f"{me.node} is a primary and takes no entries")
    theirs = reign_of(greeting)
    if is_shipping or theirs.epoch >= me.reign.epoch:
        check_reign(me, theirs, greeting.node)
    uuid = me.uuid.bytes if me.uuid is not None else b""
    reign, position, versions = me.reign, me.position, me.versions
    # (One of an older version could not read so long a list.)
    is_told = not is_shipping and sends_members(me.versions, versions_of(greeting))
    return Welcome(
        versions.oldest,
        uuid,
        me.node,
        reign.epoch,
        position.seq,
        position.chain,
        me.applied_seq,
        reign.node_id,
        position.epoch,
        me.node_id,
        detail,
        *versions[1:],
        me.limits,
        me.role,
        me.members if is_told else (),
    )


def wanted_reign(me: HandshakeState, greeting: Hello) -> Reign:
    """Returns the reign that the sender of *greeting* asks *me*, a mirror, a vote for, if that may
    be given. Raises RefusedError, WireError."""
    _check_same(me, greeting)
    reign = Reign(greeting.wanted_epoch, greeting.node_id)
    if not (reign.epoch and reign.node_id):
        raise WireError(f"a vote for reign {reign}, of which there is none")
    if me.uuid is None:
        raise RefusedError(
            RefusalCode.UNINITIALIZED, f"{me.node} has no volume yet, and no vote to give"
        )
    check_reign(me, reign, greeting.node)
    return reign


def check_welcome(me: HandshakeState, theirs: Welcome) -> Welcome:
    """Returns *theirs*, which came after the greeting, if the session may go on. Raises
    RefusedError, WireError."""
    _check_same(me, theirs)
    mine, seen = me.reign, reign_of(theirs)
    if seen.epoch > EPOCH_MAX:
        raise _impossible(theirs.node, seen)
    # (Of a reign that has not begun, it may have given this very node its vote, before that ended.)
    is_word = 0 != seen.node_id == me.node_id and theirs.held_epoch < seen.epoch
    if seen.epoch > mine.epoch and not is_word:
        raise RefusedError(
            RefusalCode.FENCED,
            f"{theirs.node} has seen a primary of epoch {seen.epoch}, and this one is of "
            f"{mine.epoch}: this one is no primary any more (reign {seen})",
            claim_of(theirs),
        )
    if mine.is_rival(seen):
        raise _rival(mine, seen, theirs.node)
    return theirs


def check_asked(me: HandshakeState, theirs: Welcome) -> Welcome:
    """Returns *theirs*, of a peer that was asked before a reign begins, if it can be true. Raises
    RefusedError; WireError where it goes by an epoch that cannot be, or that none can follow."""
    _check_same(me, theirs)
    if max(theirs.epoch, theirs.held_epoch) >= EPOCH_MAX:
        raise _impossible(theirs.node, reign_of(theirs))
    members = members_of(theirs.members)
    if members is not None and members.reign.epoch > theirs.epoch:
        raise WireError(f"{theirs.node}: members of {members.reign}, which it has not seen")
    return theirs


def check_members(numbers: Sequence[int], reign: Reign) -> Members:
    """Returns the record that *numbers* are, which a source of *reign* reports. Raises
    WireError."""
    members = members_of(numbers)
    if members is None or members.reign.epoch > reign.epoch:
        raise WireError(f"members of {members.reign if members else None}, told by one of {reign}")
    return members


def sends_members(mine: Versions, theirs: Versions) -> bool:
    """Returns True if two nodes of these versions report members to each other."""
    return (common_version(mine, theirs) or 0) >= MEMBERS_VERSION


def check_followed(me: HandshakeState, theirs: Welcome) -> Welcome:
    """Returns *theirs*, of a peer that this node may follow. Raises RefusedError where that goes by
    a lower reign than this node has seen, or by another of the same epoch; WireError."""
    _check_same(me, theirs)
    check_reign(me, reign_of(theirs), theirs.node)
    return theirs


def check_reign(me: HandshakeState, theirs: Reign, node: str) -> None:
    """Raises RefusedError if *node*, which is of the reign *theirs*, may not ship to *me*;
    WireError if there can be no such reign."""
    mine = me.reign
    if theirs.epoch > EPOCH_MAX:
        raise _impossible(node, theirs)
    if theirs.epoch < mine.epoch:
        raise RefusedError(
            RefusalCode.FENCED,
            f"{node} is of epoch {theirs.epoch}, and a primary of epoch {mine.epoch} has come "
            f"after it (reign {mine})",
            me.claim,
        )
    if mine.is_rival(theirs):
        raise _rival(mine, theirs, node)


def _impossible(node: str, reign: Reign) -> WireError:
    return WireError(f"{node}: an epoch of {reign.epoch}, of which there cannot be so many")


def _rival(mine: Reign, theirs: Reign, node: str) -> RefusedError:
    return RefusedError(
        RefusalCode.FENCED,
        f"two nodes have begun epoch {mine.epoch}: {node} goes by {theirs}, and this one by {mine}"
        "; on the one that is to stay, 'fusejournal demote --force' and then 'fusejournal promote "
        "--force' begin an epoch beyond both",
    )


def claim_of(message: Hello | Welcome) -> Claim:
    """Returns the claim of the sender of *message*: the reign that it goes by."""
    return Claim(reign_of(message), message.held_epoch, message.seq, message.chain)


def is_proven(claim: Claim, mine: Reign, my_chain: int | None) -> bool:
    """Returns True if a primary that reigns by *mine* is bound by a peer's *claim* of a higher
    reign, and takes no change any more. *my_chain* is that of its own journal at the claim's seq,
    if it has that.

    A reign is there by its EPOCH entry alone: a number that was only heard of, or that cannot be,
    binds no node; nor does one that would have begun in what both journals have. (That a peer does
    not make its whole journal up, this does not show: peers are paired.)"""
    return (
        mine.epoch < claim.reign.epoch <= EPOCH_MAX
        and claim.held_epoch == claim.reign.epoch
        and my_chain != claim.chain
    )


def speaks_of_same(me: HandshakeState, greeting: Hello) -> bool:
    """Returns True if the reigns in *greeting* are those of the volume of *me*, and understood
    here. A node that has no volume yet has seen no reign of any."""
    if common_version(me.versions, versions_of(greeting)) is None:
        return False
    return me.uuid is not None and me.uuid == uuid_of(greeting.uuid)


def reign_of(message: Hello | Welcome | Begin | Batch) -> Reign:
    """Returns the reign that the sender of *message* goes by."""
    return Reign(message.epoch, message.reign_node)


def position_of(greeting: Hello | Welcome) -> Position:
    """Returns the position at which the journal of the sender of *greeting* ends."""
    return Position(greeting.epoch, greeting.seq, greeting.chain)


def _check_same(me: HandshakeState, other: Hello | Welcome) -> None:
    versions = versions_of(other)
    if common_version(me.versions, versions) is None:
        raise RefusedError(
            RefusalCode.VERSION, no_common_version(me.versions, me.node, versions, other.node)
        )
    theirs = uuid_of(other.uuid)
    if me.uuid is not None and theirs is not None and me.uuid != theirs:
        raise RefusedError(
            RefusalCode.VOLUME, f"{other.node} is of volume {theirs}, and {me.node} of {me.uuid}"
        )


class Sink:
    """The receiving side, from BEGIN on: decides which batches follow. Its place is (``seq``,
    ``chain``); ``committed_seq`` is how far the source had applied: nothing beyond may be.
    (``epoch``, ``reign_node``) is the highest reign that it has seen."""

    def __init__(self, position: Position, fence: Epoch, reign_node: int = 0) -> None:
        self.seq = position.seq
        self.chain = position.chain
        self.epoch = fence
        self.reign_node = reign_node
        self.committed_seq = Seq(0)
        self.source_head_seq = Seq(0)

    def begin(self, message: Begin) -> None:
        """Takes the BEGIN of the source. Raises WireError when it is not from here."""
        if (message.seq, message.chain) != (self.seq, self.chain):
            raise WireError(f"a beginning at {message.seq}, and this journal ends with {self.seq}")
        self._check_reign(reign_of(message))
        self.source_head_seq = message.head_seq
        self.committed_seq = min(message.committed_seq, self.seq)

    def take(self, batch: Batch) -> bool:
        """Returns True if *batch* is to be appended; False for one that has been. Raises
        WireError."""
        self._check_reign(reign_of(batch))
        if not 0 < batch.first_seq <= batch.last_seq:
            raise WireError(f"a batch of entries {batch.first_seq} to {batch.last_seq}")
        if batch.applied_seq < batch.last_seq:
            raise WireError(
                f"a batch up to {batch.last_seq}, of which only {batch.applied_seq} is applied"
            )
        if batch.last_seq <= self.seq:
            return False
        if (batch.first_seq, batch.chain_before) != (self.seq + 1, self.chain):
            raise WireError(
                f"entries {batch.first_seq} to {batch.last_seq} do not follow {self.seq}"
            )
        return True

    def appended(self, batch: Batch) -> None:
        """Notes that *batch* is in the journal."""
        self.seq, self.chain = batch.last_seq, batch.chain
        self.source_head_seq = max(self.source_head_seq, batch.head_seq)
        # A batch's last entry is known to have held: an entry's VOID is in the same batch.
        self.committed_seq = batch.last_seq

    @property
    def reign(self) -> Reign:
        """The highest reign that it has seen."""
        return Reign(self.epoch, self.reign_node)

    def _check_reign(self, reign: Reign) -> None:
        if reign.epoch > EPOCH_MAX:
            raise _impossible("the sender", reign)
        if reign.epoch < self.epoch:
            raise RefusedError(
                RefusalCode.FENCED,
                f"a sender of epoch {reign.epoch}, and {self.epoch} has come after it",
            )
        if self.reign.is_rival(reign):
            raise _rival(self.reign, reign, "the sender")
        if reign.epoch > self.epoch or reign.node_id:
            self.epoch, self.reign_node = reign


class InFlight(NamedTuple):
    """A batch that was sent and is not acknowledged."""

    last_seq: Seq
    bytes: int
    since: float


class Source:
    """The sending side, from BEGIN on: knows what is in flight, and what the sink has. All seqs
    only grow; times are in seconds by any clock."""

    def __init__(self, seq: Seq, window_bytes: int) -> None:
        self.shipped_seq = seq
        self.appended_seq = seq
        self.acked_seq = Seq(0)
        self.applied_seq = Seq(0)
        self.state = OK
        self.detail = ""
        self.in_flight_bytes = 0
        self._in_flight: deque[InFlight] = deque()
        self._window_bytes = window_bytes

    @property
    def has_room(self) -> bool:
        """True if another batch may be sent."""
        return self.state == OK and self.in_flight_bytes < self._window_bytes

    @property
    def batches_in_flight(self) -> int:
        """The number of batches that are not acknowledged."""
        return len(self._in_flight)

    def sent(self, last_seq: Seq, size: int, now: float) -> None:
        """Notes that a batch of *size* bytes, up to *last_seq*, was sent."""
        self._in_flight.append(InFlight(last_seq, size, now))
        self.in_flight_bytes += size
        self.shipped_seq = last_seq

    def acked(self, ack: Ack) -> None:
        """Takes *ack*. Raises WireError where it acknowledges what was never sent, or cannot be."""
        if not ack.applied_seq <= ack.durable_seq <= ack.appended_seq <= self.shipped_seq:
            raise WireError(
                f"acknowledges {ack.appended_seq}, {ack.durable_seq}, {ack.applied_seq}, and "
                f"{self.shipped_seq} were sent"
            )
        if ack.state not in (OK, FULL, FAILED):
            raise WireError(f"a state {ack.state!r}")
        self.appended_seq = max(self.appended_seq, ack.appended_seq)
        self.acked_seq = max(self.acked_seq, ack.durable_seq)
        self.applied_seq = max(self.applied_seq, ack.applied_seq)
        self.state, self.detail = ack.state, ack.detail
        while self._in_flight and self._in_flight[0].last_seq <= self.acked_seq:
            self.in_flight_bytes -= self._in_flight.popleft().bytes
