"""The small files of a state directory are read as the golden files have them."""

import json
import os
from pathlib import Path
from stat import S_IFDIR, S_IFLNK, S_IFREG
from unittest import mock

import pytest

from fusejournal.admin.scrub_record import load_scrub
from fusejournal.backing.catalog import Catalog
from fusejournal.backing.root_mark import BackingRoot
from fusejournal.journal.base import base_path, load_base, save_base
from fusejournal.journal.branches import list_branches
from fusejournal.layer.connection import _read, _take_word
from fusejournal.layer.open_files import OpenFiles
from fusejournal.nfs.client_records import _parse
from fusejournal.node.lock import _read_holder
from fusejournal.node.state_dir import load_state
from fusejournal.node.version_record import load_version_status
from fusejournal.replay.progress_page import ProgressPage
from fusejournal.replication.parting import load_parting
from fusejournal.replication.witness import Seen, load_seen
from fusejournal.types import ROOT_FID, Fid
from fusejournal.versions.keys import read_key
from fusejournal.versions.place import read_place, write_place
from fusejournal.versions.verified_blocks import VERIFIED, VerifiedBlocks
from fusejournal.volume.boot_record import BootRecord
from fusejournal.volume.rollback import load_intent
from tests.golden.files import NOW_NS, UUID_OF_GOLDENS, from_rows, golden
from tests.golden.samples import offering
from tests.golden.state_files import (
    BASE,
    BEGAN_SEQ,
    BOOT_ID,
    CLIENTS,
    CONNECTION,
    INSTANCES,
    KEY,
    OPENED,
    PARTING,
    PLACES,
    PROGRESS,
    ROLLBACK,
    SCRUB,
    SEEN,
    VERIFIED_CHUNKS,
    VERIFIED_STORE,
    VERSIONS,
    WHOLE_SETS,
    branch,
    write_catalog,
)
from tests.support.entries import SAMPLES


def _put(path: Path, raw: object) -> None:
    path.write_text(json.dumps(raw))


def test_a_volume_with_a_base_is_read(tmp_path: Path) -> None:
    save_base(tmp_path, BASE)
    _put(tmp_path / "volume.json", golden("volume-v4"))
    assert load_state(tmp_path) == offering(tmp_path)


def test_a_base_that_was_written_on_a_full_disk_is_read(tmp_path: Path) -> None:
    """It has blanks behind it, to the end of the block that was kept for it."""
    base_path(tmp_path).write_bytes(json.dumps(golden("base-v1")).encode().ljust(4096))
    assert load_base(tmp_path) == BASE


@pytest.mark.parametrize(("boot_id", "words"), [(BOOT_ID, ""), ("another", "another boot of")])
def test_the_boot_record_is_read(tmp_path: Path, boot_id: str, words: str) -> None:
    found = golden("boot-v1")
    (tmp_path / "boot").write_text(found["text"].ljust(found["bytes"]))
    root_fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    module = "fusejournal.volume.boot_record"
    try:
        with (
            mock.patch(f"{module}.boot_id", return_value=boot_id),
            mock.patch(f"{module}.filesystem_instance", side_effect=INSTANCES),
        ):
            boot = BootRecord(tmp_path, BackingRoot(root_fd, UUID_OF_GOLDENS)).read()
    finally:
        os.close(root_fd)
    assert (boot.is_this, boot.began_seq) == (not words, BEGAN_SEQ)
    assert boot.words.startswith(words)


def test_the_word_in_the_lock_is_read(tmp_path: Path) -> None:
    found = golden("lock-v1")
    (tmp_path / "lock").write_text(found["text"].ljust(found["bytes"]))
    with open(tmp_path / "lock", "rb") as lock:
        assert _read_holder(lock.fileno()) == {
            "pid": 4711,
            "name": "srv-data",
            "mountpoint": "/srv/data",
        }


def test_the_record_of_a_connection_is_read(tmp_path: Path) -> None:
    found = golden("connection-v1")
    record = tmp_path / "connection"
    _put(record, found["connection"])
    told = _read(record)
    assert told is not None
    known = CONNECTION
    assert told[:8] == (
        *(4711, "123456", known.fd, known.root_fd, known.table_fd, known.device),
        *(known.init, known.reply),
    )
    assert told[8:] == (Path("/srv/backing"), Path("/srv/data"), known.flags)
    (tmp_path / "connection.answered").write_text(found["connection.answered"])
    assert _take_word(record, told)
    assert not _take_word(record, told)


def test_open_files_are_read() -> None:
    found = golden("open-files-v1")
    fd = os.memfd_create("golden")
    try:
        os.ftruncate(fd, found["bytes"])
        os.pwrite(fd, from_rows(found["content"]), 0)
        files = OpenFiles(fd)
        assert files.fids() == {fid for fid, _, _ in OPENED}
        assert [fid in files for fid, _, _ in OPENED] == [answered for _, _, answered in OPENED]
        assert [files[handle] for handle in (1, 2)] == [(fid, who) for fid, who, _ in OPENED]
        with pytest.raises(OSError, match="Stale"):
            files[3]
    finally:
        os.close(fd)


