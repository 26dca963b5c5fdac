"""Everything that takes bytes of a disk or a peer, by name, with what it may raise."""

import os
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from fusejournal.config import load_config
from fusejournal.errors import FusejournalError
from fusejournal.journal.format import FormatError, decode_payload
from fusejournal.journal.index import SegmentIndex
from fusejournal.journal.seekable import SeekableFile
from fusejournal.journal.segment import BadFrameError, SegmentReader
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node.state_dir import load_state
from fusejournal.replication.kept_signatures import KeptSignatures
from fusejournal.replication.peers import PeerBook
from fusejournal.types import Fid, Seq
from fusejournal.volume.checkpoint import CheckpointFile
from fusejournal.wire.batches import frame_range_of
from fusejournal.wire.frames import BATCH_BYTES_MAX, Batch, Decoder, Message
from fusejournal.wire.identity import normalize
from fusejournal.wire.session import RefusedError

_SEGMENT = "00000000000000000001"


class Decoding(NamedTuple):
    """How bytes are decoded, with an empty directory to use. ``errors``: what bytes that cannot be
    may raise, and nothing else."""

    decode: Callable[[bytes, Path], object]
    errors: tuple[type[Exception], ...]


def _wire(data: bytes, _: Path) -> list[Message]:
    decoder = Decoder()
    decoder.bytes_max = BATCH_BYTES_MAX
    found = list(decoder.feed(data))
    for message in found:
        if isinstance(message, Batch):
            frame_range_of(message)
    return found


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
    index.told_paths()
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
    return CheckpointFile(directory / "checkpoint").load()


def _signatures(data: bytes, directory: Path) -> object:
    (directory / "signatures").write_bytes(data)
    with closing(KeptSignatures(directory / "signatures")) as kept:
        return kept.after(Seq(0))


def _peers(data: bytes, directory: Path) -> object:
    (directory / "peers.json").write_bytes(data)
    return PeerBook.load(directory).list()


def _volume(data: bytes, directory: Path) -> object:
    (directory / "volume.json").write_bytes(data)
    return load_state(directory)


def _config(data: bytes, directory: Path) -> object:
    (directory / "config.toml").write_bytes(data)
    return load_config(directory / "config.toml")


def _certificate(data: bytes, _: Path) -> str:
    return normalize(data.decode("utf-8", "surrogateescape"))


DECODERS = {
    "wire": Decoding(_wire, (FusejournalError, RefusedError)),
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
    "certificate": Decoding(_certificate, (ValueError,)),
}


def outcome_of(name: str, data: bytes) -> str:
    """The name of the error that *data* is refused with, or "read". Raises what it must not."""
    decoding = DECODERS[name]
    with tempfile.TemporaryDirectory(prefix="decode.") as directory:
        os.chmod(directory, 0o700)
        try:
            decoding.decode(data, Path(directory))
        except decoding.errors as error:
            return type(error).__name__
    return "read"
