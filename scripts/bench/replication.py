"""A mirror beside lsyncd + rsync: how late it sees changes, how fast it catches up, what it costs.

All on this machine, primary and mirror talking TLS over the loopback. So that the mirror's own
work is not counted as the primary's, as it would not be were the mirror elsewhere, the mirror has
one processor, and primary and clients have another; also while the primary is measured alone, for
it is the same primary, which ships or pauses in turn.

delay     Changes at a steady rate; at 20 moments a second a file is made, and a reader who polls
          the mirror's mount sees it appear. lsyncd gets the same, between plain directories.
cost      Small operations, and writes of 1 MiB, with the mirror streaming and paused, in turn.
catch-up  Entries that the primary took alone are got by a mirror that is empty, from its first
          connection until it has applied all.
entries   The processor time of an entry that is taken, shipped, and applied by a mirror: each round
          the mirror is paused, entries are taken, and it catches up.

With --beside DIR a pair of another checkout's program has its delays, its catch-up and its entries
measured in turn, as "before"."""

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fusejournal.control.client import ask
from tests.support.layer import Layer
from tests.support.mirrors import wait_for

_PAIRING = """
import sys
from pathlib import Path
from scripts.bench.replication import Node
from tests.support.mirrors import know_each_other
base, port = Path(sys.argv[1]), int(sys.argv[2])
primary = Node(base / "primary", "primary", port, 0)
mirror = Node(base / "mirror", "mirror", port + 1, 0)
know_each_other(primary, mirror, "127.0.0.1", mirror.port)
"""
_CHECKOUT = Path(__file__).resolve().parents[2]
_PORT = 7741
PROBES_PER_SECOND = 20
RATES = (500, 2000)
FILES = 500
SMALL = os.urandom(200)
LARGE = os.urandom(1 << 20)
LARGE_COUNT = 256
_LSYNCD = """
settings {{ nodaemon = true, insist = true, logfile = "{base}/lsyncd.log",
            statusFile = "{base}/lsyncd.status" }}
sync {{ default.rsync, source = "{source}", target = "{target}", delay = {delay},
        rsync = {{ archive = true, xattrs = true, acls = true, hard_links = true,
                   whole_file = true }} }}
"""


# -- nodes ---------------------------------------------------------------------------------------


