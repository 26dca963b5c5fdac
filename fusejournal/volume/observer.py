"""The seams between a volume and those who show it: each is given to a constructor, and learns what
happens without being asked for.

Only protocols and their empty implementations are here. Called from the event loop's thread."""

from typing import Protocol

from fusejournal.operations import Operation
from fusejournal.types import Fid, Seq


class VolumeObserver(Protocol):
    """Knows how a volume is used, and learns of each entry."""

    def entry_applied(self, applied_seq: Seq, appended_bytes: int) -> None:
        """Everything up to *applied_seq* was applied or refused; the journal has grown by
        *appended_bytes* since it was opened. Called after each entry."""

    def is_in_use(self, fid: Fid) -> bool:
        """True if the kernel may know *fid*, or have it open."""

    def is_open(self, fid: Fid) -> bool:
        """True if the kernel has *fid* open."""


class Unobserved:
    """The observer of a volume that serves no caller: every fid may be in use."""

    def entry_applied(self, applied_seq: Seq, appended_bytes: int) -> None: ...

    def is_in_use(self, fid: Fid) -> bool:
        return True

    def is_open(self, fid: Fid) -> bool:
        return False


class ChangeObserver(Protocol):
    """Learns of what was applied to a mirror, so that no reader goes on with what was true before;
    :class:`~fusejournal.layer.kernel_cache.KernelCache` is one."""

    def invalidate(self, operation: Operation) -> None:
        """*operation* was applied. Called for each entry, in order."""

    def recall(self) -> None:
        """Have delegations of what has changed given back. Called after a slice of entries."""


class Watcher(Protocol):
    """The one to whom an opening reports how it goes; :class:`~fusejournal.node.spec.Reporter` is
    one."""

    def progress(self, stage: str, done: int, total: int | None, unit: str) -> None: ...

    def warning(self, text: str) -> None: ...
