"""The states of a session: in each, which kinds of message may come to which side, and what follows
from them, as a table; and the machine that goes by it. Pure.

Both ends of a session have a :class:`SessionMachine`, and report to it each message that they send
or get (session_connection.py does): the table alone moves it. What has no arrow in it ends the
session. The first state is the first of the enumeration. A side that is not in the row of a state
hears nothing there: what comes all the same waits for the next state of that side. PROTOCOL.md
shows what :func:`session_diagram` makes of the table. (Pairing, and the calls of a console, are no
sessions: pairing.py, agent/calls.py.)

Source: h11's ``_state.py``, for states as a table."""

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from fusejournal.errors import WireError
from fusejournal.wire.block_messages import AskBlocks, AskTree, Blocks, TreeReport, is_last_report
from fusejournal.wire.frames import (
    Ack,
    AskChains,
    Batch,
    Begin,
    Chains,
    Diverged,
    End,
    Hello,
    MembersReport,
    Message,
    Offer,
    Ping,
    Refusal,
    Welcome,
)
from fusejournal.wire.session import FETCH, HANDOFF, SHIP, WHOLE, WITNESS, RefusedError


class Side(Enum):
    """One of the two sides of a session. Where entries are shipped, a side is the source or the
    sink, whichever of them has connected."""

    CONNECTOR = "connector"
    LISTENER = "listener"
    SOURCE = "source"
    SINK = "sink"


class SessionState(Enum):
    """A session, as both of its sides see it."""

    GREETING = "greeting"
    ANSWERING = "answering"
    COMPARING = "comparing"
    """The source looks for the sink's position in its own journal."""
    STREAMING = "streaming"
    INFORMING = "informing a witness"
    SEARCHING = "searching for a fetch"
    """The same as COMPARING, but the source may have nothing to give."""
    FETCHING = "fetching"
    AGREED = "agreed to a handoff"
    OFFERED = "offered a reign"
    ASKING = "asking for a tree"
    COPYING = "copying a tree"
    OVER = "over"


_S: Final = SessionState
_REFUSED: Final[dict[type[Message], tuple[SessionState, ...]]] = {Refusal: (_S.OVER,)}

SESSION_TRANSITIONS: Final[
    Mapping[SessionState, Mapping[Side, Mapping[type[Message], tuple[SessionState, ...]]]]
] = {
    _S.GREETING: {Side.LISTENER: {Hello: (_S.ANSWERING,)}},
    # What the answer leads to, the greeting has asked for; votes and questions end
    # with it.
    _S.ANSWERING: {
        Side.CONNECTOR: {
            Welcome: (_S.COMPARING, _S.INFORMING, _S.SEARCHING, _S.AGREED, _S.ASKING, _S.OVER),
            **_REFUSED,
        }
    },
    _S.COMPARING: {
        Side.SINK: {
            AskChains: (_S.COMPARING,),
            Begin: (_S.STREAMING,),
            Diverged: (_S.OVER,),
            **_REFUSED,
        },
        Side.SOURCE: {Chains: (_S.COMPARING,), **_REFUSED},
    },
    _S.STREAMING: {
        Side.SINK: {
            Batch: (_S.STREAMING,),
            Ping: (_S.STREAMING,),
            MembersReport: (_S.STREAMING,),
        },
        Side.SOURCE: {Ack: (_S.STREAMING,), **_REFUSED},
    },
    _S.INFORMING: {
        Side.SINK: {Ping: (_S.INFORMING,), MembersReport: (_S.INFORMING,)},
        Side.SOURCE: {Ack: (_S.INFORMING,), **_REFUSED},
    },
    _S.SEARCHING: {
        Side.SINK: {
            AskChains: (_S.SEARCHING,),
            Begin: (_S.FETCHING,),
            Diverged: (_S.OVER,),
            End: (_S.OVER,),
            **_REFUSED,
        },
        Side.SOURCE: {Chains: (_S.SEARCHING,)},
    },
    _S.FETCHING: {Side.SINK: {Batch: (_S.FETCHING,), End: (_S.OVER,), **_REFUSED}},
    # A refusal that comes before the offer was sent is heard after it.
    _S.AGREED: {Side.LISTENER: {Offer: (_S.OFFERED,)}, Side.CONNECTOR: _REFUSED},
    _S.OFFERED: {Side.CONNECTOR: {Welcome: (_S.OVER,), **_REFUSED}},
    _S.ASKING: {
        Side.LISTENER: {AskTree: (_S.ASKING,)},
        # It tells how far the making of a version is, and at last the version.
        Side.CONNECTOR: {TreeReport: (_S.ASKING, _S.COPYING), **_REFUSED},
    },
    _S.COPYING: {
        Side.LISTENER: {AskTree: (_S.ASKING,), AskBlocks: (_S.COPYING,)},
        Side.CONNECTOR: {Blocks: (_S.COPYING,), **_REFUSED},
    },
    _S.OVER: {},
}


