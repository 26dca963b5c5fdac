"""The states of a peer that is shipped to, and of a mirror that receives: each with the events that
move it, as a table. Pure.

An event that a state's row does not have cannot come there. ``wire/PROTOCOL.md`` shows what
:func:`diagram` makes of the tables."""

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final, TypeVar

from fusejournal.control.reply import ReportedState


class PeerState(ReportedState):
    """A peer, as its shipper and people see it."""

    CONNECTING = "connecting"
    CATCHING_UP = "catching up"
    STREAMING = "streaming"
    MIRROR_FULL = "mirror full"
    MIRROR_FAILED = "mirror failed"
    PAUSED = "paused"
    DIVERGED = "diverged"
    REFUSED = "refused"
    NEEDS_COPY = "needs full copy"


class PeerEvent(Enum):
    """Something that happens to a shipper."""

    HELD = "nothing to ship on yet"
    TRIED = "tried"
    BEGAN = "BEGIN"
    ACKED = "ACK ok"
    ACKED_FULL = "ACK full"
    ACKED_FAILED = "ACK failed"
    LOST = "lost"
    REFUSED = "REFUSAL"
    REFUSED_FULL = "REFUSAL full"
    PARTED = "DIVERGED"
    PAUSED = "paused"
    LACKS = "not in the journal any more"


class MirrorState(ReportedState):
    """A mirror, as its receiver and people see it."""

    WAITING = "waiting for a primary"
    CONNECTING = "connecting"
    CATCHING_UP = "catching up"
    STREAMING = "streaming"
    MIRROR_FULL = "mirror full"
    MIRROR_FAILED = "mirror failed"
    DIVERGED = "diverged"
    REFUSED = "refused"
    NEEDS_COPY = "needs full copy"


class MirrorEvent(Enum):
    """Something that happens to a receiver."""

    GREETED = "HELLO"
    NOT_BEGUN = "no BEGIN came"
    BEGAN = "BEGIN"
    ACKED = "ACK ok"
    ACKED_FULL = "ACK full"
    ACKED_FAILED = "ACK failed"
    LOST = "lost"
    ENDED = "over"
    REFUSED = "REFUSAL"
    REFUSED_FULL = "REFUSAL full"
    REFUSED_COPY = "REFUSAL copy"
    PARTED = "DIVERGED"


S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)


def _table(
    states: Iterable[S], everywhere: Mapping[E, S], own: Mapping[S, Mapping[E, S]]
) -> dict[S, dict[E, S]]:
    return {state: {**everywhere, **own.get(state, {})} for state in states}


_PEER_SESSION: Final = {
    PeerEvent.ACKED: PeerState.STREAMING,
    PeerEvent.ACKED_FULL: PeerState.MIRROR_FULL,
    PeerEvent.ACKED_FAILED: PeerState.MIRROR_FAILED,
}

PEER_TRANSITIONS: Final = _table(
    PeerState,
    {
        PeerEvent.HELD: PeerState.CONNECTING,
        PeerEvent.TRIED: PeerState.CONNECTING,
        PeerEvent.LOST: PeerState.CONNECTING,
        PeerEvent.REFUSED: PeerState.REFUSED,
        PeerEvent.REFUSED_FULL: PeerState.MIRROR_FULL,
        PeerEvent.PARTED: PeerState.DIVERGED,
        PeerEvent.PAUSED: PeerState.PAUSED,
        PeerEvent.LACKS: PeerState.NEEDS_COPY,
    },
    {
        PeerState.CONNECTING: {PeerEvent.BEGAN: PeerState.CATCHING_UP},
        PeerState.CATCHING_UP: _PEER_SESSION,
        PeerState.STREAMING: _PEER_SESSION,
        PeerState.MIRROR_FAILED: _PEER_SESSION,
        # The reason why the last session ended is shown while the next is tried.
        PeerState.MIRROR_FULL: {
            **_PEER_SESSION,
            PeerEvent.TRIED: PeerState.MIRROR_FULL,
            PeerEvent.BEGAN: PeerState.CATCHING_UP,
        },
        PeerState.DIVERGED: {
            PeerEvent.TRIED: PeerState.DIVERGED,
            PeerEvent.BEGAN: PeerState.CATCHING_UP,
        },
        PeerState.REFUSED: {
            PeerEvent.TRIED: PeerState.REFUSED,
            PeerEvent.BEGAN: PeerState.CATCHING_UP,
        },
    },
)

