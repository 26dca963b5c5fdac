"""``fusejournal witness``: a node without data, for the votes of two out of three."""

import shlex
from pathlib import Path

import click

from fusejournal.address import Address, parse_address
from fusejournal.admin.own_address import shown_address
from fusejournal.admin.witness import (
    await_witness_pairing,
    forget_node,
    open_witness_pairing,
    paired_node,
    witness_status,
)
from fusejournal.cli import text
from fusejournal.cli.reporters import sd_notify

_DIRECTORY = click.argument("directory", type=click.Path(file_okay=False, path_type=Path))


@click.group(short_help="A node without data, for two servers.")
def witness() -> None:
    """Run a witness: a node that holds no data and serves none, on a third machine, for one volume.
    It keeps on its disk which reign has begun and which nodes count, and gives its vote when one is
    to begin. With a primary and one mirror ('mirrors = 1', 'on_timeout = "block"'), the vote of the
    mirror and the witness is enough to promote that mirror without --force.

    Pair it with both: with the primary, and on the mirror with --standby.

    \b
    Examples:
      fusejournal witness run /var/lib/witness --listen 10.0.0.9:7710
      fusejournal witness pair /var/lib/witness      once for each of the two nodes
      fusejournal witness status /var/lib/witness
    """


@witness.command(short_help="Run it, in the foreground.")
@_DIRECTORY
@click.option(
    "--listen",
    default="127.0.0.1:7710",
    show_default=True,
    metavar="ADDR:PORT",
    help="Where the nodes reach it.",
)
def run(directory: Path, listen: str) -> None:
    """Run the witness that has DIRECTORY, which is made where it is new, until it is told to stop.
    Its key, and what it has seen of reigns, are there: begin no second one with a copy of it.

    \b
    Example:
      fusejournal witness run /var/lib/witness --listen 10.0.0.9:7710
    """
    from fusejournal.node.witness_process import run_witness

    def ready(address: Address, fingerprint: str) -> None:
        text.echo(f"the witness listens on {address}, {fingerprint}", err=True)
        sd_notify("READY=1")

    run_witness(directory.absolute(), parse_address(listen), ready)


@witness.command(short_help="Let a node pair.")
@_DIRECTORY
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def pair(directory: Path, as_json: bool) -> None:
    """Show a code, good once and for ten minutes, with which a node pairs with the witness that
    runs in DIRECTORY; wait until one has.

    \b
    Example:
      fusejournal witness pair /var/lib/witness
    """
    opened = open_witness_pairing(directory)
    if as_json:
        text.echo_json(opened.to_json())
    else:
        where = shlex.quote(f"{opened.node}={shown_address(parse_address(opened.listen))}")
        text.echo(f"{'code':<12}{opened.code}")
        text.echo(f"{'witness':<12}{opened.node}, {opened.fingerprint}")
        text.echo("On the primary, within 10 minutes; on its mirror the same with --standby:")
        text.echo(f"  fusejournal pair VOLUME {where} {opened.code}")
    state = await_witness_pairing(directory, opened.id)
    if as_json:
        text.echo_json(state.to_json())
    peer = paired_node(state)
    if not as_json:
        text.echo(f"paired with {peer.name}: {peer.fingerprint}")


@witness.command(short_help="What it has seen.")
@_DIRECTORY
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(directory: Path, as_json: bool) -> None:
    """Show which reign the witness in DIRECTORY has seen, which primary tells it who counts, and
    its peers.

    \b
    Example:
      fusejournal witness status /var/lib/witness
    """
    found = witness_status(directory)
    if as_json:
        text.echo_json(found.to_json())
        return
    rows = [
        ("witness", f"{found.node}, listens on {found.listen}"),
        ("volume", found.volume or "none yet: no primary has called"),
        ("reign", f"{found.begun} has begun"),
        ("primary", found.primary or "none is connected"),
        ("peers", ", ".join(found.peers) or "none yet: 'fusejournal witness pair'"),
    ]
    if found.reign != found.begun:
        rows.append(("vote", f"given for {found.reign}"))
    if found.failure:
        rows.append(("degraded", found.failure))
    for name, value in rows:
        text.echo(f"{name:<12}{value}")


@witness.command(short_help="Forget a node.")
@_DIRECTORY
@click.argument("name")
def forget(directory: Path, name: str) -> None:
    """Forget the node NAME: it is not answered any more.

    \b
    Example:
      fusejournal witness forget /var/lib/witness north
    """
    forget_node(directory, name)
    text.echo(f"node {name} is not answered any more")
