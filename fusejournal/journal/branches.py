"""Branches: the entries of a history that lost, kept once.

::

    STATE/branches/FIRST-LAST/    segments, which can be read as a journal is, branch.json, and
                                  base.json where the journal of then began with that base

A branch has the segments of the journal from the one with the entry on which both histories agree
(*parted*) to the end: links to the files that the journal had, so it is made in no time and takes
no space that was not taken. The journal is cut back afterwards (cut_back.py), and then the branch
alone has them. The same branch is never made twice.

Branches are bounded in space and age. For how long there has been one is counted in hours that the
volume's layer ran: a clock that leaps makes nothing old. The newest one is never dropped for its
size.

``branch.json`` is written atomically: ``{"format": 1, "uuid", "parted", "head": [epoch, seq,
chain], "source", "reign", "made_ns", "age_seconds", "first_ns", "last_ns", "uids", "entries"}``;
``first_ns`` to ``entries`` are of the entries after *parted*. All functions block."""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from fusejournal.disk import calls
from fusejournal.disk.files import (
    UNREADABLE_JSON,
    Outlives,
    make_directories,
    write_atomically,
)
from fusejournal.disk.json_records import checked, position_of, read_object
from fusejournal.errors import FusejournalError, JournalError, UnknownBranchError
from fusejournal.journal.base import JournalBase, load_base, save_base
from fusejournal.journal.cut_back import segments_from
from fusejournal.journal.index import index_path
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import SegmentReader, first_seq_of, list_segments
from fusejournal.operations import ControlOperation
from fusejournal.types import Position, Seq

log = logging.getLogger(__name__)

BRANCHES: Final = "branches"
_FILE: Final = "branch.json"
_FORMAT: Final = 1
_NAME: Final = re.compile(r"\d{1,19}-\d{1,19}(\.\d{1,4})?")
_UIDS_MAX: Final = 64
_BLOCK_BYTES: Final = 512
_DAY_SECONDS: Final = 86400.0


@dataclass(frozen=True)
class Branch:
    """One branch, which lies in ``directory``. Times are in nanoseconds since 1970."""

    directory: Path
    uuid: UUID
    parted: Position
    """The last position that both histories have."""
    head: Position
    """The end of the history that lost."""
    source: str
    """The node whose history was followed instead."""
    reign: str
    """The reign that *source* went by."""
    made_ns: int
    age_seconds: float = 0.0
    """Counted while the volume's layer ran."""
    first_ns: int = 0
    """The time of its first change."""
    last_ns: int = 0
    """The time of its last change."""
    uids: tuple[int, ...] = ()
    """The users that changed something, at most 64 of them."""
    entries: int = 0

    @property
    def name(self) -> str:
        """The name by which people call it."""
        return self.directory.name

    @property
    def first_seq(self) -> Seq:
        """The first entry that the other history has not."""
        return Seq(self.parted.seq + 1)

    @property
    def occupied_bytes(self) -> int:
        """The bytes that it occupies."""
        return _occupied(self.directory)

    def reader(self) -> JournalReader:
        """Returns a reader of its segments alone, which begin at or before *parted*."""
        return JournalReader(self.directory, self.uuid)

    def whole_reader(self) -> JournalReader:
        """Returns a reader of the whole history that lost, as far as there is any of the time
        before: in the journal, or in another branch. Raises JournalError, FusejournalError."""
        return JournalReader(_whole(self), self.uuid)

    def whole_base(self) -> JournalBase | None:
        """Returns the base of the journal that :meth:`whole_reader` reads; None where it begins
        with entry 1, or nothing records the tree before it. Raises JournalError,
        FusejournalError."""
        first = _whole(self)[0]
        state_dir = self.directory.parent.parent
        if first.parent == state_dir / "journal":
            return load_base(state_dir)
        with SegmentReader(first) as reader:
            header = reader.header
        for directory in (first.parent, state_dir):
            base = load_base(directory)
            if base is not None and (base.seq + 1, base.chain) == (
                header.first_seq,
                header.chain_before,
            ):
                return base
        return None


def _occupied(directory: Path) -> int:
    return sum(path.stat().st_blocks * _BLOCK_BYTES for path in directory.iterdir())


