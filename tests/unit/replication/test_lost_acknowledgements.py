"""Mirrors that lost what they acknowledged, and older copies of a node."""

import errno
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from fusejournal.config import ReplicationConfig
from fusejournal.operations import NewEpoch
from fusejournal.replication import fetch_lost as fetch_lost_module
from fusejournal.replication import ship_session as ship_session_module
from fusejournal.replication.fetch_lost import FetchedEntries
from fusejournal.replication.inquiry import ask_peers
from fusejournal.replication.mirror_applier import MirrorApplier
from fusejournal.replication.peer_record import PeerRecord
from fusejournal.types import Epoch, Reign, Seq
from fusejournal.volume.standing import Standing
from tests.support.losses import crash_system
from tests.support.pairs import (
    level,
    listens_at,
    peer_status,
    running,
    until,
)
from tests.support.reigns import Liar, begin, degraded, head, node_id, reign_of, welcome
from tests.support.volumes import OpenVolume, open_volume

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("quick_sessions")]


async def test_applying_may_be_behind_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a mirror has acknowledged comes back, though it has not applied the epoch's
    beginning; and it says which epoch it goes by."""
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror):
            peers = {"east": listens_at(mirror)}
            with open_volume(tmp_path / "primary", orderly=False) as primary:
                primary.work(3)
                primary.replicate(ReplicationConfig(peers=peers))
                async with running(primary):
                    await until("the mirror is level", level(primary, mirror))
                head_seq = primary.volume.journal.head_seq
            monkeypatch.setattr(MirrorApplier, "_limit", lambda _: Seq(0))
            crash_system(tmp_path / "primary" / "state", head_seq)
            with open_volume(tmp_path / "primary", orderly=False) as primary:
                assert primary.volume.journal.epoch == 2
                primary.work(3, start=10)
                primary.replicate(ReplicationConfig(peers=peers))
                last_seq = primary.volume.journal.head_seq
                async with running(primary):
                    await until("it has all", lambda: peer_status(primary).acked_seq == last_seq)
            assert mirror.volume.catalog.applied_seq == head_seq
            assert mirror.volume.journal.epoch == 2, "which it holds"
            assert mirror.replication.epoch == 2
            crash_system(tmp_path / "primary" / "state", head_seq + 3)
            with open_volume(tmp_path / "primary", begin=False) as primary:
                assert primary.volume.journal.epoch == 2
                replication = primary.replicate(ReplicationConfig(peers=peers))
                with trio.fail_after(20):
                    fetched = await ask_peers(
                        replication.local, primary.volume.journal, lambda _: None
                    )
                assert fetched.failures == []
                assert primary.volume.journal.head_seq == last_seq
                primary.opening.recover(read_only=False)
                begin(primary)
                assert primary.volume.journal.epoch == 3


async def test_a_mirror_that_lost_what_it_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is noticed, and does not count before it is level with what it had acknowledged."""
    with (
        open_volume(tmp_path / "mirror", mirror=True) as mirror,
        open_volume(tmp_path / "primary") as primary,
    ):
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        config: dict[str, Any] = {"mirrors": 1, "mirrors_timeout_seconds": 600.0}
        async with running(mirror):
            peers = {"east": listens_at(mirror)}
            primary.replicate(ReplicationConfig(peers=peers, **config))
            async with running(primary):
                primary.work(3)
                await until("the mirror is level", level(primary, mirror))
                await until("it counts", lambda: mirrors_seq(primary) == head(primary))
            assert mirrors_seq(primary) == 0  # no peer is there
        acked_seq = head(primary)
        address = peers["east"]
    uuid = primary.volume.journal.uuid
    # As put back from a copy that is older than anything.
    shutil.rmtree(tmp_path / "mirror")
    primary_again = open_volume(tmp_path / "primary")
    with (
        primary_again as primary,
        open_volume(tmp_path / "mirror", mirror=True, uuid=uuid) as mirror,
    ):
        mirror.replicate(ReplicationConfig(), address)
        primary.replicate(ReplicationConfig(peers=peers, **config))
        acks = ship_session_module.ShipSession._take_acks
        held = trio.Event()

        async def take_acks(*arguments: object) -> None:
            await held.wait()
            await acks(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(ship_session_module.ShipSession, "_take_acks", take_acks)
        async with running(mirror, primary):
            await until("it is noticed", lambda: "has lost entries" in degraded(primary))
            assert f"up to {acked_seq}" in degraded(primary)
            assert mirrors_seq(primary) == 0
            assert not primary.replication.quorum.has(Seq(1))
            (record,), book = primary.replication.records(), primary.replication.local.book
            assert record.acked_seq == 0, "what it owes is not what it has"
            record.save()
            peer = book.get("east")
            assert (peer.acked_seq, peer.on_disk_seq) == (acked_seq, 0)
            again = PeerRecord("east", record._shared)
            assert again.acked_seq == 0
            assert f"up to {acked_seq}" in str(again.trouble())
            held.set()
            await until("it counts again", lambda: mirrors_seq(primary) >= acked_seq)
            record.save()
            assert book.get("east").on_disk_seq >= acked_seq
            assert "has lost" not in degraded(primary)
    assert "had acknowledged" in caplog.text


def mirrors_seq(side: OpenVolume) -> int:
    seq = side.replication.status().mirrors_seq
    assert seq is not None
    return seq


async def test_one_mirror_under_two_names_counts_once(tmp_path: Path) -> None:
    with (
        open_volume(tmp_path / "mirror", mirror=True) as mirror,
        open_volume(tmp_path / "primary") as primary,
    ):
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror):
            port = listens_at(mirror).rpartition(":")[2]
            peers = {"east": f"127.0.0.1:{port}", "west": f"localhost:{port}"}
            primary.replicate(ReplicationConfig(peers=peers, mirrors=2))
            async with running(primary):
                primary.work(3)
                states: Callable[[], list[str]] = lambda: sorted(  # noqa: E731
                    peer.state for peer in primary.replication.status().peers
                )
                await until("one is refused", lambda: states() == ["refused", "streaming"])
                await until("the mirror is level", level(primary, mirror))
                assert "counts once" in degraded(primary)
                assert mirrors_seq(primary) == 0

                def sessions() -> list[int]:
                    return [peer.sessions for peer in primary.replication.status().peers]

                before = sessions()
                await trio.sleep(0.6)  # it is tried again, in vain, and disturbs no other
                assert sessions() == before


