"""Waiting for mirrors: how many count, and what happens when they do not answer."""

import errno
from typing import Any

import pytest
import trio
import trio.testing

from fusejournal.config import ReplicationConfig
from fusejournal.replication.quorum import FIRST_PLACES, PLACES, Quorum
from fusejournal.types import Seq


class _Expedite:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def _quorum(head: int = 100, expedite: _Expedite | None = None, **config: Any) -> Quorum:
    settings = ReplicationConfig(**{"mirrors": 1, "mirrors_timeout_seconds": 10.0, **config})
    return Quorum(settings, lambda: Seq(head), expedite or _Expedite())


def test_nobody_waits_for_no_mirrors() -> None:
    assert _quorum(mirrors=0).has(Seq(1 << 60))


@pytest.mark.parametrize(("mirrors", "seq"), [(1, 30), (2, 20), (3, 10), (4, 0)])
def test_so_many_mirrors_count(mirrors: int, seq: int) -> None:
    quorum = _quorum(mirrors=mirrors)
    for name, acked in (("a", 10), ("b", 30), ("c", 20), ("b", 5)):
        quorum.acked(name, Seq(acked))
    assert quorum.seq == seq
    assert quorum.has(Seq(seq))
    assert not quorum.has(Seq(seq + 1))


async def test_wait_ends_with_the_acknowledgement(autojump_clock: trio.testing.MockClock) -> None:
    expedite = _Expedite()
    quorum = _quorum(expedite=expedite)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(quorum.wait, Seq(7))
        await trio.sleep(5)
        assert quorum.waiting == 1
        assert expedite.times == 1
        quorum.acked("a", Seq(6))
        await trio.sleep(1)
        assert quorum.waiting == 1
        quorum.acked("a", Seq(8))
    assert trio.current_time() == pytest.approx(6, abs=0.1)
    assert quorum.waiting == 0
    assert quorum.trouble() is None


