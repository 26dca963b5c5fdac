"""Questions to a witness that runs on this machine. They load little."""

import shlex
import time
from pathlib import Path
from typing import Any, Final

from fusejournal.control.client import ask
from fusejournal.errors import FusejournalError, NotRunningError
from fusejournal.node.replies import WitnessStatus
from fusejournal.replication.peer_replies import OpenedCode, PairingState
from fusejournal.replication.status import PeerInfo
from fusejournal.wire.code_state import CodeState

_POLL_SECONDS: Final = 0.5


def _ask(directory: Path, command: str, **fields: Any) -> dict[str, Any]:
    try:
        return ask(directory.absolute(), command, **fields)
    except NotRunningError:
        again = f"fusejournal witness run {shlex.quote(str(directory))} --listen ADDR:PORT"
        raise NotRunningError(f"no witness runs in {directory}: {again}") from None


def open_witness_pairing(directory: Path) -> OpenedCode:
    """Gives out a code, which is good once and for ten minutes; an earlier one is taken back.
    Raises NotRunningError, which says how to run it; FusejournalError."""
    return OpenedCode.from_json(_ask(directory, "pair-open"))


def await_witness_pairing(directory: Path, number: int) -> PairingState:
    """Waits until the code *number* is used or good no more, and returns its last state. Raises
    NotRunningError, which says how to run it; FusejournalError."""
    while True:
        state = PairingState.from_json(_ask(directory, "pair-state", id=number))
        if state.state is not CodeState.WAITING:
            return state
        time.sleep(_POLL_SECONDS)


def paired_node(state: PairingState) -> PeerInfo:
    """Returns the node that was paired by a code whose last state is *state*. Raises
    FusejournalError where none was."""
    if state.state is not CodeState.PAIRED or state.peer is None:
        raise FusejournalError(f"no node has paired: the code is {state.state}")
    return state.peer


def witness_status(directory: Path) -> WitnessStatus:
    """Returns what a witness has seen. Raises NotRunningError, FusejournalError."""
    return WitnessStatus.from_json(_ask(directory, "status"))


def forget_node(directory: Path, name: str) -> None:
    """Has a witness forget a node. Raises NotRunningError, FusejournalError."""
    _ask(directory, "peer-remove", name=name)
