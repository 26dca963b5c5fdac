"""A mirror becomes the primary: with real layers in network namespaces, the old primary lost in
each way, and the new one killed at each step."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusejournal.node.state_dir import load_state
from fusejournal.roles.role import Role
from tests.support.losses import begin_another_boot
from tests.support.mirrors import CONFIG, await_level, check_equal, nodes, started, wait_for
from tests.support.promotions import (
    BLOCKING,
    fsync_directory,
    promote,
    serves,
    takes_nothing,
    three,
    work,
)
from tests.support.trees import fids

pytestmark = pytest.mark.mount


def test_a_mirror_takes_the_place_of_a_lost_primary(tmp_path: Path) -> None:
    """All that was acknowledged is there, with its ids; the lost one takes no change when it is
    back."""
    with started(tmp_path, None) as (primary, mirror):
        work(primary, "before")
        await_level(primary, mirror)
        numbers = fids(primary.mountpoint)
        plan = json.loads(
            mirror.run("promote", str(mirror.state), "--json", "--dry-run", check=False).stdout
        )
        assert plan["objections"] == ["peer primary is a primary, and answers: stop it there first"]
        refused = mirror.run("promote", str(mirror.state), check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (32, 1)
        assert mirror.ask()["role"] == "mirror"

        primary.kill()
        refused = mirror.run("promote", str(mirror.state), check=False)
        assert refused.returncode == 32
        assert "make sure that it is off" in refused.stderr
        held = mirror.head_seq()
        plan = promote(mirror, "--force")
        assert (plan["promoted"], plan["held_seq"], plan["missing"]) == (True, held, 0)
        assert serves(mirror)
        assert mirror.ask()["replication"]["reign"] == plan["reign"]
        assert fids(mirror.mountpoint) == numbers
        work(mirror, "after")
        assert load_state(mirror.state).role is Role.PRIMARY

        primary.detach()
        primary.start()
        wait_for(lambda: primary.ask()["state"] == "read-only", primary.ask)
        assert takes_nothing(primary)
        assert "fenced" in [one["kind"] for one in primary.ask()["troubles"]]
        assert serves(mirror)

        # A restart asks no peer which role it has.
        mirror.kill()
        mirror.detach()
        mirror.start()
        assert serves(mirror)
        assert fids(mirror.mountpoint).items() >= numbers.items()


def test_of_three_nodes_two_need_nobodys_word(tmp_path: Path) -> None:
    """A primary that waits for a mirror and for nothing less can acknowledge nothing once both have
    given their vote; the other mirror follows by itself."""
    with three(tmp_path, BLOCKING) as (primary, one, other):
        primary.kill()
        plan = promote(one)
        assert (plan["words"], plan["words_needed"], plan["objections"]) == (2, 2, [])
        assert serves(one)
        one.await_peer(other, "streaming")
        work(one, "after")  # which waits for the other
        check_equal(one, other)
        primary.detach()
        primary.start()
        assert takes_nothing(primary)


def test_who_holds_less_is_refused(tmp_path: Path) -> None:
    with three(tmp_path, BLOCKING) as (primary, one, other):
        other.host.cut()
        work(primary, "more")
        await_level(primary, one)
        primary.kill()
        primary.host.cut()  # or its kernel would still send what it has
        other.host.mend()
        refused = other.run("promote", str(other.state), check=False)
        assert refused.returncode == 32
        assert "promote mirror1" in refused.stderr
        assert other.ask()["role"] == "mirror"
        assert promote(one)["words"] == 2
        check_equal(one, other)


def test_a_primary_that_is_cut_off_acknowledges_nothing_more(tmp_path: Path) -> None:
    """It goes on, without a word of the promotion; what waits for a mirror there fails or waits,
    and it takes no change once it hears."""
    with three(tmp_path, BLOCKING) as (primary, one, other):
        primary.host.cut()
        promote(one)
        assert serves(one)
        (primary.mountpoint / "alone").mkdir()  # (which waits for no mirror in this mode)
        with ThreadPoolExecutor() as pool:
            fsync = pool.submit(fsync_directory, primary.mountpoint / "alone")
            time.sleep(2)
            assert not fsync.done()
            primary.host.mend()
            assert isinstance(fsync.exception(30), OSError)
        assert takes_nothing(primary)
        work(one, "after")
        check_equal(one, other)


def test_a_primary_whose_mirrors_are_gone_for_good_begins_when_a_person_says_so(
    tmp_path: Path,
) -> None:
    """After a reboot its start waits for their votes, and names the way out."""
    with started(tmp_path, None, config=BLOCKING) as (primary, mirror):
        primary.await_peer(mirror, "streaming")
        work(primary, "before")
        primary.kill()
        mirror.kill()
        primary.detach()
        begin_another_boot(primary.state)
        primary.start(wait=False)
        line = re.compile(r'mount again with (begin_alone = "2/\w+") under \[replication\]')
        wait_for(lambda: line.search(primary.words()), primary.words)
        found = line.search(primary.words())
        assert found is not None
        one = json.loads(primary.run("status", str(primary.state), "--json").stdout)
        assert (one["state"], one["pid"]) == ("starting", primary.pid)
        assert found[0] in " ".join(one["degraded"])
        primary.kill()
        primary.reconfigure(CONFIG + found[1] + "\n")  # and from now on nothing waits for a mirror
        primary.start()
        assert serves(primary)
        assert primary.ask()["epoch"] == 2
        work(primary, "alone")


STEPS = ("promote.vote", "promote.votes", "promote.applied", "role.closed", "role.changed")


@pytest.mark.parametrize("step", STEPS)
def test_a_promotion_that_is_killed_is_done_or_not(tmp_path: Path, step: str) -> None:
    """Killed at any step, the next start of the node has the one role or the other, all entries,
    and the promotion can be given again."""
    with nodes(tmp_path, None) as (primary, mirror):
        primary.start()
        mirror.start(fault=f"{step}:1:kill")
        work(primary, "before")
        await_level(primary, mirror)
        numbers = fids(primary.mountpoint)
        primary.kill()
        mirror.run("promote", str(mirror.state), "--force", check=False)
        assert not mirror.is_alive()
        mirror.detach()
        mirror.start()
        role = mirror.ask()["role"]
        assert fids(mirror.mountpoint) == numbers
        if role == "mirror":
            assert takes_nothing(mirror)
            promote(mirror, "--force")
        wait_for(lambda: serves(mirror), mirror.ask)
        work(mirror, "after")
        assert mirror.ask()["replication"]["reign"].startswith("1024/")
