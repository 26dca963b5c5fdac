"""A witness beside a pair, each in a network namespace of its own: paired as an admin does, killed,
and asked when the primary is lost."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked import Forked, run
from tests.support.mirrors import PORT, Node, await_level, wait_for
from tests.support.network import Host, network
from tests.support.promotions import BLOCKING, promote, serves, work

pytestmark = pytest.mark.mount


class Process:
    """The process of a witness on *host*."""

    def __init__(self, directory: Path, host: Host) -> None:
        self.directory = directory
        self.host = host
        self._process: Forked | None = None

    def _begin(self, what: str, *more: str) -> tuple[Forked, Path]:
        """Begins a command. Returns its process, and the file with what it says."""
        said = self.directory.with_name(f"{what}.said")
        said.write_text("")
        command = ("witness", what, str(self.directory), *more)
        return Forked(command, os.environ, out=said, err=said, namespace=self.host.namespace), said

    def start(self) -> None:
        """Start it, and return when it listens."""
        self._process, said = self._begin("run", "--listen", f"{self.host.address}:{PORT}")
        wait_for(lambda: "listens on" in said.read_text(), said.read_text)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int | None:
        """End it, and return its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.send_signal(how)
        return process.wait(30)

    def ask(self, *options: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run its command "status" to its end."""
        command = ("witness", "status", str(self.directory), *options)
        namespace = self.host.namespace
        return run(command, os.environ, check=check, timeout=60, namespace=namespace)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("--json").stdout)
        return found

    def is_told(self) -> bool:
        """True if the primary tells it who counts."""
        return str(self.status()["primary"]).endswith("primary")

    def pair(self, node: Node, *options: str) -> None:
        """Pair *node*, which runs, with it, as an admin does."""
        showing, said = self._begin("pair", "--json")
        try:
            wait_for(lambda: "\n" in said.read_text(), said.read_text)
            opened = json.loads(said.read_text().splitlines()[0])
            where = f"third={opened['listen']}"
            node.run("pair", str(node.state), where, opened["code"], *options)
            assert showing.wait(30) == 0
        finally:
            showing.send_signal(signal.SIGKILL)
        assert json.loads(said.read_text().splitlines()[1])["state"] == "paired"


@contextmanager
def pair_and_witness(base: Path) -> Iterator[tuple[Node, Node, Process]]:
    """A primary, its mirror and their witness; all run, and know each other."""
    with ExitStack() as stack:
        net = stack.enter_context(network())
        primary = stack.enter_context(Node(base / "primary", net.host(), "primary", BLOCKING))
        mirror = stack.enter_context(Node(base / "mirror", net.host(), "mirror", BLOCKING))
        primary.ships_to(mirror)
        third = Process(base / "third", net.host())
        third.start()
        stack.callback(third.end, signal.SIGKILL)
        for node in (primary, mirror):
            node.start(wait=False)
        for node in (primary, mirror):
            node.await_live()
        third.pair(primary)
        third.pair(mirror, "--standby")
        yield primary, mirror, third


def test_a_pair_with_a_witness_needs_no_force(tmp_path: Path) -> None:
    """The mirror goes on with the vote of the witness, which a kill takes nothing from; the old
    primary takes nothing more."""
    with pair_and_witness(tmp_path) as (primary, mirror, third):
        shown = lambda: next(  # noqa: E731
            peer["state"]
            for peer in primary.ask()["replication"]["peers"]
            if peer["name"] == "third"
        )
        wait_for(lambda: shown() == "witness", primary.ask)
        work(primary, "before")
        await_level(primary, mirror)
        uuid = primary.ask()["uuid"]
        wait_for(lambda: third.status()["volume"] == uuid, third.status)
        assert third.end(signal.SIGKILL) == -signal.SIGKILL
        work(primary, "without")  # which waits for the mirror alone
        third.start()
        wait_for(third.is_told, third.status)
        await_level(primary, mirror)

        primary.kill()
        primary.host.cut()
        plan = promote(mirror)
        assert (plan["words"], plan["words_needed"], plan["uncovered"]) == (2, 2, "")
        assert serves(mirror)
        wait_for(lambda: third.status()["begun"] == plan["reign"], third.status)
        assert f"{plan['reign']} has begun" in third.ask().stdout

        primary.detach()
        primary.host.mend()
        third.host.cut()
        primary.start()
        with pytest.raises(OSError, match="Read-only file system"):
            (primary.mountpoint / "refused").mkdir()
        third.host.mend()
        assert third.end() == 0


def test_a_witness_alone_is_not_enough(tmp_path: Path) -> None:
    """A person has to say that the primary is off while the witness is away."""
    with pair_and_witness(tmp_path) as (primary, mirror, third):
        work(primary, "before")
        await_level(primary, mirror)
        wait_for(third.is_told, third.status)
        primary.kill()
        third.end(signal.SIGKILL)
        refused = mirror.run("promote", str(mirror.state), check=False)
        assert refused.returncode == 32
        assert "1 of 3 nodes take nothing from it any more, and 2 are needed" in refused.stderr
        again = third.ask(check=False)
        assert again.returncode != 0
        assert "fusejournal witness run" in again.stderr
        third.start()
        third.host.cut()
        assert mirror.run("promote", str(mirror.state), check=False).returncode == 32
        third.host.mend()
        assert promote(mirror)["words"] == 2
