"""The seam between a volume and the layer that shows it: what a mirror's applier tells."""

from typing import Protocol

from fusejournal.operations import Operation


class ChangeObserver(Protocol):
    """Learns of what was applied to a mirror, so that nobody goes on with what was true before;
    :class:`~fusejournal.layer.kernel_cache.KernelCache` is one."""

    def invalidate(self, operation: Operation) -> None:
        """*operation* was applied. Called for each entry, in order."""

    def recall(self) -> None:
        """Have delegations of what has changed given back. Called after a slice of entries."""
