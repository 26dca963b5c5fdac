"""A mirror becomes the primary: with real layers in network namespaces, the old primary lost in
each way, and the new one killed at each step."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fusejournal.node.state_dir import load_state
from fusejournal.replication.peers import PeerBook
from fusejournal.roles.role import Role
from tests.support.losses import begin_another_boot
from tests.support.mirrors import (
    CONFIG,
    PORT,
    Node,
    await_level,
    check_equal,
    know_each_other,
    nodes,
    started,
    wait_for,
)
from tests.support.network import Host, network
from tests.support.trees import fids

pytestmark = pytest.mark.mount

BLOCKING = CONFIG + 'mirrors = 1\non_timeout = "block"\nmirrors_timeout_seconds = 1.0\n'


def work(node: Node, name: str) -> None:
    """Something of each kind, of which the last is on the disk."""
    directory = node.mountpoint / name
    directory.mkdir()
    (directory / "kept").write_text(name)
    (directory / "moved").write_text(name * 100)
    (directory / "moved").rename(directory / "there")
    os.link(directory / "kept", directory / "linked")
    fd = os.open(directory / "kept", os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def promote(node: Node, *options: str) -> dict[str, Any]:
    """Promote *node*, and return the plan."""
    done = node.run("promote", str(node.state), "--json", *options)
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan


def serves(node: Node) -> bool:
    """True if *node* takes changes."""
    status = node.ask()
    return bool(status["role"] == "primary" and status["state"] == "running")


def takes_nothing(node: Node) -> bool:
    try:
        (node.mountpoint / "refused").mkdir()
    except OSError as error:
        return error.errno == errno.EROFS
    return False


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
        assert "fenced" in " ".join(primary.ask()["degraded"])
        assert serves(mirror)

        # A restart asks no peer which role it has.
        mirror.kill()
        mirror.detach()
        mirror.start()
        assert serves(mirror)
        assert fids(mirror.mountpoint).items() >= numbers.items()


def stand_by(one: Node, other: Node) -> None:
    """Two mirrors of one primary, neither of which runs: each is shipped to by the other, should
    that become the primary."""
    for source, sink in ((one, other), (other, one)):
        know_each_other(source, sink, sink.host.address, PORT)
    for source, sink in ((one, other), (other, one)):
        book = PeerBook.load(source.state)
        book.turn_back(sink.name)
        book.save()


@contextmanager
def three(base: Path, config: str) -> Iterator[tuple[Node, Node, Node]]:
    """A primary and two mirrors of it that know each other; all run, and are level."""
    with nodes(base, None, None, config=config) as (primary, one, other):
        stand_by(one, other)
        for node in (primary, one, other):
            node.start(wait=False)
        for node in (primary, one, other):
            node.await_live()
        for mirror in (one, other):
            primary.await_peer(mirror, "streaming")
        work(primary, "before")
        await_level(primary, one, other)
        yield primary, one, other


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


def fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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


def demote(node: Node, *options: str) -> None:
    node.run("demote", str(node.state), *options)


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


def test_a_demotion_that_is_interrupted_has_changes_taken_again(tmp_path: Path) -> None:
    hooks = f"[hooks]\nafter = ['/usr/bin/touch {tmp_path}/brought-back']\n"
    with nodes(tmp_path, None, config=CONFIG + hooks) as (primary, mirror):
        primary.start()
        mirror.start()
        work(primary, "first")
        await_level(primary, mirror)
        mirror.kill()
        wait_for(lambda: primary.peer(mirror)["state"] == "connecting", primary.ask)
        brought_back = tmp_path / "brought-back"
        wait_for(brought_back.exists, primary.ask)
        brought_back.unlink()
        command = primary.command("demote", str(primary.state), "--timeout", "100")
        with subprocess.Popen(command, env=primary.environment) as asking:
            wait_for(lambda: primary.ask()["state"] == "read-only", primary.ask)
            asking.send_signal(signal.SIGINT)
            assert asking.wait(timeout=10) == 130
        wait_for(brought_back.exists, primary.ask)
        work(primary, "second")
        assert serves(primary)


def test_a_promotion_that_is_interrupted_has_the_hooks_undone(tmp_path: Path) -> None:
    """Those before it may have stopped what others are served by, too."""
    taken, brought_back = tmp_path / "taken", tmp_path / "brought-back"
    program = tmp_path / "stops-what-runs"
    program.write_text(f"#!/bin/sh\nrm {brought_back}\ntouch {taken}\nexec sleep 100\n")
    program.chmod(0o755)
    hooks = f"[hooks]\nbefore = ['{program}']\nafter = ['/usr/bin/touch {brought_back}']\n"
    with nodes(tmp_path, None, config=CONFIG + hooks) as (primary, mirror):
        primary.start()
        mirror.start()
        work(primary, "first")
        await_level(primary, mirror)
        primary.kill()
        wait_for(brought_back.exists, mirror.ask)
        command = mirror.command("promote", str(mirror.state), "--force")
        with subprocess.Popen(command, env=mirror.environment) as asking:
            wait_for(taken.exists, mirror.ask)
            asking.send_signal(signal.SIGINT)
            assert asking.wait(timeout=10) == 130
        wait_for(brought_back.exists, mirror.ask)
        assert mirror.ask()["role"] == "mirror"


@pytest.mark.parametrize("command", ["promote", "demote", "handoff"])
def test_a_change_that_ends_with_the_process_has_the_hooks_undone(
    tmp_path: Path, command: str
) -> None:
    """By SIGTERM, as a service is stopped: what serves others, too, is not left stopped."""
    taken, brought_back = tmp_path / "taken", tmp_path / "brought-back"
    before, after = tmp_path / "stops-what-runs", tmp_path / "starts-it"
    before.write_text(f"#!/bin/sh\nrm {brought_back}\ntouch {taken}\nexec sleep 100\n")
    after.write_text(f'#!/bin/sh\necho "$FUSEJOURNAL_ROLE" >{brought_back}\n')
    for program in (before, after):
        program.chmod(0o755)
    hooks = f"[hooks]\nbefore = ['{before}']\nafter = ['{after}']\n"
    with nodes(tmp_path, None) as (primary, mirror):
        node = mirror if command == "promote" else primary
        node.reconfigure(CONFIG + hooks)
        primary.start()
        mirror.start()
        work(primary, "first")
        await_level(primary, mirror)
        if command == "promote":
            primary.kill()
        wait_for(brought_back.exists, node.ask)
        words = {"promote": ("--force",), "demote": (), "handoff": (mirror.name,)}[command]
        line = node.command(command, str(node.state), *words)
        with subprocess.Popen(line, env=node.environment, stderr=subprocess.DEVNULL) as asking:
            wait_for(taken.exists, node.ask)
            os.kill(node.pid, signal.SIGTERM)
            node.wait()
            asking.kill()  # it may wait for the next start
        # Whatever it is: it serves nothing.
        assert brought_back.read_text() == "mirror\n"


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


FLOATING = "10.77.0.100"


def hardware_of(host: Host, address: str) -> str:
    """The hardware address that *host* has for *address*."""
    known = subprocess.run(
        ["ip", "-n", host.namespace, "neigh", "show", address], capture_output=True, text=True
    ).stdout.split()
    return known[known.index("lladdr") + 1] if "lladdr" in known else ""


def look_for(host: Host, address: str) -> None:
    """Have *host* find out where *address* is, by sending something there."""
    program = f"import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('{address}', 9))"
    subprocess.run([*host.prefix, sys.executable, "-c", program], check=True)


def own_hardware(node: Node) -> str:
    shown = subprocess.run(
        ["ip", "-n", node.host.namespace, "-json", "link", "show", "eth0"],
        capture_output=True,
        text=True,
    ).stdout
    return str(json.loads(shown)[0]["address"])


def has_floating(node: Node) -> bool:
    shown = subprocess.run(
        ["ip", "-n", node.host.namespace, "address", "show", "dev", "eth0"],
        capture_output=True,
        text=True,
    ).stdout
    return f"{FLOATING}/" in shown


def test_the_address_goes_where_the_primary_is(tmp_path: Path) -> None:
    """By the hook that is shipped: clients need not ask where it is, they are told."""
    tool = f"{sys.executable} -P -m fusejournal hook address {FLOATING}/24 eth0"
    hooks = f"[hooks]\nbefore = ['{tool}']\nafter = ['{tool}']\n"
    with network() as net:
        client = net.host()
        with (
            Node(tmp_path / "primary", net.host(), "primary", CONFIG + hooks) as primary,
            Node(tmp_path / "mirror", net.host(), "mirror", CONFIG + hooks) as mirror,
        ):
            primary.ships_to(mirror)
            primary.start()
            mirror.start()
            wait_for(lambda: has_floating(primary), primary.words)
            assert not has_floating(mirror)
            work(primary, "before")
            await_level(primary, mirror)
            look_for(client, FLOATING)
            wait_for(
                lambda: hardware_of(client, FLOATING) == own_hardware(primary),
                lambda: hardware_of(client, FLOATING),
            )

            demote(primary)
            assert not has_floating(primary)
            promote(mirror)
            wait_for(lambda: has_floating(mirror), mirror.words)
            wait_for(
                lambda: hardware_of(client, FLOATING) == own_hardware(mirror),
                lambda: hardware_of(client, FLOATING),
            )


def test_a_program_makes_sure_that_the_primary_is_off(tmp_path: Path) -> None:
    """Then no admin need force the promotion; where it cannot, nothing is promoted."""
    verdict, asked = tmp_path / "verdict", tmp_path / "asked"
    program = tmp_path / "is-off"
    program.write_text(f'#!/bin/sh\necho "$FUSEJOURNAL_PEER" >>{asked}\ntest -e {verdict}\n')
    program.chmod(0o755)
    hooks = f"[hooks]\nfence = '{program}'\n"
    with nodes(tmp_path, None, config=CONFIG + hooks) as (primary, mirror):
        primary.start()
        mirror.start()
        work(primary, "before")
        await_level(primary, mirror)
        primary.kill()
        refused = mirror.run("promote", str(mirror.state), check=False)
        assert refused.returncode == 36
        assert "ended with status 1" in refused.stderr
        assert mirror.ask()["role"] == "mirror"
        verdict.touch()
        asked.unlink()
        promote(mirror)
        assert serves(mirror)
        # Once a command; by the name that the admin gave it here, not by that which it has itself.
        assert asked.read_text() == "primary\n"


def test_a_hook_that_fails_stops_a_demotion(tmp_path: Path) -> None:
    with nodes(tmp_path, None, config=CONFIG + "[hooks]\nbefore = ['/bin/false']\n") as (
        primary,
        mirror,
    ):
        primary.start()
        mirror.start()
        work(primary, "before")
        await_level(primary, mirror)
        refused = primary.run("demote", str(primary.state), check=False)
        assert refused.returncode == 36
        work(primary, "after")
        await_level(primary, mirror)
        primary.kill()
        promote(mirror, "--force")  # which says so, and goes on
        assert serves(mirror)
        assert "/bin/false" in mirror.words()
