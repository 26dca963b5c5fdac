"""Records of members: their numbers, and by which words a promotion meets every acknowledgement."""

from itertools import combinations

import pytest

from fusejournal.errors import WireError
from fusejournal.types import EPOCH_MAX, Epoch, Reign, Seq
from fusejournal.wire.members import MEMBERS_MAX, Members, Rule, members_of, newest

_RULE = Rule(1, True, (2, 3, 7))
_REIGN = Reign(Epoch(4), 3)


def _record(version: int = 1, reign: Reign = _REIGN, **held: int) -> Members:
    pairs = tuple((int(name[1:]), Seq(seq)) for name, seq in held.items())
    return Members(reign, version, _RULE, None, pairs)


@pytest.mark.parametrize("before", [None, Rule(0, False, (2,)), Rule(2, True, (1, 2, 3), (4, 5))])
def test_a_record_comes_back(before: Rule | None) -> None:
    record = Members(_REIGN, 3, _RULE, before, ((2, Seq(9)), (7, Seq(0))))
    assert members_of(record.to_wire()) == record
    assert all(type(number) is int for number in record.to_wire())
    assert members_of(()) is None


@pytest.mark.parametrize(
    "numbers",
    [
        (4,),
        (4, 3, 1, 0),
        (4, 3, 1, 2, 1, 1, 1, 2, 0),
        (4, 3, 1, 0, 1, 2, 1, 2, 0),
        (0, 3, 1, 0, 1, 1, 1, 2, 0),
        (EPOCH_MAX + 1, 3, 1, 0, 1, 1, 1, 2, 0),
        (4, 3, 0, 0, 1, 1, 1, 2, 0),
        (4, 3, 1, 0, 1, 1, 0, 0),
        (4, 3, 1, 0, 1, 1, 2, 3, 2, 0),
        (4, 3, 1, 0, 1, 1, 2, 2, 2, 0),
        (4, 3, 1, 0, 1, 1, 1, 0, 0),
        (4, 3, 1, 1, 1, 1, 1, 2, 0),
        (4, 3, 1, 0, 1, 1, 1, 2, 0, 5),
        (4, 3, 1, 0, 1, 1, 1, 2, 0, 5, 1, 5, 2),
        (4, 3, 1, 0, 1, 1, MEMBERS_MAX + 1, *range(1, MEMBERS_MAX + 2), 0),
        (4, 3, 1, 0, 1, 1, 3, 2, 3),
        (4, 3, 1, 0, 1, 1, 1, 2, 1),
        (4, 3, 1, 0, 1, 1, 1, 2, 1, 2),
        (4, 3, 1, 0, 1, 1, 1, 2, MEMBERS_MAX + 1, *range(3, MEMBERS_MAX + 4)),
    ],
)
def test_numbers_that_are_no_record_are_an_error(numbers: tuple[int, ...]) -> None:
    with pytest.raises(WireError):
        members_of(numbers)


def test_the_newest_record_counts_with_what_others_of_its_reign_know() -> None:
    assert newest([None, None]) is None
    later = _record(2, n2=5)
    found = newest([_record(1, n2=9, n3=4), None, later])
    assert found == later._replace(held=((2, Seq(9)), (3, Seq(4))))
    begun = _record(1, Reign(Epoch(5), 7), n2=6)
    assert newest([later, begun]) == begun


_CASES = [(n, m, w) for n in range(2, 6) for m in range(1, n) for w in range(3)]


def _covering(rule: Rule) -> list[set[int]]:
    """All nodes whose words are enough."""
    everyone = sorted(rule.everyone)
    sets = [set(some) for size in range(len(everyone) + 1) for some in combinations(everyone, size)]
    return [some for some in sets if rule.tally(some).lacking <= 0]


@pytest.mark.parametrize(("count", "mirrors", "witnesses"), _CASES)
def test_words_meet_every_acknowledgement_and_each_other(
    count: int, mirrors: int, witnesses: int
) -> None:
    """By any rule, and by one of which enough know: no promotion by the rule before finds words
    enough without one of those."""
    everyone = tuple(range(1, count + witnesses + 1))
    rule = Rule(mirrors, True, everyone[:count], everyone[count:])
    others, promoted = rule.nodes[1:], _covering(rule)
    assert set(everyone) in promoted
    for words in promoted:
        assert all(words & other for other in promoted)
        for held in combinations(others, mirrors):
            assert {1, *held} & words, "one that has it"
    for size in range(count + witnesses):
        for known in combinations(everyone[1:], size):
            if rule.is_kept_from(1, known, fenced=False):
                assert all(set(known) & words for words in promoted if 1 not in words)
    for fenced in (False, True):
        assert rule.is_kept_from(1, everyone[1:], fenced=fenced)
        assert rule.is_kept_from(1, others[:mirrors], fenced=fenced), "who acknowledges is enough"


@pytest.mark.parametrize(("count", "mirrors", "witnesses"), _CASES)
def test_words_where_the_primary_was_turned_off_meet_the_same(
    count: int, mirrors: int, witnesses: int
) -> None:
    """An acknowledgement is on the mirrors that gave it, and not on the one that is off."""
    everyone = tuple(range(1, count + witnesses + 1))
    rule = Rule(mirrors, True, everyone[:count], everyone[count:])
    others = everyone[1:]
    sets = [set(some) for size in range(count + witnesses) for some in combinations(others, size)]
    promoted = [some for some in sets if rule.tally_fenced(some).lacking <= 0]
    assert set(others) in promoted
    for words in promoted:
        assert all(words & other for other in promoted), "two are promoted"
        assert all(words & set(held) for held in combinations(rule.nodes[1:], mirrors))
    for known in sets:
        if rule.is_kept_from(1, known, fenced=True):
            assert all(known & words for words in promoted)


def test_a_witness_and_one_mirror_are_two_of_three() -> None:
    pair = Rule(1, True, (1, 2))
    assert pair.tally({2}) == (1, 2, 2)
    with_witness = Rule(1, True, (1, 2), (3,))
    assert with_witness.tally({2, 3}) == (2, 2, 3)
    assert with_witness.tally({3}).lacking > 0, "it has no data"
    assert with_witness.tally({1, 3}, has_lost=True).lacking == 1
    assert Rule(1, True, (1, 2), (3, 4)).tally({3, 4}).lacking == 1


def test_a_rule_that_waits_for_none_is_covered_by_no_words() -> None:
    for rule in (Rule(0, True, (1, 2, 3)), Rule(1, False, (1, 2, 3))):
        assert not rule.waits
        assert rule.tally({2, 3, 9}) == (2, 3, 3)
        assert rule.is_kept_from(1, (), fenced=False)
        assert rule.tally_fenced({2, 9}).lacking == 1
        assert rule.tally_fenced({2, 3}).lacking == 0
        assert not rule.is_kept_from(1, (), fenced=True)
