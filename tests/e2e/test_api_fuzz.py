"""The API fuzzed from its own description, by schemathesis. A tier by name: FUSEJOURNAL_TEST_FUZZ
is schemathesis' command, which needs an environment of its own (HACKING.md)."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fusejournal.address import Address
from fusejournal.admin.peers import add_peer
from fusejournal.node.state_dir import load_state
from tests.support.console_processes import ConsoleProcesses, console_processes
from tests.support.layer import Layer

_COMMAND = os.environ.get("FUSEJOURNAL_TEST_FUZZ")
pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(_COMMAND is None, reason="FUSEJOURNAL_TEST_FUZZ names no schemathesis"),
]
_VOLUME = "api/agents/hall/volumes/volume"


@pytest.fixture
def processes(layer: Layer, tmp_path: Path) -> Iterator[ConsoleProcesses]:
    layer.reconfigure("[versions]\nkeep_last = 2\nkeep_daily = 3\n")
    layer.start()
    with console_processes(layer, tmp_path / "said") as processes:
        yield processes
    layer.stop()


def _fill(layer: Layer) -> None:
    """Makes what can be asked about: files of odd names, an attribute, versions, a mark, a peer."""
    directory = layer.mountpoint / "docs"
    directory.mkdir()
    for name in (b"file", b"bytes\xff\xfe", b"<b>"):
        with open(os.fsencode(directory) + b"/" + name, "wb") as file:
            file.write(b"one\n")
    os.setxattr(directory / "file", "user.note", b"a value")
    layer.run("version", "store", "init", "volume", "--store", str(layer.base / "store"))
    layer.run("version", "create", "volume", "first")
    (directory / "file").write_text("two\n")
    layer.run("version", "create", "volume")
    layer.run("mark", "volume", "here")
    add_peer(load_state(layer.state), "east", Address("127.0.0.1", 9))
    (directory / "<b>").unlink()


def _there(processes: ConsoleProcesses, headers: dict[str, str], role: str) -> dict[str, list[str]]:
    """Returns values that parameters can have for there to be an answer, with a job of *role*."""
    with httpx.Client(base_url=processes.url, headers=headers, timeout=60) as client:
        versions = client.get(f"{_VOLUME}/versions").json()["versions"]
        seqs = [str(one["seq"]) for one in client.get(f"{_VOLUME}/entries").json()["entries"]]
        jobs = []
        if role != "viewer":
            body = {"kind": "undo", "volume": "volume", "op": ["unlink"]}
            jobs.append(client.post("api/agents/hall/jobs", json=body).json()["id"])
    keys = [one["key"] for one in versions]
    return {
        "agent": ["hall"], "volume": ["volume"], "seq": seqs, "version": ["first", *keys],
        "peer": ["east"], "id": [*jobs, "1", "2"],
        "path": ["docs", "docs/file", "docs/*", "docs/<b>"], "new_path": ["docs/file"],
        "at": seqs, "from_seq": seqs, "to_seq": seqs, "mark": ["here"], "old": keys, "new": keys,
        "time": ["1 minute ago"], "since": ["1 hour ago", "here"], "until": ["now"],
    }  # fmt: skip


def _point(described: dict[str, Any], there: dict[str, list[str]]) -> None:
    """Has each parameter be what there is at least as often as anything else; agent and volume
    always."""
    for operations in described["paths"].values():
        for operation in operations.values():
            for one in operation["parameters"]:
                values = there.get(one["name"])
                if values is None or one["in"] == "header":
                    continue
                known = {"enum": values}
                is_only = one["name"] in ("agent", "volume")
                one["schema"] = known if is_only else {"anyOf": [known, known, one["schema"]]}


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
def test_nothing_fails_on_a_bug(layer: Layer, processes: ConsoleProcesses, role: str) -> None:
    """And what is answered is what the description says."""
    _fill(layer)
    token = processes.run("console", "token", "create", "fuzz", "--role", role).stdout.strip()
    headers = {"authorization": f"Bearer {token}"}
    described = httpx.get(f"{processes.url}api/openapi.json", headers=headers).json()
    _point(described, _there(processes, headers, role))
    schema = layer.base / "openapi.json"
    schema.write_text(json.dumps(described))
    assert _COMMAND is not None
    done = subprocess.run(
        [
            _COMMAND, "run", str(schema), "--url", processes.url.rstrip("/"),
            "-H", f"Authorization: Bearer {token}", "--max-examples", "25", "--rate-limit", "20/s",
            "--exclude-path", "/api/events", "--request-timeout", "30", "--continue-on-failure",
            "--checks", "not_a_server_error,status_code_conformance",
            "--phases", "examples,coverage,fuzzing", "--seed", "7",
        ],
        cwd=layer.base, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "failed on a bug" not in processes.words()
