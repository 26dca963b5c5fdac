"""The programs that come with fusejournal for [hooks] of a configuration: what each does at a
change of a volume's role, which it knows from the variables that the volume has set for it
(node/hooks.py). Each returns what was done, a line each.

NFS is loaded by those alone that need it, because clients wait meanwhile."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fusejournal.admin.floating_address import drop_address, parse_floating, take_address
from fusejournal.errors import FusejournalError, UsageError


class HookCall(NamedTuple):
    """A volume's call of a hook, by its variables."""

    variables: Mapping[str, str]

    def needed(self, *names: str) -> list[str]:
        """Returns the values of the variables *names*. Raises UsageError where one is not set."""
        found = [self.variables.get(f"FUSEJOURNAL_{name}", "") for name in names]
        if not all(found):
            listed = " and ".join(f"FUSEJOURNAL_{name}" for name in names)
            raise UsageError(
                f"{listed} are not all set: this is called by a volume, as [hooks] in its "
                "configuration says"
            )
        return found

    def change(self) -> tuple[str, str]:
        """Returns when it is called, and for which role. Raises UsageError."""
        when, role = self.needed("WHEN", "ROLE")
        if when not in ("before", "after") or role not in ("primary", "mirror"):
            raise UsageError(
                "FUSEJOURNAL_WHEN is before or after here, and FUSEJOURNAL_ROLE primary or mirror: "
                "this stands in before and after of [hooks]"
            )
        return when, role


def move_address(call: HookCall, address: str, device: str) -> list[str]:
    """Has *device* the floating *address* once the node has become the primary, and not when it is
    to be a mirror; NFS clients that were connected to it elsewhere connect anew. Raises UsageError,
    FusejournalError, OSError."""
    floating = parse_floating(address)
    when, role = call.change()
    if role == "mirror":
        drop_address(floating, device)
        return [f"{floating} is not on {device}"]
    if when == "before":
        return []
    take_address(floating, device)
    done = [f"{floating} is on {device}"]
    volume = call.variables.get("FUSEJOURNAL_VOLUME")
    if volume:
        from fusejournal.admin import nfs_move

        try:
            done += nfs_move.let_go(volume, floating)
        except (FusejournalError, OSError) as error:
            done.append(f"NFS clients come later: {error}")
    return done


def move_nfs(call: HookCall) -> list[str]:
    """Does what is due in NFS: see nfs_move.follow. Raises UsageError, ExportError, OSError."""
    from fusejournal.admin import nfs_move

    when, role = call.change()
    reign, volume, mountpoint = call.needed("REIGN", "VOLUME", "MOUNTPOINT")
    return nfs_move.follow(nfs_move.RoleChange(when, role, reign, volume, Path(mountpoint)))


def notify_clients(call: HookCall, address: str) -> list[str]:
    """Has NFSv3 clients told on a new primary: see nfs_move.notify. Raises UsageError,
    ExportError."""
    from fusejournal.admin import nfs_move

    floating = parse_floating(address)
    change = call.change()
    (volume,) = call.needed("VOLUME")
    return nfs_move.notify(volume, floating) if change == ("after", "primary") else []


def fence_peer(call: HookCall, timeout_seconds: float) -> list[str]:
    """Turns the old primary off: see fence_agent.turn_off. Raises UsageError, and what that
    raises."""
    from fusejournal.admin.fence_agent import read_options, turn_off

    if call.variables.get("FUSEJOURNAL_WHEN") != "fence":
        raise UsageError(
            "FUSEJOURNAL_WHEN is not fence: this stands in fence of [hooks], or is tried with "
            "FUSEJOURNAL_WHEN=fence FUSEJOURNAL_PEER=PEER"
        )
    peer = call.variables.get("FUSEJOURNAL_PEER", "")
    turn_off(peer, read_options(peer), timeout_seconds)
    return [f"{peer} is off"]
