"""Versions of random histories: the root follows from the entries alone, whatever versions were
made on the way; and the trees have what the model has."""

from itertools import pairwise
from pathlib import Path
from stat import S_IFDIR, S_IFLNK, S_IFREG

from hypothesis import given, settings
from hypothesis import strategies as st

from fusejournal.backing.catalog import Catalog
from fusejournal.journal.outcomes import with_outcomes
from fusejournal.journal.reader import JournalReader
from fusejournal.objects.overlay import OverlayStore
from fusejournal.objects.store import ObjectStore
from fusejournal.operations import ControlOperation, Void
from fusejournal.types import ROOT_FID, Fid, Seq
from fusejournal.versions.blocks import BlockReader, BlockWriter
from fusejournal.versions.builder import build_trees, no_trees
from fusejournal.versions.chunk_list import ChunkNodes
from fusejournal.versions.content import read_content
from fusejournal.versions.create import create_version, trees_at
from fusejournal.versions.difference import find_version_changes
from fusejournal.versions.histories import newest_usable
from fusejournal.versions.manifest import list_versions
from fusejournal.versions.records import (
    Name,
    decode_inode,
    decode_name,
    fid_of_key,
    name_key,
    name_of_key,
)
from fusejournal.versions.restore import restore_trees, restore_version
from fusejournal.versions.sorted_tree import Nodes, SortedTree
from fusejournal.versions.trees import Trees
from fusejournal.versions.verify import verify_version
from tests.support.model import File, Model
from tests.support.objects import MemoryStore, sealed_store
from tests.support.random_workloads import workloads
from tests.support.trees import difference, image
from tests.support.volumes import show_nothing
from tests.support.workload import UUID_OF_WORKLOADS, Workload, unlike, workspace

_MOMENTS = st.lists(st.integers(0, 1 << 16), min_size=3, max_size=3)


def _ends(workload: Workload, moments: list[int]) -> list[Seq]:
    """Seqs at which a version may be: no VOID follows."""
    found = {Seq(moment % (workload.head_seq + 1)) for moment in moments} | {workload.head_seq}
    return sorted(
        seq
        for seq in found
        if seq == workload.head_seq or not isinstance(workload.steps[seq].operation, Void)
    )


def _from_nothing(blocks: BlockWriter, reader: JournalReader, seq: Seq) -> Trees:
    return build_trees(blocks, no_trees(blocks), reader, Seq(1), Seq(seq + 1), show_nothing)


@settings(max_examples=60)
@given(workload=workloads(), moments=_MOMENTS)
def test_versions_have_the_tree(workload: Workload, moments: list[int]) -> None:
    with workspace() as base:
        workload.write(base / "journal")
        reader = JournalReader(base / "journal")
        blocks = BlockWriter(MemoryStore())
        trees, done = no_trees(blocks), Seq(0)
        for seq in _ends(workload, moments):
            trees = build_trees(blocks, trees, reader, Seq(done + 1), Seq(seq + 1), show_nothing)
            done = seq
            assert trees == _from_nothing(BlockWriter(MemoryStore()), reader, seq)
            _check_trees(blocks, trees, workload, seq)
            _check_cookies(blocks, trees, reader, seq, base / f"catalog{seq}")


@settings(max_examples=25)
@given(workload=workloads(), moments=_MOMENTS)
def test_any_moment_after_a_version(workload: Workload, moments: list[int]) -> None:
    """From the version before it and the entries between, with the store left as it is."""
    with workspace() as base:
        workload.write(base / "journal")
        reader = JournalReader(base / "journal")
        lower = MemoryStore()
        for seq in _ends(workload, moments)[:2]:
            if seq:
                create_version(lower, reader, seq, "", "node", 1, show_nothing)
        before = dict(lower.objects)
        for seq in (Seq(moment % (workload.head_seq + 1)) for moment in moments):
            version = newest_usable(list_versions(lower, UUID_OF_WORKLOADS), reader, seq)
            if version is None or seq < 2:
                continue
            blocks = BlockWriter(OverlayStore(lower, MemoryStore()))
            trees = trees_at(blocks, version, reader, seq, show_nothing)
            target = base / f"target{seq}"
            if not target.exists():
                restore_trees(blocks, version.uuid, trees, b"", target, show_nothing)
            assert not unlike(target, workload.models[seq])
        assert lower.objects == before


