"""``fusejournal undo``: take operations back in a running volume."""

import os
import shlex
import sys
from contextlib import suppress
from typing import Any

import click

from fusejournal.admin.source import JournalSource, open_source
from fusejournal.cli import entries, text
from fusejournal.cli.replay import conflict_line, watched
from fusejournal.control.client import ask
from fusejournal.errors import (
    ConflictError,
    FusejournalError,
    PrivilegeError,
    UndoOverlapError,
    UsageError,
)
from fusejournal.history.query import Criteria, find, parse_ranges
from fusejournal.node.state_dir import VolumeState
from fusejournal.replay.divergence import NAME_TAKEN, Conflict
from fusejournal.replay.undo_plan import Action, OnConflict, Undo, UndoPlan, begun_undos

_SHOWN = 40


@click.command(short_help="Take chosen operations back.")
@click.argument("volume")
@click.argument("seqs", nargs=-1, metavar="[SEQ|A-B]...")
@click.option("--path", "paths", multiple=True, help="Only what is about this path or pattern.")
@click.option("--op", "ops", multiple=True, metavar="OP,...", help="Only these operations.")
@click.option("--uid", type=int, help="Only what this user asked for.")
@click.option("--pid", type=int, help="Only what this process asked for.")
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
    pid: int | None,
    since: str | None,
    until: str | None,
    without: tuple[str, ...],
    on_conflict: OnConflict,
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
    if not (seqs or paths or ops or uid is not None or pid is not None or since or until):
        raise UsageError("say which: seqs, or --path, --op, --uid, --pid, --since, --until")
    if dry_run and do_apply:
        raise UsageError("--dry-run or --apply, not both")
    source = open_source(volume)
    for one in parse_ranges(seqs):
        source.check_seq(one.from_seq)
        source.check_seq(one.to_seq - 1)
    state = _running(source) if do_apply else None
    criteria = source.criteria(
        from_seq=source.reader.first_seq,
        since=since,
        until=until,
        ops=ops,
        uid=uid,
        pid=pid,
        paths=paths,
        only=seqs,
        without=without,
    )
    unfinished = _done_by(source, resumed)
    work = Undo(source.lookup, criteria, source.head_seq, unfinished=unfinished)
    with watched("planning", as_json) as progress:
        plan = work.plan(progress, on_conflict=on_conflict)
    actions = list(work.actions(plan))
    if not as_json:
        _show(source, plan, actions, work.imports)
    if plan.conflicts:
        if as_json:
            text.echo_json(_as_json(work, plan, actions, None))
        beside = ", aside" if any(_is_about_name(one) for one in plan.conflicts) else ""
        raise ConflictError(
            f"{text.count(len(plan.conflicts), 'later change')} in the way: choose others, take "
            f"those back too, or --on-conflict skip{beside}{_undos_in_the_way(source, plan)}"
        )
    if plan.kept and not plan.chosen:
        if as_json:
            text.echo_json(_as_json(work, plan, actions, None))
        raise ConflictError(
            f"nothing can be taken back: later changes rely on {_all_of(plan.kept)}; without "
            "--on-conflict skip they are named"
        )
    done: tuple[int, int] | None = None
    overlapped: UndoOverlapError | None = None
    if state is not None and plan.chosen:
        try:
            with watched("undoing", as_json) as progress:
                work.carry_out(plan, state.mountpoint, progress)
        except UndoOverlapError as error:
            overlapped = error
        except (OSError, FusejournalError, KeyboardInterrupt):
            _show_overlaps(work, plan)
            _tell_how_far(source, state, plan)
            raise
        done = plan.head_seq + 1, ask(state.directory, "status")["head_seq"]
    if as_json:
        text.echo_json(_as_json(work, plan, actions, done))
    elif done is not None:
        text.echo(
            f"done, as entries {done[0]} to {done[1]}; to take it back: "
            f"fusejournal undo {source.name} {done[0]}-{done[1]} --pid {os.getpid()}"
        )
    elif plan.chosen:
        text.echo("nothing was written: --apply does it")
    if overlapped is not None:
        _show_overlaps(work, plan)
        raise overlapped


def _is_about_name(conflict: Conflict) -> bool:
    """Whether what comes back could be beside its name instead."""
    return conflict.reason == NAME_TAKEN


