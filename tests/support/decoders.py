"""Everything that takes bytes of a disk or a peer, by name, with what it may raise."""

import os
import struct
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from uuid import UUID

import xxhash

from fusejournal.config import load_config
from fusejournal.errors import FusejournalError
from fusejournal.journal.format import FormatError, decode_payload
from fusejournal.journal.index import SegmentIndex
from fusejournal.journal.seekable import SeekableFile
from fusejournal.journal.segment import BadFrameError, SegmentReader
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node.state_dir import load_state
from fusejournal.objects.store import StoreError
from fusejournal.replication.kept_signatures import KeptSignatures
from fusejournal.replication.peer_facts import facts_of
from fusejournal.replication.peers import PeerBook
from fusejournal.types import Epoch, Fid, Position, Seq
from fusejournal.versions.blocks import BlockReader, BlockWriter
from fusejournal.versions.chunk_list import ChunkNodes
from fusejournal.versions.creators import open_plan, workers
from fusejournal.versions.manifest import decode_version
from fusejournal.versions.packs import IndexTable, read_directory
from fusejournal.versions.place import read_place
from fusejournal.versions.records import blocks_of_inode, decode_inode
from fusejournal.versions.sorted_tree import Nodes
from fusejournal.volume.checkpoint import CheckpointFile
from fusejournal.wire.batches import frame_range_of
from fusejournal.wire.comparison import Comparison
from fusejournal.wire.frames import (
    Ack,
    Batch,
    Begin,
    Chains,
    Decoder,
    Hello,
    MembersReport,
    Message,
    PairOffer,
    Refusal,
    Welcome,
    encode,
)
from fusejournal.wire.identity import normalize
from fusejournal.wire.instances import instance_of
from fusejournal.wire.members import members_of
from fusejournal.wire.pairing import check_offer
from fusejournal.wire.session import (
    HandshakeState,
    RefusedError,
    Sink,
    Source,
    check_members,
    check_welcome,
    speaks_of_same,
    welcome,
)
from fusejournal.wire.session_states import SessionMachine, SessionState, Side
from tests.support.decoding import Decoding, check_types
from tests.support.objects import MemoryStore
from tests.support.record_decoders import RECORD_DECODERS
from tests.support.talk_decoders import TALK_DECODERS

_SEGMENT = "00000000000000000001"


def _wire(data: bytes, _: Path) -> list[Message]:
    decoder = Decoder()
    decoder.expect_batches()
    found = list(decoder.feed(data))
    for message in found:
        if isinstance(message, Batch):
            frame_range_of(message)
    return found


def _message(data: bytes, _: Path) -> list[Message]:
    """One message, whose type is the first byte, with a checksum that is right; and what a node
    makes of it in a session."""
    number, body = data[:1], data[1:]
    head = struct.pack("<IHH", len(body), number[0] if number else 0, 0)
    checksum = xxhash.xxh3_64_intdigest(head + body)
    decoder = Decoder()
    decoder.expect_batches()
    found = list(decoder.feed(head + struct.pack("<Q", checksum) + body))
    for message in found:
        _use(message)
    return found


_ME = HandshakeState(
    "me", UUID(int=5), Position(Epoch(2), Seq(9), 99), Epoch(2), Seq(9), 7, limits=(9, 9, 9)
)


def _use(message: Message) -> None:
    match message:
        case Hello():
            assert instance_of(message, "192.0.2.1:7").where == "192.0.2.1"
            speaks_of_same(_ME, message)
            encode(welcome(_ME, message, is_mirror=True))
        case Welcome():
            facts = facts_of(check_welcome(_ME, message), _ME)
            assert all(note.isprintable() for note in facts.notes)
        case Refusal():
            try:
                SessionMachine(Side.CONNECTOR, SessionState.ANSWERING).received(message)
            except RefusedError as error:
                encode(error.message())
                raise
        case Begin():
            Sink(_ME.position, *_ME.reign).begin(message)
        case Batch():
            Sink(_ME.position, *_ME.reign).take(message)
            frame_range_of(message)
        case Chains():
            seqs = tuple(Seq(seq) for seq in range(1, 6))
            Comparison(Seq(0), Seq(9)).told(seqs, (1, 2, None, 4, 5), message.chains)
        case Ack():
            Source(Seq(9), 1 << 20).acked(message)
        case MembersReport():
            members = check_members(message.members, _ME.reign)
            assert members_of(members.to_wire()) == members
        case PairOffer():
            check_offer(message, None)
        case _:
            encode(message)


def _payload(data: bytes, _: Path) -> object:
    return decode_payload(data)


def _segment(data: bytes, directory: Path) -> int:
    path = directory / f"{_SEGMENT}.fj"
    path.write_bytes(data)
    with SegmentReader(path) as reader:
        return sum(1 for _ in reader.frames())


def _index(data: bytes, _: Path) -> object:
    index = SegmentIndex(data)
    for fid in range(6):
        list(index.of_fid(Fid(fid)))
    index.recorded_paths()
    list(index.owned_names())
    list(index.given_names())
    kept = index.contents()
    for fid in range(6):
        assert kept.has_fid(Fid(fid)) == index.has_fid(Fid(fid))
        index.named_by(fid)
    index.of_deed(0, 2)
    return index.point_before(0), index.point_before_time(0), index.has_uid(0)


