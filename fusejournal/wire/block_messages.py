"""Messages of a session that copies a tree (purpose ``whole``, from version 4 of the protocol on):
a mirror asks for a version of the source's tree, and for the blocks that it lacks of it.

``fields`` is a JSON object as UTF-8. frames.py turns them into bytes; the rules are in
PROTOCOL.md."""

import json
from typing import Any, NamedTuple

from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.disk.json_records import checked, parse_object
from fusejournal.errors import WireError


class AskTree(NamedTuple):
    """The mirror's question which tree there is. With ``make`` 1 the source makes the version of
    its newest closed segment first; with 0 it reports the newest that is there."""

    make: int


class TreeReport(NamedTuple):
    """The answer. While the version is made: how far that is. At last the version itself, and what
    the journal beside it has (versions/block_source.py)."""

    fields: bytes


def report_fields(report: TreeReport) -> dict[str, Any]:
    """Returns the JSON object in *report*. Raises WireError."""
    try:
        return parse_object(report.fields)
    except UNREADABLE_JSON:
        raise WireError("a tree that cannot be read") from None


def is_last_report(report: TreeReport) -> bool:
    """True if *report* has the version, or that there is none; False if it says how far the making
    of one is. Raises WireError."""
    return "version" in report_fields(report)


def offered_bytes(report: TreeReport) -> int | None:
    """Returns how many bytes the contents of the tree have that *report*, the last, offers; None
    where it offers none. Raises WireError."""
    version = report_fields(report)["version"]
    if version is None:
        return None
    try:
        content_bytes = parse_object(version)["content_bytes"]
    except UNREADABLE_JSON:
        content_bytes = None
    if type(content_bytes) is not int or content_bytes < 0:
        raise WireError("a tree that cannot be read")
    return content_bytes


class TreeProgress(NamedTuple):
    """The progress of the making of a version, in entries; ``total`` None: of an unknown number."""

    done: int
    total: int | None

    @classmethod
    def of(cls, report: TreeReport) -> "TreeProgress":
        """Returns what *report*, which is not the last, says. Raises WireError."""
        raw = report_fields(report)
        try:
            return checked(cls(raw["done"], raw.get("total")))
        except (KeyError, ValueError):
            raise WireError("a progress that cannot be read") from None

    def told(self) -> TreeReport:
        """Returns the message that reports it."""
        return TreeReport(json.dumps(self._asdict()).encode())


class AskBlocks(NamedTuple):
    """The blocks that are wanted next, by their ids, at most 64 of them."""

    ids: tuple[bytes, ...]


class Blocks(NamedTuple):
    """The next blocks of those that were asked for, in that order, as the source's store has them,
    one behind the other in ``content``: ``stored`` bytes each, ``plain`` bytes uncompressed. Both
    are 0 for a block that is not there any more."""

    stored: tuple[int, ...]
    plain: tuple[int, ...]
    content: bytes
