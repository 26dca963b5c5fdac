"""The pause of those who write while the service moves to a mirror, without NFS; or, with --nfs,
that of NFS clients of a floating address.

Primary and mirror are on this machine, and talk TLS over the loopback. A client makes and removes
files at a steady rate, where the service is: when it is refused there it tries the other node's
mount, again and again. The pause is the time between the last change that was done at the one and
the first that is done at the other.

handoff     'fusejournal handoff', to and fro.
promotion   The primary is killed, and at once 'fusejournal promote --force' given on the mirror;
            the killed one then comes back by 'rejoin'.

--nfs: in a guest (tests/support/guest), with the hooks that are shipped: see roles_nfs.py. There
the promotion comes after a loss of power, and a fence agent says that the primary is off."""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from scripts.bench.replication import Couple, Node, couple
from tests.support.guest.machine import Guest, GuestError, unavailable
from tests.support.mirrors import wait_for

_RETRY_SECONDS = 0.001
_BEHIND_SECONDS = 0.01
"""A client that is later than this does not make up for it."""
_BEFORE_SECONDS = 1.0
_DISK_MIB = 8 << 10
_GUEST_SECONDS = 600.0
"""A round of all that is measured with NFS."""


def _write(roots: list[str], rate: int, is_over: Any, told: Any) -> None:
    """Change something *rate* times a second, below the first of *roots* or where it is taken,
    until *is_over*. Tells the longest pause at a move, the node it ended at, and the rate."""
    at = number = 0
    begun = last = due = time.monotonic()
    pause = 0.0
    while not is_over.is_set():
        name = f"{roots[at]}/bench{number // 2}"
        try:
            if number % 2:
                os.unlink(name)
            else:
                os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except OSError:
            at, number = 1 - at, (number // 2 + 1) * 2
            time.sleep(_RETRY_SECONDS)
            continue
        now = time.monotonic()
        if at == 1 and not pause:
            pause = now - last
        last, number = now, number + 1
        due = max(due + 1 / rate, now - _BEHIND_SECONDS)
        time.sleep(max(0.0, due - now))
    told.put((pause, number / (time.monotonic() - begun)))


def pause_of(old: Node, new: Node, move: Callable[[], object], rate: int) -> tuple[float, float]:
    """Returns the pause in seconds while *move* takes the service from *old* to *new*, and how many
    changes a second were done all in all."""
    is_over: Any = multiprocessing.Event()
    told: Any = multiprocessing.Queue()
    roots = [str(old.mountpoint / "work"), str(new.mountpoint / "work")]
    client = multiprocessing.Process(target=_write, args=(roots, rate, is_over, told))
    client.start()
    time.sleep(_BEFORE_SECONDS)
    move()
    time.sleep(_BEFORE_SECONDS)
    is_over.set()
    found: tuple[float, float] = told.get()
    client.join()
    return found


def _await_pair(old: Node, new: Node) -> None:
    """Return when *new* ships to *old*, which shows all there is."""
    Couple(new, old).await_level()

    def is_streaming() -> bool:
        peers = new.ask()["replication"]["peers"]
        return any(peer["name"] == old.name and peer["state"] == "streaming" for peer in peers)

    wait_for(is_streaming, new.words, 60)


def _hand_over(old: Node, new: Node) -> None:
    old.run("handoff", str(old.state), new.name)


def _lose(old: Node, new: Node) -> None:
    old.kill()
    new.run("promote", str(new.state), "--force")


def _bring_back(old: Node, new: Node) -> None:
    """The lost primary becomes a mirror of its successor."""
    old.detach()
    with suppress(Exception):
        old.run("rejoin", str(old.state), "--from", new.name)
    old.start()


def measure(name: str, nodes: Couple, options: argparse.Namespace) -> None:
    """Print the pauses of all rounds of *name*."""
    old, new = nodes if nodes.primary.ask()["role"] == "primary" else reversed(nodes)
    pauses, rates = [], []
    for _ in range(options.rounds):
        move = _hand_over if name == "handoff" else _lose
        pause, rate = pause_of(old, new, lambda: move(old, new), options.rate)  # noqa: B023
        pauses.append(pause)
        rates.append(rate)
        if name == "promotion":
            _bring_back(old, new)
        _await_pair(old, new)
        old, new = new, old
    print(
        f"{name:12}{options.rate:10,}{statistics.median(rates):10,.0f}"
        f"{statistics.median(pauses):11.3f} s{max(pauses):11.3f} s",
        flush=True,
    )


def measure_nfs(options: argparse.Namespace) -> None:
    """Print the pauses of NFS clients."""
    names = [name for name in ("handoff", "promotion") if options.only in (None, name)]
    asked = {"names": names, "versions": ["4.2", "3"], "rounds": options.rounds}
    command = [sys.executable, "-m", "scripts.bench.roles_nfs", json.dumps(asked)]
    with tempfile.TemporaryDirectory(prefix="fusejournal-bench.", dir=options.where) as base:
        out = Path(base) / "out"
        with Guest(command, out, disk_mib=[_DISK_MIB]) as guest:
            end = time.monotonic() + _GUEST_SECONDS * options.rounds
            while guest.is_alive() and time.monotonic() < end:
                time.sleep(0.5)
                guest.nudge()
            if guest.wait(1.0):
                raise GuestError(guest.words())
        result = json.loads((out / "result.json").read_text())
        if options.timeline:
            print((out / "output").read_text())
    print(f"{'median':>30}{'worst':>13}")
    for name, pauses in result.items():
        print(f"{name:17}{statistics.median(pauses):11.1f} s{max(pauses):11.1f} s", flush=True)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="run roles",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--where", default="/dev/shm", help="directory to work in")
    parser.add_argument("--rate", type=int, default=2000, help="changes a second")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", choices=["handoff", "promotion"])
    parser.add_argument("--nfs", action="store_true", help="what NFS clients notice")
    parser.add_argument("--timeline", action="store_true", help="with --nfs: what happened when")
    options = parser.parse_args()
    if options.nfs:
        if (reason := unavailable()) is not None:
            parser.error(reason)
        measure_nfs(options)
        return
    cpus = sorted(os.sched_getaffinity(0))
    with (
        tempfile.TemporaryDirectory(prefix="fusejournal-bench.", dir=options.where) as base,
        couple(Path(base), (cpus[0], cpus[-1])) as nodes,
    ):
        nodes.primary.start()
        nodes.mirror.start()
        (nodes.primary.mountpoint / "work").mkdir()
        nodes.resume()
        print(f"{'ops/s wanted':>22}{'done':>10}{'median':>13}{'worst':>13}", flush=True)
        for name in ("handoff", "promotion"):
            if options.only in (None, name):
                measure(name, nodes, options)


if __name__ == "__main__":
    main()
