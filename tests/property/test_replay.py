"""Replays against a model: all of a journal, in two parts, and any selection of it. Which
operations conflict is worked out by carrying them out on a tree in memory, one after the other, by
POSIX's rules."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from fusejournal.history.lookup import Lookup
from fusejournal.history.query import Criteria, SeqRange
from fusejournal.operations import (
    RENAME_EXCHANGE,
    Kind,
    Link,
    Moving,
    Operation,
    Removexattr,
    Rename,
    Setxattr,
    Unlink,
)
from fusejournal.replay.replay import Replay, Result
from fusejournal.replay.scratch import scratch_of
from fusejournal.replay.target import Target
from fusejournal.types import ROOT_FID, Fid, Seq
from tests.support.model import Model, Refused
from tests.support.random_workloads import UIDS, workloads
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


def _replay(lookup: Lookup, criteria: Criteria, path: Path) -> list[Result]:
    """Replays as the command does, with what conflicts skipped."""
    if not path.exists():
        # As the model's root, because a selection need not set its attributes.
        path.mkdir()
        path.chmod(0o755)
        os.utime(path, ns=(0, 0))
    replay = Replay(lookup, criteria)
    with Target(path, {"replay": repr(criteria)}) as target:
        replay.check_target(target, show_nothing)
        results = list(replay.run(target, show_nothing))
        target.finish()
    assert not scratch_of(path).exists()
    return results


# -- everything ------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(workload=workloads())
def test_all(workload: Workload) -> None:
    with written(workload) as (base, lookup):
        criteria = Criteria(to_seq=Seq(workload.head_seq + 1))
        results = _replay(lookup, criteria, base / "target")
        assert not unlike(base / "target", workload.head)
        held = [seq for seq, step in enumerate(workload.steps, 1) if step.held]
        assert [one.match.entry.seq for one in results if one.verdict == "done"] == held
        assert not [one for one in results if one.verdict == "skipped"]


@settings(max_examples=40)
@given(workload=workloads(), moment=st.integers(0, 1 << 16))
def test_in_two_parts(workload: Workload, moment: int) -> None:
    seq = _inner_seq(workload, moment)
    with written(workload) as (base, lookup):
        _replay(lookup, Criteria(to_seq=Seq(seq + 1)), base / "target")
        assert not unlike(base / "target", workload.models[seq])
        subprocess.run(["cp", "-a", base / "target", base / "copy"], check=True)
        rest = Criteria(from_seq=Seq(seq + 1), to_seq=Seq(workload.head_seq + 1))
        for name in ("target", "copy"):
            _replay(lookup, rest, base / name)
            assert not unlike(base / name, workload.head), name


def _inner_seq(workload: Workload, moment: int) -> Seq:
    """Some seq with something before and after it, and none that a VOID follows."""
    seq = Seq(2 + moment % (workload.head_seq - 2))
    return Seq(seq + 1) if workload.steps[seq - 1].void is not None else seq


# -- selections ------------------------------------------------------------------------------------


@st.composite
def _selections(draw: st.DrawFn) -> Criteria:
    """Selections that a user may make. Seqs are per mille of the journal: see _scaled."""
    criteria = Criteria(from_seq=Seq(draw(st.sampled_from((0, 0, 300)))))
    seqs = st.integers(0, 1000)
    ranges = st.lists(
        st.tuples(seqs, st.integers(0, 60)).map(lambda one: (one[0], one[0] + one[1])),
        min_size=1,
        max_size=4,
    ).map(lambda found: tuple(SeqRange(Seq(first), Seq(last)) for first, last in found))
    for what in draw(st.sets(st.sampled_from(("without", "only", "kinds", "uid")), min_size=1)):
        if what == "without":
            criteria = replace(criteria, without=draw(ranges))
        elif what == "only":
            first = draw(seqs)
            criteria = replace(criteria, only=(SeqRange(Seq(first), Seq(1001)), *draw(ranges)))
        elif what == "kinds":
            kinds = draw(st.sets(st.sampled_from([*list(Kind)[:15], Kind.WHITEOUT]), max_size=3))
            criteria = replace(criteria, kinds=frozenset(Kind) - kinds)
        else:
            criteria = replace(criteria, uid=draw(st.sampled_from(UIDS)))
    return criteria


def _scaled(criteria: Criteria, workload: Workload) -> Criteria:
    def seq(per_mille: int) -> Seq:
        return Seq(1 + per_mille * workload.head_seq // 1000)

    def several(ranges: tuple[SeqRange, ...]) -> tuple[SeqRange, ...]:
        return tuple(SeqRange(seq(one.from_seq), Seq(seq(one.to_seq) + 1)) for one in ranges)

    first = seq(criteria.from_seq)
    while first > 1 and workload.steps[first - 1].operation.kind == Kind.VOID:
        first = Seq(first - 1)
    return replace(
        criteria,
        from_seq=first,
        to_seq=Seq(workload.head_seq + 1),
        only=several(criteria.only),
        without=several(criteria.without),
    )


class _Expected(NamedTuple):
    """The model's result of a selection."""

    tree: Model
    done: list[int]
    conflicts: list[int]
    left_out: set[int]
    """With those that conflict."""


