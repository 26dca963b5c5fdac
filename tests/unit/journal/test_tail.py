"""The end of a journal, where frames are lost and others behind them are not."""

from pathlib import Path

import pytest

from fusejournal.journal.format import FRAME_HEADER_BYTES, encode_frame, encode_payload
from fusejournal.journal.segment import BadFrameError
from fusejournal.journal.tail import _flushed_after
from fusejournal.operations import Write
from fusejournal.types import SYSTEM_CALLER, Fid, Seq


def frame(seq: int, data: bytes, flushed: int, chain: int) -> tuple[bytes, int]:
    payload = encode_payload(Write(Fid(7), 0, None), SYSTEM_CALLER, seq, None)
    head, chain = encode_frame(payload, data, Seq(seq), Seq(flushed), chain)
    return head + data, chain


def flushed_after(path: Path, content: bytes | bytearray, offset: int, seq: int) -> int:
    path.write_bytes(content)
    return _flushed_after(path, BadFrameError(offset, Seq(seq), "lost", torn=True))


@pytest.mark.parametrize("first", [1, 250, (1 << 40) - 3])
def test_watermarks_behind_lost_frames_are_found(tmp_path: Path, first: int) -> None:
    path = tmp_path / "1.fj"
    content, chain = bytearray(128), 7
    starts: list[int] = []
    for seq in range(first, first + 100):
        whole, chain = frame(seq, bytes(300), seq - 1, chain)
        starts.append(len(content))
        content += whole
    starts.append(len(content))
    for lost in (range(1), range(40), range(10, 11), range(90, 98)):
        spoilt = bytearray(content)
        for number in lost:
            begin, end = starts[number] + FRAME_HEADER_BYTES, starts[number + 1]
            spoilt[begin:end] = b"\xff" * (end - begin)
        assert flushed_after(path, spoilt, starts[lost[0]], first + lost[0]) == first + 98
    spoilt = bytearray(content)
    spoilt[starts[50] : starts[51]] = bytes(starts[51] - starts[50])
    assert flushed_after(path, spoilt, starts[50], first + 50) == 0
    cut = content[: starts[98]]
    cut[-20:] = b"\xff" * 20
    assert flushed_after(path, cut, starts[97], first + 97) == 0


def test_what_a_user_has_written_is_no_watermark(tmp_path: Path) -> None:
    """A torn write whose data look like frames of the journal, wherever they are in it."""
    forged, chain = b"", 99
    for seq in range(11, 40):
        one, chain = frame(seq, b"", seq + 1000, chain)
        forged += one
    for space in range(64):
        torn, _ = frame(10, bytes(space) + forged + bytes(64), 3, 7)
        for spoil in (FRAME_HEADER_BYTES + 3, 0):  # in its payload; or its header is lost, too
            content = bytearray(bytes(128) + torn)
            content[128 + spoil : 128 + spoil + 8] = b"\xff" * 8
            assert flushed_after(tmp_path / "1.fj", content, 128, 10) == 0
