"""The status that a primary and a mirror in one process show, and what each reports as degraded."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from fusejournal.backing.catalog import Catalog
from fusejournal.config import ReplicationConfig
from fusejournal.errors import PeerLostError, PeerMistakenError, PeerRefusedError
from fusejournal.replication import mirror_applier as mirror_applier_module
from fusejournal.replication import peer_record as peer_record_module
from fusejournal.replication import primary_record as primary_record_module
from fusejournal.replication import shipper as shipper_module
from fusejournal.replication import supervisor as supervisor_module
from fusejournal.replication.mirror_applier import MirrorApplier
from fusejournal.replication.primary_record import PrimaryRecord
from fusejournal.replication.receive_session import Receiving
from fusejournal.replication.states import MirrorEvent
from fusejournal.types import Seq
from fusejournal.volume.trouble import Trouble, TroubleKind
from fusejournal.wire.session import FAILED, FULL
from tests.support.pairs import (
    level,
    mirror_and_primary,
    mirror_status,
    peer_status,
    running,
    until,
)
from tests.support.volumes import OpenVolume, open_volume

pytestmark = pytest.mark.mount


async def test_a_new_mirror_is_catching_up_until_it_has_what_there_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_SAMPLE_SECONDS", 0.02)
    limit = MirrorApplier._limit
    upto = [0]
    monkeypatch.setattr(MirrorApplier, "_limit", lambda self: min(limit(self), Seq(upto[0])))
    with open_volume(tmp_path / "primary") as primary:
        primary.work(100)
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        head_seq = primary.volume.journal.head_seq
        journals = primary.volume.journal, mirror.volume.journal
        await until("all is there", lambda: journals[0].head_seq == journals[1].head_seq)
        for upto[0] in range(100, head_seq - 200, 20):
            mirror.applier.wake()
            await until("some", lambda: peer_status(primary).applied_seq >= upto[0] - 1)
            await trio.sleep(0.03)
        for status in (peer_status(primary), mirror_status(mirror)):
            assert status.state == "catching up"
            assert status.entries_per_second > 0
            assert 0 < (status.eta_seconds or 0) < 20
            assert 0.1 < status.lag_seconds < 20
        upto[0] = head_seq
        mirror.applier.wake()
        await until("the primary says", lambda: peer_status(primary).state == "streaming")
        assert mirror_status(mirror).state == "streaming"
        assert mirror_status(mirror).eta_seconds is None


@asynccontextmanager
async def _in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> AsyncIterator[OpenVolume]:
    """A primary whose attempts to connect all end with *error*."""

    async def connect(*_: object, **__: object) -> object:
        await trio.lowlevel.checkpoint()
        raise error

    monkeypatch.setattr(shipper_module, "connect", connect)
    with open_volume(tmp_path / "primary") as primary:
        primary.work(3)
        primary.replicate(ReplicationConfig(peers={"east": "192.0.2.7:7710"}))
        async with running(primary):
            yield primary


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (PeerRefusedError("192.0.2.7:7710", "does not know this node"), "fusejournal pair"),
        (PeerMistakenError("192.0.2.7:7710", "abc", "xyz"), "check its address"),
    ],
    ids=["unknown", "mistaken"],
)
async def test_a_peer_that_will_not_talk_is_said_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, advice: str
) -> None:
    async with _in_vain(tmp_path, monkeypatch, error) as primary:
        await until("it has tried", lambda: peer_status(primary).last_error is not None)
        status = peer_status(primary)
        assert (status.state, status.last_error) == ("refused", str(error))
        assert advice in (status.advice or "")
        assert primary.replication.degraded() == [
            Trouble(TroubleKind.REFUSED, f"peer east: refused: {error}", "east")
        ]


async def test_a_peer_out_of_reach_is_told_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = PeerLostError("192.0.2.7:7710", "connection refused")
    async with _in_vain(tmp_path, monkeypatch, error) as primary:
        await until("it has tried", lambda: peer_status(primary).last_error is not None)
        assert peer_status(primary).state == "connecting"
        assert "is it mounted?" in (peer_status(primary).advice or "")
        assert primary.replication.degraded() == []
        monkeypatch.setattr(peer_record_module, "_AWAY_SECONDS", 0.05)
        await until("it is told", lambda: primary.replication.degraded() != [])
        (told,) = primary.replication.degraded()
        assert (told.kind, told.about) == (TroubleKind.PEER_AWAY, "east")
        assert "peer east: out of reach for" in told.text
        assert str(error) in told.text


async def test_a_pause_and_a_silent_primary_are_no_health(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(1)
        await until("the mirror is level", level(primary, mirror))
        assert primary.replication.degraded() == mirror.replication.degraded() == []
        primary.replication.local.book.pause("east")
        primary.replication._peers_changed()
        await until("nothing is shipped", lambda: peer_status(primary).state == "paused")
        words = "peer east: paused: 'fusejournal peer resume' lets east go on"
        assert primary.replication.degraded() == [Trouble(TroubleKind.PAUSED, words, "east")]
        monkeypatch.setattr(primary_record_module, "_SILENT_SECONDS", 0.05)
        await until("it is told", lambda: mirror.replication.degraded() != [])
        (told,) = mirror.replication.degraded()
        assert told.kind is TroubleKind.PRIMARY_AWAY
        line = told.text
        assert line.startswith(f"primary {mirror_status(mirror).primary}: silent since 20")
        assert "not paused there" in line
        assert "fusejournal promote --dry-run" in line


def test_a_mirror_that_no_primary_calls_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_volume(tmp_path, mirror=True) as mirror:
        record = PrimaryRecord(mirror.volume)
        assert record.silence() is None
        monkeypatch.setattr(primary_record_module, "_SILENT_SECONDS", 0.0)
        assert "no primary has called since 20" in (record.silence() or "")
        assert "fusejournal pair" in (record.silence() or "")
        record.note(MirrorEvent.REFUSED_FULL)  # it calls, and gets nothing in
        assert record.silence() is None


@pytest.mark.parametrize(
    ("word", "kind"), [(FULL, TroubleKind.PEER_FULL), (FAILED, TroubleKind.PEER_FAILED)]
)
async def test_a_mirror_in_trouble_is_no_health(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, kind: TroubleKind
) -> None:
    monkeypatch.setattr(Receiving, "trouble", lambda _: (word, "trouble"))
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        told = [Trouble(kind, f"peer east: mirror {word}: trouble", "east")]
        await until("it is told", lambda: primary.replication.degraded() == told)
        own = Trouble(TroubleKind.NO_SPACE, "takes nothing more for now: trouble")
        assert mirror.replication.degraded() == ([own] if word == FULL else [])


async def test_a_catalog_that_had_no_space_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing more to apply, no status says that it is full once it is not."""
    monkeypatch.setattr(mirror_applier_module, "COMMIT_CHANGES", 0)
    monkeypatch.setattr(mirror_applier_module, "_FULL_PAUSE_SECONDS", 0.02)
    is_full = [False]
    commit = Catalog.commit
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        own = mirror.volume.catalog

        def failing(self: Catalog) -> None:
            if self is own and is_full[0]:
                raise OSError(errno.ENOSPC, "full")
            commit(self)

        monkeypatch.setattr(Catalog, "commit", failing)
        primary.mkdir("one")
        await until("the mirror is level", level(primary, mirror))
        is_full[0] = True
        primary.mkdir("two")
        await until("the primary knows", lambda: peer_status(primary).state == "mirror full")
        is_full[0] = False
        await until("it is over", lambda: peer_status(primary).state == "streaming")
        assert mirror_status(mirror).trouble is None
