"""Journals with a base: the beginning of one is pruned, and a version stands for it."""

import struct
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from fusejournal.journal.base import JournalBase, save_base
from fusejournal.journal.drop import drop_segments
from fusejournal.journal.journal import Journal
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import first_seq_of
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node.state_dir import VolumeState, load_state, save_state
from fusejournal.objects.local import LocalStore
from fusejournal.objects.store import ObjectStore
from fusejournal.operations import Clean
from fusejournal.roles.role import Role
from fusejournal.types import SYSTEM_CALLER, Seq
from fusejournal.versions.base_tree import VersionBase, base_of
from fusejournal.versions.create import create_version
from fusejournal.versions.manifest import make_store
from fusejournal.versions.place import StorePlace, write_place
from fusejournal.volume.checkpoint import CheckpointFile
from tests.support.objects import MemoryStore
from tests.support.workload import UUID_OF_WORKLOADS, Workload

STORES: dict[str, ObjectStore] = {}
"""The stores of bases that a test has made, by the ids that records tell."""


def _nothing(_: int, __: int | None) -> None:
    """No progress to be shown."""


def possible_bases(directory: Path) -> list[Seq]:
    """The seqs after which the journal in *directory* could begin."""
    return [Seq(first_seq_of(path) - 1) for path in JournalReader(directory).segments()[1:]]


def base_tree(base: JournalBase) -> VersionBase:
    """The tree at a base that :func:`give_base` has made."""
    return VersionBase(base, lambda: STORES[base.store])


def give_base(state: Path, seq: Seq, uuid: UUID | None = None) -> JournalBase:
    """Have the journal of the volume in *state* begin after entry *seq*."""
    journal = state / "journal"
    store = MemoryStore()
    made = create_version(store, JournalReader(journal, uuid), seq, "", "node", 1, _nothing)
    name = str(len(STORES))
    STORES[name] = store
    base = base_of(made.version, name)
    save_base(state, base)
    drop_segments(journal, seq)
    return base


def based_reader(state: Path, base: JournalBase) -> JournalReader:
    """A reader of the journal in *state*, which has *base*."""
    reader = JournalReader(state / "journal", base.uuid)
    reader.begin_behind(base_tree(base))
    return reader


def begin_with_base(directory: Path, kept: Path) -> None:
    """Has the journal of the stopped volume in *directory* begin with its next entry: a version in
    a store at *kept* stands for all that there was."""
    state = load_state(directory)
    journal = Journal.open(state.journal_dir, state.uuid, JournalOptions(), unclean_machine=False)
    seq = journal.head_seq
    assert journal._roll(may_stay=False)
    journal.append(Clean(), SYSTEM_CALLER, journal.next_time(), lambda _: None)
    journal.sync()
    journal.close()
    store = LocalStore.make(kept)
    head = make_store(store)
    write_place(directory, StorePlace(str(kept), *head))
    reader = JournalReader(state.journal_dir, state.uuid)
    version = create_version(store, reader, seq, "", "node", 1, _nothing).version
    save_base(directory, base_of(version, head.id))
    save_state(state)
    drop_segments(state.journal_dir, seq)


def stopped_volume(base: Path, workload: Workload, seqs: Iterable[Seq]) -> Path:
    """The state directory of a volume "v" below *base*, without a layer: its journal is that of
    *workload*, all of which is in its backing, and versions of *seqs* are in a store at
    BASE/kept."""
    state = base / "state"
    state.mkdir(mode=0o700)
    places = Path("/nowhere/backing"), Path("/nowhere/mounted")
    save_state(VolumeState(state, UUID_OF_WORKLOADS, "v", *places, 1, Role.PRIMARY))
    workload.write(state / "journal")
    page = WatermarkPage(state / "watermarks", 1)
    page.write_rooted(workload.head_seq)
    page.sync()
    CheckpointFile(state / "checkpoint", page)._write(struct.pack("<Qq", workload.head_seq, 0))
    page.close()
    store = LocalStore.make(base / "kept")
    write_place(state, StorePlace(str(base / "kept"), *make_store(store)))
    reader = JournalReader(state / "journal")
    for seq in sorted(set(seqs)):
        create_version(store, reader, seq, "", "node", 1, _nothing)
    return state
