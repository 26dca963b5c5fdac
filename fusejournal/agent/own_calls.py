"""Questions of this machine's admin to its agent, over the local socket: pairing, and the consoles
that it answers."""

import time
from typing import Any, Final

from fusejournal.agent.console_replies import ConsoleCode, ConsoleList, ConsolePairingState
from fusejournal.agent.place import agent_directory
from fusejournal.control.client import ask
from fusejournal.errors import FusejournalError, NotRunningError
from fusejournal.wire.code_state import CodeState

_POLL_SECONDS: Final = 0.5


def _ask(command: str, **fields: Any) -> dict[str, Any]:
    try:
        return ask(agent_directory(), command, **fields)
    except NotRunningError:
        raise NotRunningError("no agent runs here: fusejournal agent") from None


def open_console_pairing() -> ConsoleCode:
    """Gives out a code, which is good once and for ten minutes; an earlier one is taken back.
    Raises NotRunningError, FusejournalError."""
    return ConsoleCode.from_json(_ask("pair-open"))


def await_console_pairing() -> ConsolePairingState:
    """Waits until the code is used or good no more, and returns its last state. Raises
    NotRunningError, FusejournalError."""
    while True:
        state = ConsolePairingState.from_json(_ask("pair-state"))
        if state.state is not CodeState.WAITING:
            return state
        time.sleep(_POLL_SECONDS)


def check_console_paired(state: ConsolePairingState) -> None:
    """Raises FusejournalError where a code's last *state* is that it was not used."""
    if state.state is not CodeState.PAIRED:
        raise FusejournalError(f"no console has paired: the code is {state.state}")


def list_consoles() -> ConsoleList:
    """Returns the consoles that are answered. Raises NotRunningError, FusejournalError."""
    return ConsoleList.from_json(_ask("console-list"))


def forget_console(name: str) -> None:
    """Has a console answered no more. Raises NotRunningError, FusejournalError."""
    _ask("console-remove", name=name)
