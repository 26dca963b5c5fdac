"""The TCP connections that clients have to nfsd: which there are, and having those of a server that
is gone end at once.

A client that waits for an answer from a server whose address has gone to another sends again, if
anything, in longer and longer intervals, and one whose request had been taken in already waits for
a minute (timeo of nfs(5)). Only what it sends then tells it that its connection is no more. So the
new server sends it an acknowledgement of nothing, from the address and port that it is connected
to: a client answers such a one with what it does expect, and to that the new server, which knows
of no such connection, says so (RST). Then the client connects anew. (Samba's CTDB calls it a
tickle.)

Source: RFC 9293 (3.10.7.1, 3.10.7.4), proc(5) on /proc/net/tcp, raw(7), ip(7)."""

import socket
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from fusejournal.nfs import nfsd

PORT = 2049
CONNECTIONS_MAX = 4096
"""The number that is kept, and reported."""

_FREE_PORT = 1024
"""The first of the ports that are not root's alone; nfsd asks for one of those below it, unless an
export is ``insecure``."""
_ESTABLISHED = "01"
_SEGMENT = struct.Struct("!HHIIBBHHH")
"""RFC 9293, 3.1: ports, sequence number, acknowledgement, offset of data, flags, window, checksum,
urgent pointer."""
_ACK = 0x10
_WORDS_LONG = 5 << 4


class ClientConnection(NamedTuple):
    """One of a client to the server's *address* and *port*."""

    address: str
    port: int
    client: str
    client_port: int


def established() -> tuple[ClientConnection, ...]:
    """Returns those that nfsd has now."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in nfsd.read_kernel(f"proc/net/{name}").splitlines()[1:]:
            words = line.split()
            with suppress(ValueError, IndexError):
                if words[3] == _ESTABLISHED:
                    one = ClientConnection(*_end(words[1]), *_end(words[2]))
                    if one.port == PORT:
                        found.add(one)
    return most_likely(found)


def most_likely(found: Iterable[ClientConnection]) -> tuple[ClientConnection, ...]:
    """Returns as many of *found* as are kept: first those from the ports that NFS clients have,
    because anyone can connect from others."""
    ranked = sorted(found, key=lambda one: (one.client_port >= _FREE_PORT, one))
    return tuple(sorted(ranked[:CONNECTIONS_MAX]))


def _end(text: str) -> tuple[str, int]:
    """Returns address and port of *text*, as the kernel writes them: 32 bits at a time, in the
    machine's order. Raises ValueError."""
    digits, _, port = text.partition(":")
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    return str(ip_address(packed)), int(port, 16)


def checked_connections(told: Iterable[Iterable[object]]) -> tuple[ClientConnection, ...]:
    """Returns the connections that *told*, by a peer, is. Raises ValueError, TypeError."""
    found = []
    for one in told:
        address, port, client, client_port = one
        ends = ip_address(str(address)), ip_address(str(client))
        if ends[0].version != ends[1].version or port != PORT:
            raise ValueError(f"{one!r} is no connection to nfsd")
        number = int(str(client_port))
        if not 0 < number < 1 << 16:
            raise ValueError(f"{number} is no port")
        found.append(ClientConnection(str(ends[0]), PORT, str(ends[1]), number))
    return tuple(found[:CONNECTIONS_MAX])


def have_end(
    connections: Iterable[ClientConnection], address: IPv4Address | IPv6Address
) -> list[ClientConnection]:
    """Have the clients of those *connections* that are to *address*, which is this machine's by
    now, find that they are no more. Returns those. Raises OSError."""
    ours = [one for one in connections if ip_address(one.address) == address]
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP) as packets:
        packets.bind((str(address), 0))
        for one in ours:
            with suppress(OSError):  # one that has no way here may be the only one
                packets.sendto(segment(one), (one.client, 0))
    return ours


def segment(one: ClientConnection) -> bytes:
    """Returns an acknowledgement of nothing, from the server's end of *one*."""
    ends = ip_address(one.address).packed + ip_address(one.client).packed
    bare = _SEGMENT.pack(one.port, one.client_port, 0, 0, _WORDS_LONG, _ACK, 0, 0, 0)
    # The pseudo-header of IPv6 has the same sum as that of IPv4 (RFC 8200, 8.1).
    pseudo = ends + struct.pack("!HH", socket.IPPROTO_TCP, len(bare))
    return bare[:16] + struct.pack("!H", _checksum(pseudo + bare)) + bare[18:]


def _checksum(data: bytes) -> int:
    """Returns the Internet checksum (RFC 1071) of *data*, which has an even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
