"""Mending on a mirror: puts a file right that is not as the mirror's journal has it, because its
disk, or a process, has changed it behind the layer.

What is right is told by a scrub, piece by piece, from versions and journal. It is no change and no
entry: the file is made what the mirror applier had left. A piece as of some entry is written only
while that is applied and no later entry is about the file; looking and writing are one step of the
event loop, as applying an entry is. A process that is killed in between leaves a file for the
next scrub."""

import base64
import os
from stat import S_IFDIR, S_IFLNK, S_IFREG
from typing import Any, NamedTuple

import trio

from fusejournal.backing.fid_tag import xattr_names
from fusejournal.control.reply import Done
from fusejournal.disk import calls, failpoints, syscalls
from fusejournal.disk.acls import ACCESS_ACL_XATTR
from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.errors import ConflictError, FusejournalError, UsageError
from fusejournal.operations import Setattr, Write
from fusejournal.types import Fid, Seq
from fusejournal.volume.observer import ChangeObserver
from fusejournal.volume.volume import Volume


class _Attributes(NamedTuple):
    """All attributes of a file, but for its mtime; *size* of a regular file."""

    uid: int
    gid: int
    mode: int
    size: int
    xattrs: dict[bytes, bytes]


class _Piece(NamedTuple):
    """A part of what file *fid* is as of entry *seq*."""

    fid: Fid
    seq: Seq
    mtime_ns: int
    offset: int
    data: bytes
    attributes: _Attributes | None
    """The attributes, which come last."""

    @classmethod
    def of_json(cls, raw: dict[str, Any]) -> "_Piece":
        """Returns the piece that a request names. Raises UNREADABLE_JSON."""
        attributes = None
        if "mode" in raw:
            xattrs = {_bytes(name): _bytes(value) for name, value in raw["xattrs"]}
            uid, gid, mode, size = (int(raw[key]) for key in ("uid", "gid", "mode", "size"))
            attributes = _Attributes(uid, gid, mode, size, xattrs)
        fid, seq = Fid(int(raw["fid"])), Seq(int(raw["seq"]))
        data = _bytes(raw.get("data", ""))
        offset = int(raw.get("offset", 0))
        return cls(fid, seq, int(raw["mtime_ns"]), offset, data, attributes)


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


class Mending:
    """Mends files of the mirror *volume*."""

    def __init__(self, volume: Volume, kernel_cache: ChangeObserver) -> None:
        self._volume = volume
        self._kernel_cache = kernel_cache

    async def mend(self, request: dict[str, Any]) -> dict[str, Any]:
        """Puts right what *request* names of a file; with the attributes, which come last, all of
        the file is on the disk then. Raises UsageError for what is no piece, ConflictError where
        entries are about the file that are not applied or came later, FusejournalError where the
        backing refuses. Cancelled, it may be done."""
        try:
            piece = _Piece.of_json(request)
        except UNREADABLE_JSON as error:
            raise UsageError(f"no piece of a file: {error}") from None
        try:
            # No await from the look to the last of what is set: an entry might come in between.
            self._check(piece)
            fd = self._put_right(piece)
        except OSError as error:
            raise FusejournalError(f"fid {piece.fid}: {error.strerror}") from None
        if fd >= 0:
            try:
                await trio.to_thread.run_sync(calls.fsync, "mend.sync", fd)
            except OSError as error:
                raise FusejournalError(f"fid {piece.fid}: {error.strerror}") from None
            finally:
                os.close(fd)
        return Done().to_json()

    def _check(self, piece: _Piece) -> None:
        catalog = self._volume.catalog
        if self._volume.failure is not None:
            raise ConflictError(self._volume.failure.text)
        node = catalog.node(piece.fid)
        if node is None or not node.last_seq <= piece.seq <= catalog.applied_seq:
            raise ConflictError(f"fid {piece.fid} is another by now than as of entry {piece.seq}")

    def _put_right(self, piece: _Piece) -> int:
        """Returns a descriptor of the file, to be flushed by and closed, where that was the last
        piece, else -1. Raises OSError."""
        fid, tree = piece.fid, self._volume.tree
        type_ = tree.node(fid).type
        if piece.data:
            calls.write_all("mend.write", tree.writable(fid), piece.data, piece.offset)
        found = -1
        if piece.attributes is not None:
            self._set_attributes(fid, type_, piece.attributes)
            if type_ in (S_IFREG, S_IFDIR):
                found = os.dup(tree.descriptor(fid))
        failpoints.reached("mend.times")
        syscalls.set_times(tree.descriptor(fid), None, piece.mtime_ns)
        if piece.data or type_ == S_IFREG:
            self._kernel_cache.invalidate(Write(fid, piece.offset, None))
        else:
            self._kernel_cache.invalidate(Setattr(fid, None, None, None, None, piece.mtime_ns))
        self._kernel_cache.recall()
        return found

    def _set_attributes(self, fid: Fid, type_: int, wanted: _Attributes) -> None:
        """Sets what differs, in the order in which one thing does not undo another. Raises
        OSError."""
        tree = self._volume.tree
        has = tree.stat(fid)
        if type_ == S_IFREG and has.st_size != wanted.size:
            calls.ftruncate("mend.truncate", tree.writable(fid), wanted.size)
        if (has.st_uid, has.st_gid) != (wanted.uid, wanted.gid):
            failpoints.reached("mend.chown")
            syscalls.chown(tree.descriptor(fid), wanted.uid, wanted.gid)
        target = tree.xattr_target(fid)
        names = set(xattr_names(target))
        for name in names - wanted.xattrs.keys():
            failpoints.reached("mend.removexattr")
            os.removexattr(target, name)
        for name in sorted(wanted.xattrs, key=lambda name: name != ACCESS_ACL_XATTR):
            if name not in names or os.getxattr(target, name) != wanted.xattrs[name]:
                failpoints.reached("mend.setxattr")
                os.setxattr(target, name, wanted.xattrs[name])
        if type_ != S_IFLNK and tree.stat(fid).st_mode & 0o7777 != wanted.mode:
            failpoints.reached("mend.chmod")
            os.chmod(target, wanted.mode)
