"""The API fuzzed from its own description, by schemathesis. A tier by name: FUSEJOURNAL_TEST_FUZZ
is schemathesis' command, which needs an environment of its own (HACKING.md)."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.console_processes import ConsoleProcesses, console_processes
from tests.support.layer import Layer

_COMMAND = os.environ.get("FUSEJOURNAL_TEST_FUZZ")
pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(_COMMAND is None, reason="FUSEJOURNAL_TEST_FUZZ names no schemathesis"),
]


@pytest.fixture
def processes(layer: Layer, tmp_path: Path) -> Iterator[ConsoleProcesses]:
    layer.start()
    with console_processes(layer, tmp_path / "said") as processes:
        yield processes
    layer.stop()


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
def test_nothing_fails_on_a_bug(layer: Layer, processes: ConsoleProcesses, role: str) -> None:
    """And what is answered is what the description says."""
    (layer.mountpoint / "file").write_text("content")
    token = processes.run("console", "token", "create", "fuzz", "--role", role).stdout.strip()
    described = httpx.get(
        f"{processes.url}api/openapi.json", headers={"authorization": f"Bearer {token}"}
    ).json()
    # Of the agents and volumes that there could be, the one that there is.
    there = {"agent": "hall", "volume": "volume"}
    for operations in described["paths"].values():
        for operation in operations.values():
            for one in operation["parameters"]:
                if one["in"] == "path" and one["name"] in there:
                    one["schema"]["enum"] = [there[one["name"]]]
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
