"""Fixtures of the tests of replication."""

import pytest

from fusejournal.replication import receiver, ship_session, shipper


@pytest.fixture
def quick_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that ping, sign and try again sooner than is their custom."""
    monkeypatch.setattr(shipper, "_REFUSED_SECONDS", 0.2)
    monkeypatch.setattr(ship_session, "PING_SECONDS", 0.05)
    monkeypatch.setattr(receiver, "_SIGN_SECONDS", 0.4)
