"""Measures how quickly a journal gives back what is in it: verify beside xxhsum, replay beside cp
-a, undo of an rm -rf beside that, and dump, history and restore beside fixed limits; with the peak
memory of each command.

Two journals are made: one of a source tree (files of /usr) that ``cp -a`` wrote through a layer,
and one of many small entries, with a few that belong together spread over all of it. Every command
is run as users run it, start of the interpreter included, but for verify's rate, where it is told
apart. Files are in the page cache before they
are read. Of several rounds the median counts; what is compared takes turns.

Memory is that of the largest process of a command (the kernel's count, workers included), not their
sum. Needs some 5 GB at --where, which should be a disk: in /dev/shm a flush costs nothing. On ext4,
wait five minutes after many files were deleted there, for creating files is slow until then."""

import argparse
import ctypes
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import Any, NamedTuple, NoReturn
from uuid import uuid4

from fusejournal.journal.index import has_index
from fusejournal.journal.index_making import write_index
from fusejournal.journal.journal import Journal
from fusejournal.journal.segment import list_segments
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import (
    Clean,
    Create,
    Mkdir,
    NewEpoch,
    Operation,
    Rename,
    Setattr,
    Unlink,
    Write,
)
from fusejournal.types import ROOT_FID, SYSTEM_CALLER, Caller, Epoch, Fid
from tests.support.layer import Layer

_MB = 10**6
_VERIFY_MARK = 0.5
_DUMP_MARK = 200_000
_HISTORY_SECONDS = 1.0
_RESTORE_SECONDS = 2.0
_REPLAY_MARK = 0.5
_UNDO_MARK = 3.0
_UNDO_SPARSE_SECONDS = 2.0
_UNDO_FILES_EACH = 100
_RSS_MARK_MB = 300

_PR_SET_CHILD_SUBREAPER = 36

# -- the source tree -------------------------------------------------------------------------------

_SOURCES = ("/usr/share", "/usr/include", "/usr/lib/python3", "/usr/lib")
_FILE_BYTES_MAX = 16 << 20


def make_source(target: Path, files_max: int, bytes_max: int) -> tuple[int, int]:
    """Copy files, directories and symlinks of this machine until there are so many; files and
    bytes."""
    files = size = 0
    made: list[tuple[str, Path]] = []
    for directory, names, directories in _walk():
        below = target / directory.lstrip("/")
        below.mkdir(parents=True, exist_ok=True)
        made.append((directory, below))
        for name in directories:
            names.append(name) if os.path.islink(f"{directory}/{name}") else None
        for name in names:
            info = os.lstat(f"{directory}/{name}")
            is_link = S_ISLNK(info.st_mode)
            if not is_link and not (S_ISREG(info.st_mode) and info.st_size <= _FILE_BYTES_MAX):
                continue
            if (below / name).is_symlink() or (below / name).exists():
                continue  # one source is part of another
            shutil.copy2(f"{directory}/{name}", below / name, follow_symlinks=False)
            os.lchown(below / name, info.st_uid, info.st_gid)
            files += 1
            size += 0 if is_link else info.st_size
        if files >= files_max or size >= bytes_max:
            break
    for directory, below in reversed(made):
        shutil.copystat(directory, below)
    return files, size


def _walk() -> Iterator[tuple[str, list[str], list[str]]]:
    for source in _SOURCES:
        for directory, directories, names in os.walk(source):
            assert S_ISDIR(os.lstat(directory).st_mode)
            directories.sort()
            yield directory, sorted(names), directories


# -- the journal of small entries ------------------------------------------------------------------

_DIRECTORIES = 1000
_PIECE_BYTES = 128 << 10
_PIECES = 80  # 10 MiB
_LOG_ENTRIES = 200
BIG_PATH = "d0500/big"
LOG_PATH = "d0501/log"
_BIG, _LOG = Fid(2), Fid(3)
_FIRST_DIRECTORY = 10
_FIRST_FILE = _FIRST_DIRECTORY + _DIRECTORIES
_USER = Caller(1000, 1000, 4711)
_LINE = b"forty bytes, as many as a short line has"
assert len(_LINE) == 40


