"""The request loop waits for requests only while nobody else has anything to do."""

import os

import trio

from fusejournal.layer.request_loop import RequestLoop


class _Handshake:
    def __init__(self, fd: int) -> None:
        self.fd = fd


class _Poll:
    """Says that nothing has come; and how often it was told to wait while somebody was busy."""

    def __init__(self) -> None:
        self.is_busy = True
        self.waits = 0

    def poll(self, milliseconds: float) -> list[tuple[int, int]]:
        self.waits += milliseconds > 0 and self.is_busy
        return []


async def test_never_sleeps_while_another_task_is_to_run() -> None:
    """In whichever order trio lets the tasks of a round have their turn."""
    reading, writing = os.pipe()
    loop = RequestLoop(_Handshake(reading))  # type: ignore[arg-type]
    loop._poll_all = poll = _Poll()  # type: ignore[assignment]
    trio.lowlevel.add_instrument(loop._runnable)

    async def work() -> None:
        for _ in range(500):
            await trio.lowlevel.checkpoint()
        poll.is_busy = False

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            await trio.lowlevel.checkpoint()
            while poll.is_busy:
                await loop._comes_soon()
        assert poll.waits == 0
    finally:
        trio.lowlevel.remove_instrument(loop._runnable)
        os.close(reading)
        os.close(writing)
