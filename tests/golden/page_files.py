"""Samples of the files of an agent and of a console, of the calls between the two, and of the
message that alerts are told by."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import trio

from fusejournal.agent.consoles import ConsoleBook
from fusejournal.agent.fields import Fields
from fusejournal.agent.job_end import JobEnd, keep_end
from fusejournal.agent.job_kinds import KINDS
from fusejournal.agent.job_progress import JobProgress, essence_of
from fusejournal.agent.job_states import JobState
from fusejournal.agent.jobs import _write
from fusejournal.console.agents import AgentBook, KnownAgent
from fusejournal.console.alerts import Alerts
from fusejournal.console.audit import Audit
from fusejournal.console.channels import AlertCommand, CommandConfig, message_of
from fusejournal.console.delivery import AlertDelivery
from fusejournal.console.last_seen import LastSeen, SeenOverview
from fusejournal.console.routes import ROUTES
from fusejournal.console.tokens import ApiToken, TokenBook
from fusejournal.console.tokens import _hash as hash_of_token
from fusejournal.console.users import ConsoleUser, UserBook, _hash_code, _scrypt
from tests.golden.files import NOW_NS, golden

_EVER = 17e9
"""A time in seconds since 1970 that is far ahead."""
PASSWORD = "correct horse battery"
CODE = "ABCD-EFGH-JKMN-PQRS"
TOKEN = "fjt_of-goldens"
_SALT = bytes(range(16))
USERS = (
    ConsoleUser("anna", "admin", _SALT.hex(), _scrypt(PASSWORD, _SALT).hex()),
    ConsoleUser("otto", "viewer", code=_hash_code(CODE), code_until=_EVER),
)
"""One with a password, and one who has a code to choose one by."""
TOKENS = (
    ApiToken("all", "viewer", hash_of_token(TOKEN), 17e8, _EVER),
    ApiToken("some", "operator", hash_of_token("fjt_other"), 17e8, 17.5e8, ("east/data", "west/*")),
)
PROBLEMS: tuple[dict[str, Any], ...] = tuple(
    {
        "key": key, "agent": "east", "volume": volume, "words": words, "advice": "make space",
        "severity": severity,
    }
    for key, volume, words, severity in (
        ("east/data/full", "data", "the disk is full", "bad"),
        ("east//old", "", "an older release", "warning"),
    )
)  # fmt: skip
SEEN: dict[str, SeenOverview] = {
    "east": SeenOverview(
        "east-1",
        [
            {
                "name": "data", "state": "running",
                "problems": [
                    {"key": "full", "words": "full", "severity": "bad", "advice": "make space"}
                ],
            }
        ],
        NOW_NS,
    ),
    "west": SeenOverview("west", [], NOW_NS),
}  # fmt: skip
REQUESTS: dict[str, dict[str, Any]] = {
    "undo": {
        "seqs": ["7-12"], "path": "docs", "op": ["unlink", "rmdir"], "uid": 1001,
        "since": "yesterday", "until": "today", "without": ["9"],
        "pids": ["4711"], "on_conflict": "aside",
    },
    "restore": {"path": "docs", "at": 12},
    "in-place": {"path": "docs", "version": "friday"},
    "version-create": {"name": "friday"},
    "version-verify": {"version": "friday", "data": True},
    "prune": {},
    "handoff": {"peer": "east"},
    "promote": {"force": True},
    "demote": {"force": False},
    "rejoin": {"peer": "east"},
}  # fmt: skip
"""The fields that a console asks for a job of each kind with."""
PROGRESS: dict[str, Any] = {
    "state": JobState.PLANNED, "words": "", "done": 1, "total": 2, "pids": [4711],
    "results": {"4711": [20, 22]}, "essence": essence_of([["write", "docs/a"]]),
}  # fmt: skip


END = JobEnd(JobState.FAILED, "progress.json: No space left on device: make room")


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def certificate() -> str:
    """The certificate of the golden identity."""
    return "".join(golden("identity-v1")["cert.pem"])


def make_consoles(directory: Path) -> object:
    """The consoles that an agent is paired with."""
    ConsoleBook(directory / "consoles.json").put("east-console", certificate())
    return _read(directory / "consoles.json")


def make_jobs(directory: Path) -> object:
    """The files of jobs: the request of each kind, with the command line that does the same; an
    order, a job's progress, and the end of one that found no room for it."""
    requests = {}
    for name, fields in REQUESTS.items():
        made = KINDS[name].make(Fields(fields), Path("/restored/job"))
        request = {**made, "kind": name, "volume": "data", "user": "anna", "made_ns": NOW_NS}
        _write(directory / "request.json", {**request, "command": KINDS[name].command(request)})
        requests[name] = _read(directory / "request.json")
    _write(directory / "order.json", {"order": "do", "plan": PROGRESS["essence"]["hash"]})
    with mock.patch("time.time_ns", return_value=NOW_NS):
        JobProgress(directory).save(**PROGRESS)
    keep_end(directory, END)
    names = ("order.json", "progress.json", "end.json")
    found = {name: _read(directory / name) for name in names}
    return {"request.json": requests, **found}


