"""Each format and message has a golden file, which is what is written today, and is read."""

import json
import os
from pathlib import Path

import pytest

from fusejournal.backing.fid_tag import FID_XATTR
from fusejournal.backing.root_mark import read_root_mark
from fusejournal.disk import syscalls
from fusejournal.errors import WireError
from fusejournal.journal.base import load_base
from fusejournal.journal.index import has_current_index, index_path, load_index
from fusejournal.journal.index_making import build_index
from fusejournal.journal.seekable import SeekableFile
from fusejournal.journal.segment import SegmentReader
from fusejournal.journal.watermarks import Following, WatermarkPage
from fusejournal.node.state_dir import load_state, save_state
from fusejournal.operations import Kind
from fusejournal.replication.kept_signatures import Kept, KeptSignatures
from fusejournal.replication.member_record import MemberRecord
from fusejournal.replication.peers import PeerBook
from fusejournal.types import Epoch, Fid, Reign, Seq
from fusejournal.volume.checkpoint import CheckpointFile
from fusejournal.wire import frames
from fusejournal.wire.frames import Decoder, Hello, Message, Welcome, encode
from fusejournal.wire.identity import load_or_make
from fusejournal.wire.versions import Versions, versions_of
from tests.golden.files import HERE, UUID_OF_GOLDENS, from_rows, golden
from tests.golden.samples import (
    CHECKPOINT,
    GOLDENS,
    MEMBERS,
    MESSAGES,
    SIGNATURES,
    make,
    peers,
    promoted,
    volume,
)
from tests.golden.state_files import BASE

_SEGMENT = "00000000000000000001.fj"


def _content(name: str) -> bytes:
    found = golden(name)
    return from_rows(found["content"], found["bytes"])


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    """The golden segment, in a directory of its own."""
    path = tmp_path / _SEGMENT
    path.write_bytes(bytes.fromhex("".join(golden("journal-v1")["segment"])))
    return path


@pytest.mark.mount  # marks are attributes that only root can set
@pytest.mark.parametrize("name", [name for name, one in GOLDENS.items() if one.is_compared])
def test_what_is_written_is_the_golden_file(name: str) -> None:
    assert json.loads(json.dumps(make(name))) == golden(name)


def test_every_file_has_its_maker() -> None:
    """Those of the journal that no program makes any more are read by tests of their own, and what
    kernels asked is recorded."""
    found = {path.stem for path in HERE.glob("*.json")}
    assert {
        name
        for name in found
        if not name.startswith(("journal-", "release-", "requests-")) and name != "index-v1"
    } == {name for name in GOLDENS if not name.startswith("journal-")}


@pytest.mark.parametrize("version", [1, 2])
def test_the_index_is_read(segment: Path, version: int) -> None:
    index_path(segment).write_bytes(_content(f"index-v{version}"))
    with SegmentReader(segment) as reader:
        index, built = load_index(segment, reader), build_index(reader)
        assert index is not None
        assert index.is_current is has_current_index(segment) is (version == 2)
        assert (index.first_seq, index.last_seq) == (1, built.last_seq)
        for fid in range(12):
            assert list(index.of_fid(Fid(fid))) == list(built.of_fid(Fid(fid)))
        assert [posting.number for posting in index.of_name(Fid(1), b"old")] == [1]
        assert index.recorded_paths() == built.recorded_paths()
        assert index.has_deed(1000, 1 << Kind.CREATE)
        assert (index.content == built.content) is (version == 2)


def test_a_compressed_segment_is_read(segment: Path, tmp_path: Path) -> None:
    (tmp_path / "compressed").write_bytes(_content("seekable-v1"))
    with open(tmp_path / "compressed", "rb") as file:
        reader = SeekableFile(file.fileno())
        assert reader.read_at(0, reader.size) == segment.read_bytes()
        assert reader.read_at(100, 50) == segment.read_bytes()[100:150]


