"""The JSON objects of statuses, which scripts read, and what comes back from them."""

import json
from dataclasses import replace

import pytest

from fusejournal.errors import FusejournalError
from fusejournal.node.volume_status import VolumeStatus
from fusejournal.volume.trouble import TroubleKind
from tests.golden.files import golden
from tests.golden.statuses import PRIMARY, STATUSES, STOPPED


@pytest.mark.parametrize("name", STATUSES)
def test_the_json_of_a_status_is_as_ever(name: str) -> None:
    """To the order of the keys: people read them, too."""
    assert json.dumps(STATUSES[name].to_json()) == json.dumps(golden("status-v1")[name])


@pytest.mark.parametrize("name", STATUSES)
def test_a_status_comes_back_from_its_json(name: str) -> None:
    assert VolumeStatus.from_json(golden("status-v1")[name]) == STATUSES[name]


def test_a_later_layer_says_more() -> None:
    later = PRIMARY.to_json() | {"weather": "fine"}
    later["replication"] = later["replication"] | {"mood": "good"}
    assert VolumeStatus.from_json(later) == PRIMARY


def test_a_layer_of_a_version_before_says_sentences_alone() -> None:
    """A reader of before passes over the kinds."""
    earlier = PRIMARY.to_json()
    del earlier["troubles"]
    found = VolumeStatus.from_json(earlier)
    assert found.degraded == PRIMARY.degraded
    assert {one.kind for one in found.troubles} == {TroubleKind.OTHER}
    assert replace(found, troubles=PRIMARY.troubles) == PRIMARY


@pytest.mark.parametrize("value", [None, "dark", [7], [["it is dark"]], [{"text": "it is dark"}]])
def test_troubles_that_are_none_are_no_status(value: object) -> None:
    told = PRIMARY.to_json() | {"troubles": value}
    with pytest.raises(FusejournalError, match="the layer"):
        VolumeStatus.from_json(told)
    told["degraded"] = told.pop("troubles")
    with pytest.raises(FusejournalError, match="the layer"):
        VolumeStatus.from_json(told)


def test_a_layer_that_says_too_little_is_named() -> None:
    little = STOPPED.to_json()
    del little["mountpoint"]
    with pytest.raises(FusejournalError, match="has no 'mountpoint'; 'fusejournal restart"):
        VolumeStatus.from_json(little)
