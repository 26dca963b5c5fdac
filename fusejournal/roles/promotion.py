"""Decides whether a mirror may become the primary, by what it holds and what its peers answer.
Pure.

No node may follow a primary that goes on: what it acknowledges then would be lost. What keeps it
from that is that enough mirrors take nothing from it any more. They are enough
(``votes_needed``) where the old primary waits for N mirrors and for nothing less: all but so
many of all nodes that it does not find N without one of them; and more than half, so that no two
nodes begin one epoch. A primary that goes on alone (no ``mirrors``, or ``on_timeout = "degrade"``)
is stopped by no word but its own: then a person has to say that it is off.

For how many mirrors it waits, and which nodes count, the newest record of members says that any
node which answers has (wire/members.py). No node's own configuration or book does: what these say
of the primary may be old. Without a record all have to give their vote, the former primary, too;
and with one of a reign before the last of which one of them has entries. A node that has less than
it is known to have acknowledged does not count, this one neither.

A program that turns the old primary off (``fence``) tells that this one goes on no more. Which node
has what is newest it does not tell: so as many mirrors are needed as meet each acknowledgement, and
where it is not known how many those are, all others.

So a promotion that is not forced needs that no node that answers is a primary, holds more, or has
seen a higher reign that has begun, and that votes enough can be had.

Without votes enough, by force or because a program has turned the old primary off, nothing keeps
that from being started again where it reaches no peer, and from beginning the next epoch alone, as
a single server must be able to after a power cut. It would be the same epoch, and both would give
the same fids to different files. So such a promotion leaves room for ``EPOCHS_ALONE`` of these: its
epoch is the next multiple of that, which no such start comes to, and which is above all of theirs
when the two meet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fusejournal.replication.canvass import PeerAnswer, has_lost_entries
from fusejournal.roles.plan import PeerVote, PromotionPlan
from fusejournal.types import Epoch, Reign, Seq
from fusejournal.wire.frames import Welcome
from fusejournal.wire.members import Members, VoteCount, members_of, newest
from fusejournal.wire.session import MIRROR, PRIMARY, WITNESS, HandshakeState, reign_of

EPOCHS_ALONE: Final = 1024
"""The epochs that a primary may begin alone, less one, before it comes to one of a promotion. (Of
epochs there are 8,192 times as many.)"""


@dataclass(frozen=True)
class Candidate:
    """The mirror that is to be promoted, as it knows itself and its primary."""

    me: HandshakeState
    durable_seq: Seq
    """The candidate has acknowledged everything up to here."""
    applied_seq: Seq
    primary: str | None
    """The peer that was its primary; None where it never had one."""
    told_seq: Seq
    """The end of the primary's journal, as that reported last."""
    silent_seconds: float | None
    """The time since it was heard; None where it never was."""
    has_fence: bool = False
    """True if there is a program that makes sure that the primary is off."""

    def members(self, answers: Sequence[PeerAnswer]) -> Members | None:
        """Returns the record of members that counts, with *answers* of its peers."""
        return newest([members_of(self.me.members), *(one.members for one in answers)])

    def begun_epoch(self, answers: Sequence[PeerAnswer]) -> Epoch:
        """Returns the highest epoch that it, or a peer of *answers*, has entries of."""
        held = [one.welcome.held_epoch for one in answers if one.welcome is not None]
        return max([self.me.position.epoch, *held])