def _seekable(data: bytes, directory: Path) -> int:
    path = directory / "compressed"
    path.write_bytes(data)
    with open(path, "rb") as file:
        reader = SeekableFile(file.fileno())
        return sum(
            len(reader.read_at(at, 4096)) for at in range(0, min(reader.size, 1 << 20), 4096)
        )


def _watermarks(data: bytes, directory: Path) -> object:
    (directory / "page").write_bytes(data)
    with closing(WatermarkPage(directory / "page")) as page:
        return page.fence, page.following, page.durable_seq


def _checkpoint(data: bytes, directory: Path) -> object:
    (directory / "checkpoint").write_bytes(data)
    found = CheckpointFile(directory / "checkpoint").load()
    check_types(found)
    return found


def _signatures(data: bytes, directory: Path) -> object:
    (directory / "signatures").write_bytes(data)
    with closing(KeptSignatures(directory / "signatures")) as kept:
        return kept.after(Seq(0))


def _peers(data: bytes, directory: Path) -> object:
    (directory / "peers.json").write_bytes(data)
    found = PeerBook.load(directory).list()
    check_types(found)
    return found


def _volume(data: bytes, directory: Path) -> object:
    (directory / "volume.json").write_bytes(data)
    found = load_state(directory)
    check_types(found)
    return found


def _config(data: bytes, directory: Path) -> object:
    (directory / "config.toml").write_bytes(data)
    return load_config(directory / "config.toml")


def _certificate(data: bytes, _: Path) -> str:
    return normalize(data.decode("utf-8", "surrogateescape"))


def _version(data: bytes, _: Path) -> object:
    found = decode_version("store/version", data)
    check_types(found)
    return found.root, found.key


def _packs(data: bytes, _: Path) -> object:
    return list(read_directory("store/pack", data))


def _block_index(data: bytes, _: Path) -> object:
    table = IndexTable("store/index", data)
    return table.find(bytes(32)), list(table)


def _inode(data: bytes, _: Path) -> object:
    try:
        found = decode_inode(Fid(5), data, BlockReader(MemoryStore()))
        check_types(found)
    finally:
        with suppress(StoreError):
            ids, root = blocks_of_inode(Fid(5), data, "store")
            assert all(type(id_) is bytes for id_ in [*ids, root or b""])
    return found


def _block(data: bytes) -> tuple[BlockReader, bytes]:
    store = MemoryStore()
    blocks = BlockWriter(store)
    id_ = blocks.add_node(data)
    blocks.finish()
    return blocks, id_


def _node(data: bytes, _: Path) -> object:
    """A node whose id is right."""
    blocks, id_ = _block(data)
    return Nodes(blocks).read(id_)


def _list_node(data: bytes, _: Path) -> object:
    blocks, id_ = _block(data)
    return ChunkNodes(blocks).read(id_)


def _worker(data: bytes, _: Path) -> object:
    store = MemoryStore()
    store.objects["active/one"] = data
    found = workers(store)
    check_types(found)
    return found


def _plan(data: bytes, _: Path) -> object:
    store = MemoryStore()
    store.objects["plans/0000000001"] = data
    return open_plan(store)


def _place(data: bytes, directory: Path) -> object:
    (directory / "store.json").write_bytes(data)
    found = read_place(directory)
    check_types(found)
    return found


DECODERS = (
    RECORD_DECODERS
    | TALK_DECODERS
    | {
        "wire": Decoding(_wire, (FusejournalError, RefusedError)),
        "message": Decoding(_message, (FusejournalError,)),
        "payload": Decoding(_payload, (FormatError,)),
        "segment": Decoding(_segment, (BadFrameError,)),
        "index": Decoding(_index, (FormatError,)),
        "seekable": Decoding(_seekable, (FormatError,)),
        "watermarks": Decoding(_watermarks, (FusejournalError,)),
        "checkpoint": Decoding(_checkpoint, ()),
        "signatures": Decoding(_signatures, (FusejournalError,)),
        "peers": Decoding(_peers, (FusejournalError,)),
        "volume": Decoding(_volume, (FusejournalError,)),
        "config": Decoding(_config, (FusejournalError,)),
        "version": Decoding(_version, (StoreError,)),
        "pack": Decoding(_packs, (StoreError,)),
        "block_index": Decoding(_block_index, (StoreError,)),
        "inode": Decoding(_inode, (StoreError,)),
        "node": Decoding(_node, (StoreError,)),
        "list_node": Decoding(_list_node, (StoreError,)),
        "worker": Decoding(_worker, (StoreError,)),
        "plan": Decoding(_plan, (StoreError,)),
        "place": Decoding(_place, (FusejournalError,)),
        "certificate": Decoding(_certificate, (ValueError,)),
    }
)


def outcome_of(name: str, data: bytes) -> str:
    """The name of the error that *data* is refused with, in one line, or "read". Raises what it
    must not."""
    decoding = DECODERS[name]
    with tempfile.TemporaryDirectory(prefix="decode.") as directory:
        os.chmod(directory, 0o700)
        try:
            decoding.decode(data, Path(directory))
        except decoding.errors as error:
            if not str(error).isprintable():
                raise ValueError(f"not one line: {error}") from error
            return type(error).__name__
    return "read"
