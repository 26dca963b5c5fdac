"""Questions of this machine's admin to its agent, over the local socket: pairing, and the consoles
that it answers."""

import time
from typing import Any, Final

from fusejournal.agent.place import agent_directory
from fusejournal.control.client import ask
from fusejournal.errors import FusejournalError, NotRunningError

_POLL_SECONDS: Final = 0.5


def _ask(command: str, **fields: Any) -> dict[str, Any]:
    try:
        return ask(agent_directory(), command, **fields)
    except NotRunningError:
        raise NotRunningError("no agent runs here: fusejournal agent") from None


def open_console_pairing() -> dict[str, Any]:
    """Gives out a code, which is good once and for ten minutes; an earlier one is taken back.
    Raises NotRunningError, FusejournalError."""
    return _ask("pair-open")


def await_console_pairing() -> dict[str, Any]:
    """Waits until the code is used or good no more, and returns its last state. Raises
    NotRunningError, FusejournalError."""
    while (state := _ask("pair-state"))["state"] == "waiting":
        time.sleep(_POLL_SECONDS)
    return state


def check_console_paired(state: dict[str, Any]) -> None:
    """Raises FusejournalError where a code's last *state* is that it was not used."""
    if state["state"] != "paired":
        raise FusejournalError(f"no console has paired: the code is {state['state']}")


def list_consoles() -> dict[str, Any]:
    """Returns the consoles that are answered. Raises NotRunningError, FusejournalError."""
    return _ask("console-list")


def forget_console(name: str) -> None:
    """Has a console answered no more. Raises NotRunningError, FusejournalError."""
    _ask("console-remove", name=name)
