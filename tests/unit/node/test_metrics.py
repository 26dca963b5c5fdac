"""The metrics that a status holds."""

from prometheus_client.core import Metric

from fusejournal.node.metrics import samples
from fusejournal.node.volume_status import VolumeStatus
from tests.golden.statuses import MIRROR_NODE, PRIMARY


def _values(status: VolumeStatus) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families: list[Metric] = list(samples(status))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_of_a_primary() -> None:
    found = _values(PRIMARY)
    volume, peer = ("volume", "data"), ("peer", "east")
    assert found["fusejournal_head_seq", (volume,)] == 32_000
    assert found["fusejournal_flushes_total", (volume,)] == 100
    assert found["fusejournal_fsync_seconds_bucket", (("le", "1.0"), volume)] == 99
    assert found["fusejournal_fsync_seconds_bucket", (("le", "+Inf"), volume)] == 100
    assert found["fusejournal_degraded", (volume,)] == 2
    assert found["fusejournal_peer_lag_seconds", (peer, volume)] == 7.25
    assert found["fusejournal_peer_sent_bytes_total", (peer, volume)] == 250_000
    assert found["fusejournal_peer_state", (peer, ("state", "connecting"), volume)] == 1
    assert not any(name.startswith("fusejournal_mirror") for name, _ in found)


def test_of_a_mirror() -> None:
    found = _values(MIRROR_NODE)
    volume = ("volume", "copy")
    assert found["fusejournal_mirror_applied_seq", (volume,)] == 18_000
    assert found["fusejournal_mirror_duplicates_total", (volume,)] == 1
