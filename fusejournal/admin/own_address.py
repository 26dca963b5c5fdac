"""The address at which other machines may reach what listens here, to be shown to an admin."""

import socket
from typing import Final

from fusejournal.address import Address

_EVERYWHERE: Final = frozenset({"", "0.0.0.0", "::"})
_ELSEWHERE: Final = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""Addresses that are no machine's (RFC 5737, RFC 3849): the way to them is the default route."""


def listens_everywhere(listen: Address) -> bool:
    """Returns True if what listens on *listen* does at all addresses of this machine."""
    return listen.host in _EVERYWHERE


def shown_address(listen: Address) -> Address:
    """Returns *listen*, or, where that is all addresses, this machine's on its default route, which
    needs no name service on the other machine; without such a route this machine's name."""
    if not listens_everywhere(listen):
        return listen
    for family, elsewhere in _ELSEWHERE:
        if family == socket.AF_INET6 and listen.host == "0.0.0.0":
            continue
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as asking:
                asking.connect((elsewhere, 9))  # chooses the route, and sends nothing
                return Address(asking.getsockname()[0], listen.port)
        except OSError:
            continue
    return Address(socket.gethostname(), listen.port)
