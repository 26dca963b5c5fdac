"""The problems of a volume, and the keys that alerts are known by."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from fusejournal.agent.overview import Overview
from fusejournal.agent.problems import Problem, nearly_full, problems_of
from fusejournal.config import AlertsConfig
from fusejournal.node.state_dir import load_state
from fusejournal.node.volume_status import Condition, VolumeStatus
from fusejournal.replication.states import MirrorState, PeerState
from fusejournal.replication.status import MirrorStatus, PeerStatus
from fusejournal.volume.trouble import Trouble, TroubleKind
from tests.golden.statuses import MIRROR, MIRROR_NODE, PEER, PRIMARY, REPLICATION, STATUSES
from tests.support.nodes import make_volume

_ALONE: Final = replace(PRIMARY, replication=None, troubles=())


_Usage = namedtuple("_Usage", ("total", "used", "free"))


def _keys(status: VolumeStatus) -> list[str]:
    return [one.key for one in problems_of(status)]


def test_every_problem_is_named_once() -> None:
    for status in STATUSES.values():
        found = problems_of(status)
        assert len({one.key for one in found}) == len(found)
        assert {*status.degraded} <= {one.words for one in found}


def test_a_fenced_primary_is_told_as_fenced() -> None:
    """By its kind: its sentence begins as that of a failed disk, and may be a peer's."""
    for words in (
        "read-only: fenced: another node is primary, in reign 2/00000000000000ab",
        "read-only: peer east: east-data has seen a primary of epoch 2",
        "read-only: disk error 5",
    ):
        fenced = replace(_ALONE, troubles=(Trouble(TroubleKind.FENCED, words),))
        assert problems_of(fenced) == [Problem("fenced", words, True)]


@pytest.mark.parametrize("kind", sorted({*TroubleKind} - {TroubleKind.OTHER, TroubleKind.PAUSED}))
def test_a_kind_is_a_key(kind: TroubleKind) -> None:
    """It stays while the sentence changes."""
    for words in ("damage at 12", "the clock of reign 13"):
        status = replace(_ALONE, troubles=(Trouble(kind, words), Trouble(kind, words, "east")))
        assert _keys(status) == [kind.value, f"{kind.value}:east"]
        twice = replace(_ALONE, troubles=(Trouble(kind, words), Trouble(kind, words)))
        assert _keys(twice) == [kind.value, f"{kind.value}:2"]


def test_the_keys_that_alerts_had_before_stay() -> None:
    """An alert that is open, or silenced, goes on as the same over an upgrade."""
    kept = {
        "failed", "fenced", "damage", "no-space", "scrub", "copy", "compression", "layer",
        "unclean", "rejoin", "clock", "mirrors",
    }  # fmt: skip
    assert kept <= {kind.value for kind in TroubleKind}


def test_a_layer_of_a_version_before_says_no_kinds() -> None:
    """Its sentences are told apart by their words, but for what changes in them."""
    told = _ALONE.to_json()
    del told["troubles"]
    for number in (3, 4):
        told["degraded"] = [f"peer 'east': {number} entries", "read-only: fenced"]
        found = problems_of(VolumeStatus.from_json(told))
        assert [one.key for one in found] == [
            "degraded:peer #: # entries",
            "degraded:read-only: fenced",
        ]
        assert [one.words for one in found] == told["degraded"]


def test_a_later_layer_has_kinds_that_are_not_known_here() -> None:
    told = _ALONE.to_json()
    told["troubles"] = [{"kind": "eclipse", "text": "it is dark", "since": 1}]
    told["degraded"] = ["it is dark"]
    assert problems_of(VolumeStatus.from_json(told)) == [Problem("eclipse", "it is dark", True)]


def test_a_peer_in_trouble_is_one_problem_with_advice() -> None:
    peer = replace(PEER, state=PeerState.REFUSED, last_error="does not know this node")
    words = "peer east: refused: does not know this node"
    status = replace(
        _ALONE,
        replication=replace(REPLICATION, peers=(peer,)),
        troubles=(Trouble(TroubleKind.REFUSED, words, "east"),),
    )
    assert problems_of(status) == [Problem("refused:east", words, True, "is it mounted?")]


def test_a_peer_that_stays_away_is_one_alert_that_becomes_worse() -> None:
    early = replace(_ALONE, replication=REPLICATION)
    late = replace(early, troubles=PRIMARY.troubles[:1])
    found = [problems_of(status) for status in (early, late)]
    assert [[(one.key, one.is_bad, one.advice) for one in each] for each in found] == [
        [("peer-away:east", False, "is it mounted?")],
        [("peer-away:east", True, "is it mounted?")],
    ]


def test_a_peer_that_takes_nothing_has_no_lag_of_its_own() -> None:
    """It is one cause."""
    behind = replace(PEER, lag_seconds=70.0)
    streaming = replace(behind, state=PeerState.STREAMING, last_error=None)

    def keys(peer: PeerStatus, *troubles: Trouble) -> list[str]:
        replication = replace(REPLICATION, peers=(peer,))
        return _keys(replace(_ALONE, replication=replication, troubles=troubles))

    assert keys(streaming) == ["lag:east"]
    assert keys(behind) == ["peer-away:east"]
    for kind in (TroubleKind.PEER_AWAY, TroubleKind.PEER_FULL):
        assert keys(streaming, Trouble(kind, "it is away", "east")) == [f"{kind}:east"]
        assert "lag:east" in keys(streaming, Trouble(kind, "it is away", "west"))
    assert "lag:east" in keys(streaming, Trouble(TroubleKind.CLOCK, "its clock", "east"))