def test_the_page_of_watermarks_is_read(tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(_content("watermarks-v1"))
    page = WatermarkPage(tmp_path / "page", 0x1111)
    assert (page.applying_seq, page.committed_seq, page.durable_seq) == (101, 102, 103)
    assert (page.stopped_seq, page.rooted_seq, page.instance) == (104, 105, 0x00C0FFEE)
    assert page.fence == Reign(Epoch(7), 0xFEED)
    assert page.following == Following(0xBEEF, 0xABCD, (1, 2, 3))
    assert not page.is_unconfirmed
    page.close()


@pytest.mark.mount
def test_the_checkpoint_is_read(tmp_path: Path) -> None:
    found = golden("checkpoint-v1")
    (tmp_path / "checkpoint").write_bytes(bytes.fromhex(found["checkpoint"]))
    assert CheckpointFile(tmp_path / "checkpoint").load() == CHECKPOINT._replace(position=None)
    root_fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        before, _, position = found["root_mark"]
        handle = syscalls.handle_of(root_fd)
        value = bytes.fromhex(before) + handle + bytes.fromhex(position)
        os.setxattr(root_fd, FID_XATTR, value)
        mark = read_root_mark(root_fd)
    finally:
        os.close(root_fd)
    assert mark is not None
    assert (mark.owner, mark.is_original, mark.position) == (
        *(UUID_OF_GOLDENS, True),
        CHECKPOINT.position,
    )


def test_the_signatures_are_read(tmp_path: Path) -> None:
    found = golden("signatures-v1")
    content = bytearray(found["bytes"])
    for number, slot in found["slots"].items():
        content[int(number) * 64 : int(number) * 64 + 64] = bytes.fromhex(slot)
    (tmp_path / "signatures").write_bytes(content)
    kept = KeptSignatures(tmp_path / "signatures")
    assert kept.after(Seq(0)) == [Kept(*one) for one in SIGNATURES]
    kept.close()


def test_the_identity_is_read(tmp_path: Path) -> None:
    found = golden("identity-v1")
    (tmp_path / "identity").mkdir(mode=0o700)
    for name in ("key.pem", "cert.pem"):
        (tmp_path / "identity" / name).write_text("".join(found[name]))
    assert load_or_make(tmp_path / "identity", "another").fingerprint == found["fingerprint"]


def test_the_peers_are_read(tmp_path: Path) -> None:
    (tmp_path / "peers.json").write_text(json.dumps(golden("peers-v1")))
    certificate = "".join(golden("identity-v1")["cert.pem"])
    assert tuple(PeerBook.load(tmp_path).list()) == peers(certificate)


def test_the_volume_is_read(tmp_path: Path) -> None:
    (tmp_path / "volume.json").write_text(json.dumps(golden("volume-v2")))
    assert load_state(tmp_path) == volume(tmp_path)
    (tmp_path / "volume.json").write_text(json.dumps(golden("volume-v3")))
    assert load_state(tmp_path) == promoted(tmp_path)


def test_every_message_has_a_sample() -> None:
    assert {type(message) for message in MESSAGES} == set(frames._TYPES.values())
    assert set(golden("wire-v1")) == {type(message).__name__ for message in MESSAGES}


@pytest.mark.parametrize("sample", MESSAGES, ids=lambda sample: type(sample).__name__)
def test_every_message_is_read(sample: Message) -> None:
    found = golden("wire-v1")[type(sample).__name__]
    content = from_rows(found["content"], found["bytes"])
    decoder = Decoder()
    decoder.expect_batches()
    assert list(decoder.feed(content)) == [sample]
    assert encode(sample) == content


@pytest.mark.parametrize("kind", [Hello, Welcome])
def test_the_greetings_of_0_1_0_are_read(kind: type[Hello | Welcome]) -> None:
    """They say nothing of versions and limits; all else is as ever, and comes first."""
    found = golden("release-0.1.0-greetings")[kind.__name__]
    (sample,) = (message for message in MESSAGES if isinstance(message, kind))
    (read,) = Decoder().feed(from_rows(found["content"], found["bytes"]))
    assert isinstance(read, kind)
    known = len(found["fields"])
    assert read._fields[:known] == tuple(found["fields"])
    assert read[:known] == sample[:known]
    assert not any(read[known:])
    assert versions_of(read) == Versions(1, 1, 1, Kind.CLEAN)


def test_messages_in_a_row_are_read_wherever_they_are_cut() -> None:
    content = b"".join(encode(message) for message in MESSAGES)
    for cut in range(len(content)):
        decoder = Decoder()
        decoder.expect_batches()
        got = [*decoder.feed(content[:cut]), *decoder.feed(content[cut:])]
        assert tuple(got) == MESSAGES
    with pytest.raises(WireError):
        list(Decoder().feed(b"\xff" * 64))


def test_members_are_read(tmp_path: Path) -> None:
    (tmp_path / "members.json").write_text(json.dumps(golden("members-v1")))
    assert MemberRecord(tmp_path).current == MEMBERS


def test_a_base_is_read(tmp_path: Path) -> None:
    (tmp_path / "base.json").write_text(json.dumps(golden("base-v1")))
    assert load_base(tmp_path) == BASE
    # The state directory of such a volume is of a format of its own.
    save_state(promoted(tmp_path))
    assert json.loads((tmp_path / "volume.json").read_text())["format"] == 4
    assert load_state(tmp_path) == promoted(tmp_path)
