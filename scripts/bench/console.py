"""The console's questions to an agent, for a volume with many entries: how long each takes, and how
much memory the agent needs.

The journal is made without a layer: users who save files (a new one, written and renamed over the
old), make and remove them, and set their attributes, in directories of their own; one directory
keeps a thousand files. The agent is a process of its own, asked over its own TLS. A filter is asked
as the page asks: again where an answer ended in time with nothing found yet.

first          the first rows of a filter, or the first answer of another question
step           the longest single answer of a filter until its first rows were there

With --idle instead: the processor time that a layer without work takes, without a page, and while a
page shows its overview."""

import argparse
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import trio

from fusejournal.address import parse_address
from fusejournal.console.agents import AgentBook, AgentLink, pair_agent
from fusejournal.console.watch import PERIOD_SECONDS
from fusejournal.journal.index_making import write_index
from fusejournal.journal.journal import Journal
from fusejournal.journal.seekable import compress_file
from fusejournal.journal.segment import COMPRESSED_SUFFIX, list_segments
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.node.state_dir import load_state
from fusejournal.operations import Create, Mkdir, Operation, Rename, Setattr, Unlink, Write
from fusejournal.types import ROOT_FID, Caller, Fid
from fusejournal.wire.identity import load_or_make
from tests.support.forked import Forked, run
from tests.support.layer import Layer
from tests.support.nodes import make_volume

_USERS = 20
_DIRECTORIES = 10
_FILES = 100
_BIG_FILES = 1000
_STEP_NS = 500_000_000
_MODE = 0o100644
_SEED = 5
_IDLE_SECONDS = 10.0


class _Users:
    """Makes the entries. The tree is kept as names by directory."""

    def __init__(self, journal: Journal, begin_ns: int) -> None:
        self._journal = journal
        self._dice = random.Random(_SEED)
        self._time_ns = begin_ns
        self._next_fid = ROOT_FID
        self._paths: dict[Fid, bytes] = {ROOT_FID: b""}
        self._files: dict[Fid, dict[bytes, Fid]] = {}
        self._owned: list[tuple[Fid, Caller]] = []
        self.count = 0

    def append(self, operation: Operation, who: Caller, data: bytes = b"") -> None:
        """Appends an entry, half a second after the last on the average."""
        self._time_ns += self._dice.randrange(1, 2 * _STEP_NS)
        self._journal.append(operation, who, self._time_ns, self._paths.get, data)
        self.count += 1

    def mkdir(self, parent: Fid, name: bytes, who: Caller) -> Fid:
        """Makes a directory."""
        fid = self._fid()
        self.append(Mkdir(fid, parent, name, 0o40755, who.uid, who.gid, None, None), who)
        self._paths[fid] = self._paths[parent] + b"/" + name if parent != ROOT_FID else name
        self._files[fid] = {}
        if who.uid:
            self._owned.append((fid, who))
        return fid

    def _fid(self) -> Fid:
        self._next_fid = Fid(self._next_fid + 1)
        return self._next_fid

    def make_tree(self) -> None:
        """Makes the directories, and the thousand files of one."""
        root = Caller(0, 0, 1)
        home = self.mkdir(ROOT_FID, b"home", root)
        for number in range(_USERS):
            who = Caller(1000 + number, 100, 500 + number)
            own = self.mkdir(home, b"user%d" % number, who)
            for at in range(_DIRECTORIES):
                self.mkdir(own, b"project%d" % at, who)
            if number == 0:
                big = self.mkdir(own, b"big", who)
                for at in range(_BIG_FILES):
                    self.create(big, b"part%04d" % at, who)

    def create(self, directory: Fid, name: bytes, who: Caller) -> Fid:
        """Makes a file."""
        fid = self._fid()
        self.append(Create(fid, directory, name, _MODE, who.uid, who.gid, 0, None), who)
        self._files[directory][name] = fid
        self._paths[fid] = self._paths[directory] + b"/" + name
        return fid

    def do_something(self) -> None:
        """Does what one of the users does next."""
        dice = self._dice
        directory, who = dice.choice(self._owned)
        files = self._files[directory]
        chance = dice.random()
        if len(files) < _FILES // 2 or (chance < 0.1 and len(files) < _FILES):
            self.create(directory, b"%08x.odt" % dice.getrandbits(32), who)
            return
        name = dice.choice(list(files))
        fid = files[name]
        if chance < 0.15 and len(files) <= _FILES:
            self.append(Unlink(fid, directory, name), who)
            del files[name], self._paths[fid]
        elif chance < 0.25:
            self.append(Setattr(fid, 0o640, None, None, None, None), who)
        elif chance < 0.4:
            self._save(directory, name, fid, who)
        else:
            self.append(Write(fid, 4096 * dice.randrange(8), None), who, dice.randbytes(200))

    def _save(self, directory: Fid, name: bytes, old: Fid, who: Caller) -> None:
        new_name = b".%s.tmp" % name
        fid = self.create(directory, new_name, who)
        self.append(Write(fid, 0, None), who, self._dice.randbytes(200))
        self.append(Rename(fid, directory, new_name, directory, name, 0, old), who)
        files = self._files[directory]
        del files[new_name], self._paths[old]
        files[name] = fid
        self._paths[fid] = self._paths[directory] + b"/" + name


