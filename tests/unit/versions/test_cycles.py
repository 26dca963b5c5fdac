"""Trees that cannot be, because a directory lies in itself, end in an error and not in a loop."""

from stat import S_IFDIR

import pytest

from fusejournal.types import ROOT_FID, Epoch, Fid
from fusejournal.versions.blocks import BlockWriter
from fusejournal.versions.builder import no_trees
from fusejournal.versions.packs import StoreDamagedError
from fusejournal.versions.records import (
    InodeRecord,
    Name,
    decode_inode,
    encode_inode,
    encode_name,
    inode_key,
    name_key,
)
from fusejournal.versions.selection import PartOfTree
from fusejournal.versions.sorted_tree import Nodes, update_tree
from fusejournal.versions.trees import Trees
from fusejournal.versions.version_tree import VersionTree
from tests.support.objects import MemoryStore

_OWN = Fid(2)


def _directory(*links: tuple[Fid, bytes]) -> InodeRecord:
    head = _OWN, S_IFDIR | 0o755, 0, 0, 0, 0, 1
    return InodeRecord(*head, links, None, None, (), complete=True)


def _tree(links: tuple[tuple[Fid, bytes], ...], names: dict[bytes, Fid]) -> VersionTree:
    """The directory 2 with *links*, and *names*, by their keys."""
    blocks = BlockWriter(MemoryStore())
    nodes, trees = Nodes(blocks), no_trees(blocks)
    record = encode_inode(_directory(*links), blocks)
    return VersionTree(
        blocks,
        Trees(
            update_tree(nodes, trees.inodes, [(inode_key(_OWN), record)]),
            update_tree(
                nodes,
                trees.names,
                [(key, encode_name(Name(fid, 4))) for key, fid in sorted(names.items())],
            ),
            *(Fid(3), Epoch(1), 0),
        ),
    )


def test_a_directory_that_is_its_own_parent_has_no_path() -> None:
    tree = _tree(((_OWN, b"a"),), {name_key(_OWN, b"a"): _OWN})
    with pytest.raises(StoreDamagedError, match="lies in itself"):
        tree.path(_OWN, b"a")


def test_a_directory_that_is_in_itself_too_is_no_part_of_a_tree() -> None:
    names = {name_key(ROOT_FID, b"a"): _OWN, name_key(_OWN, b"b"): _OWN}
    tree = _tree(((ROOT_FID, b"a"),), names)
    with pytest.raises(StoreDamagedError, match="two names"):
        PartOfTree(tree, ROOT_FID)


def test_a_directory_has_one_name() -> None:
    blocks = BlockWriter(MemoryStore())
    good = encode_inode(_directory((ROOT_FID, b"a")), blocks)
    assert decode_inode(_OWN, good, blocks).links == ((ROOT_FID, b"a"),)
    for links in ((), ((ROOT_FID, b"a"), (ROOT_FID, b"b"))):
        with pytest.raises(StoreDamagedError, match="spoilt"):
            decode_inode(_OWN, encode_inode(_directory(*links), blocks), blocks)
