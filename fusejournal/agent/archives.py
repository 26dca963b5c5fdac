"""A directory as it was, as a tar archive, made as it is sent: memory does not grow with it, nor
with the content of a file, but for what one batch of files needs.

Names, types, modes, owners (by number), times to the nanosecond and contents are in it; xattrs,
ACLs and file flags are not: a restore has these. A further name of a file is a copy of it.

Source: POSIX.1-2001 pax; tarfile."""

import os
import stat
import tarfile
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from fusejournal.admin.source import JournalSource
from fusejournal.errors import UsageError
from fusejournal.history.file_states import target_of, type_of
from fusejournal.history.json_values import exact
from fusejournal.history.lookup import Lookup
from fusejournal.replay.fold import find_file
from fusejournal.replay.images import Image, read_images
from fusejournal.types import ROOT_FID, Fid, Seq
from fusejournal.versions.content import items_of
from fusejournal.versions.records import InodeRecord
from fusejournal.versions.version_tree import VersionTree

_BATCH: Final = 200
"""Files whose entries are looked for together."""
_PIECE_BYTES: Final = 256 << 10
_FIRST_PART_BYTES: Final = 256 << 10
_PART_BYTES_MAX: Final = 4 << 20
"""The most that is put together at a time. (Larger parts of a file that was written in small pieces
at random would be read faster, and some downloads may be under way.)"""
_ZEROS: Final = bytes(_PIECE_BYTES)
_TYPES: Final = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}
"""Sockets have none: they are left out."""


class Member(NamedTuple):
    """One name of an archive."""

    path: bytes
    type: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes
    content: Iterator[bytes]


def members_of_moment(source: JournalSource, path: bytes, before: Seq) -> Iterator[Member]:
    """Yields all that is below directory *path*, as it was before entry *before*. Raises
    PathNotFoundError, UsageError, FusejournalError, OSError."""
    lookup = source.lookup
    top = find_file(lookup, path, before)
    if top != ROOT_FID:
        (image,) = read_images(lookup, {top}, before, None, _no_progress).values()
        if image.state.maker is not None and type_of(image.state.maker) != stat.S_IFDIR:
            raise UsageError(f"/{exact(path)} is no directory: download it as a file")
    yield from _below_at_moment(lookup, top, before)


def _below_at_moment(lookup: Lookup, top: Fid, before: Seq) -> Iterator[Member]:
    todo = deque([(b"", top)])
    while todo:
        above, directory = todo.popleft()
        names = sorted(lookup.children(directory, before).items())
        for at in range(0, len(names), _BATCH):
            batch = names[at : at + _BATCH]
            fids = {fid for _, fid in batch}
            images = read_images(lookup, fids, before, None, _no_progress)
            for name, fid in batch:
                member = _of_image(lookup, above + name, images[fid])
                if member is None:
                    continue
                yield member
                if member.type == stat.S_IFDIR:
                    todo.append((above + name + b"/", fid))


def _of_image(lookup: Lookup, path: bytes, image: Image) -> Member | None:
    state = image.state
    if state.maker is None:
        return None  # what it was is not in the journal any more
    type_ = type_of(state.maker)
    is_file = type_ == stat.S_IFREG
    mtime_ns = state.mtime_ns if state.mtime_ns is not None else state.last_time_ns
    return Member(
        path, type_, state.permissions().mode or 0, state.uid or 0, state.gid or 0,
        state.size if is_file else 0, mtime_ns, target_of(state.maker) or b"",
        content_of_image(lookup, image) if is_file else iter(()),
    )  # fmt: skip


def content_of_image(lookup: Lookup, image: Image) -> Iterator[bytes]:
    """Yields the bytes of a file, in order: a part after the other is put together, of which the
    first is small, so that it comes soon. Raises JournalDamagedError."""
    size, begin, length = image.state.size, 0, _FIRST_PART_BYTES
    while begin < size:
        end = min(size, begin + length)
        part = bytearray(end - begin)
        for offset, piece in image.pieces(lookup, begin, end):
            part[offset - begin : offset - begin + len(piece)] = piece
        for at in range(0, len(part), _PIECE_BYTES):
            yield bytes(part[at : at + _PIECE_BYTES])
        begin, length = end, min(2 * length, _PART_BYTES_MAX)


def members_of_version(tree: VersionTree, path: bytes) -> Iterator[Member]:
    """Yields all that is below directory *path* of a version. Raises PathNotFoundError, UsageError,
    StoreError."""
    top = tree.find(path)
    if top.type != stat.S_IFDIR:
        raise UsageError(f"/{exact(path)} is no directory: download it as a file")
    yield from _below_in_version(tree, top.fid)


def _below_in_version(tree: VersionTree, top: Fid) -> Iterator[Member]:
    todo = deque([(b"", top)])
    while todo:
        above, directory = todo.popleft()
        for name, fid in tree.children(directory):
            record = tree.record(fid)
            yield Member(
                above + name, record.type, stat.S_IMODE(record.mode or 0), record.uid or 0,
                record.gid or 0, record.size, record.mtime_ns or 0, record.target or b"",
                content_of_record(tree, record),
            )  # fmt: skip
            if record.type == stat.S_IFDIR:
                todo.append((above + name + b"/", fid))


def content_of_record(tree: VersionTree, record: InodeRecord) -> Iterator[bytes]:
    """Yields the bytes of a file of a version, in order. Raises StoreDamagedError, StoreError."""
    kept = record.content
    if kept is None:
        return
    if kept.inline is not None:
        yield kept.inline
        return
    for _, item in items_of(tree.chunk_nodes, kept):
        if item.id is not None:
            yield tree.blocks.read(item.id)
            continue
        yield from _zeros(item.length)


def _zeros(count: int) -> Iterator[bytes]:
    while count:
        yield _ZEROS[:count]
        count -= min(count, len(_ZEROS))


def tar_of(members: Iterator[Member]) -> Iterator[bytes]:
    """Yields the bytes of a tar archive of *members*."""
    for member in members:
        type_ = _TYPES.get(member.type)
        if type_ is None:
            continue
        yield _header(member, type_)
        left = member.size if type_ == tarfile.REGTYPE else 0
        padding = -left % tarfile.BLOCKSIZE
        for piece in member.content if left else ():
            wanted = piece[:left]
            left -= len(wanted)
            yield wanted
        yield from _zeros(left)  # a hole at its end
        if padding:
            yield bytes(padding)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _header(member: Member, type_: bytes) -> bytes:
    info = tarfile.TarInfo(os.fsdecode(member.path))
    info.type, info.mode, info.uid, info.gid = type_, member.mode, member.uid, member.gid
    info.size, info.linkname = member.size, os.fsdecode(member.target)
    # To the nanosecond, which a float would not keep.
    seconds, ns = divmod(member.mtime_ns, 10**9)
    info.mtime = max(0, seconds)
    if ns and seconds >= 0:
        info.pax_headers = {"mtime": f"{seconds}.{ns:09d}"}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _no_progress(_: int, __: int | None) -> None:
    pass
