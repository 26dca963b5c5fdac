"""``fusejournal undo``: take operations back in a running volume."""

import shlex
import sys
from contextlib import suppress

import click

from fusejournal.admin.replay import conflict_path
from fusejournal.admin.undo import DoneEntries, PlannedUndo, UndoRequest
from fusejournal.cli import entries, text
from fusejournal.cli.progress import watched
from fusejournal.cli.seqs import OPS
from fusejournal.errors import (
    ConflictError,
    FusejournalError,
    UndoOverlapError,
    UsageError,
)
from fusejournal.replay.undo_plan import OnUndoConflict

_SHOWN = 40


@click.command(short_help="Take chosen operations back.")
@click.argument("volume")
@click.argument("seqs", nargs=-1, metavar="[SEQ|A-B]...")
@click.option("--path", "paths", multiple=True, help="Only what is about this path or pattern.")
@OPS
@click.option("--uid", type=int, help="Only what this user asked for.")
@click.option("--pid", "pids", type=int, multiple=True, metavar="PID", help="Only of this process.")
@click.option("--since", metavar="TIME", help="Only at or after a time or mark.")
@click.option("--until", metavar="TIME", help="Only up to a time or mark.")
@click.option("--except", "without", multiple=True, metavar="SEQ|A-B", help="But not these.")
@click.option(
    "--on-conflict",
    type=click.Choice(["stop", "skip", "aside"]),
    default="stop",
    show_default=True,
    help="Where later changes rely on a chosen operation: do nothing at all, or leave that one. "
    "aside: as stop, but what lost its name to another file comes back as NAME.undone-SEQ.",
)
@click.option(
    "--resume",
    "resumed",
    type=click.IntRange(min=1),
    multiple=True,
    metavar="PID",
    help="Go on with an undo of the same that was stopped: what process PID did in it counts as "
    "chosen, too.",
)
@click.option("--dry-run", is_flag=True, help="Plan only; this is the default.")
@click.option("--apply", "do_apply", is_flag=True, help="Do it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def undo(
    volume: str,
    seqs: tuple[str, ...],
    paths: tuple[str, ...],
    ops: tuple[str, ...],
    uid: int | None,
    pids: tuple[int, ...],
    since: str | None,
    until: str | None,
    without: tuple[str, ...],
    on_conflict: OnUndoConflict,
    resumed: tuple[int, ...],
    dry_run: bool,
    do_apply: bool,
    as_json: bool,
) -> None:
    """Take chosen operations of VOLUME back, and keep everything else.

    Plans first: what comes back, what goes, and which later changes are in the way. Nothing is
    written without --apply; then it goes through the mounted volume, is in the journal like any
    other change, and can itself be undone. Removed files come back under a new fid, with content,
    owner, mode, times and names as they were; where a name was taken since, --on-conflict aside
    brings its file or directory back beside it, with all that was in it.

    Exit code 22: later changes are in the way (of all that was chosen, with --on-conflict skip), or
    another process changed the same things meanwhile. The undo then stops, and what it has done can
    be taken back; where such a change came in the very moment of its own, it goes on and names it.

    \b
    Examples:
      fusejournal undo srv-data 4711-5022
      fusejournal undo srv-data 4711-5022 --apply
      fusejournal undo srv-data --uid 1001 --op unlink,rmdir --since 14:00 --apply
      fusejournal undo srv-data --uid 1001 --op unlink,rmdir --on-conflict aside --apply
      fusejournal undo srv-data --path home/anna/thesis.odt --op write --since "10 minutes ago"
    """
    if dry_run and do_apply:
        raise UsageError("--dry-run or --apply, not both")
    request = UndoRequest(
        volume,
        seqs,
        paths=paths,
        ops=ops,
        uid=uid,
        pids=pids,
        since=since,
        until=until,
        without=without,
        resumed=resumed,
        do_apply=do_apply,
    )
    with watched("planning", as_json) as progress:
        planned = request.plan(progress, on_conflict)
    if not as_json:
        _show(planned)
    _check(planned, as_json)
    done: DoneEntries | None = None
    overlapped: UndoOverlapError | None = None
    if do_apply and planned.plan.chosen:
        overlapped = _carry_out(planned, as_json)
        done = planned.done()
    if as_json:
        text.echo_json(planned.to_json(done))
    else:
        _show_end(planned, done)
    if overlapped is not None:
        _show_overlaps(planned)
        raise overlapped


