"""A floating address that goes from one host to another, on a network of their own."""

import json
import subprocess
import sys
import time

import pytest

from fusejournal.admin import floating_address
from fusejournal.errors import FusejournalError
from tests.support.network import Host, network

pytestmark = pytest.mark.mount

FLOATING = "fd77::100"
_TAKE = f"""
import socket
from fusejournal.admin.floating_address import parse_floating, take_address
take_address(parse_floating("{FLOATING}/64"), "eth0")
with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as one:
    one.bind(("{FLOATING}", 2049))
"""


def run(host: Host, *words: str) -> str:
    done = subprocess.run([*host.prefix, *words], check=True, capture_output=True, text=True)
    return done.stdout


def hardware(host: Host) -> str:
    (found,) = json.loads(run(host, "ip", "-json", "link", "show", "dev", "eth0"))
    return str(found["address"])


def neighbour(host: Host) -> str | None:
    found = json.loads(run(host, "ip", "-json", "neigh", "show", FLOATING, "dev", "eth0") or "[]")
    return next((one.get("lladdr") for one in found), None)


def wait_for_neighbour(host: Host, wanted: str) -> None:
    deadline = time.monotonic() + 3.0
    while (found := neighbour(host)) != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


@pytest.mark.parametrize("failed", [False, True])
def test_an_address_of_ipv6_is_usable_at_once_and_known_to_the_neighbours(failed: bool) -> None:
    """Neither waits until the kernel has asked whether another has it, which is a second or two,
    nor do clients until they have found that the old server does not answer, which is more."""
    with network() as net:
        old, new, far = net.host(), net.host(), net.host()
        run(far, "ip", "address", "add", "fd77::3/64", "dev", "eth0", "nodad")
        run(old, "ip", "address", "add", f"{FLOATING}/64", "dev", "eth0", "nodad")
        run(far, "bash", "-c", f"echo >/dev/udp/{FLOATING}/9")
        wait_for_neighbour(far, hardware(old))
        if failed:
            # As where an admin had set it while the other still had it.
            run(new, "ip", "address", "add", f"{FLOATING}/64", "dev", "eth0")
            deadline = time.monotonic() + 20
            while "dadfailed" not in run(new, "ip", "-6", "address", "show", "dev", "eth0"):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        run(old, "ip", "address", "del", f"{FLOATING}/64", "dev", "eth0")
        run(new, sys.executable, "-c", _TAKE)
        wait_for_neighbour(far, hardware(new))


@pytest.mark.parametrize(
    "printed", ["", "[]", "[5]", '[{"addr_info": [5]}]', "Usage: ip", "[{}, {}]"]
)
def test_what_ip_prints_may_be_anything(monkeypatch: pytest.MonkeyPatch, printed: str) -> None:
    monkeypatch.setattr(floating_address, "_ip", lambda *_: printed)
    with pytest.raises(FusejournalError, match="dev eth0: prints what is no address: "):
        floating_address.has_address(floating_address.parse_floating("192.0.2.9/24"), "eth0")


def test_an_address_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = '[{"addr_info": [{"family": "inet", "local": "192.0.2.9", "prefixlen": 24}]}]'
    monkeypatch.setattr(floating_address, "_ip", lambda *_: printed)
    for text, is_there in (("192.0.2.9/24", True), ("192.0.2.8/24", False)):
        address = floating_address.parse_floating(text)
        assert floating_address.has_address(address, "eth0") is is_there