async def test_a_peer_that_is_ahead_has_a_new_epoch_begin(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    with (
        open_volume(tmp_path / "primary", begin=False) as primary,
    ):
        primary.opening.recover(read_only=False)
        begin(primary)
        head_seq = primary.volume.journal.head_seq
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    answer = welcome(1, 1, head_seq + 100, 1)._replace(reign_node=0)
    for begun in (True, False):  # the second time it has
        with open_volume(tmp_path / "primary", begin=False) as primary:
            fid = primary.volume.new_fid()
            replication = primary.replicate(ReplicationConfig(peers={"east": address}))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, Liar(answer).handle, list(listeners))
                fetched = await ask_peers(
                    replication.local, primary.volume.journal, lambda _: None, system_crash=False
                )
                nursery.cancel_scope.cancel()
            (told,) = fetched.failures
            assert "put back from an older copy" in told.text
            assert (fetched.new_epoch is not None) == begun
            primary.opening.recover(read_only=False)
            begin(primary, Standing(new_epoch=fetched.new_epoch))
            assert primary.volume.journal.epoch == 2
            if begun:
                assert primary.volume.new_fid() > fid + 1000
        listeners = await trio.open_tcp_listeners(int(address.rpartition(":")[2]), host="127.0.0.1")
    for listener in listeners:
        await listener.aclose()


async def test_a_start_waits_for_nobody_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_lost_module, "_LOOK_SECONDS", 0.3)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")  # no node answers there
    address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    with open_volume(tmp_path / "primary") as primary:
        for peers, seconds in (({"east": address}, 2.0), ({}, 0.05)):
            replication = primary.replicate(ReplicationConfig(peers=peers))
            if not peers:
                replication.local.book.remove("east")
            with trio.fail_after(seconds):
                fetched = await ask_peers(
                    replication.local, primary.volume.journal, lambda _: None, system_crash=False
                )
            assert fetched == FetchedEntries([], Seq(0))
    for listener in listeners:
        await listener.aclose()


async def test_a_primary_hears_of_its_successor_by_its_greeting(tmp_path: Path) -> None:
    """The successor has been told to ship to it; and so it ships to no node any more."""
    with (
        open_volume(tmp_path / "mirror", mirror=True) as mirror,
        open_volume(tmp_path / "primary") as primary,
        open_volume(tmp_path / "next", uuid=primary.volume.journal.uuid) as successor,
    ):
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        successor.volume.note(NewEpoch(Epoch(2), "promoted"))
        async with running(mirror):
            peers = {"east": listens_at(mirror)}
            primary.replicate(ReplicationConfig(peers=peers), "127.0.0.1:0")
            async with running(primary):
                primary.work(1)
                await until("the mirror is level", level(primary, mirror))
                successor.replicate(ReplicationConfig(peers={"old": listens_at(primary)}))
                async with running(successor):
                    await until("it is fenced", lambda: primary.volume.write_errno == errno.EROFS)
                    await until(
                        "it ships no more",
                        lambda: (
                            not peer_status(primary).batches_in_flight
                            and peer_status(primary).state == "refused"
                        ),
                    )
                    assert "fenced" in (peer_status(primary).last_error or "")
                assert successor.volume.write_errno is None
    assert reign_of(primary) == Reign(Epoch(2), node_id(successor))
