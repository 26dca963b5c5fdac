"""The policy of versions: what must stay stays, each rule keeps what it says, to prune often comes
to the same as to prune once, and what is let go when is what judging it then says."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from fusejournal.config import VersionsConfig
from fusejournal.types import Epoch, Fid, Seq
from fusejournal.versions.chunker import RULE
from fusejournal.versions.manifest import Version
from fusejournal.versions.policy import judge, when_let_go
from tests.support.workload import UUID_OF_WORKLOADS

_HOUR_NS = 3600 * 10**9
_COUNT = st.integers(0, 5)
_POLICIES = st.builds(
    VersionsConfig,
    keep_last=_COUNT,
    keep_hourly=_COUNT,
    keep_daily=_COUNT,
    keep_weekly=_COUNT,
    keep_monthly=_COUNT,
    keep_yearly=_COUNT,
)
_STEPS = st.lists(
    st.one_of(
        st.integers(1, _HOUR_NS), st.integers(1, 900 * _HOUR_NS), st.just(365 * 24 * _HOUR_NS)
    ),
    min_size=1,
    max_size=40,
)


def _version(seq: int, time_ns: int, name: str = "") -> Version:
    fields = Epoch(1), Seq(seq), seq, time_ns, name, "node", 1, None, RULE, b"i", b"n", Fid(2)
    return Version(UUID_OF_WORKLOADS, *fields, 1, 0, 0, 0)


def _versions(steps: list[int], named: set[int]) -> list[Version]:
    found, time_ns = [], 1_700_000_000 * 10**9
    for number, step in enumerate(steps, 1):
        time_ns += step
        found.append(_version(number, time_ns, "called" if number in named else ""))
    return found


@given(steps=_STEPS, policy=_POLICIES, named=st.sets(st.integers(1, 40)), chosen=st.data())
def test_what_must_stay_stays(
    steps: list[int], policy: VersionsConfig, named: set[int], chosen: st.DataObject
) -> None:
    versions = _versions(steps, named)
    keys = [one.key for one in versions]
    protected = chosen.draw(st.sets(st.sampled_from(keys)))
    bases = chosen.draw(st.sets(st.sampled_from(keys), max_size=1))
    verdicts = judge(versions[::-1], policy, protected, bases)
    assert [one.version for one in verdicts] == versions
    assert verdicts[-1].stays
    for one in verdicts:
        if one.version.key in protected | bases or one.version.name:
            assert one.stays
    if policy == VersionsConfig():
        assert all(one.stays for one in verdicts)
    for word in ("last", "hourly", "daily", "weekly", "monthly", "yearly"):
        kept = [one.version for one in verdicts if word in one.reasons]
        assert len(kept) <= getattr(policy, f"keep_{word}")
        assert word == "last" or len({_period(word, one) for one in kept}) == len(kept)
        count = len(versions) if word == "last" else len({_period(word, one) for one in versions})
        assert len(kept) == min(getattr(policy, f"keep_{word}"), count)


def _period(word: str, version: Version) -> str:
    moment = datetime.fromtimestamp(version.time_ns // 10**9, UTC)
    form = {"hourly": "%F %H", "daily": "%F", "weekly": "%G %V", "monthly": "%Y %m", "yearly": "%Y"}
    return moment.strftime(form[word])


@given(steps=_STEPS, policy=_POLICIES, at=st.sets(st.integers(1, 40)))
def test_pruning_often_comes_to_the_same(
    steps: list[int], policy: VersionsConfig, at: set[int]
) -> None:
    """Nothing goes by an early pruning that a later one would have kept."""
    versions = _versions(steps, set())
    left: list[Version] = []
    for version in versions:
        left.append(version)
        if version.seq in at:
            left = [one.version for one in judge(left, policy, ()) if one.stays]
    once = [one.version for one in judge(versions, policy, ()) if one.stays]
    assert [one.version for one in judge(left, policy, ()) if one.stays] == once


@given(
    steps=_STEPS,
    policy=_POLICIES,
    named=st.sets(st.integers(1, 40)),
    first=st.integers(1, 900 * _HOUR_NS),
    step=st.integers(1, 900 * _HOUR_NS),
    count=st.integers(0, 16),
    chosen=st.data(),
)
def test_when_each_is_let_go_is_what_judging_then_says(
    steps: list[int],
    policy: VersionsConfig,
    named: set[int],
    first: int,
    step: int,
    count: int,
    chosen: st.DataObject,
) -> None:
    versions = _versions(steps, named)
    protected = chosen.draw(st.sets(st.sampled_from([one.key for one in versions])))
    verdicts = judge(versions, policy, protected)
    begin = versions[-1].time_ns + first
    made = range(begin, begin + count * step, step)
    found = when_let_go(verdicts, policy, made)
    assert len(found) == len(versions)
    for number in range(count):
        later = [
            _version(len(versions) + 1 + at, time_ns)
            for at, time_ns in enumerate(made[: number + 1])
        ]
        then = judge([*versions, *later], policy, protected)
        for now, was, at_ns in zip(verdicts, then, found, strict=False):
            is_let_go = not now.stays or (at_ns is not None and at_ns <= made[number])
            assert was.stays is not is_let_go
