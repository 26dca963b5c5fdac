"""Watches whether the volume is exported, and does what follows from that: the durability mode,
whether NFS clients are worth waiting for, and whether their delegations are recalled.

Reads exports(5) and its directory anew only when they have changed. Belongs to the event loop."""

import logging

from fusejournal.errors import FusejournalError
from fusejournal.nfs import exports
from fusejournal.nfs.delegations import Recaller
from fusejournal.node.spec import MountSpec
from fusejournal.types import Fid
from fusejournal.volume.wait_policy import WaitPolicy

log = logging.getLogger(__name__)


class ExportWatch:
    """Sets *policy* by *spec* and by the exports as they are, and uses *recaller* while the volume
    is exported."""

    def __init__(self, spec: MountSpec, policy: WaitPolicy, recaller: Recaller) -> None:
        self._spec = spec
        self._policy = policy
        self._recaller = recaller
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

    def recall(self, fids: set[Fid]) -> None:
        """Have NFSv4 clients give back delegations of *fids*, which have changed. Where that is
        impossible, it is logged."""
        if not self.is_exported:
            return
        try:
            self._recaller.recall(fids)
        except (OSError, FusejournalError) as error:
            log.warning("NFSv4 clients may not see what has changed: %s", error)

    def close(self) -> None:
        """Recall no more."""
        self._recaller.close()

    @property
    def wants_holder(self) -> bool:
        """True while clients are to wait for the next layer, should this one die. Local callers
        alone are better told at once."""
        return self.is_exported and self._spec.config.volume.hold_seconds > 0
