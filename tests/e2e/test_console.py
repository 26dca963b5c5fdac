"""The agent and the console as processes, beside a layer: the story of a removed tree, an agent
that is killed in the middle of a job, and where the console listens."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from tests.support.console_processes import PASSWORD, ConsoleProcesses, console_processes
from tests.support.forked import run
from tests.support.layer import Layer
from tests.support.trees import difference, image

pytestmark = pytest.mark.mount
_FILES = 400
"""So many that the job is still at work when it is told to pause."""
_VOLUME = "/api/agents/hall/volumes/volume"


@pytest.fixture
def processes(layer: Layer, tmp_path: Path) -> Iterator[ConsoleProcesses]:
    layer.start()
    with console_processes(layer, tmp_path / "said") as processes:
        yield processes
    layer.stop()


class Browser:
    """A browser's part: cookies, and the secret of the session. Use as a context manager."""

    def __init__(self, processes: ConsoleProcesses, role: str) -> None:
        self.client = httpx.Client(base_url=processes.url, timeout=60, verify=False)
        code = processes.add_user("anna", role)
        body = {"name": "anna", "code": code, "password": PASSWORD}
        self.client.headers["x-csrf-token"] = self.post("/api/password", **body)["csrf"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def get(self, path: str, /, **params: Any) -> Any:
        """Returns the value that a GET gives."""
        answer = self.client.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, /, **body: Any) -> Any:
        """Returns the value that a POST gives."""
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def await_job(self, path: str, is_there: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Returns the job, once it is as wanted."""
        deadline = time.monotonic() + 60
        while True:
            job: dict[str, Any] = self.get(path)
            if is_there(job):
                return job
            assert time.monotonic() < deadline, job
            time.sleep(0.05)


@pytest.fixture
def browser(processes: ConsoleProcesses) -> Iterator[Browser]:
    with Browser(processes, "operator") as browser:
        yield browser


def test_a_removed_tree_comes_back(
    layer: Layer, processes: ConsoleProcesses, browser: Browser
) -> None:
    """And the agent is killed while the job is at work."""
    tree = layer.mountpoint / "project"
    (tree / "deep/er").mkdir(parents=True)
    for number in range(_FILES):
        (tree / f"deep/file-{number}").write_text(f"content {number}")
    with open(os.fsencode(tree) + b"/no\xfftext <b>", "wb") as file:
        file.write(b"odd")
    was = image(tree)
    shutil.rmtree(tree)
    overview = browser.get("/api/overview")
    (volume,) = overview["agents"][0]["volumes"]
    assert (volume["name"], volume["state"], overview["alerts"]) == ("volume", "running", [])
    found = browser.get(f"{_VOLUME}/entries", op="unlink,rmdir", count=500)["entries"]
    assert len(found) == _FILES + 1 + 3
    before = min(one["seq"] for one in found) - 1
    then = browser.get(f"{_VOLUME}/tree", path="project", at=before)
    assert [one["name"] for one in then["names"]] == ["deep", "no\udcfftext <b>"]
    content = browser.client.get(f"{_VOLUME}/content?path=project/no%FFtext%20%3Cb%3E&at={before}")
    assert content.content == b"odd"

    seqs = [f"{min(one['seq'] for one in found)}-{max(one['seq'] for one in found)}"]
    job = browser.post("/api/agents/hall/jobs", kind="undo", volume="volume", seqs=seqs)
    path = f"/api/agents/hall/jobs/{job['id']}"
    planned = browser.await_job(path, lambda job: not job["is_running"])
    assert (planned["state"], planned["chosen"], planned["conflict_count"]) == (
        "planned",
        _FILES + 4,
        0,
    )
    browser.post(path, order="do")
    paused = browser.post(path, order="pause")
    assert (paused["is_running"], paused["paused"]) == (True, True)
    processes.kill_agent()
    processes.start_agent()
    paused = browser.get(path)
    assert (paused["is_running"], paused["paused"]) == (True, True)
    assert not tree.exists()
    browser.post(path, order="resume")
    done = browser.await_job(path, lambda job: not job["is_running"])
    assert (done["state"], done["words"]) == ("done", "")
    assert {one["result"] for one in done["actions"]} == {"done"}
    assert difference(was, image(tree)) == ""
    # The way back from it is a job, with a plan first, and a way back of its own: a command.
    back = browser.post("/api/agents/hall/jobs", kind="undo", volume="volume", job=job["id"])
    path = f"/api/agents/hall/jobs/{back['id']}"
    planned = browser.await_job(path, lambda job: not job["is_running"])
    assert (planned["state"], planned["conflict_count"]) == ("planned", 0)
    assert planned["command"] == done["undo_command"]
    assert difference(was, image(tree)) == ""
    browser.post(path, order="do", plan=planned["plan"])
    undone = browser.await_job(path, lambda job: not job["is_running"])
    assert (undone["state"], undone["words"]) == ("done", "")
    assert not tree.exists()
    assert "done, as entries" in layer.run(*undone["undo_command"].split()[1:]).stdout
    assert difference(was, image(tree)) == ""


def test_a_killed_job_is_gone_on_with(layer: Layer, browser: Browser) -> None:
    tree = layer.mountpoint / "project"
    tree.mkdir()
    for number in range(2 * _FILES):
        (tree / f"file-{number}").write_text(f"content {number}")
    was = image(tree)
    shutil.rmtree(tree)
    job = browser.post("/api/agents/hall/jobs", kind="undo", volume="volume", op=["unlink,rmdir"])
    path = f"/api/agents/hall/jobs/{job['id']}"
    browser.await_job(path, lambda job: job["state"] == "planned" and not job["is_running"])
    # What fits the filter later was not planned.
    (layer.mountpoint / "other").write_text("other")
    (layer.mountpoint / "other").unlink()
    browser.post(path, order="do")
    # (What it has done of the plan is counted, too: it has begun once something is there.)
    doing = browser.await_job(
        path, lambda job: job["state"] == "doing" and any(layer.mountpoint.iterdir())
    )
    os.kill(doing["pids"][-1], signal.SIGKILL)
    stopped = browser.await_job(path, lambda job: not job["is_running"])
    assert (stopped["state"], "'do' goes on" in stopped["words"]) == ("stopped", True)
    (layer.mountpoint / "later").write_text("later")
    (layer.mountpoint / "later").unlink()
    assert f"--pid {doing['pids'][-1]} --apply" in stopped["undo_command"]
    browser.post(path, order="do")
    done = browser.await_job(path, lambda job: not job["is_running"])
    assert (done["state"], done["words"]) == ("done", "")
    assert difference(was, image(tree)) == ""
    assert [one.name for one in layer.mountpoint.iterdir()] == ["project"]
    # The way back from it is that from both processes.
    assert done["undo_command"].count("--pid") == 2
    assert "done, as entries" in layer.run(*done["undo_command"].split()[1:]).stdout
    assert list(layer.mountpoint.iterdir()) == []


def test_the_console_listens_elsewhere_only_by_tls(
    layer: Layer, processes: ConsoleProcesses, tmp_path: Path
) -> None:
    refused = processes.run("console", "--listen", "0.0.0.0:0", check=False)
    assert refused.returncode == 2
    assert "listen on 127.0.0.1, or give --tls" in refused.stderr
    taken = processes.run("console", "--listen", processes.url[7:-1], check=False)
    assert (taken.returncode, "cannot listen on" in taken.stderr) == (38, True)
    taken = run(
        ("agent", "--listen", processes.url[7:-1]),
        {**processes.environment, "FUSEJOURNAL_STATE_ROOT": str(tmp_path / "other")},
        check=False,
        timeout=60,
    )
    assert (taken.returncode, "something listens there already" in taken.stderr) == (38, True)
    second = processes.run("agent", check=False)
    assert (second.returncode, "runs here already" in second.stderr) == (1, True)
    other = ConsoleProcesses(layer, layer.base / "said")
    try:
        other.start_console("--tls")
        assert other.url.startswith("https://")
        with Browser(other, "viewer") as browser:
            cookies = list(browser.client.cookies.jar)
            assert cookies
            assert all(one.secure and one.name.startswith("__Host-") for one in cookies)
            processes.run("console", "user", "remove", "anna")
            assert browser.client.get("/api/overview").status_code == 401
        assert processes.run("console", "agents").stdout.startswith("hall ")
        assert "console" in processes.run("agent", "consoles").stdout
    finally:
        other.kill()
