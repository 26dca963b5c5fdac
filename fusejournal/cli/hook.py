"""``fusejournal hook``: programs for [hooks] in a volume's configuration."""

import os
from collections.abc import Iterable

import click

from fusejournal.admin import role_hooks
from fusejournal.cli import text


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


def _call() -> role_hooks.HookCall:
    return role_hooks.HookCall(os.environ)


def _show(done: Iterable[str]) -> None:
    for line in done:
        text.echo(line)


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
    _show(role_hooks.move_address(_call(), address, device))


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
    _show(role_hooks.move_nfs(_call()))


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
    _show(role_hooks.notify_clients(_call(), address))


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
    _show(role_hooks.fence_peer(_call(), timeout))