class Node(Layer):
    """Primary or mirror, on one processor."""

    def __init__(
        self, base: Path, role: str, port: int, cpu: int, checkout: Path = _CHECKOUT
    ) -> None:
        super().__init__(base)
        self.name, self.port, self._role = base.name, port, role
        self.prefix = ("env", f"PYTHONPATH={checkout}", "taskset", "-c", str(cpu))

    def mount_arguments(self, *extra: str) -> list[str]:
        return [
            *("mount", str(self.backing), str(self.mountpoint), "--name", self.name),
            *("--state", str(self.state), "--role", self._role, "--open-backing"),
            *("--listen", f"127.0.0.1:{self.port}", *extra),
        ]

    @property
    def cpu_seconds(self) -> float:
        """The time that it has used of its processor: on a noisy machine the better measure."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def applied_seq(self) -> int:
        """The last entry that a mirror shows."""
        return int(self.ask()["replication"]["mirror"]["applied_seq"])


class Couple(NamedTuple):
    """A primary and its mirror."""

    primary: Node
    mirror: Node

    def pause(self) -> None:
        """Ship nothing."""
        ask(self.primary.state, "peer-pause", name=self.mirror.name)

    def resume(self) -> None:
        """Ship, and wait until nothing is left to be."""
        ask(self.primary.state, "peer-resume", name=self.mirror.name)
        self.await_level()

    def await_level(self) -> None:
        """Wait until the mirror shows all there is."""
        head_seq = self.primary.head_seq()
        wait_for(lambda: self.mirror.applied_seq >= head_seq, self.primary.ask, 3600)


@contextmanager
def couple(
    base: Path, cpus: tuple[int, int], port: int = _PORT, checkout: Path = _CHECKOUT
) -> Iterator[Couple]:
    """Both, neither started; of the program in *checkout*. At the end those that run are stopped in
    order, because what they have begun (an index, a compressed segment) is to be done before their
    files go."""
    with (
        Node(base / "primary", "primary", port, cpus[0], checkout) as primary,
        Node(base / "mirror", "mirror", port + 1, cpus[1], checkout) as mirror,
    ):
        # By the program's own version, whose files these are.
        command = [sys.executable, "-c", _PAIRING, str(base), str(port)]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        subprocess.run(command, cwd=checkout, env=environment, check=True)
        yield Couple(primary, mirror)
        for node in (mirror, primary):
            if node.is_alive():
                node.stop()


@contextmanager
def couples(
    base: Path, cpus: tuple[int, int], options: argparse.Namespace
) -> Iterator[dict[str, Couple]]:
    """A pair of this checkout, "now", and of the other one "before" it; none of them started."""
    checkouts = {"now": _CHECKOUT}
    if options.beside is not None:
        checkouts = {"before": options.beside.resolve(), **checkouts}
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(couple(base / name, cpus, _PORT + 2 * number, checkout))
            for number, (name, checkout) in enumerate(checkouts.items())
        }


# -- work ----------------------------------------------------------------------------------------


def operations(directory: str) -> Iterator[Callable[[], object]]:
    """Small changes without end, an entry each, in a directory that stays small."""
    number = 0
    while True:
        name, renamed = f"{directory}/f{number}", f"{directory}/g{number}"
        old = f"{directory}/g{number - FILES}"
        yield partial(os.mknod, name, 0o100644)
        yield partial(write, name, SMALL)
        yield partial(os.chmod, name, 0o600)
        yield partial(os.rename, name, renamed)
        if number >= FILES:
            yield partial(os.unlink, old)
        number += 1


def write(path: str, data: bytes) -> None:
    """Write *data* to the beginning of *path*."""
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, data)
    os.close(fd)


def _work(directory: str, seconds: float, count: int, done: Any) -> None:
    os.makedirs(directory, exist_ok=True)
    ends, number = time.monotonic() + seconds, 0
    for operation in operations(directory):
        operation()
        number += 1
        if number == count or (number % 16 == 0 and time.monotonic() > ends):
            break
    shutil.rmtree(directory) if count == 0 else None
    done.put(number)


def work(root: Path, clients: int, seconds: float, count: int = 0) -> float:
    """Operations a second of *clients* that do as many as they can in *seconds*, or *count* in
    all."""
    done: Any = multiprocessing.Queue()
    each = count // clients
    tag = time.monotonic_ns()
    processes = [
        multiprocessing.Process(
            target=_work, args=(f"{root}/w{tag}-{n}", seconds if not count else 1e9, each, done)
        )
        for n in range(clients)
    ]
    begun = time.monotonic()
    for process in processes:
        process.start()
    total = sum(done.get() for _ in processes)
    took = seconds if not count else time.monotonic() - begun
    for process in processes:
        process.join()
    return float(total / took)


def write_large(root: Path) -> float:
    """MiB a second, written in pieces of 1 MiB to a file that is written over."""
    fd = os.open(root / "large", os.O_WRONLY | os.O_CREAT, 0o644)
    begun = time.monotonic()
    for number in range(LARGE_COUNT):
        os.pwrite(fd, LARGE, number % 64 << 20)
    took = time.monotonic() - begun
    os.close(fd)
    return LARGE_COUNT / took


# -- delay ---------------------------------------------------------------------------------------


def _watch(directory: str, count: int, seen: Any, patience: float) -> None:
    """Report when each probe appears below *directory*. The name is asked for before it is there,
    so that the kernel remembers that it is not."""
    for number in range(count):
        ends = time.monotonic() + patience
        path = f"{directory}/probe{number}"
        while not os.path.lexists(path):
            if time.monotonic() > ends:
                seen.put(None)
                return
            time.sleep(0.001)
        seen.put(time.monotonic())


def measure_delays(here: Path, there: Path, rate: int, seconds: float) -> tuple[list[float], float]:
    """The delays of the probes that were seen, in seconds, and the operations a second that were
    really done."""
    seen: Any = multiprocessing.Queue()
    count = int(seconds * PROBES_PER_SECOND)
    os.makedirs(here / "probes", exist_ok=True)
    wait_for(lambda: (there / "probes").exists(), lambda: there, 60)
    watcher = multiprocessing.Process(
        target=_watch, args=(str(there / "probes"), count, seen, 60.0)
    )
    watcher.start()
    os.makedirs(here / "work", exist_ok=True)
    changes = operations(str(here / "work"))
    made: list[float] = []
    begun, done = time.monotonic(), 0
    while len(made) < count:
        due = begun + done / rate
        if (wait := due - time.monotonic()) > 0:
            time.sleep(wait)
        if done * PROBES_PER_SECOND >= len(made) * rate:
            os.mknod(here / "probes" / f"probe{len(made)}", 0o100644)
            made.append(time.monotonic())
        else:
            next(changes)()
        done += 1
    took = time.monotonic() - begun
    moments: list[float] = []
    for _ in range(count):
        moment = seen.get()
        if moment is None:
            break
        moments.append(moment)
    watcher.join()
    shutil.rmtree(here / "work")
    shutil.rmtree(here / "probes")
    delays = [moment - since for moment, since in zip(moments, made, strict=False)]
    return delays, done / took


@contextmanager
def lsyncd(base: Path, delay: int) -> Iterator[tuple[Path, Path]]:
    """A directory, and the one that lsyncd makes like it."""
    source, target = base / f"source{delay}", base / f"target{delay}"
    source.mkdir()
    target.mkdir()
    config = base / "lsyncd.lua"
    config.write_text(_LSYNCD.format(base=base, source=source, target=target, delay=delay))
    process = subprocess.Popen(["lsyncd", str(config)], stdout=subprocess.DEVNULL)
    try:
        time.sleep(1)
        yield source, target
    finally:
        process.terminate()
        process.wait()


def tell_delays(name: str, delays: list[float], rate: float, wanted: int) -> None:
    """A line of the table."""
    if not delays:
        print(f"  {name:22}{wanted:8,} {rate:10,.0f}   nothing seen within a minute", flush=True)
        return
    ordered = sorted(delays)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    print(
        f"  {name:22}{wanted:8,} {rate:10,.0f} {1000 * statistics.median(ordered):12,.1f} ms"
        f" {1000 * p99:10,.1f} ms {1000 * ordered[-1]:10,.1f} ms",
        flush=True,
    )


def delays(base: Path, pairs: dict[str, Couple], options: argparse.Namespace) -> None:
    """The first table."""
    print(f"delay: {'ops/s wanted':>24} {'done':>10} {'median':>15} {'p99':>13} {'max':>13}")
    for rate in RATES:
        for name, nodes in pairs.items():
            found = measure_delays(
                nodes.primary.mountpoint, nodes.mirror.mountpoint, rate, options.seconds
            )
            tell_delays(f"fusejournal, {name}", *found, rate)
            nodes.await_level()
    for delay in (0, 1):
        for rate in RATES:
            with lsyncd(base, delay) as (source, target):
                tell_delays(
                    f"lsyncd, delay = {delay}",
                    *measure_delays(source, target, rate, options.seconds),
                    rate,
                )
            shutil.rmtree(source)
            shutil.rmtree(target)


# -- cost ----------------------------------------------------------------------------------------


def cost(nodes: Couple, options: argparse.Namespace) -> None:
    """The second table."""
    root = nodes.primary.mountpoint
    measures: dict[str, Callable[[], float]] = {
        "operations/s, 1 client": lambda: work(root, 1, options.seconds / 2),
        "operations/s, 2 clients": lambda: work(root, 2, options.seconds / 2),
        "1 MiB writes, MiB/s": lambda: write_large(root),
    }
    print(f"cost:  {'':24}{'alone':>10} {'streaming':>11} {'ratio':>8}   (medians)")
    for name, measure in measures.items():
        alone, streaming = [], []
        for _ in range(options.rounds):
            nodes.pause()
            alone.append(measure())
            nodes.resume()
            streaming.append(measure())
            nodes.await_level()
        ratios = [one / other for one, other in zip(streaming, alone, strict=True)]
        print(
            f"  {name:29}{statistics.median(alone):10,.0f} {statistics.median(streaming):11,.0f}"
            f" {statistics.median(ratios):8.2f}   ({', '.join(f'{r:.2f}' for r in ratios)})",
            flush=True,
        )


# -- catch-up ------------------------------------------------------------------------------------


def catch_up(name: str, nodes: Couple, options: argparse.Namespace) -> None:
    """The third table. The mirror has not been started yet."""
    primary, mirror = nodes
    before, cpu_before = primary.head_seq(), primary.cpu_seconds
    rate = work(primary.mountpoint, 2, 0, options.entries)
    captured = primary.head_seq() - before
    capture_cpu = (primary.cpu_seconds - cpu_before) / captured
    print(
        f"catch-up, {name}: {captured:,} entries, captured at {rate:,.0f} a second by 2 clients,"
        f" {1e6 * capture_cpu:.0f} us of the primary's processor each"
    )
    head_seq = primary.head_seq()
    mirror.start()
    ask(primary.state, "peer-resume", name=mirror.name)
    begun, cpu_before = time.monotonic(), mirror.cpu_seconds
    # Seldom, for to answer takes the mirror's processor too.
    wait_for(lambda: mirror.applied_seq >= head_seq, mirror.ask, 3600, pause_seconds=0.1)
    apply_cpu = (mirror.cpu_seconds - cpu_before) / head_seq
    took = time.monotonic() - begun
    caught = head_seq / took
    print(
        f"  an empty mirror got {head_seq:,} entries in {took:.1f} s: {caught:,.0f} a second,"
        f" {caught / rate:.2f} times as fast; {1e6 * apply_cpu:.0f} us of its processor each,"
        f" {capture_cpu / apply_cpu:.2f} times less",
        flush=True,
    )


# -- entries -------------------------------------------------------------------------------------


class Spent(NamedTuple):
    """Processor time an entry, in microseconds."""

    taken_us: float
    shipped_us: float
    applied_us: float


def spend(nodes: Couple, count: int) -> Spent:
    """Makes about *count* entries. Returns their cost."""
    nodes.pause()
    head_seq, begun = nodes.primary.head_seq(), nodes.primary.cpu_seconds
    work(nodes.primary.mountpoint, 1, 0, count)
    entries, taken = nodes.primary.head_seq() - head_seq, nodes.primary.cpu_seconds
    before = nodes.mirror.cpu_seconds
    nodes.resume()
    each = 1e6 / entries
    return Spent(
        (taken - begun) * each,
        (nodes.primary.cpu_seconds - taken) * each,
        (nodes.mirror.cpu_seconds - before) * each,
    )


def entries(base: Path, cpus: tuple[int, int], options: argparse.Namespace) -> None:
    """The fourth table, by pairs of its own."""
    with couples(base, cpus, options) as pairs:
        spent: dict[str, list[Spent]] = {name: [] for name in pairs}
        for nodes in pairs.values():
            for node in nodes:
                node.start()
            nodes.resume()
        for number in range(options.rounds + 1):
            for name, nodes in pairs.items():
                one = spend(nodes, options.entries // options.rounds)
                if number:  # in the first one caches are filled
                    spent[name].append(one)
    print(f"entries: {'us of an entry':>22}" + "".join(f"{name:>10}" for name in spent))
    for column, label in enumerate(("taken", "shipped", "applied")):
        medians = [statistics.median(one[column] for one in found) for found in spent.values()]
        ratio = f"{medians[-1] / medians[0]:8.2f}" if len(medians) > 1 and medians[0] else ""
        print(f"  {label:29}" + "".join(f"{one:10.1f}" for one in medians) + ratio)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="run replication",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--where", default="/dev/shm", help="directory to work in")
    parser.add_argument("--seconds", type=float, default=10, help="a measurement's length")
    parser.add_argument("--rounds", type=int, default=5, help="of cost and entries")
    parser.add_argument("--entries", type=int, default=200_000, help="to take and to catch up with")
    parser.add_argument("--only", choices=["delay", "cost", "catch-up", "entries"])
    parser.add_argument("--beside", type=Path, help="another checkout, measured in turn")
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    first, last = cpus[0], cpus[-1]
    with ExitStack() as stack:
        base = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="fusejournal-bench.", dir=options.where)
            )
        )
        if options.only in (None, "entries"):
            entries(base / "entries", (first, last), options)
        if options.only == "entries":
            return
        pairs = stack.enter_context(couples(base, (first, last), options))
        for nodes in pairs.values():
            nodes.primary.start()
        os.sched_setaffinity(0, {first})
        for name, nodes in pairs.items():
            if options.only in (None, "catch-up"):
                catch_up(name, nodes, options)
            else:
                nodes.mirror.start()
            nodes.resume()
        if options.only in (None, "cost"):
            cost(pairs["now"], options)
        if options.only in (None, "delay"):
            os.sched_setaffinity(
                0, set(cpus)
            )  # a change and its look-out do not wait for each other
            delays(base, pairs, options)


if __name__ == "__main__":
    main()
