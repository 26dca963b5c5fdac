"""The states of a volume towards changes, with the events that move it, as a table. Pure.

What is FAILED stays so until the volume is mounted again. Changes are HELD for a handoff alone,
which is begun only where they are taken. ``ARCHITECTURE.md`` shows the diagram of the table."""

from enum import Enum, StrEnum
from typing import Final


class Acceptance(StrEnum):
    """The fate of a change that a caller asks for."""

    TAKING = "taking changes"
    HOLDING = "holding changes"
    REFUSING = "refusing changes"
    FAILED = "failed"


class AcceptanceEvent(Enum):
    """Something that decides about that."""

    TAKE = "take them"
    HOLD = "hold them"
    REFUSE = "refuse them"
    FAIL = "a disk or the volume has failed"


_ANYWHERE: Final = {
    AcceptanceEvent.TAKE: Acceptance.TAKING,
    AcceptanceEvent.REFUSE: Acceptance.REFUSING,
    AcceptanceEvent.FAIL: Acceptance.FAILED,
}

ACCEPTANCE_TRANSITIONS: Final = {
    Acceptance.TAKING: {**_ANYWHERE, AcceptanceEvent.HOLD: Acceptance.HOLDING},
    Acceptance.HOLDING: _ANYWHERE,
    Acceptance.REFUSING: _ANYWHERE,
    Acceptance.FAILED: dict.fromkeys(_ANYWHERE, Acceptance.FAILED),
}