@settings(max_examples=25)
@given(workload=workloads(), moments=_MOMENTS, choice=st.integers(0, 1 << 16), sealed=st.booleans())
def test_restored_versions(
    workload: Workload, moments: list[int], choice: int, sealed: bool
) -> None:
    with workspace() as base:
        workload.write(base / "journal")
        reader = JournalReader(base / "journal")
        store: ObjectStore = sealed_store(MemoryStore()) if sealed else MemoryStore()
        for seq in _ends(workload, moments):
            if seq < 2:
                continue  # the root's attributes are not journaled yet
            made = create_version(store, reader, seq, "", "node", 1, show_nothing).version
            assert create_version(store, reader, seq, "", "other", 2, show_nothing).version == made
            blocks = BlockReader(store)
            verify_version(blocks, made, show_nothing, with_data=True)
            model, target = workload.models[seq], base / f"target{seq}"
            done = restore_version(blocks, made, b"", target, show_nothing)
            assert not unlike(target, model)
            assert done.names == len(model.names)
            paths = sorted(path for path in model.all_paths() if path)
            for path in paths[choice % 7 :: 7]:
                target = base / f"part{seq}-{paths.index(path)}"
                made_at = restore_version(blocks, made, path, target, show_nothing).path
                fid = model.at(path)
                assert fid is not None
                if model.is_directory(fid):
                    assert not unlike(made_at, model, fid)
                else:
                    name = path.rpartition(b"/")[2]
                    found = image(target)
                    del found[b"."]
                    assert not difference(found, {name: model.item(fid)})
        _check_differences(store, reader, workload)


def _check_differences(store: ObjectStore, reader: JournalReader, workload: Workload) -> None:
    versions = list_versions(store, UUID_OF_WORKLOADS)
    for old, new in pairwise(versions):
        changes = find_version_changes(BlockReader(store), old.trees, new.trees, b"", show_nothing)
        before, after = workload.models[old.seq], workload.models[new.seq]
        told = {one.fid for one in changes}
        for fid in before.files.keys() | after.files.keys():
            if fid != ROOT_FID and _whole(before, fid) != _whole(after, fid):
                assert fid in told, fid
        for one in changes:
            if one.old_path is not None:
                assert one.old_path in before.paths(one.fid)
            if one.new_path is not None:
                assert one.new_path in after.paths(one.fid)


def _whole(model: Model, fid: Fid) -> object:
    """The parts of *fid* in a version that count as a difference: not a directory's mtime, nor in
    which order xattrs were set."""
    file, dentries = model.files.get(fid), sorted(model.dentries(fid))
    if file is None or not dentries:
        return None
    file = file._replace(xattrs=tuple(sorted(file.xattrs)))
    return file._replace(mtime_ns=0) if file.type == S_IFDIR else file, dentries


def _check_trees(blocks: BlockWriter, trees: Trees, workload: Workload, seq: Seq) -> None:
    model = workload.models[seq]
    nodes = Nodes(blocks)
    named: dict[tuple[Fid, bytes], Fid] = {}
    for key, value in SortedTree(nodes, trees.names).items():
        named[fid_of_key(key), name_of_key(key)] = decode_name(value).fid
    assert named == model.names
    found = {}
    sizes = 0
    for key, value in SortedTree(nodes, trees.inodes).items():
        record = decode_inode(fid_of_key(key), value, blocks)
        assert sorted(record.links) == sorted(model.dentries(record.fid))
        content = b""
        if record.content is not None:
            content = read_content(ChunkNodes(blocks), record.content, 0, record.size)
            sizes += record.size
            assert len(content) == record.size
        found[record.fid] = File(
            record.type,
            (record.mode or 0) & 0o7777,
            record.uid or 0,
            record.gid or 0,
            record.mtime_ns or 0,
            record.rdev,
            record.target,
            content,
            record.xattrs,
        )
    assert found.keys() == {ROOT_FID, *model.names.values()}
    for fid, file in found.items():
        wanted = model.files[fid]
        wanted = wanted._replace(xattrs=tuple(sorted(wanted.xattrs)))
        if file.type == S_IFLNK:
            wanted = wanted._replace(mode=file.mode)
        if file.type not in (S_IFREG, S_IFLNK, S_IFDIR):
            file = file._replace(content=wanted.content)
        if fid == ROOT_FID and seq < 2:
            continue  # the root's attributes are not journaled yet
        assert file == wanted, fid
    assert trees.content_bytes == sizes


def _check_cookies(
    blocks: BlockWriter, trees: Trees, reader: JournalReader, seq: Seq, directory: Path
) -> None:
    """Names, their cookies and the next fid are the catalog's."""
    catalog = Catalog(directory)
    catalog.add_root(b"", 1)
    fids = {ROOT_FID}
    for entry, outcome in with_outcomes(reader.read(Seq(1), Seq(seq + 2))):
        if entry.seq > seq:
            break
        if isinstance(entry.operation, ControlOperation) or not outcome.held:
            catalog.record_control(entry.operation, entry.seq)
        else:
            catalog.record(entry.operation, entry.seq, entry.time_ns)
            fids.add(getattr(entry.operation, "fid", ROOT_FID))
    found: dict[bytes, Name] = {}
    for fid in fids:
        for name, child, cookie in catalog.list(fid, 0):
            found[name_key(fid, name)] = Name(child, cookie)
    names = SortedTree(Nodes(blocks), trees.names)
    assert {key: decode_name(value) for key, value in names.items()} == found
    assert trees.next_fid == catalog.next_fid
    catalog.close()
