"""The answers of an agent to its machine's admin about consoles, as they are sent (consoles.py) and
as they are read (own_calls.py)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fusejournal.control.reply import Reply, ReportedState
from fusejournal.wire.code_state import CodeState


@dataclass(frozen=True, kw_only=True)
class ConsoleCode(Reply):
    """A code for a console that was given out."""

    code: str
    node: str
    listen: str
    """The address where the agent listens."""
    fingerprint: str
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class ConsolePairingState(Reply):
    """The state of such a code, and the console that was paired by it."""

    NESTED: ClassVar[Mapping[str, type[ReportedState]]] = {"state": CodeState}

    state: CodeState
    console: str | None
    fingerprint: str | None


@dataclass(frozen=True, kw_only=True)
class ConsoleList(Reply):
    """The names of the consoles that are answered."""

    consoles: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ConsoleRemoved(Reply):
    """The name of a console that is answered no more."""

    removed: str
