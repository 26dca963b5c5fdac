"""The segments that are beyond the window of a policy."""

from pathlib import Path

import pytest

from fusejournal.journal.window import PrunableSegment, beyond_window
from fusejournal.types import Seq

_SEGMENTS = [
    PrunableSegment(Path(str(number)), Seq(number * 10), 100, number * 1000)
    for number in range(1, 6)
]


@pytest.mark.parametrize(
    ("keep_bytes", "keep_ns", "last_seq"),
    [
        (None, None, 0),
        (0, None, 50),
        (199, None, 40),
        (200, None, 30),
        (499, None, 10),
        (500, None, 0),
        (None, 0, 50),
        (None, 4000, 10),
        (None, 4001, 10),
        (None, 5000, 0),
        (499, 2500, 30),
        (150, 1 << 60, 40),
    ],
)
def test_what_is_beyond_goes(keep_bytes: int | None, keep_ns: int | None, last_seq: int) -> None:
    now_ns = 5999
    assert beyond_window(_SEGMENTS, now_ns, keep_bytes, keep_ns) == last_seq
    assert beyond_window([], now_ns, keep_bytes, keep_ns) == 0
