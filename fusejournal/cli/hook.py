"""``fusejournal hook``: programs for [hooks] in a volume's configuration."""

import os
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

import click

from fusejournal.admin.floating_address import drop_address, parse_floating, take_address
from fusejournal.cli import text
from fusejournal.errors import FusejournalError, UsageError


@click.group(short_help="Programs for [hooks] in a configuration.")
def hook() -> None:
    """Programs that a volume calls around a change of its role, where its configuration says so.

    \b
    Example, in /etc/fusejournal/srv-data.toml:
      [hooks]
      before = ["fusejournal hook address 192.168.1.9/24 eth0"]
      after = ["fusejournal hook address 192.168.1.9/24 eth0"]

    \b
    Example, where NFS clients mount from that address:
      [hooks]
      before = ["fusejournal hook address 192.168.1.9/24 eth0",
                "fusejournal hook exportfs"]
      after = ["fusejournal hook exportfs",
               "fusejournal hook address 192.168.1.9/24 eth0",
               "fusejournal hook notify 192.168.1.9/24"]
    """


def _variables(*names: str) -> list[str]:
    """Returns what the volume told in its variables *names*. Raises UsageError."""
    found = [os.environ.get(f"FUSEJOURNAL_{name}", "") for name in names]
    if not all(found):
        listed = " and ".join(f"FUSEJOURNAL_{name}" for name in names)
        raise UsageError(
            f"{listed} are not all set: this is called by a volume, as [hooks] in its "
            "configuration says"
        )
    return found


def _change() -> tuple[str, str]:
    """Returns when this is called, and for which role. Raises UsageError."""
    when, role = _variables("WHEN", "ROLE")
    if when not in ("before", "after") or role not in ("primary", "mirror"):
        raise UsageError(
            "FUSEJOURNAL_WHEN is before or after here, and FUSEJOURNAL_ROLE primary or mirror: "
            "this stands in before and after of [hooks]"
        )
    return when, role


@hook.command()
@click.argument("address", metavar="ADDRESS/LENGTH")
@click.argument("device")
def address(address: str, device: str) -> None:
    """Have DEVICE the ADDRESS while this node is the primary, and only then: the address that
    clients mount from. It is taken away before the node becomes a mirror, and set, with gratuitous
    ARP, after it has become the primary. ADDRESS is of IPv4, or of IPv6, then told by neighbor
    advertisements, and used without looking for another that has it. NFS clients that were
    connected to it elsewhere ('hook exportfs') connect anew at once.

    \b
    Example, as a volume calls it:
      FUSEJOURNAL_WHEN=after FUSEJOURNAL_ROLE=primary fusejournal hook address 192.168.1.9/24 eth0
    """
    floating = parse_floating(address)
    when, role = _change()
    if role == "mirror":
        drop_address(floating, device)
        text.echo(f"{floating} is not on {device}")
    elif when == "after":
        take_address(floating, device)
        text.echo(f"{floating} is on {device}")
        _end_connections(floating)


def _end_connections(floating: IPv4Interface | IPv6Interface) -> None:
    """Have NFS clients that are connected to *floating*, as far as they know, connect anew. They
    would come to it in a while."""
    from fusejournal.admin import nfs_move

    volume = os.environ.get("FUSEJOURNAL_VOLUME")
    if volume:
        try:
            for line in nfs_move.let_go(volume, floating):
                text.echo(line)
        except (FusejournalError, OSError) as error:
            text.echo(f"NFS clients come later: {error}")


@hook.command()
def exportfs() -> None:
    """Have NFS clients go on across a change of the role, with their locks. Before it, nfsd stops,
    so that they wait; after it, it serves the exports of the files (see 'fusejournal export'), and
    on a new primary begins with a grace period, in which they take back the locks that they had
    on the server before. Their names, without which nfsd gives no locks back, come in the volume,
    in .fusejournal-nfs, which is root's alone.

    \b
    All servers need in /etc/nfs.conf:
      [nfsd]
      scope = files.example.org     # the same on all
      grace-time = 15
      lease-time = 15
    and nfsdcld, which Debian starts with nfs-server.

    \b
    Example, as a volume calls it:
      FUSEJOURNAL_WHEN=after FUSEJOURNAL_ROLE=mirror FUSEJOURNAL_REIGN=2/feed \\
        FUSEJOURNAL_VOLUME=srv-data FUSEJOURNAL_MOUNTPOINT=/srv/data fusejournal hook exportfs
    """
    from fusejournal.admin import nfs_move  # which the others need not wait for

    when, role = _change()
    reign, volume, mountpoint = _variables("REIGN", "VOLUME", "MOUNTPOINT")
    change = nfs_move.RoleChange(when, role, reign, volume, Path(mountpoint))
    for line in nfs_move.follow(change):
        text.echo(line)


@hook.command()
@click.argument("address", metavar="ADDRESS/LENGTH")
def notify(address: str) -> None:
    """Have NFSv3 clients, which know the server by the floating ADDRESS, told to take their locks
    back from this one (sm-notify(8)). Stands in 'after', behind those that set the address.
    ADDRESS must have a name, in /etc/hosts or the DNS.

    \b
    Example, as a volume calls it:
      FUSEJOURNAL_WHEN=after FUSEJOURNAL_ROLE=primary FUSEJOURNAL_VOLUME=srv-data \\
        fusejournal hook notify 192.168.1.9/24
    """
    from fusejournal.admin import nfs_move

    floating = parse_floating(address)
    when, role = _change()
    (volume,) = _variables("VOLUME")
    if (when, role) == ("after", "primary"):
        for line in nfs_move.notify(volume, floating):
            text.echo(line)


@hook.command()
@click.option(
    "--timeout",
    default=25.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until the peer is off; timeout_seconds of [hooks] must be longer.",
)
def fence(timeout: float) -> None:
    """Turn the old primary off, by the fence agent that /etc/fusejournal/fence/PEER.conf names, and
    end well only if that says that it is off. A promotion that nothing else covers calls it, and
    goes on, without --force, where it ends well.

    \b
    Example of /etc/fusejournal/fence/east.conf, which only root may read:
      agent = fence_ipmilan         # of the package fence-agents
      ip = 10.0.0.12                # all further lines are for the agent
      username = admin
      password = ...

    \b
    Example, in the configuration of the volume:
      [hooks]
      fence = "fusejournal hook fence"

    \b
    Example of trying it, which turns east off:
      FUSEJOURNAL_WHEN=fence FUSEJOURNAL_PEER=east fusejournal hook fence
    """
    from fusejournal.admin.fence_agent import read_options, turn_off

    if os.environ.get("FUSEJOURNAL_WHEN") != "fence":
        raise UsageError(
            "FUSEJOURNAL_WHEN is not fence: this stands in fence of [hooks], or is tried with "
            "FUSEJOURNAL_WHEN=fence FUSEJOURNAL_PEER=PEER"
        )
    peer = os.environ.get("FUSEJOURNAL_PEER", "")
    turn_off(peer, read_options(peer), timeout)
    text.echo(f"{peer} is off")
