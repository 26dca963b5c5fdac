"""The standing of a primary among the other nodes, as it opens its volume."""

from typing import NamedTuple

from fusejournal.operations import NewEpoch
from fusejournal.types import Epoch, Seq
from fusejournal.volume.boot_record import Boot
from fusejournal.volume.trouble import Trouble


class Standing(NamedTuple):
    """The standing of a primary before it takes changes, by what its peers and its own page say. By
    default nothing is against it."""

    fenced: Trouble | None = None
    """The reason why it takes no change: another reign has begun, or nothing tells if one has."""
    seen_epoch: Epoch = Epoch(0)
    """The highest that it has seen: one that it begins is beyond."""
    new_epoch: str | None = None
    """The reason why it is to begin an epoch, in words."""
    held_seq: Seq = Seq(0)
    """The seq up to which entries are known to be applied, because a mirror has them."""

    def due_epoch(self, boot: Boot, epoch: Epoch, *, system_crash: bool) -> NewEpoch | None:
        """The epoch that a primary, which has entries, the last of them of *epoch*, is to begin,
        and why; None where it goes on in its own. Another boot is enough: this may be an older copy
        of the volume, and what was made after it was copied has its fids."""
        reason = "the system crashed" if system_crash else self.new_epoch
        if reason is None and boot.is_this:
            return None
        return NewEpoch(Epoch(max(epoch, self.seen_epoch) + 1), reason or boot.words)


UNOPPOSED = Standing()
