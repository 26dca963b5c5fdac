"""Journals that begin with a base: whatever is asked about a moment at or after it is answered as
by the whole journal, and a catalog made from it is the whole journal's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from fusejournal.backing.catalog import Catalog
from fusejournal.history.changes import Change, find_changes
from fusejournal.history.file_states import State, read_states
from fusejournal.history.lookup import Lookup
from fusejournal.history.mtimes import mtimes_before
from fusejournal.journal.base import content_at, load_base
from fusejournal.journal.outcomes import with_outcomes
from fusejournal.journal.reader import JournalReader
from fusejournal.operations import ControlOperation
from fusejournal.replay.images import Image, read_images
from fusejournal.replay.restore import restore
from fusejournal.types import ROOT_FID, Fid, Seq
from tests.support.bases import base_tree, based_reader, give_base, possible_bases
from tests.support.random_workloads import workloads
from tests.support.trees import difference, image
from tests.support.workload import Workload, unlike, workspace

_CHOICE = st.integers(0, 1 << 16)
_MOMENTS = st.lists(_CHOICE, min_size=3, max_size=3)


@contextmanager
def _written(workload: Workload, choice: int) -> Iterator[tuple[Path, Lookup, Lookup]]:
    """A workspace, the whole journal, and the same with a base."""
    with workspace() as directory:
        whole, based = directory / "whole", directory / "based"
        whole.mkdir()
        based.mkdir()
        workload = replace(workload, segment_entries=min(workload.segment_entries, 7))
        workload.write(whole / "journal")
        workload.write(based / "journal")
        seqs = [seq for seq in possible_bases(based / "journal") if seq > 1]
        assume(seqs)
        base = give_base(based, seqs[choice % len(seqs)])
        assert load_base(based) == base
        yield directory, Lookup(JournalReader(whole / "journal")), Lookup(based_reader(based, base))


def _nothing(_: int, __: int | None) -> None:
    """No progress to be shown."""


def _base_seq(lookup: Lookup) -> Seq:
    assert lookup.base is not None
    return lookup.base.base.seq


def _moments(workload: Workload, lookup: Lookup, moments: list[int]) -> list[Seq]:
    """Seqs from the base on."""
    base_seq = _base_seq(lookup)
    count = workload.head_seq - base_seq + 1
    return sorted({Seq(base_seq + moment % count) for moment in moments} | {workload.head_seq})


def _fids(workload: Workload) -> list[Fid]:
    return sorted({fid for model in workload.models for fid in model.files})


@settings(max_examples=20, phases=(Phase.generate,))
@given(workload=workloads(), moments=_MOMENTS, choice=_CHOICE)
def test_names_are_as_by_the_whole(workload: Workload, moments: list[int], choice: int) -> None:
    with _written(workload, choice) as (_, whole, based):
        fids = _fids(workload)
        for seq in _moments(workload, based, moments):
            end, model = Seq(seq + 1), workload.models[seq]
            for path in workload.paths_ever():
                assert based.fid_at(path, end) == whole.fid_at(path, end) == model.at(path)
            for fid in fids:
                assert based.children(fid, end) == whole.children(fid, end)
                # (Of several names a base does not tell which one is shown first.)
                assert sorted(based.dentries(fid, end)) == sorted(whole.dentries(fid, end))
                paths = whole.paths_of(fid, end)
                assert sorted(based.paths_of(fid, end)) == sorted(paths)
                assert len(paths) != 1 or based.path_before(fid, end) == paths[0]
            dentries, wanted = (one.dentries_of_many(fids, end) for one in (based, whole))
            assert all(sorted(dentries[fid]) == sorted(wanted[fid]) for fid in fids)
            at_base = [fid for fid in fids if fid in model.files]
            types = whole.types_of_many(at_base)
            assert based.types_of_many(at_base).items() >= types.items()
        for path in workload.paths_ever():
            # (The entry that ends one is in it.)
            times = [one for one in whole.tenures(path) if one.to_seq > _base_seq(based) + 1]
            found = based.tenures(path)
            assert [one.fid for one in found] == [one.fid for one in times]
            for one, other in zip(found, times, strict=True):
                assert one.to_seq == other.to_seq
                assert one.from_seq == other.from_seq or other.from_seq <= _base_seq(based)


def _state_of(state: State) -> object:
    return (
        *(state.uid, state.gid, state.size, state.mtime_ns, state.permissions()),
        *(sorted(state.xattrs.items()), state.floor, state.flags or 0),
    )


@settings(max_examples=20, phases=(Phase.generate,))
@given(workload=workloads(), moments=_MOMENTS, choice=_CHOICE)
def test_files_are_as_by_the_whole(workload: Workload, moments: list[int], choice: int) -> None:
    with _written(workload, choice) as (_, whole, based):
        for seq in _moments(workload, based, moments):
            end, model = Seq(seq + 1), workload.models[seq]
            fids = [
                fid for fid in _fids(workload) if fid == ROOT_FID or fid in model.names.values()
            ]
            known = mtimes_before(whole, fids, end)
            assert mtimes_before(based, fids, end).items() >= known.items()
            for checkpoint in (_base_seq(based), seq):
                found = read_states(based, fids, end, checkpoint)
                wanted = read_states(whole, fids, end, checkpoint)
                for fid in fids:
                    if model.is_directory(fid):  # whose names tell its mtime, too
                        found[fid].mtime_ns = wanted[fid].mtime_ns
                    assert _state_of(found[fid]) == _state_of(wanted[fid]), fid
            for with_data in (True, False):
                images = read_images(based, fids, end, None, _nothing, with_data=with_data)
                for fid, one in images.items():
                    if not model.is_directory(fid) and model.files[fid].target is None:
                        assert _content_of(one, based) == model.files[fid].content


def _content_of(one: Image, lookup: Lookup) -> bytes:
    found = bytearray(one.state.size)
    for offset, data in one.pieces(lookup):
        found[offset : offset + len(data)] = data
    return bytes(found)


@settings(max_examples=20, phases=(Phase.generate,))
@given(workload=workloads(), moments=_MOMENTS, choice=_CHOICE)
def test_restores_from_the_journal(workload: Workload, moments: list[int], choice: int) -> None:
    with _written(workload, choice) as (directory, _, based):
        for seq in _moments(workload, based, moments):
            model, target = workload.models[seq], directory / f"target{seq}"
            done = restore(based, b"", Seq(seq + 1), target, _nothing)
            assert not unlike(target, model), seq
            assert done.names == len(model.names)
            for number, path in enumerate(sorted(filter(None, model.all_paths()))):
                if number % 5 == choice % 5:
                    target = directory / f"part{seq}-{number}"
                    made_at = restore(based, path, Seq(seq + 1), target, _nothing).path
                    fid = model.at(path)
                    assert fid is not None
                    if model.is_directory(fid):
                        assert not unlike(made_at, model, fid)
                    else:
                        found = image(target)
                        del found[b"."]
                        name = path.rpartition(b"/")[2]
                        assert not difference(found, {name: model.item(fid)})


@settings(max_examples=20, phases=(Phase.generate,))
@given(workload=workloads(), moments=_MOMENTS, choice=_CHOICE)
def test_changes_are_as_by_the_whole(workload: Workload, moments: list[int], choice: int) -> None:
    with _written(workload, choice) as (_, whole, based):
        first, last = (_moments(workload, based, moments)[number] for number in (0, -1))
        for from_seq, to_seq in ((first, last), (_base_seq(based), last)):
            ends = Seq(from_seq + 1), Seq(to_seq + 1)
            found, wanted = (find_changes(one, *ends) for one in (based, whole))
            assert _told(found, whole, ends) == _told(wanted, whole, ends)


def _told(changes: list[Change], whole: Lookup, ends: tuple[Seq, Seq]) -> set[Change]:
    """Leaves out the names of files that have several: a base does not tell which is shown."""
    several = {
        one.fid for one in changes if any(len(whole.paths_of(one.fid, end)) > 1 for end in ends)
    }
    return {
        one._replace(old_path=None, new_path=None) if one.fid in several else one
        for one in changes
        if one.fid not in several or not one.link
    }


@settings(max_examples=20, phases=(Phase.generate,))
@given(workload=workloads(), choice=_CHOICE)
def test_a_catalog_from_the_base(workload: Workload, choice: int) -> None:
    with _written(workload, choice) as (directory, whole, based):
        catalogs = [Catalog(directory / "one"), Catalog(directory / "other")]
        for catalog in catalogs:
            catalog.add_root(b"", 1)
        tree = based.base
        assert tree is not None
        for node in tree.nodes():
            catalogs[1].record_base(node, tree.base)
        catalogs[1].end_base(tree.base)
        for catalog, lookup in zip(catalogs, (whole, based), strict=True):
            entries = lookup.reader.read(Seq(catalog.applied_seq + 1), Seq(workload.head_seq + 1))
            for entry, outcome in with_outcomes(entries):
                if isinstance(entry.operation, ControlOperation) or not outcome.held:
                    catalog.record_control(entry.operation, entry.seq)
                else:
                    catalog.record(entry.operation, entry.seq, entry.time_ns)
        one, other = (_content(catalog, workload) for catalog in catalogs)
        assert one == other
        for catalog in catalogs:
            catalog.close()


def _content(catalog: Catalog, workload: Workload) -> object:
    found: list[object] = [catalog.next_fid]
    for fid in _fids(workload):
        node = catalog.node(fid)
        if node is not None:
            dentries = sorted(catalog.dentries(node)) if fid != ROOT_FID else []
            found.append((fid, node.type, node.complete, dentries, list(catalog.list(fid, 0))))
    return found


@given(workload=workloads(), choice=_CHOICE)
@settings(max_examples=20, phases=(Phase.generate,))
def test_a_base_tells_its_seqs(workload: Workload, choice: int) -> None:
    """The seqs of what makes a base lead back to it."""
    with _written(workload, choice) as (_, _, based):
        assert based.base is not None
        tree = base_tree(based.base.base)
        for fid in _fids(workload):
            for entry in tree.entries((fid,), lambda _: True):
                assert entry.seq < 0
                assert content_at(entry.seq)[0] == fid
                if entry.data:
                    assert tree.data(entry.seq).data == entry.data
