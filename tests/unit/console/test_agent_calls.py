"""Calls to an agent: who waits for whom, and what is sent again where a connection was lost."""

import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from fusejournal.address import Address
from fusejournal.agent import calls as agent_calls
from fusejournal.agent.calls import Calls
from fusejournal.agent.fields import Fields
from fusejournal.console import app, serve
from fusejournal.console.agents import AgentBook, AgentLink, Agents, CallFailedError, KnownAgent
from fusejournal.console.tokens import TokenBook
from fusejournal.console.users import AccessRole
from fusejournal.errors import PeerLostError, UsageError
from fusejournal.wire import listener
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import CALLS_VERSION, Call, CallPart
from fusejournal.wire.identity import load_or_make
from fusejournal.wire.transport import connect
from tests.support.listening_console import listening_console
from tests.support.patience import PATIENCE_SECONDS

_Answer = Callable[[Connection, Call], Awaitable[None]]
_END = CallPart("end", b"{}")


@dataclass
class _Agent:
    """An agent that answers as a test has it."""

    answer: _Answer
    link: AgentLink
    came: Counter[str] = field(default_factory=Counter)
    """The number of times that each call came."""
    ended: trio.Event = field(default_factory=trio.Event)
    """Set when the first connection has ended."""
    _changed: trio.Condition = field(default_factory=trio.Condition)

    async def count(self, call: Call) -> None:
        """Notes that *call* came."""
        async with self._changed:
            self.came[call.what] += 1
            self._changed.notify_all()

    async def comes(self, count: int) -> None:
        """Returns when *count* calls have come."""
        async with self._changed:
            while self.came.total() < count:
                await self._changed.wait()


@asynccontextmanager
async def _agent(directory: Path, answer: _Answer) -> AsyncIterator[_Agent]:
    own = load_or_make(directory / "identity", "console")
    pem = own.certificate_path.read_text()
    agents = Agents(AgentBook(directory / "agents.json"), own)

    async def serve_console(connection: Connection) -> None:
        try:
            while (message := await connection.receive()) is not None:
                assert isinstance(message, Call)
                await agent.count(message)
                await agent.answer(connection, message)
        finally:
            agent.ended.set()

    async with trio.open_nursery() as nursery:
        identity = load_or_make(directory / "hall", "hall")
        address: Address = await nursery.start(
            lambda task_status: listener.serve(
                Address("127.0.0.1", 0), identity, lambda: {"console": pem}, insecure=False,
                on_connection=serve_console, on_pairing=serve_console, task_status=task_status,
            )
        )  # fmt: skip
        known = KnownAgent("hall", str(address), identity.certificate_path.read_text())
        AgentBook(directory / "agents.json").put(known)
        agent = _Agent(answer, await agents.link("hall"))
        try:
            with trio.fail_after(PATIENCE_SECONDS):
                yield agent
        finally:
            await agent.link.aclose()
        nursery.cancel_scope.cancel()


async def _hang(connection: Connection, call: Call) -> None:
    """Begins each download, and answers nothing but the overview."""
    if call.what == "overview":
        await connection.send(_END)
    else:
        await connection.send(CallPart("more", b"x"))
        await trio.sleep_forever()


async def _download(link: AgentLink) -> None:
    async with aclosing(link.parts("content")) as parts:
        async for _ in parts:
            await trio.sleep_forever()


async def test_downloads_and_questions_leave_room_for_the_overview(tmp_path: Path) -> None:
    """However many hang; and the agent, which takes 16 connections of a console, refuses none."""
    async with _agent(tmp_path, _hang) as agent, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(_download, agent.link)
            nursery.start_soon(agent.link.call, "entries")
        await agent.comes(10)
        for _ in range(5):
            assert await agent.link.call("overview") == {}
        nursery.cancel_scope.cancel()


async def test_downloads_leave_room_for_questions(tmp_path: Path) -> None:
    async def answer(connection: Connection, call: Call) -> None:
        if call.what == "entries":
            await connection.send(_END)
        else:
            await _hang(connection, call)

    async with _agent(tmp_path, answer) as agent, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(_download, agent.link)
        await agent.comes(5)
        assert await agent.link.call("entries") == {}
        nursery.cancel_scope.cancel()


async def test_a_download_whose_client_reads_nothing_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the kernel, because the server's sending cannot be cancelled; its place is free then."""
    monkeypatch.setattr(serve, "_UNREAD_SECONDS", 1.0)

    async def pour(connection: Connection, _: Call) -> None:
        while True:
            await connection.send(CallPart("more", bytes(40_000)))

    token = TokenBook(tmp_path / "tokens.json").create("t", AccessRole.OPERATOR, 1, ())
    async with (
        _agent(tmp_path, pour) as agent,
        listening_console(tmp_path) as address,
        await trio.open_tcp_stream(address.host, address.port) as stream,
    ):
        request = (
            f"GET /api/agents/hall/volumes/data/content?path=a HTTP/1.1\r\nHost: {address}\r\n"
            f"Authorization: Bearer {token}\r\n\r\n"
        )
        await stream.send_all(request.encode())
        assert b" 200 " in await stream.receive_some(100)
        await agent.ended.wait()


