"""``fusejournal console``: the page for the admin."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fusejournal.address import parse_address, parse_peer
from fusejournal.cli import text
from fusejournal.cli.reporters import sd_notify
from fusejournal.errors import FusejournalError

if TYPE_CHECKING:
    from fusejournal.console.tokens import TokenBook

_PATH = click.Path(path_type=Path, dir_okay=False)


@click.group(invoke_without_command=True, short_help="Serve the page for the admin.")
@click.option(
    "--listen",
    default="127.0.0.1:7780",
    show_default=True,
    metavar="ADDR:PORT",
    help="Where browsers reach it; other than on the loopback only with TLS.",
)
@click.option("--tls", is_flag=True, help="TLS by the console's own certificate.")
@click.option("--certificate", type=_PATH, help="TLS by this certificate, in PEM.")
@click.option("--key", type=_PATH, help="The key of the certificate.")
@click.pass_context
def console(
    context: click.Context, listen: str, tls: bool, certificate: Path | None, key: Path | None
) -> None:
    """Serve the console, a page that shows all volumes of the agents that it is paired with: how
    they are, who did what, the tree at any moment, and the way back. In the foreground; on any
    machine.

    First add a user, whose one-time code the page asks for, and pair with each server's agent.

    \b
    Examples:
      fusejournal console user add anna --role admin
      fusejournal console pair cellar=192.168.1.7:7781 7K3M-Q0ZV-9X2C-HT5A
      fusejournal console
      fusejournal console --listen 192.168.1.2:7780 --tls
    """
    if context.invoked_subcommand is not None:
        return
    from fusejournal.console.libraries import missing_libraries

    if missing := missing_libraries():
        raise FusejournalError(missing)
    from fusejournal.console.serve import run_console

    def ready(url: str, fingerprint: str) -> None:
        text.echo(f"the console is at {url}", err=True)
        if fingerprint:
            text.echo(f"its certificate: {fingerprint}", err=True)
        sd_notify("READY=1")

    run_console(parse_address(listen), certificate, key, own_certificate=tls, ready=ready)


def _warn_of_missing() -> None:
    from fusejournal.console.libraries import missing_libraries

    if missing := missing_libraries():
        text.echo(f"fusejournal: {missing}", err=True)


@console.group(short_help="The people who may log in.")
def user() -> None:
    """Add, remove and list the people who may log in.

    \b
    Examples:
      fusejournal console user add anna --role operator
      fusejournal console user list
    """


@user.command("add")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["viewer", "operator", "admin"]),
    help="viewer: all but the contents of files; operator: these, and recovery; admin: all. "
    "Without it a new user is a viewer, and one that is there keeps the role.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def add_user(name: str, role: str | None, as_json: bool) -> None:
    """Add the user NAME, or give one that is there a new code, and another role if you name one.
    The one-time code that is shown is good for a day: with it the person chooses a password on the
    page. The last admin stays one.

    \b
    Example:
      fusejournal console user add anna --role admin
    """
    from fusejournal.console.place import console_directory
    from fusejournal.console.users import UserBook, parse_access_role

    book = UserBook(console_directory() / "users.json")
    added = book.add(name, parse_access_role(role) if role is not None else None)
    if as_json:
        text.echo_json(added.to_json())
        return
    words = {None: f"user {name}, {added.role}", added.role: f"user {name} stays {added.role}"}
    was = f"user {name} is {added.role} now, and was {added.previous_role}"
    text.echo(words.get(added.previous_role, was))
    text.echo(f"one-time code, for a day: {added.code}")
    text.echo("On the page: 'I have a one-time code'")
    _warn_of_missing()


@user.command("remove")
@click.argument("name")
def remove_user(name: str) -> None:
    """Remove the user NAME, and end what they are logged in to.

    \b
    Example:
      fusejournal console user remove anna
    """
    from fusejournal.console.place import console_directory
    from fusejournal.console.users import UserBook

    UserBook(console_directory() / "users.json").remove(name)
    text.echo(f"user {name} is removed")


@user.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_users(as_json: bool) -> None:
    """List the users and their roles.

    \b
    Example:
      fusejournal console user list
    """
    from fusejournal.console.place import console_directory
    from fusejournal.console.users import UserBook

    users = UserBook(console_directory() / "users.json").all().values()
    if as_json:
        text.echo_json([one.to_json() for one in users])
        return
    for one in users:
        waits = "" if one.password else ", has chosen no password yet"
        text.echo(f"{one.name:<20} {one.role}{waits}")


@console.command(short_help="Pair with an agent.")
@click.argument("agent", metavar="AGENT=ADDR:PORT")
@click.argument("code", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def pair(agent: str, code: str | None, as_json: bool) -> None:
    """Pair with the agent that listens at ADDR:PORT, and show its volumes under the name AGENT from
    now on. 'fusejournal agent pair' on that machine shows the CODE; without it, it is asked for.

    \b
    Example:
      fusejournal console pair cellar=192.168.1.7:7781 7K3M-Q0ZV-9X2C-HT5A
    """
    import trio

    from fusejournal.console.agents import AgentBook, AgentPaired, pair_agent
    from fusejournal.console.place import console_directory, console_identity

    name, address = parse_peer(agent)
    if code is None:
        code = str(click.prompt("code", err=True))
    directory = console_directory()
    book, identity = AgentBook(directory / "agents.json"), console_identity(directory)
    paired = trio.run(pair_agent, book, identity, name, address, code)
    if as_json:
        done = AgentPaired(agent=name, node=paired.node, fingerprint=paired.fingerprint)
        text.echo_json(done.to_json())
        return
    text.echo(f"paired with the agent {name} at {address}: {paired.fingerprint}")
    _warn_of_missing()


@console.command(short_help="The agents that are paired.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def agents(as_json: bool) -> None:
    """List the agents that the console asks.

    \b
    Example:
      fusejournal console agents
    """
    from fusejournal.console.agents import AgentBook
    from fusejournal.console.place import console_directory

    found = AgentBook(console_directory() / "agents.json").all().values()
    if as_json:
        text.echo_json([one.to_json() for one in found])
        return
    if not found:
        text.echo("none yet: 'fusejournal agent pair' on a server shows how", err=True)
    for one in found:
        text.echo(f"{one.name:<20} {one.address}")


@console.command(short_help="Forget an agent.")
@click.argument("name")
def forget(name: str) -> None:
    """Forget the agent NAME: its volumes are not shown any more.

    \b
    Example:
      fusejournal console forget cellar
    """
    from fusejournal.console.agents import AgentBook
    from fusejournal.console.place import console_directory

    AgentBook(console_directory() / "agents.json").remove(name)
    text.echo(f"agent {name} is forgotten")


@console.group(short_help="API tokens, for scripts.")
def token() -> None:
    """Make, list and revoke API tokens. A script brings one with each request of the API, in the
    header "Authorization: Bearer TOKEN", in place of a login.

    \b
    Examples:
      fusejournal console token create backup --role operator --volume 'cellar/*' --days 30
      fusejournal console token list
    """


@token.command("create")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["viewer", "operator", "admin"]),
    default="viewer",
    show_default=True,
    help="What it may, as of a user.",
)
@click.option(
    "--volume",
    "volumes",
    multiple=True,
    metavar="AGENT/VOLUME",
    help="Only for this volume, or a pattern of them; may be given several times.",
)
@click.option(
    "--days",
    default=90,
    show_default=True,
    type=click.IntRange(1, 3660),
    help="How long it is good.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def create_token(name: str, role: str, volumes: tuple[str, ...], days: int, as_json: bool) -> None:
    """Make the API token NAME. It is shown this once: the console keeps only its hash.

    \b
    Examples:
      fusejournal console token create grafana
      fusejournal console token create backup --role operator --volume 'cellar/*' --days 30
    """
    from fusejournal.console.tokens import TokenMade
    from fusejournal.console.users import parse_access_role

    made = _tokens().create(name, parse_access_role(role), days, volumes)
    if as_json:
        text.echo_json(TokenMade(name=name, role=role, token=made).to_json())
        return
    text.echo(made)
    text.echo(f"token {name}, {role}, good for {text.count(days, 'day')}", err=True)


@token.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_tokens(as_json: bool) -> None:
    """List the API tokens, with what each may and until when.

    \b
    Example:
      fusejournal console token list
    """
    found = _tokens().all().values()
    if as_json:
        text.echo_json([one.to_json() for one in found])
        return
    for one in found:
        until = text.moment(int(one.expires * 1e9))[:10]
        word = "expired" if one.expires < time.time() else "until"
        text.echo(f"{one.name:<20} {one.role:<10} {word} {until}  {' '.join(one.volumes)}".rstrip())


@token.command("revoke")
@click.argument("name")
def revoke_token(name: str) -> None:
    """Revoke the API token NAME: the next request with it is refused.

    \b
    Example:
      fusejournal console token revoke backup
    """
    _tokens().revoke(name)
    text.echo(f"token {name} is revoked")


def _tokens() -> "TokenBook":
    from fusejournal.console.place import console_directory
    from fusejournal.console.tokens import TokenBook

    return TokenBook(console_directory() / "tokens.json")
