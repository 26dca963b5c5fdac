"""The alerts as metrics, in the text form of Prometheus, of an overview as the API has it.

Each series stands for the alerts of one server, volume, kind, severity and state, and is there as
long as there is one; the sums over all are always there, zero too. The words of an alert are in no
label, because they change: the page and the API have them.

Source: the exposition formats of Prometheus; docs/instrumenting/writing_exporters."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

METRICS_TYPE: Final = CONTENT_TYPE_LATEST
_SEVERITIES: Final = ("bad", "warning")
_STATES: Final = ("active", "acknowledged", "silenced")


class _Alerts(Collector):
    """The metrics of one overview."""

    def __init__(self, overview: Mapping[str, Any]) -> None:
        self._overview = overview

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, as the base class asks for them."""
        alerts = [_labels_of(one) for one in self._overview["alerts"]]
        of_state: Counter[tuple[str, ...]] = Counter(
            (severity, state) for *_, severity, state in alerts
        )
        yield _gauge(
            "fusejournal_alerts",
            "Alerts there are; silenced ones count as such, also where they are acknowledged",
            ("severity", "state"),
            (
                ((severity, state), of_state[severity, state])
                for severity in _SEVERITIES
                for state in _STATES
            ),
        )
        yield _gauge(
            "fusejournal_alert",
            "Alerts there are, of each server, volume and kind",
            ("server", "volume", "kind", "severity", "state"),
            Counter(alerts).items(),
        )
        agents = self._overview["agents"]
        yield _gauge(
            "fusejournal_server_up",
            "1 if the server's agent answers",
            ("server",),
            (((_text(one["name"]),), int(one["error"] is None)) for one in agents),
        )
        yield _gauge(
            "fusejournal_server_seen_timestamp_seconds",
            "When the server's agent answered last, since 1970",
            ("server",),
            (((_text(one["name"]),), one["seen_ns"] / 1e9) for one in agents if one["seen_ns"]),
        )


def alert_metrics(overview: Mapping[str, Any]) -> bytes:
    """Returns the metrics of *overview*: alerts and servers."""
    collected = CollectorRegistry(auto_describe=False)
    collected.register(_Alerts(overview))
    return generate_latest(collected)


def _labels_of(alert: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    server, volume = alert["agent"], alert["volume"]
    # What is behind the colon is which peer or user: another alert each, and no other kind.
    kind = alert["key"].removeprefix(f"{server}/{volume}/").partition(":")[0]
    state = "active"
    if alert["silenced"] is not None:
        state = "silenced"
    elif alert["acknowledged"] is not None:
        state = "acknowledged"
    return _text(server), _text(volume), _text(kind), alert["severity"], state


def _text(label: str) -> str:
    """Returns *label* as UTF-8 has it: what an agent sends may have halves of characters."""
    return label.encode("utf-8", "backslashreplace").decode()


def _gauge(
    name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]
) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for label, value in values:
        family.add_metric(label, value)
    return family
