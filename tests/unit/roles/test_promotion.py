"""Plans of promotions, by what peers answer."""

from dataclasses import replace
from uuid import UUID

import pytest

from fusejournal.replication.canvass import PeerAnswer
from fusejournal.roles.promotion import EPOCHS_ALONE, Candidate, next_reign, plan_promotion
from fusejournal.types import EPOCH_MAX, Epoch, Position, Reign, Seq
from fusejournal.wire.frames import Hello, Welcome, WireError
from fusejournal.wire.members import Members, Rule, votes_needed
from fusejournal.wire.session import (
    VOTE,
    HandshakeState,
    RefusedError,
    check_welcome,
    hello,
    wanted_reign,
    welcome,
)

VOLUME = UUID("01234567-89ab-cdef-0123-456789abcdef")
ME, EAST, WEST = 0xFEED, 0xEA57, 0x3E57


def node(
    name: str, node_id: int, seq: int = 100, *, role: str = "mirror", fence: Reign | None = None
) -> HandshakeState:
    fence = fence or Reign(Epoch(2), WEST)
    return HandshakeState(
        name,
        VOLUME,
        Position(Epoch(2), Seq(seq), seq * 7),
        fence.epoch,
        Seq(seq),
        fence.node_id,
        node_id,
        role=role,
    )


def record_of(
    *nodes: int, mirrors: int = 1, blocks: bool = True, witnesses: tuple[int, ...] = ()
) -> Members:
    return Members(Reign(Epoch(2), WEST), 1, Rule(mirrors, blocks, tuple(sorted(nodes)), witnesses))


def candidate(
    *nodes: int, mirrors: int = 1, blocks: bool = True, me: HandshakeState | None = None
) -> Candidate:
    """A mirror whose primary, west, has told it that *nodes* count; by default the three."""
    told = record_of(*(nodes or (ME, EAST, WEST)), mirrors=mirrors, blocks=blocks)
    known = me or node("me", ME)._replace(members=told.to_wire())
    return Candidate(known, Seq(100), Seq(90), "west", Seq(104), 7.0)


def answer(name: str, theirs: HandshakeState, *, held: int | None = None) -> PeerAnswer:
    greeting = hello(node("me", ME), "fetch")
    said = welcome(theirs, greeting, is_mirror=True)
    return PeerAnswer(name, said if held is None else said._replace(held_epoch=Epoch(held)))


SILENT = PeerAnswer("west", error="connection refused")


@pytest.mark.parametrize(
    ("nodes", "mirrors", "blocks", "has_lost", "needed"),
    [
        (2, 0, True, False, 2),  # one that waits for none goes on alone
        (3, 1, False, False, 3),
        (2, 1, True, False, 2),
        (3, 1, True, False, 2),
        (3, 1, True, True, 3),
        (3, 2, True, False, 2),
        (3, 2, True, True, 2),
        (5, 1, True, False, 4),
        (5, 2, True, False, 3),
    ],
)
def test_words(nodes: int, mirrors: int, blocks: bool, has_lost: bool, needed: int) -> None:
    assert votes_needed(nodes, mirrors, blocks=blocks, has_lost=has_lost) == needed


def test_a_plan_tells_what_may_be_lost() -> None:
    plan = plan_promotion(candidate(), [answer("east", node("east", EAST)), SILENT], "vol")
    assert (plan.held_seq, plan.told_seq, plan.missing, plan.left_to_apply) == (100, 104, 4, 10)
    assert (plan.words, plan.words_needed, plan.objections) == (2, 2, ())
    assert plan.reign == str(Reign(Epoch(3), ME))
    assert [(peer.peer, peer.counts, peer.detail) for peer in plan.peers] == [
        ("east", True, ""),
        ("west", False, "connection refused"),
    ]


