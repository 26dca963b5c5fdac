"""``fusejournal log``: the newest entries."""

import errno
import pwd
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any

import click

from fusejournal.cli import text
from fusejournal.journal.format import Entry
from fusejournal.journal.journal import Journal, JournalOptions
from fusejournal.journal.paths import PathTracker
from fusejournal.journal.settled import settled
from fusejournal.operations import ImportData, Rename, Void, Write
from fusejournal.state import find_volume
from fusejournal.types import Seq


@click.command()
@click.argument("volume")
@click.option(
    "-n",
    "count",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="How many entries.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def log(volume: str, count: int, as_json: bool) -> None:
    """Show the newest entries of VOLUME's journal, oldest first: seq, time, who, what, path.

    \b Who is the caller; of a write, who opened the file. A change that the file system refused is
    shown with the error. In JSON, file names that are not UTF-8 carry their odd bytes as lone
    surrogates (\\udc80 to \\udcff).

    \b
    Examples:
      fusejournal log srv-data
      fusejournal log /srv/data -n 100
      fusejournal log srv-data -n 1000 --json | jq -r 'select(.op == "unlink") | .path'
    """
    state = find_volume(volume)
    journal = Journal.open(
        state.journal_dir, state.uuid, JournalOptions(), unclean_machine=False, read_only=True
    )
    for line in lines(journal, count):
        if as_json:
            text.echo_json(line)
        else:
            click.echo(_shown(line))


def lines(journal: Journal, count: int) -> Iterator[dict[str, Any]]:
    """The newest *count* entries as JSON objects; a refused one has ``refused``, its errno's
    name."""
    newest = journal.tail(count + 1)
    if not newest:
        return
    first_shown = newest[-count].seq if len(newest) >= count else newest[0].seq
    tracker = PathTracker()
    start = journal.segment_start(newest[0].seq)
    for entry, void in settled(_no_data(journal.read(start, Seq(newest[-1].seq + 1)))):
        tracker.learn(entry)
        if entry.seq >= first_shown:
            yield _line(entry, void, tracker)
        if void is None:
            tracker.follow(entry.operation)


def _no_data(entries: Iterable[Entry]) -> Iterator[Entry]:
    for entry in entries:
        yield entry._replace(data=entry.data[:0], frame_bytes=len(entry.data))


def _line(entry: Entry, void: Void | None, tracker: PathTracker) -> dict[str, Any]:
    operation = entry.operation
    path = tracker.path_of(operation)
    line: dict[str, Any] = {
        "seq": entry.seq,
        "time": datetime.fromtimestamp(entry.time_ns / 10**9, UTC).isoformat(),
        "time_ns": entry.time_ns,
        "op": operation.kind.name.lower(),
        **entry.who._asdict(),
        "fid": None,
        "path": None if path is None else text.exact(path),
    }
    for key, value in zip(operation._fields, operation, strict=True):
        # A file's owner is not the caller: both are told.
        line[f"new_{key}" if key in ("uid", "gid") else key] = _plain(value)
    if isinstance(operation, Write | ImportData):
        line["bytes"] = entry.frame_bytes
    if isinstance(operation, Rename):
        new_path = tracker.join(operation.new_parent, operation.new_name)
        line["new_path"] = None if new_path is None else text.exact(new_path)
    if void is not None:
        line["refused"] = errno.errorcode.get(void.errno, str(void.errno))
        line["written"] = void.written
    return line


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return text.exact(value)
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value


@cache
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _shown(line: dict[str, Any]) -> str:
    path = (
        "-"
        if line["path"] is None
        else "/" + text.name(line["path"].encode("utf-8", "surrogateescape"))
    )
    details = _details(line)
    refused = (
        f"  refused: {line['refused']}" if line.get("refused") and not line.get("written") else ""
    )
    return (
        f"{line['seq']:>8}  {text.moment(line['time_ns'])}  {_user(line['uid']):<10} "
        f"{line['op']:<11} "
        f"{path}{details}{refused}"
    )


def _path(exact: str | None) -> str:
    return "-" if exact is None else "/" + text.name(exact.encode("utf-8", "surrogateescape"))


def _details(line: dict[str, Any]) -> str:
    match line["op"]:
        case "write" | "import_data":
            return f"  {line['bytes']} bytes at {line['offset']}"
        case "truncate":
            return f"  to {line['size']} bytes"
        case "rename":
            return f"  -> {_path(line['new_path'])}"
        case "symlink":
            return f"  -> {text.name(line['target'].encode('utf-8', 'surrogateescape'))}"
        case "create" | "mkdir":
            return f"  mode {line['mode'] & 0o7777:04o}"
        case "setattr":
            parts = [
                f"mode {line['mode']:04o}" if line["mode"] is not None else "",
                f"owner {line['new_uid']}" if line["new_uid"] is not None else "",
                f"group {line['new_gid']}" if line["new_gid"] is not None else "",
                "times" if line["atime_ns"] is not None or line["mtime_ns"] is not None else "",
            ]
            return "  " + ", ".join(part for part in parts if part)
        case "setxattr" | "removexattr":
            return f"  {line['name']}"
        case "epoch":
            return f"  {line['epoch']}: {line['reason']}"
    return ""
