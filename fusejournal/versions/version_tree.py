"""Names and records of a version, as they are asked for."""

from collections.abc import Iterator

from fusejournal.errors import PathNotFoundError
from fusejournal.types import ROOT_FID, Fid
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.chunk_list import ChunkNodes
from fusejournal.versions.packs import StoreDamagedError
from fusejournal.versions.records import (
    InodeRecord,
    decode_inode,
    decode_name,
    inode_key,
    name_key,
    name_of_key,
)
from fusejournal.versions.sorted_tree import Nodes, SortedTree
from fusejournal.versions.trees import Trees


class VersionTree:
    """Names and records of a version. Methods raise StoreDamagedError, StoreError."""

    def __init__(self, blocks: BlockReader, trees: Trees) -> None:
        self.blocks = blocks
        self.chunk_nodes = ChunkNodes(blocks)
        nodes = Nodes(blocks)
        self.inodes = SortedTree(nodes, trees.inodes)
        self._names = SortedTree(nodes, trees.names)

    def find_record(self, fid: Fid) -> InodeRecord | None:
        """Returns the record of *fid*, if it is there."""
        value = self.inodes.get(inode_key(fid))
        return None if value is None else decode_inode(fid, value, self.blocks)

    def child(self, parent: Fid, name: bytes) -> Fid | None:
        """Returns what a name stands for, or None."""
        value = self._names.get(name_key(parent, name))
        return None if value is None else decode_name(value).fid

    def path(self, parent: Fid, name: bytes) -> bytes:
        """Returns the path of a name that is there."""
        parts = [name]
        above = set()
        while parent != ROOT_FID:
            if parent in above:
                raise self.lies_in_itself(parent)
            above.add(parent)
            parent, name = self.record(parent).links[0]
            parts.append(name)
        return b"/".join(reversed(parts))

    def lies_in_itself(self, fid: Fid) -> StoreDamagedError:
        """The error where a directory is above itself."""
        where = self.blocks.store.where
        return StoreDamagedError(where, f"fid {fid} of a version lies in itself")

    def record(self, fid: Fid) -> InodeRecord:
        """Returns the record of *fid*, to which a name leads."""
        value = self.inodes.get(inode_key(fid))
        if value is None:
            raise StoreDamagedError(
                self.blocks.store.where, f"fid {fid} of a version has a name and no record"
            )
        return decode_inode(fid, value, self.blocks)

    def children(self, fid: Fid) -> Iterator[tuple[bytes, Fid]]:
        """Yields names and fids of what is in directory *fid*, by name."""
        for key, value in self._names.below(inode_key(fid)):
            yield name_of_key(key), decode_name(value).fid

    def find(self, path: bytes) -> InodeRecord:
        """Returns the record of what *path* stands for. Raises PathNotFoundError."""
        fid = ROOT_FID
        for name in path.split(b"/") if path else ():
            found = self.child(fid, name)
            if found is None:
                shown = "/" + path.decode("utf-8", "backslashreplace")
                raise PathNotFoundError(shown, "was not there at that moment")
            fid = found
        return self.record(fid)
