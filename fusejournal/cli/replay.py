"""``fusejournal replay``: carry out operations of a journal on a directory."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from fusejournal.admin.source import JournalSource, open_source
from fusejournal.cli import entries, text
from fusejournal.cli.interrupts import orderly_interrupts
from fusejournal.cli.progress import progress_bar
from fusejournal.errors import ConflictError, UsageError
from fusejournal.history.query import Criteria, Match
from fusejournal.replay.divergence import Conflict
from fusejournal.replay.replay import ON_CONFLICT, Plan, Replay, Result
from fusejournal.replay.target import Progress, Target, purpose_of
from fusejournal.types import Seq

_CONFLICTS_SHOWN = 20
_BAR_STEP = 1024


@click.command(short_help="Carry out operations on a directory.")
@click.argument("volume")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--from-seq", type=click.IntRange(min=1), default=1, help="First entry  [default: 1]")
@click.option("--to-seq", type=click.IntRange(min=1), help="Last entry  [default: the newest]")
@click.option("--path", "paths", multiple=True, help="Only what is about this path or pattern.")
@click.option("--op", "ops", multiple=True, metavar="OP,...", help="Only these operations.")
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
    from_seq: int,
    to_seq: int | None,
    paths: tuple[str, ...],
    ops: tuple[str, ...],
    uid: int | None,
    without: tuple[str, ...],
    only: tuple[str, ...],
    dry_run: bool,
    on_conflict: str,
    verbose: bool,
    as_json: bool,
) -> None:
    """Carry out operations of VOLUME's journal, in order, on the directory TARGET.

    TARGET must hold the tree as it was before --from-seq: for 1 an empty or new directory, else
    what a restore or an earlier replay made. It needs no layer. All entries from --from-seq to
    --to-seq are carried out but those that the other options leave out. An operation that relies on
    one left out is a conflict: it is named with the seq of what it lacks, exit code 22.

    A replay that was stopped (Ctrl-C, a full disk, a kill) goes on when the same command is given
    again.

    \b
    Examples:
      fusejournal replay srv-data /restore/data
      fusejournal replay srv-data /restore/data --except 4711-4720 --dry-run
      fusejournal replay srv-data /restore/data --except 4711-4720 --on-conflict skip
      fusejournal replay srv-data /restore/data --from-seq 5001 --to-seq 6000
    """
    target = Path(os.path.abspath(target))
    source = open_source(volume)
    last = source.check_seq(to_seq) if to_seq else _begun_to_seq(target) or source.head_seq
    source.check_seq(from_seq)
    if last < from_seq:
        raise UsageError(f"--to-seq {last} is before --from-seq {from_seq}")
    if on_conflict == "ask" and not sys.stdin.isatty():
        raise UsageError("--on-conflict ask needs a terminal: use skip or stop")
    criteria = source.criteria(
        from_seq=from_seq,
        to_seq=last,
        ops=ops,
        uid=uid,
        paths=paths,
        only=only,
        without=without,
    )
    work = Replay(source.lookup, criteria)
    with watched("planning", as_json) as progress:
        plan = work.plan(progress) if criteria.is_partial or dry_run else None
    if dry_run:
        assert plan is not None
        _show_plan(source, plan, as_json)
        return
    if plan is not None and plan.conflicts and on_conflict == "stop":
        show_conflicts(source, plan)
        raise ConflictError(
            f"{text.count(plan.conflict_count, 'operation')} cannot be carried out, nothing was "
            "written: choose others, or --on-conflict skip"
        )
    purpose = {"volume": str(source.reader.uuid), "replay": _as_words(criteria, on_conflict)}
    sums = Plan()
    with Target(target, purpose, from_seq=from_seq) as goal:
        with watched("looking at the target", as_json) as progress:
            work.check_target(goal, progress)
        if goal.resumed and not as_json:
            text.echo(f"going on after seq {goal.done_seq}", err=True)
        ask = _Ask(source) if on_conflict == "ask" else None
        with watched("replaying", as_json) as progress:
            for result in work.run(goal, progress, ask=ask):
                sums.count(result)
                if as_json:
                    text.echo_json(_as_json(result))
                elif verbose or result.conflict is not None:
                    text.echo(_as_line(result))
        goal.finish()
    _show_end(target, sums, as_json)


@contextmanager
def watched(title: str, quiet: bool) -> Iterator[Progress]:
    """A progress bar that also lets Ctrl-C end the work between two steps."""
    with (
        orderly_interrupts() as check,
        progress_bar(title, quiet=quiet, in_bytes=False) as advance,
    ):

        def progress(done: int, total: int | None) -> None:
            check()
            if done % _BAR_STEP == 0:
                advance(done, total)

        yield progress


def _begun_to_seq(target: Path) -> Seq | None:
    """The last seq of an unfinished replay: the newest of that time, where it was not given."""
    begun = (purpose_of(target) or {}).get("replay")
    return Seq(begun["to_seq"] - 1) if isinstance(begun, dict) else None


def _as_words(criteria: Criteria, on_conflict: str) -> dict[str, Any]:
    """The options that a stopped replay must be gone on with."""
    return {
        "from_seq": criteria.from_seq,
        "to_seq": criteria.to_seq,
        "op": sorted(kind.name for kind in criteria.kinds),
        "uid": criteria.uid,
        "path": [text.exact(path) for path in criteria.paths],
        "only": [list(one) for one in criteria.only],
        "except": [list(one) for one in criteria.without],
        "on_conflict": on_conflict,
    }


class _Ask:
    """Asks whether to skip an operation, or all of them."""

    def __init__(self, source: JournalSource) -> None:
        self._source = source
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


def show_conflicts(source: JournalSource, plan: Plan) -> None:
    """The first conflicts, on stderr."""
    for conflict in plan.conflicts[:_CONFLICTS_SHOWN]:
        text.echo(conflict_line(source, conflict), err=True)
    if plan.conflict_count > _CONFLICTS_SHOWN:
        text.echo(f"and {plan.conflict_count - _CONFLICTS_SHOWN:,} more", err=True)


def conflict_line(source: JournalSource, conflict: Conflict) -> str:
    """A conflict with the path it is about."""
    where = ""
    if conflict.place is not None:
        where = entries.shown_path(source.lookup.join(*conflict.place, conflict.seq)) + ": "
    else:
        for entry in source.reader.read(conflict.seq, Seq(conflict.seq + 1)):
            fid = getattr(entry.operation, "fid", None)
            path = source.lookup.path_before(fid, conflict.seq) if fid else None
            where = f"{entry.operation.kind.name.lower()} {entries.shown_path(path)}: "
    return f"seq {conflict.seq}: {where}{conflict.reason}; seq {conflict.because_of} is left out"


def _show_plan(source: JournalSource, plan: Plan, as_json: bool) -> None:
    if as_json:
        text.echo_json(
            {
                "would_do": plan.done,
                "left_out": plan.left_out,
                "refused": plan.refused,
                "conflict_count": plan.conflict_count,
                "conflicts": [
                    {"seq": one.seq, "reason": one.reason, "because_of": one.because_of}
                    for one in plan.conflicts
                ],
            }
        )
        return
    text.echo(
        f"would carry out {text.count(plan.done, 'operation')}, leave out {plan.left_out:,}; "
        f"{plan.refused:,} were refused then; {text.count(plan.conflict_count, 'conflict')}"
    )
    show_conflicts(source, plan)


def _as_json(result: Result) -> dict[str, Any]:
    line: dict[str, Any] = {
        "seq": result.match.entry.seq,
        "op": result.match.entry.operation.kind.name.lower(),
        "result": result.verdict,
    }
    if result.conflict is not None:
        line["reason"] = result.conflict.reason
        line["because_of"] = result.conflict.because_of
    return line


def _as_line(result: Result) -> str:
    entry = result.match.entry
    why = (
        f": {result.conflict.reason} (seq {result.conflict.because_of} is left out)"
        if (result.conflict)
        else ""
    )
    return f"{entry.seq:>8}  {entry.operation.kind.name.lower():<11} {result.verdict}{why}"


def _show_end(target: Path, sums: Plan, as_json: bool) -> None:
    if as_json:
        text.echo_json(
            {
                "target": os.fspath(target),
                "done": sums.done,
                "skipped": sums.conflict_count,
                "refused": sums.refused,
            }
        )
        return
    text.echo(
        f"{text.name(os.fsencode(target))}: {text.count(sums.done, 'operation')} carried out, "
        f"{sums.conflict_count:,} skipped, {sums.refused:,} refused then as now"
    )