def agents() -> tuple[KnownAgent, ...]:
    """The agents that a console is paired with."""
    return (KnownAgent("east", "10.0.0.2:7711", certificate()),)


def make_agents(directory: Path) -> object:
    """The agents that a console is paired with."""
    for agent in agents():
        AgentBook(directory / "agents.json").put(agent)
    return _read(directory / "agents.json")


def make_users(directory: Path) -> object:
    """The users of a console."""
    UserBook(directory / "users.json")._save({user.name: user for user in USERS})
    return _read(directory / "users.json")


def make_tokens(directory: Path) -> object:
    """The API tokens of a console."""
    TokenBook(directory / "tokens.json")._save({token.name: token for token in TOKENS})
    return _read(directory / "tokens.json")


def make_audit(directory: Path) -> object:
    """The audit: lines of JSON."""
    audit = Audit(directory / "audit.jsonl")
    with mock.patch("time.time_ns", return_value=NOW_NS):
        audit.note("anna", "192.0.2.1", "login")
        audit.note("anna", "192.0.2.1", "job-create", in_agent="east", kind="undo", seqs=["7"])
    return (directory / "audit.jsonl").read_text().splitlines()


def make_alerts(directory: Path) -> object:
    """The alerts that there are: one that is silenced, and one that is acknowledged."""
    alerts = Alerts(directory / "alerts.json")
    first, second = (one["key"] for one in PROBLEMS)
    with mock.patch("time.time_ns", return_value=NOW_NS):
        alerts.update(list(PROBLEMS))
        alerts.act(first, "silence", "anna", 5)
        alerts.act(second, "acknowledge", "otto", 0)
    return _read(directory / "alerts.json")


def delivery(directory: Path) -> AlertDelivery:
    """The delivery by one channel that keeps its file in *directory*."""
    channel = AlertCommand("pager", CommandConfig(argv=["/bin/true"]))
    return AlertDelivery((channel,), directory / "told.json")


def alerts_now() -> list[dict[str, Any]]:
    """The golden problems as alerts, none of which was acknowledged."""
    standing = {"since_ns": NOW_NS, "acknowledged": None, "silenced": None}
    return [{**one, **standing} for one in PROBLEMS]


def deliver(directory: Path, *rounds: list[dict[str, Any]]) -> None:
    """Deliver each of *rounds*, which are all the alerts that there are then."""

    async def tell() -> None:
        sending = delivery(directory)
        for alerts in rounds:
            await sending.deliver(alerts)

    with mock.patch("time.time_ns", return_value=NOW_NS + 60 * 10**9):
        trio.run(tell)


def make_told(directory: Path) -> object:
    """The alerts that were told by a channel: one alert that is there, and one that is gone."""

    deliver(directory, alerts_now(), alerts_now()[:1])
    return _read(directory / "told.json")


def make_seen(directory: Path) -> object:
    """The last answers of two agents."""
    LastSeen(directory / "seen.json").keep(SEEN)
    return _read(directory / "seen.json")


def make_alert_message(_: Path) -> object:
    """The messages of alerts that came, of one that is gone, and of a try."""
    first, second = alerts_now()
    return [message_of([first, second], []), message_of([], [second]), message_of([], [])]


def make_calls(_: Path) -> object:
    """The calls of a console to an agent by CALL, and their fields: those of the path, and those
    that may be missing, each with its type."""
    found = {}
    for route in ROUTES:
        names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
        found[route.call] = {
            "from the path": [name for name in names if name != "agent"],
            "given": {one.name: one.kind for one in route.parameters},
        }
    return {"overview": {"from the path": [], "given": {}}, **found}
