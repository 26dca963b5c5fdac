"""``fusejournal log``: who did what, when, to which file."""

import sys
from collections.abc import Iterable, Iterator
from operator import attrgetter

import click

from fusejournal.admin.source import open_source
from fusejournal.admin.version_notes import kept_to_json, kept_versions, with_versions
from fusejournal.cli import entries, text
from fusejournal.cli.seqs import OPS, SEQ
from fusejournal.cli.statistics import show_statistics
from fusejournal.cli.version_notes import note_of, warn
from fusejournal.errors import UsageError
from fusejournal.history.json_values import match_to_json
from fusejournal.history.query import Match, find_newest
from fusejournal.history.statistics import sum_matches
from fusejournal.types import SeqOrPosition


@click.command(short_help="Who did what, when, to which file.")
@click.argument("volume")
@click.argument("path", required=False, metavar="[PATH|GLOB]")
@click.option("--since", metavar="TIME", help="Entries at or after a time or mark.")
@click.option("--until", metavar="TIME", help="Entries up to a time or mark.")
@click.option("--from-seq", type=SEQ, help="Entries from this seq on.")
@click.option("--to-seq", type=SEQ, help="Entries up to this seq, included.")
@OPS
@click.option("--uid", type=int, help="Only what this user asked for.")
@click.option("--min-bytes", type=click.IntRange(min=0), help="Only what wrote so much, or more.")
@click.option("--max-bytes", type=click.IntRange(min=0), help="Only what wrote so much, or less.")
@click.option("--reverse", is_flag=True, help="The newest first.")
@click.option("-n", "count", type=click.IntRange(min=1), help="Only the newest so many.")
@click.option("--follow", is_flag=True, help="Go on with what is added, until Ctrl-C.")
@click.option("--stat", is_flag=True, help="Sums of the entries instead of the entries.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def log(
    volume: str,
    path: str | None,
    since: str | None,
    until: str | None,
    from_seq: SeqOrPosition | None,
    to_seq: SeqOrPosition | None,
    ops: tuple[str, ...],
    uid: int | None,
    min_bytes: int | None,
    max_bytes: int | None,
    reverse: bool,
    count: int | None,
    follow: bool,
    stat: bool,
    as_json: bool,
) -> None:
    """Show VOLUME's journal, oldest first: seq, time, who, what, path.

    VOLUME is a volume, running or not, or a directory of segments copied from one. PATH, from the
    volume's root or as it shows below the mountpoint, is a file (with all that it went through
    while that was its name) or a directory and what is below it; a GLOB's * and ? stop at a slash,
    ** does not, and one without a slash is held against names anywhere.

    Who is the caller; of a write, who opened the file. A change that the file system refused is
    shown with the error. Below an entry stand the versions that keep what it left. In JSON, file
    names that are not UTF-8 carry their odd bytes as lone surrogates (\\udc80 to \\udcff).

    Times: 2026-01-31, "2026-01-31 14:00", 14:00, yesterday, "2 hours ago", or a mark's name. They
    are local, shown with the offset from UTC, unless you type one (as in 2026-01-31T14:00Z); in
    JSON, they are UTC. For a seq a position goes, too: EPOCH/SEQ/CHAIN, as messages print it.

    \b
    Examples:
      fusejournal log srv-data -n 50
      fusejournal log srv-data home/anna --since "2 hours ago"
      fusejournal log srv-data '*.docx' --op write,unlink --uid 1001
      fusejournal log srv-data --since yesterday --stat
      fusejournal log srv-data --op unlink --json | jq -r .path
      fusejournal log srv-data --follow
    """
    if follow and (reverse or stat or until or to_seq):
        raise UsageError("--follow goes with none of --reverse, --stat, --until, --to-seq")
    source = open_source(volume)
    if not follow and from_seq:
        source.check_seq(from_seq)
    criteria = source.criteria(
        from_seq=from_seq or 1,
        to_seq=to_seq,
        since=since,
        until=until,
        ops=ops,
        uid=uid,
        paths=(path,) if path else (),
        bytes_min=min_bytes,
        bytes_max=max_bytes,
        check_paths=not follow,
    )
    if not (from_seq or count or follow) and source.gone_before is not None:
        text.echo(f"fusejournal: {source.gone_before}", err=True)
    matches = find_newest(source.lookup, criteria, count, newest_first=reverse)
    if stat:
        show_statistics(sum_matches(matches), as_json)
        return
    if follow:
        _follow(source.follow(criteria, count), as_json)
        return
    seq_of, end_seq = attrgetter("entry.seq"), criteria.to_seq
    kept = kept_versions(source, warn)
    _show(with_versions(matches, seq_of, kept, end_seq=end_seq, newest_first=reverse), as_json)


def _show(noted: Iterable[tuple[Match, list[str]]], as_json: bool) -> None:
    if as_json:
        for match, names in noted:
            text.echo_json({**match_to_json(match), **kept_to_json(names)})
    elif not sys.stdout.isatty():
        for line in _lines(noted):
            text.echo(line)
    else:
        click.echo_via_pager(text.styled(line) + "\n" for line in _lines(noted))


def _follow(matches: Iterable[Match], as_json: bool) -> None:
    for match in matches:
        if as_json:
            text.echo_json(match_to_json(match))
            sys.stdout.flush()
        else:
            text.echo(entries.as_line(match))


def _lines(noted: Iterable[tuple[Match, list[str]]]) -> Iterator[str]:
    for match, names in noted:
        yield entries.as_line(match)
        if names:
            yield f"{'':>12}  {note_of(names)}"
