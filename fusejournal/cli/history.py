"""``fusejournal history``: one file's life."""

import heapq
from collections.abc import Iterator
from typing import NamedTuple

import click

from fusejournal.admin.source import open_source
from fusejournal.cli import entries, text
from fusejournal.errors import PathNotFoundError
from fusejournal.history.lookup import Lookup, Tenure, name_changes
from fusejournal.history.query import Match
from fusejournal.journal.format import Entry
from fusejournal.journal.reader import END
from fusejournal.operations import Create, Import, ImportData, Kind, Rename, Truncate, Void, Write
from fusejournal.types import Fid, Seq


@click.command(short_help="One file's life.")
@click.argument("volume")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def history(volume: str, path: str, as_json: bool) -> None:
    """Show the life of the file or directory PATH: every entry about it, whatever its name was
    then, who asked for it, and the size after it.

    PATH is from the volume's root, and may be one that is gone. Where it stood for several files,
    one after the other, each is shown. A rename of a directory above is part of the life, too.

    \b
    Examples:
      fusejournal history srv-data home/anna/thesis.odt
      fusejournal history srv-data old/name.txt --json | jq -r '[.seq, .path, .size] | @tsv'
    """
    source = open_source(volume)
    raw = source.path(path)
    lookup = source.lookup
    tenures: dict[Fid, list[Tenure]] = {}
    for tenure in lookup.tenures(raw):
        tenures.setdefault(tenure.fid, []).append(tenure)
    if not tenures:
        raise PathNotFoundError(path, f"never was in the journal of {source.name}")
    for number, (fid, times) in enumerate(tenures.items(), 1):
        if as_json:
            for step in life(lookup, fid):
                text.echo_json({**entries.as_json(step.match), "of": fid, "size": step.size})
            continue
        if number > 1:
            text.echo()
        text.echo(_title(raw, fid, times, number, len(tenures)), bold=True)
        for step in life(lookup, fid):
            size = "" if step.size is None else text.size(step.size)
            text.echo(f"{size:>10}  {entries.as_line(step.match)}")


class Step(NamedTuple):
    """One entry of a life, and the file's size after it; None for what has none."""

    match: Match
    size: int | None


def life(lookup: Lookup, fid: Fid) -> Iterator[Step]:
    """Every entry about *fid*, and the renames of directories above it, in order."""
    size: int | None = None
    pairs = heapq.merge(
        lookup.entries_of(fid), _moves_above(lookup, fid), key=lambda pair: pair[0].seq
    )
    for entry, void in pairs:
        if void is None or void.written:
            size = _size_after(entry, void, size)
        yield Step(Match(entry, void, *_paths(lookup, fid, entry)), size)


def _paths(lookup: Lookup, fid: Fid, entry: Entry) -> tuple[bytes | None, bytes | None]:
    """The path of *fid* that *entry* is about, and where it moved it."""
    operation = entry.operation
    if isinstance(operation, Rename) and fid not in (operation.fid, operation.replaced):
        return lookup.path_before(fid, entry.seq), lookup.path_before(fid, Seq(entry.seq + 1))
    changes = name_changes(operation)
    if not changes:
        return lookup.path_before(fid, entry.seq), None
    found = [lookup.join(change.parent, change.name, entry.seq) for change in changes]
    return found[0], found[1] if len(found) > 1 else None


def _size_after(entry: Entry, void: Void | None, size: int | None) -> int | None:
    match entry.operation:
        case Create():
            return 0
        case Import(size=imported, target=None):
            return imported
        case Truncate(size=new):
            return new
        case Write(offset=offset) | ImportData(offset=offset):
            taken = len(entry.data) if void is None else void.written
            return max(size or 0, offset + taken)
    return size


def _moves_above(lookup: Lookup, fid: Fid) -> Iterator[tuple[Entry, Void | None]]:
    """The renames of directories that gave *fid* another path."""
    own = {
        entry.seq for entry, _ in lookup.entries_of(fid, wanted=lambda one: one.kind == Kind.RENAME)
    }
    for seq, _ in lookup.timeline(fid):
        if seq and seq not in own:
            for entry in lookup.reader.read(seq, Seq(seq + 1)):
                if isinstance(entry.operation, Rename) and entry.operation.fid != fid:
                    yield entry, None


def _title(path: bytes, fid: Fid, times: list[Tenure], number: int, count: int) -> str:
    spans = ", ".join(
        f"seq {time.from_seq} on"
        if time.to_seq == END
        else f"seq {time.from_seq} to {time.to_seq - 1}"
        for time in times
    )
    which = f"file {number} of {count}: " if count > 1 else ""
    return f"{which}{entries.shown_path(path)} was fid {fid} ({spans})"
