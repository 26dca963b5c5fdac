"""The memory of a layer, however many entries it has made: a soak on a nearly empty tree.

Several callers at a time have rounds of some hundred names each, in which files of all kinds are
made, written, changed, linked, renamed and removed, among them what is refused, what is removed
while it is open, and large reads and writes. At the end of a round the tree is as empty as before.
A line every so many entries: entries, seconds,
the layer's memory in MiB (RssAnon: its heap; RssShmem: tables that the next process finds), its
descriptors and its segments. The last line is the most that RssAnon was after the first line, which
a start with nothing to do needs anyway.

Exit code 1 where that is above --limit. Source: proc(5), /proc/pid/status."""

import argparse
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

from tests.support.layer import Layer

SMALL = os.urandom(4096)
LARGE = os.urandom(1 << 20)
MIB = 1 << 20


def make_files(where: str, names: int) -> None:
    """Make files, write, change and stat them."""
    for number in range(names):
        path = f"{where}/f{number}"
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        os.write(fd, SMALL[: 1 + number % len(SMALL)])
        os.fchmod(fd, 0o640)
        os.ftruncate(fd, 100)
        os.close(fd)
        os.utime(path, ns=(number, number))
        os.setxattr(path, "user.bench", b"value")
        os.removexattr(path, "user.bench")
        os.chown(path, number % 7, number % 5)


def make_others(where: str, names: int) -> None:
    """Make what is no file, and further names."""
    for number in range(names):
        os.mkdir(f"{where}/d{number}")
        os.symlink("target", f"{where}/s{number}")
        os.mknod(f"{where}/p{number}", stat.S_IFIFO | 0o600)
        os.link(f"{where}/f{number}", f"{where}/d{number}/l")
        os.rename(f"{where}/s{number}", f"{where}/d{number}/s")


def be_refused(where: str, names: int) -> None:
    """Ask for what cannot be."""
    for number in range(names):
        with suppress(FileExistsError):
            os.mkdir(f"{where}/d{number}")
        with suppress(FileNotFoundError):
            os.unlink(f"{where}/absent{number}")
        with suppress(OSError):
            os.rmdir(f"{where}/d{number}")
        with suppress(OSError):
            os.rename(f"{where}/d{number}", f"{where}/f{number}")
        with suppress(OSError):
            os.getxattr(f"{where}/f{number}", "user.absent")


def remove_while_open(where: str, names: int) -> None:
    """Remove files that are open, and go on with them."""
    opened = []
    for number in range(names):
        fd = os.open(f"{where}/o{number}", os.O_CREAT | os.O_RDWR)
        os.unlink(f"{where}/o{number}")
        os.write(fd, SMALL)
        opened.append(fd)
    for fd in opened:
        assert os.pread(fd, 10, 0) == SMALL[:10]
        os.close(fd)


def move_much(where: str, names: int) -> None:
    """Write and read large pieces, and have some of it flushed."""
    fd = os.open(f"{where}/large", os.O_CREAT | os.O_RDWR)
    for number in range(max(1, names // 100)):
        os.pwrite(fd, LARGE, number * MIB)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    while os.read(fd, MIB):
        pass
    os.close(fd)


def list_all(where: str, names: int) -> None:
    """List everything with its attributes."""
    for directory, _, found in os.walk(where):
        for name in found:
            os.lstat(f"{directory}/{name}")


STEPS = (make_files, make_others, be_refused, remove_while_open, move_much, list_all)


def memory(pid: int) -> dict[str, float]:
    """The parts of a process's memory, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    words = (line.split() for line in lines if line.startswith("Rss"))
    return {word[0].rstrip(":"): int(word[1]) / 1024 for word in words}


def live(where: str, names: int) -> None:
    """One round, in a directory of its own."""
    os.mkdir(where)
    for step in STEPS:
        step(where, names)
    shutil.rmtree(where)


def soak(
    layer: Layer, callers: Executor, workers: int, entries: int, each: int, names: int
) -> Iterator[float]:
    """Make so many *entries*, in rounds of *names*, as many at a time as there are *workers* among
    the *callers*; print a line every *each*. Yields RssAnon, in MiB, at each line."""
    print(f"{'entries':>12}{'seconds':>9}{'RssAnon':>9}{'RssShmem':>10}{'fds':>7}{'segments':>10}")
    begun, due, number = time.monotonic(), 0, 0
    while True:
        status = layer.ask()
        if status["head_seq"] >= due:
            held = memory(layer.pid)
            fds = len(os.listdir(f"/proc/{layer.pid}/fd"))
            print(
                f"{status['head_seq']:12,}{time.monotonic() - begun:9.0f}{held['RssAnon']:9.1f}"
                f"{held['RssShmem']:10.1f}{fds:7}{status['segments']:10,}",
                flush=True,
            )
            yield held["RssAnon"]
            due += each
        if status["head_seq"] >= entries:
            return
        places = [f"{layer.mountpoint}/round-{number + one}" for one in range(workers)]
        for done in [callers.submit(live, place, names) for place in places]:
            done.result()
        number += workers


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="run memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--where", default="/dev/shm", help="directory to work in (/dev/shm)")
    parser.add_argument("--entries", type=int, default=10_000_000, help="entries (10,000,000)")
    parser.add_argument("--each", type=int, default=250_000, help="entries a line (250,000)")
    parser.add_argument("--names", type=int, default=500, help="names a round (500)")
    parser.add_argument("--callers", type=int, default=4, help="callers at a time (4)")
    parser.add_argument("--config", default="", help="configuration of the volume, in TOML")
    parser.add_argument("--limit", type=float, default=100, help="MiB of RssAnon (100)")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="fusejournal-bench.", dir=options.where) as name,
        ProcessPoolExecutor(options.callers) as callers,
        Layer(Path(name), config=options.config) as layer,
    ):
        layer.prefix = ("env",)
        layer.start()
        asked = (options.callers, options.entries, options.each, options.names)
        held = list(soak(layer, callers, *asked))
        layer.stop()
    most = max(held[1:] or held)
    print(f"at most {most:.1f} MiB, {held[0]:.1f} at the beginning")
    sys.exit(int(most > options.limit))


if __name__ == "__main__":
    main()
