"""The layer beside bindfs (a C passthrough) and the backing itself: the same operations in turn.

Every round runs each operation on each place, one place after the other, so that a slow moment of
the machine hits all of them. The table shows medians over the rounds and, of the layer, the ratio
to bindfs.

Mind the scheduler: a single client and a file system process wait for each other all the time, and
what costs most is waking the other one up, several times more across processors than on the same
one. Where each runs is settled only after some tenths of a second, so steps must be that long:
with --count 2000 bindfs can be seen both at 12 and at 80 us an operation."""

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.layer import Layer

SMALL = os.urandom(4096)
LARGE = os.urandom(1 << 20)


def create(directory: str, count: int) -> None:
    for number in range(count):
        fd = os.open(f"{directory}/f{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(fd, SMALL)
        os.close(fd)


def stat(directory: str, count: int) -> None:
    for number in range(count):
        os.stat(f"{directory}/f{number}")


def list_and_stat(directory: str, count: int) -> None:
    for _ in range(5):
        with os.scandir(directory) as entries:
            assert sum(entry.stat(follow_symlinks=False).st_size > 0 for entry in entries) >= count


def read_small(directory: str, count: int) -> None:
    for number in range(count):
        fd = os.open(f"{directory}/f{number}", os.O_RDONLY)
        assert len(os.read(fd, 8192)) == len(SMALL)
        os.close(fd)


def chmod(directory: str, count: int) -> None:
    for number in range(count):
        os.chmod(f"{directory}/f{number}", 0o600)


def set_times(directory: str, count: int) -> None:
    for number in range(count):
        os.utime(f"{directory}/f{number}", ns=(number, number))


def rename(directory: str, count: int) -> None:
    for number in range(count):
        os.rename(f"{directory}/f{number}", f"{directory}/g{number}")


def link(directory: str, count: int) -> None:
    for number in range(count):
        os.link(f"{directory}/g{number}", f"{directory}/h{number}")


def unlink(directory: str, count: int) -> None:
    for number in range(count):
        os.unlink(f"{directory}/g{number}")


def mkdir_rmdir(directory: str, count: int) -> None:
    for number in range(count):
        os.mkdir(f"{directory}/d{number}")
    for number in range(count):
        os.rmdir(f"{directory}/d{number}")


def write_small(directory: str, count: int) -> None:
    fd = os.open(f"{directory}/w", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
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
    fd = os.open(f"{directory}/big", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for number in range(count):
        os.pwrite(fd, LARGE, number << 20)
    os.close(fd)


def read_large(directory: str, count: int) -> None:
    fd = os.open(f"{directory}/big", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    while os.read(fd, 1 << 20):
        pass
    os.close(fd)


def create_and_fsync(directory: str, count: int) -> None:
    for number in range(count):
        fd = os.open(f"{directory}/s{number}", os.O_CREAT | os.O_WRONLY)
        os.write(fd, SMALL)
        os.fsync(fd)
        os.close(fd)


class Step(NamedTuple):
    label: str
    run: Callable[[str, int], None]
    share: float
    """Of --count."""
    operations: int
    """Done for each one counted."""
    unit: str
    mark: float | None
    """Of bindfs; None where there is none."""


STEPS = [
    Step("create + write 4 KiB", create, 1, 1, "op/s", 0.4),
    Step("stat", stat, 1, 1, "op/s", 0.4),
    Step("list + stat", list_and_stat, 1, 5, "op/s", 0.4),
    Step("open + read 4 KiB", read_small, 1, 1, "op/s", 0.4),
    Step("chmod", chmod, 1, 1, "op/s", 0.4),
    Step("utimens", set_times, 1, 1, "op/s", 0.4),
    Step("rename", rename, 1, 1, "op/s", 0.4),
    Step("link", link, 1, 1, "op/s", 0.4),
    Step("unlink", unlink, 1, 1, "op/s", 0.4),
    Step("mkdir + rmdir", mkdir_rmdir, 0.5, 2, "op/s", 0.4),
    Step("write 4 KiB", write_small, 2, 1, "op/s", 0.4),
    Step("read 4 KiB at random", read_small_at_random, 2, 1, "op/s", 0.4),
    Step("write 1 MiB", write_large, 0.1, 1, "MiB/s", 1.0),
    Step("read 1 MiB", read_large, 0.1, 1, "MiB/s", 1.0),
    Step("create + write + fsync", create_and_fsync, 0.05, 1, "op/s", None),
]


@contextmanager
def bindfs(base: Path) -> Iterator[Path]:
    """A bindfs mount of its own directory below *base*."""
    source, mountpoint = base / "bindfs-source", base / "bindfs"
    source.mkdir()
    mountpoint.mkdir()
    subprocess.run(["bindfs", str(source), str(mountpoint)], check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", "-l", str(mountpoint)], check=True)


def measure(places: dict[str, Path], rounds: int, count: int) -> dict[tuple[str, str], list[float]]:
    """Operations a second by step and place, one figure a round."""
    rates: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        directories = {name: place / f"round-{number}" for name, place in places.items()}
        for directory in directories.values():
            directory.mkdir()
        for step in STEPS:
            amount = max(1, int(count * step.share))
            for name, directory in directories.items():
                begun = time.perf_counter()
                step.run(str(directory), amount)
                rate = amount * step.operations / (time.perf_counter() - begun)
                rates.setdefault((step.label, name), []).append(rate)
        for directory in directories.values():
            shutil.rmtree(directory)
    return rates


def show(rates: dict[tuple[str, str], list[float]]) -> None:
    print(f"{'':24}{'layer':>10}{'bindfs':>10}{'backing':>10}  {'':6}{'of bindfs':>10}{'mark':>7}")
    for step in STEPS:
        layer, other, plain = (
            statistics.median(rates[step.label, name]) for name in ("layer", "bindfs", "backing")
        )
        mark = ""
        if step.mark is not None:
            mark = f"{step.mark:.1f} {'ok' if layer / other >= step.mark else '--'}"
        print(
            f"{step.label:24}{layer:10.0f}{other:10.0f}{plain:10.0f}  {step.unit:6}"
            f"{layer / other:10.2f}{mark:>7}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="run layer",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--where", default="/dev/shm", help="directory to work in")
    parser.add_argument("--count", type=int, default=6000, help="operations a step")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fusejournal-bench.", dir=options.where) as name:
        base = Path(name)
        with Layer(base) as layer, bindfs(base) as passthrough:
            layer.start()
            plain = base / "plain"
            plain.mkdir()
            places = {"layer": layer.mountpoint, "bindfs": passthrough, "backing": plain}
            show(measure(places, options.rounds, options.count))
            layer.stop()


if __name__ == "__main__":
    main()
