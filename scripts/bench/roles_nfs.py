"""The pause of NFS clients while the service moves, in the guest: what 'run roles --nfs' measures.

Two servers with a network, nfsd and daemons of their own, a floating address, and a client that
makes, writes and flushes a file again and again. The pause is the longest that one of these took.
The guest has one processor, on which all machines are, and where a Python program takes seconds to
start.

The timeline of a move has what the layers' logs, the guest's kernel and the client say of it, in
the order of time. As it was found (2026-11, Linux 6.1 in the guest, on a busy machine):

  handoff    3.6 to 4.5 s with NFSv4.2, 5.1 to 5.8 with NFSv3 (a Python program for each hook, and
             clients that find out by themselves: 17 to 20, and 29 to 60): 0.3 to 0.6 until nfsd
             rests and the clients' names are kept; 0.6 until the new primary is live; 1.1 to 1.6
             for exportfs and rpc.nfsd; 0.2 to 0.5 for the address; at once the client connects
             anew; and then its first change waits a second for a mirror, as the configuration has
             it, because the old primary takes longer to come back.
  promotion  22 s with either: 5 for the lost primary to answer, and 5, now 1, for its vote; 1 for
             the fence agent; 2 for the rest, as above; the command's own start, and that of the
             process of the hooks, take what is left."""

import json
import os
import re
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.support.guest.client import Person
from tests.support.guest.machines import Server
from tests.support.guest.moves import Moving, board, move, moving
from tests.support.guest.server import make_disk, sh, wait_until
from tests.support.mirrors import await_level

_AROUND_SECONDS = 2.0
_FOLLOWS_SECONDS = 120.0


_WORK_SECONDS = 0.1
_STEP_SECONDS = 0.2
"""The shortest step of the client that the timeline tells."""
_KERNEL_LINE = re.compile(r"\[ *([0-9.]+)\] (.*(?:nfs|NFS|lockd|RPC|sunrpc).*)")

Event = tuple[float, str, str]
"""Unix time, who says it, what."""


def work(directory: Path, stop: Path) -> list[Event]:
    """Makes, writes and flushes a file again and again, until *stop* is there. Returns what took
    long: the longest round first, then all slow steps."""
    longest: Event = (0.0, "client", "0.0")
    steps: list[Event] = []
    number = 0
    while not stop.exists():
        path, times = f"{directory}/{number}", [time.time()]
        fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
        times.append(time.time())
        os.write(fd, b"%d" % number)
        os.fsync(fd)
        times.append(time.time())
        os.close(fd)
        times.append(time.time())
        for name, begun, ended in zip(("open", "fsync", "close"), times, times[1:], strict=False):
            if ended - begun > _STEP_SECONDS:
                steps.append((ended, "client", f"{name} took {ended - begun:.2f} s"))
        if times[-1] - times[0] > float(longest[2]):
            longest = times[0], "client", f"{times[-1] - times[0]}"
        number += 1
        time.sleep(_WORK_SECONDS)
    return [longest, *steps]


def _log_events(name: str, text: str) -> list[Event]:
    """Returns the lines of a layer's log."""
    found = []
    for line in text.splitlines():
        try:
            at = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
        except ValueError:
            continue
        found.append((at, name, line[24:]))
    return found


def _kernel_events() -> list[Event]:
    """Returns what the kernel says of NFS."""
    booted = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
    matches = map(_KERNEL_LINE.match, sh("dmesg").splitlines())
    return [(booted + float(match[1]), "kernel", match[2]) for match in matches if match]


def _show(events: list[Event], begun: float, ended: float) -> None:
    print("\n   s")
    for at, who, what in sorted(events):
        if begun - _AROUND_SECONDS / 2 <= at <= ended + _AROUND_SECONDS:
            print(f"{at - begun:6.2f} {who:7}{what[:150]}")
    sys.stdout.flush()


def _pause_of(one: Moving, number: int, moves: Any) -> float:
    directory, stop = one.client / f"work{number}", one.east.base / f"stop{number}"
    directory.mkdir()
    with Person() as client:
        client.begin(work, directory, stop)
        time.sleep(_AROUND_SECONDS)
        given = time.time()
        moves()
        told = time.time()
        time.sleep(_AROUND_SECONDS)
        stop.touch()
        wait_until("the client", lambda: not client.is_busy(), _FOLLOWS_SECONDS)
        (began, _, pause), *steps = client.end()
    events = [*steps, *_kernel_events(), (given, "admin", "gives the command")]
    events += [(told, "admin", "sees its end"), (began, "client", "begins what takes longest")]
    for server in (one.east, one.west):
        events += _log_events(server.name, server.words())
    pause_seconds = float(pause)
    _show(events, min(given, began), max(told, began + pause_seconds))
    return pause_seconds


def _await_pair(primary: Server, mirror: Server) -> None:
    wait_until("the old one", lambda: mirror.ask()["role"] == "mirror", _FOLLOWS_SECONDS)
    primary.await_peer(mirror, "streaming", _FOLLOWS_SECONDS)
    await_level(primary, mirror)


def _handoffs(base: Path, version: str, rounds: int) -> list[float]:
    pauses = []
    with moving(base, version) as one:
        source, target = one.east, one.west
        for number in range(rounds):
            pauses.append(
                _pause_of(
                    one,
                    number,
                    lambda: source.run("handoff", source.name, target.name, "--timeout", "60"),  # noqa: B023
                )
            )
            source, target = target, source
            _await_pair(source, target)
    return pauses


def _promotions(base: Path, version: str, rounds: int) -> list[float]:
    pauses = []
    for number in range(rounds):
        with moving(base / str(number), version) as one, board(one, base / str(number)):
            time.sleep(_AROUND_SECONDS)  # the clients' names come to the mirror
            pauses.append(_pause_of(one, 0, lambda: move(one, "power")))
    return pauses


def main() -> None:
    """Measure what the options, JSON, ask for; the pauses in seconds go to /out/result.json."""
    options = json.loads(sys.argv[1])
    top = Path("/srv/ext4")
    make_disk("ext4", Path("/dev/ubda"), top)
    result = {}
    for version in options["versions"]:
        for name in options["names"]:
            measure = _handoffs if name == "handoff" else _promotions
            result[f"{name} {version}"] = measure(
                top / f"{name}-{version}", version, options["rounds"]
            )
            print(f"{name} NFSv{version}: {result[f'{name} {version}']}", flush=True)
    Path("/out/result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