_ROLES: Final[Mapping[tuple[str, Side], Side]] = {
    (SHIP, Side.CONNECTOR): Side.SOURCE,
    (SHIP, Side.LISTENER): Side.SINK,
    (FETCH, Side.CONNECTOR): Side.SINK,
    (FETCH, Side.LISTENER): Side.SOURCE,
}
"""The role of each side, by the purpose of the greeting."""

_AFTER_WELCOME: Final[Mapping[str, SessionState]] = {
    SHIP: _S.COMPARING,
    FETCH: _S.SEARCHING,
    HANDOFF: _S.AGREED,
    WHOLE: _S.ASKING,
}
"""The state after an answer, by the purpose of the greeting; others are over by it."""


class SessionMachine:
    """The state of one session, from *state* on, as its end has it that is *side*."""

    def __init__(self, side: Side, state: SessionState = _S.GREETING) -> None:
        self.state = state
        self._sides = {side}
        self._greeting: Hello | None = None

    @property
    def is_over(self) -> bool:
        """True once nothing may come or go any more."""
        return self.state is _S.OVER

    def received(self, message: Message | None) -> Any:
        """Moves by *message*, which has come (None: the other end has ended the connection), and
        returns it; the caller names the kinds that may come as its type. Raises RefusedError for a
        refusal that may come, WireError for what may not: both are the session's end."""
        if message is None:
            self.state = _S.OVER
            raise WireError("the other side closed the connection")
        self._move(message, comes=True)
        if isinstance(message, Refusal):
            raise RefusedError.of(message)
        return message

    def sent(self, message: Message) -> None:
        """Moves by *message*, which goes to the other end. Raises WireError where it may not: that
        is the session's end."""
        self._move(message, comes=False)

    def _move(self, message: Message, *, comes: bool) -> None:
        before, self.state = self.state, _S.OVER
        rows = {
            side: row
            for side, row in SESSION_TRANSITIONS[before].items()
            if (side in self._sides) is comes
        }
        kind = type(message)
        targets = next((row[kind] for row in rows.values() if kind in row), ())
        if not targets:
            words = [f"{kind_name(kind)} may not come while {before.value}"]
            words += [
                f"the {side.value} takes {', '.join(map(kind_name, row))}"
                for side, row in rows.items()
            ]
            raise WireError(": ".join(words))
        if isinstance(message, Hello):
            self._greeting = message
            roles = [_ROLES.get((message.purpose, side)) for side in self._sides]
            self._sides.update(role for role in roles if role is not None)
        self.state = targets[0] if len(targets) == 1 else self._chosen(message)
        assert self.state in targets

    def _chosen(self, message: Message) -> SessionState:
        """Returns to which of several states *message* leads. Raises WireError for a report that
        cannot be read."""
        if isinstance(message, TreeReport):
            return _S.COPYING if is_last_report(message) else _S.ASKING
        assert isinstance(message, Welcome)
        assert self._greeting is not None
        greeting = self._greeting
        if greeting.purpose == SHIP and message.role == WITNESS:
            return _S.INFORMING
        if greeting.purpose == HANDOFF and not greeting.wanted_epoch:
            return _S.OVER  # it asks what came of one
        return _AFTER_WELCOME.get(greeting.purpose, _S.OVER)


def kind_name(kind: type[Message]) -> str:
    """Returns the name of a kind of message, as pages have it."""
    if kind is MembersReport:
        return "MEMBERS"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).upper()


def session_diagram() -> str:
    """Returns the table in Mermaid's language: an arrow for each two states, with what has come to
    which side. The end has no box."""
    lines = ["stateDiagram-v2"]
    lines += [f'    state "{one.value}" as {_box(one)}' for one in _S if " " in one.value]
    lines.append(f"    [*] --> {_box(next(iter(_S)))}")
    arrows: dict[tuple[SessionState, SessionState], list[str]] = {}
    for state, sides in SESSION_TRANSITIONS.items():
        for side, row in sides.items():
            for kind, targets in row.items():
                for target in targets:
                    words = f"{kind_name(kind)} to {side.value}"
                    arrows.setdefault((state, target), []).append(words)
    for (state, target), kinds in arrows.items():
        lines.append(f"    {_box(state)} --> {_box(target)} : {' / '.join(kinds)}")
    return "\n".join(lines)


def _box(state: SessionState) -> str:
    return "[*]" if state is SessionState.OVER else state.value.replace(" ", "_")
