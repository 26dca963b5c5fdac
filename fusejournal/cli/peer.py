"""``fusejournal peer``: the mirrors that a volume is shipped to, or that ship to it."""

import click

from fusejournal.address import parse_peer
from fusejournal.admin.peers import (
    add_peer,
    list_peers,
    pause_peer,
    remove_peer,
    resume_peer,
)
from fusejournal.cli import text
from fusejournal.node.registry import find_volume
from fusejournal.replication.peer_replies import PeerChanged
from fusejournal.replication.status import PeerInfo


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
@click.option(
    "--standby",
    is_flag=True,
    help="Ship to it only once this node is the primary: for mirrors of one primary.",
)
@_JSON
def add(volume: str, peer: str, standby: bool, as_json: bool) -> None:
    """Ship VOLUME to the node that listens at ADDR:PORT, and call it NAME.

    \b
    Examples:
      fusejournal peer add srv-data cellar=192.168.1.7:7710
      fusejournal peer add srv-data cellar=[2001:db8::7]:7710
      fusejournal peer add srv-data attic=192.168.1.8:7710 --standby     on a mirror
    """
    name, address = parse_peer(peer)
    reply = add_peer(find_volume(volume), name, address, standby=standby)
    if as_json:
        text.echo_json(reply.to_json())
        return
    text.echo(f"peer {name} at {address}" + ("" if reply.added else ", as before"))
    if reply.peer.fingerprint is None and not reply.insecure:
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
    reply = remove_peer(find_volume(volume), name)
    if as_json:
        text.echo_json(reply.to_json())
    else:
        text.echo(f"peer {name} removed")


@peer.command("list")
@_VOLUME
@_JSON
def list_command(volume: str, as_json: bool) -> None:
    """List the peers of VOLUME. How shipping goes is in 'fusejournal status VOLUME'.

    ADDRESS is where VOLUME is shipped to. One that "connects to us" is shipped nothing for now; an
    address behind that is where it will be shipped to once this node is the primary.

    \b
    Examples:
      fusejournal peer list srv-data
      fusejournal peer list srv-data --json
    """
    state = find_volume(volume)
    reply = list_peers(state)
    if as_json:
        text.echo_json(reply.to_json())
    elif not reply.peers:
        text.echo(f"volume {state.name} has no peers: see 'fusejournal pair --help'")
    else:
        _show(reply.peers)


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
    _print_change(pause_peer(find_volume(volume), name), name, "paused", as_json)


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
    _print_change(resume_peer(find_volume(volume), name), name, "resumed", as_json)


def _print_change(reply: PeerChanged, name: str, words: str, as_json: bool) -> None:
    if as_json:
        text.echo_json(reply.to_json())
    else:
        text.echo(f"peer {name} {words}" if reply.changed else f"peer {name} was not changed")


def _show(peers: tuple[PeerInfo, ...]) -> None:
    rows = [("PEER", "ADDRESS", "STATE", "FINGERPRINT")]
    rows += [(one.name, _address(one), _state(one), one.fingerprint or "-") for one in peers]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        text.echo(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _address(one: PeerInfo) -> str:
    if one.address is not None:
        return one.address
    later = f"; {one.return_address} once this is the primary" if one.return_address else ""
    return f"connects to us{later}"


def _state(one: PeerInfo) -> str:
    words = [] if one.fingerprint else ["not paired"]
    if one.paused:
        words.append("paused")
    if one.needs_copy:
        words.append(f"needs a full copy: {one.needs_copy}")
    return "; ".join(words) or "paired"
