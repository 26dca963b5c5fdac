"""Refusals of a backing, for messages: which file, and which limit of its file system, if it was
one. Reads only."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fusejournal.backing.catalog import Catalog
from fusejournal.backing.limits import limit_met
from fusejournal.errors import printable
from fusejournal.operations import Moving, TreeOperation
from fusejournal.volume.volume import Volume

_PATH_CHARACTERS_MAX = 300
"""The most that messages show of a path, from its end."""


def path_of(catalog: Catalog, operation: TreeOperation) -> str:
    """Returns the path of the file that *operation*, which was not done, is about, in quotes; its
    fid where it has no path."""
    parent, name = getattr(operation, "parent", None), getattr(operation, "name", b"")
    if parent is None or isinstance(operation, Moving):
        found = catalog.path(operation.fid)
    elif (above := catalog.path(parent)) is None:
        found = None
    else:
        found = b"/".join(filter(None, (above, name)))
    if found is None:
        return f"fid {operation.fid}"
    shown = "/" + printable(found)
    if len(shown) > _PATH_CHARACTERS_MAX:
        shown = "..." + shown[-_PATH_CHARACTERS_MAX:]
    return f"'{shown}'"


@contextmanager
def named(volume: Volume, operation: TreeOperation, size: int = 0) -> Iterator[None]:
    """Has a refusal inside, of what *operation* with *size* bytes of data would do, say which file
    and which limit it is about. Raises OSError."""
    try:
        yield
    except OSError as error:
        number, tree = error.errno or 0, volume.tree
        limit = limit_met(operation, number, size, tree.root_fd, tree.limits)
        reason = os.strerror(number)
        if limit is not None:
            reason = f"the file system has no place for {limit}"
        words = f"{path_of(volume.catalog, operation)}: {reason}"
        raise OSError(number, words) from error