def _carry_out(workload: Workload, criteria: Criteria) -> _Expected:
    """The chosen operations, one after the other, on a tree in memory."""
    tree = workload.models[criteria.from_seq - 1].copy()
    done, conflicts, left_out = [], [], set()
    for seq, step in enumerate(workload.steps, 1):
        if seq < criteria.from_seq or not step.held:
            continue
        if not _is_chosen(criteria, seq, step):
            left_out.add(seq)
            continue
        try:
            step.apply_to(tree)
            done.append(seq)
        except Refused:
            conflicts.append(seq)
            left_out.add(seq)
    return _Expected(tree, done, conflicts, left_out)


def _is_chosen(criteria: Criteria, seq: int, step: Step) -> bool:
    if criteria.kinds and step.operation.kind not in criteria.kinds:
        return False
    if criteria.uid is not None and step.who.uid != criteria.uid:
        return False
    if criteria.only and not any(one.from_seq <= seq < one.to_seq for one in criteria.only):
        return False
    return not any(one.from_seq <= seq < one.to_seq for one in criteria.without)


def _names(operation: Operation) -> set[object]:
    """The files that an operation names."""
    above = {getattr(operation, field, None) for field in ("parent", "new_parent")} - {ROOT_FID}
    files = {getattr(operation, field, None) for field in ("fid", "replaced", "whiteout")}
    return (above | files) - {None, 0}


def _places(operation: Operation) -> set[object]:
    """The names that an operation names."""
    found: set[object] = set()
    for parent, name in (("parent", "name"), ("new_parent", "new_name")):
        if hasattr(operation, parent):
            found.add((getattr(operation, parent), getattr(operation, name)))
    return found


def _check_selection(workload: Workload, criteria: Criteria) -> _Expected:
    """Plan and run against the model."""
    expected = _carry_out(workload, criteria)
    with written(workload) as (base, lookup):
        plan = Replay(lookup, criteria).plan(show_nothing)
        assert [one.seq for one in plan.conflicts] == expected.conflicts
        assert plan.done == len(expected.done)
        assert plan.left_out == len(expected.left_out) - len(expected.conflicts)
        for conflict in plan.conflicts:
            assert conflict.because_of in expected.left_out, conflict
            assert conflict.because_of < conflict.seq, conflict
            one = workload.steps[conflict.seq - 1].operation
            other = workload.steps[conflict.because_of - 1].operation
            # Of a loop, the cause is a move of a directory on the way.
            is_loop = conflict.reason.endswith("below itself") and isinstance(other, Moving)
            assert is_loop or _names(one) & _names(other) or _places(one) & _places(other), conflict
        if criteria.from_seq > 1:
            _replay(lookup, Criteria(to_seq=criteria.from_seq), base / "target")
        results = _replay(lookup, criteria, base / "target")
        assert [one.match.entry.seq for one in results if one.verdict == "done"] == expected.done
        assert not unlike(base / "target", expected.tree)
    return expected


@settings(max_examples=120)
@given(workload=workloads(), selection=_selections())
def test_selection(workload: Workload, selection: Criteria) -> None:
    _check_selection(workload, _scaled(selection, workload))


