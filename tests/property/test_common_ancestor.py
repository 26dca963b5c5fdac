"""The point where two histories part, as a mirror and its source find it by messages."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fusejournal.errors import WireError
from fusejournal.replication.common_ancestor import find_common
from fusejournal.types import Epoch, Position, Seq
from fusejournal.wire.comparison import Comparison
from fusejournal.wire.frames import (
    AskChains,
    Chains,
    Decoder,
    Message,
    encode,
)


class History:
    """Chains by seq, and what ChainFinder does of a journal."""

    def __init__(self, name: int, common: int, length: int, first: int = 1) -> None:
        self.length, self._name, self._common, self._first = length, name, common, first

    @property
    def position(self) -> Position:
        return Position(Epoch(1), Seq(self.length), self.chain(self.length) or 0)

    def chain(self, seq: int) -> int | None:
        if seq == 0:
            return 0
        if not self._first - 1 <= seq <= self.length:
            return None
        return seq if seq <= self._common else seq + 1000 * self._name

    async def at(self, seqs: Sequence[int]) -> tuple[int | None, ...]:
        return tuple(map(self.chain, seqs))

    async def first_seq(self) -> Seq:
        return Seq(self._first)


class Wire:
    """Asks *other*, as a session does."""

    where = "other"

    def __init__(self, other: History) -> None:
        self._other = other
        self._asked: AskChains
        self.questions = 0

    async def send(self, message: AskChains) -> None:
        (self._asked,) = Decoder().feed(encode(message))  # type: ignore[assignment]
        self.questions += 1

    async def receive(self) -> Message:
        return Chains(tuple(await self._other.at(self._asked.seqs)))


_LENGTHS = st.one_of(st.integers(0, 5), st.integers(0, 300), st.integers(0, 1 << 40))


@settings(max_examples=300)
@given(mine=_LENGTHS, theirs=_LENGTHS, data=st.data())
async def test_the_last_common_entry_is_found(mine: int, theirs: int, data: st.DataObject) -> None:
    least = min(mine, theirs)
    common = data.draw(st.one_of(st.integers(0, least), st.just(least)))
    firsts = st.one_of(st.just(1), st.integers(1, common + 1), st.just(common + 1))
    one = History(1, common, mine, data.draw(firsts))
    other = History(2, common, theirs, data.draw(firsts))
    wire: Any = Wire(other)
    finder: Any = one
    assert await find_common(wire, finder, Seq(mine), other.position) == common
    assert wire.questions <= 15


@given(mine=_LENGTHS, theirs=_LENGTHS, data=st.data())
async def test_nothing_is_agreed_that_is_not(mine: int, theirs: int, data: st.DataObject) -> None:
    """Entries that are common may be pruned on either side: then nothing is made up."""
    common = data.draw(st.integers(0, min(mine, theirs)))
    first, their_first = (data.draw(st.integers(1, length + 1)) for length in (mine, theirs))
    one, other = History(1, common, mine, first), History(2, common, theirs, their_first)
    wire: Any = Wire(other)
    finder: Any = one
    found = await find_common(wire, finder, Seq(mine), other.position)
    is_gone = theirs < first - 1
    assert found <= common or (found == theirs and is_gone)
    assert wire.questions <= 15


@given(
    seqs=st.integers(0, 1000),
    answers=st.lists(st.lists(st.none() | st.integers(0, 1000), max_size=20), max_size=40),
)
def test_a_comparison_with_a_liar_ends(seqs: int, answers: list[list[int | None]]) -> None:
    comparison = Comparison(Seq(0), Seq(seqs + 1))
    for theirs in answers:
        if comparison.is_over:
            break
        probes = comparison.probes()
        gap = comparison.gap
        assert probes == tuple(sorted(set(probes)))
        assert all(comparison.agreed_seq < seq < comparison.differ_seq for seq in probes)
        try:
            padded = (theirs + [None] * len(probes))[: len(probes)] if theirs else theirs
            comparison.told(probes, probes, padded)
        except WireError:
            return
        assert comparison.gap < gap
