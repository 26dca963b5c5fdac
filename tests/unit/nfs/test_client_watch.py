"""The times at which new connections of NFS clients are worth an entry in the volume."""

from fusejournal.nfs.client_watch import PAUSE_SECONDS, POLL_SECONDS, NewConnections
from fusejournal.nfs.connections import ClientConnection


def one(port: int) -> ClientConnection:
    return ClientConnection("192.0.2.9", 2049, "192.0.2.3", port)


def writes_of(new: NewConnections, seconds: int, *, coming: bool) -> int:
    """The number of writes while one connection more has come, and one has gone, each time that
    is looked; or all stay."""
    writes = 0
    for number in range(int(seconds / POLL_SECONDS)):
        now, found = 1000 + number * POLL_SECONDS, (one(1 + number * coming),)
        if new.are_due(now, found):
            new.note_kept(now, found)
            writes += 1
    return writes


def test_a_client_that_comes_is_written_at_once_and_not_again() -> None:
    assert writes_of(NewConnections(), 60, coming=False) == 1


def test_one_that_connects_again_and_again_is_written_ever_less_often() -> None:
    """Any host that reaches the server can; each write is an entry, and goes to all mirrors."""
    assert writes_of(NewConnections(), 86400, coming=True) < 170


def test_those_that_have_gone_are_no_reason() -> None:
    new = NewConnections()
    new.note_kept(0.0, (one(1), one(2)))
    assert not new.are_due(100.0, (one(2),))
    # Nor are those that are back at once (a client takes its port again).
    assert not new.are_due(100.5, (one(1), one(2)))


def test_one_that_comes_after_a_quiet_time_does_not_wait() -> None:
    new = NewConnections()
    writes_of(new, 3600, coming=True)
    assert not new.are_due(10_000.0, ())
    assert new.are_due(10_000.5, (one(9),))
    new.note_kept(10_000.5, (one(9),))
    assert new.are_due(10_000.5 + PAUSE_SECONDS, (one(10),))
