"""``fusejournal scrub``: everything is read back, and the live tree compared."""

import click

from fusejournal.cli import text
from fusejournal.cli.interrupts import raise_interrupt
from fusejournal.cli.progress import watched
from fusejournal.config import parse_size
from fusejournal.disk.process import lower_disk_priority, lower_priority
from fusejournal.errors import ScrubFoundError


@click.command(short_help="Read everything back, and compare the live tree.")
@click.argument("volume")
@click.option("--repair", is_flag=True, help="Put content and attributes right.")
@click.option(
    "--rate", metavar="SIZE", default="64MiB", show_default=True, help="A second; 0: any."
)
@click.option("--anew", is_flag=True, help="From the beginning, though one was stopped.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def scrub(volume: str, repair: bool, rate: str, anew: bool, as_json: bool) -> None:
    """Read back all that VOLUME has, beside everything else that goes on: the journal's segments by
    their checksums, the versions with all their data, and the files of the live tree of this node,
    primary or mirror, which are compared with what versions and journal tell.

    It works at the lowest priority, and at the --rate. Stopped, it goes on where it was when it is
    given again; 'status' shows the last one. What differs is named, with exit code 49.

    --repair writes content, owner, mode, times and attributes of differing files anew, from the
    versions and the journal: on a primary through the mount, journaled, so that mirrors follow; on
    a mirror by its layer, whose journal stays as it is. What a store has lost of versions' contents
    is stored again where the live tree has it yet.

    \b
    Examples:
      fusejournal scrub srv-data
      fusejournal scrub srv-data --rate 200MiB
      fusejournal scrub srv-data --repair
    """
    # Only here: what shows help should not wait for its libraries to load.
    from fusejournal.admin.scrub import Scrub

    lower_priority()
    lower_disk_priority()
    with watched("scrubbing", as_json) as progress:
        work = Scrub(
            volume,
            progress,
            raise_interrupt,
            bytes_per_second=parse_size(rate),
            do_repair=repair,
            anew=anew,
        )
        found = work.run()
    if as_json:
        text.echo_json(found.to_json())
    else:
        for fault in found.faults:
            text.echo(fault, fg="red")
        for line in found.mended:
            text.echo(line)
        mended = f", {text.count(found.repaired, 'file')} repaired" if found.repaired else ""
        if found.stored_again:
            mended += f", {text.count(found.stored_again, 'chunk')} of versions stored again"
        if found.busy:
            mended += f", {text.count(found.busy, 'file')} changed at each look and not compared"
        text.echo(
            f"read {text.size(found.bytes)}, compared {text.count(found.files, 'file')} as of seq "
            f"{found.seq}{mended}: " + ("as it should be" if not found.faults else "FAULTS")
        )
    if found.faults:
        raise ScrubFoundError(
            f"{text.count(len(found.faults), 'fault')}; '--repair' puts right what "
            "versions and journal have"
        )