def next_reign(me: HandshakeState, answers: Sequence[PeerAnswer], *, is_covered: bool) -> Reign:
    """Returns the reign that *me* is to begin: beyond all that it and those who answer have seen,
    and, unless votes enough cover it (*is_covered*), beyond what the old primary may begin alone;
    or the one that it has the vote for already, where nothing higher was seen, nor another node's
    of the same epoch, which had asked at the same time."""
    heard = [reign_of(answer.welcome) for answer in answers if answer.welcome is not None]
    highest, begun = max([me.reign.epoch, *(one.epoch for one in heard)]), me.position.epoch
    is_its_own = me.reign.node_id == me.node_id and me.reign.epoch > begun
    is_its_own = is_its_own and not any(me.reign.is_rival(one) for one in heard)
    has_room = me.reign.epoch // EPOCHS_ALONE > begun // EPOCHS_ALONE
    if is_its_own and highest == me.reign.epoch and (is_covered or has_room):
        return me.reign
    alone = (highest // EPOCHS_ALONE + 1) * EPOCHS_ALONE
    return Reign(Epoch(highest + 1 if is_covered else alone), me.node_id)


def plan_promotion(
    candidate: Candidate, answers: Sequence[PeerAnswer], volume: str
) -> PromotionPlan:
    """Returns the plan for *candidate* by the *answers* of all its peers; *volume* is what an admin
    calls the volume here."""
    me, record = candidate.me, candidate.members(answers)
    is_outdated = record is not None and record.is_outdated(candidate.begun_epoch(answers))
    members = None if is_outdated else record
    peers = tuple(_vote_of(answer, members) for answer in answers)
    held_seq = dict(members.held).get(me.node_id, 0) if members is not None else 0
    own, objections = int(me.position.seq >= held_seq), list[str]()
    if not own:
        objections.append(
            f"this node holds entries up to {me.position.seq}, and had acknowledged them up to "
            f"{held_seq}: it was put back from an older copy, or has lost them: promote another"
        )
    objections += [
        line
        for answer in answers
        if answer.welcome is not None
        for line in _objections(me, answer.peer, answer.welcome)
    ]
    given = {me.node_id} if own else set[int]()
    for answer, peer in zip(answers, peers, strict=True):
        if peer.counts and answer.welcome is not None:
            given.add(answer.welcome.node_id)
    if members is None:
        tally, fenced = _tally_all(candidate, answers, peers, record, given)
    else:
        tally = max((rule.tally(given) for rule in members.rules), key=_lacking)
        fenced = max((rule.tally_fenced(given) for rule in members.rules), key=_lacking)
    votes, needed, _ = tally
    uncovered = ""
    if tally.lacking > 0 and not objections:
        uncovered = _not_covered(candidate, tally, fenced, record, volume, is_outdated=is_outdated)
    return PromotionPlan(
        node=me.node,
        reign=str(next_reign(me, answers, is_covered=votes >= needed)),
        held_seq=me.position.seq,
        acknowledged_seq=candidate.durable_seq,
        left_to_apply=max(0, me.position.seq - candidate.applied_seq),
        primary=candidate.primary,
        told_seq=max(candidate.told_seq, me.position.seq),
        missing=max(0, candidate.told_seq - me.position.seq),
        silent_seconds=candidate.silent_seconds,
        peers=peers,
        words=votes,
        words_needed=needed,
        objections=tuple(objections),
        uncovered=uncovered,
        has_fence=candidate.has_fence and fenced.lacking <= 0,
    )


def _lacking(count: VoteCount) -> int:
    return count.lacking


def _tally_all(
    candidate: Candidate,
    answers: Sequence[PeerAnswer],
    peers: Sequence[PeerVote],
    outdated: Members | None,
    given: set[int],
) -> tuple[VoteCount, VoteCount]:
    """Returns how many votes there are of all nodes that the *outdated* record or a book knows of,
    by those who have *given* theirs: each is needed; and where a program has turned the primary
    off, each but that. Without any record the former primary has to be among them, and no program
    stands for it, because a book need not know of all."""
    known = {candidate.me.node_id}
    known |= {one.welcome.node_id for one in answers if one.welcome is not None}
    for rule in outdated.rules if outdated is not None else ():
        known |= rule.everyone
    # (A peer that is silent may be one of the record's, or none: it has no vote in either case. And
    # a node was its primary, also where its book knows of no peer.)
    nodes, votes = max(2, len(known), 1 + len(peers)), len(given)
    has_primary = any(one.counts and one.peer == candidate.primary for one in peers)
    is_known = outdated is not None
    needed = nodes if is_known or has_primary else max(nodes, votes + 1)
    others = nodes - 1 if is_known else max(nodes, votes + 1)
    return VoteCount(votes, needed, nodes), VoteCount(votes, others, nodes - 1)


def _vote_of(answer: PeerAnswer, members: Members | None) -> PeerVote:
    welcome = answer.welcome
    if welcome is None:
        return PeerVote(
            peer=answer.peer, role=None, held_seq=None, counts=False, detail=answer.error
        )
    detail = ""
    if welcome.role not in (MIRROR, WITNESS):
        detail = "is no mirror" if welcome.role else "is of an older version, and gives no vote"
    elif not welcome.uuid:
        detail = "has no volume yet"
    elif has_lost_entries(members, answer):
        detail = "has lost entries that it had acknowledged"
    elif members is not None and not any(welcome.node_id in one.everyone for one in members.rules):
        detail = "does not count: the primary did not ship to it"
    return PeerVote(
        peer=answer.peer,
        role=welcome.role or None,
        held_seq=welcome.seq if welcome.role != WITNESS else None,
        counts=not detail,
        detail=detail,
    )


def _objections(me: HandshakeState, peer: str, theirs: Welcome) -> list[str]:
    """Returns what the answer of *peer* says against the promotion of *me*."""
    mine = me.position
    if theirs.role == PRIMARY:
        return [f"peer {peer} is a primary, and answers: stop it there first"]
    has_begun = theirs.epoch == theirs.held_epoch
    if theirs.epoch > me.reign.epoch and has_begun:
        reign = Reign(theirs.epoch, theirs.reign_node)
        if theirs.role == WITNESS:
            return [f"witness {peer} has seen reign {reign} begin: find its node"]
        return [
            f"peer {peer} follows reign {reign}, and this node is of {me.reign}: promote {peer}"
        ]
    if theirs.role == WITNESS:
        return []
    if theirs.held_epoch > mine.epoch:
        return [
            f"peer {peer} holds entries of epoch {theirs.held_epoch}, and this node of "
            f"{mine.epoch} at most: promote {peer}"
        ]
    # (What has more of a lower epoch is a history that lost.)
    if theirs.seq > mine.seq and theirs.held_epoch in (0, mine.epoch):
        return [
            f"peer {peer} holds entries up to {theirs.seq}, and this node up to {mine.seq}: "
            f"promote {peer}"
        ]
    return []


def _not_covered(
    candidate: Candidate,
    tally: VoteCount,
    fenced: VoteCount,
    record: Members | None,
    volume: str,
    *,
    is_outdated: bool,
) -> str:
    primary = f"primary {candidate.primary}" if candidate.primary else "a primary"
    if record is None:
        why = "no node that answers was told by a primary who counts"
    elif is_outdated:
        why = f"who counts is known as of reign {record.reign}, and another has begun since"
    elif record.rule.waits:
        why = f"it waits for {record.rule.mirrors} mirrors"
    else:
        why = "it goes on without mirrors where none answers"
    votes, needed, nodes = tally
    lines = (
        f"nothing says that {primary} has stopped: {votes} of {nodes} nodes take nothing from it "
        f"any more, and {needed} are needed, because {why}; "
    )
    if candidate.has_fence and fenced.lacking > 0:
        return (
            f"{lines}once it is turned off, as 'fence' would, those of {fenced.needed} are needed, "
            "because the others may have what is newest: have them run, or, where they are gone "
            f"for good, 'fusejournal promote {volume} --force'"
        )
    return f"{lines}make sure that it is off, then 'fusejournal promote {volume} --force'"