_MIRROR_SESSION: Final = {
    MirrorEvent.ACKED: MirrorState.STREAMING,
    MirrorEvent.ACKED_FULL: MirrorState.MIRROR_FULL,
    MirrorEvent.ACKED_FAILED: MirrorState.MIRROR_FAILED,
}

MIRROR_TRANSITIONS: Final = _table(
    MirrorState,
    {
        MirrorEvent.GREETED: MirrorState.CONNECTING,
        MirrorEvent.LOST: MirrorState.WAITING,
        MirrorEvent.ENDED: MirrorState.WAITING,
        MirrorEvent.REFUSED: MirrorState.REFUSED,
        MirrorEvent.REFUSED_FULL: MirrorState.MIRROR_FULL,
        MirrorEvent.REFUSED_COPY: MirrorState.NEEDS_COPY,
        MirrorEvent.PARTED: MirrorState.DIVERGED,
    },
    {
        MirrorState.CONNECTING: {
            MirrorEvent.BEGAN: MirrorState.CATCHING_UP,
            MirrorEvent.NOT_BEGUN: MirrorState.WAITING,
        },
        MirrorState.CATCHING_UP: _MIRROR_SESSION,
        MirrorState.STREAMING: _MIRROR_SESSION,
        MirrorState.MIRROR_FULL: {
            **_MIRROR_SESSION,
            MirrorEvent.NOT_BEGUN: MirrorState.MIRROR_FULL,
        },
        MirrorState.MIRROR_FAILED: _MIRROR_SESSION,
        # These two are not mended by another attempt.
        MirrorState.DIVERGED: {
            MirrorEvent.LOST: MirrorState.DIVERGED,
            MirrorEvent.NOT_BEGUN: MirrorState.DIVERGED,
        },
        MirrorState.NEEDS_COPY: {
            MirrorEvent.LOST: MirrorState.NEEDS_COPY,
            MirrorEvent.NOT_BEGUN: MirrorState.NEEDS_COPY,
        },
        MirrorState.REFUSED: {MirrorEvent.NOT_BEGUN: MirrorState.REFUSED},
        MirrorState.WAITING: {MirrorEvent.NOT_BEGUN: MirrorState.WAITING},
    },
)


def diagram(transitions: Mapping[S, Mapping[E, S]]) -> str:
    """Returns *transitions* in Mermaid's language: from the first state, an arrow for each two
    states, and those of all states to one as from ``any``. What changes nothing is left out."""
    states = list(transitions)
    lines = ["stateDiagram-v2"]
    lines += [
        f'    state "{state.value}" as {_id(state)}' for state in states if " " in state.value
    ]
    lines.append(f"    [*] --> {_id(states[0])}")
    events = list(dict.fromkeys(event for row in transitions.values() for event in row))
    arrows: dict[tuple[str, str], list[str]] = {}
    for event in events:
        rows = {state: row[event] for state, row in transitions.items() if event in row}
        moved = {state: target for state, target in rows.items() if target is not state}
        first = next(iter(moved.values()))
        if len(rows) == len(states) and set(moved.values()) == {first}:
            staying = [state for state in states if state not in moved and state is not first]
            exceptions = f" (but {', '.join(state.value for state in staying)})" if staying else ""
            arrows.setdefault(("any", _id(first)), []).append(event.value + exceptions)
        else:
            for state, target in moved.items():
                arrows.setdefault((_id(state), _id(target)), []).append(event.value)
    lines += [f"    {one} --> {other} : {' / '.join(on)}" for (one, other), on in arrows.items()]
    return "\n".join(lines)


def _id(state: Enum) -> str:
    return str(state.value).replace(" ", "_")