def _check(planned: PlannedUndo, as_json: bool) -> None:
    try:
        planned.check()
    except ConflictError:
        if as_json:
            text.echo_json(planned.to_json(None))
        raise


def _carry_out(planned: PlannedUndo, as_json: bool) -> UndoOverlapError | None:
    try:
        with watched("undoing", as_json) as progress:
            return planned.carry_out(progress)
    except (OSError, FusejournalError, KeyboardInterrupt):
        _show_overlaps(planned)
        _print_how_far(planned)
        raise


def _show_end(planned: PlannedUndo, done: DoneEntries | None) -> None:
    if done is not None:
        text.echo(
            f"done, as entries {done.from_seq} to {done.to_seq}; to take it back: "
            f"fusejournal undo {planned.source.name} {done.from_seq}-{done.to_seq} "
            f"--pid {done.pid} --apply"
        )
    elif planned.plan.chosen:
        text.echo("nothing was written: --apply does it")
    elif not planned.plan.kept:
        newest = planned.newest_entry()
        end = "the journal is empty"
        if newest is not None:
            end = f"the newest entry is {newest[0]}, of {text.moment(newest[1])}"
        text.echo(f"nothing was found to take back: {end}", err=True)


def _show_overlaps(planned: PlannedUndo) -> None:
    """Shows what others changed at the same moment as the undo did."""
    found = planned.overlap_paths()
    for path, seq, pid in found[:_SHOWN]:
        text.echo(
            f"overlaps    {entries.shown_path(path)}: entry {seq} by pid {pid} came just before "
            "the undo's own",
            err=True,
        )
    if len(found) > _SHOWN:
        text.echo(f"and {len(found) - _SHOWN:,} more overlap", err=True)


def _print_how_far(planned: PlannedUndo) -> None:
    """Shows after a failure that nothing is lost, and how to get back."""
    with suppress(FusejournalError):
        first, last, pid = planned.done()
        if last >= first:
            text.echo(
                f"stopped half-way: entries {first} to {last} are done, files on their way lie in "
                f"/.fusejournal-undo.*; to take that back: "
                f"fusejournal undo {planned.source.name} {first}-{last} --pid {pid} --apply; to go "
                f"on: {shlex.join(['fusejournal', *sys.argv[1:]])} --resume {pid}",
                err=True,
            )


def _show(planned: PlannedUndo) -> None:
    plan, imports = planned.plan, planned.imports
    actions = planned.actions if not plan.conflicts else []  # none of them will be done then
    for action in actions[:_SHOWN]:
        path = entries.shown_path(action.new_path or action.path)
        if action.what == "rename":
            path = f"{entries.shown_path(action.path)} -> {path}"
        why = f"takes back seq {action.because_of}"
        if action.taken_path is not None:
            why = f"{entries.shown_path(action.taken_path)} is another file's by now; {why}"
        text.echo(f"{action.what:<11} {path}  ({why})")
    if len(actions) > _SHOWN:
        text.echo(f"and {len(actions) - _SHOWN:,} more (--json has them)")
    for conflict in plan.conflicts[:_SHOWN]:
        word, place = conflict_path(planned.source, conflict)
        where = f"{word} {entries.shown_path(place)}".lstrip()
        text.echo(
            f"in the way  seq {conflict.seq}: {where}: {conflict.reason}, once seq "
            f"{conflict.because_of} is taken back",
            fg="red",
        )
    if len(plan.conflicts) > _SHOWN:
        text.echo(f"and {len(plan.conflicts) - _SHOWN:,} more in the way")
    if imports:
        text.echo(
            f"{text.count(imports, 'entry', 'entries')} of the import stay: that was there before"
        )
    if plan.conflicts:
        return
    kept = f", {plan.kept:,} stay, because later changes rely on them" if plan.kept else ""
    text.echo(f"{text.count(len(plan.chosen), 'operation')} to take back{kept}")