def make_journal(directory: Path, count: int) -> None:
    """Makes the state directory of a volume that has about *count* entries and was stopped."""
    make_volume(directory, "data")
    state = load_state(directory)
    state.journal_dir.mkdir()
    options = JournalOptions()
    journal = Journal.create(state.journal_dir, state.uuid, options)
    users = _Users(journal, time.time_ns() - count * _STEP_NS)
    users.make_tree()
    while users.count < count:
        users.do_something()
    journal.close()
    sealed = list_segments(state.journal_dir)[:-1]
    with ProcessPoolExecutor() as pool:
        list(pool.map(write_index, sealed))
        list(pool.map(_compress, sealed))


def _compress(path: Path) -> None:
    compress_file(path, path.with_suffix(COMPRESSED_SUFFIX), JournalOptions().compress_level)


class _Asker:
    """Asks the agent, and prints how long it took."""

    def __init__(self, link: AgentLink, rounds: int, only: str) -> None:
        self._link = link
        self._rounds = rounds
        self._only = only

    async def ask(self, what: str, **fields: Any) -> tuple[dict[str, Any], float]:
        """Returns an answer, and the seconds that it took."""
        begun = time.perf_counter()
        if what != "overview":
            fields["volume"] = "data"
        answer = await self._link.call(what, **fields)
        return answer, time.perf_counter() - begun

    async def first_rows(self, fields: dict[str, Any]) -> tuple[float, float]:
        """Returns the seconds until a filter's first rows are there (or that there are none), and
        those of its longest step."""
        total, longest, before = 0.0, 0.0, None
        while True:
            asked = {**fields, "count": 100, "before_seq": before}
            page, seconds = await self.ask("entries", **asked)
            total, longest = total + seconds, max(longest, seconds)
            before = page["next_before_seq"]
            if page["entries"] or before is None:
                return total, longest

    async def measure(
        self, label: str, once: Callable[[int], Awaitable[tuple[float, float]]]
    ) -> None:
        """Prints the times of a question that is asked some times over, each time another one."""
        if self._only not in label:
            return
        found = [await once(number) for number in range(self._rounds)]
        firsts, longest = [one[0] for one in found], max(one[1] for one in found)
        print(
            f"{label:44}{firsts[0]:9.3f}{statistics.median(firsts):9.3f}{max(firsts):9.3f}"
            f"{longest:9.3f}",
            flush=True,
        )


