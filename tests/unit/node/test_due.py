"""The moments at which a work that is done again and again is due."""

import pytest

from fusejournal.node.due import Due


def _due(done_seconds_ago: float | None, chance: float = 0.0, every: float = 3600) -> Due:
    return Due(every, 1000, done_seconds_ago, lambda: chance)


@pytest.mark.parametrize(
    ("done_seconds_ago", "at"),
    [
        (None, 1000),
        (600, 4000),
        (3600, 1000),
        (90 * 86_400, 1000),  # the machine was off, or its clock leapt ahead
        (-90 * 86_400, 4600),  # the clock was put back: no more than a period is waited
    ],
)
def test_the_first_moment(done_seconds_ago: float | None, at: float) -> None:
    assert _due(done_seconds_ago).at == at


def test_moments_lie_on_a_grid_whatever_the_work_takes() -> None:
    due = _due(None, chance=0.5)
    moments = []
    for took in (10, 2000, 5, 3 * 3600, 1):
        moments.append(due.at)
        due.done(due.at + took)
    assert moments == [1000 + 180 + 3600 * number for number in (0, 1, 2, 3, 7)]


def test_what_was_missed_while_the_machine_slept_is_made_up_for_once() -> None:
    due = _due(None)
    due.done(1000 + 10.5 * 3600)
    assert due.at == 1000 + 11 * 3600


def test_failures_are_tried_again_less_and_less_soon() -> None:
    due = _due(None)
    pauses = []
    for _ in range(9):
        due.failed(5000)
        pauses.append(due.at - 5000)
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert due.failures == 9
    due.done(5000)
    assert due.failures == 0
    assert due.at == 8200
    due.failed(5000)
    assert due.at == 5060


def test_it_can_be_put_off_and_hastened() -> None:
    due = _due(None)
    due.done(2000, 4500)
    assert due.at == 6500
    due.hasten(2000, 100)
    assert due.at == 2100
    due.hasten(2000, 900)
    assert due.at == 2100
    due.done(2100)
    assert due.at == 5700


def test_the_chance_part_is_bounded() -> None:
    assert _due(None, chance=1.0).at == 1360
    assert _due(None, chance=1.0, every=86_400 * 7).at == 1600
