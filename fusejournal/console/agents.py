"""The agents that the console is paired with, and calling them: over the project's own TLS, each
end known by its certificate.

Connections are kept for the next call, a few for each agent. One task a call; cancelling one ends
its connection, because an answer may be on its way."""

import json
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from fusejournal.address import Address, check_peer_name, parse_remote
from fusejournal.console.checked_overview import OVERVIEW_BYTES_MAX
from fusejournal.console.place import console_name
from fusejournal.console.record_books import RecordBook
from fusejournal.console.routes import ROUTES
from fusejournal.control.reply import Reply
from fusejournal.disk.files import UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.disk.json_records import checked
from fusejournal.errors import FusejournalError, PairingError, PeerLostError, UsageError, WireError
from fusejournal.wire import pairing
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import ANSWER_BYTES_MAX, CALLS_VERSION, Call, CallPart
from fusejournal.wire.identity import Identity
from fusejournal.wire.pairing import Paired
from fusejournal.wire.transport import connect, connect_for_pairing

_CONNECT_SECONDS: Final = 5.0
_PAIR_SECONDS: Final = 20.0
_ANSWER_SECONDS: Final = 60.0
_CALL_SECONDS: Final = 300.0
"""The time that an answer may take as a whole, however often a part of it comes."""
_KEPT_MAX: Final = 4
_QUESTIONS_MAX: Final = 8
_DOWNLOADS_MAX: Final = 5
"""Calls to one agent at a time, beside the overview, which has a place of its own: a download takes
as long as its client does. With those that are kept they are fewer than an agent takes of one
console."""
_CHANGING_NOTHING: Final = {"overview"} | {one.call for one in ROUTES if one.method == "GET"}


class CallFailedError(FusejournalError):
    """An agent's answer that it could not be done, with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class KnownAgent:
    """An agent: its name here, where it listens, and its certificate (PEM)."""

    name: str
    address: str
    certificate: str

    def to_json(self) -> dict[str, str]:
        """Returns what ``console agents --json`` prints."""
        return {"name": self.name, "address": self.address}


@dataclass(frozen=True, kw_only=True)
class AgentPaired(Reply):
    """An agent that was paired: its name here, what it calls itself, and its certificate's
    fingerprint."""

    agent: str
    node: str
    fingerprint: str


class AgentBook(RecordBook[KnownAgent]):
    """The agents in one file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "agents")

    def _record_of(self, raw: dict[str, Any]) -> KnownAgent:
        return checked(KnownAgent(**raw))

    def _write(self, content: bytes) -> None:
        write_atomically("console.agents", self._path, content, Outlives.MACHINE)

    def put(self, agent: KnownAgent) -> None:
        """Keeps an agent; one of the same name is replaced. Raises FusejournalError, OSError."""
        with self._changing() as agents:
            agents[agent.name] = agent

    def remove(self, name: str) -> None:
        """Forgets an agent. Raises UsageError where there is none, FusejournalError, OSError."""
        with self._changing() as agents:
            if name not in agents:
                raise UsageError(f"there is no agent {name!r}: 'fusejournal console agents'")
            del agents[name]


async def pair_agent(
    book: AgentBook, identity: Identity, name: str, address: Address, code: str
) -> Paired:
    """Pairs with the agent that listens at *address* and gave out *code*, and keeps it as *name*.
    Cancelling may leave this console known there, and the agent not here: then pair anew. Raises
    UsageError, PairingError, WireError, OSError."""
    check_peer_name(name)
    connection = await connect_for_pairing(address, identity, timeout_seconds=_PAIR_SECONDS)
    async with connection:
        with trio.move_on_after(_ANSWER_SECONDS):
            paired = await pairing.ask(connection, code, console_name(), identity, lambda _: None)
            book.put(KnownAgent(name, str(address), paired.certificate))
            return paired
    raise PairingError(f"{address}: does not answer")