@pytest.mark.parametrize(
    ("theirs", "held", "words"),
    [
        (node("east", EAST, 101), None, "peer east holds entries up to 101"),
        (node("east", EAST, 50), 3, "peer east holds entries of epoch 3, and this node of 2 at"),
        (node("east", EAST, role="primary"), None, "peer east is a primary, and answers"),
        (node("east", EAST, 90, fence=Reign(Epoch(4), EAST)), 4, "follows reign 4/"),
    ],
)
def test_what_speaks_against_it(theirs: HandshakeState, held: int | None, words: str) -> None:
    plan = plan_promotion(candidate(), [answer("east", theirs, held=held), SILENT], "vol")
    assert words in "; ".join(plan.objections)


def test_a_longer_journal_of_a_lower_epoch_stands_against_none() -> None:
    """A former primary has it, whose history parts from this one's and lost: each of the two would
    say that the other is to be promoted."""
    longer = answer("east", node("east", EAST, 200), held=1)
    plan = plan_promotion(candidate(), [longer, SILENT], "vol")
    assert (plan.objections, plan.refusal) == ((), "")


@pytest.mark.parametrize(("mirrors", "blocks"), [(0, True), (1, False)])
def test_a_primary_that_may_go_on_is_stopped_by_nobodys_word(mirrors: int, blocks: bool) -> None:
    known = candidate(mirrors=mirrors, blocks=blocks)
    plan = plan_promotion(known, [answer("east", node("east", EAST)), SILENT], "vol")
    assert plan.objections == ()
    assert "nothing says that primary west has stopped: 2 of 3 nodes" in plan.refusal
    assert "'fusejournal promote vol --force'" in plan.uncovered
    fenced = plan_promotion(
        replace(known, has_fence=True), [answer("east", node("east", EAST)), SILENT], "vol"
    )
    assert (fenced.uncovered, fenced.refusal) == (plan.uncovered, "")


def test_a_program_that_turns_the_primary_off_stands_for_no_majority() -> None:
    """More than half of the nodes but that one are needed: else two are promoted at once."""
    known = replace(candidate(10, 11, 12, ME, WEST, mirrors=3), has_fence=True)
    there = [answer(name, node(name, number)) for number, name in enumerate("ab", 10)]
    away = [PeerAnswer(name, error="no answer") for name in ("c", "west")]
    assert plan_promotion(known, [*there, *away], "vol").refusal == ""
    few = plan_promotion(known, [there[0], PeerAnswer("b", error="no answer"), *away], "vol")
    assert not few.has_fence
    assert "2 of 5 nodes" in few.refusal


@pytest.mark.parametrize(("mirrors", "is_enough"), [(1, False), (2, True), (3, True)])
def test_a_program_that_turns_the_primary_off_tells_not_who_has_the_newest(
    mirrors: int, is_enough: bool
) -> None:
    """The one mirror that does not answer may alone have what waited for one of four."""
    known = replace(candidate(10, 11, 12, ME, WEST, mirrors=mirrors), has_fence=True)
    there = [answer(name, node(name, number)) for number, name in enumerate("ab", 10)]
    away = [PeerAnswer(name, error="no answer") for name in ("c", "west")]
    plan = plan_promotion(known, [*there, *away], "vol")
    assert plan.has_fence is is_enough
    assert ("those of 4 are needed" in plan.refusal) is not is_enough


def test_a_witness_stands_for_no_mirror_where_the_primary_was_turned_off() -> None:
    """The other mirror may have what this one lacks, and a witness has no data."""
    third = 0x333
    told = record_of(ME, EAST, WEST, witnesses=(third,))
    known = replace(candidate(me=node("me", ME)._replace(members=told.to_wire())), has_fence=True)
    there = answer("third", node("third", third, 0, role="witness"))
    plan = plan_promotion(known, [PeerAnswer("east", error="no answer"), SILENT, there], "vol")
    assert (plan.words, plan.has_fence) == (2, False)
    assert "the others may have what is newest" in plan.refusal
    plan = plan_promotion(known, [answer("east", node("east", EAST)), SILENT, there], "vol")
    assert plan.refusal == ""
    # Of a pair no other mirror can have anything.
    told = record_of(ME, WEST, witnesses=(third,))
    known = replace(known, me=node("me", ME)._replace(members=told.to_wire()))
    assert plan_promotion(known, [SILENT, there], "vol").refusal == ""


