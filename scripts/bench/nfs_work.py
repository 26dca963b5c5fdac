"""The part of scripts/bench/nfs.py that runs inside the guest: the steps, their rates and their
account. Started as ``python -m scripts.bench.nfs_work OPTIONS`` with a JSON object; leaves
/out/result.json."""

import faulthandler
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from scripts.bench.nfs_exports import FLUSHES, OUT, WAITS, Dentry, Exports, exports
from scripts.bench.nfs_mixed import list_and_stat, mixed
from tests.support.guest.server import drop_caches

SMALL = os.urandom(4096)
LARGE = os.urandom(1 << 20)
_WARM_UP = 40
_TELL_SECONDS = 40
"""The time before the guest is killed."""

# -- one operation each, on file *number* ----------------------------------------------------------

Act = Callable[[Dentry, int], object]


def _open_and(place: Dentry, name: str, flags: int, *data: bytes, fsync: bool = False) -> None:
    fd = os.open(f"{place.directory}/{name}", flags, 0o644)
    for piece in data:
        os.write(fd, piece)
    if fsync:
        os.fsync(fd)
    os.close(fd)


_NEW, _OLD, _END = os.O_CREAT | os.O_WRONLY, os.O_WRONLY, os.O_WRONLY | os.O_APPEND


def read_small(place: Dentry, number: int) -> None:
    fd = os.open(f"{place.directory}/f{number}", os.O_RDONLY)
    assert len(os.read(fd, 8192)) == len(SMALL)
    os.close(fd)


def write_large(mib: int) -> Act:
    return lambda place, _: _open_and(place, f"big{mib}", _NEW, *[LARGE] * mib, fsync=True)


def read_large(mib: int) -> Act:
    def read(place: Dentry, _: int) -> None:
        fd, size = os.open(f"{place.directory}/big{mib}", os.O_RDONLY), 0
        while count := len(os.read(fd, 1 << 20)):
            size += count
        os.close(fd)
        assert size == mib << 20

    return read


def _named(call: Callable[..., object], *letters: str) -> Act:
    """*call* with the paths of the files of these letters, or on one file and with arguments."""
    return lambda place, number: call(*(f"{place.directory}/{word}{number}" for word in letters))


class Step(NamedTuple):
    label: str
    act: Act
    mark: float | None = None
    """The share of the plain export's rate that it should have."""
    unit: str = "op/s"
    amount: int = 1
    """The number of units: MiB of a step, else for each of --count."""
    once: bool = False
    cold: bool = False


META, DATA = 0.3, 0.5
MAKE = [
    Step("create empty", lambda p, n: _open_and(p, f"e{n}", _NEW), META),
    Step("create + write 4 KiB", lambda p, n: _open_and(p, f"f{n}", _NEW, SMALL), META),
    Step("stat", lambda p, n: os.stat(f"{p.asking}/f{n}"), META),
    Step("stat, cold", _named(os.stat, "f"), META, cold=True),
    Step(
        "list + stat, cold",
        lambda p, _: list_and_stat(p.directory),
        META,
        amount=2,
        once=True,
        cold=True,
    ),
    Step("open + read 4 KiB, cold", read_small, DATA, cold=True),
    Step("chmod", _named(partial(os.chmod, mode=0o600), "f"), META),
    Step("utimens", _named(partial(os.utime, ns=(10**9, 10**9)), "f"), META),
    Step("rename", _named(os.rename, "f", "g"), META),
    Step("link", _named(os.link, "g", "h"), META),
    Step("mkdir", _named(os.mkdir, "d"), META),
    Step("symlink", _named(os.symlink, "f", "s"), META),
]
REMOVE = [
    Step("unlink", _named(os.unlink, "e"), META),
    Step("rmdir", _named(os.rmdir, "d"), META),
]
BIG = [
    step
    for mib in (32, 256)
    for step in (
        Step(f"write {mib} MiB + fsync", write_large(mib), DATA, "MiB/s", mib, once=True),
        Step(f"read {mib} MiB, cold", read_large(mib), DATA, "MiB/s", mib, once=True, cold=True),
    )
]
ACCOUNTED = [
    Step("create exclusively", lambda p, n: _open_and(p, f"x{n}", _NEW | os.O_EXCL)),
    *MAKE,
    Step("rename onto a file", _named(os.rename, "e", "h")),
    Step("chown", _named(partial(os.chown, uid=1000, gid=1000), "g")),
    Step("truncate", _named(partial(os.truncate, length=100), "g")),
    Step("append 4 KiB", lambda p, n: _open_and(p, f"g{n}", _END, SMALL)),
    Step("write 4 KiB + fsync", lambda p, n: _open_and(p, f"g{n}", _OLD, SMALL, fsync=True)),
    Step("readlink, cold", _named(os.readlink, "s"), cold=True),
    Step("unlink", _named(os.unlink, "g")),
    REMOVE[1],
    *BIG[:2],
]


def _redo(found: Exports, step: Step) -> None:
    # What was done before would otherwise go on in another side's turn.
    found.rest()
    drop_caches() if step.cold else os.sync()


