"""The faults of strangers and peers come into the log in few lines."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from fusejournal.wire.log_limiter import WINDOW_SECONDS, LogLimiter


@asynccontextmanager
async def running() -> AsyncIterator[LogLimiter]:
    log_limiter = LogLimiter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log_limiter.run)
        yield log_limiter
        nursery.cancel_scope.cancel()


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return found


async def test_many_are_two_lines(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as log_limiter:
        for number in range(5):
            log_limiter.stranger("192.0.2.1", f"192.0.2.1:{number}", f"did {number}")
            log_limiter.stranger(f"2001:db8::{number}", f"[2001:db8::{number}]:1", f"did {number}")
            log_limiter.peer("east", f"did {number}")
        assert lines_of(caplog) == [
            "connection from 192.0.2.1:0: did 0",
            "connection from [2001:db8::0]:1: did 0",
            "peer east: did 0",
        ]
        await trio.sleep(WINDOW_SECONDS + 1)
        assert lines_of(caplog) == [
            "connections from 192.0.2.1: 4 more, the last: did 4",
            "connections from 2001:db8::/64: 4 more, the last: did 4",
            "peer east: 4 more, the last: did 4",
        ]
        await trio.sleep(100)
        log_limiter.peer("east", "did it again")
        assert lines_of(caplog) == ["peer east: did it again"]


async def test_who_never_stops_is_told_ever_less_often(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as log_limiter:
        for _ in range(4 * 60 * 12):  # as who is refused comes back, for twelve hours
            log_limiter.peer("east", "is refused")
            await trio.sleep(15)
        assert len(lines_of(caplog)) < 24


async def test_many_strangers_hide_no_peer(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as log_limiter:
        for number in range(5000):
            host = f"10.0.{number // 250}.{number % 250}"
            log_limiter.stranger(host, host, "did it")
        assert len(lines_of(caplog)) == 1025
        log_limiter.peer("east", "did it")
        assert lines_of(caplog) == ["peer east: did it"]


async def test_one_traceback_of_many(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as log_limiter:
        for number in range(5):
            log_limiter.bug(f"192.0.2.{number}", ZeroDivisionError())
        (record,) = caplog.records
        assert record.exc_info
        caplog.clear()
        await trio.sleep(WINDOW_SECONDS + 1)
        (record,) = caplog.records
        assert not record.exc_info
        assert "4 more, the last: 192.0.2.4: ZeroDivisionError" in record.getMessage()
