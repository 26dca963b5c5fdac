"""Asks all peers at once, shipped to or not: where their journals end, or for their vote for a
reign that this node is to begin (wire/session.py).

A reign is begun with the votes of so many nodes (wire/members.py) that no two can have it for
one epoch, and that no other primary finds mirrors enough any more to acknowledge something. That
holds for a mirror that is promoted, and for a primary whose system crashed or whose page is lost:
while it was away, another may have been promoted.

Used from the event loop's thread."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from fusejournal.errors import FusejournalError
from fusejournal.replication.common_ancestor import first_error
from fusejournal.replication.local_node import LocalNode
from fusejournal.replication.peers import Peer
from fusejournal.types import Epoch, Reign
from fusejournal.wire.frames import Hello, Welcome
from fusejournal.wire.members import Members, VoteCount, members_of, newest, votes_needed
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import (
    FETCH,
    MIRROR,
    PRIMARY,
    VOTE,
    WITNESS,
    HandshakeState,
    RefusedError,
    check_asked,
    hello,
    reign_of,
)
from fusejournal.wire.session_connection import SessionConnection
from fusejournal.wire.session_states import Side
from fusejournal.wire.transport import connect

_AHEAD_MAX: Final = 4096
"""A peer that reports an epoch so far ahead is not believed."""
ASK_SECONDS: Final = 5.0
"""The time that a peer may take to answer: one that is away is not waited for."""
_OPEN_SECONDS: Final = 2.0
"""The time that its machine may take to answer at all: one that is off never does. (A packet that
was lost is sent again after one second.)"""
_SILENT_SECONDS: Final = 1.0
"""The same where it has not answered just before."""


@dataclass(frozen=True)
class PeerAnswer:
    """The answer of one peer: ``welcome``, or else ``error`` says why there is none. ``is_refusal``
    is True for a peer that was reached and will not."""

    peer: str
    welcome: Welcome | None = None
    error: str = ""
    is_refusal: bool = False
    given_epoch: Epoch = Epoch(0)
    """The epoch for which it has given another node its vote, where it refuses for that."""

    @property
    def members(self) -> Members | None:
        """The record of members that it has. Raises WireError where none can be so; those of
        :func:`ask_votes` and :func:`ask_positions` can."""
        return members_of(self.welcome.members) if self.welcome is not None else None


async def ask_positions(local: LocalNode, me: HandshakeState) -> list[PeerAnswer]:
    """Returns what each peer of *local*, which greets as *me*, has. Cancelling is harmless."""
    # Not by a reign that it has asked votes for: a node that gave another its vote would not
    # answer.
    asking = me._replace(fence=me.position.epoch, reign_node=0)
    return await _ask_all(local, me, hello(asking, FETCH))


async def ask_votes(
    local: LocalNode, me: HandshakeState, reign: Reign, silent: Collection[str] = ()
) -> list[PeerAnswer]:
    """Returns the vote of each peer for *reign*, or why it gives none. Those who were *silent* just
    before are not waited for as long once more. Cancelled, some may have been given."""
    return await _ask_all(local, me, hello(me, VOTE, reign.epoch), silent)


async def has_votes(
    local: LocalNode,
    me: HandshakeState,
    reign: Reign,
    *,
    heard: Collection[str],
    parted: Collection[str] = (),
    has_lost: bool,
    report: Callable[[str], None],
    given: Callable[[Epoch], None] = lambda _: None,
) -> bool:
    """Ask for the votes that the primary *local*, which greets as *me*, needs to begin *reign*.
    Returns True if mirrors enough have given theirs; also where it goes on without mirrors anyway,
    because then none of them is promoted without a person's word that this node is off; and where
    the configuration has *reign* as ``begin_alone``, which is reported.

    Args:
        local, me, reign: this node, what it greets with, and the reign that it would begin.
        heard: the peers of which it is known what they hold, and whose votes count.
        parted: those of them that have a history of a lower reign, whatever is in it.
        has_lost: entries that this node had acknowledged may be gone from it.
        report: is called with a line that says what is lacking.
        given: is called with an epoch that another node had asked votes for, which came to nothing:
            one beyond it may be asked for.

    No vote is asked for where it shows before that they are not enough, as in Raft's pre-vote
    (Ongaro 2014, section 9.6): two nodes that start, and lack one another, would take each other's
    votes away, for higher and higher reigns, and no person's word could name one.

    Cancelled, some votes may have been given."""
    if not _needs_votes(local):
        return True
    count = _Count(local, me, heard, parted, has_lost)
    answers = await ask_positions(local, me)
    tally = count.tally(
        [one for one in answers if _is_voter(one) and _given(one, reign) is None], answers
    )
    if tally.lacking <= 0 or local.may_begin == reign:
        silent = [one.peer for one in answers if one.welcome is None and not one.is_refusal]
        answers = await ask_votes(local, me, reign, silent)
        tally = count.tally(answers, answers)
    if tally.lacking <= 0:
        return True
    votes, needed, _ = tally
    if local.may_begin == reign:
        report(
            f"reign {reign} begins with the votes of {votes} nodes, and not of the {needed} that "
            "it needs: begin_alone says that no other was promoted"
        )
        return True
    for one in answers:
        other = _given(one, reign)
        epoch = other.epoch if other is not None else one.given_epoch
        if reign.epoch <= epoch < reign.epoch + _AHEAD_MAX:
            given(epoch)
    why_not = _why_not(local.members.current, answers, reign)
    report(
        f"reign {reign} begins with the votes of {needed} nodes, and {votes} give theirs: "
        f"waiting, because another may have been promoted meanwhile{why_not}; where those are "
        "gone for good, and none was promoted, stop this start, and mount again with "
        f'begin_alone = "{reign}" under [replication]'
    )
    return False


@dataclass(frozen=True)
class _Count:
    """Counts votes: see :func:`has_votes`."""

    local: LocalNode
    me: HandshakeState
    heard: Collection[str]
    parted: Collection[str]
    has_lost: bool

    def tally(self, given: Sequence[PeerAnswer], answers: Sequence[PeerAnswer]) -> VoteCount:
        """Returns what is lacking most with the votes *given*, by the newest record of members that
        any of *answers* has, which is noted."""
        local, me = self.local, self.me
        members = newest([local.members.current, *(one.members for one in answers)])
        counted = [
            one
            for one in given
            if one.peer in self.heard
            and _has_no_more(one, me, self.parted)
            and not has_lost_entries(members, one)
        ]
        if members is not None:
            local.members.note_newest([members])
            nodes = {one.welcome.node_id for one in counted if one.welcome is not None}
            nodes.add(me.node_id)
            tallies = [rule.tally(nodes, has_lost=self.has_lost) for rule in members.rules]
            return max(tallies, key=lambda one: one.lacking)
        mirrors = local.config.mirrors
        # The book knows what is acknowledged as of now and then: a peer that is shipped to may have
        # more.
        voters = {peer.name for peer in local.book.list() if peer.address or peer.acked_seq}
        needed = votes_needed(1 + len(voters), mirrors, blocks=True, has_lost=self.has_lost)
        return VoteCount(1 + sum(one.peer in voters for one in counted), needed, 1 + len(voters))


def _is_voter(answer: PeerAnswer) -> bool:
    """Returns True if the peer that gives *answer* is a mirror or a witness."""
    return answer.welcome is not None and answer.welcome.role in (MIRROR, WITNESS)


def _given(answer: PeerAnswer, reign: Reign) -> Reign | None:
    """Returns the reign that *reign* has to be beyond, because the peer that gives *answer* has
    given its vote for that; None where it has not."""
    if answer.welcome is None or not _is_voter(answer):
        return None
    theirs = reign_of(answer.welcome)
    return theirs if theirs.epoch > reign.epoch or theirs.is_rival(reign) else None


def _why_not(members: Members | None, answers: Sequence[PeerAnswer], reign: Reign) -> str:
    """Returns why those of *answers* do not count for *reign* for which that can be determined, in
    words that go on a sentence."""
    why = [f"{one.peer}: {one.error}" for one in answers if one.error]
    why += [
        f"{one.peer} is a primary, which gives no vote"
        for one in answers
        if one.welcome is not None and one.welcome.role == PRIMARY
    ]
    why += [
        f"{one.peer} has given its vote for reign {other}"
        for one in answers
        if (other := _given(one, reign)) is not None
    ]
    why += [
        f"{one.peer} lacks what it had acknowledged, and so does not count"
        for one in answers
        if has_lost_entries(members, one)
    ]
    return "".join(f"; {one}" for one in why)


def _needs_votes(local: LocalNode) -> bool:
    """Returns True if this primary acknowledges nothing without mirrors, or did before it was
    configured anew."""
    config, members = local.config, local.members.current
    if members is not None:
        return any(rule.waits for rule in members.rules)
    return bool(config.mirrors) and config.on_timeout == "block"


def has_lost_entries(members: Members | None, answer: PeerAnswer) -> bool:
    """Returns True if the peer that gives *answer* has less than it is known to have acknowledged,
    by *members*: it was rolled back, or has lost that, and its vote does not count."""
    if members is None or answer.welcome is None:
        return False
    return answer.welcome.seq < dict(members.held).get(answer.welcome.node_id, 0)


def _has_no_more(answer: PeerAnswer, me: HandshakeState, parted: Collection[str]) -> bool:
    """Returns True if *answer* is a vote, and whose it is holds nothing that *me* lacks: it may
    have followed a new primary since it was asked what it holds. What it has of a history that
    *parted* from this one, in a lower reign, is none of this."""
    theirs, mine = answer.welcome, me.position
    if theirs is None:
        return False
    if theirs.role == WITNESS:
        return theirs.held_epoch <= mine.epoch  # (and it holds nothing)
    if answer.peer in parted and 0 < theirs.held_epoch < mine.epoch:
        return True
    return theirs.seq <= mine.seq and theirs.held_epoch <= mine.epoch


async def _ask_all(
    local: LocalNode, me: HandshakeState, greeting: Hello, silent: Collection[str] = ()
) -> list[PeerAnswer]:
    answers: list[PeerAnswer] = []

    async def ask(peer: Peer) -> None:
        seconds = _SILENT_SECONDS if peer.name in silent else ASK_SECONDS
        answers.append(await _ask(local, peer, me, greeting, seconds))

    async with trio.open_nursery() as nursery:
        for peer in local.book.list():
            nursery.start_soon(ask, peer)
    return sorted(answers, key=lambda answer: answer.peer)


async def _ask(
    local: LocalNode, peer: Peer, me: HandshakeState, greeting: Hello, seconds: float
) -> PeerAnswer:
    if peer.any_address is None:
        return PeerAnswer(peer.name, error="it is not known where it listens")
    given_epoch = Epoch(0)
    try:
        with trio.fail_after(seconds):
            async with await connect(
                peer.any_address,
                local.identity,
                peer.certificate,
                insecure=local.insecure,
                timeout_seconds=seconds,
                open_seconds=min(seconds, _OPEN_SECONDS),
            ) as connection:
                session = SessionConnection(connection, Side.CONNECTOR)
                await session.send(greeting)
                theirs = check_asked(me, await session.receive())
                local.book.note_witness(peer.name, theirs.role == WITNESS)
                return PeerAnswer(peer.name, theirs)
    except* RefusedError as group:
        refusal = first_error(group)
        error, is_refusal = str(refusal), True
        if isinstance(refusal, RefusedError) and refusal.code is RefusalCode.FENCED:
            wanted = greeting.wanted_epoch
            given_epoch = refusal.claim.reign.epoch if refusal.claim is not None else wanted
    except* trio.TooSlowError:
        error, is_refusal = f"no answer within {seconds:g} s", False
    except* (FusejournalError, OSError) as group:
        error, is_refusal = str(first_error(group)), False
    return PeerAnswer(peer.name, error=error, is_refusal=is_refusal, given_epoch=given_epoch)
