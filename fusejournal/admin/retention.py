"""The retention of a volume's versions over time: what keeps each, when the policy lets it go, and
when the layer makes and prunes next. The rules are those of versions/policy.py, asked about
versions that are to come: one each period of the schedule, as if something changed in each. The
layer need not be running."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fusejournal.admin.prune import Pruning
from fusejournal.config import VersionsConfig
from fusejournal.node.volume_status import VersionStatus
from fusejournal.objects.service import do_not_wait
from fusejournal.versions.manifest import Version
from fusejournal.versions.policy import STAYS_FOR_GOOD, has_rules, when_let_go

_SECOND_NS: Final = 10**9
_AHEAD_NS: Final = 3653 * 86_400 * _SECOND_NS
"""The time that is looked ahead: ten years."""
_MADE_MAX: Final = 30_000
"""The versions to come that are looked at, at most: of hourly ones, those of three years."""
_RULES: Final = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


@dataclass(frozen=True)
class RetainedVersion:
    """A version, and what becomes of it; times are in nanoseconds since 1970."""

    version: Version
    reasons: tuple[str, ...]
    """Everything that keeps it now; nothing where the next pruning lets it go."""
    let_go_ns: int | None
    """The time of the version to come with which nothing keeps it any more; None where none of
    those that were looked at does that, and where nothing keeps it now."""
    prune_ns: int | None
    """The pruning of the schedule that deletes it; None where none is known."""

    @property
    def is_for_good(self) -> bool:
        """True if it stays whatever is made after it."""
        return not STAYS_FOR_GOOD.isdisjoint(self.reasons)

    def to_json(self) -> dict[str, Any]:
        """Returns its line of what ``version calendar --json`` prints."""
        return {
            "seq": self.version.seq,
            "key": self.version.key,
            "name": self.version.name,
            "time_ns": self.version.time_ns,
            "kept_as": list(self.reasons),
            "is_for_good": self.is_for_good,
            "let_go_ns": self.let_go_ns,
            "prune_ns": self.prune_ns,
        }


@dataclass(frozen=True)
class PolicyForecast:
    """The versions of a volume by seq, and its schedule; times are in nanoseconds since 1970."""

    versions: tuple[RetainedVersion, ...]
    policy: VersionsConfig
    next_make_ns: int | None
    """The time at which the layer here makes the next version; None: it makes none, or does not
    run."""
    next_prune_ns: int | None
    looked_until_ns: int | None
    """The time up to which ``let_go_ns`` is known; None where nothing can be known, because there
    is no rule, or no schedule by which versions are made."""

    @property
    def has_rules(self) -> bool:
        """True if any rule says which versions go."""
        return has_rules(self.policy)

    def to_json(self) -> dict[str, Any]:
        """Returns what ``version calendar --json`` prints."""
        return {
            "policy": {word: getattr(self.policy, f"keep_{word}") for word in _RULES},
            "every_seconds": self.policy.every,
            "prune_every_seconds": self.policy.prune_every,
            "next_make_ns": self.next_make_ns,
            "next_prune_ns": self.next_prune_ns,
            "looked_until_ns": self.looked_until_ns,
            "versions": [one.to_json() for one in self.versions],
        }


def find_retention(
    volume: str,
    config: Path | None = None,
    waiting: Callable[[], None] = do_not_wait,
    clock: Callable[[], int] = time.time_ns,
) -> PolicyForecast:
    """Returns what becomes of the versions of *volume*. *config*, *waiting*: see Pruning. *clock*
    returns the time in nanoseconds since 1970. Raises StoreDamagedError, StoreError,
    FusejournalError."""
    work = Pruning(volume, config, waiting)
    policy, verdicts, known = work.policy, work.verdicts(), work.status_of_layer()
    next_make_ns, next_prune_ns = _next(known)
    now_ns = clock()
    newest_ns = verdicts[-1].version.time_ns if verdicts else now_ns
    made_ns = _to_come(policy, newest_ns, next_make_ns, now_ns)
    let_go = when_let_go(verdicts, policy, made_ns)
    found = []
    for one, let_go_ns in zip(verdicts, let_go, strict=True):
        since_ns = let_go_ns if one.stays else now_ns
        prune_ns = _pruning_after(since_ns, next_prune_ns, policy.prune_every)
        found.append(RetainedVersion(one.version, one.reasons, let_go_ns, prune_ns))
    until_ns = made_ns[-1] if made_ns and has_rules(policy) else None
    return PolicyForecast(tuple(found), policy, next_make_ns, next_prune_ns, until_ns)


def _next(known: VersionStatus | None) -> tuple[int | None, int | None]:
    if known is None:
        return None, None
    make, prune = known.next_make, known.next_prune
    return (
        None if make is None else round(make * _SECOND_NS),
        None if prune is None else round(prune * _SECOND_NS),
    )


def _to_come(
    policy: VersionsConfig, newest_ns: int, next_make_ns: int | None, now_ns: int
) -> range:
    """Returns the times at which versions are made by the schedule, all after the newest there
    is. Where another node makes them, or none runs, the next is due a period after the newest."""
    if policy.every is None:
        return range(0)
    step_ns = max(1, round(policy.every * _SECOND_NS))
    first_ns = next_make_ns if next_make_ns is not None else newest_ns + step_ns
    first_ns = max(first_ns, newest_ns + 1, now_ns)
    return range(first_ns, now_ns + _AHEAD_NS, step_ns)[:_MADE_MAX]


def _pruning_after(
    since_ns: int | None, next_ns: int | None, every_seconds: float | None
) -> int | None:
    """Returns the first pruning of the schedule at *since_ns* or later."""
    if since_ns is None or next_ns is None or every_seconds is None:
        return None
    step_ns = max(1, round(every_seconds * _SECOND_NS))
    periods = max(0, -(-(since_ns - next_ns) // step_ns))
    return next_ns + periods * step_ns
