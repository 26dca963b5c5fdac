"""``fusejournal branch``: what a history that lost had."""

from datetime import UTC, datetime
from pathlib import Path

import click

from fusejournal.admin.branch import (
    BranchInfo,
    branches_of,
    drop,
    entries_of_branch,
    restore_from_branch,
)
from fusejournal.cli import entries, text
from fusejournal.cli.progress import watched
from fusejournal.cli.seqs import SEQ
from fusejournal.history.json_values import match_to_json
from fusejournal.journal.branches import Branch
from fusejournal.node.registry import find_volume
from fusejournal.types import SeqOrPosition

_UIDS_SHOWN = 3


@click.group(short_help="What a history that lost had.")
def branch() -> None:
    """List, show, restore and drop the branches of a volume: entries that only this node had when
    it was brought level with another ('fusejournal rejoin'). They are kept once, as segments,
    within the bounds of [branches] in the configuration.

    \b
    Examples:
      fusejournal branch list srv-data
      fusejournal branch show srv-data 4712-4803 home/anna
      fusejournal branch restore srv-data 4712-4803 home/anna/thesis.odt --target /restore/thesis
    """


_VOLUME = click.argument("volume")
_NAME = click.argument("name")
_UID = click.option("--uid", type=int, help="Only what this user asked for.")
_SINCE = click.option("--since", metavar="TIME", help="Only at or after a time.")
_UNTIL = click.option("--until", metavar="TIME", help="Only up to a time.")


@branch.command("list")
@_VOLUME
@_UID
@click.option("--path", "paths", multiple=True, help="Only what is about this path or pattern.")
@_SINCE
@_UNTIL
@click.option("--json", "as_json", is_flag=True, help="One JSON object a branch.")
def list_command(
    volume: str,
    uid: int | None,
    paths: tuple[str, ...],
    since: str | None,
    until: str | None,
    as_json: bool,
) -> None:
    """List the branches of VOLUME, mounted or not; with options, those that have such a change.

    \b
    Examples:
      fusejournal branch list srv-data
      fusejournal branch list srv-data --uid 1001 --since yesterday
      fusejournal branch list srv-data --path 'home/anna/**' --json
    """
    state = find_volume(volume)
    found = branches_of(
        state,
        uid=uid,
        paths=paths,
        since=since,
        until=until,
        report=lambda line: text.echo(f"warning: {line}", err=True),
    )
    if as_json:
        for one in found:
            text.echo_json(BranchInfo.of(one).to_json())
    elif not found:
        text.echo(
            f"volume {state.name} has no such branch"
            if _asks(uid, paths, since, until)
            else f"volume {state.name} has no branches"
        )
    else:
        _show(found)


def _asks(*questions: object) -> bool:
    return any(question not in (None, ()) for question in questions)


def _show(found: list[Branch]) -> None:
    rows = [("BRANCH", "CHANGES", "FROM", "TO", "USERS", "LOST TO", "SIZE")]
    for one in map(BranchInfo.of, found):
        users = ", ".join(entries.user(uid) for uid in one.uids[:_UIDS_SHOWN])
        more = len(one.uids) - _UIDS_SHOWN
        rows.append(
            (
                one.name,
                f"{one.entries:,}",
                _minute(one.first_ns),
                _minute(one.last_ns),
                users + (f" and {more} more" if more > 0 else "") or "-",
                one.source,
                text.size(one.bytes),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        text.echo("  ".join(cells).rstrip())


def _minute(time_ns: int) -> str:
    """A time to the minute, local; a dash where there is none."""
    if not time_ns:
        return "-"
    return datetime.fromtimestamp(time_ns // 10**9, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


@branch.command()
@_VOLUME
@_NAME
@click.argument("path", required=False, metavar="[PATH|GLOB]")
@_UID
@_SINCE
@_UNTIL
@click.option("-n", "count", type=click.IntRange(min=1), help="Only the newest so many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def show(
    volume: str,
    name: str,
    path: str | None,
    uid: int | None,
    since: str | None,
    until: str | None,
    count: int | None,
    as_json: bool,
) -> None:
    """Show the entries of the branch NAME of VOLUME, oldest first, as 'fusejournal log' does.

    \b
    Examples:
      fusejournal branch show srv-data 4712-4803
      fusejournal branch show srv-data 4712-4803 home/anna --uid 1001
      fusejournal branch show srv-data 4712-4803 '*.odt' --json | jq -r .path
    """
    state = find_volume(volume)
    found = entries_of_branch(state, name, path, uid=uid, since=since, until=until, count=count)
    for match in found:
        if as_json:
            text.echo_json(match_to_json(match))
        else:
            text.echo(entries.as_line(match))


@branch.command("restore")
@_VOLUME
@_NAME
@click.argument("path", required=False)
@click.option("--to-seq", type=SEQ, help="As it was right after this entry.")
@click.option("--before-seq", type=SEQ, help="As it was right before this entry.")
@click.option(
    "--target",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="The new directory to make, also for a single file, which is put into it; it must not be "
    "there yet.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def restore_command(
    volume: str,
    name: str,
    path: str | None,
    to_seq: SeqOrPosition | None,
    before_seq: SeqOrPosition | None,
    target: Path,
    as_json: bool,
) -> None:
    """Bring back the tree, or the file or directory PATH in it, as it was at the end of the branch
    NAME of VOLUME, or at an entry of it. It becomes the new directory DIR, or, a single file, is
    put into that, as with 'fusejournal restore'; VOLUME is left as it is. For a seq a position
    goes, too, EPOCH/SEQ/CHAIN.

    \b
    Examples:
      fusejournal branch restore srv-data 4712-4803 --target /restore/lost
      fusejournal branch restore srv-data 4712-4803 home/anna/a.odt --target /restore/anna
      fusejournal branch restore srv-data 4712-4803 home/anna/a.odt --before-seq 4790 --target /r/a
    """
    state = find_volume(volume)
    with watched("restoring", as_json) as progress:
        done = restore_from_branch(
            state, name, path, target, progress, to_seq=to_seq, before_seq=before_seq
        )
    if as_json:
        text.echo_json(done.to_json())
    else:
        text.echo(
            f"restored {text.count(done.names, 'name')} as of seq {done.as_of_seq} of branch "
            f"{name} to {done.target}"
        )


@branch.command("drop")
@_VOLUME
@_NAME
@click.option("--json", "as_json", is_flag=True, help="One JSON object: what it was.")
def drop_command(volume: str, name: str, as_json: bool) -> None:
    """Remove the branch NAME of VOLUME for good: its entries are nowhere else.

    \b
    Example:
      fusejournal branch drop srv-data 4712-4803
    """
    dropped = drop(find_volume(volume), name)
    if as_json:
        text.echo_json(dropped.to_json())
    else:
        text.echo(f"branch {name} dropped: {text.size(dropped.bytes)} are free again")
