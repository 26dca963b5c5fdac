"""Pairing two nodes that are both mounted: one gives out a code, and the other uses it."""

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fusejournal.address import Address, parse_address
from fusejournal.admin.live import ask_layer
from fusejournal.admin.own_address import listens_everywhere, shown_address
from fusejournal.errors import PairingError
from fusejournal.node.state_dir import VolumeState
from fusejournal.replication.peer_replies import OpenedCode, PairedWith, PairingState
from fusejournal.replication.status import PeerInfo
from fusejournal.wire.code_state import CodeState

_POLL_SECONDS: Final = 0.5
_ENDED: Final = {
    CodeState.FAILED: "the code was right, but the two were not paired",
    CodeState.EXPIRED: "the code was not used in time: make a new one",
    CodeState.CLOSED: "the code was taken back",
}


@dataclass(frozen=True, kw_only=True)
class PairingCode(OpenedCode):
    """A code that was given out, with the command that uses it on the other node."""

    command: str

    @property
    def may_be_elsewhere(self) -> bool:
        """True if the address in the command is one of several that the node listens at."""
        return listens_everywhere(parse_address(self.listen))


def open_pairing(state: VolumeState) -> PairingCode:
    """Gives out a code, which is good once and for ten minutes; an earlier one is taken back.
    Raises NotRunningError, UsageError where the node does not listen."""
    opened = OpenedCode.from_json(ask_layer(state, "pair-open"))
    where = f"{opened.node}={shown_address(parse_address(opened.listen))}"
    command = f"fusejournal pair VOLUME {shlex.quote(where)} {opened.code}"
    return PairingCode(**vars(opened), command=command)


def pairing_state(state: VolumeState, number: int) -> PairingState:
    """Returns the state of the code *number* (``PairingCode.id``). Raises NotRunningError."""
    return PairingState.from_json(ask_layer(state, "pair-state", id=number))


def await_pairing(state: VolumeState, number: int, tried: Callable[[str], None]) -> PairingState:
    """Waits until the code *number* (``PairingCode.id``) is used or good no more, and returns its
    last state; *tried* is called with a line about each try. Raises NotRunningError."""
    shown = 0
    while True:
        now = pairing_state(state, number)
        forgotten = now.logged - len(now.log)
        for line in now.log[max(0, shown - forgotten) :]:
            tried(line)
        shown = now.logged
        if now.state is not CodeState.WAITING:
            return now
        time.sleep(_POLL_SECONDS)


def paired_peer(state: PairingState) -> PeerInfo:
    """Returns the peer that was paired by a code whose last state is *state*. Raises PairingError
    where none was."""
    if state.state is not CodeState.PAIRED or state.peer is None:
        raise PairingError(_ENDED.get(state.state, state.state))
    return state.peer


def close_pairing(state: VolumeState, number: int) -> PairingState:
    """Takes the code *number* back. Raises NotRunningError."""
    return PairingState.from_json(ask_layer(state, "pair-close", id=number))


def pair_with(
    state: VolumeState, name: str, address: Address, code: str, *, standby: bool = False
) -> PairedWith:
    """Pairs with the node that listens at *address* and gave out *code*; the volume is shipped to
    it from then on, or, *standby*, once this node is the primary, as to the peer *name*. Raises
    NotRunningError, PairingError, WireError."""
    reply = ask_layer(
        state, "pair-with", name=name, address=str(address), code=code, standby=standby
    )
    return PairedWith.from_json(reply)
