"""The pause of NFS clients while the service moves, in the guest: what 'run roles --nfs' measures.

Two servers with a network, nfsd and daemons of their own, a floating address, and a client that
makes, writes and flushes a file again and again: tests/support/guest/moves.py. The pause is the
longest that one of these took. It includes the start of each hook, of which there are five on the
way; and the guest has one processor, on which all machines are."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.guest.client import Person
from tests.support.guest.machines import Server
from tests.support.guest.moves import Moving, board, move, moving, work
from tests.support.guest.server import make_disk, wait_until
from tests.support.mirrors import await_level

_AROUND_SECONDS = 2.0
_FOLLOWS_SECONDS = 120.0


def _pause_of(one: Moving, number: int, moves: Any) -> float:
    directory, stop = one.client / f"work{number}", one.east.base / f"stop{number}"
    directory.mkdir()
    with Person() as client:
        client.begin(work, directory, stop)
        time.sleep(_AROUND_SECONDS)
        moves()
        time.sleep(_AROUND_SECONDS)
        stop.touch()
        wait_until("the client", lambda: not client.is_busy(), _FOLLOWS_SECONDS)
        pause_seconds: float = client.end()
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
