"""The content of the golden files: a sample of each format and message, made by the program itself.

Each maker returns what is written to ``NAME.json``. Where a format has a random part, or leaves its
writer a choice, the golden file is only read, and never compared with what is written today."""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from fusejournal.address import Address
from fusejournal.backing.fid_tag import pack_tag
from fusejournal.backing.root_mark import BackingRoot
from fusejournal.disk import syscalls
from fusejournal.journal.base import base_path, save_base
from fusejournal.journal.format import FORMAT_VERSION
from fusejournal.journal.handle_key import HANDLE_KEY_BYTES, NO_HANDLE_KEY, HandleKey
from fusejournal.journal.index import index_path
from fusejournal.journal.index_making import write_index
from fusejournal.journal.seekable import compress_file
from fusejournal.journal.segment import list_segments
from fusejournal.journal.watermarks import Following, WatermarkPage
from fusejournal.node.state_dir import Offered, VolumeState, save_state
from fusejournal.replication.kept_signatures import KeptSignatures
from fusejournal.replication.member_record import MemberRecord
from fusejournal.replication.peers import Peer, PeerBook
from fusejournal.roles.role import Role
from fusejournal.types import Epoch, Fid, Position, Reign, Seq
from fusejournal.volume.checkpoint import Checkpoint, CheckpointFile
from fusejournal.wire.block_messages import AskBlocks, AskTree, Blocks, TreeReport
from fusejournal.wire.frames import (
    Ack,
    AskChains,
    Batch,
    Begin,
    Call,
    CallPart,
    Chains,
    Diverged,
    End,
    Hello,
    MembersReport,
    Message,
    Offer,
    PairOffer,
    Ping,
    Refusal,
    Welcome,
    encode,
)
from fusejournal.wire.identity import load_or_make
from fusejournal.wire.members import Members, Rule
from tests.golden import (
    agent_answers,
    answers,
    controls,
    page_files,
    proofs,
    state_files,
    store_objects,
)
from tests.golden.files import NOW_NS, UUID_OF_GOLDENS, golden, to_rows
from tests.golden.state_files import BASE
from tests.golden.statuses import STATUSES
from tests.support.entries import ALLOCATIONS, FLAGS, SAMPLES, WHITEOUTS, Sample, write_samples

HANDLE_KEY = HandleKey(range(HANDLE_KEY_BYTES))
"""The handle key of the golden journal that has one."""


# -- the journal -----------------------------------------------------------------------------------


def _segment(
    directory: Path,
    handle_key: HandleKey = NO_HANDLE_KEY,
    samples: tuple[Sample, ...] = SAMPLES,
) -> Path:
    with mock.patch("fusejournal.journal.clock.now_ns", return_value=NOW_NS):
        write_samples(directory, samples, handle_key).close()
    (path,) = list_segments(directory)
    return path


def make_journal(
    directory: Path,
    handle_key: HandleKey = NO_HANDLE_KEY,
    samples: tuple[Sample, ...] = SAMPLES,
) -> object:
    """A segment with an entry of each kind that there was from the beginning, or with *samples*."""
    content = _segment(directory, handle_key, samples).read_bytes()
    return {"segment": [content[at : at + 32].hex() for at in range(0, len(content), 32)]}


def make_index(directory: Path) -> object:
    """The sidecar index of the segment in ``journal-v1``."""
    path = _segment(directory)
    write_index(path)
    content = index_path(path).read_bytes()
    return {"bytes": len(content), "content": to_rows(content)}


def make_seekable(directory: Path) -> object:
    """The same segment, compressed, in as many blocks as it has."""
    path = _segment(directory)
    compressed = path.with_suffix(".fjz")
    compress_file(path, compressed, 3)
    content = compressed.read_bytes()
    return {"bytes": len(content), "content": to_rows(content)}


# -- the state directory ---------------------------------------------------------------------------

WATERMARKS = {
    "owner": 0x1111,
    "applying_seq": 101,
    "committed_seq": 102,
    "durable_seq": 103,
    "stopped_seq": 104,
    "rooted_seq": 105,
    "instance": 0x00C0FFEE,
    "fence": [7, 0xFEED],
    "followed": [0xBEEF, 0xABCD, [1, 2, 3]],
}
"""The values of the page of watermarks."""

