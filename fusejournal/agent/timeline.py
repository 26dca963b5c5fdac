"""The timeline of a volume: its entries, newest first, a page at a time, and one of them.

A page ends when it is full, or after a part of a second: then it says from where the next goes on,
so that a filter that fits nothing among millions of entries still answers at once. Without a path
to look for, entries are read backwards a window at a time, and segments are passed over whose
index has nothing that fits; each one found is then asked for its path."""

import base64
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fusejournal.admin.source import JournalSource
from fusejournal.agent.accounts import account_names
from fusejournal.agent.command_lines import command_line
from fusejournal.agent.fields import Fields
from fusejournal.history.json_values import match_to_json
from fusejournal.history.lookup import Lookup, Span
from fusejournal.history.name_changes import name_changes
from fusejournal.history.query import Criteria, Match, find
from fusejournal.journal.format import Entry
from fusejournal.journal.outcomes import Outcome, with_outcomes
from fusejournal.operations import Moving
from fusejournal.types import Fid, Seq

_COUNT_MAX = 500
_WINDOW = 2048
"""Entries that are read together."""
_SECONDS = 0.6
_DATA_BYTES_MAX = 256 << 10
"""The most that is shown of an entry's data."""


def criteria_of(source: JournalSource, fields: Fields) -> Criteria:
    """Returns what is asked for, of the fields that a filter has. Raises FusejournalError."""
    path = fields.text_or_none("path")
    return source.criteria(
        from_seq=fields.number("from_seq", 1, least=1),
        to_seq=fields.number_or_none("to_seq", least=1),
        since=fields.text_or_none("since"),
        until=fields.text_or_none("until"),
        ops=fields.texts("op"),
        uid=fields.number_or_none("uid"),
        paths=[path] if path else [],
    )


def filter_options(fields: Fields) -> list[tuple[str, object]]:
    """Returns the options of the command line that choose the same."""
    return [
        ("--since", fields.text_or_none("since")),
        ("--until", fields.text_or_none("until")),
        ("--op", ",".join(fields.texts("op"))),
        ("--uid", fields.number_or_none("uid")),
        ("--from-seq", fields.number_or_none("from_seq")),
        ("--to-seq", fields.number_or_none("to_seq")),
    ]


def entries(source: JournalSource, fields: Fields) -> dict[str, Any]:
    """Returns a page of entries, newest first. Fields: those of a filter; ``before_seq``, where the
    page before said to go on; ``count``. Raises FusejournalError.

    ``next_before_seq`` of the answer is None at the end, and ``first_searched_seq`` says how far
    down was looked."""
    count = min(fields.number("count", 100, least=1), _COUNT_MAX)
    criteria = criteria_of(source, fields)
    end = Seq(min(criteria.to_seq, source.head_seq + 1))
    before = fields.number_or_none("before_seq", least=1)
    if before is not None:
        end = Seq(min(end, before))
    criteria = replace(criteria, to_seq=end)
    deadline = time.monotonic() + _SECONDS
    found: _Found = []
    reached = criteria.from_seq
    for page, seq in _pages(source.lookup, criteria):
        room = count - len(found)
        found += page[:room]
        if len(page) > room:
            reached = found[-1][0].seq
            break
        reached = seq
        if len(found) == count or time.monotonic() > deadline:
            break
    is_end = reached <= max(criteria.from_seq, source.reader.first_seq)
    matches = _with_paths(source.lookup, found)
    path = fields.text_or_none("path")
    words = [source.name, *([path] if path else [])]
    return {
        "entries": [match_to_json(one) for one in matches],
        "users": account_names(one.entry.who.uid for one in matches),
        "head_seq": int(source.head_seq),
        "next_before_seq": None if is_end else int(reached),
        "first_searched_seq": int(reached),
        "command": command_line(
            "log", *words, options=[*filter_options(fields), ("-n", count), ("--reverse", True)]
        ),
    }