def _whole(branch: Branch) -> list[Path]:
    """The segments of the whole history of *branch*, in order."""
    own = list_segments(branch.directory)
    first_seq = first_seq_of(own[0])
    with SegmentReader(own[0]) as reader:
        chain = reader.header.chain_before
    state_dir = branch.directory.parent.parent
    if first_seq == 1:
        return own
    if _has(JournalReader(state_dir / "journal", branch.uuid), first_seq, chain):
        return [*_before(list_segments(state_dir / "journal"), first_seq), *own]
    for other in list_branches(state_dir):
        # (One that begins before: so this ends.)
        begins_before = first_seq_of(list_segments(other.directory)[0]) < first_seq
        if begins_before and _has(other.reader(), first_seq, chain):
            return [*_before(_whole(other), first_seq), *own]
    return own


def _has(reader: JournalReader, first_seq: Seq, chain: int) -> bool:
    """Returns True if the entry before *first_seq* is in *reader*'s journal, with *chain*."""
    try:
        found = next(reader.frames(Seq(first_seq - 1), first_seq), None)
    except JournalError:
        return False
    return found is not None and found[1].checksum == chain


def _before(paths: list[Path], first_seq: Seq) -> list[Path]:
    return [path for path in paths if first_seq_of(path) < first_seq]


def make_branch(
    state_dir: Path, uuid: UUID, parted: Position, head: Position, source: str, reign: str
) -> Branch:
    """Keep the entries of a history that lost; returns the branch, durable. One that is there is
    returned as it is.

    Args:
        state_dir, uuid: the volume's state directory, and its id; no process writes its journal.
        parted, head: after the first of these they begin; the second is where the journal ends. The
            first may be the entry before the journal's first.
        source, reign: the peer whose history is followed instead, and its reign.

    Raises JournalError, OSError: then there is none."""
    for known in list_branches(state_dir):
        if (known.parted, known.head) == (parted, head):
            return known
    above = state_dir / BRANCHES
    make_directories("branch.above", above)
    new = above / f".{parted.seq + 1}-{head.seq}.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    paths = list_segments(state_dir / "journal")
    # (Of what is not in common with certainty, all there is.)
    for path in segments_from(paths, Seq(max(parted.seq, first_seq_of(paths[0])))):
        with open(path, "rb") as segment:
            calls.fsync("branch.segment", segment.fileno())
        os.link(path, new / path.name)
        if (index := index_path(path)).exists():
            os.link(index, new / index.name)
    base = load_base(state_dir)
    if base is not None and first_seq_of(list_segments(new)[0]) == base.seq + 1:
        save_base(new, base)  # the journal may get another one
    branch = Branch(new, uuid, parted, head, source, reign, time.time_ns())
    branch = _summed(branch)
    _save("branch.new", branch)
    calls.fsync_directory("branch.new.content", new)
    name = _free_name(above, f"{parted.seq + 1}-{head.seq}")
    calls.rename("branch.rename", new, above / name)
    calls.fsync_directory("branch.directory", above)
    return replace(branch, directory=above / name)


def _summed(branch: Branch) -> Branch:
    """Returns *branch* with who changed something in it, when, and how often."""
    uids: dict[int, None] = {}
    first_ns = last_ns = entries = 0
    for entry in branch.reader().read(branch.first_seq, Seq(branch.head.seq + 1)):
        if isinstance(entry.operation, ControlOperation):
            continue
        entries += 1
        first_ns = first_ns or entry.time_ns
        last_ns = entry.time_ns
        if len(uids) < _UIDS_MAX:
            uids[entry.who.uid] = None
    return replace(
        branch, uids=tuple(sorted(uids)), first_ns=first_ns, last_ns=last_ns, entries=entries
    )


def _free_name(above: Path, name: str) -> str:
    number, free = 1, name
    while (above / free).exists():
        number += 1
        free = f"{name}.{number}"
    return free


def _save(label: str, branch: Branch) -> None:
    raw: dict[str, Any] = {"format": _FORMAT, **asdict(branch), "uuid": str(branch.uuid)}
    del raw["directory"]
    content = json.dumps(raw, indent=2).encode()
    write_atomically(label, branch.directory / _FILE, content, Outlives.MACHINE)


