"""Measures how quickly a journal gives back what is in it: verify beside xxhsum, replay beside cp
-a, undo of an rm -rf beside that, and dump, history and restore beside fixed limits; with the peak
memory of each command.

Two journals are made: one of a source tree (files of /usr) that ``cp -a`` wrote through a layer,
and one of many small entries, with a few that belong together spread over all of it. Every command
is run as users run it, start of the interpreter included, but for verify's rate, where it is told
apart. Files are in the page cache before they are read. Of several rounds the median counts; what
is compared takes turns.

Memory is that of the largest process of a command (the kernel's count, workers included), not their
sum. Needs some 5 GB at --where, which should be a disk: in /dev/shm a flush costs nothing. On ext4,
wait five minutes after many files were deleted there, for creating files is slow until then."""

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

from fusejournal.journal.journal import Journal
from fusejournal.journal.segment import list_segments
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import NewEpoch
from fusejournal.types import SYSTEM_CALLER, Epoch
from scripts.bench.recovery_runner import MB, Ran, Runner, warm
from scripts.bench.recovery_work import (
    BIG_PATH,
    LINE,
    LOG_ENTRIES,
    LOG_PATH,
    PIECES,
    big_piece,
    make_indexes,
    make_journal,
    make_source,
    path_of,
)
from tests.support.layer import Layer

_VERIFY_MARK = 0.5
_DUMP_MARK = 200_000
_HISTORY_SECONDS = 1.0
_RESTORE_SECONDS = 2.0
_REPLAY_MARK = 0.5
_UNDO_MARK = 3.0
_UNDO_SPARSE_SECONDS = 2.0
_UNDO_FILES_EACH = 100
_RSS_MARK_MB = 300


# -- the table -------------------------------------------------------------------------------------


def show(
    what: str, measured: str, beside: str = "", ratio: str = "", ok: bool | None = None
) -> None:
    """One line of the table, at once, because the next may be minutes away."""
    word = "" if ok is None else "ok" if ok else "MISSED"
    print(f"{what:34}{measured:>18}{beside:>26}{ratio:>22}  {word}", flush=True)


def note(text: str) -> None:
    """Report what goes on, beside the table."""
    print(f"... {text}", file=sys.stderr, flush=True)


# -- what is measured ------------------------------------------------------------------------------


def verify(runner: Runner, what: str, directory: Path, rounds: int, mark: float | None) -> None:
    """verify beside xxhsum, in MB/s of segments."""
    segments = list_segments(directory)
    size = sum(path.stat().st_size for path in segments)
    warm(segments)
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as tiny:
        journal = Journal.create(Path(tiny), uuid4(), JournalOptions())
        journal.append(NewEpoch(Epoch(1), "one"), SYSTEM_CALLER, time.time_ns(), path_of)
        journal.close()
        starts = [
            runner.fusejournal("start", "journal", "verify", tiny).seconds for _ in range(rounds)
        ]
    for _ in range(rounds):
        ran = runner.fusejournal("verify", "journal", "verify", directory, "--json")
        ours.append(ran.seconds)
        theirs.append(runner.run("xxhsum", "-q", "-H3", *segments).seconds)
    entries = json.loads(ran.output)["entries"]
    start = statistics.median(starts)
    seconds, other = statistics.median(ours) - start, statistics.median(theirs)
    ratio = other / seconds
    show(
        f"verify, {what}",
        f"{size / seconds / MB:,.0f} MB/s",
        f"xxhsum {size / other / MB:,.0f} MB/s",
        f"{ratio:.2f}" + (f" (mark {mark})" if mark is not None else ""),
        ratio >= mark if mark is not None else None,
    )
    show(
        "",
        f"{entries / seconds:,.0f} entry/s",
        f"{size / MB:,.0f} MB, {entries:,} entries",
        f"and {start:.2f} s to start",
    )


def dump(runner: Runner, directory: Path, entries: int) -> None:
    """dump, in entries a second."""
    seconds = runner.fusejournal("dump", "journal", "dump", directory, keep=False).seconds
    rate = entries / seconds
    show("dump, small entries", f"{rate:,.0f} entry/s", "", f"mark {_DUMP_MARK:,}",
         rate >= _DUMP_MARK)  # fmt: skip


def history(runner: Runner, directory: Path) -> None:
    """The life of a path that has a few entries in every segment."""
    ran = runner.fusejournal("history", "history", directory, LOG_PATH)
    lines = ran.output.count(b"\n")
    show(f"history, {LOG_ENTRIES} entries", f"{ran.seconds:.2f} s", f"{lines} lines",
         f"mark {_HISTORY_SECONDS} s",
         ran.seconds <= _HISTORY_SECONDS and lines == 1 + 1 + LOG_ENTRIES)  # fmt: skip


