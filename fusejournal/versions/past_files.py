"""Files as a version has them, for a change of the live volume: see replay/wanted.py."""

from collections.abc import Collection, Iterator

from fusejournal.history.file_states import State
from fusejournal.replay.wanted import WantedFile, zeros
from fusejournal.types import ROOT_FID, Fid, Progress
from fusejournal.versions.content import items_of
from fusejournal.versions.records import InodeRecord
from fusejournal.versions.version_tree import VersionTree

_HOLE_BYTES_MIN = 1 << 16
"""The least hole that is one, as in the rule of cutting."""
_Part = tuple[int, bytes | None, int]
"""Offset, id of a chunk (an inline content itself; None: a hole) and length."""


class VersionFiles:
    """The files of a plan as they were then: see WantedFiles."""

    def __init__(self, then: VersionTree, now: VersionTree) -> None:
        self._then = then
        self._now = now
        self.records: dict[Fid, InodeRecord] = {}
        """The records that files of the plan are to have."""

    def types(self, fids: Collection[Fid]) -> dict[Fid, int]:
        """Implements WantedFiles.types."""
        return {fid: self.records[fid].type for fid in fids}

    def mtimes(self, directories: Collection[Fid]) -> dict[Fid, int]:
        """Implements WantedFiles.mtimes."""
        found = {}
        for fid in directories:
            record = self.records.get(fid)
            if record is not None and record.mtime_ns is not None:
                found[fid] = record.mtime_ns
        return found

    def flags_now(self, fids: Collection[Fid]) -> dict[Fid, int]:
        """Implements WantedFiles.flags_now."""
        found = {fid: self._now.find_record(fid) for fid in fids}
        return {fid: record.file_flags for fid, record in found.items() if record is not None}

    def flags(self, fids: Collection[Fid]) -> dict[Fid, int]:
        """Implements WantedFiles.flags."""
        found = self.flags_now([fid for fid in fids if fid not in self.records])
        return found | {fid: self.records[fid].file_flags for fid in fids if fid in self.records}

    def files(
        self,
        fids: Collection[Fid],
        progress: Progress,
        *,
        with_data: bool = False,
        rewritten: Collection[Fid] = (),
    ) -> dict[Fid, WantedFile]:
        """Implements WantedFiles.files; a content is read when it is asked for."""
        found: dict[Fid, WantedFile] = {}
        for fid in fids:
            progress(0, None)
            now = self._now.find_record(fid) if fid in rewritten else None
            found[fid] = _VersionFile(self._then, self.records[fid], self._now, now)
        return found


class _VersionFile:
    """One file of a version, and what it is now."""

    def __init__(
        self, then: VersionTree, wanted: InodeRecord, now_tree: VersionTree, now: InodeRecord | None
    ) -> None:
        self._then = then
        self._wanted = wanted
        self._now_tree = now_tree
        self._now = now

    @property
    def state(self) -> State:
        parent, name = self._wanted.links[0] if self._wanted.links else (ROOT_FID, b"")
        return State.of_import(self._wanted.as_import(parent, name, complete=True))

    def pieces(self) -> Iterator[tuple[int, bytes | memoryview]]:
        for offset, id_, length in parts_of(self._then, self._wanted):
            if isinstance(id_, bytes):
                yield offset, self._bytes_of(id_, length)

    def unlike(self) -> Iterator[tuple[int, bytes | memoryview]]:
        for offset, id_, length in self._unlike():
            if isinstance(id_, bytes):
                yield offset, self._bytes_of(id_, length)
            elif length < _HOLE_BYTES_MIN:
                yield from zeros(offset, offset + length)

    def holes(self) -> Iterator[tuple[int, int]]:
        for offset, id_, length in self._unlike():
            if id_ is None and length >= _HOLE_BYTES_MIN:
                yield offset, length

    def _unlike(self) -> Iterator[_Part]:
        return unlike_parts(self._then, self._wanted, self._now_tree, self._now)

    def _bytes_of(self, id_: bytes, length: int) -> bytes:
        inline = self._wanted.content.inline if self._wanted.content else None
        if inline is not None:
            return inline
        return self._then.blocks.read_chunk(id_, length)


def parts_of(tree: VersionTree, record: InodeRecord) -> Iterator[_Part]:
    """Yields the parts of a regular file's content, in order."""
    content = record.content
    if content is None:
        return
    if content.inline is not None:
        if content.inline:
            yield 0, content.inline, len(content.inline)
        return
    for offset, item in items_of(tree.chunk_nodes, content):
        yield offset, item.id, item.length


def unlike_parts(
    then: VersionTree, wanted: InodeRecord, now: VersionTree, found: InodeRecord | None
) -> Iterator[_Part]:
    """Yields the parts of *wanted*'s content that *found* has not at the same place, in order."""
    others = parts_of(now, found) if found is not None else iter(())
    other = next(others, None)
    for part in parts_of(then, wanted):
        while other is not None and other[0] < part[0]:
            other = next(others, None)
        if other != part:
            yield part
