"""An agent in the test's own process, and the console's application beside it, which asks it over
the loopback as it would another machine."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import trio

from fusejournal.address import Address
from fusejournal.agent.calls import Calls
from fusejournal.agent.consoles import ConsoleBook, ConsolePairing
from fusejournal.agent.jobs import JobBook
from fusejournal.agent.server import listen
from fusejournal.console.agents import AgentBook, Agents, pair_agent
from fusejournal.console.alerts import Alerts
from fusejournal.console.app import ConsoleParts, make_app
from fusejournal.console.audit import Audit
from fusejournal.console.channels import AlertChannel
from fusejournal.console.delivery import AlertDelivery
from fusejournal.console.last_seen import LastSeen
from fusejournal.console.tokens import TokenBook
from fusejournal.console.users import AccessRole, UserBook
from fusejournal.console.watch import Watch
from fusejournal.node.state_dir import load_state
from fusejournal.operations import Create, Rmdir, Unlink, Write
from fusejournal.types import ROOT_FID, Caller, Fid
from fusejournal.wire.identity import load_or_make
from tests.support.nodes import make_volume
from tests.support.volumes import SOMEBODY, OpenVolume, open_volume

PASSWORD = "correct horse battery staple"
ODD_NAMES = (b"<img src=x onerror=alert(1)>", b'it\'s "so" & so', b"esc\x1b[31m", b"bytes\xff\xfe")
_VIEWER = Caller(1001, 1001, 55)


def make_story(root: Path) -> None:
    """Makes the volume "data" in *root*, the root of states: entries of which the last remove a
    directory with its files, by another user."""
    make_volume(root / "state", "data")
    uuid = load_state(root / "state").uuid
    with open_volume(root, uuid=uuid) as volume:
        docs = volume.mkdir("docs")
        files = [
            _file(volume, docs, b"note%d" % number, b"text %d" % number) for number in range(5)
        ]
        for name in ODD_NAMES:
            _file(volume, ROOT_FID, name, b"odd")
        for number, fid in enumerate(files):
            volume.volume.commit(Unlink(fid, docs, b"note%d" % number), _VIEWER)
        volume.volume.commit(Rmdir(docs, ROOT_FID, b"docs"), _VIEWER)


def _file(volume: OpenVolume, parent: Fid, name: bytes, data: bytes) -> Fid:
    fid = volume.volume.new_fid()
    volume.volume.commit(Create(fid, parent, name, 0o100644, 0, 0, 0, None), SOMEBODY)
    volume.volume.commit(Write(fid, 0, None), SOMEBODY, data)
    return fid


@dataclass
class RunningConsole:
    """A console's application, and a browser's part: cookies, and the secret of the session."""

    users: UserBook
    tokens: TokenBook
    agents: Agents
    audit: Audit
    watch: Watch
    jobs: JobBook
    client: httpx.AsyncClient
    stopping: trio.Event
    csrf: str = ""

    async def log_in(self, role: str) -> None:
        """Log in as a new user with *role*."""
        code = self.users.add(f"user-{role}", AccessRole[role.upper()]).code
        body = {"name": f"user-{role}", "code": code, "password": PASSWORD}
        answer = await self.client.post("/api/password", json=body)
        assert answer.status_code == 200, answer.text
        self.csrf = answer.json()["csrf"]

    async def get(self, path: str, /, **params: Any) -> Any:
        """Returns the value that a GET gives."""
        answer = await self.client.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, status: int = 200, /, **body: Any) -> Any:
        """Returns the value that a POST gives."""
        headers = {"x-csrf-token": self.csrf}
        answer = await self.client.post(path, json=body, headers=headers)
        assert answer.status_code == status, answer.text
        return answer.json()


@asynccontextmanager
async def running_console(
    directory: Path, channels: Sequence[AlertChannel] = (), *, is_tls: bool = False
) -> AsyncIterator[RunningConsole]:
    """An agent of the volumes below the root of states, called "hall", paired with a console."""
    book = ConsoleBook(directory / "consoles.json")
    identity = load_or_make(directory / "agent-identity", "hall")
    jobs = JobBook(directory)
    more = {
        "job-create": jobs.create, "job-list": jobs.list_all, "job-show": jobs.show,
        "job-order": jobs.order,
    }  # fmt: skip
    calls = Calls("hall", lambda: book.certificates, more)
    pairing = ConsolePairing(book, identity, "hall")
    async with trio.open_nursery() as nursery:
        address: Address = await nursery.start(
            listen, Address("127.0.0.1", 0), identity, book, calls, pairing
        )
        opened = await pairing.commands()["pair-open"]({})
        agent_book = AgentBook(directory / "agents.json")
        own = load_or_make(directory / "console-identity", "console")
        await pair_agent(agent_book, own, "hall", address, opened["code"])
        agents = Agents(agent_book, own)
        users, audit = UserBook(directory / "users.json"), Audit(directory / "audit.jsonl")
        delivery = AlertDelivery(channels, directory / "told.json")
        alerts, last_seen = Alerts(directory / "alerts.json"), LastSeen(directory / "seen.json")
        watch = Watch(agents, alerts, delivery, last_seen)
        await nursery.start(watch.run)
        tokens = TokenBook(directory / "tokens.json")
        stopping = trio.Event()
        parts = ConsoleParts(agents, users, tokens, audit, watch, is_tls=is_tls, stopping=stopping)
        scheme = "https" if is_tls else "http"
        transport = httpx.ASGITransport(make_app(parts, {"console"}))
        async with httpx.AsyncClient(transport=transport, base_url=f"{scheme}://console") as client:
            yield RunningConsole(users, tokens, agents, audit, watch, jobs, client, stopping)
        await (await agents.link("hall")).aclose()
        nursery.cancel_scope.cancel()
