"""Two servers with a floating address in the guest, which move the service to each other, and two
clients of theirs."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.guest.machines import Machine, Server, hook, prepare_guest
from tests.support.guest.server import sh, wait_until
from tests.support.mirrors import await_level
from tests.support.network import network

FLOATING = "10.77.0.100"
MOUNTPOINT = Path("/srv/data")
WAYS = ("handoff", "killed", "power")
"""Ways in which the service comes to move: its primary hands it over, its layer is killed, or it
loses its power."""
_FENCES = Path("/etc/fusejournal/fence")
_WORK_SECONDS = 0.1

CONFIG = f"""
[log]
level = "info"
[replication]
mirrors = 1
mirrors_timeout_seconds = 1.0
[hooks]
before = ['{hook("address", FLOATING + "/24", "eth0")}', '{hook("exportfs")}']
after = ['{hook("exportfs")}', '{hook("address", FLOATING + "/24", "eth0")}',
         '{hook("notify", FLOATING + "/24")}']
fence = '{hook("fence", "--timeout", "100")}'
timeout_seconds = 120.0
"""
"""(On a machine that has much to do, a hook takes long to begin.)"""

_BOARD = """#!/bin/sh
while read line; do case $line in action=*) action=${line#*=} ;; dir=*) dir=${line#*=} ;; esac; done
case $action in
  off) touch "$dir/asked" ;;
  status) if test -e "$dir/off"; then exit 2; else exit 0; fi ;;
esac
"""
"""A fence agent, for a board that a thread of the test is."""


class Moving(NamedTuple):
    """Two servers, of which *east* is the primary, and the mounts of their clients."""

    east: Server
    west: Server
    client: Path
    other: Path


@contextmanager
def moving(base: Path, version: str) -> Iterator[Moving]:
    """Both servers and two clients, which mount from the floating address."""
    prepare_guest(FLOATING)
    with ExitStack() as stack:
        net = stack.enter_context(network())
        machines = [
            stack.enter_context(Machine(net.host(), base / "machines" / name, name))
            for name in ("east", "west", "one", "two")
        ]
        east, west = (
            stack.enter_context(Server(machine, base / machine.name, MOUNTPOINT, role, CONFIG))
            for machine, role in zip(machines, ("primary", "mirror"), strict=False)
        )
        east.ships_to(west)
        for server in (east, west):
            server.machine.start_server_services()
            server.start(wait=False)
        east.await_live()
        west.await_live()
        east.machine.sh("touch", MOUNTPOINT / "first")
        await_level(east, west)
        for server in (east, west):
            server.run("export", server.name, "10.77.0.0/24", "--no-root-squash", "--write")
        wait_until("the address", lambda: FLOATING in east.machine.sh("ip", "addr"))
        clients = []
        for machine in machines[2:]:
            machine.start_client_services()
            mount = machine.nfs_mount(
                version, f"{FLOATING}:{MOUNTPOINT}", Path("/nfs") / base.name / machine.name
            )
            clients.append(stack.enter_context(mount))
        try:
            yield Moving(east, west, *clients)
        except BaseException:
            print("--- east", east.words(), "--- west", west.words(), "---", sep="\n")
            print(sh("dmesg")[-2000:])
            raise


@contextmanager
def board(one: Moving, base: Path) -> Iterator[None]:
    """A management board by which west turns east off."""
    agent = base / "fence_board"
    agent.write_text(_BOARD)
    agent.chmod(0o755)
    _FENCES.mkdir(parents=True, exist_ok=True)
    (_FENCES / "east.conf").write_text(f"agent = {agent}\ndir = {base}\n")
    (_FENCES / "east.conf").chmod(0o600)
    ended = threading.Event()

    def serve() -> None:
        while not ended.wait(0.05):
            if (base / "asked").exists() and not (base / "off").exists():
                one.east.machine.cut_power()
                (base / "off").touch()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def move(one: Moving, way: str) -> None:
    """Have the service move from east to west, by one of :data:`WAYS`."""
    if way == "handoff":
        one.east.run("handoff", "east", "west", "--timeout", "60")
        return
    if way == "killed":
        one.east.kill()
    else:
        one.east.machine.cut_power()
    # No admin forces it: the board says that the old primary is off.
    one.west.run("promote", "west")


# -- a client --------------------------------------------------------------------------------------


def work(directory: Path, stop: Path) -> float:
    """Makes, writes and flushes a file again and again, until *stop* is there. Returns the longest
    that one took, in seconds."""
    longest = 0.0
    number = 0
    while not stop.exists():
        began = time.monotonic()
        with open(directory / f"{number}", "wb", buffering=0) as file:
            file.write(b"%d" % number)
            os.fsync(file.fileno())
        longest = max(longest, time.monotonic() - began)
        number += 1
        time.sleep(_WORK_SECONDS)
    return longest
