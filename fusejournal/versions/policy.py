"""The policy by which versions are kept: which of them stay, and why, by their times alone. Pure.

Each rule looks at the versions from the newest on. ``last`` keeps so many; ``hourly`` the newest of
each hour, for the newest so many hours that have one; ``daily`` to ``yearly`` alike, by days, weeks
(from Monday), months and years of UTC. Hours and days without a version do not count, so that a
machine that was off for a month loses nothing by it. What a rule lets go, it would not keep later
either: to prune often or seldom comes to the same.

Whatever the rules say, these stay: the newest version, what is protected, what has a name (a person
gave it), and the base of a journal.

When a rule lets a version go depends on those that are made after it: :func:`when_let_go` works
that out for times at which these are to be made, by the same rules."""

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple

from fusejournal.config import VersionsConfig
from fusejournal.versions.manifest import Version

_SECOND_NS = 10**9
_DAY_SECONDS = 86_400
_MONDAY = 3
"""1970 began with a Thursday."""
_PROTECTED: Final = "protected"
_NAMED: Final = "named"
_BASE: Final = "the journal's base"
STAYS_FOR_GOOD: Final = frozenset((_PROTECTED, _NAMED, _BASE))
"""The reasons for which a version stays whatever is made after it."""
_BLOCK: Final = 512
"""The future versions that are looked at together."""


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
            reasons.append(_PROTECTED)
        if version.name:
            reasons.append(_NAMED)
        if version.key in bases:
            reasons.append(_BASE)
        reasons += by_rule[number] if has_rules(policy) else ["no policy"]
        found.append(PolicyVerdict(version, tuple(reasons)))
    return found


class _Kept(NamedTuple):
    """A version that is there at a moment to come."""

    time_ns: int
    number: int | None
    """Its place among the versions that there are now; None: it is made later."""


def when_let_go(
    verdicts: Sequence[PolicyVerdict], policy: VersionsConfig, made_ns: Sequence[int]
) -> list[int | None]:
    """Returns for each of *verdicts*, which :func:`judge` has returned by the same *policy*, when
    it is let go, if further versions without a name are made at *made_ns* (in nanoseconds since
    1970, growing, after all that there are): the time of the one with which nothing keeps it any
    more. None where it stays beyond the last of these, and where nothing keeps it now."""
    found: list[int | None] = [None] * len(verdicts)
    if not has_rules(policy):
        return found
    pinned = {number for number, one in enumerate(verdicts) if STAYS_FOR_GOOD & {*one.reasons}}
    kept = [_Kept(one.version.time_ns, number) for number, one in enumerate(verdicts) if one.stays]

    def advance(kept: list[_Kept], made_ns: Sequence[int]) -> list[_Kept]:
        """Returns what of *kept* is left once versions were made at *made_ns*. Where that lets one
        go that there is now, the halves are looked at: to prune in between comes to the same."""
        there = kept + [_Kept(time_ns, None) for time_ns in made_ns]
        rules = _kept_by_rules([one.time_ns for one in there], policy)
        last = len(there) - 1
        left = [
            one for at, one in enumerate(there) if rules[at] or at == last or one.number in pinned
        ]
        numbers = {one.number for one in left}
        gone = [one.number for one in kept if one.number is not None and one.number not in numbers]
        if gone and len(made_ns) > 1:
            half = len(made_ns) // 2
            return advance(advance(kept, made_ns[:half]), made_ns[half:])
        for number in gone:
            found[number] = made_ns[0]
        return left

    for begin in range(0, len(made_ns), _BLOCK):
        kept = advance(kept, made_ns[begin : begin + _BLOCK])
        if all(one.number is None or one.number in pinned for one in kept):
            break
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
    year, month = _month(days)
    return (year, month) if word == "monthly" else year


@lru_cache(maxsize=1 << 14)
def _month(days: int) -> tuple[int, int]:
    moment = datetime.fromtimestamp(days * _DAY_SECONDS, UTC)
    return moment.year, moment.month
