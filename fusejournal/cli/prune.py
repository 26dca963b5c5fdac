"""``fusejournal prune``: lets go what the policy does not keep."""

import time
from pathlib import Path

import click

from fusejournal.admin.prune import LostMoment, PrunePlan, Pruning
from fusejournal.admin.prune_journal import JournalPlan
from fusejournal.cli import text
from fusejournal.cli.interrupts import raise_interrupt
from fusejournal.cli.progress import watched
from fusejournal.cli.version import warn_of_unreadable
from fusejournal.disk.process import lower_priority
from fusejournal.versions.collect import Collected


@click.command(short_help="Let go what the policy does not keep.")
@click.argument("volume")
@click.option("--dry-run", is_flag=True, help="Say what would go, and why; change nothing.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The configuration with the policy, in place of the one that VOLUME is mounted with.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def prune(volume: str, dry_run: bool, config: Path | None, as_json: bool) -> None:
    """Let go what the policy in VOLUME's configuration does not keep: of the journal ([journal],
    keep_bytes and keep_days), and of its versions ([versions]), with what these alone had in the
    store.

    Before a part of the journal goes a version is made that stands for it, and all of it is read
    back. What a peer has not got yet stays, and so does what came after the oldest mark or before
    the backing was flushed; --dry-run says what holds it back. Of the versions the newest, the
    journal's base, what is protected and what has a name always stay. Afterwards any moment from
    the base on can be restored, and before it those of versions.

    It works at low priority, beside everything else; stopped at any point, it goes on when it is
    given again.

    \b
    Examples:
      fusejournal prune srv-data --dry-run
      fusejournal prune srv-data
      fusejournal prune srv-data --config /root/try-a-policy.toml --dry-run --json
    """
    lower_priority()
    work = Pruning(volume, config, raise_interrupt)
    plan = work.plan()
    with watched("marking blocks", as_json, work.traffic) as progress:
        collected = (work.would_free if dry_run else work.carry_out)(plan, progress)
    warn_of_unreadable(volume, collected.unreadable)
    if as_json:
        text.echo_json(plan.to_json(collected))
        return
    _show_plan(plan, dry_run=dry_run)
    for line in work.remarks(plan):
        text.echo(line)
    _show_freed(plan, collected, dry_run=dry_run)
    if dry_run and (at := work.next_by_layer()) is not None:
        in_seconds = max(0.0, at - time.time())
        text.echo(f"by itself the layer does it in {text.duration(in_seconds)}")


def _show_plan(plan: PrunePlan, *, dry_run: bool) -> None:
    for one in plan.verdicts:
        if dry_run or not one.stays:
            why = f"keep: {', '.join(one.reasons)}" if one.stays else "goes: no rule keeps it"
            when = text.moment(one.version.time_ns)[:19].replace("T", " ")
            name = f" ({one.version.name})" if one.version.name else ""
            text.echo(f"{one.version.seq:>12}  {when}  {why}{name}")
    _show_journal(plan.journal, dry_run=dry_run)
    for lost in plan.lost:
        text.echo(_lost_line(lost, dry_run=dry_run))


def _show_journal(plan: JournalPlan, *, dry_run: bool) -> None:
    for why in plan.held_by:
        text.echo(f"the journal is held back: {why}")
    if plan.segments:
        text.echo(
            f"of the journal {text.count(plan.segments, 'segment')} with {text.size(plan.bytes)} "
            f"{'would go' if dry_run else 'went'}: any moment from seq {plan.base_seq} on can be "
            "restored then, and before it those of versions"
        )


def _lost_line(lost: LostMoment, *, dry_run: bool) -> str:
    """A moment that is gone, with the nearest ones that are left."""
    nearest = [
        f"{word} seq {seq}"
        for word, seq in (("before it", lost.earlier), ("after it", lost.later))
        if seq is not None
    ]
    verb = "could then" if dry_run else "can"
    left = " and ".join(nearest) or "none"
    return f"seq {lost.seq} {verb} no longer be restored; the nearest that can: {left}"


def _show_freed(plan: PrunePlan, collected: Collected, *, dry_run: bool) -> None:
    versions = text.count(len(plan.going), "version")
    freed = text.size(collected.removed_bytes)
    names = ", ".join(f"{one.node} (pid {one.pid})" for one in collected.waiting_for)
    if dry_run:
        later = f", once {names} has ended" if names else ""
        text.echo(f"would delete {versions}, and free {freed} in the store{later}")
    elif names:
        text.echo(f"deleted {versions}; what they alone had waits for {names}: prune again then")
    else:
        text.echo(f"deleted {versions}, and freed {freed} in the store")
