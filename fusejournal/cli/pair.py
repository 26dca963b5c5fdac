"""``fusejournal pair``."""

import shlex
from contextlib import suppress

import click

from fusejournal.address import parse_peer
from fusejournal.admin.pair import (
    PairingCode,
    await_pairing,
    close_pairing,
    open_pairing,
    pair_with,
    paired_peer,
)
from fusejournal.cli import text
from fusejournal.errors import FusejournalError
from fusejournal.node.registry import find_volume
from fusejournal.node.state_dir import VolumeState


@click.command(short_help="Make two nodes known to each other.")
@click.argument("volume")
@click.argument("peer", required=False, metavar="[NAME=ADDR:PORT]")
@click.argument("code", required=False)
@click.option(
    "--standby",
    is_flag=True,
    help="Ship to it only once this node is the primary: for two mirrors of one primary.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line: the code; what came of it."
)
def pair(volume: str, peer: str | None, code: str | None, standby: bool, as_json: bool) -> None:
    """Exchange certificates between two nodes that are both mounted, by a code that is good once
    and for ten minutes. Nothing is shipped to or taken from a node that is not paired.

    First on the node that listens: with VOLUME alone, the code is shown, and the command to type on
    the other node, which ships to it. Ctrl-C takes the code back. Without CODE, that command asks
    for it.

    \b
    Examples:
      fusejournal pair srv-data                                      on cellar, which listens
      fusejournal pair srv-data cellar=192.168.1.7:7710 7K3M-Q0ZV-9X2C-HT5A      on the other
      fusejournal pair srv-data attic=192.168.1.8:7710 CODE --standby           between two mirrors
    """
    if peer is None:
        _open(find_volume(volume), as_json)
        return
    name, address = parse_peer(peer)
    state = find_volume(volume)
    if code is None:
        code = str(click.prompt("code", err=True))
    paired = pair_with(state, name, address, code, standby=standby)
    if as_json:
        text.echo_json(paired.to_json())
        return
    text.echo(f"paired with {name} at {address}: {paired.peer.fingerprint}")
    if paired.node != name:
        text.echo(f"it calls itself {paired.node}")
    if standby:
        text.echo(f"volume {state.name} is shipped to it once this node is the primary")
        return
    text.echo(f"volume {state.name} is shipped to it from now on")
    if state.is_mirror:
        text.echo(
            f"this is a mirror, and ships on what it has. If {name} is its primary, that is the "
            f"wrong way round: 'fusejournal peer remove' here and there, then 'fusejournal pair "
            f"{shlex.quote(state.name)}' here, and there what it shows",
            err=True,
        )


def _open(state: VolumeState, as_json: bool) -> None:
    opened = open_pairing(state)
    try:
        _show(state, opened, as_json)
        ended = await_pairing(state, opened.id, (lambda _: None) if as_json else _print_try)
    except KeyboardInterrupt:
        with suppress(FusejournalError):
            close_pairing(state, opened.id)
        raise
    if as_json:
        text.echo_json(ended.to_json())
    peer = paired_peer(ended)
    if not as_json:
        text.echo(f"paired with {peer.name}: {peer.fingerprint}")


def _print_try(line: str) -> None:
    text.echo(f"fusejournal: {line}", err=True)


def _show(state: VolumeState, opened: PairingCode, as_json: bool) -> None:
    if as_json:
        text.echo_json(opened.to_json())
        return
    if not state.is_mirror:
        text.echo(
            "this is a primary, and takes nothing from the node that uses the code. To ship to a "
            "mirror, have it give out the code, and use it here",
            err=True,
        )
    text.echo(f"{'code':<12}{opened.code}")
    text.echo(f"{'this node':<12}{opened.node}, {opened.fingerprint}")
    minutes = round(opened.seconds_left / 60)
    text.echo(
        f"On the other node, within {minutes} minutes, with the volume's name there in place of "
        "VOLUME ('fusejournal status' there has it):"
    )
    text.echo(f"  {opened.command}")
    if opened.may_be_elsewhere:
        text.echo(
            "(any address of this machine goes there, that the other reaches; the name before it "
            "is what the other calls this node)",
            err=True,
        )
    text.echo("waiting for it; Ctrl-C takes the code back", err=True)