def big_piece(number: int) -> bytes:
    """The content of one piece of the large file."""
    return random.Random(number).randbytes(_PIECE_BYTES)


def _directory_of(number: int) -> Fid:
    return Fid(_FIRST_DIRECTORY + number % _DIRECTORIES)


def _path_of(fid: Fid) -> bytes | None:
    if fid == ROOT_FID:
        return b""
    if fid in (_BIG, _LOG):
        return (BIG_PATH if fid == _BIG else LOG_PATH).encode()
    if fid < _FIRST_FILE:
        return b"d%04d" % (fid - _FIRST_DIRECTORY)
    number = fid - _FIRST_FILE
    return b"d%04d/file-%08d" % (number % _DIRECTORIES, number)


def _small_entries() -> Iterator[tuple[Operation, bytes]]:
    """The lives of small files, one after the other, without end."""
    number = 0
    while True:
        fid, parent, name = Fid(_FIRST_FILE + number), _directory_of(number), b"file-%08d" % number
        yield Create(fid, parent, name, 0o100644, 1000, 1000, 0, None), b""
        yield Write(fid, 0, None), _LINE
        yield Setattr(fid, 0o640, None, None, None, None), b""
        yield Setattr(fid, None, None, None, number * 10**9, number * 10**9), b""
        if number % 4 == 0:
            yield Unlink(fid, parent, name), b""
        elif number % 4 == 1:
            other = _directory_of(number + number % 3)
            yield Rename(fid, parent, name, other, b"renamed-%08d" % number, 0, Fid(0)), b""
        number += 1


