"""A console's server in the test's own loop, as it listens to browsers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from fusejournal.address import Address
from fusejournal.console import serve
from fusejournal.console.agents import AgentBook, Agents
from fusejournal.console.alerts import Alerts
from fusejournal.console.app import ConsoleParts
from fusejournal.console.audit import Audit
from fusejournal.console.delivery import AlertDelivery
from fusejournal.console.last_seen import LastSeen
from fusejournal.console.tokens import TokenBook
from fusejournal.console.users import UserBook
from fusejournal.console.watch import Watch
from fusejournal.wire.identity import load_or_make


@asynccontextmanager
async def listening_console(directory: Path) -> AsyncIterator[Address]:
    """Yields the address of a console's server, whose files are in *directory*."""
    identity = load_or_make(directory / "identity", "console")
    agents = Agents(AgentBook(directory / "agents.json"), identity)
    told = AlertDelivery([], directory / "told.json")
    stopping = trio.Event()
    parts = ConsoleParts(
        agents=agents,
        users=UserBook(directory / "users.json"),
        tokens=TokenBook(directory / "tokens.json"),
        audit=Audit(directory / "audit.jsonl"),
        watch=Watch(
            agents, Alerts(directory / "alerts.json"), told, LastSeen(directory / "seen.json")
        ),
        is_tls=False,
        stopping=stopping,
    )
    address = Address("127.0.0.1", 0)
    ready: list[str] = []
    is_ready = trio.Event()

    def listens(url: str, _: str) -> None:
        ready.append(url)
        is_ready.set()

    async with trio.open_nursery() as nursery:
        config = serve._configuration(address, None, None)
        nursery.start_soon(serve._serve, config, parts, address, "", listens)
        await is_ready.wait()
        yield Address("127.0.0.1", int(ready[0].rstrip("/").rpartition(":")[2]))
        stopping.set()
        nursery.cancel_scope.cancel()
