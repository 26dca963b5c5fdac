"""Retention: what is known of peers that take nothing, and how long the journal is kept for them,
across restarts and deaths, too."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from fusejournal.config import ReplicationConfig
from fusejournal.replication import retention as retention_module
from fusejournal.replication import supervisor as supervisor_module
from fusejournal.replication.peers import Peer, PeerBook
from fusejournal.replication.receive_session import Receiving
from fusejournal.types import Seq
from fusejournal.wire.session import FAILED, FULL
from tests.support.pairs import level, mirror_and_primary, peer_status, running, until
from tests.support.volumes import OpenVolume, open_volume

pytestmark = pytest.mark.mount


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_BOOK_SECONDS", 0.02)
    monkeypatch.setattr(supervisor_module, "_BACKLOG_SECONDS", 0.02)


def written(directory: Path) -> Peer:
    """The values that the file has of the one peer."""
    (peer,) = PeerBook.load(directory / "state").list()
    return peer


async def known_and_away(tmp_path: Path, **config: Any) -> None:
    """Leave a primary whose peer was level; and no node at the peer's address."""
    async with mirror_and_primary(tmp_path, **config) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        status = lambda: peer_status(primary)  # noqa: E731
        await until("the primary knows", lambda: status().lag_entries == 0)


def mounted_alone(tmp_path: Path, primary: OpenVolume, **config: Any) -> None:
    peers = {"east": str(written(tmp_path / "primary").address)}
    primary.replicate(ReplicationConfig(peers=peers, **config))


@pytest.mark.parametrize("paused", [True, False])
async def test_watermarks_outlive_the_process(tmp_path: Path, paused: bool) -> None:
    await known_and_away(tmp_path)
    head_seq = written(tmp_path / "primary").acked_seq
    assert head_seq > 0
    with open_volume(tmp_path / "primary") as primary:
        mounted_alone(tmp_path, primary)
        if paused:
            primary.replication.local.book.pause("east")
        async with running(primary):
            status = peer_status(primary)
            assert (status.acked_seq, status.applied_seq) == (head_seq, head_seq)
            assert status.lag_entries == primary.volume.journal.head_seq - head_seq < 5


async def test_it_is_written_down_when_a_peer_comes_and_goes(tmp_path: Path) -> None:
    await known_and_away(tmp_path)
    address = str(written(tmp_path / "primary").address)
    with (
        open_volume(tmp_path / "primary") as primary,
        open_volume(tmp_path / "mirror", mirror=True) as mirror,
    ):
        mounted_alone(tmp_path, primary)
        mirror.replicate(ReplicationConfig(), address)
        async with running(primary):
            assert written(primary.directory).left_seq is not None
            async with running(mirror):
                await until("it is here", lambda: written(primary.directory).left_seq is None)
                primary.work(1, start=50)
                await until("the mirror is level", level(primary, mirror))
                await until("the primary knows", lambda: peer_status(primary).lag_entries == 0)
            head_seq = primary.volume.journal.head_seq
            await until("it has left", lambda: written(primary.directory).left_seq == head_seq)
            assert written(primary.directory).acked_seq == head_seq
            primary.work(1, start=60)
            await trio.sleep(0.3)  # it is tried again, in vain
            assert written(primary.directory).left_seq == head_seq


async def test_who_was_there_at_a_death_has_left_by_then(tmp_path: Path) -> None:
    """The process crashed while the peer was there; its next one finds no peer."""
    await known_and_away(tmp_path)
    book = PeerBook.load(tmp_path / "primary" / "state")
    book.note_here("east")
    book.save()
    with open_volume(tmp_path / "primary") as primary:
        head_seq = primary.volume.journal.head_seq
        mounted_alone(tmp_path, primary, keep_bytes=1 << 20)
        async with running(primary):
            await until("it is noted", lambda: written(primary.directory).left_seq == head_seq)
            primary.create("large", b"x" * (2 << 20))
            await until("it is told", says(primary, "needs full copy"))
            assert "are kept for it" in (peer_status(primary).last_error or "")


