"""Bars on a terminal, and what went to a far store and came from it beside them."""

import os
import sys
from contextlib import suppress

import pytest

from fusejournal.cli.progress import progress_bar, traffic_words
from fusejournal.objects.store import ObjectTraffic


def test_traffic_is_told_with_its_rate() -> None:
    traffic = ObjectTraffic()
    assert traffic_words(None, 1) == ""
    assert traffic_words(traffic, 1) == ""
    traffic.sent_bytes = 3 << 20
    assert traffic_words(traffic, 2) == "3.0 MiB sent, 1.5 MiB/s"
    traffic.received_bytes = 1 << 20
    assert traffic_words(traffic, 0) == "3.0 MiB sent, 1.0 MiB read, 40.0 MiB/s"
    traffic.is_away = True
    assert traffic_words(traffic, 1) == "no answer: trying again"


def test_it_stands_beside_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    traffic = ObjectTraffic()
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        bar = progress_bar("storing", quiet=False, in_bytes=False, traffic=lambda: traffic)
        with bar as advance:
            traffic.sent_bytes = 5 << 20
            advance(3, 10)
    raw = b""
    with suppress(OSError):  # its end, on a terminal
        while piece := os.read(master, 1 << 16):
            raw += piece
    shown = raw.decode()
    os.close(master)
    assert "storing" in shown
    assert "3/10" in shown
    assert "5.0 MiB sent" in shown
