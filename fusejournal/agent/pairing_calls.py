"""Answers to consoles that pair a volume's node with another one, as ``fusejournal pair`` does: one
node gives out a code, and the other uses it."""

from typing import Any

from fusejournal.address import check_peer_name, parse_remote
from fusejournal.admin.pair import close_pairing, open_pairing, pair_with, pairing_state
from fusejournal.agent.command_lines import command_line
from fusejournal.agent.fields import Fields
from fusejournal.node.registry import find_named
from fusejournal.replication.peer_replies import PairingState


def open_code(fields: Fields) -> dict[str, Any]:
    """Gives out a code, which is good once and for ten minutes; an earlier one is taken back.
    ``use_command`` is the command for the other node, and ``may_be_elsewhere`` True where the
    address in it is one of several. Raises NotRunningError, UsageError where the node does not
    listen, FusejournalError."""
    state = find_named(fields.text("volume"))
    opened = open_pairing(state)
    raw = opened.to_json()
    return {
        **raw,
        "use_command": raw["command"],
        "may_be_elsewhere": opened.may_be_elsewhere,
        "is_mirror": state.is_mirror,
        "command": command_line("pair", state.name),
    }


def code_state(fields: Fields) -> dict[str, Any]:
    """Returns the state of the code ``id``, and the peer that was paired by it. Raises
    NotRunningError, FusejournalError."""
    state = find_named(fields.text("volume"))
    return _answer(state.name, pairing_state(state, fields.number("id")))


def close_code(fields: Fields) -> dict[str, Any]:
    """Takes the code ``id`` back. Raises NotRunningError, FusejournalError."""
    state = find_named(fields.text("volume"))
    return _answer(state.name, close_pairing(state, fields.number("id")))


def use_code(fields: Fields) -> dict[str, Any]:
    """Pairs with the node at ``address``, called ``peer``, that gave out ``code``; ``standby``:
    the volume is shipped to it only once this node is the primary. Raises UsageError,
    NotRunningError, PairingError, WireError, FusejournalError."""
    state = find_named(fields.text("volume"))
    name, address = check_peer_name(fields.text("peer")), parse_remote(fields.text("address"))
    standby = fields.flag("standby")
    paired = pair_with(state, name, address, fields.text("code"), standby=standby)
    words = ("pair", state.name, f"{name}={address}", "CODE")
    return {
        **paired.to_json(),
        "is_mirror": state.is_mirror,
        "command": command_line(*words, options=[("--standby", standby)]),
    }


def _answer(volume: str, state: PairingState) -> dict[str, Any]:
    return {**state.to_json(), "command": command_line("pair", volume)}
