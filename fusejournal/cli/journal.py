"""``fusejournal journal``: what looks at the journal itself: dump, stats, verify."""

import json
import sys
from typing import Any

import click

from fusejournal.admin.source import open_reader
from fusejournal.cli import text
from fusejournal.cli.progress import progress_bar
from fusejournal.cli.statistics import show_statistics
from fusejournal.errors import JournalDamagedError, JournalVersionError
from fusejournal.history.dump import dump_segments
from fusejournal.history.json_values import frame_to_json, utc
from fusejournal.history.statistics import sum_segments
from fusejournal.journal.format import Entry
from fusejournal.journal.verify import VerifyReport, verify
from fusejournal.operations import OPERATIONS


@click.group(short_help="Dump, sum up or verify the journal itself.")
def journal() -> None:
    """Look at the journal itself: every entry as it lies there, sums, soundness.

    \b
    Examples:
      fusejournal journal verify srv-data
      fusejournal journal dump /backup/00000000000000000001.fjz
    """


_SOURCES = click.argument("sources", nargs=-1, required=True, metavar="VOLUME|SEGMENT...")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object (dump: a line).")


@journal.command("verify")
@_SOURCES
@click.option("--deep", is_flag=True, help="Decode every entry, too: finds forgeries; slower.")
@_JSON
def verify_command(sources: tuple[str, ...], deep: bool, as_json: bool) -> None:
    """Check every byte of a journal and the chain through it; exit code 11 if anything is wrong,
    29 if all that is wrong is that a newer version wrote it.

    Works on a running volume too: an entry being written just then is no damage.

    \b
    Examples:
      fusejournal journal verify srv-data
      fusejournal journal verify /backup/journal-copy
      fusejournal journal verify /backup/*.fjz --json
    """
    reader = open_reader(sources)
    with progress_bar("verifying", quiet=as_json, in_bytes=True) as progress:
        found = verify(reader.segments(), reader.uuid, progress, deep=deep)
    if as_json:
        text.echo_json(found.to_json())
    else:
        _show_verified(found)
    if (worst := found.worst) is not None:
        raise click.exceptions.Exit(worst.exit_code)


def _show_verified(found: VerifyReport) -> None:
    for damage in found.damages:
        text.echo(str(damage), fg="red")
    if found.unfinished:
        text.echo(f"unfinished: {found.unfinished}")
    for path in found.useless_indexes:
        text.echo(f"{path}: its index does not fit and is not used; delete the .fjx beside it")
    verdict = "sound"
    if (worst := found.worst) is not None:
        is_newer = isinstance(worst, JournalVersionError)
        verdict = "of a newer version" if is_newer else "DAMAGED"
    text.echo(
        f"{verdict}: "
        f"{text.count(found.entries, 'entry', 'entries')} ({found.first_seq} to {found.last_seq}), "
        f"{text.size(found.bytes)} in {text.count(found.segments, 'segment')}"
    )


@journal.command("dump")
@_SOURCES
@_JSON
def dump_command(sources: tuple[str, ...], as_json: bool) -> None:
    """Print every entry as it lies in the journal, a line each: seq, place in the segment, time,
    who, operation, all fields, and the paths it tells. A VOID is an entry like any other.

    What was read before damage is printed; exit code 11 then.

    \b
    Examples:
      fusejournal journal dump srv-data | grep -c '  WRITE '
      fusejournal journal dump srv-data --json | jq 'select(.op == "rename")'
      fusejournal journal dump /backup/00000000000000000001.fjz
    """
    damaged: JournalDamagedError | None = None
    shown = _dumped_json if as_json else _dumped_line
    for lines, damage in dump_segments(open_reader(sources).segments(), shown):
        sys.stdout.buffer.write(lines)
        damaged = damaged or damage
    sys.stdout.buffer.flush()
    if damaged is not None:
        raise damaged


def _dumped_json(entry: Entry) -> str:
    return json.dumps(frame_to_json(entry))


def _dumped_line(entry: Entry) -> str:
    seq, time_ns, who, paths, operation, data, flushed, chain, offset, frame_bytes = entry
    words = [value if type(value) is int else _word(value) for value in operation]
    line: str = _LAYOUTS[type(operation)] % (
        seq, offset, frame_bytes, utc(time_ns), *who, *words, flushed, chain
    )  # fmt: skip
    if len(data):
        line += f" data={len(data)}"
    if paths:
        line += " paths=" + ",".join(f"{fid}:{text.name(path)}" for fid, path in paths.items())
    return line


# One format for all of a line: this is what a dump's speed depends on.
_LAYOUTS = {
    cls: "%10d @%d+%d %s %d:%d/%d  "
    + " ".join([kind.name, *(f"{field}=%s" for field in cls._fields)])
    + " flushed=%d chain=%016x"
    for kind, cls in OPERATIONS.items()
}


def _word(value: Any) -> str:
    if value is None:
        return "-"
    if type(value) is bytes:
        return repr(text.name(value))
    if type(value) is tuple:
        return "[" + ",".join(f"{text.name(key)}={part.hex()}" for key, part in value) + "]"
    return str(value)


@journal.command("stats")
@_SOURCES
@_JSON
def stats_command(sources: tuple[str, ...], as_json: bool) -> None:
    """Sum up a journal: entries and bytes by operation, user, directory and hour, and the files
    written most. (``fusejournal log --stat`` does the same for chosen entries.)

    \b
    Examples:
      fusejournal journal stats srv-data
      fusejournal journal stats srv-data --json | jq '.files[:3]'
    """
    reader = open_reader(sources)
    with progress_bar("reading", quiet=as_json, in_bytes=False) as progress:
        found = sum_segments(reader.segments(), progress)
    show_statistics(found, as_json)
