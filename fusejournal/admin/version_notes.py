"""The versions that keep what an entry left, beside entries: for ``log`` and ``history``."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from fusejournal.admin.source import JournalSource
from fusejournal.errors import FusejournalError
from fusejournal.history.life import Life, LifeEntry, read_life
from fusejournal.history.lookup import Lookup
from fusejournal.journal.reader import END
from fusejournal.types import ROOT_FID, Seq

_STORE_SECONDS = 3.0
"""The time after which a store that does not answer is done without."""
_Item = TypeVar("_Item")
KeptVersion = tuple[Seq, str]
"""The seq and the name of a version."""


def kept_versions(source: JournalSource, warn: Callable[[str], None]) -> list[KeptVersion]:
    """Returns the versions of the history that *source* has, by seq; none where its store cannot be
    read, of which *warn* is called with the reason."""
    if source.state is None or not source.state.has_versions:
        return []
    # Only here: a volume without versions should not wait for these libraries to load.
    from fusejournal.admin.versions import VolumeVersions

    until = time.monotonic() + _STORE_SECONDS

    def give_up() -> None:
        if time.monotonic() > until:
            raise FusejournalError("their store does not answer")

    try:
        found = VolumeVersions(str(source.state.directory), give_up).all().versions
    except (FusejournalError, OSError) as error:
        warn(f"versions are not shown: {error}")
        return []
    return [(one.version.seq, one.version.shown_name) for one in found if one.history == "this"]


def with_versions(
    items: Iterable[_Item],
    seq_of: Callable[[_Item], Seq],
    versions: list[KeptVersion],
    *,
    end_seq: Seq = END,
    newest_first: bool = False,
) -> Iterator[tuple[_Item, list[str]]]:
    """Yields *items*, which are of entries in order, each with the names of the *versions* that
    were made after its entry and before that of the next later one; of the last, before
    *end_seq*."""
    if newest_first:
        for item in items:
            seq = seq_of(item)
            yield item, [name for at, name in versions if seq <= at < end_seq]
            end_seq = seq
        return
    held: list[_Item] = []
    for item in items:
        for before in held:
            first, last = seq_of(before), seq_of(item)
            yield before, [name for at, name in versions if first <= at < last]
        held = [item]
    for last_item in held:
        first = seq_of(last_item)
        yield last_item, [name for at, name in versions if first <= at < end_seq]


def noted_life(
    lookup: Lookup, life: Life, versions: list[KeptVersion]
) -> Iterator[tuple[LifeEntry, list[str]]]:
    """Yields a file's life, each entry with the names of the *versions* that have the file as it
    left it. Raises JournalDamagedError."""
    steps = read_life(lookup, life.fid)
    for step, names in with_versions(steps, lambda one: one.match.entry.seq, versions):
        after = Seq(step.match.entry.seq + 1)
        if names and life.fid != ROOT_FID and lookup.path_before(life.fid, after) is None:
            names = []  # it has gone
        yield step, names


def kept_to_json(names: list[str]) -> dict[str, list[str]]:
    """Returns what the JSON of an entry has of versions: nothing where there are none."""
    return {"versions": names} if names else {}
