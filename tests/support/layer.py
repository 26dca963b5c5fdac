"""A real layer in a process of its own, for tests: start it, kill it, stop it, and leave nothing
behind."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from fusejournal.layer.connection import release_kept
from fusejournal.node.state_dir import load_state
from fusejournal.types import Seq
from tests.support.forked import PROGRAM, Forked, run
from tests.support.trees import difference, image, rebuild

_START_SECONDS = 180.0
WITH_BASES = bool(os.environ.get("FUSEJOURNAL_TEST_BASES"))
"""True if volumes are to begin with a base: what there is about recovery, log, history, undo and
restore is tried once more."""


class Layer:
    """One volume below *base*: ``backing``, ``mountpoint``, ``state``. Use as a context manager."""

    program = PROGRAM
    """The code that the layer's process runs, as "module:function"."""
    can_have_base = True
    """True unless it has to have its journal from the first entry on."""

    def __init__(
        self, base: Path, *, in_place: bool = False, config: str = "", backing: Path | None = None
    ) -> None:
        self.base = base
        self.backing = backing or base / "backing"
        self.mountpoint = self.backing if in_place else base / "mount"
        self.state = base / "state"
        self.log = base / "layer.log"
        self._config = base / "config.toml"
        for directory in (self.backing, self.mountpoint):
            directory.mkdir(parents=True, exist_ok=True)
        self._config.write_text(config)
        self._process: Forked | subprocess.Popen[bytes] | None = None
        self.prefix: tuple[str, ...] = ()
        """The command line before the command that mounts: where it is to run."""
        self.namespace = ""
        """That of the network that the layer is in, where there is no *prefix*."""
        self.environment = {
            **os.environ,
            "FUSEJOURNAL_STATE_ROOT": str(base / "states"),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        release_kept(self.state / "connection")
        self.detach()

    def export_to_nobody(self, options: str = "rw,async") -> None:
        """Have it exported by a file that no NFS server reads."""
        root = self.base / "nfs"
        (root / "etc").mkdir(parents=True, exist_ok=True)
        (root / "etc/exports").write_text(f"{self.mountpoint} 192.0.2.1({options})\n")
        self.environment["FUSEJOURNAL_NFS_ROOT"] = str(root)

    def reconfigure(self, config: str) -> None:
        """Use this configuration, in TOML, from the next start."""
        self._config.write_text(config)

    def command(self, *arguments: str) -> list[str]:
        """The command line for a fusejournal command."""
        return [sys.executable, "-m", "fusejournal", *arguments]

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a fusejournal command to its end."""
        return run(arguments, self.environment, check=check, timeout=120)

    def mount_arguments(self, *extra: str) -> list[str]:
        """The arguments that mount this volume."""
        return [
            "mount", str(self.backing), str(self.mountpoint), "--name", "volume",
            "--state", str(self.state), "--config", str(self._config), "--open-backing", *extra,
        ]  # fmt: skip

    def start(
        self, *extra: str, fault: str = "", wait: bool = True, seconds: float = _START_SECONDS
    ) -> Self:
        """Mount in the foreground of a child process; returns when it is live, or has died of
        *fault*. Raises TimeoutError after *seconds*."""
        if WITH_BASES and self.can_have_base and not fault and not self.state.exists():
            self._begin_with_base(*extra)
        environment = {**self.environment, "FUSEJOURNAL_FAULT": fault}
        arguments = self.mount_arguments("-f", *extra)
        if self.prefix:
            with open(self.log, "ab") as log:
                self._process = subprocess.Popen(
                    [*self.prefix, *self.command(*arguments)],
                    env=environment,
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
        else:
            # What is forked runs the program that is loaded here.
            assert environment.get("PYTHONPATH") == os.environ.get("PYTHONPATH")
            self._process = Forked(
                arguments, environment, out=self.log, err=self.log, program=self.program,
                namespace=self.namespace,
            )  # fmt: skip
        return self.await_live(seconds, may_die=bool(fault)) if wait else self

    def _begin_with_base(self, *extra: str) -> None:
        """Have the volume begin with all that its first start has journaled as its base."""
        from tests.support.bases import begin_with_base

        self.can_have_base = False
        self.start(*extra)
        self.stop()
        begin_with_base(self.state, self.base / "store-of-base")

    def await_live(self, seconds: float = _START_SECONDS, *, may_die: bool = False) -> Self:
        """Return when it is live, or, if it may, has died. Raises TimeoutError after *seconds*."""
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while self._process.poll() is None:
            with suppress(Exception):
                if self.is_mounted() and self._is_live(self.ask()):
                    return self
            if time.monotonic() > deadline:
                raise TimeoutError(self.words())
            time.sleep(0.02)
        if not may_die:
            raise AssertionError(f"the layer ended with {self._process.returncode}: {self.words()}")
        return self

    def _is_live(self, status: dict[str, Any]) -> bool:
        assert self._process is not None
        return status["pid"] == self._process.pid and status["live_since"] is not None

    def ask(self) -> dict[str, Any]:
        """The running layer's status."""
        from fusejournal.control.client import ask

        return ask(self.state, "status")

    def head_seq(self) -> Seq:
        """The running layer's last entry."""
        return Seq(self.ask()["head_seq"])

    def is_mounted(self) -> bool:
        """True if something of ours is mounted at the mountpoint, alive or dead."""
        # Any process's mountpoint may have a name that is no UTF-8.
        mounts = Path("/proc/mounts").read_bytes()
        return b" %s fuse.fusejournal " % os.fsencode(self.mountpoint) in mounts

    def words(self) -> str:
        """The layer's log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def pid(self) -> int:
        """The layer's process."""
        assert self._process is not None
        return self._process.pid

    def wait(self) -> int:
        """Wait for the layer's end; its status."""
        assert self._process is not None
        return self._process.wait(timeout=20)

    def is_alive(self) -> bool:
        """True if the layer's process still runs."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def detach(self) -> None:
        """Take whatever is left of the mount away."""
        while self.is_mounted():
            subprocess.run(["umount", "-l", str(self.mountpoint)], check=True)

    def stop(self) -> None:
        """An orderly stop; what the layer logged as a warning or worse fails the test."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(timeout=60) == 0, self.words()

    def check_rebuilt(self, target: Path) -> None:
        """Make the tree of the journal in *target*, which is not there yet: it is the backing's."""
        target.mkdir()
        rebuild(self.state, target, load_state(self.state).uuid)
        assert not (found := difference(image(target), image(self.backing))), found

    def entries(self) -> list[dict[str, Any]]:
        """The whole log as JSON objects."""
        output = self.run("log", str(self.state), "-n", "1000000", "--json").stdout
        return [json.loads(line) for line in output.splitlines()]
