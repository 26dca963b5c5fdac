"""Metrics in Prometheus' text format, on a local address, for all on this machine.

The server is a process of its own (metrics_server.py), because any user may connect to it: it has
no privileges, and takes no descriptor, thread or memory of the layer. It inherits the listening
socket and one end of a socket pair, on which it asks for the status in the control socket's
protocol, and can ask for nothing else; the layer answers one request at a time, with a pause after
each. It ends when its layer does, because the pair then has an end. (PR_SET_PDEATHSIG would not do:
it tells of the thread that started it, and trio's threads come and go.) One that dies is followed
by another; connections wait in the socket meanwhile.

:func:`samples` turns a status, as ``fusejournal status`` gets it, into metrics: nothing is counted
twice.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/; prctl(2)."""

import logging
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from itertools import accumulate
from typing import Any, Final

import trio
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from fusejournal.address import parse_address
from fusejournal.control.server import Command, serve_channel
from fusejournal.disk.process import WORKING_DIRECTORY, python_module
from fusejournal.errors import FusejournalError, UsageError
from fusejournal.node.volume_status import FlushWaits, VersionStatus, VolumeStatus
from fusejournal.replication.states import PeerState
from fusejournal.replication.status import MirrorStatus, PeerStatus

log = logging.getLogger(__name__)

_SERVER: Final = "fusejournal.node.metrics_server"
_BACKLOG: Final = 128
_ANSWER_PAUSE_SECONDS: Final = 0.05
_PAUSE_SECONDS_MIN: Final = 0.1
_PAUSE_SECONDS_MAX: Final = 30.0
_LASTING_SECONDS: Final = 60.0