def restore(runner: Runner, base: Path, directory: Path, head_seq: int) -> None:
    """A file whose pieces are in all segments."""
    target = base / "restored"
    ran = runner.fusejournal(
        "restore", "restore", directory, BIG_PATH, "--to-seq", head_seq, "--target", target
    )
    wanted = hashlib.sha256()
    for number in range(PIECES):
        wanted.update(big_piece(number))
    found = hashlib.sha256((target / Path(BIG_PATH).name).read_bytes())
    same = found.digest() == wanted.digest()
    shutil.rmtree(target)
    show("restore, 10 MiB file", f"{ran.seconds:.2f} s", "content equal" if same else "DIFFERS",
         f"mark {_RESTORE_SECONDS} s", same and ran.seconds <= _RESTORE_SECONDS)  # fmt: skip


def log_stat(runner: Runner, directory: Path, entries: int) -> None:
    """The whole of ``log --stat``."""
    seconds = runner.fusejournal("log --stat", "log", directory, "--stat").seconds
    show("log --stat, small entries", f"{entries / seconds:,.0f} entry/s", f"{seconds:.1f} s")


def replay(runner: Runner, base: Path, layer: Layer, rounds: int) -> None:
    """A full replay beside ``cp -a`` of the backing, each with a flush."""
    ours, theirs = [], []
    warm(layer.state.rglob("*"))
    warm(layer.backing.rglob("*"))
    # Each round gets directories of its own, and nothing is deleted before the end: ext4 looks at
    # every inode freed in the last minutes before it takes another, which costs more than the rest.
    for number in range(rounds):
        target, other = base / f"target-{number}", base / f"other-{number}"
        replaying = ("replay", "replay", layer.state, target)
        ours.append(_with_flush(base, runner.fusejournal, *replaying))
        theirs.append(_with_flush(base, runner.run, "cp", "-a", layer.backing, other))
    entries = json.loads(runner.fusejournal("status", "status", layer.state, "--json").output)
    seconds, cp = statistics.median(ours), statistics.median(theirs)
    show("replay, source tree", f"{seconds:.1f} s", f"cp -a {cp:.1f} s",
         f"{cp / seconds:.2f} (mark {_REPLAY_MARK})", cp / seconds >= _REPLAY_MARK)  # fmt: skip
    show("", f"{entries['head_seq'] / seconds:,.0f} entry/s",
         f"{entries['head_seq']:,} entries")  # fmt: skip
    found = [
        json.loads(runner.fusejournal("digest", "digest", tree, "--json").output)
        for tree in (target, layer.backing)
    ]
    same = found[0]["digest"] == found[1]["digest"]
    show("digest of target and backing", found[0]["digest"][:12], found[1]["digest"][:12],
         "equal" if same else "DIFFERENT", same)  # fmt: skip


