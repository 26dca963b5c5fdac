"""Calls that wait for a disk: the layer beside bindfs (a C passthrough) and plain ext4.

Each place has an ext4 of its own on a loop device, whose image lies on a disk that can lose power:
not on tmpfs, where a flush costs nothing. All are mounted at once, and every round runs each step
on each place in turn.

files   processes that each create a file, write 4 KiB, fsync and close it
mail    processes that each deliver: a temporary file in tmp/ is written (1 to 16 KiB), fsynced and
        renamed to new/, whose directory is fsynced; every fourth one is removed again
append  processes that each append 200 bytes to a log and fdatasync it
sqlite  one process that commits an insert at a time, with its rollback journal and with a WAL

The table has microseconds an operation (the time of all processes, divided by what they have done
together), the median of all rounds, and the layer's speed as a multiple of bindfs's and of plain
ext4's (above 1 it is quicker), the median of each round's. Then what an operation costs: flushes of
the device, commits of ext4's own journal, KiB written to the device, and the layer's processor time
in microseconds. (bindfs 1.14 passes no fsync of a directory on.)

With --beside DIR the program of another checkout is measured in the same run, as "before"."""

import argparse
import multiprocessing
import os
import shutil
import sqlite3
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

from scripts.bench.layer import Place, bindfs, layer
from tests.support.disks import SmallDisk

_IMAGE_MIB = 1024
_SMALL = os.urandom(4096)
_LINE = os.urandom(200)
_MAILS = [os.urandom(1024 + number * 3840) for number in range(5)]
_KEPT_OF = 4
_TMPFS = "tmpfs"

_EXAMPLES = """examples:
  run fsync                      # five minutes
  run fsync --only files         # one kind of step
  run fsync --beside ../before   # another checkout in the same run
"""


# -- steps -----------------------------------------------------------------------------------------


