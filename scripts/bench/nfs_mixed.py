"""The mixed run of scripts/bench/nfs.py, inside the guest: four processes that work like users, the
time each of their operations takes, and once a second what the machine and the layer were at."""

import errno
import json
import multiprocessing
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scripts.bench.nfs_exports import OUT, Exports, exports
from tests.support.guest.server import drop_caches
from tests.support.layer import Layer

CLIENTS = 4
_TRACED_SECONDS_MIN = 0.02
_SLOWEST = 200
_HANG_SECONDS = 60
_DULL = {"__switch_to", "__schedule", "schedule", "io_schedule", "schedule_timeout"}


def list_and_stat(directory: str) -> None:
    with os.scandir(directory) as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)


class Client:
    """One process of a mixed run: it works in a directory of its own and looks into another's."""

    _FILES_MAX = 150
    _SIZES = (4096,) * 30 + (65536,) * 9 + (1 << 20,)

    def __init__(self, number: int, own: str, other: str) -> None:
        self._own, self._other = own, other
        self._random = random.Random(number)
        self._data = b"".join(
            os.urandom(2048) + self._random.randbytes(64) * 32 for _ in range(512)
        )
        self._names: list[str] = []
        self._made = 0
        self.records: list[tuple[float, str, float]] = []

    def _timed(self, label: str, call: Callable[..., Any], *arguments: Any) -> Any:
        begun = time.monotonic()
        try:
            return call(*arguments)
        finally:
            self.records.append((begun, label, time.monotonic() - begun))

    def run(self, end: float) -> None:
        """Work until the time *end*."""
        work = [self.create, self.rewrite, self.read, self.rename, self.remove, self.look,
                self.chmod]  # fmt: skip
        weights = [20, 15, 25, 10, 15, 5, 10]
        while time.monotonic() < end:
            one = self.create if len(self._names) < 10 else self._random.choices(work, weights)[0]
            one()

    def _some(self) -> str:
        return f"{self._own}/{self._random.choice(self._names)}"

    def _write(self, fd: int, at: int) -> None:
        data = self._data[: self._random.choice(self._SIZES)]
        self._timed("write", os.pwrite, fd, data, at)
        if self._random.random() < 0.4:
            self._timed("fsync", os.fsync, fd)
        self._timed("close", os.close, fd)

    def create(self) -> None:
        if len(self._names) >= self._FILES_MAX:
            self.remove()
        self._made += 1
        self._names.append(f"f{self._made}")
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        self._write(self._timed("create", os.open, f"{self._own}/{self._names[-1]}", flags), 0)

    def rewrite(self) -> None:
        at = self._random.randrange(4) * 4096
        self._write(self._timed("open", os.open, self._some(), os.O_WRONLY), at)

    def read(self) -> None:
        with _may_be_gone():
            path = self._some()
            if self._random.random() < 0.5:
                names = os.listdir(self._other)
                path = f"{self._other}/{self._random.choice(names)}" if names else path
            fd = self._timed("open", os.open, path, os.O_RDONLY)
            try:
                self._timed("read", os.read, fd, 2 << 20)
            finally:
                os.close(fd)

    def rename(self) -> None:
        at = self._random.randrange(len(self._names))
        self._made += 1
        old, self._names[at] = self._names[at], f"r{self._made}"
        self._timed("rename", os.rename, f"{self._own}/{old}", f"{self._own}/{self._names[at]}")

    def remove(self) -> None:
        name = self._names.pop(self._random.randrange(len(self._names)))
        self._timed("unlink", os.unlink, f"{self._own}/{name}")

    def chmod(self) -> None:
        self._timed("chmod", os.chmod, self._some(), self._random.choice((0o600, 0o644)))

    def look(self) -> None:
        directory = self._random.choice((self._own, self._other))
        with _may_be_gone():
            self._timed("list", list_and_stat, directory)