def test_a_record_of_before_the_last_reign_needs_all_but_who_was_turned_off() -> None:
    old = record_of(ME, EAST, WEST)._replace(reign=Reign(Epoch(1), WEST))
    known = candidate(me=node("me", ME)._replace(members=old.to_wire()))
    known = replace(known, has_fence=True)
    alone = plan_promotion(known, [PeerAnswer("east", error="no answer"), SILENT], "vol")
    assert not alone.has_fence
    both = plan_promotion(known, [answer("east", node("east", EAST)), SILENT], "vol")
    assert both.refusal == ""


@pytest.mark.parametrize("has_fence", [False, True])
def test_a_mirror_that_was_never_told_who_counts_needs_a_persons_word(has_fence: bool) -> None:
    """Its book need not have all to which its primary ships: those may have what it lacks, and the
    primary go on with them."""
    known = candidate(me=node("me", ME))
    known = replace(known, has_fence=has_fence)
    plan = plan_promotion(known, [answer("east", node("east", EAST)), SILENT], "vol")
    assert (plan.words, plan.is_covered, plan.has_fence) == (2, False, False)
    assert "no node that answers was told by a primary who counts" in plan.refusal
    plan = plan_promotion(known, [answer("east", node("east", EAST))], "vol")
    assert not plan.is_covered, "west was removed from the book"
    # A primary that is a mirror by now takes nothing more.
    west = answer("west", node("west", WEST))
    assert plan_promotion(known, [answer("east", node("east", EAST)), west], "vol").refusal == ""
    # One that answers was told.
    told = node("east", EAST)._replace(members=record_of(ME, EAST, WEST).to_wire())
    assert plan_promotion(known, [answer("east", told), SILENT], "vol").refusal == ""


@pytest.mark.parametrize(("mirrors", "blocks"), [(0, False), (1, True), (2, True)])
def test_a_mirror_that_knows_no_peer_needs_a_persons_word(mirrors: int, blocks: bool) -> None:
    """Its book is empty, or it was removed from there: its primary may go on all the same."""
    known = candidate(ME, WEST, 10, mirrors=mirrors, blocks=blocks)
    plan = plan_promotion(known, [], "vol")
    assert (plan.words, plan.is_covered) == (1, False)
    assert "1 of 3 nodes" in plan.refusal
    assert plan.reign == str(Reign(Epoch(EPOCHS_ALONE), ME))


def test_whose_word_does_not_count() -> None:
    old = answer("old", node("old", EAST, role=""))
    new = answer("new", node("new", EAST)._replace(uuid=None))
    plan = plan_promotion(candidate(), [new, old], "vol")
    assert [peer.counts for peer in plan.peers] == [False, False]
    assert plan.words == 1


def test_a_reign_is_beyond_all_that_was_seen_or_is_its_own() -> None:
    me = node("me", ME)
    assert next_reign(me, [SILENT], is_covered=True) == Reign(Epoch(3), ME)
    higher = node("east", EAST, fence=Reign(Epoch(6), EAST))
    assert next_reign(me, [answer("east", higher)], is_covered=True) == Reign(Epoch(7), ME)
    has_vote = node("me", ME, fence=Reign(Epoch(5), ME))
    assert next_reign(has_vote, [SILENT], is_covered=True) == Reign(Epoch(5), ME)
    assert next_reign(has_vote, [answer("east", higher)], is_covered=True) == Reign(Epoch(7), ME)
    # Another had asked at the same time, and each has the votes of some.
    rival = node("east", EAST, fence=Reign(Epoch(5), WEST))
    asked = [answer("east", rival)]
    assert next_reign(has_vote, asked, is_covered=True) == Reign(Epoch(6), ME)