class AgentLink:
    """Calls to one agent."""

    def __init__(self, agent: KnownAgent, identity: Identity) -> None:
        self.agent = agent
        self._identity = identity
        self._kept: list[Connection] = []
        self._is_closed = False
        # A stream's parts may be taken by several tasks in turn, which a limiter would not allow.
        self._question_places = trio.Semaphore(_QUESTIONS_MAX)
        self._download_places = trio.Semaphore(_DOWNLOADS_MAX)
        self._overview_place = trio.Semaphore(1)

    async def call(self, what: str, /, **fields: Any) -> dict[str, Any]:
        """Returns the answer to a call. Cancelling ends the connection; the agent may do what it
        was asked. Raises CallFailedError, WireError where it cannot be reached or does not
        answer."""
        bytes_max, places = ANSWER_BYTES_MAX, self._question_places
        if what == "overview":
            bytes_max, places = OVERVIEW_BYTES_MAX, self._overview_place
        content = bytearray()
        try:
            with trio.fail_after(_CALL_SECONDS):
                async with aclosing(self._parts(places, what, fields)) as parts:
                    async for part in parts:
                        content += part
                        if len(content) > bytes_max:
                            raise WireError(f"{self.agent.name}: an answer that is too long")
        except trio.TooSlowError:
            words = f"its answer is not whole after {_CALL_SECONDS:g} s"
            raise WireError(f"{self.agent.name}: {words}") from None
        return _answer_in(self.agent.name, content)

    def parts(self, what: str, /, **fields: Any) -> AsyncGenerator[bytes, None]:
        """Returns the bytes of a download, as they come. They are cancelled, and raise, as
        :meth:`call` does."""
        return self._parts(self._download_places, what, fields)

    async def _parts(
        self, places: trio.Semaphore, what: str, fields: dict[str, Any]
    ) -> AsyncGenerator[bytes, None]:
        message = Call(CALLS_VERSION, what, json.dumps(fields).encode())
        async with places:
            connection, first = await self._ask(message)
            is_whole = False
            try:
                part = first
                while True:
                    if part.state == "error":
                        is_whole = True
                        raise _failed(part.content)
                    if part.content:
                        yield part.content
                    if part.state == "end":
                        is_whole = True
                        return
                    part = await self._receive(connection)
            finally:
                if is_whole and not self._is_closed and len(self._kept) < _KEPT_MAX:
                    self._kept.append(connection)
                else:
                    with trio.CancelScope(shield=True):
                        await connection.aclose()

    async def _ask(self, message: Call) -> tuple[Connection, CallPart]:
        """Sends a call, and returns the connection and the first part of the answer. A connection
        that was kept may be dead by now: then a call that changes nothing goes by another; one that
        changes something goes by a new one at once, because it is never sent twice."""
        while self._kept and message.what in _CHANGING_NOTHING:
            connection = self._kept.pop()
            try:
                await connection.send(message)
                return connection, await self._receive(connection)
            except PeerLostError:
                await connection.aclose()
            except BaseException:
                with trio.CancelScope(shield=True):
                    await connection.aclose()
                raise
        connection = await connect(
            parse_remote(self.agent.address), self._identity, self.agent.certificate,
            insecure=False, timeout_seconds=_CONNECT_SECONDS,
        )  # fmt: skip
        try:
            await connection.send(message)
            return connection, await self._receive(connection)
        except BaseException as error:
            with trio.CancelScope(shield=True):
                await connection.aclose()
            if isinstance(error, PeerLostError) and message.what not in _CHANGING_NOTHING:
                words = f"{error.reason}: what was asked for may have been done, or not"
                raise PeerLostError(error.where, words) from None
            raise

    async def _receive(self, connection: Connection) -> CallPart:
        try:
            with trio.fail_after(_ANSWER_SECONDS):
                message = await connection.receive()
        except trio.TooSlowError:
            words = f"no answer within {_ANSWER_SECONDS:g} s"
            raise WireError(f"{self.agent.name}: {words}") from None
        if message is None:
            raise PeerLostError(connection.where, "ended the connection")
        if not isinstance(message, CallPart):
            raise WireError(f"{connection.where}: not an answer but {type(message).__name__}")
        return message

    async def drop_kept(self) -> None:
        """Ends the connections that are kept, at once: those to an agent that is away would only be
        waited for. Cancelling changes nothing in that."""
        while self._kept:
            with trio.CancelScope() as scope:
                scope.cancel()
                await self._kept.pop().aclose()

    async def aclose(self) -> None:
        """Ends the connections that are kept, and keeps none any more. Cancelled, it ends one by
        force and leaves the rest."""
        self._is_closed = True
        while self._kept:
            await self._kept.pop().aclose()


def _answer_in(name: str, content: bytes | bytearray) -> dict[str, Any]:
    """Returns the answer of agent *name*. Raises WireError."""
    try:
        value = json.loads(content, parse_constant=_refuse, parse_float=_finite)
    except UNREADABLE_JSON:
        raise WireError(f"{name}: an answer that is no JSON") from None
    if not isinstance(value, dict):
        raise WireError(f"{name}: an answer that is no object")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")  # a browser would not read it


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits:.80} is too great")  # it would be passed on as "Infinity"
    return number


def _failed(content: bytes) -> CallFailedError:
    words, code = "the agent failed, and does not say why", 1
    with suppress(*UNREADABLE_JSON):
        raw = json.loads(content)
        words, code = str(raw["error"]), int(raw["exit_code"])
    return CallFailedError(words, code)


class Agents:
    """Links to all agents of the book, made as they are asked for."""

    def __init__(self, book: AgentBook, identity: Identity) -> None:
        self._book = book
        self._identity = identity
        self._links: dict[str, AgentLink] = {}

    def names(self) -> list[str]:
        """Returns the agents' names, sorted. Raises FusejournalError."""
        return sorted(self._book.all())

    async def link(self, name: str) -> AgentLink:
        """Returns the link to the agent *name*; one of before it was paired anew is closed.
        Cancelled in that, the new one stays. Raises UsageError, FusejournalError."""
        agent = self._book.all().get(name)
        if agent is None:
            raise UsageError(f"there is no agent {name!r:.80}")
        link = self._links.get(name)
        if link is None or link.agent != agent:
            old, link = link, AgentLink(agent, self._identity)
            self._links[name] = link
            if old is not None:
                await old.aclose()
        return link