def test_a_peer_that_was_paused_is_no_problem_but_its_lag_may_be() -> None:
    peer = replace(PEER, state=PeerState.PAUSED, last_error=None, lag_seconds=50.0)
    paused = Trouble(TroubleKind.PAUSED, "peer east: paused", "east")

    def problems(peer: PeerStatus, *others: Trouble) -> list[Problem]:
        replication = replace(REPLICATION, peers=(peer,))
        return list(
            problems_of(replace(_ALONE, replication=replication, troubles=(paused, *others)))
        )

    assert problems(peer) == []
    (lag,) = problems(replace(peer, lag_seconds=70.0))
    assert (lag.key, lag.is_bad) == ("lag:east", False)
    assert "70 s, because it is paused" in lag.words
    assert [one.key for one in problems(peer, Trouble(TroubleKind.CLOCK, "its clock"))] == ["clock"]


def test_a_mirror_whose_primary_is_away_has_no_lag_of_its_own() -> None:
    def keys(mirror: MirrorStatus, *troubles: Trouble) -> list[str]:
        replication = replace(REPLICATION, peers=(), mirror=mirror)
        return _keys(replace(MIRROR_NODE, replication=replication, troubles=troubles))

    away = replace(MIRROR, state=MirrorState.CONNECTING, heard_seconds_ago=70.0)
    assert keys(MIRROR) == ["lag"]
    assert keys(away) == ["primary-away"]
    assert keys(away, Trouble(TroubleKind.PRIMARY_AWAY, "it is away")) == ["primary-away"]
    assert keys(replace(MIRROR, trouble="no space")) == []


def test_a_disk_that_fills_up_is_one_problem_that_becomes_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_volume(tmp_path / "state", "data")
    state = load_state(tmp_path / "state")
    for free_mib, is_bad in ((40_000, None), (3000, False), (1025, False), (1023, True), (0, True)):
        usage = _Usage(100 << 30, 0, free_mib << 20)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        found = problems_of(replace(_ALONE, disk_free_bytes=usage.free))
        found += nearly_full(state, found)
        assert [(one.key, one.is_bad) for one in found] == (
            [] if is_bad is None else [("space", is_bad)]
        )


def test_what_is_a_trouble_and_a_figure_is_one_problem() -> None:
    low = replace(
        _ALONE,
        disk_free_bytes=5 << 20,
        troubles=(Trouble(TroubleKind.LOW_SPACE, "only 5 MiB are left under /state"),),
    )
    assert _keys(low) == ["space"]
    full = replace(
        MIRROR_NODE,
        replication=replace(
            REPLICATION, peers=(), mirror=replace(MIRROR, trouble="no space", lag_seconds=0.0)
        ),
        troubles=(Trouble(TroubleKind.NO_SPACE, "takes nothing more for now: no space"),),
    )
    assert _keys(full) == ["no-space"]


def test_a_volume_without_a_layer_is_a_problem() -> None:
    stopped = replace(_ALONE, state=Condition.STOPPED)
    (found,) = problems_of(stopped)
    assert found.to_json() == {
        "key": "stopped",
        "words": "no layer serves it",
        "severity": "warning",
        "advice": f"fusejournal mount {stopped.name}",
    }
    low = problems_of(replace(stopped, disk_free_bytes=5 << 20))
    assert "only 5 MiB are left" in low[1].words


def test_a_policy_of_its_own_decides(tmp_path: Path) -> None:
    """By the figures of the volume's configuration; none of them is in a status."""
    peer = replace(PEER, lag_seconds=200.0, last_error=None, state=PeerState.STREAMING)
    status = replace(
        PRIMARY, troubles=(), disk_free_bytes=5 << 30, backing_free_bytes=2 << 30,
        replication=replace(REPLICATION, peers=(peer,), mirror=None),
    )  # fmt: skip
    mirror = replace(MIRROR, state=MirrorState.WAITING, heard_seconds_ago=70.0, lag_seconds=0.0)
    silent = replace(
        MIRROR_NODE, troubles=(), replication=replace(REPLICATION, peers=(), mirror=mirror)
    )

    def keys(**policy: float) -> list[str]:
        found = [problems_of(one, AlertsConfig(**policy)) for one in (status, silent)]  # type: ignore[arg-type]
        return [one.key for each in found for one in each]

    assert keys() == ["lag:east", "primary-away"]
    assert keys(lag_seconds=300.0, silent_seconds=80.0) == []
    assert keys(lag_seconds=300.0, silent_seconds=80.0, free_bytes=6 << 30) == ["space"]
    assert keys(lag_seconds=300.0, silent_seconds=80.0, backing_free_bytes=3 << 30) == [
        "backing-space"
    ]
    make_volume(tmp_path / "state", "data")
    state = load_state(tmp_path / "state")
    (found,) = nearly_full(state, (), AlertsConfig(free_share=1.0))
    assert "is nearly full" in found.words
    assert list(nearly_full(state, (), AlertsConfig(free_share=0.0))) == []


def test_an_agent_goes_by_the_configuration_of_each_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads that anew at each look; one that cannot be read is as none."""
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))
    monkeypatch.setenv("FUSEJOURNAL_CONFIG_ROOT", str(tmp_path / "etc"))
    (tmp_path / "etc").mkdir()
    make_volume(tmp_path / "state", "data")

    def keys() -> set[str]:
        (volume,) = Overview().volumes()
        return {one["key"] for one in volume["problems"]} - {"stopped"}

    before = keys()
    (tmp_path / "etc" / "data.toml").write_text('[alerts]\nfree_bytes = "1048576TiB"\n')
    assert keys() == before | {"space"}
    (tmp_path / "etc" / "data.toml").write_text("[alerts]\nfree_bytes = -1\n")
    assert keys() == before
