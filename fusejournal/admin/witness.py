"""Questions to a witness that runs on this machine. They load little."""

import shlex
import time
from pathlib import Path
from typing import Any, Final

from fusejournal.control.client import ask
from fusejournal.errors import FusejournalError, NotRunningError

_POLL_SECONDS: Final = 0.5


def _ask(directory: Path, command: str, **fields: Any) -> dict[str, Any]:
    try:
        return ask(directory.absolute(), command, **fields)
    except NotRunningError:
        again = f"fusejournal witness run {shlex.quote(str(directory))} --listen ADDR:PORT"
        raise NotRunningError(f"no witness runs in {directory}: {again}") from None


def open_witness_pairing(directory: Path) -> dict[str, Any]:
    """Gives out a code, which is good once and for ten minutes; an earlier one is taken back.
    Raises NotRunningError, which says how to run it; FusejournalError."""
    return _ask(directory, "pair-open")


def await_witness_pairing(directory: Path, number: int) -> dict[str, Any]:
    """Waits until the code *number* is used or good no more, and returns its last state. Raises
    NotRunningError, which says how to run it; FusejournalError."""
    while (state := _ask(directory, "pair-state", id=number))["state"] == "waiting":
        time.sleep(_POLL_SECONDS)
    return state


def check_paired(state: dict[str, Any]) -> None:
    """Raises FusejournalError where a code's last *state* is that it was not used."""
    if state["state"] != "paired":
        raise FusejournalError(f"no node has paired: the code is {state['state']}")


def witness_status(directory: Path) -> dict[str, Any]:
    """Returns what a witness has seen. Raises NotRunningError, FusejournalError."""
    return _ask(directory, "status")


def forget_node(directory: Path, name: str) -> None:
    """Has a witness forget a node. Raises NotRunningError, FusejournalError."""
    _ask(directory, "peer-remove", name=name)