def list_branches(state_dir: Path, report: Callable[[str], None] = log.warning) -> list[Branch]:
    """Returns the branches of the volume in *state_dir*, the oldest first. One that cannot be
    understood is left where it is, and *report* is called with a line that says so: the others are
    no worse for it. Raises OSError."""
    above = state_dir / BRANCHES
    names = os.listdir(above) if above.is_dir() else []
    found = []
    for name in sorted(filter(_NAME.fullmatch, names)):
        try:
            found.append(_load(above / name))
        except FusejournalError as error:
            report(f"branch {name} is left out: {error}")
    return sorted(found, key=lambda branch: (branch.made_ns, branch.name))


def versions_of_branches(state_dir: Path) -> set[str]:
    """Returns the keys of the versions that branches begin with. Raises FusejournalError,
    OSError."""
    bases = [load_base(branch.directory) for branch in list_branches(state_dir)]
    return {base.version for base in bases if base is not None}


def occupied_by_branches(state_dir: Path) -> tuple[int, int]:
    """Returns how many branches there are, and the bytes that they occupy. Raises OSError."""
    above = state_dir / BRANCHES
    found = [above / name for name in os.listdir(above)] if above.is_dir() else []
    found = [path for path in found if _NAME.fullmatch(path.name)]
    return len(found), sum(map(_occupied, found))


def find_branch(state_dir: Path, name: str) -> Branch:
    """Returns the branch *name*. Raises UnknownBranchError, FusejournalError, OSError."""
    if not _NAME.fullmatch(name) or not (state_dir / BRANCHES / name).is_dir():
        raise UnknownBranchError(name, [branch.name for branch in list_branches(state_dir)])
    return _load(state_dir / BRANCHES / name)


def _load(directory: Path) -> Branch:
    path = directory / _FILE
    try:
        raw = read_object(path)
        if raw["format"] != _FORMAT:
            raise FusejournalError(f"{path}: written by another version of fusejournal")
        return checked(
            Branch(
                directory=directory,
                uuid=UUID(raw["uuid"]),
                parted=position_of(raw["parted"]),
                head=position_of(raw["head"]),
                source=raw["source"],
                reign=raw["reign"],
                made_ns=raw["made_ns"],
                age_seconds=raw["age_seconds"],
                first_ns=raw["first_ns"],
                last_ns=raw["last_ns"],
                uids=tuple(raw["uids"]),
                entries=raw["entries"],
            )
        )
    except FileNotFoundError:
        raise FusejournalError(
            f"{directory}: has lost its {_FILE}; its segments can still be read: "
            f"'fusejournal log {directory}'"
        ) from None
    except UNREADABLE_JSON as error:
        raise FusejournalError(
            f"{path}: cannot be read: {error}; its segments can: 'fusejournal log {directory}'"
        ) from None
    except OSError as error:
        raise FusejournalError(f"{path}: {error.strerror}") from None


# -- the end of a branch ---------------------------------------------------------------------------


def drop_branch(branch: Branch) -> None:
    """Remove *branch* for good. Killed half-way, the rest has no name any more and goes with the
    next. Raises OSError."""
    above = branch.directory.parent
    gone = above / f".{branch.name}.gone"
    shutil.rmtree(gone, ignore_errors=True)
    calls.rename("branch.drop", branch.directory, gone)
    calls.fsync_directory("branch.drop.directory", above)
    shutil.rmtree(gone)


@dataclass(frozen=True)
class BranchLimits:
    """The bounds of all branches together."""

    keep_bytes: int
    keep_days: float


def tend_branches(state_dir: Path, limits: BranchLimits, passed_seconds: float) -> list[Branch]:
    """Count that *passed_seconds* have gone by, and drop what is too old or too much, the oldest
    first. Returns what was dropped. Raises FusejournalError, OSError."""
    above = state_dir / BRANCHES
    for left in above.glob(".*.gone"):
        shutil.rmtree(left)
    dropped = []
    branches = []
    for branch in list_branches(state_dir):
        older = replace(branch, age_seconds=branch.age_seconds + passed_seconds)
        if older.age_seconds > limits.keep_days * _DAY_SECONDS:
            drop_branch(branch)
            dropped.append(branch)
            continue
        if passed_seconds:
            _save("branch.age", older)
        branches.append(older)
    occupied = sum(branch.occupied_bytes for branch in branches)
    for branch in branches[:-1]:
        if occupied <= limits.keep_bytes:
            break
        occupied -= branch.occupied_bytes
        drop_branch(branch)
        dropped.append(branch)
    return dropped
