"""``fusejournal agent``: what consoles ask about this machine's volumes."""

import click

from fusejournal.address import parse_address
from fusejournal.admin.own_address import shown_address
from fusejournal.cli import text
from fusejournal.cli.reporters import sd_notify


@click.group(invoke_without_command=True, short_help="Tell consoles about this machine.")
@click.option(
    "--listen",
    default="127.0.0.1:7781",
    show_default=True,
    metavar="ADDR:PORT",
    help="Where consoles reach it.",
)
@click.option(
    "--mass-files",
    default=500,
    show_default=True,
    type=click.IntRange(0),
    metavar="N",
    help="Alert where a user rewrites, renames or removes so many files in 5 minutes; 0: never.",
)
@click.pass_context
def agent(context: click.Context, listen: str, mass_files: int) -> None:
    """Run this machine's agent, in the foreground: it tells the consoles that it is paired with how
    the volumes are, answers what they ask of the journals, and undoes and restores for them. One a
    machine, as root, and never in a layer's process: its end harms no volume, and what it is doing
    for a page goes on.

    A console sees what root sees here. It is known by its certificate, which 'agent pair' exchanges
    for a code.

    \b
    Examples:
      fusejournal agent                              for a console on this machine
      fusejournal agent --listen 192.168.1.7:7781    for one on another
      fusejournal agent pair                         beside it: the code for 'console pair'
    """
    if context.invoked_subcommand is not None:
        return
    from fusejournal.agent.server import run_agent

    def ready(address: object, fingerprint: str) -> None:
        text.echo(f"the agent listens on {address}, {fingerprint}", err=True)
        sd_notify("READY=1")

    run_agent(parse_address(listen), ready, mass_files)


@agent.command(short_help="Let a console pair.")
@click.option("--no-wait", is_flag=True, help="Show the code, and do not wait for its use.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def pair(no_wait: bool, as_json: bool) -> None:
    """Show a code, good once and for ten minutes, with which a console pairs with the agent that
    runs here; wait until one has.

    \b
    Example:
      fusejournal agent pair
    """
    from fusejournal.agent import own_calls
    from fusejournal.wire.code_state import CodeState

    opened = own_calls.open_console_pairing()
    if as_json:
        text.echo_json(opened.to_json())
    else:
        text.echo(f"{'code':<12}{opened.code}")
        text.echo(f"{'this agent':<12}{opened.node}, {opened.fingerprint}")
        text.echo("On the console's machine, within 10 minutes:")
        where = f"{opened.node}={shown_address(parse_address(opened.listen))}"
        text.echo(f"  fusejournal console pair {where} {opened.code}")
    if no_wait:
        return
    state = own_calls.await_console_pairing()
    if as_json:
        text.echo_json(state.to_json())
    elif state.state is CodeState.PAIRED:
        text.echo(f"paired with the console {state.console}: {state.fingerprint}")
    own_calls.check_console_paired(state)


@agent.command(short_help="The consoles that are paired.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def consoles(as_json: bool) -> None:
    """List the consoles that may ask this machine's agent.

    \b
    Example:
      fusejournal agent consoles
    """
    from fusejournal.agent.own_calls import list_consoles

    found = list_consoles()
    if as_json:
        text.echo_json(found.to_json())
    elif not found.consoles:
        text.echo("none yet: 'fusejournal agent pair' shows a code for one", err=True)
    for name in () if as_json else found.consoles:
        text.echo(name)


@agent.command(short_help="Forget a console.")
@click.argument("name")
def forget(name: str) -> None:
    """Forget the console NAME: it is not answered any more.

    \b
    Example:
      fusejournal agent forget hall-console
    """
    from fusejournal.agent.own_calls import forget_console

    forget_console(name)
    text.echo(f"console {name} is not answered any more")
