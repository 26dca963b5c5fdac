"""Restores, look-ups by path, the log of a path and diff, against a model of the tree at every seq:
whatever a random journal holds, and whether its segments have indexes and are compressed or
not."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fusejournal.history.changes import Change, find_changes
from fusejournal.history.query import Criteria, find
from fusejournal.operations import (
    CONTENT_KINDS,
    RENAME_EXCHANGE,
    Kind,
    Link,
    Moving,
    Rename,
    Unlink,
    Void,
    Write,
)
from fusejournal.replay.restore import restore
from fusejournal.types import ROOT_FID, Fid, Seq
from tests.support.model import Model
from tests.support.random_workloads import workloads
from tests.support.trees import difference, image
from tests.support.volumes import show_nothing
from tests.support.workload import (
    Step,
    Workload,
    make_directory,
    make_file,
    unlike,
    workload_of,
    written,
)

_MOMENTS = st.lists(st.integers(0, 1 << 16), min_size=3, max_size=3)
_CONTENT = CONTENT_KINDS | {Kind.IMPORT_DATA}
_ATTRIBUTES = frozenset({Kind.SETATTR, Kind.SETXATTR, Kind.REMOVEXATTR, Kind.SETFLAGS})


def _seqs(workload: Workload, moments: list[int]) -> list[Seq]:
    return [Seq(moment % (workload.head_seq + 1)) for moment in moments]


# -- restore ---------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(workload=workloads(), moments=_MOMENTS)
def test_whole_tree(workload: Workload, moments: list[int]) -> None:
    with written(workload) as (base, lookup):
        for number, seq in enumerate({*_seqs(workload, moments), workload.head_seq}):
            target = base / f"target{number}"
            done = restore(lookup, b"", Seq(seq + 1), target, show_nothing)
            if seq < 2:
                continue  # the root's attributes are not journaled yet
            assert not unlike(target, workload.models[seq]), seq
            assert done.names == len(workload.models[seq].names)
            assert done.path == target


@settings(max_examples=60)
@given(workload=workloads(), moments=_MOMENTS, choice=st.integers(0, 1 << 16))
def test_directory_or_file(workload: Workload, moments: list[int], choice: int) -> None:
    with written(workload) as (base, lookup):
        for number, seq in enumerate(_seqs(workload, moments)):
            model = workload.models[seq]
            paths = sorted(path for path in model.all_paths() if path)
            if not paths:
                continue
            for turn in range(3):
                path = paths[(choice + turn * 7) % len(paths)]
                target = base / f"target{number}-{turn}"
                done = restore(lookup, path, Seq(seq + 1), target, show_nothing)
                _check_part(done.path, target, model, path)


def _check_part(made: Path, target: Path, model: Model, path: bytes) -> None:
    fid = model.at(path)
    assert fid is not None
    if model.is_directory(fid):
        assert made == target
        assert not unlike(target, model, fid), path
        return
    name = path.rpartition(b"/")[2]
    found = image(target)
    del found[b"."]
    assert not difference(found, {name: model.item(fid)}), path


# -- look-ups --------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(workload=workloads(), moments=_MOMENTS)
def test_names_at_a_moment(workload: Workload, moments: list[int]) -> None:
    with written(workload) as (_, lookup):
        for seq in _seqs(workload, moments):
            model, before = workload.models[seq], Seq(seq + 1)
            for path in workload.paths_ever():
                assert lookup.fid_at(path, before) == model.at(path), (path, seq)
            for fid in _fids_ever(workload):
                assert set(lookup.paths_of(fid, before)) == model.paths(fid), (fid, seq)
                assert lookup.children(fid, before) == model.children(fid), (fid, seq)


@settings(max_examples=60)
@given(workload=workloads())
def test_paths_of_a_file_through_time(workload: Workload) -> None:
    with written(workload) as (_, lookup):
        for fid in _fids_ever(workload):
            born = next(seq for seq, model in enumerate(workload.models) if fid in model.files)
            for seq in range(max(1, born), workload.head_seq + 2):
                path, model = lookup.path_before(fid, Seq(seq)), workload.models[seq - 1]
                if seq == born:
                    assert path in workload.models[born].paths(fid)
                    continue
                paths = model.paths(fid)
                assert path in paths or (path is None and not paths), (fid, seq)


@settings(max_examples=60)
@given(workload=workloads())
def test_tenures(workload: Workload) -> None:
    models = workload.models
    with written(workload) as (_, lookup):
        for path in workload.paths_ever():
            tenures = lookup.tenures(path)
            assert [one.from_seq for one in tenures] == sorted(one.from_seq for one in tenures)
            at = [model.at(path) for model in models]
            for seq in range(1, workload.head_seq + 1):
                found = {one.fid for one in tenures if one.from_seq <= seq < one.to_seq}
                assert found == {at[seq - 1], at[seq]} - {None}, (path, seq)


def _fids_ever(workload: Workload) -> list[Fid]:
    return sorted({fid for model in workload.models for fid in model.files})


# -- the log of a path -----------------------------------------------------------------------------


@settings(max_examples=60)
@given(workload=workloads(), newest_first=st.booleans())
def test_log_of_a_path(workload: Workload, newest_first: bool) -> None:
    with written(workload) as (_, lookup):
        for path in workload.paths_ever():
            if not path or set(b"*?[").intersection(path):
                continue
            matches = find(lookup, Criteria(paths=(path,)), newest_first=newest_first)
            found = [match.entry.seq for match in matches]
            assert found == sorted(set(found), reverse=newest_first)
            for seq in range(1, workload.head_seq + 1):
                surely, perhaps = _is_about(workload, Seq(seq), path)
                assert not surely or seq in found, (path, seq)
                assert perhaps or seq not in found, (path, seq)


def _is_about(workload: Workload, seq: Seq, path: bytes) -> tuple[bool, bool]:
    """Returns if entry *seq* is about *path*, and if it may be said to be: of a file with several
    names, some of them below *path*, only one name counts."""
    operation = workload.steps[seq - 1].operation
    before, after = workload.models[seq - 1], workload.models[seq]
    fid = getattr(operation, "fid", None)
    if fid is None:
        return False, False
    if fid in (before.at(path), after.at(path)):
        return True, True
    parent, name = getattr(operation, "parent", None), getattr(operation, "name", None)
    if parent is not None and name is not None:
        paths = {before.path_of_dentry((parent, name))}
        if isinstance(operation, Moving):
            paths.add(before.path_of_dentry((operation.new_parent, operation.new_name)))
        is_below = any(_is_below(one, path) for one in paths)
        return is_below, is_below
    below = [_is_below(one, path) for one in before.paths(fid)]
    return all(below) and bool(below), any(below)


def _is_below(path: bytes, above: bytes) -> bool:
    return path == above or path.startswith(above + b"/")


@settings(max_examples=40)
@given(workload=workloads(), moments=_MOMENTS)
def test_log_by_kind_caller_and_range(workload: Workload, moments: list[int]) -> None:
    first, last, other = _seqs(workload, moments)
    kind, uid = list(Kind)[other % 12], (0, 1000, 1001)[other % 3]
    with written(workload) as (_, lookup):
        for criteria in (
            Criteria(kinds=frozenset({kind})),
            Criteria(uid=uid),
            Criteria(from_seq=first, to_seq=last),
            Criteria(from_seq=first, to_seq=last, kinds=frozenset({kind}), uid=uid),
        ):
            found = [(one.entry.seq, one.outcome.void) for one in find(lookup, criteria)]
            assert found == [
                (seq, step.void)
                for seq, step in enumerate(workload.steps, 1)
                if not isinstance(step.operation, Void)
                and criteria.from_seq <= seq < criteria.to_seq
                and step.operation.kind in (criteria.kinds or set(Kind))
                and criteria.uid in (None, step.who.uid)
            ]


# -- diff ------------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(workload=workloads(), moments=_MOMENTS)
def test_diff(workload: Workload, moments: list[int]) -> None:
    seq1, seq2 = sorted(_seqs(workload, moments)[:2])
    old, new = workload.models[seq1], workload.models[seq2]
    steps = [step for step in workload.steps[seq1:seq2] if step.held]
    with written(workload) as (_, lookup):
        changes = find_changes(lookup, Seq(seq1 + 1), Seq(seq2 + 1))
    files = [one for one in changes if not one.link]
    assert len({one.fid for one in files}) == len(files)
    by_fid = {one.fid: one for one in files}
    for fid in old.files.keys() | new.files.keys() | by_fid.keys():
        links = [one for one in changes if one.link and one.fid == fid]
        _check_change(fid, by_fid.get(fid), links, old, new, steps)


def _check_change(
    fid: Fid, change: Change | None, links: list[Change], old: Model, new: Model, steps: list[Step]
) -> None:
    if fid == ROOT_FID and change is None:
        assert not _of(steps, fid, _CONTENT | _ATTRIBUTES)
        return
    if fid not in old.files and fid not in new.files:
        assert change is None
        assert not links
    elif fid not in old.files:
        assert change is not None
        assert change.letters() == "A", change
        assert change.new_path in new.paths(fid), change
    elif fid not in new.files:
        assert change is not None
        assert change.letters() == "D", change
        assert change.old_path in old.paths(fid), change
    else:
        _check_kept(fid, change, links, old, new, steps)


def _check_kept(
    fid: Fid, change: Change | None, links: list[Change], old: Model, new: Model, steps: list[Step]
) -> None:
    """A file that was there before and after."""
    letters = "" if change is None else change.letters()
    assert ("M" in letters) == bool(_of(steps, fid, _CONTENT)), (fid, change)
    assert ("P" in letters) == bool(_of(steps, fid, _ATTRIBUTES)), (fid, change)
    if change is not None:
        assert change.old_path in old.paths(fid), change
        assert change.new_path in new.paths(fid), change
    removed = {old.path_of_dentry(one) for one in set(old.dentries(fid)) - set(new.dentries(fid))}
    added = {new.path_of_dentry(one) for one in set(new.dentries(fid)) - set(old.dentries(fid))}
    told_removed = {one.old_path for one in links} - {None}
    told_added = {one.new_path for one in links} - {None}
    assert told_removed <= removed, (fid, links)
    assert told_added <= added, (fid, links)
    if change is not None and "R" in letters:
        told_removed.add(change.old_path)
        told_added.add(change.new_path)
    # With directories that moved, too, a name can be another and its path the same.
    assert removed - new.paths(fid) <= told_removed, (fid, change, links)
    assert added - old.paths(fid) <= told_added, (fid, change, links)


def _of(steps: list[Step], fid: Fid, kinds: frozenset[Kind]) -> list[Step]:
    return [
        step
        for step in steps
        if step.operation.kind in kinds and getattr(step.operation, "fid", None) == fid
    ]


# -- what random journals seldom hold, or show less clearly ----------------------------------------

_A, _B = Fid(2), Fid(3)


def _diff(workload: Workload, seq1: int, seq2: int) -> list[tuple[str, bytes | None, bytes | None]]:
    with written(workload) as (_, lookup):
        changes = find_changes(lookup, Seq(seq1 + 1), Seq(seq2 + 1))
    return sorted((one.letters(), one.old_path, one.new_path) for one in changes)


def test_directories_above_each_other_at_different_times() -> None:
    """First b is in a, then a in b: the path of each depends on the other's."""
    workload = workload_of(
        make_directory(_A, ROOT_FID, b"a"),
        make_directory(_B, _A, b"b"),
        Rename(_B, _A, b"b", ROOT_FID, b"b", 0, Fid(0)),
        Rename(_A, ROOT_FID, b"a", _B, b"a", 0, Fid(0)),
    )
    with written(workload) as (_, lookup):
        found = [lookup.path_before(fid, Seq(seq)) for fid in (_A, _B) for seq in (5, 6, 7)]
    assert found == [b"a", b"a", b"b/a", b"a/b", b"b", b"b"]


