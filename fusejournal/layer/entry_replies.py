"""Replies to the kernel about files and names: attributes, and entries, from which it makes inodes.

The kernel may keep names and attributes for long, because nothing but this mount changes the tree.
On a mirror, whose tree changes without it, it may not keep names, and each entry is noted
(kernel_cache.py).

All entries have the same generation of a fid, or the kernel takes it for another file's. Links are
counted without the layer's own (Tree.hidden_links)."""

import errno
import logging
from collections.abc import Container, Iterator

from fusejournal.disk import syscalls
from fusejournal.journal.clock import LAG_NS
from fusejournal.layer.kernel_cache import KernelCache
from fusejournal.layer.kernel_replies import KEEP_SECONDS, encode_statx
from fusejournal.layer.resolve import refusal
from fusejournal.native import kernel
from fusejournal.native.kernel import (
    FileStat,
    encode_attributes,
    encode_entry,
    encode_listed,
)
from fusejournal.types import ROOT_FID, Fid
from fusejournal.volume.volume import Volume

log = logging.getLogger(__name__)

_DOT_COOKIE, _DOT_DOT_COOKIE = 2, 3


class EntryReplies:
    """The replies of one mounted volume. *unfinished*: fids that are not listed yet, because their
    content is not wholly in the journal. *kernel_cache*: a mirror's."""

    def __init__(
        self, volume: Volume, unfinished: Container[Fid], kernel_cache: KernelCache | None
    ) -> None:
        self._catalog = volume.catalog
        self._tree = volume.tree
        self._journal = volume.journal
        self._unfinished = unfinished
        self._kernel_cache = kernel_cache
        self._keep_names_seconds = KEEP_SECONDS if kernel_cache is None else 0

    def attributes(self, fid: Fid) -> bytes:
        """The attributes of *fid*. Raises OSError ESTALE."""
        stat, ctime_ns = self._tree.stat(fid), self._tree.node(fid).ctime_ns
        nlink = stat.st_nlink - self._tree.hidden_links(fid)
        return encode_attributes(fid, stat, ctime_ns, nlink, KEEP_SECONDS)

    def attributes_and_birth(self, fid: Fid) -> bytes:
        """The same with the time of birth, which is the backing's: a copy on a mirror, or a
        restored file, has the time of the copy. It is reported earlier by as much as entries may
        lag the backing's clock, so that it is not later than the times that they give. Raises
        OSError ESTALE."""
        stat, ctime_ns = self._tree.stat(fid), self._tree.node(fid).ctime_ns
        nlink = stat.st_nlink - self._tree.hidden_links(fid)
        birth_ns = syscalls.birth_time(self._tree.descriptor(fid))
        if birth_ns is not None:
            birth_ns -= LAG_NS
        return encode_statx(fid, stat, ctime_ns, nlink, birth_ns)

    def entry(self, fid: Fid) -> bytes:
        """The entry of *fid*, under whatever name. Raises OSError ESTALE."""
        stat, ctime_ns = self._tree.stat(fid), self._tree.node(fid).ctime_ns
        return self._entry(fid, stat, ctime_ns, stat.st_nlink - self._tree.hidden_links(fid))

    def noted_entry(self, fid: Fid) -> bytes:
        """The same, for a look-up."""
        entry = self.entry(fid)
        if self._kernel_cache is not None:
            self._kernel_cache.note_lookup(fid)
        return entry

    def named_entry(self, parent: Fid, name: bytes, fid: Fid) -> bytes:
        """The entry of *fid*, looked up as *name* in *parent*. Raises OSError ESTALE where the
        backing has something else there."""
        node = self._tree.node(fid)
        try:
            stat = self._tree.stat_name(parent, name)
        except FileNotFoundError:
            stat = None
        if stat is None or stat.st_ino != node.ino:
            log.error(
                "the backing was changed behind the layer: %r in fid %d is not fid %d",
                name,
                parent,
                fid,
            )
            raise refusal(errno.ESTALE)
        if self._kernel_cache is not None:
            self._kernel_cache.note_lookup(fid)
        return self._entry(fid, stat, node.ctime_ns, stat.st_nlink)

    def _entry(self, fid: Fid, stat: FileStat, ctime_ns: int, nlink: int) -> bytes:
        return encode_entry(
            fid,
            stat,
            ctime_ns,
            nlink,
            self._journal.handle_key.generation(fid),
            self._keep_names_seconds,
            KEEP_SECONDS,
        )

    def listing(self, directory: Fid, after_cookie: int, size: int) -> bytes:
        """The names in *directory* with cookies above *after_cookie*, in the order in which they
        were made, with their entries, in at most *size* bytes. Raises OSError ESTALE."""
        found: list[bytes] = []
        for fid, listed in self._listed(directory, after_cookie):
            size -= len(listed)
            if size < 0:
                break
            found.append(listed)
            if self._kernel_cache is not None and fid:
                self._kernel_cache.note_lookup(fid)
        return b"".join(found)

    def _listed(self, directory: Fid, after_cookie: int) -> Iterator[tuple[Fid, bytes]]:
        """The entries listed, each with its fid; 0 for those of which the kernel makes no inode."""
        if after_cookie < _DOT_DOT_COOKIE:
            node = self._catalog.node(directory)
            if node is None:
                return  # removed while open: an empty listing, as everywhere
            if after_cookie < _DOT_COOKIE:
                yield Fid(0), self._dot(b".", _DOT_COOKIE, directory)
            parent = node.parent if directory != ROOT_FID else ROOT_FID
            yield Fid(0), self._dot(b"..", _DOT_DOT_COOKIE, parent)
            after_cookie = _DOT_DOT_COOKIE
        dir_fd = self._tree.descriptor(directory)
        for name, fid, cookie in self._catalog.list(directory, after_cookie):
            if fid in self._unfinished:
                continue
            try:
                stat = kernel.stat(dir_fd, name)
            except FileNotFoundError:
                log.error(
                    "the backing was changed behind the layer: %r of fid %d is gone",
                    name,
                    directory,
                )
                continue
            ctime_ns = self._catalog.change_time(fid)
            if ctime_ns is None:
                return
            yield fid, self._listed_entry(name, cookie, fid, stat, ctime_ns)

    def _dot(self, name: bytes, cookie: int, fid: Fid) -> bytes:
        stat, ctime_ns = self._tree.stat(fid), self._tree.node(fid).ctime_ns
        return self._listed_entry(name, cookie, fid, stat, ctime_ns)

    def _listed_entry(
        self, name: bytes, cookie: int, fid: Fid, stat: FileStat, ctime_ns: int
    ) -> bytes:
        return encode_listed(
            fid,
            stat,
            ctime_ns,
            stat.st_nlink,
            self._journal.handle_key.generation(fid),
            self._keep_names_seconds,
            KEEP_SECONDS,
            name,
            cookie,
        )
