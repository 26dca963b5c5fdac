"""The fence of a node whose role came with a reign."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fusejournal.election.static import PersonsWord
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.replication.fence import Fence
from fusejournal.types import Epoch, Reign

ME, OTHER = 0xFEED, 0xBEEF
REIGN = Reign(Epoch(3), ME)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[WatermarkPage]:
    page = WatermarkPage(tmp_path / "watermarks")
    yield page
    page.close()


def test_a_promoted_node_is_to_begin_the_reign_of_its_record(page: WatermarkPage) -> None:
    fence = Fence(page, ME, PersonsWord(None), REIGN)
    assert fence.seen == REIGN
    assert fence.due(Epoch(2)) == REIGN
    assert fence.refusal(Epoch(2)) is None
    assert fence.new_epoch_reason(Epoch(2)) == f"this node was promoted to reign {REIGN}"
    assert fence.highest_epoch + 1 == REIGN.epoch
    fence.reigns(REIGN.epoch)
    assert (fence.due(REIGN.epoch), fence.refusal(REIGN.epoch)) == (None, None)
    assert fence.new_epoch_reason(REIGN.epoch) is None
    assert fence.own(REIGN.epoch) == REIGN


def test_a_higher_reign_fences_it_all_the_same(page: WatermarkPage) -> None:
    fence = Fence(page, ME, PersonsWord(None), REIGN)
    fence.note(Reign(Epoch(4), OTHER))
    assert fence.due(Epoch(2)) is None
    assert "another node is primary" in (fence.refusal(Epoch(2)) or "")
    assert fence.highest_epoch == 4


def test_a_demoted_node_knows_whom_it_follows_without_its_page(page: WatermarkPage) -> None:
    fence = Fence(page, ME, PersonsWord(None), Reign(Epoch(3), OTHER))
    assert fence.seen == Reign(Epoch(3), OTHER)
    assert fence.due(Epoch(2)) is None
    assert "fenced" in (fence.refusal(Epoch(2)) or "")


def test_a_node_with_another_key_does_not_begin_it(page: WatermarkPage) -> None:
    fence = Fence(page, OTHER, PersonsWord(None), REIGN)
    assert fence.due(Epoch(2)) is None
    assert "fenced" in (fence.refusal(Epoch(2)) or "")


def test_a_person_may_overrule_a_reign_that_is_due(page: WatermarkPage) -> None:
    fence = Fence(page, ME, PersonsWord("5/beef"), REIGN)
    assert fence.due(Epoch(2)) == REIGN
    assert fence.highest_epoch == 5