def test_a_parting_is_read(tmp_path: Path) -> None:
    _put(tmp_path / "parted.json", golden("parted-v1"))
    assert load_parting(tmp_path) == PARTING


def test_the_intents_of_rejoins_are_read(tmp_path: Path) -> None:
    for raw, whole_set in zip(golden("level-v1"), WHOLE_SETS, strict=True):
        _put(tmp_path / "level.json", raw)
        assert load_intent(tmp_path) == whole_set
    _put(tmp_path / "rejoin.json", golden("rejoin-v1"))
    assert load_intent(tmp_path) == ROLLBACK


def test_a_branch_is_read(tmp_path: Path) -> None:
    found = golden("branch-v1")
    made = branch(tmp_path)
    _put(made.directory / "branch.json", found["branch.json"])
    assert list_branches(tmp_path) == [made]
    assert sorted(path.name for path in made.directory.iterdir()) == found["keeps"]
    (own,) = list_branches(tmp_path)
    assert own.name == found["name"]
    assert own.whole_base() is not None
    assert [entry.seq for entry in own.reader().read(own.first_seq, own.head.seq)] == [
        *range(4, len(SAMPLES))
    ]


def test_what_is_known_of_scrub_and_versions_is_read(tmp_path: Path) -> None:
    _put(tmp_path / "scrub.json", golden("scrub-v1"))
    assert load_scrub(tmp_path) == SCRUB
    write_place(tmp_path, PLACES[0])
    _put(tmp_path / "versions.json", golden("versions-v1"))
    assert load_version_status(tmp_path) == VERSIONS


def test_what_was_read_back_of_a_base_is_known(tmp_path: Path) -> None:
    (tmp_path / VERIFIED).write_bytes(bytes.fromhex(golden("verified-v1")["content"]))
    record = VerifiedBlocks(tmp_path / VERIFIED, VERIFIED_STORE, 20_010)
    assert all(record.knows(*chunk) for chunk in VERIFIED_CHUNKS)
    assert not record.knows(*reversed(VERIFIED_CHUNKS[0]))


def test_places_and_keys_are_read(tmp_path: Path) -> None:
    for raw, place in zip(golden("place-v1"), PLACES, strict=True):
        _put(tmp_path / "store.json", raw)
        assert read_place(tmp_path) == place
    (tmp_path / "store.key").touch(mode=0o600)
    (tmp_path / "store.key").write_text(golden("key-v1")["text"])
    key = read_key(tmp_path)
    assert key is not None
    assert (key.text, key.id) == (KEY.text, KEY.id)


def test_what_a_witness_has_seen_is_read(tmp_path: Path) -> None:
    for raw, seen in zip(golden("witness-v1"), (SEEN, Seen()), strict=True):
        _put(tmp_path / "witness.json", raw)
        assert load_seen(tmp_path) == seen


def test_the_catalog_is_read(tmp_path: Path) -> None:
    (tmp_path / "catalog").mkdir()
    write_catalog(tmp_path / "catalog", golden("catalog-v1"))
    catalog = Catalog(tmp_path / "catalog")
    try:
        assert (catalog.checkpoint_seq, catalog.imported, catalog.next_fid) == (20, True, 6)
        root = catalog.node(ROOT_FID)
        assert root is not None
        assert (root.handle, root.ino, root.type) == (b"handle of the root", 2, S_IFDIR)
        types = (S_IFREG, S_IFDIR, S_IFREG, S_IFLNK)
        for fid, type_ in zip(range(2, 6), types, strict=True):
            node = catalog.node(Fid(fid))
            assert node is not None
            assert (node.type, node.handle, node.complete) == (type_, b"handle", fid != 2)
            assert node.ctime_ns == NOW_NS + node.last_seq
        assert {(one.name, one.fid) for one in catalog.list(ROOT_FID, 0)} == {
            *((b"old", 2), (b"older", 2), (b"d\xff", 3), (b"l", 5), (b"hard", 4)),
        }
        assert catalog.path(Fid(4)) == b"d\xff/f"
    finally:
        catalog.close()


def test_the_clients_of_an_nfs_server_are_read() -> None:
    assert _parse(json.dumps(golden("clients-v1")).encode()) == CLIENTS


def test_how_far_a_target_is_is_read(tmp_path: Path) -> None:
    found = golden("progress-v1")
    (tmp_path / "page").write_bytes(from_rows(found["content"], found["bytes"]))
    page = ProgressPage(os.open(tmp_path / "page", os.O_RDWR))
    assert (*page.read(), *page.recall()) == PROGRESS
    page.close()
