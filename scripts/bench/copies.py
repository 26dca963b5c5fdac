"""Copies of a primary's tree to a mirror ('rejoin') beside rsync -aHAX from a daemon, all on this
machine, over the loopback; the copy by TLS, rsync in plain.

whole    A new mirror gets all files. The version that it copies is there already, but for what was
         written last; the time to make the first one is told apart.
behind   The mirror was away while CHANGES files were written to, and the primary's journal begins
         later now: what differs is copied.

The volume is made of files in the backing, before its first mount."""

import argparse
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fusejournal.journal.base import load_base
from scripts.bench.replication import Couple, Node, couple
from tests.support.mirrors import wait_for

_CONFIG = """
[journal]
keep_bytes = 0
segment_bytes = "4MiB"
checkpoint_interval_seconds = 1.0
[replication]
keep_bytes = "1MiB"
"""
_PORT = 7761
_RSYNCD = """
use chroot = false
log file = {base}/rsyncd.log
pid file = {base}/rsyncd.pid
[tree]
path = {tree}
read only = true
uid = 0
gid = 0
"""
_DIRECTORY_FILES = 500


class Cost(NamedTuple):
    """The seconds that a command took, and those of processors in it (not in what it asks)."""

    seconds: float
    cpu_seconds: float


def _cost(work: Callable[[], object]) -> Cost:
    before, begun = os.times(), time.monotonic()
    work()
    seconds, after = time.monotonic() - begun, os.times()
    used = after.children_user + after.children_system
    return Cost(seconds, used - before.children_user - before.children_system)


def make_files(top: Path, count: int, size: int) -> None:
    """Makes *count* files of *size* bytes, so many to a directory."""
    chance = random.Random(7)
    for number in range(count):
        directory = top / f"d{number // _DIRECTORY_FILES}"
        if number % _DIRECTORY_FILES == 0:
            directory.mkdir(parents=True)
        (directory / f"f{number}").write_bytes(chance.randbytes(size))


@contextmanager
def rsync_daemon(base: Path, tree: Path) -> Iterator[str]:
    """Serves *tree* as long as the block goes on; gives its address."""
    config = base / "rsyncd.conf"
    config.write_text(_RSYNCD.format(base=base, tree=tree))
    command = ["rsync", "--daemon", "--no-detach", f"--port={_PORT}", f"--config={config}"]
    with subprocess.Popen([*command, "--address=127.0.0.1"]) as process:
        try:
            time.sleep(1.0)
            yield f"rsync://127.0.0.1:{_PORT}/tree/"
        finally:
            process.terminate()


def _rejoin(node: Node, *options: str) -> dict[str, Any]:
    command = [*node.prefix, *node.command("rejoin", str(node.state), "--json", *options)]
    done = subprocess.run(command, env=node.environment, cwd="/", check=True, capture_output=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _start(node: Node) -> None:
    node.reconfigure(_CONFIG)
    node.start("--config", str(node.base / "config.toml"), seconds=3600)


def _is_needing(nodes: Couple) -> bool:
    (peer,) = nodes.primary.ask()["replication"]["peers"]
    return bool(peer["state"] == "needs full copy")


def _begin_anew(mirror: Node) -> None:
    """Has nothing be left of it but key and peers, and a state that is a new mirror's."""
    mirror.stop()
    for path in mirror.state.iterdir():
        if path.name not in ("identity", "peers.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(mirror.backing)
    mirror.backing.mkdir()
    _start(mirror)
    mirror.stop()


def _line(name: str, cost: Cost, beside: Cost | None, came: str = "") -> None:
    ratio = f"{beside.seconds / cost.seconds:.2f}" if beside is not None else ""
    # (What another process began is no child of this one.)
    used = f"{cost.cpu_seconds:.2f} s of processors" if cost.cpu_seconds > 0 else ""
    print(f"{name:28}{cost.seconds:10.2f} s{used:>24}{ratio:>10}   {came}", flush=True)


def measure_whole(nodes: Couple, base: Path, options: argparse.Namespace) -> None:
    """Prints what a new mirror costs."""
    primary, mirror = nodes
    state = str(primary.state)
    first = _cost(lambda: primary.run("version", "create", state))
    _line("first version", first, None)
    (primary.mountpoint / "last").write_bytes(b"last")
    with rsync_daemon(base, primary.backing) as address:
        target = base / "rsynced"
        command = ["taskset", "-c", str(max(os.sched_getaffinity(0)))]
        command += ["rsync", "-aHAX", "--filter=-x trusted.*", address, f"{target}/"]
        beside = _cost(lambda: subprocess.run(command, check=True))
    shutil.rmtree(target)
    _line("rsync -aHAX", beside, None)
    told: list[dict[str, Any]] = []
    cost = _cost(lambda: told.append(_rejoin(mirror, "--whole")))
    assert told[0]["rung"] == 4, told
    _line("rejoin, all", cost, beside, f"{told[0]['fetched_bytes'] / 1e6:,.1f} MB came")


def measure_behind(nodes: Couple, options: argparse.Namespace) -> None:
    """Prints what a mirror costs that was away."""
    primary, mirror = nodes
    head_seq = primary.head_seq()
    chance = random.Random(11)
    for _ in range(options.changes):
        number = chance.randrange(options.files)
        path = primary.mountpoint / f"d{number // _DIRECTORY_FILES}" / f"f{number}"
        with open(path, "r+b") as file:
            file.write(b"changed")
    # (More than a segment, so that one closes behind the mirror's end and can go.)
    (primary.mountpoint / "grown").write_bytes(os.urandom(12 << 20))
    wait_for(lambda: _is_needing(nodes), primary.words, 600)

    def has_gone() -> bool:
        primary.run("prune", str(primary.state), "--config", str(primary.base / "config.toml"))
        base = load_base(primary.state)
        return base is not None and base.seq > head_seq

    wait_for(has_gone, primary.words, 600)
    told: list[dict[str, Any]] = []
    cost = _cost(lambda: told.append(_rejoin(mirror)))
    assert told[0]["rung"] == 3, told
    came = f"{told[0]['fetched_bytes'] / 1e6:,.1f} MB came"
    _line(f"rejoin, {options.changes:,} changes", cost, None, came)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="run copies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--where", default="/dev/shm", help="directory to work in")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=2000, help="of each file")
    parser.add_argument("--changes", type=int, default=1000)
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    with (
        tempfile.TemporaryDirectory(prefix="fusejournal-bench.", dir=options.where) as name,
        couple(Path(name), (cpus[0], cpus[-1])) as nodes,
    ):
        base = Path(name)
        make_files(nodes.primary.backing, options.files, options.bytes)
        _start(nodes.primary)
        primary = nodes.primary
        kept = str(base / "kept")
        primary.run("version", "store", "init", str(primary.state), "--store", kept)
        _start(nodes.mirror)  # so that it learns where its primary listens
        wait_for(lambda: nodes.mirror.ask()["replication"]["mirror"]["primary"], primary.words, 60)
        nodes.pause()
        _begin_anew(nodes.mirror)
        measure_whole(nodes, base, options)
        _start(nodes.mirror)
        nodes.resume()
        nodes.mirror.stop()
        measure_behind(nodes, options)


if __name__ == "__main__":
    main()
