"""Samples of the small files of a state directory, and of what a primary keeps in the volume for
NFS: each with a value of its own in each field, written by the program itself."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import lmdb

from fusejournal.admin.scrub_record import save_scrub
from fusejournal.backing.catalog import Catalog
from fusejournal.backing.catalog_file import DATA, seal
from fusejournal.backing.root_mark import BackingRoot
from fusejournal.journal.base import JournalBase, save_base
from fusejournal.journal.branches import Branch, make_branch
from fusejournal.layer.connection import ConnectionHolder, KernelConnection
from fusejournal.layer.open_files import OpenFiles, new_table
from fusejournal.nfs.client_records import ClientRecords
from fusejournal.node.lock import hold
from fusejournal.node.version_record import save_version_status
from fusejournal.node.volume_status import ScrubStatus, VersionStatus
from fusejournal.operations import Create, Import, ImportLink, Link, Mkdir, Symlink
from fusejournal.replay.progress_page import ProgressPage
from fusejournal.replication.parting import Parting
from fusejournal.replication.witness import Seen
from fusejournal.types import Caller, Epoch, Fid, Position, Reign, Seq
from fusejournal.versions.keys import StoreKey, write_key
from fusejournal.versions.place import StorePlace, write_place
from fusejournal.versions.verified_blocks import VERIFIED, VerifiedBlocks
from fusejournal.volume.boot_record import BootRecord
from fusejournal.volume.rollback import Rollback
from fusejournal.volume.whole_set import WholeSet
from tests.golden.files import NOW_NS, UUID_OF_GOLDENS, to_rows
from tests.support.entries import SAMPLES, UUID_OF_TESTS, write_samples

_PID = 4711

BASE = JournalBase(
    *(UUID_OF_GOLDENS, Epoch(2), Seq(4711), 0xCCCC, NOW_NS, "0-1-2", "store"),
    *("aa" * 32, "bb" * 32, Fid(1 << 40), 123_456),
)
BOOT_ID = "b0075eed-0000-4000-8000-0123456789ab"
INSTANCES = ("ext4 4242", "mount 77")
"""The instances of the file systems of state and backing."""
BEGAN_SEQ = Seq(4700)
PARTING = Parting("east", "east.example", Reign(Epoch(3), 0xFEED), Seq(4700), 0xABCD, Seq(4712))
ROLLBACK = Rollback(Position(Epoch(2), Seq(4700), 0xABCD), "4701-4711", True)
WHOLE_SETS = (
    WholeSet(BASE, "cc" * 32, "dd" * 32, NOW_NS, BOOT_ID, True, "4000-4711"),
    WholeSet(BASE, None, None, NOW_NS, BOOT_ID),
)
"""One of a backing that has a tree, and one of a backing that was empty."""
SCRUB = ScrubStatus(
    started=17.5e8, finished=17.6e8, phase="tree", position="docs/note", files=7, bytes=8,
    seq=4711, faults=("docs/a differs",), repaired=2, busy=1,
    mended=("docs/b: put right: mode",), stored_again=3,
)  # fmt: skip
VERSIONS = VersionStatus(
    store="/srv/store", store_id="id-of-goldens", reachable=True, reachable_since=17.5e8,
    looked=17.6e8, error="no space left", failures=2, count=5, protected=1, unreadable=1,
    first_seq=10, first_time_ns=NOW_NS, last_seq=4711, last_time_ns=NOW_NS + 1, last_name="friday",
    last_key="0-1-2", last_made=17.55e8, last_made_by="east", made=17.56e8, judged_key="0-1-1",
    pruned=17.57e8, freed_bytes=999, held_by=("east is away",), waiting_for=("west",), plan=3,
)  # fmt: skip
"""All that is kept of versions; what a running layer adds is in no file."""
PLACES = (
    StorePlace("/srv/store", "id-of-goldens"),
    StorePlace("s3://b/p", "id", "0123456789abcdef"),
)
SEEN = Seen(UUID_OF_GOLDENS, Reign(Epoch(3), 0xFEED), Reign(Epoch(2), 0xBEEF), Seq(4711), 0xABCD)
KEY = StoreKey(bytes(range(32)))
CONNECTION = KernelConnection(
    10, 11, 12, "0:47", b"init", b"reply", flags=frozenset(("nosuid", "nodev"))
)
OPENED = (
    (Fid(7), Caller(1000, 100, 4242), True),
    (Fid(8), Caller(0, 0, -1), False),
)
"""The open files by their slots: the second was never answered; a third was closed."""
CLIENTS = ClientRecords(
    "3/000000000000feed",
    frozenset(((b"Linux NFSv4.2 east", None), (b"Linux NFSv4.0 west", bytes(range(32))))),
    (("east", "east 0100007f 100021 4 16\n"),),
)
PROGRESS = (Seq(11), Seq(12), 13, 14, -15)
"""The state of the target of a replay: done, begun, and what was noted before."""


VERIFIED_STORE = "00000000-0000-4000-8000-00000000feed"
VERIFIED_CHUNKS = [(bytes([number]) * 32, bytes([9]) * 32) for number in (1, 2)]
"""Ids of chunks, each with its pack."""


def _read(path: Path) -> object:
    return json.loads(path.read_text())


def make_boot(directory: Path) -> object:
    """The boot record: 512 bytes."""
    root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    module = "fusejournal.volume.boot_record"
    try:
        with (
            mock.patch(f"{module}.boot_id", return_value=BOOT_ID),
            mock.patch(f"{module}.filesystem_instance", side_effect=INSTANCES),
        ):
            BootRecord(directory, BackingRoot(root_fd, UUID_OF_GOLDENS)).remember(BEGAN_SEQ)
    finally:
        os.close(root_fd)
    content = (directory / "boot").read_text()
    return {"bytes": len(content), "text": content.rstrip()}


def make_lock(directory: Path) -> object:
    """The lock, with the word of who has it: 512 bytes."""
    with (
        mock.patch("os.getpid", return_value=_PID),
        hold(directory, "srv-data", Path("/srv/data"), lambda: None),
    ):
        content = (directory / "lock").read_text()
    return {"bytes": len(content), "text": content.rstrip()}


def make_connection(directory: Path) -> object:
    """The record of who holds a mount's connection, and the word that all was answered."""
    holder = ConnectionHolder.__new__(ConnectionHolder)  # (The constructor starts a process.)
    holder._record = directory / "connection"
    holder._places = {"backing": "/srv/backing", "mountpoint": "/srv/data"}
    holder._process = SimpleNamespace(pid=_PID)  # type: ignore[assignment]
    with mock.patch("fusejournal.layer.connection._started", return_value="123456"):
        holder.note(CONNECTION)
        holder.all_is_answered()
    return {
        "connection": _read(directory / "connection"),
        "connection.answered": (directory / "connection.answered").read_text(),
    }


