"""A floating address, which goes where the primary is: set and taken away by ip(8), and told to the
network by gratuitous ARP, so that clients and switches look for it at its new place at once.

Source: RFC 5227 (section 3), arp(7), packet(7)."""

import json
import socket
import struct
import subprocess
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from fusejournal.disk.process import WORKING_DIRECTORY
from fusejournal.errors import FusejournalError, UsageError

_BROADCAST = b"\xff" * 6
_ETHER_ARP = 0x0806
_ANNOUNCEMENTS = 3
_HEAD = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")


def parse_floating(text: str) -> IPv4Interface | IPv6Interface:
    """Returns the address that *text*, ADDRESS/LENGTH, means. Raises UsageError."""
    try:
        if "/" in text:
            return ip_interface(text)
    except ValueError:
        pass
    raise UsageError(f"{text!r} is no address with a length, as in 192.168.1.9/24")


def take_address(address: IPv4Interface | IPv6Interface, device: str) -> None:
    """Gives *device* the *address*, if it has it not, and tells the network where that is now.
    Raises FusejournalError, OSError."""
    _ip("address", "replace", str(address), "dev", device)
    if isinstance(address, IPv4Interface):
        announce(address, device)


def drop_address(address: IPv4Interface | IPv6Interface, device: str) -> None:
    """Takes *address* from *device*, if it has it. Raises FusejournalError."""
    if has_address(address, device):
        _ip("address", "del", str(address), "dev", device)


def has_address(address: IPv4Interface | IPv6Interface, device: str) -> bool:
    """Tells whether *device* has *address*. Raises FusejournalError."""
    (found,) = json.loads(_ip("-json", "address", "show", "dev", device))
    return any(one.get("local") == str(address.ip) for one in found.get("addr_info", ()))


def announce(address: IPv4Interface, device: str) -> None:
    """Tells everybody on the network of *device* that *address* is here. Raises OSError."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETHER_ARP)) as packets:
        packets.bind((device, _ETHER_ARP))
        hardware = packets.getsockname()[4]
        ip = address.ip.packed
        for operation in (
            1,
            2,
        ):  # as a question and as an answer: some heed the one, some the other
            asked = bytes(6) if operation == 1 else _BROADCAST
            body = _ARP.pack(1, 0x0800, 6, 4, operation, hardware, ip, asked, ip)
            frame = _HEAD.pack(_BROADCAST, hardware, _ETHER_ARP) + body
            for _ in range(_ANNOUNCEMENTS):
                packets.send(frame)


def _ip(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["ip", *arguments], capture_output=True, text=True, check=False, cwd=WORKING_DIRECTORY
        )
    except FileNotFoundError:
        raise FusejournalError("ip(8) is not installed: apt install iproute2") from None
    if done.returncode != 0:
        raise FusejournalError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
