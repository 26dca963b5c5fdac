"""``fusejournal promote``."""

import click

from fusejournal.admin.peers import list_peers
from fusejournal.admin.promote import PromotionOutcome, plan_promotion, promote, store_hint
from fusejournal.cli import text
from fusejournal.errors import PromotionRefusedError
from fusejournal.node.registry import find_volume
from fusejournal.roles.plan import PromotionPlan


@click.command("promote", short_help="Make this mirror the primary.")
@click.argument("volume")
@click.option(
    "--force",
    is_flag=True,
    help="Also where the old primary is not known to have stopped, or another node holds more: you "
    "have made sure that it is off, or what only it has may be lost.",
)
@click.option("--dry-run", is_flag=True, help="Only ask all peers, and tell what it would do.")
@click.option(
    "--timeout",
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until it serves.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def promote_command(volume: str, force: bool, dry_run: bool, timeout: float, as_json: bool) -> None:
    """Make the mirror VOLUME, which must be mounted, the primary, because the old one is lost.

    First it tells what may be lost: what the old primary is known to have had and this node does
    not hold, and for how long that was not heard. Then it asks all peers for their vote to take
    nothing from the old primary any more, applies all that it holds, and serves in place of that,
    with the same file ids, so that NFS clients' handles stay good. Mirrors that know each other
    follow it by themselves. An old primary that comes back takes no change once it meets one of
    them.

    It is refused (exit code 32) where a primary answers, where a peer holds more, or where the old
    primary may go on without those who answer: with two nodes that is always so, and a person has
    to say, with --force, that it is off.

    \b
    Examples:
      fusejournal promote srv-data --dry-run
      fusejournal promote srv-data
      fusejournal promote srv-data --force
    """
    state = find_volume(volume)
    plan = plan_promotion(state)
    if not as_json:
        _show(plan)
    refusal = plan.refusal if not force else ""
    if dry_run or refusal:
        if as_json:
            text.echo_json(PromotionOutcome.of_plan(plan, promoted=False).to_json())
        if refusal:
            raise PromotionRefusedError(f"not promoted: {refusal}")
        return
    promote(state, force=force, timeout_seconds=timeout, applying=_print_applying)
    if as_json:
        text.echo_json(PromotionOutcome.of_plan(plan, promoted=True).to_json())
    else:
        text.echo(f"{state.name} is the primary, in reign {plan.reign}")
        for peer in list_peers(state).peers:
            if peer.paused:
                text.echo(
                    f"paused, and so does not follow: 'fusejournal peer resume {state.name} "
                    f"{peer.name}'"
                )
        if hint := store_hint(state):
            text.echo(hint)


def _print_applying(left: int) -> None:
    text.echo(f"{left} entries to apply", err=True)


def _show(plan: PromotionPlan) -> None:
    for label, words in plan.rows():
        text.echo(f"{label:<18}{words}")
