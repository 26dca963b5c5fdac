"""``fusejournal rejoin``: bring a mirror that has diverged level again."""

from pathlib import Path

import click

from fusejournal.admin.rejoin import Rejoined, RejoinRequest
from fusejournal.cli import text
from fusejournal.cli.interrupts import orderly_interrupts
from fusejournal.node.registry import find_volume

_BY_JOURNAL, _NEW = 2, 4
"""The last rung that goes by entries, and that of a new mirror (roles/rejoin.py)."""


@click.command(short_help="Bring a mirror level: one that diverged, was away, or is new.")
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
@click.option(
    "--whole",
    is_flag=True,
    help="Of a new mirror: copy the tree, though its primary still has the whole journal.",
)
@click.option(
    "--ignore-space",
    is_flag=True,
    help="Copy the tree though there seems to be no room: files with large holes count in full.",
)
@click.option("--insecure", is_flag=True, help="Ask without TLS, as with 'mount --insecure'.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def rejoin(
    volume: str,
    dry_run: bool,
    peer: str | None,
    config: Path | None,
    whole: bool,
    ignore_space: bool,
    insecure: bool,
    as_json: bool,
) -> None:
    """Bring VOLUME level with its primary: a mirror whose journal parts from that one's, or was
    away for longer than that one's goes back; a new mirror; or a former primary which another has
    come after, and which becomes a mirror.

    It must be unmounted. What only VOLUME has is kept as a branch ('fusejournal branch'). Where
    both journals still have the last entry in common, journal and files go back to that; else the
    primary's tree is copied: of a new mirror all of it, of another what differs, by blocks. Then it
    is a mirror that is behind: mounted again, it gets the rest. Stopped or killed at any moment, it
    goes on where it was when the same command is given again; until it is done nothing is served.

    A copy lies in VOLUME's store of versions ('fusejournal version store init'), by default in its
    state directory: as the beginning of its journal it stands for all that was before. It takes as
    much space as the files do, compressed.

    Exit code 35: it is not known whom to follow, or there is no peer to be asked for a copy.

    \b
    Examples:
      fusejournal rejoin srv-data --dry-run
      fusejournal umount srv-data && fusejournal rejoin srv-data && fusejournal mount srv-data
      fusejournal rejoin srv-data --from east --json
      fusejournal rejoin srv-data --whole
    """
    state = find_volume(volume)
    was_mirror = state.is_mirror
    request = RejoinRequest(
        state, peer, config, insecure=insecure, whole=whole, ignores_space=ignore_space
    )
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
    if told.rung > _BY_JOURNAL or told.journal_bytes:
        _show_copy(told)
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


def _show_copy(told: Rejoined) -> None:
    """Show what copying the tree would do, or has done."""
    mounting = f"fusejournal mount {told.volume}"
    if told.source is not None:
        text.echo(f"{told.source} goes by reign {told.reign}")
    if told.journal_bytes:
        text.echo(
            f"it has its whole journal, {text.size(told.journal_bytes)}: nothing is to be copied, "
            f"mounted, this mirror gets that ('--whole' copies the tree instead): {mounting}"
        )
        return
    size = f"{text.count(told.tree_files, 'file')}, " if told.tree_files else ""
    size += text.size(told.tree_bytes)
    what = "all of its tree" if told.rung == _NEW else "what differs from its tree"
    own = text.count(told.own_entries, "entry", "entries")
    if not told.done:
        known = f" (as of its newest version: {size})" if told.tree_seq else ""
        text.echo(f"{what} would be copied{known}")
        if told.rung != _NEW:
            text.echo(
                f"all of the journal here, up to entry {told.head_seq}, would become a branch"
            )
        return
    text.echo(
        f"{what} is here as of entry {told.tree_seq} ({size}); {text.size(told.fetched_bytes)} came"
    )
    if told.branch is not None:
        text.echo(f"the journal that was here, {own}, is branch {told.branch} now")
    text.echo(f"it is a mirror now, and gets the rest when it is mounted: {mounting}")