# -- the table -------------------------------------------------------------------------------------


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Rates of every step by mode, version and side, one figure a round; and the seconds for which
    the layer went on working, when it did."""
    rates: dict[tuple[str, str, Step], dict[str, list[float]]] = {}
    rests = []
    _touch_memory()
    for mode in options["modes"]:
        with exports(mode, options["versions"], bindfs=options["bindfs"]) as found:
            # Removals last: ext4 looks at every inode freed in the last minutes before it takes
            # another, which would make all rounds but the first ones slow.
            for steps in (MAKE, REMOVE, BIG):
                rounds = max(1, options["rounds"] - (steps is BIG))
                for version in options["versions"]:
                    print(f"{mode}, v{version}: {steps[0].label} ...", flush=True)
                    if steps is MAKE:
                        list(_round(found, version, f"warm-up-{version}", steps, _WARM_UP))
                    for number in range(rounds):
                        name = f"{version}-{number}"
                        for step, side, rate in _round(
                            found, version, name, steps, options["count"]
                        ):
                            sides = rates.setdefault((mode, version, step), {})
                            sides.setdefault(side, []).append(rate)
            rests += found.rests
    return {
        "rows": [
            {"mode": mode, "version": version, "step": step.label, "unit": step.unit,
             "mark": step.mark, "rates": sides}
            for (mode, version, step), sides in rates.items()
        ],
        "rests_seconds": rests,
    }  # fmt: skip


def _round(
    found: Exports, version: str, name: str, steps: list[Step], count: int
) -> Iterator[tuple[Step, str, float]]:
    places = {side: found.place(side, version, name) for side in found.sides}
    for step in steps:
        for side, place in places.items():
            _redo(found, step)
            begun = time.monotonic()
            for number in range(1 if step.once else count):
                step.act(place, number)
            seconds = time.monotonic() - begun
            yield step, side, step.amount * (1 if step.unit == "MiB/s" else count) / seconds
    for place in places.values():
        for file in Path(place.directory).glob("big*"):
            file.unlink()


def _touch_memory() -> None:
    """The guest's memory is slow the first time that it is used: use half of it."""
    path = Path("/dev/shm/touched")
    with suppress(OSError), open(path, "wb") as file:
        while True:
            file.write(bytes(1 << 20))
    path.unlink()


# -- the account -----------------------------------------------------------------------------------


def account(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Counts the requests that the kernel made of the layer for each step, and their times."""
    clock_us = statistics.median(_clock_us() for _ in range(2000))
    rows = []
    for mode in options["modes"]:
        windows: list[tuple[dict[str, Any], float]] = []
        with exports(mode, options["versions"], traced_min=0) as found:
            for version in options["versions"]:
                print(f"{mode}, v{version} ...", flush=True)
                for name, count in (("warm-up", _WARM_UP), ("account", options["count"])):
                    layer, plain = (
                        found.place(side, version, f"{name}-{version}") for side in found.sides
                    )
                    for step in ACCOUNTED:
                        of_layer = _window(found, step, layer, count)
                        of_plain = _window(found, step, plain, count)
                        if name == "account":
                            words = {"mode": mode, "version": version, "step": step.label}
                            windows.append((words | of_layer, of_plain["us"]))
        records = [json.loads(line) for line in (OUT / f"trace-{mode}").open()]
        for window, plain_us in windows:
            rows.append(window | _requests(window, records, clock_us) | {"plain_us": plain_us})
    return rows


def _clock_us() -> float:
    return (time.monotonic() - time.monotonic()) * -1e6


def _typical(times: list[float]) -> float:
    """The first quartile: others on the machine take the processor away for milliseconds."""
    return sorted(times)[len(times) // 4]


def _rpcs() -> int:
    return next(
        int(line.split()[1])
        for line in Path("/proc/net/rpc/nfs").read_text().splitlines()
        if line.startswith("rpc ")
    )


def _window(found: Exports, step: Step, place: Dentry, count: int) -> dict[str, Any]:
    _redo(found, step)
    times, rpcs, begin = [], _rpcs(), time.monotonic()
    acts = 1 if step.once else count
    for number in range(acts):
        begun = time.monotonic()
        step.act(place, number)
        times.append(time.monotonic() - begun)
    return {
        "begin": begin, "end": time.monotonic(), "acts": acts,
        "us": _typical(times) * 1e6, "rpcs": (_rpcs() - rpcs) / acts,
    }  # fmt: skip


def _requests(window: dict[str, Any], records: list[Any], clock_us: float) -> dict[str, Any]:
    taken: dict[str, list[float]] = {}
    waits: list[float] = []
    flushes: list[float] = []
    in_place: list[float] = []
    for start, seconds, name, in_loop in records:
        if not window["begin"] <= start <= window["end"]:
            continue
        us = max(0.0, seconds * 1e6 - clock_us)
        if name == WAITS:
            waits.append(us)
        elif name == FLUSHES:
            (in_place if in_loop else flushes).append(us)
        else:
            taken.setdefault(name, []).append(us)
    acts: int = window["acts"]

    def of_one(times: list[float]) -> float:
        return _typical(times) * len(times) / acts if times else 0.0

    clocks = sum(map(len, (*taken.values(), waits, flushes, in_place))) / acts
    return {
        "requests": {
            name: {"count": len(times) / acts, "us": _typical(times)}
            for name, times in taken.items()
        },
        # Those in place are a part of the handlers' time.
        "flushes": {
            "count": (len(flushes) + len(in_place)) / acts,
            "us": _typical(flushes + in_place) if flushes or in_place else 0.0,
            "in_place": len(in_place) / acts,
        },
        "handlers_us": sum(map(of_one, taken.values())) - of_one(in_place),
        "wait_us": of_one(waits) + of_one(in_place),
        # Without the clock itself, which is read twice each time.
        "us": window["us"] - clock_us * (1 + 2 * clocks),
    }


def main() -> None:
    options = json.loads(sys.argv[1])
    faulthandler.dump_traceback_later(options["limit_seconds"] - _TELL_SECONDS, exit=True)
    work = {"measure": measure, "account": account, "mixed": mixed}[options["what"]]
    (OUT / "result.json").write_text(json.dumps(work(options)))


if __name__ == "__main__":
    main()
