"""The end of a journal, where frames are lost and others behind them are not."""

from pathlib import Path

import pytest

from fusejournal.journal.format import encode_frame, encode_payload
from fusejournal.journal.segment import BadFrameError
from fusejournal.journal.tail import _flushed_after
from fusejournal.operations import Write
from fusejournal.types import NOBODY_ASKED, Fid, Seq


@pytest.mark.parametrize("first", [1, 90, 250, 23_805, 65_500, (1 << 32) - 20, (1 << 40) - 3])
def test_watermarks_behind_lost_frames_are_found(tmp_path: Path, first: int) -> None:
    """Whatever bytes a seq is made of, and though what is lost looks like a frame's beginning."""
    content = bytearray(128)
    starts, chain = [], 7
    for seq in map(Seq, range(first, first + 100)):
        payload = encode_payload(Write(Fid(7), 0, None), NOBODY_ASKED, seq, None)
        data = bytes(300) + seq.to_bytes(8, "little") + bytes(30)
        head, chain = encode_frame(payload, data, seq, Seq(seq - 1), chain)
        starts.append(len(content))
        content += head + data
    path = tmp_path / "1.fj"
    for lost in (range(1), range(40), range(10, 11), range(90, 98)):
        spoilt = bytearray(content)
        for number in lost:
            spoilt[starts[number] : starts[number + 1] - 340] = b"\xff" * (
                starts[number + 1] - 340 - starts[number]
            )
        path.write_bytes(spoilt)
        bad = BadFrameError(starts[lost[0]], Seq(first + lost[0]), "lost", torn=True)
        assert _flushed_after(path, bad) == first + 98
    spoilt = content[: starts[98]]
    spoilt[starts[97] : starts[97] + 8] = b"\xff" * 8
    path.write_bytes(spoilt)
    bad = BadFrameError(starts[97], Seq(first + 97), "lost", torn=True)
    assert _flushed_after(path, bad) == 0
