"""A floating address, which goes where the primary is: set and taken away by ip(8), and announced
to the network by gratuitous ARP, or unsolicited neighbor advertisements, so that clients and
switches look for it at its new place at once.

An address of IPv6 is set without duplicate address detection: that would keep it unusable for a
second or two, and where the old server still had it, for good. Who has the address is decided by
the role; a server that was to lose it and still has it is to be fenced, as with IPv4.

Source: RFC 5227 (section 3), RFC 4861 (4.4, 7.2.6), RFC 4862 (5.4), arp(7), packet(7), ipv6(7),
ip-address(8)."""

import json
import socket
import struct
import subprocess
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Any, NamedTuple

from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.disk.json_records import checked
from fusejournal.disk.process import WORKING_DIRECTORY
from fusejournal.errors import FusejournalError, UsageError

_BROADCAST = b"\xff" * 6
_ETHER_ARP = 0x0806
_ANNOUNCEMENTS = 3
_HEAD = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ADVERTISEMENT = struct.Struct("!BBHI16sBB6s")
"""RFC 4861, 4.4: type, code, checksum (the kernel's work), flags, target; then the option with the
link-layer address: type, length in eights of bytes, address."""
_ADVERTISES, _TARGET_LINK_LAYER = 136, 2
_OVERRIDE = 1 << 29
_ALL_NODES = "ff02::1"
_HOPS = 255
"""The hop limit of a neighbor's message, by which none from further away is taken for one."""


def parse_floating(text: str) -> IPv4Interface | IPv6Interface:
    """Returns the address that *text*, ADDRESS/LENGTH, means. Raises UsageError."""
    try:
        if "/" in text:
            return ip_interface(text)
    except ValueError:
        pass
    raise UsageError(f"{text!r} is no address with a length, as in 192.168.1.9/24")


def take_address(address: IPv4Interface | IPv6Interface, device: str) -> None:
    """Gives *device* the *address*, if it has it not, and announces to the network where that is
    now. Raises FusejournalError, OSError."""
    if isinstance(address, IPv4Interface):
        _ip("address", "replace", str(address), "dev", device)
        announce(address, device)
        return
    found = _found(address, device)
    if found is not None and (found.tentative or found.dadfailed):
        # It stays so whatever it is replaced with.
        _ip("address", "del", str(address), "dev", device)
    _ip("address", "replace", str(address), "dev", device, "nodad")
    advertise(address, device)


def drop_address(address: IPv4Interface | IPv6Interface, device: str) -> None:
    """Takes *address* from *device*, if it has it. Raises FusejournalError."""
    if has_address(address, device):
        _ip("address", "del", str(address), "dev", device)


def has_address(address: IPv4Interface | IPv6Interface, device: str) -> bool:
    """Returns True if *device* has *address*. Raises FusejournalError."""
    return _found(address, device) is not None


class _FoundAddress(NamedTuple):
    """An address of a device, as ip(8) has it."""

    local: str
    tentative: bool
    """True as long as the kernel asks whether another has it."""
    dadfailed: bool
    """True if another had it."""

    @classmethod
    def of(cls, raw: Any) -> "_FoundAddress":
        """Returns the one that *raw* is of the JSON. Raises ValueError, AttributeError."""
        flags = (raw.get(name, False) for name in ("tentative", "dadfailed"))
        return checked(cls(raw.get("local", ""), *flags))


def _found(address: IPv4Interface | IPv6Interface, device: str) -> _FoundAddress | None:
    """Returns *address* as *device* has it; None: it is not there. Raises FusejournalError."""
    printed = _ip("-json", "address", "show", "dev", device)
    try:
        (found,) = json.loads(printed)
        there = [_FoundAddress.of(one) for one in found.get("addr_info", [])]
    except UNREADABLE_JSON:
        raise FusejournalError(
            f"ip -json address show dev {device}: prints what is no address: {printed!r:.80}"
        ) from None
    return next((one for one in there if one.local == str(address.ip)), None)


def announce(address: IPv4Interface, device: str) -> None:
    """Announces to all on the network of *device* that *address* is here. Raises OSError."""
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


def advertise(address: IPv6Interface, device: str) -> None:
    """Announces to all on the network of *device* that *address*, which it has and may use, is
    here. Raises OSError."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as link:
        link.bind((device, 0))
        hardware = link.getsockname()[4]
    index = socket.if_nametoindex(device)
    target, option = address.ip.packed, (_TARGET_LINK_LAYER, 1, hardware)
    message = _ADVERTISEMENT.pack(_ADVERTISES, 0, 0, _OVERRIDE, target, *option)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as packets:
        packets.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOPS)
        packets.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        packets.bind((str(address.ip), 0))
        for _ in range(_ANNOUNCEMENTS):
            packets.sendto(message, (_ALL_NODES, 0, 0, index))


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
