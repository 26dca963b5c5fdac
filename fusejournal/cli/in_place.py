"""``fusejournal restore --in-place``: what it would do, or does."""

import shlex
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

from fusejournal.admin.restore_in_place import Moment, PlannedInPlace, planned_in_place
from fusejournal.cli import entries, text
from fusejournal.cli.interrupts import raise_interrupt
from fusejournal.cli.progress import watched
from fusejournal.errors import FusejournalError, UndoOverlapError
from fusejournal.versions.in_place import PathChange

_SHOWN = 40


def restore_in_place(
    volume: str,
    path: str | None,
    moment: Moment,
    config: Path | None,
    *,
    do_apply: bool,
    as_json: bool,
) -> None:
    """Shows what brings *path* back to *moment*, and with *do_apply* does it."""
    with (
        watched("reading entries", as_json) as progress,
        planned_in_place(
            volume, path, moment, progress, raise_interrupt, config, to_apply=do_apply
        ) as planned,
    ):
        if not as_json:
            _show(planned)
        if not do_apply or planned.plan.is_empty:
            if as_json:
                text.echo_json(planned.to_json(None))
            elif not planned.plan.is_empty:
                text.echo("nothing was written: --apply does it")
            return
        overlapped = _carry_out(planned, as_json)
    done = planned.done()
    if as_json:
        text.echo_json(planned.to_json(done))
    else:
        text.echo(
            f"done, as entries {done.from_seq} to {done.to_seq}; to take it back: fusejournal undo "
            f"{planned.source.name} {done.from_seq}-{done.to_seq} --pid {done.pid} --apply"
        )
    if overlapped is not None:
        raise overlapped


def _carry_out(planned: PlannedInPlace, as_json: bool) -> UndoOverlapError | None:
    try:
        with watched("restoring", as_json) as progress:
            return planned.carry_out(progress)
    except (OSError, FusejournalError, KeyboardInterrupt):
        _print_how_far(planned)
        raise


def _print_how_far(planned: PlannedInPlace) -> None:
    """Shows after a failure that nothing is lost, and how to go on, or back."""
    with suppress(FusejournalError):
        first, last, pid = planned.done()
        if last >= first:
            text.echo(
                f"stopped half-way, with entries {first} to {last}; to go on: "
                f"{shlex.join(['fusejournal', *sys.argv[1:]])}; to take it back: fusejournal undo "
                f"{planned.source.name} {first}-{last} --pid {pid} --apply",
                err=True,
            )


def _show(planned: PlannedInPlace) -> None:
    plan, version = planned.plan, planned.version
    for change in plan.changes[:_SHOWN]:
        text.echo(_line(change))
    if len(plan.changes) > _SHOWN:
        text.echo(f"and {len(plan.changes) - _SHOWN:,} more (--json has them)")
    of = "the journal alone"
    if version is not None:
        later = text.count(planned.seq - version.seq, "entry", "entries")
        of = f"version {version.shown_name} and {later} after it"
    if plan.is_empty:
        text.echo(f"all is as it was after seq {planned.seq} ({of})")
        return
    counts = Counter(change.what for change in plan.changes)
    summed = ", ".join(f"{count:,} to {what}" for what, count in sorted(counts.items()))
    if not summed:
        summed = "times of directories alone"
    text.echo(
        f"{summed}; {text.size(plan.written_bytes)} at most; as of seq {planned.seq}, by {of}"
    )


def _line(change: PathChange) -> str:
    shown = entries.shown_path(change.path)
    if change.old_path is not None:
        shown = f"{entries.shown_path(change.old_path)} -> {shown}"
    if change.written_bytes:
        shown += f"  ({text.size(change.written_bytes)})"
    if change.shared:
        others = ", ".join(entries.shown_path(path) for path in change.shared)
        shown += f"  (the same file as {others})"
    return f"{change.what:<11} {shown}"
