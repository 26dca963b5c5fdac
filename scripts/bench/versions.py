"""Versions beside restic and borg (Debian's), which back up the same tree at the same moments: time
and peak memory of each, the size of the stores, and restores of the tree and of one file, beside
``cp -a``.

A tree of --files small files in directories of a hundred is made through a layer; then, --rounds
times, --changes changes (writes in place, new files, renames, removals), after each of which the
three make their version in turn, the order changing. Files are in the page cache. Commands run as
users run them, start of the interpreter included; restic and borg with their defaults, but for
compression (borg: zstd; restic 0.14 has its own), and without encryption where that can be chosen.

With --week it is a week of an office (office.py) of --size: twice a day the three make a version,
and once a day they let go of all but the newest six.

Not a measure of the first backup: fusejournal reads its journal, the two others the tree. Peak
memory is that of the largest process: a restore by several processes has some more in all."""

import argparse
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fusejournal.replay.digest import digest_tree
from scripts.bench.office import Office
from tests.support.layer import Layer

_MB = 1 << 20
_NO_BYTE_CODE = "PYTHONDONTWRITEBYTECODE"
_KEPT = 6
"""The versions that a week's pruning keeps."""
_MEASURED = """
import os, sys, time
begun = time.perf_counter()
out = os.open(os.devnull, os.O_WRONLY)
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ,
                        file_actions=[(os.POSIX_SPAWN_DUP2, out, 1)])
_, status, used = os.wait4(child, 0)
print(time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


class Cost(NamedTuple):
    """The cost of one command."""

    seconds: float
    cpu_seconds: float
    peak_mb: int


def cost(arguments: list[str], environment: dict[str, str], cwd: Path) -> Cost:
    """Run a command to its end, as the child of a small process: the kernel counts the memory that
    a process had before its exec."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _MEASURED, *arguments],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{arguments}: {done.stderr}")
    seconds, cpu_seconds, peak_kb = done.stdout.split()
    return Cost(float(seconds), float(cpu_seconds), int(peak_kb) >> 10)


class Program(NamedTuple):
    """One of those that are compared, as commands."""

    name: str
    store: Path
    create: Callable[[int], list[str]]
    restore: Callable[[Path], list[str]]
    restore_one: Callable[[Path, str], list[str]]
    prune: list[list[str]]
    """The commands by which all but the newest versions go."""


def programs(base: Path, layer: Layer, restored: str = "v0", kept: int = 0) -> list[Program]:
    """All three, with empty stores. *restored*: the version that is restored; *kept*: how many
    pruning keeps."""
    tree, state = layer.mountpoint, str(layer.state)
    ours, restic, borg = (base / f"{name}-store" for name in ("our", "restic", "borg"))
    layer.run("version", "store", "init", state, "--store", str(ours))
    environment = _environment(base, layer)
    cost(["restic", "init", "-r", str(restic)], environment, base)
    cost(["borg", "init", "-e", "none", str(borg)], environment, base)
    us = [sys.executable, "-m", "fusejournal"]
    cost([*us, "version", "list", state], environment, base)  # makes the byte code
    return [
        Program(
            "fusejournal",
            ours,
            # One with a name stays for ever.
            lambda n: [
                *(*us, "version", "create", state),
                *([] if kept and f"v{n}" != restored else [f"v{n}"]),
            ],
            lambda to: [*us, "restore", state, "--to-version", restored, "--target", str(to)],
            lambda to, path: [
                *(*us, "restore", state, path, "--to-version", restored, "--target", str(to))
            ],
            [[*us, "prune", state]],
        ),
        Program(
            "restic",
            restic,
            lambda n: ["restic", "-r", str(restic), "backup", "--tag", f"v{n}", str(tree)],
            lambda to: [
                *("restic", "-r", str(restic), "restore", "latest", "--tag", restored),
                *("--target", str(to)),
            ],
            lambda to, path: [
                *("restic", "-r", str(restic), "restore", "latest", "--tag", restored),
                *("--target", str(to), "--include", str(tree / path)),
            ],
            [
                [
                    *("restic", "-r", str(restic), "forget", "--group-by", "host", "--prune"),
                    *("--keep-last", str(kept)),
                ]
            ],
        ),
        Program(
            "borg",
            borg,
            lambda n: ["borg", "create", "-C", "zstd", f"{borg}::v{n}", str(tree)],
            lambda to: ["borg", "extract", f"{borg}::{restored}"],
            lambda to, path: [
                *("borg", "extract", f"{borg}::{restored}", str(tree / path).lstrip("/"))
            ],
            [
                ["borg", "prune", "--keep-last", str(kept), str(borg)],
                ["borg", "compact", str(borg)],
            ],
        ),
    ]