def test_a_reign_that_no_words_cover_is_beyond_what_the_old_primary_begins_alone() -> None:
    """It is started again after a power cut, and reaches no peer: it begins the next epoch, and the
    next after another. None of them is the promoted mirror's."""
    me = node("me", ME)
    plan = plan_promotion(candidate(mirrors=0, me=me), [SILENT], "vol")
    assert not plan.is_covered
    reign = next_reign(me, [SILENT], is_covered=False)
    assert (plan.reign, reign) == (str(reign), Reign(Epoch(EPOCHS_ALONE), ME))
    has_vote = node("me", ME, fence=reign)
    for is_covered in (False, True):  # asked again, with as many votes or more
        assert next_reign(has_vote, [SILENT], is_covered=is_covered) == reign
    covered_once = node("me", ME, fence=Reign(Epoch(5), ME))
    assert next_reign(covered_once, [SILENT], is_covered=False) == reign
    begun = has_vote._replace(position=Position(reign.epoch, Seq(120), 7))
    after = next_reign(begun, [SILENT], is_covered=False)
    assert after == Reign(Epoch(2 * EPOCHS_ALONE), ME)


def asks(epoch: int, node_id: int = ME) -> Hello:
    return hello(node("me", node_id), VOTE, Epoch(epoch))


def test_a_word_is_for_one_reign_of_an_epoch() -> None:
    mirror = node("east", EAST)
    assert wanted_reign(mirror, asks(3)) == Reign(Epoch(3), ME)
    given = node("east", EAST, fence=Reign(Epoch(3), ME))
    assert wanted_reign(given, asks(3)) == Reign(Epoch(3), ME)
    for epoch, node_id in ((2, ME), (3, WEST)):
        with pytest.raises(RefusedError) as refused:
            wanted_reign(given, asks(epoch, node_id))
        assert refused.value.code == "fenced"
    for greeting in (asks(0), asks(3, 0), asks(EPOCH_MAX + 1)):
        with pytest.raises(WireError):
            wanted_reign(mirror, greeting)
    with pytest.raises(RefusedError, match="no volume yet"):
        wanted_reign(mirror._replace(uuid=None), asks(3))


def test_a_word_that_was_given_to_this_very_node_fences_it_not() -> None:
    primary = node("west", WEST, role="primary")
    mine = node("east", EAST, fence=Reign(Epoch(3), WEST))

    def said(theirs: HandshakeState) -> Welcome:
        return welcome(theirs, hello(primary, "fetch"), is_mirror=True)

    assert check_welcome(primary, said(mine)).node == "east"
    for theirs in (said(mine)._replace(held_epoch=Epoch(3)), said(mine)._replace(reign_node=ME)):
        with pytest.raises(RefusedError):
            check_welcome(primary, theirs)


def test_a_record_of_before_the_last_reign_covers_nothing() -> None:
    """A node that was promoted by force goes by a rule of its own, and told it to no node that was
    away: the votes of two of three do not say that it has stopped."""
    record = Members(Reign(Epoch(1), WEST), 5, Rule(1, True, tuple(sorted((ME, EAST, WEST)))))
    me = node("me", ME)._replace(members=record.to_wire())
    heard = [answer("east", node("east", EAST)), SILENT]
    plan = plan_promotion(candidate(me=me), heard, "vol")
    assert (plan.words, plan.words_needed, plan.is_covered) == (2, 3, False)
    assert "another has begun since" in plan.uncovered
    told = record._replace(reign=Reign(Epoch(2), WEST))
    me = me._replace(members=told.to_wire())
    plan = plan_promotion(candidate(me=me), heard, "vol")
    assert (plan.words, plan.words_needed, plan.is_covered) == (2, 2, True)
    # Another, which has entries of a reign that this node knows nothing of, says it, too.
    begun = answer("east", node("east", EAST), held=3)
    assert not plan_promotion(candidate(me=me), [begun, SILENT], "vol").is_covered
    # All of the record and of the book, also those whom the record does not have.
    me = me._replace(members=record.to_wire())
    west = node("west", WEST)
    plan = plan_promotion(candidate(me=me), [heard[0], answer("west", west)], "vol")
    assert (plan.words, plan.words_needed, plan.is_covered) == (3, 3, True)
    south = PeerAnswer("south", error="connection refused")
    plan = plan_promotion(candidate(me=me), [heard[0], answer("west", west), south], "vol")
    assert (plan.words, plan.words_needed, plan.is_covered) == (3, 4, False)
