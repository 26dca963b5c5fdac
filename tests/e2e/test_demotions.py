"""A primary becomes a mirror and comes back: with real layers in network namespaces, interrupted
and killed at each step."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.hook_programs import HookPrograms
from tests.support.mirrors import await_level, check_equal, nodes, started, wait_for
from tests.support.promotions import demote, promote, serves, takes_nothing, work
from tests.support.trees import fids

pytestmark = pytest.mark.mount


def test_the_service_moves_and_comes_back(tmp_path: Path) -> None:
    """By two commands, without force: the node that is demoted gives its vote, and follows by
    itself. The journals stay one."""
    with started(tmp_path, None) as (primary, mirror):
        work(primary, "first")
        numbers = fids(primary.mountpoint)
        demote(primary)
        assert takes_nothing(primary)
        assert mirror.ask()["role"] == "mirror"
        plan = promote(mirror)
        assert (plan["words"], plan["words_needed"], plan["missing"]) == (2, 2, 0)
        assert fids(mirror.mountpoint) == numbers
        work(mirror, "second")
        mirror.await_peer(primary, "streaming")
        check_equal(mirror, primary)

        demote(mirror)
        promote(primary)
        work(primary, "third")
        primary.await_peer(mirror, "streaming")
        check_equal(primary, mirror)
        assert primary.ask()["replication"]["reign"].startswith("3/")
        for node in (primary, mirror):
            node.stop()
            node.start()
        primary.await_peer(mirror, "streaming")
        check_equal(primary, mirror)


def test_a_primary_goes_on_where_nobody_has_what_it_has(tmp_path: Path) -> None:
    with started(tmp_path, None) as (primary, mirror):
        work(primary, "first")
        await_level(primary, mirror)
        mirror.kill()
        wait_for(lambda: primary.peer(mirror)["state"] == "connecting", primary.ask)
        refused = primary.run("demote", str(primary.state), "--timeout", "0.5", check=False)
        assert refused.returncode == 33
        assert "no mirror is connected" in refused.stderr
        work(primary, "second")
        demote(primary, "--timeout", "0", "--force")
        assert takes_nothing(primary)


def test_a_demotion_that_is_interrupted_has_changes_taken_again(hooks: HookPrograms) -> None:
    with hooks.pair(after=hooks.starts) as (primary, mirror):
        mirror.kill()
        wait_for(lambda: primary.peer(mirror)["state"] == "connecting", primary.ask)
        wait_for(hooks.brought_back.exists, primary.ask)
        hooks.brought_back.unlink()
        command = primary.command("demote", str(primary.state), "--timeout", "100")
        with subprocess.Popen(command, env=primary.environment) as asking:
            wait_for(lambda: primary.ask()["state"] == "read-only", primary.ask)
            asking.send_signal(signal.SIGINT)
            assert asking.wait(timeout=10) == 130
        wait_for(hooks.brought_back.exists, primary.ask)
        work(primary, "second")
        assert serves(primary)


def test_a_fenced_primary_becomes_a_mirror_of_its_successor(tmp_path: Path) -> None:
    with started(tmp_path, None) as (primary, mirror):
        work(primary, "before")
        await_level(primary, mirror)
        primary.kill()
        promote(mirror, "--force")
        work(mirror, "after")
        primary.detach()
        primary.start()
        wait_for(lambda: primary.ask()["state"] == "read-only", primary.ask)
        demote(primary)
        mirror.resume(primary)
        mirror.await_peer(primary, "streaming")
        check_equal(mirror, primary)


@pytest.mark.parametrize("step", ["demote.drained", "role.closed", "role.changed"])
def test_a_demotion_that_is_killed_is_done_or_not(tmp_path: Path, step: str) -> None:
    with nodes(tmp_path, None) as (primary, mirror):
        mirror.start()
        primary.start(fault=f"{step}:1:kill")
        work(primary, "before")
        await_level(primary, mirror)
        primary.run("demote", str(primary.state), check=False)
        assert not primary.is_alive()
        primary.detach()
        primary.start()
        if primary.ask()["role"] == "primary":
            work(primary, "between")
            primary.await_peer(mirror, "streaming")
            demote(primary)
        promote(mirror)
        work(mirror, "after")
        mirror.await_peer(primary, "streaming")
        check_equal(mirror, primary)