def _environment(base: Path, layer: Layer) -> dict[str, str]:
    # An installed program has its byte code; a checkout may be kept from writing it.
    kept = {key: value for key, value in layer.environment.items() if key != _NO_BYTE_CODE}
    return {
        **kept,
        "PYTHONPYCACHEPREFIX": str(base / "byte-code"),
        "RESTIC_PASSWORD": "password",
        "RESTIC_CACHE_DIR": str(base / "restic-cache"),
        "BORG_BASE_DIR": str(base / "borg-base"),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
    }


class Tree:
    """The tree, and what is done to it."""

    def __init__(self, root: Path, files: int) -> None:
        self._root = root
        self._random = random.Random(1)
        self.paths: list[Path] = []
        for number in range(files):
            if number % 100 == 0:
                directory = root / f"d{number // 10_000}" / f"d{number // 100}"
                directory.mkdir(parents=True)
            path = directory / f"file{number}"
            path.write_bytes(self._content())
            self.paths.append(path)
        (root / "large").write_bytes(self._random.randbytes(64 << 20))

    def _content(self) -> bytes:
        words = b"some words of a text that compresses as texts do "
        return self._random.randbytes(300) + words * self._random.randrange(1, 150)

    def change(self, count: int) -> None:
        """Makes *count* changes, most of them in place."""
        choice = self._random
        for number in range(count):
            at = choice.randrange(len(self.paths))
            path = self.paths[at]
            match number % 10:
                case 0:
                    new = path.with_name(f"new{choice.getrandbits(60)}")
                    new.write_bytes(self._content())
                    self.paths.append(new)
                case 1:
                    self.paths[at] = path.rename(path.with_name(f"moved{choice.getrandbits(60)}"))
                case 2:
                    path.unlink()
                    self.paths[at] = self.paths[-1]
                    self.paths.pop()
                case 3:
                    with open(self._root / "large", "r+b") as file:
                        file.seek(choice.randrange(63 << 20))
                        file.write(choice.randbytes(4096))
                case _:
                    with open(path, "r+b") as file:
                        file.seek(choice.randrange(300))
                        file.write(choice.randbytes(100))


def _size(path: Path) -> int:
    found = subprocess.run(["du", "-sk", str(path)], capture_output=True, text=True, check=True)
    return int(found.stdout.split()[0]) << 10


