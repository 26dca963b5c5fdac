"""Has a mirror's layer put a file right that a scrub has found not to be as the journal has it."""

import base64
from stat import S_IMODE
from typing import Any

from fusejournal.admin.live import ask_layer
from fusejournal.errors import FusejournalError
from fusejournal.node.state_dir import VolumeState
from fusejournal.types import Seq
from fusejournal.versions.content import read_content
from fusejournal.versions.live_tree import TreeFault, can_be_repaired
from fusejournal.versions.records import InodeRecord
from fusejournal.versions.version_tree import VersionTree

_PIECE_BYTES = 32 << 10
_XATTRS_BYTES_MAX = 32 << 10
"""Bytes that fit a request to the layer."""


def mend(
    state: VolumeState, tree: VersionTree, record: InodeRecord, fault: TreeFault, seq: Seq
) -> bool:
    """Has the file with *record*, which *tree* has as of entry *seq*, be put right on the mirror
    with *state*. Returns False where it is of another kind, or names differ. Raises ConflictError
    where entries have changed it meanwhile; FusejournalError, StoreDamagedError, StoreError."""
    if not can_be_repaired(record, fault):
        return False
    assert record.mode is not None
    xattrs = [(_text(name), _text(value)) for name, value in record.xattrs]
    if sum(len(one) for pair in xattrs for one in pair) > _XATTRS_BYTES_MAX:
        raise FusejournalError("its attributes are too large to be sent")

    def ask(**fields: Any) -> None:
        ask_layer(state, "mend", fid=record.fid, seq=seq, mtime_ns=record.mtime_ns, **fields)

    for start, length in fault.ranges:
        assert record.content is not None
        for offset in range(start, start + length, _PIECE_BYTES):
            end = min(offset + _PIECE_BYTES, start + length)
            data = read_content(tree.chunk_nodes, record.content, offset, end)
            ask(offset=offset, data=_text(data))
    ask(
        uid=record.uid,
        gid=record.gid,
        mode=S_IMODE(record.mode),
        size=record.size,
        xattrs=xattrs,
    )
    return True


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