def write_files(directory: str, count: int) -> None:
    """Files that are made, written and fsynced."""
    for number in range(count):
        fd = os.open(f"{directory}/y{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(fd, _SMALL)
        os.fsync(fd)
        os.close(fd)


def deliver(directory: str, count: int) -> None:
    """Mail, as into a maildir."""
    for name in ("tmp", "new"):
        os.mkdir(f"{directory}/{name}")
    for number in range(count):
        mail = f"{directory}/new/{number}"
        fd = os.open(f"{directory}/tmp/{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(fd, _MAILS[number % len(_MAILS)])
        os.fsync(fd)
        os.close(fd)
        os.rename(f"{directory}/tmp/{number}", mail)
        fd = os.open(f"{directory}/new", os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)
        if number % _KEPT_OF == 0:
            os.unlink(mail)


def append(directory: str, count: int) -> None:
    """Lines of a log."""
    fd = os.open(f"{directory}/log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    for _ in range(count):
        os.write(fd, _LINE)
        os.fdatasync(fd)
    os.close(fd)


def commit(mode: str, directory: str, count: int) -> None:
    """Transactions of one insert each, in journal mode *mode*."""
    base = sqlite3.connect(f"{directory}/base", isolation_level=None)
    base.execute(f"PRAGMA journal_mode = {mode}")
    base.execute("PRAGMA synchronous = FULL")
    base.execute("CREATE TABLE lines (number INTEGER PRIMARY KEY, content BLOB)")
    for _ in range(count):
        base.execute("INSERT INTO lines (content) VALUES (?)", (_LINE,))
    base.close()


class Step(NamedTuple):
    """Work of *processes*, each in a directory of its own: *share* of the operations asked for."""

    kind: str
    label: str
    run: Callable[[str, int], None]
    processes: int = 1
    share: float = 1.0


STEPS = [
    *(Step("files", f"create+write+fsync, {n}", write_files, n) for n in (1, 4, 16)),
    *(Step("mail", f"mail delivery, {n}", deliver, n, 0.5) for n in (1, 4, 16)),
    *(Step("append", f"append+fdatasync, {n}", append, n) for n in (1, 4, 16)),
    Step("sqlite", "sqlite commit, journal", partial(commit, "DELETE"), 1, 0.5),
    Step("sqlite", "sqlite commit, WAL", partial(commit, "WAL")),
]


def _work(run: Callable[[str, int], None], directory: str, count: int, starts: Any) -> None:
    starts.wait()
    run(directory, count)


def timed(step: Step, directory: Path, count: int) -> tuple[float, int]:
    """The seconds that *step* took, with its processes beside each other, and how many operations
    were done."""
    each = max(1, round(count * step.share / step.processes))
    fork = multiprocessing.get_context("fork")
    starts = fork.Barrier(step.processes + 1)
    processes = []
    for number in range(step.processes):
        (directory / f"{number}").mkdir()
        arguments = (step.run, f"{directory / str(number)}", each, starts)
        processes.append(fork.Process(target=_work, args=arguments))
        processes[-1].start()
    starts.wait()
    begun = time.perf_counter()
    for process in processes:
        process.join()
    took = time.perf_counter() - begun
    assert not any(process.exitcode for process in processes), f"{step.label} failed"
    return took, each * step.processes


# -- places ----------------------------------------------------------------------------------------


class Counts(NamedTuple):
    """Counters of what a disk and a file system process have done so far."""

    flushes: int
    commits: int
    kib: float
    cpu_us: float

    def since(self, before: "Counts", done: int) -> "Counts":
        """Returns the counts for each of *done* operations since *before*."""
        return Counts(*((now - then) / done for now, then in zip(self, before, strict=True)))  # type: ignore[arg-type]


class DiskPlace(NamedTuple):
    """A place on a disk of its own."""

    place: Place
    device: str
    """The loop device's name."""

    def counts(self) -> Counts:
        """Source: the kernel's Documentation/block/stat.rst; fs/jbd2/journal.c
        (jbd2_seq_info_show)."""
        stat = [int(word) for word in Path(f"/sys/block/{self.device}/stat").read_text().split()]
        info = Path(f"/proc/fs/jbd2/{self.device}-8/info").read_text()
        return Counts(stat[15], int(info.split()[0]), stat[6] / 2, self.place.cpu_seconds() * 1e6)


@contextmanager
def disk(base: Path, name: str) -> Iterator[SmallDisk]:
    """An ext4 whose image is written all over before, so that no block of it is new to the disk
    beneath."""
    image = base / f"{name}.img"
    with open(image, "wb") as file:
        for _ in range(_IMAGE_MIB):
            file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", options, str(image)], check=True)
    found = SmallDisk(image, base / name, 0)
    try:
        yield found
    finally:
        found.remove()


# -- measuring -------------------------------------------------------------------------------------


class Taken(NamedTuple):
    """The time of one operation, in microseconds, and its cost."""

    wall_us: float
    counts: Counts


Found = dict[tuple[str, str], list[Taken]]


def measure(places: dict[str, DiskPlace], steps: list[Step], rounds: int, count: int) -> Found:
    """Measures what each step takes in each round, by step and place."""
    found: Found = {}
    for number in range(rounds):
        for step in steps:
            for name, one in places.items():
                directory = one.place.path / f"round-{number}"
                directory.mkdir()
                before = one.counts()
                took, done = timed(step, directory, count)
                taken = Taken(took / done * 1e6, one.counts().since(before, done))
                found.setdefault((step.label, name), []).append(taken)
                shutil.rmtree(directory)
            if sys.stderr.isatty():
                print(f"round {number + 1} of {rounds}: {step.label:30}", end="\r", file=sys.stderr)
    return found


def show(found: Found, steps: list[Step], names: list[str], layers: list[str]) -> None:
    """Print both tables. *layers*: the places that are compared with the others."""
    print(f"{'us an operation':26}" + "".join(f"{name:>9}" for name in names), end="")
    print("".join(f"{f'{name}: x bindfs':>18}{'x ext4':>8}" for name in layers))
    for step in steps:
        walls = {name: [one.wall_us for one in found[step.label, name]] for name in names}
        print(f"{step.label:26}", end="")
        print("".join(f"{statistics.median(walls[name]):9.0f}" for name in names), end="")
        for name in layers:
            for other, width in (("bindfs", 18), ("ext4", 8)):
                pairs = zip(walls[other], walls[name], strict=True)
                print(f"{statistics.median(a / b for a, b in pairs):{width}.2f}", end="")
        print()
    print(f"\n{'of an operation':26}", end="")
    print("".join(f"{name + ': flushes':>18}{'commits':>8}{'KiB':>6}{'cpu':>5}" for name in names))
    for step in steps:
        print(f"{step.label:26}", end="")
        for name in names:
            rounds = [one.counts for one in found[step.label, name]]
            flushes, commits, kib, cpu = (
                statistics.fmean(one) for one in zip(*rounds, strict=True)
            )
            print(f"{flushes:18.2f}{commits:8.2f}{kib:6.0f}{cpu:5.0f}", end="")
        print()


def _disk_directory(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a directory")
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    mount = max((m for m in mounts if path.resolve().is_relative_to(m[1])), key=lambda m: len(m[1]))
    if mount[2] == _TMPFS:
        raise argparse.ArgumentTypeError(f"{text} is in memory; name a directory on a disk")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="run fsync",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--where", type=_disk_directory, default="/var/tmp",
                        help="directory on a disk, with 3 GiB free (/var/tmp)")  # fmt: skip
    parser.add_argument("--count", type=int, default=320, help="operations a step (320)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of all steps (7)")
    parser.add_argument("--only", choices=sorted({step.kind for step in STEPS}))
    parser.add_argument("--beside", type=Path, help="another checkout, measured as 'before'")
    options = parser.parse_args()
    checkouts = {"layer": Path(__file__).resolve().parents[2]}
    if options.beside is not None:
        checkouts = {"before": options.beside.resolve(), **checkouts}
    steps = [step for step in STEPS if options.only in (None, step.kind)]
    with (
        tempfile.TemporaryDirectory(prefix="fusejournal-bench.", dir=options.where) as name,
        ExitStack() as mounted,
    ):
        base = Path(name)
        places = {}
        for name in (*checkouts, "bindfs", "ext4"):
            own = mounted.enter_context(disk(base, name))
            if name in checkouts:
                place = mounted.enter_context(layer(own.mountpoint / "volume", checkouts[name]))
            elif name == "bindfs":
                place = mounted.enter_context(bindfs(own.mountpoint))
            else:
                place = Place(own.mountpoint, None)
            places[name] = DiskPlace(place, Path(own.device).name)
        show(measure(places, steps, options.rounds, options.count), steps, list(places),
             list(checkouts))  # fmt: skip


if __name__ == "__main__":
    main()