async def _measure(asker: _Asker, count: int) -> None:
    big = "home/user0/big"
    dice = random.Random(_SEED)

    async def overview(_: int) -> tuple[float, float]:
        await trio.sleep(1.2)  # it is made once a second
        seconds = (await asker.ask("overview"))[1]
        return seconds, seconds

    def filter_of(fields: Callable[[int], dict[str, Any]]) -> Callable[[int], Any]:
        return lambda number: asker.first_rows(fields(number))

    async def opened(_: int) -> tuple[float, float]:
        seconds = (await asker.ask("tree", path=big))[1]
        return seconds, seconds

    async def slider(_: int) -> tuple[float, float]:
        at = dice.randrange(count // 50, count)
        tree = (await asker.ask("tree", path=big, at=at))[1]
        moments = (await asker.ask("moments", path=big, at=at))[1]
        return max(tree, moments), tree + moments

    async def histogram(_: int) -> tuple[float, float]:
        total, longest = 0.0, 0.0
        while True:
            found, seconds = await asker.ask("histogram", bars=120)
            total, longest = total + seconds, max(longest, seconds)
            if not found["entries_left"]:
                return total, longest

    print(f"{'seconds':44}{'first':>9}{'median':>9}{'most':>9}{'step':>9}")
    await asker.measure("overview", overview)
    for label, fields in _filters(count):
        await asker.measure(f"filter: {label}", filter_of(fields))
    await asker.measure("a directory of 1,000 opened", opened)
    await asker.measure("slider in a directory of 1,000", slider)
    await asker.measure("chart, all counted", histogram)


def _filters(count: int) -> list[tuple[str, Callable[[int], dict[str, Any]]]]:
    return [
        ("none", lambda _: {}),
        ("an operation", lambda _: {"op": ["unlink"]}),
        ("an operation that there is not", lambda _: {"op": ["link"]}),
        ("a user", lambda number: {"uid": 1000 + number % _USERS}),
        ("a user who did nothing", lambda _: {"uid": 7}),
        ("user, another's operation", lambda number: {"uid": 0, "op": ["unlink"]}),
        ("a directory", lambda number: {"path": f"home/user{number}/project3"}),
        ("a user's home", lambda number: {"path": f"home/user{number}"}),
        (
            "a file of the directory of 1,000",
            lambda number: {"path": f"home/user0/big/part{number:04}"},
        ),
        ("a pattern, many", lambda _: {"path": "*.odt"}),
        ("a pattern, few", lambda number: {"path": f"part09{number}*"}),
        ("a pattern, none", lambda number: {"path": f"*.nosuch{number}"}),
        ("a path and a user", lambda number: {"path": f"home/user{number}/project5", "uid": 1000}),
        (
            "removals of a path",
            lambda number: {"path": f"home/user{number}/project5", "op": ["rmdir"]},
        ),
        ("before the middle", lambda number: {"to_seq": count // 2 - number, "uid": 1003}),
    ]


@asynccontextmanager
async def _linked(base: Path, agent: "_Agent") -> AsyncIterator[AgentLink]:
    """A console's link to *agent*, which it was paired with."""
    book, identity = AgentBook(base / "agents.json"), load_or_make(base / "identity", "console")
    await pair_agent(book, identity, "hall", parse_address(agent.listens), agent.code)
    link = AgentLink(book.all()["hall"], identity)
    yield link
    await link.aclose()


async def _run(base: Path, agent: "_Agent", options: Any) -> None:
    async with _linked(base, agent) as link:
        await _measure(_Asker(link, options.rounds, options.only), options.count)


async def _idle(base: Path, agent: "_Agent", layer: int, options: Any) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    async with _linked(base, agent) as link:
        await link.call("overview")
        print(f"{'milliseconds of processor time a second':44}{'median':>9}{'most':>9}")
        for label, is_shown in (("layer, no page", False), ("layer, a page's overview", True)) * 2:
            found = []
            for _ in range(options.rounds):
                begun, ticks_before = time.monotonic(), _ticks(layer)
                while time.monotonic() < begun + _IDLE_SECONDS:
                    if is_shown:
                        await link.call("overview")
                    await trio.sleep(PERIOD_SECONDS)
                spent = (_ticks(layer) - ticks_before) / ticks
                found.append(1000 * spent / (time.monotonic() - begun))
            print(f"{label:44}{statistics.median(found):9.2f}{max(found):9.2f}", flush=True)


def _ticks(pid: int) -> int:
    """Returns the processor time of a process, in ticks. Source: proc(5), /proc/pid/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


class _Agent(NamedTuple):
    """One that runs."""

    pid: int
    listens: str
    code: str


@contextmanager
def _running_agent(base: Path, environment: dict[str, str]) -> Iterator[_Agent]:
    said = base / "said"
    agent = Forked(("agent", "--listen", "127.0.0.1:0"), environment, err=said)
    try:
        while (
            found := re.search(r"listens on (\S+),", said.read_text() if said.exists() else "")
        ) is None:
            time.sleep(0.1)
        pairing = run(("agent", "pair", "--no-wait", "--json"), environment, check=True, timeout=60)
        yield _Agent(agent.pid, found[1], json.loads(pairing.stdout)["code"])
    finally:
        agent.send_signal(15)
        agent.wait(20)


def _memory_mib(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="run console",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--where", default="/var/tmp", help="directory to work in")
    parser.add_argument("--keep", help="a directory where the volume is kept, or was")
    parser.add_argument("--count", type=int, default=1_000_000, help="entries")
    parser.add_argument("--rounds", type=int, default=5, help="questions of each kind")
    parser.add_argument("--only", default="", help="only questions whose label has this text")
    parser.add_argument("--idle", action="store_true", help="what a page costs an idle layer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fusejournal-bench.", dir=options.where) as name:
        base = Path(name)
        if options.idle:
            with Layer(base) as layer:
                layer.start()
                with _running_agent(base, layer.environment) as agent:
                    trio.run(_idle, base, agent, layer.pid, options)
                layer.stop()
            return
        states = Path(options.keep) if options.keep else base / "states"
        environment = {**os.environ, "FUSEJOURNAL_STATE_ROOT": str(states)}
        if not (states / "data").exists():
            begun = time.perf_counter()
            make_journal(states / "data", options.count)
            print(
                f"{options.count:,} entries made in {time.perf_counter() - begun:.0f} s",
                file=sys.stderr,
            )
        with _running_agent(base, environment) as agent:
            trio.run(_run, base, agent, options)
            print(f"{'the most memory of the agent, MiB':44}{_memory_mib(agent.pid):9.0f}")


if __name__ == "__main__":
    main()
