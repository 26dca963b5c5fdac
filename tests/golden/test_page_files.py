"""The files of an agent and of a console are read as the golden files have them."""

import json
from pathlib import Path
from unittest import mock

import pytest

from fusejournal.agent.calls import _DOWNLOADS, _OF_KEPT, Calls
from fusejournal.agent.consoles import ConsoleBook
from fusejournal.agent.fields import Fields
from fusejournal.agent.job_kinds import KINDS, check_request
from fusejournal.agent.job_progress import JobProgress
from fusejournal.agent.jobs import JobBook
from fusejournal.console.agents import AgentBook
from fusejournal.console.alerts import Alerts
from fusejournal.console.audit import Audit
from fusejournal.console.last_seen import LastSeen
from fusejournal.console.tokens import TokenBook
from fusejournal.console.users import UserBook
from tests.golden.files import NOW_NS, golden
from tests.golden.page_files import (
    CODE,
    END,
    PASSWORD,
    PROBLEMS,
    PROGRESS,
    REQUESTS,
    SEEN,
    TOKEN,
    TOKENS,
    USERS,
    agents,
    alerts_now,
    certificate,
    delivery,
)


def _put(path: Path, raw: object) -> Path:
    path.write_text(json.dumps(raw))
    return path


def test_consoles_and_agents_are_read(tmp_path: Path) -> None:
    book = ConsoleBook(_put(tmp_path / "consoles.json", golden("agent-consoles-v1")))
    assert book.certificates == {"east-console": certificate()}
    known = AgentBook(_put(tmp_path / "agents.json", golden("console-agents-v1")))
    assert tuple(known.all().values()) == agents()


def test_every_kind_of_job_has_a_sample() -> None:
    assert set(REQUESTS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_is_read(tmp_path: Path, kind: str) -> None:
    found = golden("agent-jobs-v1")
    book = JobBook(tmp_path)
    job = tmp_path / "jobs" / "1-a"
    job.mkdir()
    request = found["request.json"][kind]
    for name, raw in {**found, "request.json": request}.items():
        _put(job / name, raw)
    check_request(request)
    assert KINDS[kind].command(request) == request["command"]
    told = book.show(Fields({"id": "1-a"}))
    assert (told["state"], told["words"]) == END
    (job / "end.json").unlink()
    told = book.show(Fields({"id": "1-a"}))
    assert (told["state"], told["is_readable"], told["command"]) == (
        *("planned", True, request["command"]),
    )
    progress = JobProgress(job)
    assert progress.values == {**PROGRESS, "changed_ns": NOW_NS}
    assert progress.order() == "do"
    assert progress.is_approved(PROGRESS["essence"])


def test_users_and_tokens_are_read(tmp_path: Path) -> None:
    users = UserBook(_put(tmp_path / "users.json", golden("console-users-v1")))
    assert tuple(users.all().values()) == USERS
    assert users.check("anna", PASSWORD) == USERS[0]
    chosen = users.choose_password("otto", CODE, "another password")
    assert chosen is not None
    assert users.check("otto", "another password") == chosen
    tokens = TokenBook(_put(tmp_path / "tokens.json", golden("console-tokens-v1")))
    assert tuple(tokens.all().values()) == TOKENS
    assert tokens.find(TOKEN) == TOKENS[0]
    assert tokens.find("fjt_other") is None  # it has expired


def test_the_audit_is_read(tmp_path: Path) -> None:
    found = golden("console-audit-v1")
    (tmp_path / "audit.jsonl").write_text("".join(f"{line}\n" for line in found))
    newest = Audit(tmp_path / "audit.jsonl").newest(5)
    assert [one["what"] for one in newest] == ["job-create", "login"]
    assert newest[0]["seqs"] == ["7"]


def test_alerts_and_what_was_told_are_read(tmp_path: Path) -> None:
    alerts = Alerts(_put(tmp_path / "alerts.json", golden("console-alerts-v1")))
    with mock.patch("time.time_ns", return_value=NOW_NS + 1):
        first, second = alerts.update(list(PROBLEMS))
    assert (first["since_ns"], second["since_ns"]) == (NOW_NS, NOW_NS)
    assert first["silenced"] == {"user": "anna", "until_ns": NOW_NS + 5 * 3600 * 10**9}
    assert second["acknowledged"] == {
        "user": "otto", "time_ns": NOW_NS, "severity": "warning",
    }  # fmt: skip
    _put(tmp_path / "told.json", golden("console-told-v1"))
    (told,) = delivery(tmp_path)._told.values()
    assert {key: "gone_ns" in one for key, one in told.items()} == {
        one["key"]: one["severity"] != "bad" for one in alerts_now()
    }


def test_what_was_seen_last_is_read(tmp_path: Path) -> None:
    seen = LastSeen(_put(tmp_path / "seen.json", golden("console-seen-v1")))
    assert {name: seen.find(name) for name in SEEN} == SEEN


def test_what_a_console_asks_is_what_the_agent_answers(tmp_path: Path) -> None:
    book = JobBook(tmp_path)
    jobs = {"job-create": book.create, "job-list": book.list_all}
    calls = Calls("node", dict, {**jobs, "job-show": book.show, "job-order": book.order})
    answered = {"overview", *calls._of_volume, *_OF_KEPT, *calls._of_machine, *_DOWNLOADS}
    assert set(golden("calls-v1")) == answered
