"""The layer beside bindfs (a C passthrough) and the backing itself: the same operations in turn.

All are mounted at once. Every round runs a batch of each operation on each place, one place after
the other, so that a slow moment of the machine hits all of them; what counts is each one's quickest
batch. The table has microseconds an operation, and what the layer takes divided by what bindfs
takes (of large reads and writes and of listings too: below 1 the layer is quicker); then the
geometric mean over the operations that change or look up one thing. "cpu" is what the layer's
process used, in microseconds an operation.

With --beside DIR the program of another checkout is measured in the same run, as "before".

Mind the scheduler: a single client and a file system process wait for each other all the time, and
what costs most is waking the other one up, several times more across processors than on the same
one. Where each runs is settled only after some tenths of a second, so compare only what one run
says, and believe a difference when a second run says it, too."""

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.layer import Layer

SMALL = os.urandom(4096)
LARGE = os.urandom(1 << 20)
LARGE_COUNT = 16


def create(directory: str, count: int) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    for number in range(count):
        os.close(os.open(f"{directory}/f{number}", flags, 0o644))


def open_and_write(directory: str, count: int) -> None:
    for number in range(count):
        fd = os.open(f"{directory}/f{number}", os.O_WRONLY)
        os.write(fd, SMALL)
        os.close(fd)


def open_and_read(directory: str, count: int) -> None:
    for number in range(count):
        fd = os.open(f"{directory}/f{number}", os.O_RDONLY)
        assert len(os.read(fd, 8192)) == len(SMALL)
        os.close(fd)


def stat(directory: str, count: int) -> None:
    for number in range(count):
        os.stat(f"{directory}/f{number}")


def stat_absent(directory: str, count: int) -> None:
    for number in range(count):
        assert not os.access(f"{directory}/absent{number}", os.F_OK)


def list_and_stat(directory: str, count: int) -> None:
    with os.scandir(directory) as entries:
        assert sum(entry.stat(follow_symlinks=False).st_size > 0 for entry in entries) >= count


def chmod(directory: str, count: int) -> None:
    for number in range(count):
        os.chmod(f"{directory}/f{number}", 0o600)


def set_times(directory: str, count: int) -> None:
    for number in range(count):
        os.utime(f"{directory}/f{number}", ns=(number, number))


def truncate(directory: str, count: int) -> None:
    for number in range(count):
        os.truncate(f"{directory}/f{number}", 100)


def set_attribute(directory: str, count: int) -> None:
    for number in range(count):
        os.setxattr(f"{directory}/f{number}", "user.bench", b"value")


def rename(directory: str, count: int) -> None:
    for number in range(count):
        os.rename(f"{directory}/f{number}", f"{directory}/g{number}")


def link(directory: str, count: int) -> None:
    for number in range(count):
        os.link(f"{directory}/g{number}", f"{directory}/h{number}")


def unlink_one_of_two(directory: str, count: int) -> None:
    for number in range(count):
        os.unlink(f"{directory}/g{number}")


def unlink_last(directory: str, count: int) -> None:
    for number in range(count):
        os.unlink(f"{directory}/h{number}")


def symlink(directory: str, count: int) -> None:
    for number in range(count):
        os.symlink("target", f"{directory}/s{number}")


def mkdir(directory: str, count: int) -> None:
    for number in range(count):
        os.mkdir(f"{directory}/d{number}")


def rmdir(directory: str, count: int) -> None:
    for number in range(count):
        os.rmdir(f"{directory}/d{number}")


def write_small(directory: str, count: int) -> None:
    fd = os.open(f"{directory}/w", os.O_CREAT | os.O_WRONLY)
    for number in range(count):
        os.pwrite(fd, SMALL, number * len(SMALL))
    os.close(fd)