def _row(label: str, *cells: str) -> None:
    print(f"{label:<34}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


def _shown(found: Cost) -> str:
    return f"{found.seconds:.2f} s {found.cpu_seconds:.2f} {found.peak_mb} MB"


def _median(costs: list[Cost]) -> Cost:
    return Cost(
        statistics.median(one.seconds for one in costs),
        statistics.median(one.cpu_seconds for one in costs),
        max(one.peak_mb for one in costs),
    )


def _sum(costs: list[Cost]) -> Cost:
    return Cost(
        sum(one.seconds for one in costs),
        sum(one.cpu_seconds for one in costs),
        max(one.peak_mb for one in costs),
    )


def run(base: Path, files: int, changes: int, rounds: int) -> None:
    """Make the tree, measure, print."""
    with Layer(base / "volume") as layer:
        layer.start()
        begun = time.perf_counter()
        tree = Tree(layer.mountpoint, files)
        seconds = time.perf_counter() - begun
        print(f"{files:,} files made in {seconds:.0f} s, on {os.uname().nodename}")
        compared = programs(base, layer)
        environment = _environment(base, layer)
        _row("wall, CPU, peak memory", *(one.name for one in compared))
        first = [cost(one.create(0), environment, base) for one in compared]
        _row("the first", *map(_shown, first))
        wanted = digest_tree(layer.mountpoint).digest
        path = str(tree.paths[files // 2].relative_to(layer.mountpoint))
        costs: dict[str, list[Cost]] = {one.name: [] for one in compared}
        for number in range(1, rounds + 1):
            tree.change(changes)
            for one in compared[number % 3 :] + compared[: number % 3]:
                costs[one.name].append(cost(one.create(number), environment, base))
        _row(f"after {changes:,} changes", *(_shown(_median(costs[one.name])) for one in compared))
        _finish(compared, base, environment, path, wanted)
        layer.stop()


def _finish(
    compared: list[Program], base: Path, environment: dict[str, str], path: str, wanted: str
) -> None:
    """Compare the stores, and restores of *path* and of the tree, whose digest is *wanted*."""
    _row("store", *(f"{_size(one.store) / _MB:.0f} MB" for one in compared))
    _row("restore one file", *(_restores(one, base, environment, path) for one in compared))
    _row("restore the tree", *(_restores(one, base, environment) for one in compared))
    found = digest_tree(base / "restored-fusejournal").digest
    print("the restored tree is equal" if found == wanted else "THE RESTORED TREE DIFFERS")
    copied = cost(
        ["cp", "-a", str(base / "restored-fusejournal"), str(base / "copy")], environment, base
    )
    _row("cp -a of that tree", _shown(copied))


def run_week(base: Path, size: float, days: int) -> None:
    """Have an office work for so many days, measure, print."""
    config = f"[versions]\nkeep_last = {_KEPT}\n"
    with Layer(base / "volume", config=config) as layer:
        layer.start()
        begun = time.perf_counter()
        office = Office(layer.mountpoint, size)
        seconds = time.perf_counter() - begun
        print(
            f"an office of {office.users} users, {_size(layer.backing) / _MB:.0f} MB, made in "
            f"{seconds:.0f} s, on {os.uname().nodename}"
        )
        last = 2 * days
        compared = programs(base, layer, f"v{last}", _KEPT)
        environment = _environment(base, layer)
        _row("wall, CPU, peak memory", *(one.name for one in compared))
        first = [cost(one.create(0), environment, base) for one in compared]
        _row("the first", *map(_shown, first))
        costs: dict[str, list[Cost]] = {one.name: [] for one in compared}
        pruned: dict[str, list[Cost]] = {one.name: [] for one in compared}
        before = layer.head_seq()
        for number in range(1, last + 1):
            office.work()
            for one in compared[number % 3 :] + compared[: number % 3]:
                costs[one.name].append(cost(one.create(number), environment, base))
                if number % 2 == 0 and number != last:
                    pruned[one.name] += [cost(to, environment, base) for to in one.prune]
        entries = (layer.head_seq() - before) // last
        _row(f"half a day, {entries:,} entries", *(_shown(_median(costs[n])) for n in costs))
        _row("pruning, in all", *(_shown(_sum(found)) for found in pruned.values()))
        wanted = digest_tree(layer.mountpoint).digest
        _finish(compared, base, environment, str(office.one_file), wanted)
        layer.stop()


def _restores(one: Program, base: Path, environment: dict[str, str], path: str = "") -> str:
    target = base / f"restored-{one.name}{'-file' if path else ''}"
    cwd = base
    if one.name == "borg":
        target.mkdir()
        cwd = target
    arguments = one.restore_one(target, path) if path else one.restore(target)
    return _shown(cost(arguments, environment, cwd))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="run versions",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--where", type=Path, default=Path("/var/tmp"), help="a place on a disk")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--changes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--week", action="store_true", help="an office's, in place of all that")
    parser.add_argument("--size", type=float, default=1.0, help="1: 8,000 files, 300 MB")
    parser.add_argument("--days", type=int, default=7)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    base = Path(tempfile.mkdtemp(prefix="bench-versions.", dir=options.where))
    try:
        if options.week:
            run_week(base, options.size, options.days)
        else:
            run(base, options.files, options.changes, options.rounds)
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
