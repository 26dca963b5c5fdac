"""Metrics as Prometheus reads them, of a real node."""

import os
import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.layer import Layer

pytestmark = pytest.mark.mount


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _scrape(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_of_a_primary(tmp_path: Path) -> None:
    port = _free_port()
    with Layer(tmp_path) as layer:
        layer.start("--metrics", f"127.0.0.1:{port}", "--peer", "east=127.0.0.1:9", "--insecure")
        volume = ("volume", "volume")
        before = _scrape(port)
        with open(layer.mountpoint / "file", "wb") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
        after = _scrape(port)
        assert (
            after["fusejournal_head_seq", (volume,)]
            == before["fusejournal_head_seq", (volume,)] + 2
        )
        assert (
            after["fusejournal_fsync_seconds_count", (volume,)]
            == before["fusejournal_fsync_seconds_count", (volume,)] + 1
        )
        assert (
            after["fusejournal_fsync_seconds_bucket", (("le", "+Inf"), volume)]
            == after["fusejournal_fsync_seconds_count", (volume,)]
        )
        peer = ("peer", "east")
        assert after["fusejournal_peer_lag_entries", (peer, volume)] > 0
        assert after["fusejournal_peer_state", (peer, ("state", "connecting"), volume)] == 1
        assert after["fusejournal_peer_batches_total", (peer, volume)] == 0
        layer.stop()


def test_metrics_are_for_this_machine_alone(tmp_path: Path) -> None:
    with Layer(tmp_path) as layer:
        done = layer.run(*layer.mount_arguments("--metrics", "0.0.0.0:7799", "-f"), check=False)
        assert done.returncode == 2
        assert "loopback" in done.stderr
        assert not layer.is_mounted()