async def test_a_peer_that_is_being_removed_acknowledges_to_nobody(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("it is here", says(primary, "streaming"))
        book = primary.replication.local.book
        peer = book.get("east")
        book.remove("east")  # and the file is not saved yet
        primary.work(3, start=10)
        await until("the mirror is level", level(primary, mirror))
        await until("the primary knows", lambda: peer_status(primary).lag_entries == 0)
        assert peer_status(primary).errors == 0
        book.put_back("east", peer)


def says(primary: OpenVolume, state: str) -> Callable[[], bool]:
    return lambda: peer_status(primary).state == state


async def test_a_pause_does_not_keep_the_journal_for_ever(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path, keep_bytes=1 << 20) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        primary.replication.local.book.pause("east")
        primary.replication._peers_changed()
        await until("it is paused", says(primary, "paused"))
        primary.create("large", b"x" * (2 << 20))
        await until("it is told", says(primary, "needs full copy"))


@pytest.mark.parametrize("trouble", [FULL, FAILED])
async def test_nor_does_a_mirror_that_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    async with mirror_and_primary(tmp_path, keep_bytes=1 << 20) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        monkeypatch.setattr(Receiving, "trouble", lambda _: (trouble, "trouble"))
        mirror.receiver._shared.wakeup.set()
        await until("it is in trouble", says(primary, f"mirror {trouble}"))
        await trio.sleep(0.1)
        assert says(primary, f"mirror {trouble}")()
        primary.create("large", b"x" * (2 << 20))
        await until("it is told", says(primary, "needs full copy"))


async def test_a_clock_that_was_wrong_for_a_moment_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is at a boot without a battery: 1970 when the peer leaves, and then the truth."""
    await known_and_away(tmp_path)
    book = PeerBook.load(tmp_path / "primary" / "state")
    book.note_here("east")
    book.save()
    monkeypatch.setattr(time, "time", lambda: 100.0)
    with open_volume(tmp_path / "primary") as primary:
        mounted_alone(tmp_path, primary)
        async with running(primary):
            await until("it is noted", lambda: written(primary.directory).left_at == 100.0)
            monkeypatch.undo()
            primary.work(1, start=70)
            shipper = primary.replication._shippers["east"][0]
            assert shipper._retention.overdue() is None
            assert not says(primary, "needs full copy")()


async def test_days_are_counted_while_the_node_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over restarts, whatever the clock says."""
    await known_and_away(tmp_path)
    now = [0.0]
    monkeypatch.setattr(retention_module, "_now", lambda: now[0])
    monkeypatch.setattr(retention_module, "_NOTE_SECONDS", 0.0)
    for day, state in ((16.0, "connecting"), (15.0, "needs full copy")):
        now[0] = 0.0
        with open_volume(tmp_path / "primary") as primary:
            mounted_alone(tmp_path, primary, keep_days=30.0)
            async with running(primary):
                primary.work(1, start=int(day) * 100)
                retention = primary.replication._shippers["east"][0]._retention
                await until("it is counted", lambda: retention._since is not None)  # noqa: B023
                least = written(primary.directory).away_seconds + day * 86000
                now[0] = day * 86400.0
                away = lambda: written(primary.directory).away_seconds  # noqa: E731
                await until("it is noted", lambda: away() > least)  # noqa: B023
                await until(f"it is {state}", says(primary, state))


def test_a_book_of_the_version_before(tmp_path: Path) -> None:
    book = PeerBook(tmp_path)
    book.add("east", None)
    book.note_left("east", Seq(7), 5.0)
    book.save()
    raw = json.loads(book.path.read_text())
    for peer in raw["peers"]:
        del peer["away_seconds"]
    book.path.write_text(json.dumps(raw))
    assert PeerBook.load(tmp_path).get("east") == book.get("east")
