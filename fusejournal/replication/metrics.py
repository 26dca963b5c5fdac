"""Metrics in Prometheus' text format, on a local address.

A scrape asks the node for its status, as ``fusejournal status`` does, and turns it into samples:
nothing is counted twice. The server is prometheus-client's own, in a thread, which asks the event
loop.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/."""

from collections.abc import Callable, Iterator
from ipaddress import ip_address
from itertools import accumulate
from typing import Any

import trio
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from fusejournal.errors import FusejournalError, UsageError
from fusejournal.wire.address import parse_address

_NODE_GAUGES = {
    "head_seq": "Last entry of the journal",
    "durable_seq": "Last entry on the disk",
    "checkpoint_seq": "Last entry known to be in the backing on its disk",
    "journal_bytes": "What the journal's segments occupy",
    "segments": "Segments of the journal",
    "disk_free_bytes": "Space left under the state directory",
    "backing_free_bytes": "Space left in the backing",
}
_PEER_GAUGES = {
    "shipped_seq": "Last entry sent to the peer",
    "acked_seq": "Last entry that the peer has on its disk",
    "applied_seq": "Last entry that the peer has applied",
    "lag_entries": "Entries that the peer has not applied",
    "lag_bytes": "What of the journal the peer has not applied, about",
    "lag_seconds": "For how long the peer has lacked something",
    "batches_in_flight": "Batches sent and not acknowledged",
    "compress_level": "The zstd level the link gets",
}
_PEER_COUNTERS = {
    "batches": "Batches sent",
    "content_bytes": "Bytes of entries sent, before compression",
    "sent_bytes": "Bytes of entries sent, after compression",
    "resent_entries": "Entries sent again after a broken session",
    "sessions": "Sessions begun",
    "errors": "Sessions that ended with an error",
}
_MIRROR_GAUGES = {
    "source_head_seq": "Last entry of the primary, as far as it has said",
    "received_seq": "Last entry received",
    "applied_seq": "Last entry applied",
    "lag_entries": "Entries of the primary that are not applied here",
    "lag_seconds": "For how long an entry of the primary has not been applied here",
}
_MIRROR_COUNTERS = {
    "received_bytes": "Bytes of entries received, as sent",
    "batches": "Batches received",
    "duplicates": "Batches received that were here already",
}
STATES = (
    "connecting",
    "catching up",
    "streaming",
    "mirror full",
    "mirror failed",
    "paused",
    "diverged",
    "refused",
    "needs full copy",
)


class NodeCollector(Collector):
    """Makes samples of what *status*, called in the event loop's thread, returns."""

    def __init__(self, status: Callable[[], dict[str, Any]], token: Any) -> None:
        self._status = status
        self._token = token

    def collect(self) -> Iterator[Metric]:
        """See the base."""
        try:
            status = trio.from_thread.run_sync(self._status, trio_token=self._token)
        except trio.RunFinishedError:
            return
        volume = status["name"]
        for key, text in _NODE_GAUGES.items():
            yield _gauge(f"fusejournal_{key}", text, ["volume"], [([volume], status[key])])
        flushes = CounterMetricFamily(
            "fusejournal_flush_seconds", "What flushes of the journal took", labels=["volume"]
        )
        flushes.add_metric([volume], status["flush_seconds"])
        yield flushes
        count = CounterMetricFamily(
            "fusejournal_flushes", "Flushes of the journal", labels=["volume"]
        )
        count.add_metric([volume], status["flushes"])
        yield count
        yield _waits(volume, status["waits"])
        yield _gauge(
            "fusejournal_degraded",
            "What is wrong with the volume: how many lines status has for it",
            ["volume"],
            [([volume], len(status["degraded"]))],
        )
        replication = status.get("replication")
        if replication is not None:
            yield from _peers(volume, replication["peers"])
            if "mirror" in replication:
                yield from _mirror(volume, replication["mirror"])

    def describe(self) -> Iterator[Metric]:
        """Nothing is asked of the node before the first scrape."""
        return iter(())


def _waits(volume: str, waits: dict[str, Any]) -> Metric:
    family = HistogramMetricFamily(
        "fusejournal_fsync_seconds",
        "How long callers waited for the disk, and for mirrors where they wait for those",
        labels=["volume"],
    )
    bounds = [*map(str, waits["bounds"]), "+Inf"]
    buckets = list(zip(bounds, accumulate(waits["counts"]), strict=True))
    family.add_metric([volume], buckets, waits["seconds"])
    return family


def _gauge(name: str, text: str, labels: list[str], samples: list[tuple[list[str], Any]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _peers(volume: str, peers: list[dict[str, Any]]) -> Iterator[Metric]:
    labels = ["volume", "peer"]
    for key, text in _PEER_GAUGES.items():
        samples = [([volume, peer["name"]], peer[key]) for peer in peers]
        yield _gauge(f"fusejournal_peer_{key}", text, labels, samples)
    for key, text in _PEER_COUNTERS.items():
        counter = CounterMetricFamily(f"fusejournal_peer_{key}", text, labels=labels)
        for peer in peers:
            counter.add_metric([volume, peer["name"]], peer[key])
        yield counter
    states = GaugeMetricFamily(
        "fusejournal_peer_state", "1 for the state a peer is in", labels=[*labels, "state"]
    )
    for peer in peers:
        for state in STATES:
            states.add_metric([volume, peer["name"], state], float(peer["state"] == state))
    yield states


def _mirror(volume: str, mirror: dict[str, Any]) -> Iterator[Metric]:
    for key, text in _MIRROR_GAUGES.items():
        yield _gauge(f"fusejournal_mirror_{key}", text, ["volume"], [([volume], mirror[key])])
    for key, text in _MIRROR_COUNTERS.items():
        counter = CounterMetricFamily(f"fusejournal_mirror_{key}", text, labels=["volume"])
        counter.add_metric([volume], mirror[key])
        yield counter


async def serve_metrics(listen: str, status: Callable[[], dict[str, Any]]) -> None:
    """Serve until cancelled. Raises UsageError for an address that is not local,
    FusejournalError when nothing can listen there."""
    address = parse_address(listen)
    host = "127.0.0.1" if address.host in ("", "localhost") else address.host
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise UsageError(
            f"metrics.listen: {listen}: not an address of the loopback, and metrics have no lock: "
            "let a proxy show them elsewhere"
        )
    registry = CollectorRegistry()
    registry.register(NodeCollector(status, trio.lowlevel.current_trio_token()))
    try:
        server, thread = start_http_server(address.port, host, registry)
    except OSError as error:
        raise FusejournalError(f"metrics.listen: {listen}: {error.strerror}") from None
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(server.shutdown)
        server.server_close()
        thread.join()