def _done_by(source: JournalSource, pids: tuple[int, ...]) -> list[Criteria]:
    """Finds what the undos of processes have done. Raises UsageError."""
    begun = begun_undos(source.lookup) if pids else {}
    for pid in pids:
        if pid not in begun:
            raise UsageError(f"{source.name}: process {pid} has begun no undo here")
    return [begun[pid] for pid in pids]


def _undos_in_the_way(source: JournalSource, plan: UndoPlan) -> str:
    """Names the undos whose changes are in the way, and how to go on with them."""
    seqs = {conflict.seq for conflict in plan.conflicts}
    found = [
        f"--resume {pid}"
        for pid, done in sorted(begun_undos(source.lookup).items())
        if any(match.entry.seq in seqs for match in find(source.lookup, done))
    ]
    if not found:
        return ""
    return f"; some are an undo's: if that was of the same and was stopped, {' '.join(found)}"


def _all_of(count: int) -> str:
    return "it" if count == 1 else f"all {count:,} of them"


def _show_overlaps(work: Undo, plan: UndoPlan) -> None:
    """Shows what others changed at the same moment as the undo did."""
    for one in plan.overlaps[:_SHOWN]:
        path = entries.shown_path(work.path_of(one))
        text.echo(
            f"overlaps    {path}: entry {one.seq} by pid {one.pid} came just before the undo's own",
            err=True,
        )
    if len(plan.overlaps) > _SHOWN:
        text.echo(f"and {len(plan.overlaps) - _SHOWN:,} more overlap", err=True)


def _tell_how_far(source: JournalSource, state: VolumeState, plan: UndoPlan) -> None:
    """After a failure: nothing is lost, and how to get back."""
    with suppress(FusejournalError):
        first, last = plan.head_seq + 1, ask(state.directory, "status")["head_seq"]
        if last >= first:
            text.echo(
                f"stopped half-way: entries {first} to {last} are done, files on their way lie in "
                f"/.fusejournal-undo.*; to take that back: "
                f"fusejournal undo {source.name} {first}-{last} --pid {os.getpid()} --apply; to go "
                f"on: {shlex.join(['fusejournal', *sys.argv[1:]])} --resume {os.getpid()}",
                err=True,
            )


def _running(source: JournalSource) -> VolumeState:
    """The running volume to work on. Raises UsageError, NotRunningError, PrivilegeError."""
    if source.state is None:
        raise UsageError(f"{source.name} is a copy of a journal: only a volume can be undone")
    if os.geteuid() != 0:
        raise PrivilegeError("undoing needs root: try sudo")
    ask(source.state.directory, "status")
    return source.state


def _show(source: JournalSource, plan: UndoPlan, actions: list[Action], imports: int) -> None:
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
        text.echo(f"in the way  {conflict_line(source, conflict)}", fg="red")
    if len(plan.conflicts) > _SHOWN:
        text.echo(f"and {len(plan.conflicts) - _SHOWN:,} more in the way")
    if imports:
        text.echo(
            f"{text.count(imports, 'entry', 'entries')} of the import stay: that was there before"
        )
    kept = f", {plan.kept:,} stay, for later changes rely on them" if plan.kept else ""
    text.echo(f"{text.count(len(plan.chosen), 'operation')} to take back{kept}")


def _as_json(
    work: Undo, plan: UndoPlan, actions: list[Action], done: tuple[int, int] | None
) -> dict[str, Any]:
    def path(raw: bytes | None) -> str | None:
        return None if raw is None else text.exact(raw)

    return {
        "chosen": len(plan.chosen),
        "kept": plan.kept,
        "actions": [
            {
                "action": one.what,
                "fid": one.fid,
                "path": path(one.path),
                "new_path": path(one.new_path),
                "taken_path": path(one.taken_path),
                "takes_back": one.because_of,
            }
            for one in actions
        ],
        "conflicts": [
            {"seq": one.seq, "reason": one.reason, "because_of": one.because_of}
            for one in plan.conflicts
        ],
        "overlaps": [
            {"seq": one.seq, "pid": one.pid, "path": path(work.path_of(one))}
            for one in plan.overlaps
        ],
        "applied": (
            None if done is None else {"from_seq": done[0], "to_seq": done[1], "pid": os.getpid()}
        ),
    }
