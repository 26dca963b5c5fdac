"""The changes that entries make to names: what each stood for before one and after it. Pure."""

from typing import NamedTuple

from fusejournal.operations import (
    RENAME_EXCHANGE,
    Create,
    Import,
    ImportLink,
    Link,
    Mkdir,
    Operation,
    Rename,
    Rmdir,
    Symlink,
    Unlink,
    Whiteout,
)
from fusejournal.types import Fid

Dentry = tuple[Fid, bytes]
"""A directory's fid and a name in it."""


class NameChange(NamedTuple):
    """A change of one name by an operation: the fid it stood for before and after (None:
    nothing)."""

    parent: Fid
    name: bytes
    before: Fid | None
    after: Fid | None


def name_changes(operation: Operation) -> list[NameChange]:
    """Returns what *operation*, if it held, did to names."""
    match operation:
        case Create() | Mkdir() | Symlink() | Import() | Link() | ImportLink():
            return [NameChange(operation.parent, operation.name, None, operation.fid)]
        case Unlink() | Rmdir():
            return [NameChange(operation.parent, operation.name, operation.fid, None)]
        case Rename() | Whiteout():
            left: Fid | None = None
            if isinstance(operation, Whiteout):
                left = operation.whiteout
            elif operation.flags & RENAME_EXCHANGE:
                left = operation.replaced
            return [
                NameChange(operation.parent, operation.name, operation.fid, left),
                NameChange(
                    operation.new_parent,
                    operation.new_name,
                    operation.replaced or None,
                    operation.fid,
                ),
            ]
    return []
