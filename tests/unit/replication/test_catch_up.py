"""The rate at which a peer applies, and the time that it will take."""

import pytest
import trio
import trio.testing

from fusejournal.replication.catch_up import CatchUpMeter
from fusejournal.replication.lag import LagMeter
from fusejournal.types import Seq


async def _applies(progress: CatchUpMeter, upto: int, start: int = 0) -> None:
    """A hundred entries of ten bytes a second."""
    for seq in range(start, upto + 1, 100):
        progress.sample(Seq(seq), 10 * seq)
        await trio.sleep(1)


async def test_rate_and_time_to_go(autojump_clock: trio.testing.MockClock) -> None:
    progress = CatchUpMeter(LagMeter())
    assert progress.rates() == (0.0, 0.0)
    assert progress.eta_seconds(500) is None
    await _applies(progress, 3000)
    assert progress.rates() == pytest.approx((100, 1000))
    assert progress.eta_seconds(500) == pytest.approx(5)
    assert progress.eta_seconds(0) is None


async def test_what_was_before_a_session_does_not_count(
    autojump_clock: trio.testing.MockClock,
) -> None:
    progress = CatchUpMeter(LagMeter())
    for _ in range(8):
        progress.sample(Seq(0), 0)
        await trio.sleep(1)
    progress.begin(Seq(9000))
    await _applies(progress, 6000, 5000)
    assert progress.eta_seconds(3000) == pytest.approx(30)
    assert progress.is_catching_up(Seq(8999), Seq(9000))
    assert not progress.is_catching_up(Seq(9000), Seq(9001))