@contextmanager
def _may_be_gone() -> Iterator[None]:
    """Its owner may rename or remove a file at any time."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise


def _client(arguments: tuple[int, str, str, float]) -> list[tuple[float, str, float]]:
    number, own, other, end = arguments
    client = Client(number, own, other)
    client.run(end)
    return client.records


def mixed(options: dict[str, Any]) -> dict[str, Any]:
    """The same work on the layer, then on the plain export."""
    (mode,) = options["modes"]
    result = {}
    with exports(mode, options["versions"], traced_min=_TRACED_SECONDS_MIN) as found:
        for side, seconds in (("layer", options["mixed"]), ("plain", options["plain_seconds"])):
            print(f"{side}, {mode}: {seconds} s ...", flush=True)
            result[side] = _mixed_on(found, side, options["versions"], seconds)
            drop_caches()
    start = result["layer"]["start"]
    lines = [json.loads(line) for line in (OUT / f"trace-{mode}").open()]
    result["layer"]["totals"] = lines.pop()
    result["layer"]["events"] = [
        {"at": at - start, "seconds": seconds, "name": name, "in_loop": in_loop}
        for at, seconds, name, in_loop in lines
    ]
    return result


def _mixed_on(found: Exports, side: str, versions: list[str], seconds: float) -> dict[str, Any]:
    version_of = [versions[number % len(versions)] for number in range(CLIENTS)]
    start = time.monotonic()
    work = []
    for number, version in enumerate(version_of):
        # The other one speaks the same version: for files of which a v4 client has a delegation,
        # nfsd tells a v3 client to come back after five seconds, whatever it exports.
        other = (number + CLIENTS // 2) % CLIENTS
        own, others = (found.place(side, version, f"c{n}").directory for n in (number, other))
        work.append((number, own, others, start + seconds))
    samples: list[dict[str, Any]] = []
    over = threading.Event()
    with multiprocessing.get_context("fork").Pool(CLIENTS) as pool:
        results = pool.map_async(_client, work, chunksize=1)
        if side == "layer":
            threading.Thread(target=_ask, args=(found.layer, start, samples, over)).start()
        before = _processes(found.layer.pid)[0]
        try:
            while not results.ready():
                results.wait(1)
                now, blocked = _processes(found.layer.pid)
                used: Counter[str] = Counter()
                for task, (name, ticks) in now.items():
                    used[name] += ticks - before.get(task, (name, 0))[1]
                before = now
                busiest = {name: ticks for name, ticks in used.most_common(6) if ticks}
                at = time.monotonic() - start
                samples.append({"at": at, "ticks": busiest, "blocked": blocked})
                if at > seconds + _HANG_SECONDS:
                    raise SystemExit(f"the clients hang: {blocked}")
        finally:
            over.set()
        records = [
            (at - start, label, taken, number)
            for number, of_client in enumerate(results.get())
            for at, label, taken in of_client
        ]
    by_label: dict[str, list[float]] = {}
    for _, label, taken, _ in records:
        by_label.setdefault(label, []).append(taken)
    return {
        "start": start,
        "seconds": time.monotonic() - start,
        "operations": {label: _summary(times) for label, times in sorted(by_label.items())},
        "slowest": [
            {"at": at, "operation": label, "seconds": taken, "client": number,
             "version": version_of[number]}
            for at, label, taken, number in sorted(records, key=lambda r: -r[2])[:_SLOWEST]
        ],
        "samples": samples,
    }  # fmt: skip


def _summary(times: list[float]) -> dict[str, float]:
    times.sort()
    return {
        "count": len(times),
        "p50": times[len(times) // 2],
        "p99": times[len(times) * 99 // 100],
        "max": times[-1],
    }


def _ask(layer: Layer, start: float, samples: list[dict[str, Any]], over: threading.Event) -> None:
    while not over.wait(1):
        begun = time.monotonic()
        with suppress(Exception):  # no answer is what blocked tasks are sampled for
            status = layer.ask()
            words = ("head_seq", "durable_seq", "checkpoint_seq", "journal_bytes", "segments")
            samples.append(
                {"at": begun - start, "answer_seconds": time.monotonic() - begun}
                | {word: status[word] for word in words}
            )


def _processes(layer_pid: int) -> tuple[dict[str, tuple[str, int]], list[str]]:
    """Name and ticks (10 ms) of the processor so far of each task, and where each task waits that
    cannot be interrupted."""
    ticks, blocked = {}, []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for task in os.listdir(process / "task"):
                head, _, tail = (process / "task" / task / "stat").read_text().rpartition(") ")
                comm, fields = head.partition("(")[2], tail.split()
                if process.name == task == str(layer_pid):
                    comm = "the layer's event loop"
                ticks[task] = (comm, int(fields[11]) + int(fields[12]))
                if fields[0] == "D":
                    stack = (process / "task" / task / "stack").read_text().splitlines()
                    frames = [line.split()[1].partition("+")[0] for line in stack]
                    frames = [frame for frame in frames if frame not in _DULL][:3]
                    blocked.append(f"{comm}: {' < '.join(frames)}")
    return ticks, sorted(blocked)
