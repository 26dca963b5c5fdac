"""The rules of every decision on who may be primary, whichever lease makes it; and the person's."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fusejournal.election.lease import Lease
from fusejournal.election.static import PersonsWord, parse_reign
from fusejournal.errors import ConfigError
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.replication.fence import Fence
from fusejournal.types import EPOCH_MAX, Epoch, Reign

_OWN, _OTHER = 0xA, 0xB

Decide = Callable[[Reign | None], Lease]
"""A decision that a reign has ended, or none."""


def _by_a_person(ended: Reign | None) -> Lease:
    return PersonsWord(str(ended) if ended is not None else None)


@pytest.fixture(params=[_by_a_person])
def decide(request: pytest.FixtureRequest) -> Decide:
    found: Decide = request.param
    return found


def _fence(directory: Path, lease: Lease) -> Fence:
    return Fence(WatermarkPage(directory / "watermarks"), _OWN, lease)


@pytest.mark.parametrize("ended", [Reign(Epoch(2), _OTHER), Reign(Epoch(EPOCH_MAX), 2**64 - 1)])
def test_what_has_ended_is_said_and_nothing_else(decide: Decide, ended: Reign) -> None:
    lease = decide(ended)
    assert lease.ended() == lease.ended() == ended
    assert decide(None).ended() is None


def test_a_reign_fences_unless_it_has_ended(decide: Decide, tmp_path: Path) -> None:
    seen, lower = Reign(Epoch(5), _OTHER), Reign(Epoch(4), _OTHER)
    with_none = _fence(tmp_path, decide(None))
    with_none.note(seen)
    for lease, is_fenced in ((decide(None), True), (decide(lower), True), (decide(seen), False)):
        fence = _fence(tmp_path, lease)
        assert (fence.refusal(Epoch(3)) is not None) == is_fenced


def test_a_reign_begins_beyond_what_has_ended(decide: Decide, tmp_path: Path) -> None:
    fence = _fence(tmp_path, decide(Reign(Epoch(9), _OTHER)))
    assert fence.highest_epoch == 9
    assert fence.new_epoch_reason(Epoch(3)) is not None
    assert _fence(tmp_path, decide(None)).new_epoch_reason(Epoch(3)) is None


@pytest.mark.parametrize(
    "text", ["", "7", "7/", "/7", "0/1", "0/0", "-1/1", f"{EPOCH_MAX + 1}/1", "x/y"]
)
def test_a_word_that_names_no_reign_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no reign"):
        PersonsWord(text)


def test_a_reign_is_read_as_it_is_printed() -> None:
    reign = Reign(Epoch(7), 0xC0FFEE)
    assert parse_reign(str(reign)) == reign


def test_a_reign_of_an_unknown_node_is_overruled_and_never_begun(tmp_path: Path) -> None:
    """A fence prints so that only the epoch is known of."""
    unknown, known = Reign(Epoch(7), 0), Reign(Epoch(7), _OTHER)
    fence = _fence(tmp_path, PersonsWord(str(unknown)))
    fence.note(unknown)
    assert fence.refusal(Epoch(3)) is None
    fence.note(known)
    assert str(known) in (fence.refusal(Epoch(3)) or "")
    with pytest.raises(ConfigError, match=r"begin_alone: '7/0{16}' is no reign"):
        parse_reign(str(unknown), "begin_alone")
