"""The agent and the console as processes of their own, paired, for one layer's machine."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.forked import Forked, run
from tests.support.layer import Layer

PASSWORD = "correct horse battery staple"


class ConsoleProcesses:
    """Both, with what they log in *directory*. Use :func:`console_processes`."""

    def __init__(
        self, layer: Layer, directory: Path, namespace: str = "", address: str = "127.0.0.1"
    ) -> None:
        """*namespace*: that of the network they are in; *address*: where the agent listens."""
        self.environment = layer.environment
        self.url = ""
        self.namespace = namespace
        self._directory = directory
        self._agent: Forked | None = None
        self._console: Forked | None = None
        self._listen = f"{address}:0"
        self._page_listens = "127.0.0.1:0"

    def run(self, *arguments: str, check: bool = True) -> Any:
        """Run a command to its end."""
        return run(arguments, self.environment, check=check, timeout=60, namespace=self.namespace)

    def start_agent(self, *options: str) -> None:
        """Start the agent, where it listened before if it did."""
        self._agent = self._start("agent", "agent", "--listen", self._listen, *options)
        self._listen = self._await("agent", r"listens on (\S+),")

    def start_console(self, *options: str) -> None:
        """Start the console, where it listened before if it did; ``url`` is the page then."""
        self._console = self._start("console", "console", "--listen", self._page_listens, *options)
        self.url = self._await("console", r"the console is at (\S+)")
        self._page_listens = self.url.split("/")[2]

    def pair(self, name: str, console: "ConsoleProcesses | None" = None) -> None:
        """Pair the agent with the console, or with *console*, which calls it *name*."""
        opened = json.loads(self.run("agent", "pair", "--no-wait", "--json").stdout)
        (console or self).run("console", "pair", f"{name}={opened['listen']}", opened["code"])

    def add_user(self, name: str, role: str) -> str:
        """Returns the one-time code of a new user."""
        done = self.run("console", "user", "add", name, "--role", role, "--json")
        return str(json.loads(done.stdout)["code"])

    def kill_agent(self) -> None:
        """kill -9."""
        assert self._agent is not None
        self._agent.send_signal(signal.SIGKILL)
        self._agent.wait(10)

    def kill_console(self) -> None:
        """kill -9: its sessions are gone."""
        assert self._console is not None
        self._console.send_signal(signal.SIGKILL)
        self._console.wait(10)

    def stop(self) -> None:
        """An orderly stop of both, which leaves nothing in their logs."""
        for process in (self._console, self._agent):
            if process is not None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0, self.words()
        assert "Traceback" not in self.words()

    def kill(self) -> None:
        """End what still runs."""
        for process in (self._console, self._agent):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait(10)

    def words(self) -> str:
        """All that both have said."""
        return "".join(path.read_text() for path in sorted(self._directory.glob("*.said")))

    def _start(self, name: str, *arguments: str) -> Forked:
        said = self._directory / f"{name}.said"
        said.write_text("")
        return Forked(
            arguments, self.environment, out=os.devnull, err=said, namespace=self.namespace
        )

    def _await(self, name: str, pattern: str) -> str:
        said = self._directory / f"{name}.said"
        deadline = time.monotonic() + 60
        while (found := re.search(pattern, said.read_text())) is None:
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.02)
        return found[1]


@contextmanager
def console_processes(
    layer: Layer, directory: Path, name: str = "hall"
) -> Iterator[ConsoleProcesses]:
    """Both, running and paired: the agent is called *name*."""
    directory.mkdir()
    processes = ConsoleProcesses(layer, directory)
    try:
        processes.start_agent()
        processes.pair(name)
        processes.start_console()
        yield processes
        processes.stop()
    finally:
        processes.kill()