CHECKPOINT = Checkpoint(Seq(4711), NOW_NS, Position(Epoch(2), Seq(4711), 0x123456789ABCDEF0))
SIGNATURES = ((Seq(10), bytes(range(32))), (Seq(25), bytes(range(32, 64))))


def make_watermarks(directory: Path) -> object:
    """The page of watermarks, with another number in each word."""
    page = WatermarkPage(directory / "page", WATERMARKS["owner"])  # type: ignore[arg-type]
    page.confirm()
    page.write_applying(Seq(101))
    page.write_committed(Seq(102))
    page.write_durable(Seq(103))
    page.write_stopped(Seq(104))
    page.write_rooted(Seq(105))
    page.write_instance(0x00C0FFEE)
    page.write_fence(Reign(Epoch(7), 0xFEED))
    page.write_following(Following(0xBEEF, 0xABCD, (1, 2, 3)))
    page.close()
    content = (directory / "page").read_bytes()
    return {"says": WATERMARKS, "bytes": len(content), "content": to_rows(content)}


def make_checkpoint(directory: Path) -> object:
    """The file of the checkpoint, and what the backing's root then has behind its handle."""
    root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        root = BackingRoot(root_fd, UUID_OF_GOLDENS)
        CheckpointFile(directory / "checkpoint").make(CHECKPOINT, root)
        mark = os.getxattr(root_fd, "trusted.fusejournal")
        handle = syscalls.handle_of(root_fd)
    finally:
        os.close(root_fd)
    before, found, position = mark.partition(handle)
    assert found
    assert before == pack_tag(UUID_OF_GOLDENS, Fid(1), b"")
    return {
        "checkpoint": (directory / "checkpoint").read_bytes().hex(),
        "root_mark": [before.hex(), "HANDLE", position.hex()],
    }