_NODE_GAUGES = {
    "head_seq": "Last entry of the journal",
    "durable_seq": "Last entry on the disk",
    "checkpoint_seq": "Last entry known to be in the backing on its disk",
    "journal_bytes": "What the journal's segments occupy",
    "segments": "Segments of the journal",
    "disk_free_bytes": "Space left under the state directory",
    "backing_free_bytes": "Space left in the backing",
}
_VERSION_GAUGES = {
    "reachable": ("store_reachable", "1 if the store of versions was reached at the last look"),
    "looked": ("looked_timestamp_seconds", "When the store was looked at last"),
    "failures": ("failures", "Works on versions that failed, one after the other"),
    "count": ("count", "Versions of this history"),
    "protected": ("protected", "Those of them that are protected"),
    "unreadable": ("unreadable", "Versions that cannot be read"),
    "first_seq": ("first_seq", "The entry of the oldest version"),
    "last_seq": ("last_seq", "The entry of the newest version"),
    "last_made": ("last_made_timestamp_seconds", "When the newest version was made"),
    "made": ("made_timestamp_seconds", "When a version was made by schedule, or found, last"),
    "pruned": ("pruned_timestamp_seconds", "When things were pruned by schedule last"),
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


def samples(status: VolumeStatus) -> Iterator[Metric]:
    """Yields the metrics that *status*, of a running layer, holds."""
    volume = status.name
    for key, text in _NODE_GAUGES.items():
        yield _gauge(f"fusejournal_{key}", text, ["volume"], [([volume], getattr(status, key))])
    flushes = CounterMetricFamily(
        "fusejournal_flush_seconds", "What flushes of the journal took", labels=["volume"]
    )
    flushes.add_metric([volume], status.flush_seconds or 0.0)
    yield flushes
    count = CounterMetricFamily("fusejournal_flushes", "Flushes of the journal", labels=["volume"])
    count.add_metric([volume], status.flushes or 0)
    yield count
    if status.waits is not None:
        yield _waits(volume, status.waits)
    yield _gauge(
        "fusejournal_degraded",
        "What is wrong with the volume: how many lines status has for it",
        ["volume"],
        [([volume], len(status.degraded))],
    )
    yield _gauge(
        "fusejournal_disk_low",
        "1 if the space under the state directory comes to its end",
        ["volume"],
        [([volume], float(status.disk_low))],
    )
    if status.base_seq is not None:
        text = "Any moment from this entry on can be restored"
        yield _gauge("fusejournal_base_seq", text, ["volume"], [([volume], status.base_seq)])
    if status.versions is not None:
        yield from _versions(volume, status.versions)
    if status.replication is not None:
        yield from _peers(volume, status.replication.peers)
        if status.replication.mirror is not None:
            yield from _mirror(volume, status.replication.mirror)


def _versions(volume: str, versions: VersionStatus) -> Iterator[Metric]:
    for key, (name, text) in _VERSION_GAUGES.items():
        value = getattr(versions, key)
        if value is not None:
            samples = [([volume], float(value))]
            yield _gauge(f"fusejournal_versions_{name}", text, ["volume"], samples)


def _waits(volume: str, waits: FlushWaits) -> Metric:
    family = HistogramMetricFamily(
        "fusejournal_fsync_seconds",
        "How long callers waited for the disk, and for mirrors where they wait for those",
        labels=["volume"],
    )
    bounds = [*map(str, waits.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(waits.counts), strict=True))
    family.add_metric([volume], buckets, waits.seconds)
    return family


def _gauge(name: str, text: str, labels: list[str], samples: list[tuple[list[str], Any]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _peers(volume: str, peers: Sequence[PeerStatus]) -> Iterator[Metric]:
    labels = ["volume", "peer"]
    for key, text in _PEER_GAUGES.items():
        samples = [([volume, peer.name], getattr(peer, key)) for peer in peers]
        yield _gauge(f"fusejournal_peer_{key}", text, labels, samples)
    for key, text in _PEER_COUNTERS.items():
        counter = CounterMetricFamily(f"fusejournal_peer_{key}", text, labels=labels)
        for peer in peers:
            counter.add_metric([volume, peer.name], getattr(peer, key))
        yield counter
    states = GaugeMetricFamily(
        "fusejournal_peer_state", "1 for the state a peer is in", labels=[*labels, "state"]
    )
    for peer in peers:
        for state in PeerState:
            states.add_metric([volume, peer.name, state], float(peer.state == state))
    yield states


def _mirror(volume: str, mirror: MirrorStatus) -> Iterator[Metric]:
    for key, text in _MIRROR_GAUGES.items():
        samples = [([volume], getattr(mirror, key))]
        yield _gauge(f"fusejournal_mirror_{key}", text, ["volume"], samples)
    for key, text in _MIRROR_COUNTERS.items():
        counter = CounterMetricFamily(f"fusejournal_mirror_{key}", text, labels=["volume"])
        counter.add_metric([volume], getattr(mirror, key))
        yield counter


async def serve_metrics(listen: str, status: Callable[[], VolumeStatus]) -> None:
    """Serve until cancelled, which ends the process that does. Raises UsageError for an address
    that is not local, FusejournalError when nothing can listen there."""

    async def answer(_: dict[str, Any]) -> dict[str, Any]:
        return status().to_json()

    with _listen(listen) as listening:
        pause_seconds = _PAUSE_SECONDS_MIN
        while True:
            began = trio.current_time()
            why = await _run_server(listening, answer)
            if trio.current_time() - began >= _LASTING_SECONDS:
                pause_seconds = _PAUSE_SECONDS_MIN
            log.warning("the process that serves metrics ended, another follows: %s", why)
            await trio.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 2, _PAUSE_SECONDS_MAX)


def _listen(listen: str) -> socket.socket:
    address = parse_address(listen)
    host = "127.0.0.1" if address.host in ("", "localhost") else address.host
    try:
        ip = ip_address(host)
    except ValueError:
        ip = None
    if ip is None or not ip.is_loopback:
        raise UsageError(
            f"metrics.listen: {listen}: not an address of the loopback, and metrics have no lock: "
            "let a proxy show them elsewhere"
        )
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    try:
        return socket.create_server((host, address.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise FusejournalError(f"metrics.listen: {listen}: {reason}") from None


async def _run_server(listening: socket.socket, answer: Command) -> str:
    """Run one process to its end, and answer it. Returns why it ended."""
    ours, theirs = trio.socket.socketpair()
    with ours:
        with theirs:
            fds = listening.fileno(), theirs.fileno()
            process = await trio.lowlevel.open_process(
                python_module(_SERVER, *map(str, fds)),
                pass_fds=fds,
                cwd=WORKING_DIRECTORY,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            channel = trio.SocketStream(ours)
            await serve_channel(channel, {"status": answer}, _ANSWER_PAUSE_SECONDS)
            return "it closed its end"
        except trio.BrokenResourceError:
            return "it was cut off"
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()
