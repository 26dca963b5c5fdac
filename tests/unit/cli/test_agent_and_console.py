"""The commands of agent and console that need none of the two to run, and their words where one
should."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fusejournal.agent import own_calls
from fusejournal.cli.agent import agent
from fusejournal.cli.console import console
from fusejournal.console import libraries
from fusejournal.console.agents import AgentBook, KnownAgent
from fusejournal.console.place import console_directory
from fusejournal.errors import FusejournalError, NotRunningError, PeerLostError, UsageError


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))


def _console(*arguments: str) -> str:
    done = CliRunner().invoke(console, arguments)
    if done.exception is not None:
        raise done.exception
    return done.output


def _agent(*arguments: str) -> str:
    done = CliRunner().invoke(agent, arguments)
    if done.exception is not None:
        raise done.exception
    return done.output


def test_users() -> None:
    assert "one-time code, for a day: " in _console("user", "add", "anna", "--role", "admin")
    added = json.loads(_console("user", "add", "bert", "--json"))
    assert (added["name"], added["role"], len(added["code"])) == ("bert", "viewer", 19)
    assert "has chosen no password yet" in _console("user", "list")
    assert json.loads(_console("user", "list", "--json")) == [
        {"name": "anna", "role": "admin", "has_password": False},
        {"name": "bert", "role": "viewer", "has_password": False},
    ]
    assert "user anna stays admin\n" in _console("user", "add", "anna")
    assert "user bert is operator now, and was viewer\n" in _console(
        "user", "add", "bert", "--role", "operator"
    )
    with pytest.raises(UsageError, match="anna is the last admin"):
        _console("user", "add", "anna", "--role", "viewer")
    assert _console("user", "remove", "anna") == "user anna is removed\n"
    with pytest.raises(UsageError, match="no user"):
        _console("user", "remove", "anna")


def test_agents() -> None:
    assert "none yet" in _console("agents")
    book = AgentBook(console_directory() / "agents.json")
    book.put(KnownAgent("cellar", "10.0.0.2:7781", "a certificate"))
    assert _console("agents").split() == ["cellar", "10.0.0.2:7781"]
    assert json.loads(_console("agents", "--json"))[0]["name"] == "cellar"
    assert _console("forget", "cellar") == "agent cellar is forgotten\n"
    with pytest.raises(UsageError, match="no agent"):
        _console("forget", "cellar")
    with pytest.raises(PeerLostError, match=r"127.0.0.1:1"):
        _console("pair", "cellar=127.0.0.1:1", "0000-0000-0000-0000")


def test_no_console_without_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    with pytest.raises(FusejournalError, match=r"pip install 'fusejournal\[console\]'"):
        _console()


def test_where_a_console_may_not_listen() -> None:
    with pytest.raises(UsageError, match=r"listen on 127.0.0.1, or give --tls"):
        _console("--listen", "0.0.0.0:7780")
    with pytest.raises(UsageError, match="give --certificate and --key together"):
        _console("--certificate", "x.pem")
    with pytest.raises(UsageError, match=r"x.pem: is no file"):
        _console("--certificate", "x.pem", "--key", "y.pem")


def test_an_agent_that_does_not_run() -> None:
    for arguments in (("pair",), ("consoles",), ("forget", "hall")):
        with pytest.raises(NotRunningError, match="no agent runs here: fusejournal agent"):
            _agent(*arguments)


def test_a_code_is_shown_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[str, object] = {"code": "C", "node": "hall", "listen": "h:1", "fingerprint": "F"}
    opened["seconds_left"] = 600.0
    states = ["waiting", "paired"]

    def ask(command: str, **_: object) -> dict[str, object]:
        if command == "pair-open":
            return opened
        return {"state": states.pop(0), "console": "desk", "fingerprint": "G"}

    monkeypatch.setattr(own_calls, "_ask", ask)
    monkeypatch.setattr(own_calls, "_POLL_SECONDS", 0.0)
    shown = _agent("pair")
    assert "  fusejournal console pair hall=h:1 C\n" in shown
    assert shown.endswith("paired with the console desk: G\n")
    states[:] = ["expired"]
    with pytest.raises(FusejournalError, match="the code is expired"):
        _agent("pair", "--json")
