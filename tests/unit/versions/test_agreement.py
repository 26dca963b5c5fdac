"""A version of another node counts only where its two trees make one tree."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from stat import S_IFDIR, S_IFREG

import pytest

from fusejournal.types import ROOT_FID, Fid
from fusejournal.versions.agreement import check_agreement
from fusejournal.versions.blocks import BlockWriter
from fusejournal.versions.content import Content
from fusejournal.versions.manifest import Version
from fusejournal.versions.packs import StoreDamagedError
from fusejournal.versions.records import (
    InodeRecord,
    Name,
    encode_inode,
    encode_name,
    inode_key,
    name_key,
)
from fusejournal.versions.sorted_tree import Nodes, empty_tree, update_tree
from tests.support.objects import MemoryStore
from tests.unit.versions.test_missing_blocks import make_version

_DIRECTORIES = 5
_FILES = 50
Records = dict[Fid, InodeRecord]
Names = dict[tuple[Fid, bytes], Fid]


def _parts() -> tuple[Records, Names]:
    """A chain of directories, the deepest with the lowest fid, and files in each of them."""
    directories = [ROOT_FID, *(Fid(2 + _DIRECTORIES - one) for one in range(1, _DIRECTORIES + 1))]
    records, names = {}, {}
    root = InodeRecord(ROOT_FID, S_IFDIR | 0o755, 0, 0, 0, 0, 1, (), None, None, (), True)
    records[ROOT_FID] = root
    for above, fid in pairwise(directories):
        records[fid] = root._replace(fid=fid, links=((above, b"below"),))
        names[(above, b"below")] = fid
    for number in range(_FILES):
        fid = Fid(100 + number)
        links = tuple((directories[(number + one) % 6], b"f%d" % number) for one in range(1, 3))
        record = root._replace(fid=fid, mode=S_IFREG | 0o644, size=3, links=links)
        records[fid] = record._replace(content=Content(inline=b"abc"))
        names.update(dict.fromkeys(links, fid))
    return records, names


def _version(store: MemoryStore, records: Records, names: Names) -> Version:
    blocks = BlockWriter(store)
    nodes = Nodes(blocks)
    inodes = {inode_key(fid): encode_inode(one, blocks) for fid, one in records.items()}
    named = {name_key(*at): encode_name(Name(fid, 4)) for at, fid in names.items()}
    roots = [update_tree(nodes, empty_tree(blocks), sorted(one.items())) for one in (inodes, named)]
    blocks.finish()
    sizes = [one.size for one in records.values() if one.type == S_IFREG]
    return replace(
        make_version(store),
        inodes=roots[0],
        names=roots[1],
        next_fid=Fid(1000),
        file_count=len(records),
        name_count=len(names),
        content_bytes=sum(sizes),
    )


def _moved(records: Records, names: Names, fid: Fid, parent: Fid) -> None:
    """Has *fid* be in *parent* in place of where it was."""
    (old,) = records[fid].links
    del names[old]
    new = parent, b"moved%d" % fid
    names[new] = fid
    records[fid] = records[fid]._replace(links=(new,))


def _lack_name(records: Records, names: Names) -> None:
    del names[records[Fid(100)].links[0]]


def _lack_link(records: Records, names: Names) -> None:
    records[Fid(100)] = records[Fid(100)]._replace(links=records[Fid(100)].links[:1])


def _name_another(records: Records, names: Names) -> None:
    names[records[Fid(100)].links[0]] = Fid(101)


def _name_twice(records: Records, names: Names) -> None:
    links = records[Fid(100)].links
    records[Fid(100)] = records[Fid(100)]._replace(links=(*links, links[0]))


def _circle(records: Records, names: Names) -> None:
    _moved(records, names, Fid(6), Fid(2))


def _below_a_file(records: Records, names: Names) -> None:
    _moved(records, names, Fid(2), Fid(100))


def _below_what_is_gone(records: Records, names: Names) -> None:
    del names[records[Fid(2)].links[0]]
    del records[Fid(2)]


def _too_long(records: Records, names: Names) -> None:
    records[Fid(100)] = records[Fid(100)]._replace(size=4)


def _too_high(records: Records, names: Names) -> None:
    records[Fid(1001)] = records[Fid(100)]._replace(fid=Fid(1001), links=((ROOT_FID, b"new"),))
    names[(ROOT_FID, b"new")] = Fid(1001)


_SPOILERS = (
    *(_lack_name, _lack_link, _name_another, _name_twice, _circle, _below_a_file),
    *(_below_what_is_gone, _too_long, _too_high),
)


@pytest.mark.parametrize("beside_another", [False, True])
@pytest.mark.parametrize("spoil", _SPOILERS, ids=lambda one: one.__name__.strip("_"))
def test_a_tree_that_cannot_be_is_refused(
    spoil: Callable[[Records, Names], None], beside_another: bool
) -> None:
    store = MemoryStore()
    whole = _version(store, *_parts()).trees if beside_another else None
    records, names = _parts()
    spoil(records, names)
    version = _version(store, records, names)
    with pytest.raises(StoreDamagedError, match="nothing was made of it"):
        check_agreement(BlockWriter(store), version, whole, lambda: None)


def test_what_agrees_passes() -> None:
    store = MemoryStore()
    old = _version(store, *_parts())
    records, names = _parts()
    _moved(records, names, Fid(3), ROOT_FID)
    for place in records[Fid(100)].links:
        del names[place]
    del records[Fid(100)]
    new = _version(store, records, names)
    for version, whole in ((old, None), (new, None), (new, old.trees), (old, old.trees)):
        check_agreement(BlockWriter(store), version, whole, lambda: None)
    with pytest.raises(StoreDamagedError, match="not as many files"):
        check_agreement(BlockWriter(store), replace(new, name_count=7), None, lambda: None)