def make_open_files(_: Path) -> object:
    """The table of open files: its first slots."""
    fd = new_table()
    try:
        files = OpenFiles(fd)
        for fid, who, is_answered in OPENED:
            handle = files.add(fid, who)
            if is_answered:
                files.answered(handle)
        gone = files.add(Fid(9), OPENED[0][1])
        files.answered(gone)
        files.remove(gone)
        return {"bytes": os.fstat(fd).st_size, "content": to_rows(os.pread(fd, 4096, 0))}
    finally:
        os.close(fd)


def make_parted(directory: Path) -> object:
    """The place where a mirror's journal parts from its primary's."""
    PARTING.keep(directory)
    return _read(directory / "parted.json")


def make_rejoin(directory: Path) -> object:
    """The intent of a rejoin that takes entries back."""
    ROLLBACK.save(directory)
    return _read(directory / "rejoin.json")


def make_level(directory: Path) -> object:
    """The intents of rejoins that copy a tree."""
    found = []
    for whole_set in WHOLE_SETS:
        whole_set.save(directory)
        found.append(_read(directory / "level.json"))
    return found


def branch(state_dir: Path) -> Branch:
    """A branch of the golden journal in *state_dir*, whose last entries lost."""
    (state_dir / "journal").mkdir()
    with mock.patch("fusejournal.journal.clock.now_ns", return_value=NOW_NS):
        write_samples(state_dir / "journal").close()
    save_base(state_dir, replace(BASE, seq=Seq(0), chain=0))
    parted = Position(Epoch(1), Seq(3), 0xABCD)
    head = Position(Epoch(1), Seq(len(SAMPLES)), 0xCCCC)
    with mock.patch("time.time_ns", return_value=NOW_NS):
        return make_branch(state_dir, UUID_OF_TESTS, parted, head, "east", "3/000000000000feed")


