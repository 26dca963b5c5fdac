"""States of a session: the table of what may come, and the machine that goes by it. (Real sessions:
replication/test_session_states.py.)"""

from pathlib import Path

import pytest
import trio
import trio.testing

from fusejournal.errors import WireError
from fusejournal.types import Epoch, Position, Seq
from fusejournal.versions.block_source import OfferedTree
from fusejournal.wire.block_messages import TreeProgress, TreeReport
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import (
    Batch,
    Begin,
    Call,
    CallPart,
    Hello,
    Message,
    PairOffer,
    Refusal,
    Welcome,
)
from fusejournal.wire.session import (
    FETCH,
    HANDOFF,
    MIRROR,
    SHIP,
    VOTE,
    WHOLE,
    WITNESS,
    HandshakeState,
    RefusedError,
    hello,
    welcome,
)
from fusejournal.wire.session_connection import SessionConnection
from fusejournal.wire.session_states import (
    SESSION_TRANSITIONS,
    SessionMachine,
    SessionState,
    Side,
    kind_name,
)
from tests.golden.samples import MESSAGES
from tests.golden.store_objects import VERSION

_ELSEWHERE = frozenset({PairOffer, Call, CallPart})
"""Kinds of conversations that are no sessions."""
_ROWS = [(state, side) for state, sides in SESSION_TRANSITIONS.items() for side in sides]


def test_every_state_is_reached_and_has_an_end() -> None:
    assert list(SESSION_TRANSITIONS) == list(SessionState)
    after = {
        state: {target for row in sides.values() for targets in row.values() for target in targets}
        for state, sides in SESSION_TRANSITIONS.items()
    }
    for state in SessionState:
        reached, left = set[SessionState](), [state]
        while left:
            if (one := left.pop()) not in reached:
                reached.add(one)
                left += after[one]
        assert SessionState.OVER in reached
        if state is next(iter(SessionState)):
            assert reached == set(SessionState)


def test_every_kind_may_come_somewhere() -> None:
    kinds = {kind for state, side in _ROWS for kind in SESSION_TRANSITIONS[state][side]}
    assert kinds == {type(message) for message in MESSAGES} - _ELSEWHERE


def test_the_page_names_every_kind() -> None:
    page = Path(hello.__code__.co_filename).with_name("PROTOCOL.md").read_text()
    names = [f"| {number} | {kind_name(type(one))} |" for number, one in enumerate(MESSAGES, 1)]
    assert [name for name in names if name not in page] == []


_OTHER = {
    Side.CONNECTOR: Side.LISTENER,
    Side.LISTENER: Side.CONNECTOR,
    Side.SOURCE: Side.SINK,
    Side.SINK: Side.SOURCE,
}
_POSITION = Position(Epoch(1), Seq(5), 7)
_NODE = HandshakeState("node", VERSION.uuid, _POSITION, Epoch(1), Seq(5), role=MIRROR)
_WELCOME = welcome(_NODE, hello(_NODE, FETCH), is_mirror=True)
_SAMPLES = {type(message): message for message in MESSAGES}


def _hello(purpose: str, wanted_epoch: int = 0) -> Hello:
    return hello(_NODE, purpose, Epoch(wanted_epoch))


_AFTER = {
    SessionState.COMPARING: (_hello(SHIP), _WELCOME),
    SessionState.INFORMING: (_hello(SHIP), _WELCOME._replace(role=WITNESS)),
    SessionState.SEARCHING: (_hello(FETCH), _WELCOME),
    SessionState.AGREED: (_hello(HANDOFF, 2), _WELCOME),
    SessionState.ASKING: (_hello(WHOLE), _WELCOME),
}
"""The greeting and the answer that lead there."""
_REPORTS = {
    SessionState.ASKING: TreeProgress(3, None).told(),
    SessionState.COPYING: OfferedTree(None, "", Seq(1), Seq(9), 1).told(),
}
_ARROWS = [
    (state, side, kind, target)
    for state, side in _ROWS
    for kind, targets in SESSION_TRANSITIONS[state][side].items()
    for target in targets
]


