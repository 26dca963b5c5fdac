"""``fusejournal replay``: carry out operations of a journal on a directory."""

import os
import sys
from pathlib import Path

import click

from fusejournal.admin.replay import ReplayRequest, conflict_path
from fusejournal.admin.source import JournalSource
from fusejournal.cli import entries, text
from fusejournal.cli.progress import watched
from fusejournal.cli.seqs import OPS, SEQ
from fusejournal.errors import ConflictError, UsageError
from fusejournal.history.query import Match
from fusejournal.replay.divergence import Conflict
from fusejournal.replay.replay import ON_CONFLICT, OnReplayConflict, Plan, Result
from fusejournal.types import SeqOrPosition

_CONFLICTS_SHOWN = 20


@click.command(short_help="Carry out operations on a directory.")
@click.argument("volume")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--from-seq", type=SEQ, help="First entry  [default: the first there is]")
@click.option("--to-seq", type=SEQ, help="Last entry  [default: the newest]")
@click.option("--path", "paths", multiple=True, help="Only what is about this path or pattern.")
@OPS
@click.option("--uid", type=int, help="Only what this user asked for.")
@click.option("--except", "without", multiple=True, metavar="SEQ|A-B", help="Leave these out.")
@click.option("--only", multiple=True, metavar="SEQ|A-B", help="Only these.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and what is in the way.")
@click.option(
    "--on-conflict",
    type=click.Choice(ON_CONFLICT),
    default="stop",
    show_default=True,
    help="An operation that relies on one left out: stop before anything is written, skip it "
    "(and what relies on it), or ask.",
)
@click.option("-v", "--verbose", is_flag=True, help="A line for each operation.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object an operation, then a sum.")
def replay(
    volume: str,
    target: Path,
    from_seq: SeqOrPosition | None,
    to_seq: SeqOrPosition | None,
    paths: tuple[str, ...],
    ops: tuple[str, ...],
    uid: int | None,
    without: tuple[str, ...],
    only: tuple[str, ...],
    dry_run: bool,
    on_conflict: OnReplayConflict,
    verbose: bool,
    as_json: bool,
) -> None:
    """Carry out operations of VOLUME's journal, in order, on the directory TARGET.

    TARGET must hold the tree as it was before --from-seq: for 1, and without it, an empty or new
    directory, else what a restore or an earlier replay made. Where the beginning of the journal was
    pruned, the replay first makes TARGET as it was then, whole. It needs no layer. All entries from
    --from-seq to --to-seq are carried out but those that the other options leave out. An operation
    that relies on one left out is a conflict: it is named with the seq of what it lacks, exit code
    22. For a seq a position goes, too: EPOCH/SEQ/CHAIN, as messages print it.

    A replay that was stopped (Ctrl-C, a full disk, a kill) goes on when the same command is given
    again.

    \b
    Examples:
      fusejournal replay srv-data /restore/data
      fusejournal replay srv-data /restore/data --except 4711-4720 --dry-run
      fusejournal replay srv-data /restore/data --except 4711-4720 --on-conflict skip
      fusejournal replay srv-data /restore/data --from-seq 5001 --to-seq 6000
    """
    if on_conflict == "ask" and not sys.stdin.isatty():
        raise UsageError("--on-conflict ask needs a terminal: use skip or stop")
    request = ReplayRequest(
        volume,
        target,
        from_seq=from_seq,
        to_seq=to_seq,
        paths=paths,
        ops=ops,
        uid=uid,
        without=without,
        only=only,
        on_conflict=on_conflict,
    )
    with watched("planning", as_json) as progress:
        plan = request.plan(progress, whole=dry_run)
    if dry_run:
        _show_plan(request, plan, as_json)
        return
    try:
        request.check(plan)
    except ConflictError:
        _show_conflicts(request, plan)
        raise
    _make_base(request, as_json)
    with request.open_target() as goal:
        with watched("looking at the target", as_json) as progress:
            request.check_target(goal, progress)
        if goal.resumed and not as_json:
            text.echo(f"going on after seq {goal.done_seq}", err=True)
        ask = _Ask() if on_conflict == "ask" else None
        with watched("replaying", as_json) as progress:
            for result in request.run(goal, progress, ask):
                _show_result(result, verbose, as_json)
        goal.finish()
    _show_end(request, as_json)


def _make_base(request: ReplayRequest, as_json: bool) -> None:
    if request.needs_base:
        with watched("making the tree at the base", as_json) as progress:
            request.make_base(progress)


class _Ask:
    """Asks whether to skip an operation, or all of them."""

    def __init__(self) -> None:
        self._all = False

    def __call__(self, conflict: Conflict, match: Match) -> bool:
        if self._all:
            return True
        text.echo(entries.as_line(match))
        text.echo(f"  {conflict}")
        answer = click.prompt(
            "skip it, skip all, or stop?",
            type=click.Choice(["skip", "all", "stop"]),
            default="skip",
        )
        self._all = answer == "all"
        return bool(answer != "stop")


def _show_conflicts(request: ReplayRequest, plan: Plan) -> None:
    """The first conflicts, on stderr."""
    for conflict in plan.conflicts[:_CONFLICTS_SHOWN]:
        text.echo(conflict_line(request.source, conflict), err=True)
    if plan.conflict_count > _CONFLICTS_SHOWN:
        text.echo(f"and {plan.conflict_count - _CONFLICTS_SHOWN:,} more", err=True)


def conflict_line(source: JournalSource, conflict: Conflict) -> str:
    """A conflict with the path it is about."""
    word, path = conflict_path(source, conflict)
    where = f"{word} {entries.shown_path(path)}".lstrip()
    reason = f"{conflict.reason}; seq {conflict.because_of} is left out"
    return f"seq {conflict.seq}: {where}: {reason}"


def _show_plan(request: ReplayRequest, plan: Plan, as_json: bool) -> None:
    if as_json:
        text.echo_json(plan.to_json())
        return
    text.echo(
        f"would carry out {text.count(plan.done, 'operation')}, leave out {plan.left_out:,}; "
        f"{plan.refused:,} were refused then; {text.count(plan.conflict_count, 'conflict')}"
    )
    _show_conflicts(request, plan)


def _show_result(result: Result, verbose: bool, as_json: bool) -> None:
    if as_json:
        text.echo_json(result.to_json())
    elif verbose or result.conflict is not None:
        text.echo(_as_line(result))


def _as_line(result: Result) -> str:
    entry = result.match.entry
    why = (
        f": {result.conflict.reason} (seq {result.conflict.because_of} is left out)"
        if (result.conflict)
        else ""
    )
    return f"{entry.seq:>8}  {entry.operation.kind.name.lower():<11} {result.verdict}{why}"


def _show_end(request: ReplayRequest, as_json: bool) -> None:
    if as_json:
        text.echo_json(request.to_json())
        return
    sums = request.sums
    text.echo(
        f"{text.name(os.fsencode(request.target_path))}: {text.count(sums.done, 'operation')} "
        f"carried out, {sums.conflict_count:,} skipped, {sums.refused:,} refused then as now"
    )
