"""``fusejournal journal``: what looks at the journal itself."""

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from fusejournal.cli import text
from fusejournal.errors import JournalDamagedError
from fusejournal.journal.verify import VerifyReport, verify
from fusejournal.state import find_volume


@click.group()
def journal() -> None:
    """Look at the journal itself.

    \b
    Example:
      fusejournal journal verify srv-data
    """


@journal.command("verify")
@click.argument("volume")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def verify_command(volume: str, as_json: bool) -> None:
    """Check every byte of VOLUME's journal and the chain through it; exit code 11 if anything is
    wrong.

    Works on a running volume too: an entry being written just then is no damage.

    \b
    Examples:
      fusejournal journal verify srv-data
      fusejournal journal verify /var/lib/fusejournal/srv-data --json
    """
    state = find_volume(volume)
    columns = (
        TextColumn("verifying"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns,
        console=Console(stderr=True),
        disable=as_json or not Console(stderr=True).is_terminal,
    ) as bar:
        task = bar.add_task("verify", total=None)
        found = verify(
            state.journal_dir,
            state.uuid,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        text.echo_json(_as_json(found))
    else:
        _show(found)
    if found.damages:
        raise click.exceptions.Exit(JournalDamagedError.exit_code)


def _as_json(found: VerifyReport) -> dict[str, object]:
    return {
        "segments": found.segments,
        "entries": found.entries,
        "bytes": found.bytes,
        "first_seq": found.first_seq,
        "last_seq": found.last_seq,
        "unfinished": found.unfinished,
        "damages": [
            {
                "segment": str(one.segment),
                "offset": one.offset,
                "seq": one.seq,
                "reason": one.reason,
            }
            for one in found.damages
        ],
    }


def _show(found: VerifyReport) -> None:
    for damage in found.damages:
        click.secho(str(damage), fg="red")
    if found.unfinished:
        click.echo(f"unfinished: {found.unfinished}")
    click.echo(
        f"{'DAMAGED' if found.damages else 'sound'}: {found.entries:,} entries "
        f"({found.first_seq} to {found.last_seq}), "
        f"{text.size(found.bytes)} in {text.count(found.segments, 'segment')}"
    )