def _pair(side: Side, state: SessionState, greeting: Hello) -> list[SessionMachine]:
    """Both ends of a session that is in *state*: that which is *side*, and the other."""
    if state is not SessionState.ANSWERING:
        return [SessionMachine(side, state), SessionMachine(_OTHER[side], state)]
    pair = [SessionMachine(Side.CONNECTOR), SessionMachine(Side.LISTENER)]
    pair[0].sent(greeting)
    pair[1].received(greeting)
    return pair


@pytest.mark.parametrize(("state", "side", "kind", "target"), _ARROWS)
def test_each_arrow_moves_both_ends(
    state: SessionState, side: Side, kind: type[Message], target: SessionState
) -> None:
    greeting, answer = _AFTER.get(target, (_hello(VOTE, 2), _WELCOME))
    message = {Welcome: answer, TreeReport: _REPORTS.get(target)}.get(kind) or _SAMPLES[kind]
    here, there = _pair(side, state, greeting)
    there.sent(message)
    if isinstance(message, Refusal):
        with pytest.raises(RefusedError, match="has begun"):
            here.received(message)
    else:
        assert here.received(message) is message
    assert here.state is there.state is target
    assert here.is_over is (target is SessionState.OVER)


@pytest.mark.parametrize(("state", "side"), _ROWS)
def test_what_has_no_arrow_ends_the_session(state: SessionState, side: Side) -> None:
    """For who would send it, too."""
    row = SESSION_TRANSITIONS[state][side]
    for message in MESSAGES:
        if type(message) not in row:
            here, there = _pair(side, state, _hello(SHIP))
            words = f"{kind_name(type(message))} may not come while {state.value}: the {side.value}"
            with pytest.raises(WireError, match=f"{words} takes "):
                here.received(message)
            assert here.is_over
            if type(message) not in SESSION_TRANSITIONS[state].get(_OTHER[side], {}):
                with pytest.raises(WireError, match=f"{kind_name(type(message))} may not come"):
                    there.sent(message)
                assert there.is_over
    here, _ = _pair(side, state, _hello(SHIP))
    with pytest.raises(WireError, match="closed the connection"):
        here.received(None)
    assert here.is_over


def test_a_question_what_came_of_a_handoff_ends_with_the_answer() -> None:
    here, there = _pair(Side.CONNECTOR, SessionState.ANSWERING, _hello(HANDOFF))
    there.sent(_WELCOME)
    here.received(_WELCOME)
    assert here.is_over
    assert there.is_over


@pytest.mark.parametrize(
    ("purpose", "source", "sink"),
    [(SHIP, Side.CONNECTOR, Side.LISTENER), (FETCH, Side.LISTENER, Side.CONNECTOR)],
)
def test_the_purpose_says_who_is_the_source(purpose: str, source: Side, sink: Side) -> None:
    ends = {side: SessionMachine(side) for side in (Side.CONNECTOR, Side.LISTENER)}
    ends[Side.CONNECTOR].sent(_hello(purpose))
    ends[Side.LISTENER].received(_hello(purpose))
    ends[Side.LISTENER].sent(_WELCOME)
    ends[Side.CONNECTOR].received(_WELCOME)
    begin, batch = _SAMPLES[Begin], _SAMPLES[Batch]
    for message in (begin, batch):
        ends[source].sent(message)
        ends[sink].received(message)
    with pytest.raises(WireError, match="BATCH may not come"):
        ends[source].received(batch)


async def test_nothing_passes_the_state_of_a_connection_by() -> None:
    one, other = trio.testing.memory_stream_pair()
    async with Connection(other, "192.0.2.2:7", None) as far:
        async with SessionConnection(
            Connection(one, "192.0.2.1:7", "east"), Side.CONNECTOR
        ) as session:
            assert (session.where, session.peer) == ("192.0.2.1:7", "east")
            await session.send(_hello(SHIP))
            await far.send(_WELCOME)
            assert await session.receive() == _WELCOME
            assert session.machine.state is SessionState.COMPARING
            with pytest.raises(WireError, match="BATCH may not come while comparing: the sink"):
                await session.send(_SAMPLES[Batch])
            with pytest.raises(WireError, match="the session is over"):
                await session.send(_SAMPLES[Begin])
            with trio.CancelScope() as scope:
                scope.cancel()
                await session.send(_SAMPLES[Begin])  # who is cancelled hears of that alone
            assert scope.cancelled_caught
        assert await far.receive() == _hello(SHIP)
        assert await far.receive() is None