def make_signatures(directory: Path) -> object:
    """The file of kept signatures: its slots that are not empty."""
    kept = KeptSignatures(directory / "signatures")
    for seq, signature in SIGNATURES:
        kept.keep(seq, signature)
    kept.close()
    content = (directory / "signatures").read_bytes()
    slots = {at // 64: content[at : at + 64].hex() for at in range(0, len(content), 64)}
    return {
        "bytes": len(content),
        "slots": {number: slot for number, slot in slots.items() if slot.strip("0")},
    }


def peers(certificate: str) -> tuple[Peer, ...]:
    """A peer with every field, and one with none."""
    east = Peer("east", Address("10.0.0.2", 7710), certificate, True, "it was away for 31 days")
    far = replace(east, acked_seq=Seq(10), applied_seq=Seq(9), left_seq=Seq(12), left_at=17.5e8)
    far = replace(far, away_seconds=86_400.25, keeps_signatures=True)
    west = Peer("west", return_address=Address("10.0.0.3", 7710), heard_at=17.6e8)
    return far, replace(west, told_seq=Seq(4711), is_witness=True)


def volume(directory: Path) -> VolumeState:
    """A new mirror's state in *directory*, with a value of its own in each field."""
    places = Path("/srv/backing"), Path("/srv/data")
    said = Role.UNINITIALIZED, "10.0.0.2:7710"
    return VolumeState(directory, UUID_OF_GOLDENS, "srv-data", *places, NOW_NS, *said)


def make_volume(directory: Path) -> object:
    """Makes volume.json, which says what volume a state directory is of."""
    save_state(volume(directory))
    return json.loads((directory / "volume.json").read_text())


def promoted(directory: Path) -> VolumeState:
    """The state of a volume in *directory* that was promoted."""
    known = replace(volume(directory), role=Role.PRIMARY)
    return replace(known, reign=Reign(Epoch(3), 0xFEED))


def make_promoted(directory: Path) -> object:
    """The same of one whose role a command has changed."""
    save_state(promoted(directory))
    return json.loads((directory / "volume.json").read_text())


def make_with_base(directory: Path) -> object:
    """The same of one whose journal has a base, and which offered its reign to another node."""
    save_base(directory, BASE)
    save_state(offering(directory))
    return json.loads((directory / "volume.json").read_text())


def offering(directory: Path) -> VolumeState:
    """The state of a primary in *directory* of whose handoff it is not known what came of it."""
    return replace(promoted(directory), offered=Offered(Reign(Epoch(4), 0xBEEF), "east"))


def make_base(directory: Path) -> object:
    """The base of a journal."""
    save_base(directory, BASE)
    return json.loads(base_path(directory).read_text())


def make_peers(directory: Path) -> object:
    """The book of peers."""
    book = PeerBook(directory)
    certificate = "".join(golden("identity-v1")["cert.pem"])
    book._peers = {peer.name: peer for peer in peers(certificate)}
    book.save()
    return json.loads(book.path.read_text())


def make_identity(directory: Path) -> object:
    """A node's key, which is no real node's, and its certificate. Random."""
    identity = load_or_make(directory / "identity", "golden")
    return {
        "fingerprint": identity.fingerprint,
        "key.pem": identity.key_path.read_text().splitlines(keepends=True),
        "cert.pem": identity.certificate_path.read_text().splitlines(keepends=True),
    }


# -- messages --------------------------------------------------------------------------------------

MEMBERS = Members(
    Reign(Epoch(1), 0),
    3,
    Rule(1, True, (0x2222, 0x3333), (0x7777,)),
    Rule(0, False, (0x2222, 0x3333)),
    ((0x3333, Seq(4699)), (0x7777, Seq(4700))),
)


def make_members(directory: Path) -> object:
    """A record of members."""
    MemberRecord(directory).write(MEMBERS)
    return json.loads((directory / "members.json").read_text())


MESSAGES: tuple[Message, ...] = (
    Hello(
        *(1, UUID_OF_GOLDENS.bytes, "primary", "ship", Epoch(2), Seq(4711), 0x1111),
        *(0x2222, Epoch(2), 0x3333, 0x4444, 0x5555),
        newest_version=1,
        journal_format=1,
        newest_kind=20,
        listen_port=7710,
        wanted_epoch=Epoch(3),
    ),
    Welcome(
        *(1, b"", "mirror", Epoch(1), Seq(4700), 0x6666, Seq(4699)),
        *(0x2222, Epoch(1), 0x7777, "runs twice", 1, 1, 20),
        *(((16 << 40) - 4096, 4036, 4036, 4095, 255, 65_000), "mirror"),
        members=MEMBERS.to_wire(),
    ),
    Refusal("fenced", "epoch 3 has begun", Epoch(3), 0x8888, Epoch(3), Seq(5000), 0x9999),
    AskChains((Seq(1), Seq(1000), Seq(1 << 40))),
    Chains((0, 2**64 - 1, None)),
    Begin(Epoch(2), Seq(4700), 0x6666, Seq(4711), Seq(4699), 0x2222),
    Diverged(Seq(4600), Seq(4711), 0xAAAA, 0xBBBB),
    Batch(
        *(Epoch(2), Seq(4701), Seq(4703), 0x6666, 0xCCCC, Seq(4097), 8192, 7, "raw"),
        *(Seq(4711), Seq(4712), b"content", 0x2222, bytes(range(32))),
    ),
    Ack(Seq(4703), Seq(4702), Seq(4701), "full", "no space left", Seq(4700), 3),
    Ping(Seq(4711), Seq(4712)),
    End(Seq(4712)),
    PairOffer("n\xf6de", "-----BEGIN CERTIFICATE-----\n", bytes(range(32)), b"\xff" * 32),
    Call(1, "entries", b'{"volume": "data"}'),
    CallPart("end", b'{"entries": []}'),
    Offer(Epoch(3), 0x7777, Seq(4712), 0x8888),
    AskTree(1),
    TreeReport(b'{"done": 7, "total": null}'),
    AskBlocks((bytes(range(32)), b"\xff" * 32)),
    Blocks((7, 0), (9, 0), b"content"),
    MembersReport(MEMBERS.to_wire()),
)


def make_wire(_: Path) -> object:
    """Each message: its type's number, its fields' names, and its bytes."""
    return {
        type(message).__name__: {
            "fields": list(message._fields),
            "bytes": len(encode(message)),
            "content": to_rows(encode(message)),
        }
        for message in MESSAGES
    }


def make_status(_: Path) -> object:
    """The JSON objects of a primary's status, a mirror's, and that of a volume that is stopped."""
    return {name: status.to_json() for name, status in STATUSES.items()}


class Golden(NamedTuple):
    """The maker of a golden file; ``is_compared``: what is written today must be the same."""

    make: Callable[[Path], object]
    is_compared: bool = True


GOLDENS = {
    "identity-v1": Golden(make_identity, is_compared=False),
    f"journal-v{FORMAT_VERSION}": Golden(make_journal),
    f"journal-v{FORMAT_VERSION}-handle-key": Golden(partial(make_journal, handle_key=HANDLE_KEY)),
    f"journal-v{FORMAT_VERSION}-whiteouts": Golden(partial(make_journal, samples=WHITEOUTS)),
    f"journal-v{FORMAT_VERSION}-allocations": Golden(partial(make_journal, samples=ALLOCATIONS)),
    f"journal-v{FORMAT_VERSION}-flags": Golden(partial(make_journal, samples=FLAGS)),
    "index-v2": Golden(make_index),
    "status-v1": Golden(make_status),
    "seekable-v1": Golden(make_seekable, is_compared=False),  # another zstd packs otherwise
    "watermarks-v1": Golden(make_watermarks),
    "checkpoint-v1": Golden(make_checkpoint),
    "signatures-v1": Golden(make_signatures),
    "peers-v1": Golden(make_peers),
    "base-v1": Golden(make_base),
    "members-v1": Golden(make_members),
    "volume-v2": Golden(make_volume),
    "volume-v3": Golden(make_promoted),
    "volume-v4": Golden(make_with_base),
    "boot-v1": Golden(state_files.make_boot),
    "lock-v1": Golden(state_files.make_lock),
    "connection-v1": Golden(state_files.make_connection),
    "open-files-v1": Golden(state_files.make_open_files),
    "parted-v1": Golden(state_files.make_parted),
    "rejoin-v1": Golden(state_files.make_rejoin),
    "level-v1": Golden(state_files.make_level),
    "branch-v1": Golden(state_files.make_branch_record),
    "scrub-v1": Golden(state_files.make_scrub),
    "verified-v1": Golden(state_files.make_verified),
    "versions-v1": Golden(state_files.make_versions),
    "place-v1": Golden(state_files.make_place),
    "key-v1": Golden(state_files.make_key),
    "witness-v1": Golden(state_files.make_witness),
    "catalog-v1": Golden(state_files.make_catalog),
    "catalog-seal-v1": Golden(state_files.make_catalog_seal),
    "clients-v1": Golden(state_files.make_clients),
    "progress-v1": Golden(state_files.make_progress),
    "store-v1": Golden(store_objects.make_store_of_blocks, is_compared=False),  # as seekable-v1
    "sealed-v1": Golden(store_objects.make_sealed, is_compared=False),  # with a salt of its own
    "store-heads-v1": Golden(store_objects.make_store_heads),
    "store-objects-v1": Golden(store_objects.make_store_objects),
    "tree-nodes-v1": Golden(store_objects.make_tree_nodes),
    "records-v1": Golden(store_objects.make_records),
    "agent-consoles-v1": Golden(page_files.make_consoles),
    "agent-jobs-v1": Golden(page_files.make_jobs),
    "console-agents-v1": Golden(page_files.make_agents),
    "console-users-v1": Golden(page_files.make_users),
    "console-tokens-v1": Golden(page_files.make_tokens),
    "console-audit-v1": Golden(page_files.make_audit),
    "console-alerts-v1": Golden(page_files.make_alerts),
    "console-told-v1": Golden(page_files.make_told),
    "console-seen-v1": Golden(page_files.make_seen),
    "alert-message-v1": Golden(page_files.make_alert_message),
    "calls-v1": Golden(page_files.make_calls),
    "answers-v1": Golden(answers.make_answers),
    "agent-answers-v1": Golden(agent_answers.make_agent_answers),
    "control-v1": Golden(controls.make_control),
    "proofs-v1": Golden(proofs.make_proofs),
    "wire-v1": Golden(make_wire),
}


def make(name: str) -> object:
    """Make what the golden file *name* is to hold."""
    with tempfile.TemporaryDirectory() as directory:
        return GOLDENS[name].make(Path(directory))