@settings(max_examples=60)
@given(workload=workloads(), first=st.integers(0, 1000), count=st.integers(1, 3))
def test_few_left_out(workload: Workload, first: int, count: int) -> None:
    without = Seq(3 + first * (workload.head_seq - 3) // 1000)
    criteria = Criteria(
        to_seq=Seq(workload.head_seq + 1), without=(SeqRange(without, Seq(without + count)),)
    )
    _check_selection(workload, criteria)


# -- what random selections seldom meet ------------------------------------------------------------

_A, _B, _C, _D = Fid(2), Fid(3), Fid(4), Fid(5)


def _check_without(workload: Workload, left_out: int, conflicts: list[int]) -> None:
    criteria = Criteria(
        to_seq=Seq(workload.head_seq + 1), without=(SeqRange(Seq(left_out), Seq(left_out + 1)),)
    )
    assert _check_selection(workload, criteria).conflicts == conflicts


def test_move_below_itself() -> None:
    workload = workload_of(
        make_directory(_A, ROOT_FID, b"a"),
        make_directory(_B, _A, b"b"),
        Rename(_B, _A, b"b", ROOT_FID, b"b", 0, Fid(0)),
        Rename(_A, ROOT_FID, b"a", _B, b"a", 0, Fid(0)),
    )
    _check_without(workload, 5, [6])


def test_move_below_itself_where_others_had_the_name() -> None:
    """The cause is the move that was left out, not what came to the old name since."""
    workload = workload_of(
        make_directory(_A, ROOT_FID, b"a"),
        make_directory(_B, _A, b"b"),
        make_directory(_C, _B, b"c"),
        Rename(_C, _B, b"c", ROOT_FID, b"c", 0, Fid(0)),
        make_file(_D, _B, b"c"),
        Unlink(_D, _B, b"c"),
        Rename(_A, ROOT_FID, b"a", _C, b"a", 0, Fid(0)),
    )
    _check_without(workload, 6, [7, 8, 9])


def test_exchange_below_itself() -> None:
    """The directory that an exchange puts into the first name's place would be below itself."""
    workload = workload_of(
        make_directory(_A, ROOT_FID, b"a"),
        make_directory(_B, _A, b"b"),
        make_directory(_C, _B, b"c"),
        Rename(_B, _A, b"b", ROOT_FID, b"b", 0, Fid(0)),
        Rename(_C, _B, b"c", ROOT_FID, b"a", RENAME_EXCHANGE, _A),
    )
    _check_without(workload, 6, [7])


def test_exchange_of_a_file_with_the_directory_above() -> None:
    workload = workload_of(
        make_directory(_A, ROOT_FID, b"a"),
        make_directory(_B, _A, b"b"),
        make_file(_C, _B, b"c"),
        Rename(_B, _A, b"b", ROOT_FID, b"b", 0, Fid(0)),
        Rename(_C, _B, b"c", ROOT_FID, b"a", RENAME_EXCHANGE, _A),
    )
    _check_without(workload, 6, [7])


def test_replaced_file_is_missing() -> None:
    workload = workload_of(
        make_file(_A, ROOT_FID, b"a"),
        make_file(_B, ROOT_FID, b"b"),
        Rename(_A, ROOT_FID, b"a", ROOT_FID, b"b", 0, _B),
    )
    _check_without(workload, 4, [])


def test_last_name_of_amake_file() -> None:
    """Without the LINK the first name's end is the file's."""
    workload = workload_of(
        make_file(_A, ROOT_FID, b"a"),
        Link(_A, ROOT_FID, b"b"),
        Unlink(_A, ROOT_FID, b"a"),
        Setxattr(_A, b"user.x", b"1"),
        Link(_A, ROOT_FID, b"c"),
    )
    _check_without(workload, 4, [6, 7])


def test_attribute_is_missing() -> None:
    workload = workload_of(
        make_file(_A, ROOT_FID, b"a"),
        Setxattr(_A, b"user.x", b"1"),
        Removexattr(_A, b"user.x"),
        Setxattr(_A, b"user.x", b"2"),
        Removexattr(_A, b"user.x"),
    )
    _check_without(workload, 4, [5])


def test_directory_is_not_empty() -> None:
    workload = workload_of(
        make_directory(_A, ROOT_FID, b"a"),
        make_directory(_B, ROOT_FID, b"b"),
        make_file(_C, _A, b"c"),
        Rename(_C, _A, b"c", ROOT_FID, b"c", 0, Fid(0)),
        Rename(_B, ROOT_FID, b"b", ROOT_FID, b"a", 0, _A),
        make_file(_D, _B, b"d"),
    )
    _check_without(workload, 6, [7])


def test_directory_that_would_be_replaced_is_elsewhere() -> None:
    """It need not be empty, then: nothing happens to it."""
    workload = workload_of(
        make_directory(_A, ROOT_FID, b"a"),
        make_directory(_B, ROOT_FID, b"b"),
        make_file(_C, _A, b"c"),
        Rename(_A, ROOT_FID, b"a", ROOT_FID, b"d", 0, Fid(0)),
        Unlink(_C, _A, b"c"),
        Rename(_B, ROOT_FID, b"b", ROOT_FID, b"d", 0, _A),
    )
    criteria = Criteria(to_seq=Seq(9), without=(SeqRange(Seq(6), Seq(8)),))
    assert _check_selection(workload, criteria).conflicts == []
