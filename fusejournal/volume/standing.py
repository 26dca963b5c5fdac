"""The standing of a primary among the other nodes, as it opens its volume."""

from typing import NamedTuple

from fusejournal.types import Epoch, Seq


class Standing(NamedTuple):
    """The standing of a primary before it takes changes, by what its peers and its own page say. By
    default nothing is against it."""

    fenced: str | None = None
    """The reason why it takes no change, in words: another reign has begun."""
    seen_epoch: Epoch = Epoch(0)
    """The highest that it has seen: one that it begins is beyond."""
    new_epoch: str | None = None
    """The reason why it is to begin an epoch, in words."""
    held_seq: Seq = Seq(0)
    """The seq up to which entries are known to be applied, because a mirror has them."""


UNOPPOSED = Standing()
