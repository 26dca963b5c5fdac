"""``fusejournal hook``: programs for [hooks] in a volume's configuration."""

import os

import click

from fusejournal.admin.floating_address import drop_address, parse_floating, take_address
from fusejournal.cli import text
from fusejournal.errors import UsageError


@click.group(short_help="Programs for [hooks] in a configuration.")
def hook() -> None:
    """Programs that a volume calls around a change of its role, where its configuration says so.

    \b
    Example, in /etc/fusejournal/srv-data.toml:
      [hooks]
      before = ["fusejournal hook address 192.168.1.9/24 eth0"]
      after = ["fusejournal hook address 192.168.1.9/24 eth0"]
    """


@hook.command()
@click.argument("address", metavar="ADDRESS/LENGTH")
@click.argument("device")
def address(address: str, device: str) -> None:
    """Have DEVICE the ADDRESS while this node is the primary, and only then: the address that
    clients mount from. It is taken away before the node becomes a mirror, and set, with gratuitous
    ARP, after it has become the primary. ADDRESS is of IPv4, or of IPv6, which finds it by itself.

    \b
    Example, as a volume calls it:
      FUSEJOURNAL_WHEN=after FUSEJOURNAL_ROLE=primary fusejournal hook address 192.168.1.9/24 eth0
    """
    floating = parse_floating(address)
    when, role = os.environ.get("FUSEJOURNAL_WHEN"), os.environ.get("FUSEJOURNAL_ROLE")
    if when not in ("before", "after") or role not in ("primary", "mirror"):
        raise UsageError(
            "FUSEJOURNAL_WHEN (before or after) and FUSEJOURNAL_ROLE (primary or mirror) are not "
            "set: this is called by a volume, as [hooks] in its configuration says"
        )
    if role == "mirror":
        drop_address(floating, device)
        text.echo(f"{floating} is not on {device}")
    elif when == "after":
        take_address(floating, device)
        text.echo(f"{floating} is on {device}")