async def test_goes_on_without_them(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    quorum = _quorum(head=50)
    began = trio.current_time()
    await quorum.wait(Seq(7))
    assert trio.current_time() - began == pytest.approx(10, abs=0.1)
    assert "go on without them" in caplog.text
    assert "nothing waits for them" in str(quorum.trouble())
    began = trio.current_time()
    await quorum.wait(Seq(50))  # at once from now on
    assert trio.current_time() == began
    quorum.acked("a", Seq(49))
    assert quorum.trouble() is not None
    quorum.acked("a", Seq(50))  # level again: they count again
    assert quorum.trouble() is None
    assert not quorum.has(Seq(51))


async def test_blocks_as_configured(autojump_clock: trio.testing.MockClock) -> None:
    quorum = _quorum(on_timeout="block")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(quorum.wait, Seq(7))
        await trio.sleep(1000)
        assert quorum.waiting == 1
        assert "blocked" in str(quorum.trouble())
        quorum.acked("a", Seq(7))
    assert quorum.waiting == 0


async def test_removed_mirror_does_not_count(autojump_clock: trio.testing.MockClock) -> None:
    quorum = _quorum()
    quorum.acked("a", Seq(9))
    quorum.forget("a")
    assert not quorum.has(Seq(1))


async def test_cancelled_wait_leaves_nothing(autojump_clock: trio.testing.MockClock) -> None:
    quorum = _quorum()
    with trio.move_on_after(1):
        await quorum.wait(Seq(7))
    assert quorum.waiting == 0
    assert quorum.trouble() is None


async def test_counts_again_under_load(autojump_clock: trio.testing.MockClock) -> None:
    """Mirrors that follow closely count again, though the journal never waits for them."""
    head = [1000]
    quorum = Quorum(
        ReplicationConfig(mirrors=1, mirrors_timeout_seconds=10.0),
        lambda: Seq(head[0]),
        lambda: None,
    )
    await quorum.wait(Seq(1))
    assert quorum.trouble() is not None
    for _ in range(60):
        head[0] += 1000
        await trio.sleep(0.5)
        quorum.acked("a", Seq(head[0] - 200))
    assert quorum.trouble() is None


async def test_does_not_count_mirrors_that_are_far_behind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    head = [1000]
    quorum = Quorum(
        ReplicationConfig(mirrors=1, mirrors_timeout_seconds=10.0),
        lambda: Seq(head[0]),
        lambda: None,
    )
    await quorum.wait(Seq(1))
    for _ in range(200):
        head[0] += 1000
        await trio.sleep(0.5)
        quorum.acked("a", Seq(head[0] - 40_000 if head[0] > 41_000 else 0))
    assert quorum.trouble() is not None


async def test_nobody_waits_once_the_node_ends(autojump_clock: trio.testing.MockClock) -> None:
    quorum = _quorum(on_timeout="block")
    caught: list[int | None] = []

    async def wait() -> None:
        try:
            await quorum.wait(Seq(7))
        except OSError as error:
            caught.append(error.errno)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(100)
        quorum.close()
    assert caught == [errno.EAGAIN]


async def test_mirrors_that_are_level_are_waited_for_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Though changes come more seldom than the time-out."""
    head = [50]
    config = ReplicationConfig(mirrors=1, mirrors_timeout_seconds=10.0)
    quorum = Quorum(config, lambda: Seq(head[0]), lambda: None)
    await quorum.wait(Seq(50))
    assert quorum.trouble() is not None
    await trio.sleep(60)
    quorum.acked("a", Seq(50))
    assert quorum.trouble() is None
    for _ in range(5):
        await trio.sleep(15)
        head[0] += 1
        assert not quorum.has(Seq(head[0]))
        quorum.acked("a", Seq(head[0]))


async def test_an_acknowledgement_that_says_nothing_new_lets_them_be_counted_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A journal that grows all the while: they are near, when they are asked again in time."""
    head = [50]
    config = ReplicationConfig(mirrors=1, mirrors_timeout_seconds=10.0)
    quorum = Quorum(config, lambda: Seq(head[0]), lambda: None)
    await quorum.wait(Seq(50))
    await trio.sleep(60)
    head[0] = 70
    quorum.acked("a", Seq(60))
    assert quorum.trouble() is not None
    await trio.sleep(1)
    head[0] = 80
    quorum.acked("a", Seq(70))
    assert quorum.trouble() is None


# -- places ----------------------------------------------------------------------------------------


class _Callers:
    """Callers who wait for entry 7, and what became of them."""

    def __init__(self, quorum: Quorum, nursery: trio.Nursery) -> None:
        self._quorum = quorum
        self._nursery = nursery
        self.answered = 0
        self.refused: list[int | None] = []

    async def come(self, uid: int, number: int) -> None:
        for _ in range(number):
            self._nursery.start_soon(self._call, uid)
        await trio.testing.wait_all_tasks_blocked()

    async def _call(self, uid: int) -> None:
        try:
            if not self._quorum.try_enter(uid):
                await self._quorum.enter(uid)
            try:
                await self._quorum.wait(Seq(7))
            finally:
                self._quorum.leave(uid)
        except OSError as error:
            self.refused.append(error.errno)
        else:
            self.answered += 1


async def test_nobody_takes_all_places(autojump_clock: trio.testing.MockClock) -> None:
    quorum = _quorum(on_timeout="block")
    async with trio.open_nursery() as nursery:
        greedy, other = (_Callers(quorum, nursery) for _ in range(2))
        await greedy.come(1000, 500)
        half = (PLACES - FIRST_PLACES) // 2
        assert quorum.waiting == half
        await other.come(1001, 5)
        assert quorum.waiting == half + 5  # no caller is in his way
        await trio.sleep(0.9)
        assert greedy.refused == []
        await trio.sleep(0.2)
        assert greedy.refused == [errno.EAGAIN] * (500 - half)
        await trio.sleep(1000)
        await greedy.come(1000, 100)  # at once by now
        assert len(greedy.refused) == 600 - half
        await other.come(1001, 5)
        assert quorum.waiting == half + 10
        quorum.acked("a", Seq(7))
        await trio.testing.wait_all_tasks_blocked()
        assert (greedy.answered, other.answered, other.refused) == (half, 10, [])
        assert quorum.waiting == 0
        assert quorum.try_enter(1000)


async def test_a_group_of_users_leaves_each_other_user_a_place(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each of the group takes all that one may; then comes everybody else."""
    quorum = _quorum(on_timeout="block")
    async with trio.open_nursery() as nursery:
        group, others = (_Callers(quorum, nursery) for _ in range(2))
        for uid in range(1000, 1020):
            await group.come(uid, 300)
        for uid in range(2000, 2050):
            await others.come(uid, 1)
        await trio.sleep(1000)
        assert others.refused == []
        assert quorum.waiting == PLACES - FIRST_PLACES + 50 + len(range(1009, 1020))
        quorum.acked("a", Seq(7))
        await trio.testing.wait_all_tasks_blocked()
        assert others.answered == 50


async def test_the_line_moves_on_while_mirrors_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    quorum = _quorum(on_timeout="block", head=0)
    async with trio.open_nursery() as nursery:
        callers = _Callers(quorum, nursery)
        await callers.come(1000, 500)
        for seq in range(1, 7):
            await trio.sleep(0.9)
            quorum.acked("a", Seq(seq))
        assert callers.refused == []
        quorum.acked("a", Seq(7))
    assert callers.answered == 500


async def test_whoever_stands_in_line_goes_on_when_nobody_waits_any_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    quorum = _quorum()
    async with trio.open_nursery() as nursery:
        callers = _Callers(quorum, nursery)
        await callers.come(1000, 500)
    assert (callers.answered, callers.refused) == (500, [])
    assert trio.current_time() == pytest.approx(10, abs=0.1)


async def test_a_disk_that_takes_its_time_refuses_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Callers have places before they wait for mirrors, too."""
    quorum = _quorum(on_timeout="block")
    places = 0
    while quorum.try_enter(1000):
        places += 1
    async with trio.open_nursery() as nursery:
        callers = _Callers(quorum, nursery)
        await callers.come(1000, 1)
        await trio.sleep(1000)
        assert callers.refused == []
        quorum.acked("a", Seq(7))
        quorum.leave(1000)
    assert callers.answered == 1


@pytest.mark.parametrize(("end", "number"), [("close", errno.EAGAIN), ("fence", errno.EROFS)])
async def test_the_line_ends_with_the_node(
    autojump_clock: trio.testing.MockClock, end: str, number: int
) -> None:
    quorum = _quorum(on_timeout="block")
    async with trio.open_nursery() as nursery:
        callers = _Callers(quorum, nursery)
        await callers.come(1000, 500)
        getattr(quorum, end)()
    assert callers.refused == [number] * 500
    assert trio.current_time() < 1
