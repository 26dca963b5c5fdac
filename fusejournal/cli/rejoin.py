"""``fusejournal rejoin``: bring a mirror that has diverged level again."""

from pathlib import Path

import click

from fusejournal.admin.rejoin import Rejoined, RejoinRequest
from fusejournal.cli import text
from fusejournal.cli.interrupts import orderly_interrupts
from fusejournal.node.registry import find_volume


@click.command(short_help="Bring a mirror that has diverged level.")
@click.argument("volume")
@click.option("--dry-run", is_flag=True, help="Say what would be done; mounted or not.")
@click.option(
    "--from",
    "peer",
    metavar="PEER",
    help="The peer to become level with: asked at its address, if it has one here  [default: the "
    "primary that was refused last]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The volume's configuration file  [default: /etc/fusejournal/NAME.toml, if there]",
)
@click.option("--insecure", is_flag=True, help="Ask without TLS, as with 'mount --insecure'.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def rejoin(
    volume: str, dry_run: bool, peer: str | None, config: Path | None, insecure: bool, as_json: bool
) -> None:
    """Bring VOLUME, a mirror whose journal parts from its primary's, level with that again; or a
    former primary whose machine was lost, which another has come after: it becomes a mirror.

    It must be unmounted. What only VOLUME has is kept as a branch ('fusejournal branch'); journal
    and files go back to the last entry that both have. Then it is a mirror that is behind: mounted
    again, it gets the rest from its primary. Stopped or killed at any moment, it goes on when the
    same command is given again, or when the volume is mounted; until it is done nothing is served.

    Exit code 35: the two have not enough in common, and it needs an empty directory; or it is not
    known whom to follow.

    \b
    Examples:
      fusejournal rejoin srv-data --dry-run
      fusejournal umount srv-data && fusejournal rejoin srv-data && fusejournal mount srv-data
      fusejournal rejoin srv-data --from east --json
    """
    state = find_volume(volume)
    was_mirror = state.is_mirror
    request = RejoinRequest(state, peer, config, insecure=insecure)
    if dry_run:
        _show(request.plan(), was_mirror, as_json)
        return
    # Only here: a command that does nothing should not wait for it to load.
    from fusejournal.cli.reporters import ConsoleReporter

    with ConsoleReporter() as reporter, orderly_interrupts() as check:
        told = request.run(reporter, check)
    _show(told, was_mirror, as_json)


def _show(told: Rejoined, was_mirror: bool, as_json: bool) -> None:
    if as_json:
        text.echo_json(told.to_json())
        return
    source = f"{told.source} goes by reign {told.reign}; " if told.source is not None else ""
    text.echo(f"{source}both have the entries up to {told.head_seq - told.own_entries}")
    own = text.count(told.own_entries, "entry", "entries")
    mounting = f"fusejournal mount {told.volume}"
    if told.rung == 1:
        if was_mirror:
            text.echo("nothing is here that is not there: mounted, it goes on by itself")
        elif told.done:
            text.echo(f"nothing was to be undone; it is a mirror now: {mounting}")
        else:
            text.echo(
                "all that is here is there, too: nothing would be lost; 'fusejournal rejoin "
                f"{told.volume}' makes this primary a mirror of that"
            )
        return
    what = (
        f"{text.count(told.files, 'file')} and directories that they touched, the content of "
        f"{told.contents:,} among them"
    )
    if not told.done:
        text.echo(f"{own} from there on, up to {told.head_seq}, would become a branch")
        text.echo(f"and be undone here: {what}")
        return
    text.echo(f"{own} from there on, up to {told.head_seq}, are branch {told.branch} now")
    text.echo(f"and undone here: {what}")
    text.echo(f"it is a mirror {'again' if was_mirror else 'now'}: {mounting}")
