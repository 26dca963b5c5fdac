"""The roots of a version's two trees. Pure; apart from their builder, which loads a lot more,
because a command that only lists versions needs no more than this."""

from typing import NamedTuple

from fusejournal.types import Epoch, Fid


class Trees(NamedTuple):
    """The roots of a version's trees, and what else is known of the tree at that moment."""

    inodes: bytes
    names: bytes
    next_fid: Fid
    epoch: Epoch
    content_bytes: int
    """The sizes of all regular files, taken together."""
