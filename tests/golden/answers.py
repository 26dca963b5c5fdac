"""Samples of an agent's answers to the calls about a journal, made over the golden one."""

from pathlib import Path
from typing import Any
from unittest import mock

from fusejournal.admin.source import open_source
from fusejournal.agent import browse, timeline
from fusejournal.agent.calls import OfVolume
from fusejournal.agent.fields import Fields
from fusejournal.agent.sums import Sums
from fusejournal.agent.timeline import Scans
from fusejournal.history.tree_cache import TreeCache
from tests.golden.files import NOW_NS
from tests.support.entries import write_samples

CALLS: dict[str, dict[str, Any]] = {
    "entries": {"count": 3},
    "entry": {"seq": 3},
    "histogram": {"bars": 2},
    "tree": {},
    "moments": {},
    "life": {"path": "old"},
    "difference": {"from_seq": 1, "to_seq": 5},
}
"""The fields of each call, but for the volume."""


WITHOUT_SAMPLE = dict.fromkeys(
    ("content", "archive", "version-content", "version-archive"), "bytes"
)
"""The calls whose answers have no sample, here or in agent_answers.py, and what they are."""


def _without_machine(value: Any, directory: Path) -> Any:
    """Returns *value* without what is of this machine: the names of users, the time zone, and where
    the journal lies."""
    if isinstance(value, dict):
        return {
            key: dict.fromkeys(one, "NAME")
            if key == "users"
            else "ISO 8601"
            if key == "time"
            else _without_machine(one, directory)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [_without_machine(one, directory) for one in value]
    return value.replace(str(directory), "JOURNAL") if isinstance(value, str) else value


def make_answers(directory: Path) -> object:
    """Return the answer to each of these calls."""
    with mock.patch("fusejournal.journal.clock.now_ns", return_value=NOW_NS):
        write_samples(directory).close()
    source = open_source(str(directory))
    asked: dict[str, OfVolume] = {
        "entries": lambda source, fields: timeline.entries(source, fields, Scans()),
        "entry": timeline.entry,
        "histogram": Sums().histogram,
        "tree": lambda source, fields: browse.tree(source, fields, TreeCache()),
        "moments": lambda source, fields: browse.moments(source, fields, TreeCache()),
        "life": browse.life,
        "difference": browse.difference,
    }
    return {
        name: _without_machine(asked[name](source, Fields(fields)), directory)
        for name, fields in CALLS.items()
    }