async def test_a_download_ends_whose_client_takes_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holds for HTTP/2, where the client says how much it takes."""
    monkeypatch.setattr(app, "_TAKE_SECONDS", 0.1)
    sent: list[Any] = []
    is_closed = trio.Event()

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"x"
        finally:
            is_closed.set()

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == 3:
            await trio.sleep_forever()

    response = app.DownloadResponse(pieces())
    with trio.fail_after(PATIENCE_SECONDS):
        scope = {"type": "http", "asgi": {"spec_version": "2.1"}}
        await response(scope, trio.sleep_forever, send)
    assert is_closed.is_set()
    assert [one.get("more_body") for one in sent] == [None, True, True]  # it is not whole


async def _end_in_the_middle(connection: Connection, call: Call) -> None:
    """Answers the first call, and ends the connection at the second."""
    if call.what == "job-list":
        await connection.send(_END)
    else:
        await connection.aclose()


@pytest.mark.parametrize("what", ["job-create", "mark", "pair-open", "job-order"])
async def test_a_change_is_never_asked_for_twice(tmp_path: Path, what: str) -> None:
    """The agent may have done it before it ended."""
    async with _agent(tmp_path, _end_in_the_middle) as agent:
        await agent.link.call("job-list")
        with pytest.raises(PeerLostError, match="may have been done"):
            await agent.link.call(what)
        assert agent.came[what] == 1


async def test_a_change_is_done_after_the_agent_was_started_anew(tmp_path: Path) -> None:
    """The connections that are kept are dead then."""

    async def end_behind(connection: Connection, call: Call) -> None:
        await connection.send(_END)
        if call.what == "job-list":
            await connection.aclose()

    async with _agent(tmp_path, end_behind) as agent:
        await agent.link.call("job-list")
        await agent.ended.wait()
        assert await agent.link.call("mark") == {}
        assert agent.came["mark"] == 1


async def test_a_question_is_asked_again_where_a_connection_was_lost(tmp_path: Path) -> None:
    async def answer(connection: Connection, call: Call) -> None:
        if agent.came[call.what] == 2:
            await connection.aclose()
        else:
            await connection.send(_END)

    async with _agent(tmp_path, answer) as agent:
        await agent.link.call("job-list")
        assert await agent.link.call("job-list") == {}
        assert agent.came["job-list"] == 3


async def test_a_console_that_was_forgotten_is_not_the_next_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is answered no more, and a download on it goes no further."""
    own, other, hall = (load_or_make(tmp_path / name, name) for name in ("own", "other", "hall"))
    consoles = {"console": own.certificate_path.read_text()}

    def content(_: Fields) -> Iterator[bytes]:
        yield b"before"
        consoles["console"] = other.certificate_path.read_text()
        yield b"after"

    monkeypatch.setitem(agent_calls._DOWNLOADS, "content", content)
    calls = Calls("hall", lambda: consoles, {"ping": lambda _: {}})
    async with trio.open_nursery() as nursery:
        address: Address = await nursery.start(
            lambda task_status: listener.serve(
                Address("127.0.0.1", 0), hall, lambda: consoles, insecure=False,
                on_connection=calls.serve, on_pairing=calls.serve, task_status=task_status,
            )
        )  # fmt: skip
        with trio.fail_after(PATIENCE_SECONDS):
            connection = await connect(
                address, own, hall.certificate_path.read_text(), insecure=False, timeout_seconds=30
            )
            await connection.send(Call(CALLS_VERSION, "ping", b"{}"))
            assert await connection.receive() == _END
            await connection.send(Call(CALLS_VERSION, "content", b"{}"))
            assert await connection.receive() == CallPart("more", b"before")
            refused = await connection.receive()
            assert isinstance(refused, CallPart)
            assert (refused.state, b"is not paired any more" in refused.content) == ("error", True)
            await connection.send(Call(CALLS_VERSION, "ping", b"{}"))
            assert await connection.receive() is None
            await connection.aclose()
        nursery.cancel_scope.cancel()


async def test_a_link_that_was_closed_keeps_no_connection(tmp_path: Path) -> None:
    """A call that was under way when the agent was paired anew is the last on it."""
    began, may_end = trio.Event(), trio.Event()

    async def answer(connection: Connection, _: Call) -> None:
        began.set()
        await may_end.wait()
        await connection.send(_END)

    async with _agent(tmp_path, answer) as agent, trio.open_nursery() as nursery:
        nursery.start_soon(agent.link.call, "entries")
        await began.wait()
        await agent.link.aclose()
        may_end.set()
        await agent.ended.wait()


async def test_a_download_that_begins_late_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent shows that it is at work on it."""

    def slow(_: Fields) -> Iterator[bytes]:
        time.sleep(1.5)
        yield b"late"
        time.sleep(1.5)
        raise UsageError("and no more")

    monkeypatch.setattr("fusejournal.agent.calls._ALIVE_SECONDS", 0.2)
    monkeypatch.setattr("fusejournal.console.agents._ANSWER_SECONDS", 1.0)
    monkeypatch.setitem(agent_calls._DOWNLOADS, "content", slow)
    answer = Calls("hall", lambda: {"console": ""}, {}).answer
    async with _agent(tmp_path, answer) as agent, aclosing(agent.link.parts("content")) as parts:
        assert await anext(parts) == b"late"
        with pytest.raises(CallFailedError, match="and no more"):
            await anext(parts)
