"""Addresses at which a node listens or is reached, and names of peers, as people write them.
Pure."""

import os
import re
from ipaddress import ip_address
from typing import NamedTuple

from fusejournal.errors import UsageError

_PORT_MAX = 65535
_HOST_BYTES_MAX = 253
_NAME_CHARS_MAX = 64
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class Address(NamedTuple):
    """A host (name or number; empty: every address of this machine) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def is_same(self, other: "Address") -> bool:
        """Returns True if *other* is the same place, however it is written. Names are not looked
        up."""
        return self.port == other.port and _plain(self.host) == _plain(other.host)


def _plain(host: str) -> str:
    try:
        return str(ip_address(host))
    except ValueError:
        return host.lower().rstrip(".")


def parse_address(text: str) -> Address:
    """Returns the address that *text* means: ``HOST:PORT``, ``[IPv6]:PORT``, or ``:PORT`` to listen
    on every address. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        is_host = ":" in host and re.fullmatch(r"[0-9A-Fa-f:.]+(%[\w.-]+)?", host) is not None
    else:
        is_host = len(host) <= _HOST_BYTES_MAX and re.fullmatch(r"[\w.-]*", host) is not None
    if (
        not colon
        or not is_host
        or not (port.isascii() and port.isdigit())
        or len(port) > len(str(_PORT_MAX))
        or int(port) > _PORT_MAX
    ):
        raise UsageError(
            f"{text!r} is no address: HOST:PORT, or [IPv6]:PORT, with a port up to {_PORT_MAX}"
        )
    return Address(host, int(port))


def parse_remote(text: str) -> Address:
    """Returns the address that *text* means, where one can be reached: with a host, and a port that
    is not 0. Raises UsageError."""
    address = parse_address(text)
    if not address.host or not address.port:
        raise UsageError(f"{text!r} is no address to connect to: it needs a host and a port")
    return address


def check_peer_name(name: object) -> str:
    """Returns *name* if it can be a peer's. Raises UsageError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > _NAME_CHARS_MAX:
        raise UsageError(
            f"{name!r:.100} cannot be a peer's name: 1 to {_NAME_CHARS_MAX} letters, digits, '.', "
            "'_' and '-', with a letter, digit or '_' first"
        )
    return name


def default_node_name(hostname: str) -> str:
    """Returns the name of the node on the machine *hostname* unless an admin gives another: one by
    which other nodes can have it as their peer."""
    short = re.sub(r"[^A-Za-z0-9_-]", "-", hostname.partition(".")[0]).lstrip("-")
    return short[:_NAME_CHARS_MAX] or "node"


def node_name(volume_name: str) -> str:
    """Returns the name of this node for others, of the machine and the volume."""
    machine = os.uname().nodename.partition(".")[0]
    return default_node_name(f"{machine}-{volume_name}")


def parse_peer(text: str) -> tuple[str, Address]:
    """Returns the peer that *text*, ``NAME=ADDR:PORT``, means. Raises UsageError."""
    name, equals, address = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} is no peer: NAME=ADDR:PORT")
    return check_peer_name(name), parse_remote(address)
