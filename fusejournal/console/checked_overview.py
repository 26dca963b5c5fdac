"""The overview that an agent gives of its machine, checked before it is believed: an agent can be
of another version, or in the wrong hands, and what it says must spoil nothing of the others. Pure.

Fields that are not known here pass, because a newer agent has more. What the console itself goes by
is checked, and bounded; the page shows each agent apart."""

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from fusejournal.errors import WireError

OVERVIEW_BYTES_MAX: Final = 4 << 20
"""The most that an overview may have."""
_VOLUMES_MAX: Final = 1000
_PROBLEMS_MAX: Final = 100
"""Problems of one agent that are reported each by itself."""
_NAME_CHARS_MAX: Final = 256
_WORDS_CHARS_MAX: Final = 2000
_DEPTH_MAX: Final = 12


class CheckedOverview(NamedTuple):
    """The node's name, and its volumes; each has a ``name``, and ``problems`` that have ``key``,
    ``words``, ``severity``, ``advice``, and, where entries are to blame, ``entries``."""

    node: str
    volumes: list[dict[str, Any]]


def checked_overview(answer: Mapping[str, Any]) -> CheckedOverview:
    """Returns what *answer* holds. Raises WireError for what is no overview."""
    node, volumes = answer.get("node"), answer.get("volumes")
    if not isinstance(node, str) or not isinstance(volumes, list) or len(volumes) > _VOLUMES_MAX:
        raise WireError("its overview has no node or no list of volumes")
    if not _is_plain(volumes, _DEPTH_MAX):
        raise WireError("its overview has values that are none, or too deep")
    found: list[dict[str, Any]] = []
    left = _PROBLEMS_MAX
    for volume in volumes:
        name = volume.get("name") if isinstance(volume, dict) else None
        if not isinstance(name, str) or not 0 < len(name) <= _NAME_CHARS_MAX:
            raise WireError("its overview has a volume without a name")
        problems = _problems(name, volume.get("problems", []))
        shown = problems[:left]
        if len(problems) > left:
            shown.append(_more(len(problems) - left))
        left = max(0, left - len(problems))
        found.append({**volume, "problems": shown})
    if len({one["name"] for one in found}) < len(found):
        raise WireError("its overview has two volumes of one name")
    return CheckedOverview(node[:_NAME_CHARS_MAX], found)


def _problems(volume: str, raw: object) -> list[dict[str, Any]]:
    if not isinstance(raw, list):
        raise WireError(f"its overview has no list of problems of {volume!r:.80}")
    found: dict[str, dict[str, Any]] = {}
    for one in raw:
        texts = {
            key: one.get(key, "") if isinstance(one, dict) else None
            for key in ("key", "words", "severity", "advice")
        }
        if not all(isinstance(text, str) for text in texts.values()) or not texts["key"]:
            raise WireError(f"its overview has a problem of {volume!r:.80} that is none")
        problem: dict[str, Any] = {key: str(text)[:_WORDS_CHARS_MAX] for key, text in texts.items()}
        if "entries" in one:
            problem["entries"] = _entries(volume, one["entries"])
        problem["key"] = problem["key"][:_NAME_CHARS_MAX]
        if problem["severity"] != "warning":
            problem["severity"] = "bad"  # of a kind that is not known here: rather too much
        found[problem["key"]] = problem
    return list(found.values())


def _entries(volume: str, raw: object) -> dict[str, Any]:
    """Returns the timeline's filter of the entries that a problem is about."""
    uid, *words = (
        raw.get(key) if isinstance(raw, dict) else None for key in ("uid", "op", "since")
    )
    is_filter = type(uid) is int and 0 <= uid < 1 << 32
    if not (
        is_filter and all(isinstance(one, str) and len(one) <= _NAME_CHARS_MAX for one in words)
    ):
        raise WireError(f"its overview has entries of a problem of {volume!r:.80} that are none")
    return {"uid": uid, "op": words[0], "since": words[1]}


def _more(count: int) -> dict[str, str]:
    return {
        "key": "more", "words": f"{count:,} more problems, which are not told one by one",
        "severity": "bad", "advice": "",
    }  # fmt: skip


def _is_plain(value: object, depth: int) -> bool:
    """Returns True for what JSON can hold, and every reader of it."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return depth > 0 and all(_is_plain(one, depth - 1) for one in value.values())
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(one, depth - 1) for one in value)
    return True