def test_diff_of_exchanged_and_replaced_files() -> None:
    """In a segment that has not told their paths before."""
    workload = workload_of(
        make_file(_A, ROOT_FID, b"a"),
        make_file(_B, ROOT_FID, b"b"),
        Rename(_A, ROOT_FID, b"a", ROOT_FID, b"b", RENAME_EXCHANGE, _B),
        segment_entries=4,
    )
    assert _diff(workload, 4, 5) == [("R", b"a", b"b"), ("R", b"b", b"a")]
    workload = workload_of(
        make_file(_A, ROOT_FID, b"a"),
        make_file(_B, ROOT_FID, b"b"),
        Rename(_A, ROOT_FID, b"a", ROOT_FID, b"b", 0, _B),
        segment_entries=4,
    )
    assert _diff(workload, 4, 5) == [("D", b"b", None), ("R", b"a", b"b")]


def test_diff_of_a_link_that_was_renamed() -> None:
    workload = workload_of(
        make_file(_A, ROOT_FID, b"a"),
        Link(_A, ROOT_FID, b"b"),
        Rename(_A, ROOT_FID, b"b", ROOT_FID, b"c", 0, Fid(0)),
    )
    assert _diff(workload, 3, 5) == [("A", None, b"c")]


def test_file_whose_told_name_went() -> None:
    """Its segment tells one name, which goes: what follows is about the other."""
    workload = workload_of(
        make_file(_A, ROOT_FID, b"a"),
        Link(_A, ROOT_FID, b"b"),
        Unlink(_A, ROOT_FID, b"a"),
        Write(_A, 0, None),
        segment_entries=4,
    )
    with written(workload) as (_, lookup):
        found = {one.entry.seq: one.path for one in find(lookup, Criteria())}
    assert found[Seq(6)] == b"b"
    changes = _diff(workload, 4, 6)
    assert ("M", b"b", b"b") in changes or ("RM", b"a", b"b") in changes