_Found = list[tuple[Entry, Outcome, tuple[bytes | None, bytes | None] | None]]
"""Entries with their paths, where those are known already."""


def _pages(lookup: Lookup, criteria: Criteria) -> Iterator[tuple[_Found, Seq]]:
    """Yields what fits, newest first, in pieces, each with the seq down to which was looked."""
    kinds = sum(1 << kind for kind in criteria.kinds)
    spans = lookup.segments(criteria.from_seq, criteria.to_seq, newest_first=True)
    for span in spans:
        if criteria.paths:
            within = replace(
                criteria,
                from_seq=max(criteria.from_seq, span.first_seq),
                to_seq=min(criteria.to_seq, span.end_seq),
            )
            matches = find(lookup, within, newest_first=True)
            found: _Found = [(one.entry, one.outcome, one[2:]) for one in matches]
            yield found, within.from_seq
            continue
        if kinds or criteria.uid is not None:
            index = lookup.index(span)
            if (kinds and not index.has_kind(kinds)) or (
                criteria.uid is not None and not index.has_uid(criteria.uid)
            ):
                yield [], span.first_seq
                continue
        yield from _windows(lookup, span, criteria)


def _windows(lookup: Lookup, span: Span, criteria: Criteria) -> Iterator[tuple[_Found, Seq]]:
    end = Seq(min(criteria.to_seq, span.end_seq))
    while end > max(span.first_seq, criteria.from_seq):
        begin = Seq(max(span.first_seq, criteria.from_seq, end - _WINDOW))
        # One more, which may be the VOID of the last.
        pairs = list(with_outcomes(lookup.reader.read(begin, Seq(end + 1))))
        found: _Found = [
            (entry, outcome, None)
            for entry, outcome in reversed(pairs)
            if entry.seq < end and criteria.has(entry)
        ]
        yield found, begin
        end = begin


def _with_paths(lookup: Lookup, found: _Found) -> list[Match]:
    """Returns *found* with their paths. Those of all that lack them are asked for together."""
    fids: set[Fid] = set()
    for entry, _, paths in found:
        if paths is None:
            changes = name_changes(entry.operation)
            fids |= {change.parent for change in changes}
            fid = getattr(entry.operation, "fid", None)
            if fid is not None and not changes:
                fids.add(fid)
    lookup.learn_moves(fids)
    return [
        Match(entry, outcome, *(paths if paths is not None else _paths(lookup, entry)))
        for entry, outcome, paths in found
    ]


def _paths(lookup: Lookup, entry: Entry) -> tuple[bytes | None, bytes | None]:
    """Returns the path that *entry* is about, and, where it moves that, the new one."""
    operation = entry.operation
    changes = name_changes(operation)
    if not changes:
        fid = getattr(operation, "fid", None)
        return (lookup.path_before(fid, entry.seq) if fid else None), None
    path = lookup.join(changes[0].parent, changes[0].name, entry.seq)
    new_path = None
    if isinstance(operation, Moving):
        new_path = lookup.join(operation.new_parent, operation.new_name, entry.seq)
    return path, new_path


def entry(source: JournalSource, fields: Fields) -> dict[str, Any]:
    """Returns one entry with all its fields; its data where ``data`` is asked for. Raises
    NoSuchSeqError, FusejournalError."""
    seq = fields.number("seq", least=1)
    match = source.entry(seq)
    line = match_to_json(match)
    found = match.entry
    line.update(
        frame_bytes=found.frame_bytes, flushed=found.flushed, chain=f"{found.chain:016x}",
        data_bytes=len(found.data),
    )  # fmt: skip
    if found.seq != seq:
        line["void_seq"] = seq
    with_data = fields.flag("data")
    data = None
    if with_data:
        data = base64.b64encode(bytes(found.data[:_DATA_BYTES_MAX])).decode()
    return {
        "entry": line,
        "data": data,
        "command": command_line("show", source.name, str(seq), options=[("--data", with_data)]),
    }
