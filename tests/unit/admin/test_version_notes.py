"""Versions beside entries: each stands by the last shown entry that is in it."""

import pytest

from fusejournal.admin.version_notes import with_versions
from fusejournal.cli.version_notes import note_of
from fusejournal.types import Seq

_VERSIONS = [(Seq(seq), f"v{seq}") for seq in (3, 10, 12, 20, 21)]


def _noted(*seqs: int, end: int = 1000, newest_first: bool = False) -> dict[int, list[str]]:
    found = with_versions(seqs, Seq, _VERSIONS, end_seq=Seq(end), newest_first=newest_first)
    return {seq: names for seq, names in found if names}


@pytest.mark.parametrize("newest_first", [False, True])
def test_versions_stand_by_entries(newest_first: bool) -> None:
    seqs = [5, 10, 15, 20]
    if newest_first:
        seqs.reverse()
    wanted = {10: ["v10", "v12"], 20: ["v20", "v21"]}
    assert _noted(*seqs, newest_first=newest_first) == wanted
    # A version that is after the last entry asked for has more than that.
    assert _noted(*seqs, end=21, newest_first=newest_first) == wanted | {20: ["v20"]}
    assert _noted(newest_first=newest_first) == {}


def test_many_versions_are_summed_up() -> None:
    assert note_of(["a"]) == "kept in version a"
    assert note_of(list("abcdef")) == "kept in versions a, b, c, d and 2 more"
