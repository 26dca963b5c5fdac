"""Answers about trees, of which some is kept from question to question: the same as without, at
whatever moments and in whatever order they are asked for."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest import mock

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fusejournal.history import tree_cache
from fusejournal.history.file_states import State, read_states
from fusejournal.history.lookup import Lookup
from fusejournal.history.tree_cache import TreeCache
from fusejournal.journal.reader import JournalReader
from fusejournal.types import Fid, Seq
from tests.support.bases import based_reader, give_base, possible_bases
from tests.support.random_workloads import workloads
from tests.support.workload import Workload, workspace

_CHOICE = st.integers(0, 1 << 16)
_ASKED = st.lists(st.tuples(_CHOICE, _CHOICE), min_size=4, max_size=12)
_SMALL = {"_STEPS_MAX": 3, "_STATES_MAX": 20, "_CHANGES_MAX": 12, "_MOMENTS_MAX": 9}


@contextmanager
def _limits(is_small: bool) -> Iterator[None]:
    with ExitStack() as stack:
        for name, most in _SMALL.items() if is_small else ():
            stack.enter_context(mock.patch.object(tree_cache, name, most))
        yield


def _state_of(state: State) -> object:
    return (
        *(state.maker, state.uid, state.gid, state.size, state.mtime_ns, state.last_time_ns),
        *(state.permissions(), sorted(state.xattrs.items()), state.flags, state.written_bytes),
    )


def _fids(workload: Workload) -> list[Fid]:
    return sorted({fid for model in workload.models for fid in model.files})


def _check(cache: TreeCache, lookup: Lookup, fids: Iterable[Fid], end: Seq) -> None:
    asked = set(fids)
    wanted = read_states(lookup, asked, end, Seq(0))
    found = cache.states(lookup, asked, end)
    assert {fid: _state_of(one) for fid, one in found.items()} == {
        fid: _state_of(one) for fid, one in wanted.items()
    }
    for fid in asked:
        assert cache.children(lookup, fid, end) == lookup.children(fid, end)
        moments = list(lookup.moments_of(fid, Seq(0), end))
        assert list(cache.moments(lookup, fid, end)) == moments
        assert set(moments) >= {
            seq for seq, _ in lookup.changes_in(fid, end, lookup.reader.first_seq)
        }


@settings(max_examples=40, phases=(Phase.generate,), deadline=None)
@given(workload=workloads(), asked=_ASKED, is_based=st.booleans(), is_small=st.booleans())
def test_answers_are_as_without(
    workload: Workload, asked: list[tuple[int, int]], is_based: bool, is_small: bool
) -> None:
    workload = replace(workload, segment_entries=min(workload.segment_entries, 7))
    with workspace() as directory, _limits(is_small):
        workload.write(directory / "journal")
        reader, first = JournalReader(directory / "journal"), 1
        bases = possible_bases(directory / "journal")
        if is_based and bases:
            base = give_base(directory, bases[asked[0][0] % len(bases)])
            reader, first = based_reader(directory, base), base.seq + 1
        cache, fids = TreeCache(), _fids(workload)
        for moment, chosen in asked:
            end = Seq(first + moment % (workload.head_seq - first + 2))
            some = [fid for at, fid in enumerate(fids) if chosen >> at % 16 & 1]
            _check(cache, Lookup(reader), some, end)


@settings(max_examples=10, phases=(Phase.generate,), deadline=None)
@given(workload=workloads(), other=workloads(), asked=_CHOICE)
def test_nothing_is_kept_of_another_history(
    workload: Workload, other: Workload, asked: int
) -> None:
    """Nor where entries that lost were cut back, or the journal was pruned."""
    cache = TreeCache()
    with workspace() as directory:
        for one in (workload, other):
            journal = replace(one, segment_entries=min(one.segment_entries, 7))
            shutil.rmtree(directory / "journal", ignore_errors=True)
            journal.write(directory / "journal")
            lookup = Lookup(JournalReader(directory / "journal"))
            _check(cache, lookup, _fids(journal), Seq(journal.head_seq + 1))
        bases = possible_bases(directory / "journal")
        if bases:
            base = give_base(directory, bases[asked % len(bases)])
            lookup = Lookup(based_reader(directory, base))
            _check(cache, lookup, _fids(other), Seq(other.head_seq + 1))