def undo(runner: Runner, layer: Layer, files: int) -> None:
    """Undo of an rm -rf of *files* small files beside the rm itself."""
    tree = layer.mountpoint / "tree"
    for number in range(files):
        directory = tree / str(number // _UNDO_FILES_EACH)
        if number % _UNDO_FILES_EACH == 0:
            directory.mkdir(parents=True)
        (directory / str(number)).write_bytes(LINE)
    first = layer.ask()["head_seq"] + 1
    rm = runner.run("rm", "-rf", tree).seconds
    last = layer.ask()["head_seq"]
    chosen = ("undo", layer.state, f"{first}-{last}")
    planning = runner.fusejournal("undo, plan", *chosen, "--json").seconds
    seconds = runner.fusejournal("undo", *chosen, "--apply", "--json").seconds
    entries = layer.ask()["head_seq"] - last
    back = sum(len(names) for _, _, names in os.walk(tree))
    show(f"undo, {files:,} files", f"{seconds:.1f} s", f"rm -rf {rm:.1f} s",
         f"{seconds / rm:.2f} (mark {_UNDO_MARK})",
         seconds / rm <= _UNDO_MARK and back == files)  # fmt: skip
    show("", f"{seconds / files * 1e3:.2f} ms/file", f"rm -rf {rm / files * 1e3:.2f} ms/file",
         f"plan {planning:.1f} s, {entries / files:.2f} entries a file")  # fmt: skip


def undo_sparse(runner: Runner, layer: Layer) -> None:
    """Undo of a few bytes in a file of 1 TiB without much in it."""
    path = layer.mountpoint / "disk"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
        os.pwrite(file.fileno(), b"good", 1 << 39)
    first = layer.ask()["head_seq"] + 1
    with open(path, "r+b") as file:
        os.pwrite(file.fileno(), b"bad!", 1 << 39)
    chosen = f"{first}-{layer.ask()['head_seq']}"
    ran = runner.fusejournal("undo", "undo", layer.state, chosen, "--apply", "--json")
    with open(path, "rb") as file:
        good = os.pread(file.fileno(), 4, 1 << 39) == b"good"
    show("undo, 4 bytes of a sparse TiB", f"{ran.seconds:.2f} s", "content equal" if good else
         "DIFFERS", f"mark {_UNDO_SPARSE_SECONDS} s",
         good and ran.seconds <= _UNDO_SPARSE_SECONDS)  # fmt: skip


def _with_flush(base: Path, work: Callable[..., Ran], *arguments: object) -> float:
    """Seconds for *work* with *arguments* and for getting it to disk; what was there before is
    flushed first."""
    subprocess.run(["sync", "-f", str(base)], check=True)
    begun = time.perf_counter()
    work(*arguments)
    subprocess.run(["sync", "-f", str(base)], check=True)
    return time.perf_counter() - begun


def memory(runner: Runner) -> None:
    """The peak of each command."""
    for label, rss_mb in runner.rss_mb.items():
        if label != "status":
            show(f"peak memory, {label}", f"{rss_mb:,.0f} MB", "", f"mark {_RSS_MARK_MB} MB",
                 rss_mb <= _RSS_MARK_MB)  # fmt: skip


# -- all of it -------------------------------------------------------------------------------------


def _small(base: Path, entries: int, rounds: int) -> Runner:
    runner = Runner(base, dict(os.environ))
    directory = base / "small"
    note(f"making a journal of {entries:,} small entries")
    with _pool() as pool:
        head_seq = pool.apply(make_journal, (str(directory), entries))
        make_indexes(pool, directory)
    verify(runner, "small entries", directory, rounds, None)
    dump(runner, directory, head_seq)
    history(runner, directory)
    restore(runner, base, directory, head_seq)
    log_stat(runner, directory, head_seq)
    shutil.rmtree(directory)
    return runner


def _tree(base: Path, files: int, size: int, rounds: int) -> Runner:
    source = base / "source"
    note(f"making a source tree of some {files:,} files or {size / MB:,.0f} MB")
    files, size = make_source(source, files, size)
    note(f"writing its {files:,} files, {size / MB:,.0f} MB, through a layer")
    with Layer(base / "volume", config="[journal]\ncompress = false\n") as layer:
        runner = Runner(base, layer.environment)
        layer.start()
        seconds = runner.run("cp", "-a", f"{source}/.", layer.mountpoint).seconds
        layer.stop()
        note(f"that took {seconds:.1f} s")
        with _pool() as pool:
            make_indexes(pool, layer.state / "journal")
        verify(runner, "source tree", layer.state / "journal", rounds, _VERIFY_MARK)
        replay(runner, base, layer, max(2, rounds - 1))
    return runner


def _undo(base: Path, files: int) -> Runner:
    with Layer(base / "undone") as layer:
        runner = Runner(base, layer.environment)
        layer.start()
        note(f"making {files:,} files through a layer")
        undo(runner, layer, files)
        undo_sparse(runner, layer)
        layer.stop()
    return runner


def _pool() -> Any:
    """Makes as many processes as there are CPUs. Forked, so that this one stays small: its memory
    would count as that of the commands it starts."""
    return multiprocessing.get_context("fork").Pool(os.cpu_count(), _leave_signals_alone)


def _leave_signals_alone() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(*_: object) -> NoReturn:
    """End the measurement in order; a second Ctrl-C does not disturb the tidying up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit("stopped")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="run recovery",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--where", default="/var/tmp", help="directory to work in")
    parser.add_argument("--entries", type=int, default=5_000_000, help="small entries")
    parser.add_argument("--files", type=int, default=60_000, help="files of the source tree")
    parser.add_argument("--megabytes", type=int, default=600, help="and its size, at most so")
    parser.add_argument("--undone", type=int, default=100_000, help="files removed and undone")
    parser.add_argument("--rounds", type=int, default=3, help="of verify; of replay one less")
    parser.add_argument("--only", choices=("small", "tree", "undo"), help="only one of these")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    share = 10 if options.quick else 1
    with tempfile.TemporaryDirectory(prefix="fusejournal-bench.", dir=options.where) as name:
        base = Path(name)
        show("", "measured", "compared with", "ratio or limit")
        if options.only in (None, "small"):
            memory(_small(base, options.entries // share, options.rounds))
        if options.only in (None, "tree"):
            size = options.megabytes * MB // share
            memory(_tree(base, options.files // share, size, options.rounds))
        if options.only in (None, "undo"):
            memory(_undo(base, options.undone // share))


if __name__ == "__main__":
    main()
