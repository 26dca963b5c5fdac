"""The address that is shown for what listens at all of this machine's."""

import socket
import subprocess
import sys

import pytest

from fusejournal.address import Address
from fusejournal.admin.own_address import listens_everywhere, shown_address

_SHOW = """
import sys
from fusejournal.address import Address
from fusejournal.admin.own_address import shown_address
for host in sys.argv[1:]:
    print(shown_address(Address(host, 7710)))
"""
_LINK = "ip link add outside type veth peer name inside && ip link set outside up"


def test_an_address_that_was_given_is_shown() -> None:
    for host in ("127.0.0.1", "10.0.0.2", "cellar", "::1"):
        assert shown_address(Address(host, 7710)) == Address(host, 7710)
        assert not listens_everywhere(Address(host, 7710))
    assert listens_everywhere(Address("::", 7710))


@pytest.mark.parametrize(
    ("set_up", "shown"),
    [
        ("true", [f"{socket.gethostname()}:7710"] * 2),
        (f"{_LINK} && ip addr add 10.9.8.7/24 dev outside", [f"{socket.gethostname()}:7710"] * 2),
        (
            f"{_LINK} && ip addr add 10.9.8.7/24 dev outside && ip link set inside up && "
            "ip route add default dev outside",
            ["10.9.8.7:7710"] * 2,
        ),
        (
            f"{_LINK} && ip addr add fd00::7/64 dev outside nodad && ip link set inside up && "
            "ip -6 route add default dev outside",
            [f"{socket.gethostname()}:7710", "[fd00::7]:7710"],
        ),
    ],
    ids=["alone", "no way out", "IPv4", "IPv6"],
)
def test_the_address_on_the_default_route_is_shown(set_up: str, shown: list[str]) -> None:
    show = f'{set_up} && exec "$0" -c "$1" 0.0.0.0 ::'
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", show, sys.executable, _SHOW],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == shown
