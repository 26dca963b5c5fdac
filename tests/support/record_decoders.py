"""Everything that takes bytes of a small file of a state directory, of the page, or of a call: by
name, with what it may raise. What is read has the types that it says to have."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import UUID

from fusejournal.admin.scrub_record import load_scrub
from fusejournal.admin.source import open_source
from fusejournal.agent.calls import _DOWNLOADS, _OF_KEPT, Calls, _parse, _Volume
from fusejournal.agent.consoles import ConsoleBook
from fusejournal.agent.fields import Fields
from fusejournal.agent.job_process import Job
from fusejournal.agent.jobs import JobBook
from fusejournal.backing.catalog_file import read_seal
from fusejournal.backing.root_mark import BackingRoot
from fusejournal.console.agents import AgentBook
from fusejournal.console.alerts import Alerts
from fusejournal.console.audit import Audit
from fusejournal.console.channels import load_channels
from fusejournal.console.last_seen import LastSeen
from fusejournal.console.tokens import TokenBook
from fusejournal.console.users import UserBook
from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.errors import ConfigError, FusejournalError, JournalError, UsageError
from fusejournal.journal.base import load_base
from fusejournal.journal.branches import list_branches
from fusejournal.layer.connection import _read
from fusejournal.layer.open_files import OpenFiles
from fusejournal.nfs.client_records import _parse as _parse_clients
from fusejournal.node.lock import _read_holder
from fusejournal.node.version_record import load_version_status
from fusejournal.objects.store import StoreError, check_name
from fusejournal.replication.member_record import MemberRecord
from fusejournal.replication.parting import load_parting
from fusejournal.replication.witness import load_seen
from fusejournal.types import ROOT_FID, Epoch
from fusejournal.versions.block_source import OfferedTree
from fusejournal.versions.blocks import BlockWriter
from fusejournal.versions.keys import StoreKey, StoreKeyError, read_key
from fusejournal.versions.manifest import store_head
from fusejournal.versions.place import StorePlace, write_place
from fusejournal.versions.sealed_store import SealedStore
from fusejournal.versions.trees import Trees
from fusejournal.versions.version_tree import VersionTree
from fusejournal.volume.boot_record import BootRecord
from fusejournal.volume.rollback import load_rollback
from fusejournal.volume.whole_set import load_whole_set
from fusejournal.wire.block_messages import TreeReport, is_last_report, report_fields
from fusejournal.wire.frames import WireError
from tests.golden import page_files
from tests.support.consoles import make_story
from tests.support.decoding import Decoding, check_types
from tests.support.objects import MemoryStore


def _file(name: str, read: Callable[[Path], Any]) -> Callable[[bytes, Path], object]:
    """Reads the file *name* of a state directory, and checks the types of what is found."""

    def decode(data: bytes, directory: Path) -> object:
        path = directory / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch(mode=0o600)
        path.write_bytes(data)
        found = read(directory)
        check_types(found)
        return found

    return decode


# -- the state directory ---------------------------------------------------------------------------


def _boot(directory: Path) -> object:
    root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return BootRecord(directory, BackingRoot(root_fd, UUID(int=5))).read()
    finally:
        os.close(root_fd)


def _branch(directory: Path) -> object:
    """The one branch; one that cannot be read is reported in one line."""
    told: list[str] = []
    found = list_branches(directory, told.append)
    if told:
        raise FusejournalError(told[0])
    return found


def _lock(directory: Path) -> None:
    with open(directory / "lock", "rb") as file:
        holder = _read_holder(file.fileno())
    assert not holder or type(holder["pid"]) is int
    assert all(isinstance(holder.get(name, ""), str) for name in ("name", "mountpoint"))


def _connection(directory: Path) -> object:
    return _read(directory / "connection")


def _versions(directory: Path) -> object:
    write_place(directory, StorePlace("/store", "id"))
    return load_version_status(directory)


def _members(directory: Path) -> object:
    return MemberRecord(directory).current


def _open_files(data: bytes, _: Path) -> None:
    fd = os.memfd_create("decode")
    try:
        os.write(fd, data)
        os.ftruncate(fd, 1 << 25)
        files = OpenFiles(fd)
        for handle in range(1, len(data) // 32 + 2):
            try:
                files.remove(handle)
            except OSError:
                continue
        assert files.fids() == set()
    finally:
        os.close(fd)


def _clients(data: bytes, _: Path) -> object:
    """Clients as a volume has them; what reads the file says what is wrong in words of its own."""
    found = _parse_clients(data)
    check_types(found)
    return found


def _key(directory: Path) -> None:
    key = read_key(directory)
    assert key is not None
    assert key.text.isprintable()


# -- stores ----------------------------------------------------------------------------------------


def _store_head(data: bytes, _: Path) -> object:
    store = MemoryStore()
    store.objects["store"] = data
    found = store_head(store)
    check_types(found)
    return found


def _sealed(data: bytes, _: Path) -> None:
    """An object of an encrypted store, as a whole and in parts; and its bytes as a name."""
    beneath = MemoryStore()
    store = SealedStore(beneath, StoreKey(bytes(range(32))), "id-of-goldens")
    beneath.objects[store._seal_name("packs/object")] = data
    try:
        store.get("packs/object")
    finally:
        for start in (0, 16_000, 1 << 40):
            try:
                store.get_range("packs/object", start, 1000)
            except StoreError:
                continue
        name = data[:200].decode("latin-1")
        try:
            beneath.objects = {check_name(f"packs/{name}"): b""}
        except ValueError:
            beneath.objects = {}
        list(store.names("packs/"))


def _tree(data: bytes, _: Path) -> None:
    """A node as the root of the names, and of the records, of a version."""
    blocks = BlockWriter(MemoryStore())
    id_ = blocks.add_node(data)
    tree = VersionTree(blocks, Trees(id_, id_, ROOT_FID, Epoch(1), 0))
    list(tree.children(ROOT_FID))
    tree.child(ROOT_FID, b"name 000")
    record = tree.find_record(ROOT_FID)
    check_types(record)
    for parent, name in record.links if record is not None else ():
        tree.path(parent, name)


def _tree_told(data: bytes, _: Path) -> object:
    told = TreeReport(data)
    raw = report_fields(told)
    if is_last_report(told):
        found = OfferedTree.from_fields("peer", raw)
        check_types(found)
        return found
    return None


# -- the page --------------------------------------------------------------------------------------


def _channels(directory: Path) -> None:
    for channel in load_channels(directory / "alerts.toml"):
        assert channel.name.isprintable()


def _audit(directory: Path) -> object:
    found = Audit(directory / "audit.jsonl").newest(100)
    assert all(isinstance(one, dict) for one in found)
    return None


def _alerts(directory: Path) -> object:
    alerts = Alerts(directory / "alerts.json")
    alerts.update([dict(one) for one in page_files.PROBLEMS])
    for one in page_files.PROBLEMS:
        alerts.act(one["key"], "acknowledge", "anna", 0)
    return None


def _told(directory: Path) -> object:
    page_files.deliver(directory, page_files.alerts_now()[:1])
    return None


def _seen(directory: Path) -> object:
    seen = LastSeen(directory / "seen.json")
    seen.keep({name: one._replace(seen_ns=1) for name, one in page_files.SEEN.items()})
    return None


def _users(directory: Path) -> object:
    users = UserBook(directory / "users.json")
    found = list(users.all().values())
    for user in found:
        assert user.access
    with mock.patch("fusejournal.console.users._scrypt", return_value=b""):
        for user in found:
            users.check(user.name, "")
    return found


def _tokens(directory: Path) -> object:
    found = TokenBook(directory / "tokens.json").all()
    for token in found.values():
        token.is_for("east", "data")
        assert token.access
    return list(found.values())


def _agents(directory: Path) -> object:
    return list(AgentBook(directory / "agents.json").all().values())


def _consoles(directory: Path) -> object:
    ConsoleBook(directory / "consoles.json")
    return None


class _HereBook(JobBook):
    """A book that begins no process."""

    def _start(self, path: Path) -> None:
        return


def _job(name: str) -> Callable[[Path], object]:
    def read(directory: Path) -> object:
        book = _HereBook(directory)
        job = directory / "jobs/1-a"
        job.mkdir()
        (directory / name).rename(job / name)
        book.list_all(Fields({}))
        found = book.show(Fields({"id": "1-a"}))
        assert isinstance(found["state"], str)
        Job(job)
        return None

    return read


@cache
def _story() -> tuple[Path, Calls]:
    root = Path(tempfile.mkdtemp(prefix="decode.story."))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    (root / "volume").mkdir()
    with mock.patch.dict(os.environ, FUSEJOURNAL_STATE_ROOT=str(root / "volume")):
        make_story(root / "volume")
    jobs = _HereBook(root)
    calls = Calls(
        "node",
        dict,
        {
            "job-create": jobs.create,
            "job-list": jobs.list_all,
            "job-show": jobs.show,
            "job-order": jobs.order,
        },
    )
    return root, calls


def _call(data: bytes, __: Path) -> None:
    """A call of a console: its name, a line end, its fields."""
    root, calls = _story()
    what, _, raw = data.partition(b"\n")
    name = what.decode("latin-1")
    with mock.patch.dict(os.environ, FUSEJOURNAL_STATE_ROOT=str(root / "volume")):
        fields = Fields(_parse(raw))
        try:
            if name in calls._of_volume:
                fields.text("volume")
                calls._of_volume[name](open_source("data"), fields)
            elif name in _OF_KEPT:
                fields.text("volume")
                source = open_source("data")
                _OF_KEPT[name](_Volume(source), source, fields)
            elif name in calls._of_machine:
                calls._of_machine[name](fields)
            elif name in _DOWNLOADS:
                for _ in _DOWNLOADS[name](fields):
                    pass
            else:
                raise UsageError("no call")
        finally:
            for job in (root / "jobs").iterdir():
                shutil.rmtree(job)


_REFUSED = (FusejournalError,)

RECORD_DECODERS = {
    "base": Decoding(_file("base.json", load_base), (JournalError,)),
    "boot": Decoding(_file("boot", _boot), ()),
    "branch": Decoding(_file("branches/2-9/branch.json", _branch), _REFUSED),
    "clients": Decoding(_clients, UNREADABLE_JSON),
    "connection": Decoding(_file("connection", _connection), ()),
    "level": Decoding(_file("level.json", load_whole_set), _REFUSED),
    "lock": Decoding(_file("lock", _lock), ()),
    "members": Decoding(_file("members.json", _members), _REFUSED),
    "open_files": Decoding(_open_files, ()),
    "parted": Decoding(_file("parted.json", load_parting), ()),
    "rejoin": Decoding(_file("rejoin.json", load_rollback), _REFUSED),
    "scrub": Decoding(_file("scrub.json", load_scrub), ()),
    "seal": Decoding(_file("seal", read_seal), _REFUSED),
    "versions": Decoding(_file("versions.json", _versions), ()),
    "witness": Decoding(_file("witness.json", load_seen), _REFUSED),
    "key": Decoding(_file("store.key", _key), (StoreKeyError,)),
    "store_head": Decoding(_store_head, (StoreError,)),
    "sealed": Decoding(_sealed, (StoreError,)),
    "tree": Decoding(_tree, (StoreError,)),
    "tree_told": Decoding(_tree_told, (WireError, StoreError)),
    "consoles": Decoding(_file("consoles.json", _consoles), _REFUSED),
    "job_request": Decoding(_file("request.json", _job("request.json")), _REFUSED),
    "job_progress": Decoding(_file("progress.json", _job("progress.json")), _REFUSED),
    "job_end": Decoding(_file("end.json", _job("end.json")), _REFUSED),
    "agents": Decoding(_file("agents.json", _agents), _REFUSED),
    "users": Decoding(_file("users.json", _users), _REFUSED),
    "tokens": Decoding(_file("tokens.json", _tokens), _REFUSED),
    "audit": Decoding(_file("audit.jsonl", _audit), ()),
    "alerts": Decoding(_file("alerts.json", _alerts), ()),
    "told": Decoding(_file("told.json", _told), ()),
    "seen": Decoding(_file("seen.json", _seen), ()),
    "channels": Decoding(_file("alerts.toml", _channels), (ConfigError,)),
    "call": Decoding(_call, _REFUSED),
}
