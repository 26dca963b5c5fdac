"""The states of peers, mirrors and volumes: what each is good for, and which events it knows."""

from collections.abc import Mapping
from typing import Any

import pytest

from fusejournal.replication.states import (
    MIRROR_TRANSITIONS,
    PEER_TRANSITIONS,
    MirrorEvent,
    MirrorState,
    PeerEvent,
    PeerState,
    diagram,
)
from fusejournal.volume.acceptance import ACCEPTANCE_TRANSITIONS, Acceptance, AcceptanceEvent

TABLES: list[tuple[Any, Any, Any]] = [
    (PEER_TRANSITIONS, PeerState, PeerEvent),
    (MIRROR_TRANSITIONS, MirrorState, MirrorEvent),
]
_ACCEPTANCE: Any = (ACCEPTANCE_TRANSITIONS, Acceptance, AcceptanceEvent)


@pytest.mark.parametrize(
    ("table", "states", "events"), [*TABLES, _ACCEPTANCE], ids=["peer", "mirror", "volume"]
)
def test_every_state_is_reached_and_every_event_moves_something(
    table: Mapping[Any, Mapping[Any, Any]], states: Any, events: Any
) -> None:
    assert list(table) == list(states)
    reached, left = set(), [next(iter(states))]
    while left:
        state = left.pop()
        if state not in reached:
            reached.add(state)
            left += table[state].values()
    assert reached == set(states)
    for event in events:
        assert any(row.get(event, state) is not state for state, row in table.items()), event


def test_a_session_knows_all_acknowledgements() -> None:
    """From its beginning to its end."""
    for table, states, kinds in TABLES:
        events = (kinds.ACKED, kinds.ACKED_FULL, kinds.ACKED_FAILED)
        within = {row[event] for row in table.values() for event in events if event in row}
        within.add(states.CATCHING_UP)
        assert all(event in table[state] for state in within for event in events)


def test_a_session_can_begin_wherever_one_is_tried() -> None:
    for row in PEER_TRANSITIONS.values():
        assert PeerEvent.BEGAN in PEER_TRANSITIONS[row[PeerEvent.TRIED]]
    for greeted in MIRROR_TRANSITIONS.values():
        assert MirrorEvent.BEGAN in MIRROR_TRANSITIONS[greeted[MirrorEvent.GREETED]]


def test_a_mirror_between_sessions_knows_whatever_comes_to_several_at_once() -> None:
    """A peer that is compared may be refused, lost or parted after the next has greeted already."""
    ends = {MirrorEvent.LOST, MirrorEvent.ENDED}
    ends |= {MirrorEvent.REFUSED, MirrorEvent.REFUSED_FULL, MirrorEvent.REFUSED_COPY}
    between = (ends - {MirrorEvent.ENDED}) | {
        MirrorEvent.GREETED,
        MirrorEvent.NOT_BEGUN,
        MirrorEvent.PARTED,
    }
    acks = {MirrorEvent.ACKED, MirrorEvent.ACKED_FULL, MirrorEvent.ACKED_FAILED}
    within = _closure({MirrorState.CATCHING_UP}, acks) | {MirrorState.CONNECTING}
    ended = {MIRROR_TRANSITIONS[state][event] for state in within for event in ends}
    idle = _closure({MirrorState.WAITING} | ended, between)
    assert idle == set(MirrorState) - (within - {MirrorState.CONNECTING, MirrorState.MIRROR_FULL})


def _closure(states: set[MirrorState], events: set[MirrorEvent]) -> set[MirrorState]:
    """The states that *events* lead to from *states*, each of which has to know them all."""
    reached, left = set(), set(states)
    while left:
        state = left.pop()
        reached.add(state)
        assert events <= MIRROR_TRANSITIONS[state].keys(), state
        left |= {MIRROR_TRANSITIONS[state][event] for event in events} - reached
    return reached


def test_a_diagram_has_each_arrow_once() -> None:
    for lines in (diagram(PEER_TRANSITIONS), diagram(MIRROR_TRANSITIONS)):
        arrows = [line for line in lines.splitlines() if " --> " in line]
        assert len({line.partition(" : ")[0] for line in arrows}) == len(arrows)
