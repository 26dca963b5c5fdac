"""Networks for tests: a namespace for each node, and a cable from each to a switch, which can be
cut, and made bad from the start.

A good cable is a veth pair, a bad one two TAP devices with ether.py between them. The switch is a
bridge in a namespace of its own, so nothing of it is seen from outside. Names hold the process' id;
leaving :func:`network` takes everything away, and what a process that was killed has left is taken
away by the next."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_PREFIX = "fjtest"
_ETHER = Path(__file__).with_name("ether.py")
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Cable:
    """The faults of a cable, in each direction. ``loss`` is a share: 0.01 is one frame in a
    hundred; ``rate_mbit`` 0: no limit."""

    delay_seconds: float = 0.0
    loss: float = 0.0
    rate_mbit: float = 0.0
    seed: int = 1

    @property
    def is_good(self) -> bool:
        """True if it is just a cable."""
        return not (self.delay_seconds or self.loss or self.rate_mbit)


@dataclass(frozen=True)
class Host:
    """One namespace with one cable."""

    namespace: str
    address: str
    hub: str
    port: str
    """The cable's end at the switch."""

    @property
    def prefix(self) -> tuple[str, ...]:
        """The beginning of a command line that is to run here. (``ip netns exec`` would give it
        mounts of its own.)"""
        return ("nsenter", f"--net=/run/netns/{self.namespace}", "--")

    def cut(self) -> None:
        """Take the cable out."""
        _ip("-n", self.hub, "link", "set", self.port, "down")

    def mend(self) -> None:
        """Put it in again."""
        _ip("-n", self.hub, "link", "set", self.port, "up")


class Network:
    """A network that :func:`network` has made."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._hub = f"{name}hub"
        self._hosts: list[Host] = []
        self._cables: list[subprocess.Popen[bytes]] = []
        _ip("netns", "add", self._hub)
        _ip("-n", self._hub, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._hub, "link", "set", "br0", "up")

    def host(self, cable: Cable | None = None) -> Host:
        """A new host, its cable in."""
        number = len(self._hosts) + 1
        host = Host(f"{self._name}n{number}", f"10.77.0.{number}", self._hub, f"port{number}")
        self._hosts.append(host)
        _ip("netns", "add", host.namespace)
        _ip("-n", host.namespace, "link", "set", "lo", "up")
        if cable is None or cable.is_good:
            _ip(
                *("-n", host.namespace, "link", "add", "eth0", "type", "veth"),
                *("peer", "name", host.port, "netns", self._hub),
            )
        else:
            self._bad_cable(host, cable)
        _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
        _ip("-n", host.namespace, "link", "set", "eth0", "up")
        _ip("-n", self._hub, "link", "set", host.port, "master", "br0", "up")
        return host

    def _bad_cable(self, host: Host, cable: Cable) -> None:
        ends = (host.namespace, "eth0"), (self._hub, host.port)
        for namespace, device in ends:
            _ip("-n", namespace, "tuntap", "add", device, "mode", "tap")
        rate = cable.rate_mbit * 1e6 / 8
        command = [
            *(sys.executable, str(_ETHER), *ends[0], *ends[1]),
            *(str(cable.delay_seconds), str(cable.loss), str(rate), str(cable.seed)),
        ]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._cables.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"

    def remove(self) -> None:
        """Take everything away."""
        for process in self._cables:
            with process:  # closes its input, and so ends it
                pass
        for namespace in (*(host.namespace for host in self._hosts), self._hub):
            subprocess.run(["ip", "netns", "del", namespace], check=False)


@contextmanager
def network() -> Iterator[Network]:
    """A network of one switch and nothing else yet, gone afterwards. Skips where none can be
    made."""
    _clean_up()
    try:
        made = Network(f"{_PREFIX}{os.getpid()}x{next(_numbers)}")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs network namespaces: {error}")
    try:
        yield made
    finally:
        made.remove()


def _clean_up() -> None:
    """Remove what tests that were killed have left."""
    directory = Path("/run/netns")
    for path in directory.glob(f"{_PREFIX}*x*") if directory.is_dir() else ():
        pid = path.name.removeprefix(_PREFIX).partition("x")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            subprocess.run(["ip", "netns", "del", path.name], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