def read_small_at_random(directory: str, count: int) -> None:
    fd = os.open(f"{directory}/w", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for number in range(count):
        os.pread(fd, len(SMALL), number * 7919 % count * len(SMALL))
    os.close(fd)


def write_large(directory: str, count: int) -> None:
    fd = os.open(f"{directory}/big", os.O_CREAT | os.O_WRONLY)
    for number in range(LARGE_COUNT):
        os.pwrite(fd, LARGE, number << 20)
    os.close(fd)


def read_large(directory: str, count: int) -> None:
    fd = os.open(f"{directory}/big", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    while os.read(fd, 1 << 20):
        pass
    os.close(fd)


def create_write_fsync(directory: str, count: int) -> None:
    for number in range(count // 10):
        fd = os.open(f"{directory}/y{number}", os.O_CREAT | os.O_WRONLY)
        os.write(fd, SMALL)
        os.fsync(fd)
        os.close(fd)


class Step(NamedTuple):
    """One operation. ``counts``: it is one of those that the mean is of. ``done``: how many it
    does, of so many that were asked for."""

    label: str
    run: Callable[[str, int], None]
    counts: bool = True
    done: Callable[[int], int] = lambda count: count


STEPS = [
    Step("create + close", create),
    Step("open + write 4 KiB + close", open_and_write),
    Step("open + read 4 KiB + close", open_and_read),
    Step("stat", stat, counts=False),
    Step("stat of an absent name", stat_absent),
    Step("list + stat, a name", list_and_stat, counts=False),
    Step("chmod", chmod),
    Step("utimens", set_times),
    Step("truncate", truncate),
    Step("setxattr", set_attribute),
    Step("rename", rename),
    Step("link", link),
    Step("unlink, one of two names", unlink_one_of_two),
    Step("unlink, the last name", unlink_last),
    Step("symlink", symlink),
    Step("mkdir", mkdir),
    Step("rmdir", rmdir),
    Step("write 4 KiB", write_small),
    Step("read 4 KiB at random", read_small_at_random, counts=False),
    Step("write 1 MiB", write_large, False, lambda _: LARGE_COUNT),
    Step("read 1 MiB", read_large, False, lambda _: LARGE_COUNT),
    Step("create + write + fsync", create_write_fsync, False, lambda count: count // 10),
]


class Place(NamedTuple):
    """A directory to work in, and the process whose use of the processors is counted."""

    path: Path
    pid: int | None

    def cpu_seconds(self) -> float:
        """The time that all threads of the process have used together, also those that have ended.
        Source: clock_getcpuclockid(3); the kernel's kernel/time/posix-cpu-timers.c."""
        return 0.0 if self.pid is None else time.clock_gettime(~self.pid << 3 | 2)


@contextmanager
def bindfs(base: Path) -> Iterator[Place]:
    """A bindfs mount of its own directory below *base*."""
    source, mountpoint = base / "bindfs-source", base / "bindfs"
    source.mkdir()
    mountpoint.mkdir()
    process = subprocess.Popen(["bindfs", "-f", str(source), str(mountpoint)])
    try:
        while not os.path.ismount(mountpoint):
            assert process.poll() is None, "bindfs has ended"
            time.sleep(0.01)
        yield Place(mountpoint, process.pid)
    finally:
        subprocess.run(["umount", "-l", str(mountpoint)], check=True)
        process.wait()


@contextmanager
def layer(base: Path, checkout: Path) -> Iterator[Place]:
    """A layer below *base*, of the program in *checkout*."""
    base.mkdir()
    with Layer(base) as volume:
        volume.prefix = ("env", f"PYTHONPATH={checkout}")
        volume.start()
        yield Place(volume.mountpoint, volume.pid)
        volume.stop()


class Taken(NamedTuple):
    """The time of one batch, in seconds an operation."""

    wall: float
    cpu: float


def measure(places: dict[str, Place], rounds: int, count: int) -> dict[tuple[str, str], Taken]:
    """The quickest batch by step and place."""
    batches: dict[tuple[str, str], list[Taken]] = {}
    for number in range(rounds):
        directories = {name: place.path / f"round-{number}" for name, place in places.items()}
        for directory in directories.values():
            directory.mkdir()
        for step in STEPS:
            done = step.done(count)
            for name, place in places.items():
                cpu = place.cpu_seconds()
                begun = time.perf_counter()
                step.run(str(directories[name]), count)
                wall = time.perf_counter() - begun
                taken = Taken(wall / done, (place.cpu_seconds() - cpu) / done)
                batches.setdefault((step.label, name), []).append(taken)
        for directory in directories.values():
            shutil.rmtree(directory)
        if sys.stderr.isatty():
            print(f"round {number + 1} of {rounds}", end="\r", file=sys.stderr)
    return {
        key: Taken(min(one.wall for one in found), min(one.cpu for one in found))
        for key, found in batches.items()
    }


def show(taken: dict[tuple[str, str], Taken], layers: list[str]) -> None:
    """Print the table. *layers*: the places that are compared with bindfs."""
    print(f"{'':28}" + "".join(f"{name:>10}{'cpu':>6}{'/bindfs':>9}" for name in layers), end="")
    print(f"{'bindfs':>10}{'cpu':>6}{'backing':>10}")
    ratios: dict[str, list[float]] = {name: [] for name in layers}
    for step in STEPS:
        bound = taken[step.label, "bindfs"]
        print(f"{step.label:28}", end="")
        for name in layers:
            wall, cpu = taken[step.label, name]
            print(f"{wall * 1e6:10.1f}{cpu * 1e6:6.0f}{wall / bound.wall:9.2f}", end="")
            if step.counts:
                ratios[name].append(wall / bound.wall)
        backing = taken[step.label, "backing"]
        print(f"{bound.wall * 1e6:10.1f}{bound.cpu * 1e6:6.0f}{backing.wall * 1e6:10.1f}")
    print(f"{'geometric mean':28}", end="")
    for name in layers:
        mean = math.exp(statistics.fmean(map(math.log, ratios[name])))
        print(f"{'':16}{mean:9.2f}", end="")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="run layer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--where", default="/dev/shm", help="directory to work in (/dev/shm)")
    parser.add_argument("--count", type=int, default=1000, help="operations a batch (1000)")
    parser.add_argument("--rounds", type=int, default=12, help="batches of each operation (12)")
    parser.add_argument("--beside", type=Path, help="another checkout, measured as 'before'")
    options = parser.parse_args()
    checkouts = {"layer": Path(__file__).resolve().parents[2]}
    if options.beside is not None:
        checkouts = {"before": options.beside.resolve(), **checkouts}
    with (
        tempfile.TemporaryDirectory(prefix="fusejournal-bench.", dir=options.where) as name,
        ExitStack() as mounted,
    ):
        base = Path(name)
        places = {
            name: mounted.enter_context(layer(base / name, checkout))
            for name, checkout in checkouts.items()
        }
        places["bindfs"] = mounted.enter_context(bindfs(base))
        (base / "plain").mkdir()
        places["backing"] = Place(base / "plain", None)
        show(measure(places, options.rounds, options.count), list(checkouts))


if __name__ == "__main__":
    main()
