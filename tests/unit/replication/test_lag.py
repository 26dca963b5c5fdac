"""A lag in seconds is the age of the first entry that is lacking."""

import time

import pytest

from fusejournal.replication import lag as module
from fusejournal.replication.lag import LagMeter
from fusejournal.types import Seq


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def _filled(clock: list[float]) -> LagMeter:
    """Ten entries a second for ten seconds."""
    lag_meter = LagMeter()
    for second in range(11):
        clock[0] = 1000.0 + second
        lag_meter.note(Seq(100 + 10 * second))
    return lag_meter


@pytest.mark.parametrize(
    ("seq", "seconds"), [(200, 0), (250, 0), (199, 1), (190, 1), (189, 2), (105, 10), (100, 10)]
)
def test_lag(clock: list[float], seq: int, seconds: float) -> None:
    assert _filled(clock).lag(Seq(seq), Seq(200)) == pytest.approx(seconds)


def test_idle_time_does_not_count(clock: list[float]) -> None:
    lag_meter = _filled(clock)
    clock[0] += 1000
    lag_meter.note(Seq(200))
    clock[0] += 0.5
    assert lag_meter.lag(Seq(200), Seq(201)) == pytest.approx(0.5)


def test_nothing_is_known_at_first(clock: list[float]) -> None:
    assert LagMeter().lag(Seq(3), Seq(10)) == 0.0


def test_what_was_there_at_first_grows_old(clock: list[float]) -> None:
    lag_meter = LagMeter()
    for _ in range(5):
        lag_meter.note(Seq(1000))
        clock[0] += 1
    assert lag_meter.lag(Seq(3), Seq(1000)) == pytest.approx(5)
    lag_meter.note(Seq(1001))
    assert lag_meter.lag(Seq(3), Seq(1001)) == pytest.approx(5)
    assert lag_meter.lag(Seq(1000), Seq(1001)) == pytest.approx(1)


def test_what_is_kept_is_bounded(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NOTES_MAX", 200)
    monkeypatch.setattr(module, "_NEAR", 1 / 20)
    lag_meter = LagMeter()
    for second in range(1000):
        clock[0] = 1000.0 + second
        lag_meter.note(Seq(second))
    assert len(lag_meter._seqs) == len(lag_meter._times) <= 200
    assert lag_meter.lag(Seq(998), Seq(999)) == pytest.approx(1)
    for seq in range(0, 998, 7):
        assert 999 - seq <= lag_meter.lag(Seq(seq), Seq(999)) <= 1.2 * (999 - seq) + 1
