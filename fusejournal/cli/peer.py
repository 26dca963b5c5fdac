"""``fusejournal peer``: the mirrors that a volume is shipped to, or that ship to it."""

from typing import Any

import click

from fusejournal.address import parse_peer
from fusejournal.cli import text
from fusejournal.control.client import ask
from fusejournal.errors import NotRunningError
from fusejournal.node.state_dir import VolumeState, find_volume, hold_volume
from fusejournal.replication.peers import PeerBook, describe


@click.group(short_help="The nodes that a volume is shipped to.")
def peer() -> None:
    """Add, remove, list, pause and resume the peers of a volume, mounted or not. A peer counts when
    it is paired, too: 'fusejournal pair' does both at once.

    \b
    Examples:
      fusejournal peer list srv-data
      fusejournal peer pause srv-data cellar
    """


_VOLUME = click.argument("volume")
_NAME = click.argument("name")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


@peer.command()
@_VOLUME
@click.argument("peer", metavar="NAME=ADDR:PORT")
@_JSON
def add(volume: str, peer: str, as_json: bool) -> None:
    """Ship VOLUME to the node that listens at ADDR:PORT, and call it NAME.

    \b
    Examples:
      fusejournal peer add srv-data cellar=192.168.1.7:7710
      fusejournal peer add srv-data cellar=[2001:db8::7]:7710
    """
    name, address = parse_peer(peer)
    state = find_volume(volume)
    try:
        reply = ask(state.directory, "peer-add", name=name, address=str(address))
    except NotRunningError:
        with hold_volume(state):
            book = PeerBook.load(state.directory)
            added = book.add(name, address)
            book.save()
        reply = {"added": added, "peer": describe(book.get(name))}
    if as_json:
        text.echo_json(reply)
        return
    text.echo(f"peer {name} at {address}" + ("" if reply["added"] else ", as before"))
    if reply["peer"]["fingerprint"] is None and not reply.get("insecure"):
        text.echo(
            f"not paired yet: 'fusejournal pair' on {name}, then here what it shows", err=True
        )


@peer.command()
@_VOLUME
@_NAME
@_JSON
def remove(volume: str, name: str, as_json: bool) -> None:
    """Forget the peer NAME and its certificate. What it has of VOLUME stays there.

    \b
    Example:
      fusejournal peer remove srv-data cellar
    """
    state = find_volume(volume)
    try:
        reply = ask(state.directory, "peer-remove", name=name)
    except NotRunningError:
        with hold_volume(state):
            book = PeerBook.load(state.directory)
            reply = {"peer": describe(book.get(name))}
            book.remove(name)
            book.save()
    if as_json:
        text.echo_json(reply)
    else:
        text.echo(f"peer {name} removed")


@peer.command("list")
@_VOLUME
@_JSON
def list_command(volume: str, as_json: bool) -> None:
    """List the peers of VOLUME. How shipping goes is in 'fusejournal status VOLUME'.

    \b
    Examples:
      fusejournal peer list srv-data
      fusejournal peer list srv-data --json
    """
    state = find_volume(volume)
    try:
        reply = ask(state.directory, "peer-list")
    except NotRunningError:
        book = PeerBook.load(state.directory)
        reply = {
            "node": None,
            "fingerprint": None,
            "peers": [describe(one) for one in book.list()],
        }
    if as_json:
        text.echo_json(reply)
    elif not reply["peers"]:
        text.echo(f"volume {state.name} has no peers: see 'fusejournal pair --help'")
    else:
        _show(reply["peers"])


@peer.command()
@_VOLUME
@_NAME
@_JSON
def pause(volume: str, name: str, as_json: bool) -> None:
    """Ship nothing to the peer NAME until 'fusejournal peer resume'. What it lacks is kept.

    \b
    Example:
      fusejournal peer pause srv-data cellar
    """
    _set_paused(find_volume(volume), name, True, as_json)


@peer.command()
@_VOLUME
@_NAME
@_JSON
def resume(volume: str, name: str, as_json: bool) -> None:
    """End the pause of the peer NAME, or try again at once what failed or needs a full copy.

    \b
    Example:
      fusejournal peer resume srv-data cellar
    """
    _set_paused(find_volume(volume), name, False, as_json)


def _set_paused(state: VolumeState, name: str, paused: bool, as_json: bool) -> None:
    try:
        reply = ask(state.directory, "peer-pause" if paused else "peer-resume", name=name)
    except NotRunningError:
        with hold_volume(state):
            book = PeerBook.load(state.directory)
            changed = book.pause(name) if paused else book.resume(name)
            book.save()
        reply = {"changed": changed, "peer": describe(book.get(name))}
    if as_json:
        text.echo_json(reply)
    else:
        words = "paused" if paused else "resumed"
        text.echo(f"peer {name} {words}" if reply["changed"] else f"peer {name} was not changed")


def _show(peers: list[dict[str, Any]]) -> None:
    rows = [("PEER", "ADDRESS", "STATE", "FINGERPRINT")]
    rows += [
        (one["name"], one["address"] or "connects to us", _state(one), one["fingerprint"] or "-")
        for one in peers
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        text.echo(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _state(one: dict[str, Any]) -> str:
    words = [] if one["fingerprint"] else ["not paired"]
    if one["paused"]:
        words.append("paused")
    if one["needs_copy"]:
        words.append(f"needs a full copy: {one['needs_copy']}")
    return "; ".join(words) or "paired"
