"""SETFLAGS: what chattr(1) sets.

Immutable and append-only are no flags of the backing's files. The layer itself keeps its callers
from what they forbid (layer/file_flags.py), and the catalog has them: so neither recovery, nor a
mirror, nor a restore is ever refused by a file that it has to put right. What is set are the other
flags, as far as the file system takes them. Where it lacks some, a caller is refused as without a
layer; an entry that another node made holds all the same.

Source: ioctl_iflags(2)."""

from fusejournal.backing.apply_results import NOTHING_MADE, Made
from fusejournal.backing.set_flags import set_flags, set_what_can_be
from fusejournal.backing.tree import Tree
from fusejournal.disk import failpoints
from fusejournal.file_operations import SetFlags


class FlagsApplier:
    """Applies SETFLAGS to *tree*."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def set_flags(self, operation: SetFlags, _: int, __: bytes | memoryview, redo: bool) -> Made:
        """Applies a SETFLAGS: see Applier.apply. With *redo*, which is given for entries of other
        nodes as well, flags that the file system lacks are left out."""
        fd = self._tree.descriptor(operation.fid)
        failpoints.reached("apply.flags")
        if redo:
            set_what_can_be(fd, operation.flags)
        else:
            set_flags(fd, operation.flags)
        return NOTHING_MADE