def make_branch_record(directory: Path) -> object:
    """The record of a branch, and the names of what it keeps beside that."""
    made = branch(directory)
    return {
        "name": made.name,
        "keeps": sorted(path.name for path in made.directory.iterdir()),
        "branch.json": _read(made.directory / "branch.json"),
    }


def make_scrub(directory: Path) -> object:
    """The record of the last scrub."""
    save_scrub(directory, SCRUB)
    return _read(directory / "scrub.json")


def make_verified(directory: Path) -> object:
    """The record of two chunks that a pruning has read back."""
    record = VerifiedBlocks(directory / VERIFIED, VERIFIED_STORE, 20_000)
    for chunk in VERIFIED_CHUNKS:
        record.add(*chunk)
    record.save()
    return {"content": (directory / VERIFIED).read_bytes().hex()}


def make_versions(directory: Path) -> object:
    """All that a state directory has of the versions and their store."""
    save_version_status(directory, VERSIONS)
    return _read(directory / "versions.json")


def make_place(directory: Path) -> object:
    """The places of a store, and of an encrypted one."""
    found = []
    for place in PLACES:
        write_place(directory, place)
        found.append(_read(directory / "store.json"))
    return found


def make_key(directory: Path) -> object:
    """The key of an encrypted store, as a recovery key."""
    write_key(directory, KEY)
    return {"text": (directory / "store.key").read_text()}


def make_witness(directory: Path) -> object:
    """All that a witness has seen; one that has seen nothing, too."""
    found = []
    for seen in (SEEN, Seen()):
        seen.save(directory)
        found.append(_read(directory / "witness.json"))
    return found


def make_catalog(directory: Path) -> object:
    """The rows of a catalog in which those entries of the golden journal are recorded that make a
    file or a name, by database."""
    catalog = Catalog(directory / "catalog")
    catalog.add_root(b"handle of the root", 2)
    for number, (operation, _) in enumerate(SAMPLES, 1):
        match operation:
            case Create() | Mkdir() | Symlink() | Import() | Link() | ImportLink():
                catalog.record(operation, Seq(number), NOW_NS + number, b"handle", 100 + number)
    catalog.checkpoint_seq = Seq(len(SAMPLES))
    catalog.imported = True
    catalog.commit()
    catalog.close()
    return catalog_rows(directory / "catalog")


def make_catalog_seal(directory: Path) -> object:
    """The seal of a catalog of two pages."""
    (directory / DATA).write_bytes(b"page" * 2048 + b"space for more")
    seal(directory, SimpleNamespace(info=lambda: {"last_pgno": 1}))  # type: ignore[arg-type]
    return _read(directory / "seal")


def catalog_rows(directory: Path) -> dict[str, list[list[str]]]:
    """The rows of the catalog in *directory*, in hexadecimal, by database."""
    found = {}
    with (
        lmdb.open(str(directory), max_dbs=8, readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        for name in ("nodes", "names", "order", "links", "meta"):
            rows = transaction.cursor(environment.open_db(name.encode(), transaction, create=False))
            found[name] = [[key.hex(), value.hex()] for key, value in rows]
    return found


def write_catalog(directory: Path, rows: dict[str, list[list[str]]]) -> None:
    """Make a catalog of *rows* in *directory*."""
    with lmdb.open(str(directory), max_dbs=8, lock=False) as environment:
        for name, pairs in rows.items():
            database = environment.open_db(name.encode())
            with environment.begin(write=True, db=database) as transaction:
                for key, value in pairs:
                    transaction.put(bytes.fromhex(key), bytes.fromhex(value))


def make_clients(_: Path) -> object:
    """The clients of an NFS server, as a primary keeps them in the volume."""
    return json.loads(CLIENTS.to_bytes())


def make_progress(directory: Path) -> object:
    """The page that says how far the target of a replay is."""
    path = directory / "page"
    path.write_bytes(ProgressPage.EMPTY)
    page = ProgressPage(os.open(path, os.O_RDWR))
    page.write(*PROGRESS[:2])
    page.note(*PROGRESS[2:])
    page.close()
    content = path.read_bytes()
    return {"bytes": len(content), "content": to_rows(content)}
