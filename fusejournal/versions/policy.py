"""The policy by which versions are kept: which of them stay, and why, by their times alone. Pure.

Each rule looks at the versions from the newest on. ``last`` keeps so many; ``hourly`` the newest of
each hour, for the newest so many hours that have one; ``daily`` to ``yearly`` alike, by days, weeks
(from Monday), months and years of UTC. Hours and days without a version do not count, so that a
machine that was off for a month loses nothing by it. What a rule lets go, it would not keep later
either: to prune often or seldom comes to the same.

Whatever the rules say, these stay: the newest version, what is protected, what has a name (a person
gave it), and the base of a journal."""

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from fusejournal.config import VersionsConfig
from fusejournal.versions.manifest import Version

_SECOND_NS = 10**9
_DAY_SECONDS = 86_400
_MONDAY = 3
"""1970 began with a Thursday."""


class PolicyVerdict(NamedTuple):
    """A version, and what keeps it: in words; nothing where it goes."""

    version: Version
    reasons: tuple[str, ...]

    @property
    def stays(self) -> bool:
        """True if anything keeps it."""
        return bool(self.reasons)


def judge(
    versions: Sequence[Version],
    policy: VersionsConfig,
    protected: Collection[str],
    bases: Collection[str] = (),
) -> list[PolicyVerdict]:
    """Returns what becomes of *versions*, of one volume, by seq: *protected* and *bases* are keys.
    Without any rule, all stay."""
    ordered = sorted(versions, key=lambda one: one.seq)
    by_rule = _kept_by_rules([one.time_ns for one in ordered], policy)
    found = []
    for number, version in enumerate(ordered):
        reasons = []
        if number == len(ordered) - 1:
            reasons.append("the newest")
        if version.key in protected:
            reasons.append("protected")
        if version.name:
            reasons.append("named")
        if version.key in bases:
            reasons.append("the journal's base")
        reasons += by_rule[number] if has_rules(policy) else ["no policy"]
        found.append(PolicyVerdict(version, tuple(reasons)))
    return found


def has_rules(policy: VersionsConfig) -> bool:
    """Returns True if *policy* says anything."""
    return any(count for _, count in _rules(policy))


def _rules(policy: VersionsConfig) -> Iterator[tuple[str, int]]:
    for word in ("last", "hourly", "daily", "weekly", "monthly", "yearly"):
        yield word, getattr(policy, f"keep_{word}")


def _kept_by_rules(times_ns: Sequence[int], policy: VersionsConfig) -> list[list[str]]:
    """Returns for each time, of growing ones, the rules that keep it."""
    kept: list[list[str]] = [[] for _ in times_ns]
    for word, count in _rules(policy):
        periods: set[object] = set()
        for number in reversed(range(len(times_ns))):
            if len(periods) >= count:
                break
            period = number if word == "last" else _period(word, times_ns[number])
            if period not in periods:
                periods.add(period)
                kept[number].append(word)
    return kept


def _period(word: str, time_ns: int) -> object:
    """Returns the hour, day, week, month or year of UTC that *time_ns* is in."""
    seconds = time_ns // _SECOND_NS
    if word == "hourly":
        return seconds // 3600
    days = seconds // _DAY_SECONDS
    if word == "daily":
        return days
    if word == "weekly":
        return (days + _MONDAY) // 7
    moment = datetime.fromtimestamp(seconds, UTC)
    return (moment.year, moment.month) if word == "monthly" else moment.year
