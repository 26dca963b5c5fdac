"""Workloads: journals to be, with the model of the tree after each entry."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_IFDIR, S_IFREG
from typing import NamedTuple
from uuid import UUID

from fusejournal.history.lookup import Lookup
from fusejournal.journal.index_making import write_index
from fusejournal.journal.journal import Journal
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import (
    ControlOperation,
    Create,
    Mkdir,
    NewEpoch,
    Operation,
    Setattr,
    Void,
    Write,
)
from fusejournal.types import ROOT_FID, Caller, Epoch, Fid, Seq
from tests.support.model import Model
from tests.support.trees import difference, image

UUID_OF_WORKLOADS = UUID("89abcdef-0123-4567-89ab-cdef01234567")


class Step(NamedTuple):
    """One entry. ``void``: the one that follows it, if it was refused or cut short."""

    operation: Operation
    who: Caller
    time_ns: int
    data: bytes = b""
    void: Void | None = None

    @property
    def held(self) -> bool:
        """True if it changed the tree, if only in part."""
        is_tree = not isinstance(self.operation, ControlOperation)
        return is_tree and (self.void is None or self.void.written > 0)

    def apply_to(self, model: Model) -> None:
        """Carry it out, as far as it held. Raises Refused."""
        if self.held:
            data = self.data if self.void is None else self.data[: self.void.written]
            model.apply(self.operation, self.time_ns, data)  # type: ignore[arg-type]


@dataclass
class Workload:
    """A journal to be: ``steps[seq - 1]`` is entry *seq*, ``models[seq]`` the tree after it (of an
    entry that was refused: as if its VOID were known)."""

    steps: list[Step] = field(default_factory=list)
    models: list[Model] = field(default_factory=lambda: [Model()])
    segment_entries: int = 10
    care: bytes = b"\0"
    """The care of each sealed segment, in turn: 1 a sidecar, 2 compressed, 3 both."""

    @property
    def head_seq(self) -> Seq:
        """The last seq."""
        return Seq(len(self.steps))

    @property
    def head(self) -> Model:
        """The tree in the end."""
        return self.models[-1]

    def paths_ever(self) -> list[bytes]:
        """Every path there ever was."""
        return sorted({path for model in self.models for path in model.all_paths()})

    def write(self, directory: Path) -> None:
        """Append it all to a new journal in *directory*."""
        directory.mkdir(exist_ok=True)
        options = JournalOptions(
            segment_bytes=40_000,
            segment_entries=self.segment_entries,
            preallocate_bytes=1 << 12,
            reserve_bytes=1 << 12,
        )
        journal = Journal.create(directory, UUID_OF_WORKLOADS, options)
        for number, step in enumerate(self.steps):
            journal.append(
                step.operation, step.who, step.time_ns, self.models[number].path, step.data
            )
        journal.sync()
        for number, path in enumerate(journal.sealed.durable()):
            care = self.care[number % len(self.care)]
            if care & 1:
                write_index(path)
            if care & 2:
                journal.sealed.compress(path)
        journal.close()


def workload_of(*operations: Operation, segment_entries: int = 10) -> Workload:
    """A journal of these by root, the first of them being entry 3."""
    workload = Workload(segment_entries=segment_entries)
    model = Model()
    root = Setattr(ROOT_FID, 0o755, 0, 0, None, 5)
    for operation in (NewEpoch(Epoch(1), "a new volume"), root, *operations):
        data = b"x" if isinstance(operation, Write) else b""
        step = Step(operation, Caller(0, 0, 0), len(workload.steps) + 1, data)
        step.apply_to(model)
        workload.steps.append(step)
        workload.models.append(model.copy())
    return workload


def make_directory(fid: Fid, parent: Fid, name: bytes) -> Mkdir:
    """A plain one."""
    return Mkdir(fid, parent, name, S_IFDIR | 0o755, 0, 0, None, None)


def make_file(fid: Fid, parent: Fid, name: bytes) -> Create:
    """A plain one."""
    return Create(fid, parent, name, S_IFREG | 0o644, 0, 0, 0, None)


@contextmanager
def workspace() -> Iterator[Path]:
    """A new directory, in memory where that holds what workloads set, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="fusejournal.", dir=_base()) as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def _base() -> str | None:
    """tmpfs takes user attributes only since Linux 6.6."""
    memory = "/dev/shm"
    try:
        with tempfile.TemporaryDirectory(dir=memory) as name:
            os.setxattr(name, "user.test", b"")
    except OSError:
        return None
    return memory


@contextmanager
def written(workload: Workload) -> Iterator[tuple[Path, Lookup]]:
    """A workspace with the journal of *workload* in it, and questions to that."""
    with workspace() as base:
        workload.write(base / "journal")
        yield base, Lookup(JournalReader(base / "journal"))


def unlike(directory: Path, model: Model, top: Fid = ROOT_FID) -> str:
    """Returns in words how *directory* differs from *model*, from *top* down; empty when it does
    not."""
    return difference(image(directory), model.image(top))
