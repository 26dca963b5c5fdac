"""Programs that a node runs before its role changes and after, with real layers in network
namespaces: the one that is shipped, and others that fail, are interrupted, or fence."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hook_programs import HookPrograms, with_hooks
from tests.support.mirrors import Node, await_level, wait_for
from tests.support.network import Host, network
from tests.support.promotions import demote, promote, serves, work

pytestmark = pytest.mark.mount


def test_a_promotion_that_is_interrupted_has_the_hooks_undone(hooks: HookPrograms) -> None:
    """Those before it may have stopped what others are served by, too."""
    with hooks.pair(before=hooks.stops, after=hooks.starts) as (primary, mirror):
        primary.kill()
        wait_for(hooks.brought_back.exists, mirror.ask)
        command = mirror.command("promote", str(mirror.state), "--force")
        with subprocess.Popen(command, env=mirror.environment) as asking:
            wait_for(hooks.taken.exists, mirror.ask)
            asking.send_signal(signal.SIGINT)
            assert asking.wait(timeout=10) == 130
        wait_for(hooks.brought_back.exists, mirror.ask)
        assert mirror.ask()["role"] == "mirror"


@pytest.mark.parametrize("command", ["promote", "demote", "handoff"])
def test_a_change_that_ends_with_the_process_has_the_hooks_undone(
    hooks: HookPrograms, command: str
) -> None:
    """By SIGTERM, as a service is stopped: what serves others, too, is not left stopped."""
    on = "mirror" if command == "promote" else "primary"
    with hooks.pair(on=on, before=hooks.stops, after=hooks.starts) as (primary, mirror):
        node = mirror if command == "promote" else primary
        if command == "promote":
            primary.kill()
        wait_for(hooks.brought_back.exists, node.ask)
        words = {"promote": ("--force",), "demote": (), "handoff": (mirror.name,)}[command]
        line = node.command(command, str(node.state), *words)
        with subprocess.Popen(line, env=node.environment, stderr=subprocess.DEVNULL) as asking:
            wait_for(hooks.taken.exists, node.ask)
            os.kill(node.pid, signal.SIGTERM)
            node.wait()
            asking.kill()  # it may wait for the next start
        # Whatever it is: it serves nothing.
        assert hooks.brought_back.read_text() == "mirror\n"


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
    config = with_hooks(before=tool, after=tool)
    with network() as net:
        client = net.host()
        with (
            Node(tmp_path / "primary", net.host(), "primary", config) as primary,
            Node(tmp_path / "mirror", net.host(), "mirror", config) as mirror,
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


def test_a_program_makes_sure_that_the_primary_is_off(tmp_path: Path, hooks: HookPrograms) -> None:
    """Then no admin need force the promotion; where it cannot, nothing is promoted."""
    verdict, asked = tmp_path / "verdict", tmp_path / "asked"
    is_off = hooks.program("is-off", f'echo "$FUSEJOURNAL_PEER" >>{asked}', f"test -e {verdict}")
    with hooks.pair(fence=is_off) as (primary, mirror):
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


def test_a_hook_that_fails_stops_a_demotion(hooks: HookPrograms) -> None:
    with hooks.pair(before="/bin/false") as (primary, mirror):
        refused = primary.run("demote", str(primary.state), check=False)
        assert refused.returncode == 36
        work(primary, "after")
        await_level(primary, mirror)
        primary.kill()
        promote(mirror, "--force")  # which says so, and goes on
        assert serves(mirror)
        assert "/bin/false" in mirror.words()
