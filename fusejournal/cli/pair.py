"""``fusejournal pair``."""

import shlex
import socket
import time
from contextlib import suppress
from typing import Any, Final

import click

from fusejournal.address import Address, parse_address, parse_peer
from fusejournal.cli import text
from fusejournal.control.client import ask
from fusejournal.errors import FusejournalError, PairingError
from fusejournal.node.state_dir import VolumeState, find_volume

_POLL_SECONDS: Final = 0.5
_EVERYWHERE: Final = frozenset({"", "0.0.0.0", "::"})
_ENDED: Final = {
    "failed": "the code was right, but the two were not paired",
    "expired": "nobody used the code in time: make a new one",
    "closed": "the code was taken back",
}


@click.command(short_help="Make two nodes known to each other.")
@click.argument("volume")
@click.argument("peer", required=False, metavar="[NAME=ADDR:PORT]")
@click.argument("code", required=False)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line: the code; what came of it."
)
def pair(volume: str, peer: str | None, code: str | None, as_json: bool) -> None:
    """Exchange certificates between two nodes that are both mounted, by a code that is good once
    and for ten minutes. Nothing is shipped to or taken from a node that is not paired.

    First on the node that listens: with VOLUME alone, the code is shown, and the command to type on
    the other node, which ships to it. Ctrl-C takes the code back. Without CODE, that command asks
    for it.

    \b
    Examples:
      fusejournal pair srv-data                                      on cellar, which listens
      fusejournal pair srv-data cellar=192.168.1.7:7710 7K3M-Q0ZV-9X2C-HT5A      on the other
    """
    if peer is None:
        _open(find_volume(volume), as_json)
        return
    name, address = parse_peer(peer)
    state = find_volume(volume)
    if code is None:
        code = str(click.prompt("code", err=True))
    reply = ask(state.directory, "pair-with", name=name, address=str(address), code=code)
    if as_json:
        text.echo_json(reply)
        return
    other = reply["peer"]
    text.echo(f"paired with {name} at {address}: {other['fingerprint']}")
    if reply["node"] != name:
        text.echo(f"it calls itself {reply['node']}")
    text.echo(f"volume {state.name} is shipped to it from now on")
    if state.is_mirror:
        text.echo(
            f"this is a mirror, and ships on what it has. If {name} is its primary, that is the "
            f"wrong way round: 'fusejournal peer remove' here and there, then 'fusejournal pair "
            f"{shlex.quote(state.name)}' here, and there what it shows",
            err=True,
        )


def _open(state: VolumeState, as_json: bool) -> None:
    opened = ask(state.directory, "pair-open")
    opened["command"] = _command(state, opened)
    try:
        _show(state, opened, as_json)
        ended = _wait(state, opened["id"], as_json)
    except KeyboardInterrupt:
        with suppress(FusejournalError):
            ask(state.directory, "pair-close", id=opened["id"])
        raise
    if as_json:
        text.echo_json(ended)
    if ended["state"] != "paired":
        raise PairingError(_ENDED.get(ended["state"], ended["state"]))
    if not as_json:
        text.echo(f"paired with {ended['peer']['name']}: {ended['peer']['fingerprint']}")


def _show(state: VolumeState, opened: dict[str, Any], as_json: bool) -> None:
    if as_json:
        text.echo_json(opened)
        return
    if not state.is_mirror:
        text.echo(
            "this is a primary, and takes nothing from the node that uses the code. To ship to a "
            "mirror, have it give out the code, and use it here",
            err=True,
        )
    text.echo(f"{'code':<12}{opened['code']}")
    text.echo(f"{'this node':<12}{opened['node']}, {opened['fingerprint']}")
    minutes = round(opened["seconds_left"] / 60)
    text.echo(f"On the other node, within {minutes} minutes (there with its volume's name):")
    text.echo(f"  {opened['command']}")
    text.echo("waiting for it; Ctrl-C takes the code back", err=True)


def _wait(state: VolumeState, number: int, quiet: bool) -> dict[str, Any]:
    """What became of the code; what happens until then is shown."""
    shown = 0
    while True:
        now = ask(state.directory, "pair-state", id=number)
        forgotten = now["logged"] - len(now["log"])
        for line in [] if quiet else now["log"][max(0, shown - forgotten) :]:
            text.echo(f"fusejournal: {line}", err=True)
        shown = now["logged"]
        if now["state"] != "waiting":
            return now
        time.sleep(_POLL_SECONDS)


def _command(state: VolumeState, opened: dict[str, Any]) -> str:
    listen = parse_address(opened["listen"])
    host = socket.gethostname() if listen.host in _EVERYWHERE else listen.host
    where = f"{opened['node']}={Address(host, listen.port)}"
    return f"fusejournal pair {shlex.quote(state.name)} {shlex.quote(where)} {opened['code']}"