def _all_entries(count: int) -> Iterator[tuple[Operation, bytes]]:
    """*count* entries and a few more: small ones, and between them, evenly, the pieces of the large
    file and the lines of the log."""
    yield NewEpoch(Epoch(1), "measured"), b""
    for number in range(_DIRECTORIES):
        yield (
            Mkdir(_directory_of(number), ROOT_FID, b"d%04d" % number, 0o755, 0, 0, None, None),
            b"",
        )
    for fid, path in ((_BIG, BIG_PATH), (_LOG, LOG_PATH)):
        directory, name = path.encode().split(b"/")
        parent = _directory_of(int(directory[1:]))
        yield Create(fid, parent, name, 0o100644, 1000, 1000, 0, None), b""
    small = _small_entries()
    spread = sorted(
        [(count * number // _PIECES, _BIG, number) for number in range(_PIECES)]
        + [(count * number // _LOG_ENTRIES, _LOG, number) for number in range(_LOG_ENTRIES)]
    )
    done = 0
    for at, fid, number in spread:
        yield from islice(small, at - done)
        done = at
        data = big_piece(number) if fid == _BIG else _LINE
        yield Write(fid, number * len(data), None), data
    yield from islice(small, count - done)
    yield Clean(), b""


def make_journal(directory: str, count: int) -> int:
    """The journal in *directory*, which is made; its head."""
    os.mkdir(directory)
    journal = Journal.create(Path(directory), uuid4(), JournalOptions())
    time_ns = time.time_ns() - count * 10**6
    for operation, data in _all_entries(count):
        time_ns += 10**6
        who = _USER if operation.kind < 16 else SYSTEM_CALLER
        journal.append(operation, who, time_ns, _path_of, data)
    journal.sync()
    journal.close()
    return journal.head_seq


def make_indexes(pool: Any, directory: Path) -> None:
    """The sidecars of all sealed segments, as the layer makes them in the background."""
    paths = list_segments(directory)[:-1]
    pool.map(write_index, [path for path in paths if not has_index(path)], chunksize=1)


# -- running commands ------------------------------------------------------------------------------


class Ran(NamedTuple):
    """The time, the memory and the output of a command."""

    seconds: float
    rss_mb: float
    output: bytes


class Runner:
    """Runs commands and keeps the peak memory of each kind of them."""

    def __init__(self, base: Path, environment: dict[str, str]) -> None:
        self._base = base
        self._environment = environment
        self.rss_mb: dict[str, float] = {}
        # Workers whose parent ended first become ours, so that their memory is counted, too.
        if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError("prctl")

    def fusejournal(self, label: str, *arguments: object, keep: bool = True) -> Ran:
        """Run a fusejournal command; *keep* its output or throw it away."""
        ran = self.run(sys.executable, "-m", "fusejournal", *arguments, keep=keep)
        self.rss_mb[label] = max(self.rss_mb.get(label, 0), ran.rss_mb)
        return ran

    def run(self, *command: object, keep: bool = True) -> Ran:
        """Run a command to its end. Raises SystemExit when it fails."""
        with tempfile.TemporaryFile(dir=self._base) as output:
            begun = time.perf_counter()
            process = subprocess.Popen(
                [str(word) for word in command],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output if keep else subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                seconds, rss_mb = self._wait(process, begun)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                while _reap(process.pid) is not None:
                    pass
                process.returncode = -signal.SIGKILL
                raise
            if process.returncode != 0:
                raise SystemExit(f"{process.args!r}: ended with {process.returncode}")
            output.seek(0)
            return Ran(seconds, rss_mb, output.read())

    def _wait(self, process: subprocess.Popen[bytes], begun: float) -> tuple[float, float]:
        """Wait for *process* and all that it leaves behind; seconds until its own end, and peak
        memory."""
        seconds = rss_mb = 0.0
        while (ended := _reap(process.pid)) is not None:
            pid, status, usage = ended
            rss_mb = max(rss_mb, usage.ru_maxrss * 1024 / _MB)
            if pid == process.pid:
                seconds = time.perf_counter() - begun
                process.returncode = os.waitstatus_to_exitcode(status)
        return seconds, rss_mb


def _reap(group: int) -> tuple[int, int, Any] | None:
    try:
        return os.wait4(-group, 0)
    except ChildProcessError:
        return None


def warm(paths: Iterable[Path]) -> None:
    """Have these files in the page cache."""
    buffer = bytearray(1 << 20)
    for path in paths:
        if path.is_file() and not path.is_symlink():
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


# -- the table -------------------------------------------------------------------------------------


def show(
    what: str, measured: str, beside: str = "", ratio: str = "", ok: bool | None = None
) -> None:
    """One line of the table, at once, because the next may be minutes away."""
    word = "" if ok is None else "ok" if ok else "MISSED"
    print(f"{what:34}{measured:>18}{beside:>26}{ratio:>22}  {word}", flush=True)


def note(text: str) -> None:
    """Say what goes on, beside the table."""
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
        journal.append(NewEpoch(Epoch(1), "one"), SYSTEM_CALLER, time.time_ns(), _path_of)
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
        f"{size / seconds / _MB:,.0f} MB/s",
        f"xxhsum {size / other / _MB:,.0f} MB/s",
        f"{ratio:.2f}" + (f" (mark {mark})" if mark is not None else ""),
        ratio >= mark if mark is not None else None,
    )
    show(
        "",
        f"{entries / seconds:,.0f} entry/s",
        f"{size / _MB:,.0f} MB, {entries:,} entries",
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
    show(f"history, {_LOG_ENTRIES} entries", f"{ran.seconds:.2f} s", f"{lines} lines",
         f"mark {_HISTORY_SECONDS} s",
         ran.seconds <= _HISTORY_SECONDS and lines == 1 + 1 + _LOG_ENTRIES)  # fmt: skip


def restore(runner: Runner, base: Path, directory: Path, head_seq: int) -> None:
    """A file whose pieces are in all segments."""
    target = base / "restored"
    ran = runner.fusejournal(
        "restore", "restore", directory, BIG_PATH, "--to-seq", head_seq, "--target", target
    )
    wanted = hashlib.sha256()
    for number in range(_PIECES):
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
        (directory / str(number)).write_bytes(_LINE)
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
    note(f"making a source tree of some {files:,} files or {size / _MB:,.0f} MB")
    files, size = make_source(source, files, size)
    note(f"writing its {files:,} files, {size / _MB:,.0f} MB, through a layer")
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
            size = options.megabytes * _MB // share
            memory(_tree(base, options.files // share, size, options.rounds))
        if options.only in (None, "undo"):
            memory(_undo(base, options.undone // share))


if __name__ == "__main__":
    main()
