"""Versions, restore in place, and changes of the primary by way of the console, with an agent on
each of two nodes."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_console import Browser
from tests.support.console_processes import ConsoleProcesses, console_processes
from tests.support.mirrors import Node, await_level, check_equal, started, wait_for
from tests.support.trees import difference, image

pytestmark = pytest.mark.mount


class _Pair:
    """A primary and a mirror, an agent for each, and a console that is paired with both: each agent
    has its node's name."""

    def __init__(self, stack: ExitStack, base: Path) -> None:
        self.nodes = stack.enter_context(started(base, None))
        first, second = self.nodes
        # The second listens for the first, too, and so can hand over back.
        self.console = stack.enter_context(console_processes(first, base / "said", first.name))
        (base / "said2").mkdir()
        self.other = ConsoleProcesses(second, base / "said2")
        stack.callback(self.other.kill)
        self.other.start_agent()
        self.other.pair(second.name, self.console)
        self.browser = stack.enter_context(Browser(self.console, "admin"))

    def job(self, node: Node, **fields: Any) -> dict[str, Any]:
        """Returns a job once it is planned, or at its end."""
        url = f"/api/agents/{node.name}/jobs"
        job = self.browser.post(url, volume=node.name, **fields)
        return self.browser.await_job(f"{url}/{job['id']}", lambda job: not job["is_running"])

    def do(self, node: Node, job: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """Returns the job at its end."""
        url = f"/api/agents/{node.name}/jobs/{job['id']}"
        self.browser.post(url, order="do", **fields)
        return self.browser.await_job(url, lambda job: not job["is_running"])

    def standing(self, node: Node) -> dict[str, Any]:
        """Returns how a node stands."""
        found: dict[str, Any] = self.browser.get(
            f"/api/agents/{node.name}/volumes/{node.name}/standing"
        )
        return found


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[_Pair]:
    with ExitStack() as stack:
        yield _Pair(stack, tmp_path)


def test_recovery_in_place_and_changes_of_the_primary(pair: _Pair) -> None:
    first, second = pair.nodes
    tree = first.mountpoint / "project"
    (tree / "deep").mkdir(parents=True)
    for number in range(20):
        (tree / f"deep/file-{number}").write_text(f"content {number}")
    was = image(tree)
    first.run("version", "store", "init", str(first.state), "--store", str(first.base / "store"))
    made = pair.job(first, kind="version-create", name="kept")
    assert (made["state"], made["is_new"]) == ("done", True), made["words"]
    for number in range(10):
        (tree / f"deep/file-{number}").write_text("encrypted")
    shutil.rmtree(tree / "deep", ignore_errors=True)
    planned = pair.job(first, kind="in-place", path="project", version="kept")
    assert (planned["state"], planned["change_count"]) == ("planned", 21), planned["words"]
    (tree / "other").write_text("it changes meanwhile")
    again = pair.do(first, planned)
    assert (again["state"], "look at the new one" in again["words"]) == ("planned", True)
    assert again["change_count"] == 22
    done = pair.do(first, again)
    assert (done["state"], done["words"]) == ("done", "")
    assert difference(was, image(tree)) == ""
    first.run(*done["undo_command"].split()[1:])
    assert [one.name for one in tree.iterdir()] == ["other"]

    before = pair.standing(first)
    assert (before["role"], pair.standing(second)["role"]) == ("primary", "mirror")
    planned = pair.job(first, kind="handoff", peer=second.name)
    assert planned["state"] == "planned", planned["words"]
    assert [row[0] for row in planned["rows"]] == ["here", f"peer {second.name}"]
    done = pair.do(first, planned)
    assert (done["state"], f"{second.name} is the primary" in done["words"]) == ("done", True)
    wait_for(lambda: pair.standing(second)["role"] == "primary", lambda: pair.standing(second))
    after = pair.standing(second)
    assert after["reign"] != before["reign"]
    assert pair.standing(first)["fence"] == after["reign"]
    (second.mountpoint / "later").write_text("on the other")
    await_level(second, first)

    # A primary is there: a promotion is refused, and says why, before anything is done.
    planned = pair.job(first, kind="promote")
    assert planned["state"] == "planned"
    assert "primary" in planned["refusal"]
    assert {"reign", "holds", "lost", "votes"} <= {row[0] for row in planned["rows"]}
    refused = pair.do(first, planned, confirm=first.name)
    assert (refused["state"], "not promoted" in refused["words"]) == ("failed", True)
    planned = pair.job(second, kind="demote")
    answer = pair.browser.client.post(
        f"/api/agents/{second.name}/jobs/{planned['id']}", json={"order": "do"}
    )
    assert (answer.status_code, "confirm it" in answer.text) == (400, True)
    demoted = pair.do(second, planned, confirm=second.name)
    assert (demoted["state"], "is a mirror now" in demoted["words"]) == ("done", True)
    promoted = pair.do(first, pair.job(first, kind="promote"), confirm=first.name)
    assert (promoted["state"], "is the primary" in promoted["words"]) == ("done", True)
    check_equal(first, second)
    lines = pair.browser.get("/api/audit")["lines"]
    told = [line for line in lines if line["what"] == "job-create" and line["kind"] == "promote"]
    assert {line["user"] for line in told} == {"anna"}
