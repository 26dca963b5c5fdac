"""Whether the volume is exported, and what follows from that: the durability mode, and whether NFS
clients are worth waiting for.

Reads exports(5) and its directory anew only when they have changed. Belongs to the event loop."""

from fusejournal.nfs import exports
from fusejournal.node.spec import MountSpec
from fusejournal.volume.wait_policy import WaitPolicy


class ExportWatch:
    """Sets *policy* by *spec* and by the exports as they are: see the module."""

    def __init__(self, spec: MountSpec, policy: WaitPolicy) -> None:
        self._spec = spec
        self._policy = policy
        self._stamp: tuple[int, ...] = ()
        self.is_exported = False

    def follow(self) -> None:
        """Look at the exports as they are now."""
        mountpoint = self._spec.mountpoint
        self._stamp = exports.stamp()
        self.is_exported = exports.is_exported(mountpoint)
        mode = self._spec.config.volume.durability
        if mode is None:
            mode = "nfs" if exports.waits(mountpoint) else "async"
        self._policy.set(mode)

    def has_changed(self) -> bool:
        """True if the exports are not what :meth:`follow` saw."""
        return exports.stamp() != self._stamp

    @property
    def wants_holder(self) -> bool:
        """True while clients are to wait for the next layer, should this one die. Local callers
        alone are better told at once."""
        return self.is_exported and self._spec.config.volume.hold_seconds > 0
