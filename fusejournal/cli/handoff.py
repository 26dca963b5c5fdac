"""``fusejournal handoff``."""

import click

from fusejournal.admin.handoff import HandedOver, hand_over, wait_for_primary
from fusejournal.admin.promote import store_hint
from fusejournal.cli import text
from fusejournal.cli.interrupts import orderly_interrupts
from fusejournal.cli.progress import progress_bar
from fusejournal.node.registry import find_volume
from fusejournal.roles.plan import HandoffProgress

_FOLLOW_SECONDS = 30.0


@click.command("handoff", short_help="Move the service to a mirror.")
@click.argument("volume")
@click.argument("peer")
@click.option(
    "--timeout",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0, 60, min_open=True),
    metavar="SECONDS",
    help="How long PEER has to come level and to take over; else all goes on here.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def handoff_command(volume: str, peer: str, timeout: float, quiet: bool, as_json: bool) -> None:
    """Have the mirror PEER serve in place of the primary VOLUME, which must be mounted with
    --listen ADDR:PORT, and becomes its mirror.

    Nothing is lost, and no change is refused before PEER serves: changes wait until it has
    everything, reads go on. Whatever fails, also a Ctrl-C, until then has all go on here, and what
    has waited is done. Then what still waits here gets "Read-only file system", with nothing of it
    done; NFS clients of a floating address, which a hook moves, send it to PEER again.

    It is refused (exit code 37) where PEER is away, paused, no direct mirror, runs an older program
    or is not level in time; 28 where it is not known, 36 where a hook fails here. If PEER does not
    answer just when it was to take over, changes wait until it tells whether it has.

    \b
    Examples:
      fusejournal handoff srv-data attic
      fusejournal handoff srv-data attic --timeout 30    it has more to catch up with
      fusejournal handoff srv-data east                  and back again, on attic
    """
    state = find_volume(volume)
    with (
        orderly_interrupts() as check,
        progress_bar(f"to {peer}", quiet=quiet or as_json, in_bytes=False) as show,
    ):

        def progress(told: HandoffProgress) -> None:
            show(told.applied_seq, told.head_seq)

        told = hand_over(state, peer, timeout_seconds=timeout, check=check, progress=progress)
    follows = wait_for_primary(state, _FOLLOW_SECONDS)
    if as_json:
        handed = HandedOver(
            volume=state.name,
            peer=peer,
            reign=told.reign,
            follows=follows,
            head_seq=told.head_seq,
        )
        text.echo_json(handed.to_json())
        return
    text.echo(f"{peer} is the primary of {state.name}, in reign {told.reign}")
    if follows is None:
        text.echo(f"{peer} does not ship to here yet: see 'fusejournal status {state.name}'")
    if not store_hint(state):
        text.echo(
            f"versions are made by {peer} from now on, in the store that it has: 'fusejournal "
            "version store init' there where it has none"
        )
