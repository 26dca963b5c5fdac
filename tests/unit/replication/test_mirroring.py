"""A primary and a mirror in one process, over real sockets on the loopback, without mounts: what
is shipped, what is applied, and what is left when one of them dies."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio

from fusejournal.address import node_name
from fusejournal.backing.apply import Applier
from fusejournal.backing.catalog import Catalog
from fusejournal.config import ReplicationConfig
from fusejournal.errors import PeerLostError, PeerMistakenError, PeerRefusedError
from fusejournal.journal.base import JournalBase
from fusejournal.journal.frame_range import FrameRange, FrameRangeReader
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.segment import list_segments
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.replay.digest import digest_tree
from fusejournal.replication import mirror_applier as mirror_applier_module
from fusejournal.replication import peer_record as peer_record_module
from fusejournal.replication import primary_record as primary_record_module
from fusejournal.replication import shipper as shipper_module
from fusejournal.replication import supervisor as supervisor_module
from fusejournal.replication.mirror_applier import MirrorApplier
from fusejournal.replication.parting import load_parting
from fusejournal.replication.primary_record import PrimaryRecord
from fusejournal.replication.receive_session import Receiving
from fusejournal.replication.ship_session import ShipSession
from fusejournal.replication.states import MirrorEvent
from fusejournal.types import Epoch, Fid, Seq
from fusejournal.wire.session import FAILED, FULL
from tests.support.bases import base_tree, give_base, possible_bases
from tests.support.losses import crash_system
from tests.support.pairs import (
    level,
    listens_at,
    mirror_and_primary,
    mirror_status,
    peer_status,
    running,
    shipping,
    until,
)
from tests.support.volumes import OpenVolume, applied, content, open_volume

pytestmark = pytest.mark.mount


def tree_digest(backing: Path) -> str:
    return digest_tree(backing).digest


async def test_mirror_ends_with_the_same_journal_and_tree(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        for start in range(0, 120, 10):
            primary.work(10, start)
            await trio.sleep(0.01)
        await until("the mirror is level", level(primary, mirror))
        assert content(mirror.journal_dir) == content(primary.journal_dir)
        assert len(content(primary.journal_dir)) > 3
        assert tree_digest(mirror.backing) == tree_digest(primary.backing)
        await until("the primary knows", lambda: peer_status(primary).lag_entries == 0)
        assert peer_status(primary).state == "streaming"
        assert peer_status(primary).acked_seq == primary.volume.journal.head_seq


async def test_what_was_there_first_is_caught_up(tmp_path: Path) -> None:
    with open_volume(tmp_path / "primary") as primary:
        primary.work(200)
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        await until("the mirror is level", level(primary, mirror))
        assert content(mirror.journal_dir) == content(primary.journal_dir)


async def test_goes_on_after_an_orderly_stop(tmp_path: Path) -> None:
    for start in (0, 40, 80):
        async with mirror_and_primary(tmp_path) as (primary, mirror):
            primary.work(40, start)
            await until("the mirror is level", level(primary, mirror))
            assert content(mirror.journal_dir) == content(primary.journal_dir)
            assert tree_digest(mirror.backing) == tree_digest(primary.backing)


async def _received_and_not_applied(tmp_path: Path) -> None:
    """Leave a mirror that has everything in its journal, and nothing of it applied."""
    with (
        open_volume(tmp_path / "mirror", mirror=True, orderly=False) as mirror,
        open_volume(tmp_path / "primary") as primary,
    ):
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        mirror.applier._limit = lambda: Seq(0)  # type: ignore[method-assign]
        async with running(mirror):
            primary.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
            primary.work(12)
            async with running(primary):
                journals = primary.volume.journal, mirror.volume.journal
                await until("all is there", lambda: journals[0].head_seq == journals[1].head_seq)
                await mirror.durability.flush()
        assert applied(mirror) == 0


class _Died(BaseException):
    """A kill, for code that runs in the test's own process."""


async def test_killed_anywhere_while_it_applies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each entry, between its effect and the catalog, and with any part of the catalog
    committed: the next process goes on, and no entry is skipped or done twice."""
    await _received_and_not_applied(tmp_path)
    apply = Applier.apply
    left = [0]

    def dying(self: Applier, *args: Any, **kwargs: Any) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise _Died
        made = apply(self, *args, **kwargs)
        if left[0] == 1 and late:
            left[0] = 0
            raise _Died
        return made

    monkeypatch.setattr(Applier, "apply", dying)
    deaths = 0
    while True:
        late = deaths % 2 == 1
        left[0] = 1 + deaths % 5
        with open_volume(tmp_path / "mirror", mirror=True, orderly=False) as mirror:
            head_seq = mirror.volume.journal.head_seq
            try:
                await _apply_all(mirror, commit_each=deaths % 3)
            except _Died:
                deaths += 1
            if applied(mirror) == head_seq:
                assert deaths > 10
                break
            assert deaths < 500
    monkeypatch.setattr(Applier, "apply", apply)
    with open_volume(tmp_path / "primary") as primary:
        assert tree_digest(mirror.backing) == tree_digest(primary.backing)


async def _apply_all(mirror: OpenVolume, commit_each: int) -> None:
    """Let the mirror's applier run until it has applied everything, or dies of it."""
    mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
    volume = mirror.volume
    count = [0]

    def commit_now_and_then(*_: int) -> None:
        count[0] += 1
        if commit_each and count[0] % commit_each == 0:
            volume.catalog.commit()

    mirror.usage.on_applied.append(commit_now_and_then)
    died: list[_Died] = []

    async def update(scope: trio.CancelScope) -> None:
        try:
            await mirror.applier.run()
        except _Died as error:
            died.append(error)
            scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(update, nursery.cancel_scope)
        await until("all is applied", lambda: applied(mirror) == volume.journal.head_seq)
        nursery.cancel_scope.cancel()
    if died:
        raise died[0]


async def test_nothing_is_applied_that_is_not_on_disk(tmp_path: Path) -> None:
    with (
        open_volume(tmp_path / "mirror", mirror=True, orderly=False) as mirror,
        open_volume(tmp_path / "primary") as primary,
    ):
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        primary.work(5)
        async with trio.open_nursery() as nursery:  # the mirror flushes nothing by itself
            await nursery.start(mirror.replication.run)
            primary.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
            nursery.start_soon(primary.durability.run)
            await nursery.start(primary.replication.run)
            journals = primary.volume.journal, mirror.volume.journal
            await until("all is there", lambda: journals[0].head_seq == journals[1].head_seq)
            mirror.applier.wake()
            await trio.sleep(0.1)
            status = primary.replication.status().peers[0]
            assert (status.acked_seq, status.applied_seq) == (0, 0)
            assert applied(mirror) == 0
            assert list(mirror.backing.iterdir()) == []
            await mirror.durability.flush()
            await until("the mirror is level", level(primary, mirror))
            nursery.cancel_scope.cancel()


async def test_mirror_that_ends_between_an_entry_and_its_void(tmp_path: Path) -> None:
    """A kill in the middle of an append leaves it so: what was refused is never applied."""
    with open_volume(tmp_path / "primary") as primary:
        primary.work(3)  # the last thing is a refusal
        head_seq = primary.volume.journal.head_seq
        uuid = primary.volume.journal.uuid
        with open_volume(tmp_path / "mirror", mirror=True, uuid=uuid, orderly=False) as mirror:
            reader = FrameRangeReader(primary.journal_dir, uuid)
            reader.seek(Seq(head_seq - 1))
            assert reader.committed_seq(primary.volume.journal.end) == head_seq - 2
            reader.close()
            mirror.volume.journal.receive(_beginning(primary, Seq(head_seq - 1)))
    async with _idle_pair(tmp_path) as (primary, mirror):
        await until("what is committed is applied", lambda: applied(mirror) == head_seq - 2)
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        await until("the mirror is level", level(primary, mirror))
        assert content(mirror.journal_dir) == content(primary.journal_dir)
        assert tree_digest(mirror.backing) == tree_digest(primary.backing)


def _beginning(primary: OpenVolume, last_seq: Seq) -> FrameRange:
    """The journal of a mirror whose first segment was cut after entry *last_seq*."""
    *_, (path, frame) = JournalReader(primary.journal_dir).frames(Seq(1), Seq(last_seq + 1))
    content = path.read_bytes()[: frame.offset + len(frame.content)]
    return FrameRange(Seq(1), 0, Seq(1), last_seq, 0, frame.checksum, content)


async def test_what_was_refused_is_not_applied_before_its_void_is_durable(tmp_path: Path) -> None:
    """The mirror's journal ends between the two, and is on the disk, when the rest comes."""
    with open_volume(tmp_path / "primary") as primary:
        primary.work(1)
        (primary.backing / "behind").mkdir()  # no process has seen it yet
        with pytest.raises(FileExistsError):
            primary.mkdir("behind")
        refused_seq = Seq(primary.volume.journal.head_seq - 1)
        uuid = primary.volume.journal.uuid
        with open_volume(tmp_path / "mirror", mirror=True, uuid=uuid, orderly=False) as mirror:
            mirror.volume.journal.receive(_beginning(primary, refused_seq))
    with (
        open_volume(tmp_path / "mirror", mirror=True, orderly=False) as mirror,
        open_volume(tmp_path / "primary") as primary,
    ):
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        await mirror.durability.flush()
        assert mirror.volume.journal.durable_seq == refused_seq
        async with trio.open_nursery() as nursery:  # no flush comes after that
            await nursery.start(mirror.replication.run)
            primary.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
            nursery.start_soon(primary.durability.run)
            await nursery.start(primary.replication.run)
            head_seq = primary.volume.journal.head_seq
            await until("all is there", lambda: mirror.volume.journal.head_seq == head_seq)
            mirror.applier.wake()
            await trio.sleep(0.1)
            assert applied(mirror) == refused_seq - 1
            assert not (mirror.backing / "behind").exists()
            await mirror.durability.flush()
            await until("the mirror is level", level(primary, mirror))
            assert not (mirror.backing / "behind").exists()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _idle_pair(tmp_path: Path) -> AsyncIterator[tuple[OpenVolume, OpenVolume]]:
    """A pair whose primary begins a session and then sends nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShipSession, "_ship", _ship_nothing)
        async with mirror_and_primary(tmp_path) as both:
            yield both


async def _ship_nothing(*_: object) -> None:
    await trio.sleep_forever()


async def test_second_primary_is_refused(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        uuid = primary.volume.journal.uuid
        with open_volume(tmp_path / "other", uuid=uuid) as other:
            other.work(3)
            other.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
            async with running(other):
                await until("it is refused", lambda: peer_status(other).state == "refused")
                assert "already receives from" in (peer_status(other).last_error or "")


async def test_primary_of_another_volume_is_refused(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
    with (
        open_volume(tmp_path / "other") as other,
        open_volume(tmp_path / "mirror", mirror=True) as mirror,
    ):
        other.work(3)
        async with shipping(other, mirror):
            await until("it is refused", lambda: peer_status(other).state == "refused")
            assert "is of volume" in (peer_status(other).last_error or "")
        assert tree_digest(mirror.backing) == tree_digest(tmp_path / "primary" / "backing")


async def test_primary_takes_no_entries(tmp_path: Path) -> None:
    with (
        open_volume(tmp_path / "one") as one,
        open_volume(tmp_path / "other") as other,
    ):
        async with shipping(other, one):
            await until("it is refused", lambda: peer_status(other).state == "refused")


async def test_mirror_that_has_more_is_not_touched(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(5)
        await until("the mirror is level", level(primary, mirror))
    before = content(tmp_path / "mirror" / "state" / "journal")
    # The primary goes back to what it was before its last entries, as from an old copy of its disk.
    with open_volume(tmp_path / "old", uuid=primary.volume.journal.uuid) as old:
        old.work(1, start=90)
        head_seq = old.volume.journal.head_seq
        with open_volume(tmp_path / "mirror", mirror=True) as mirror:
            async with shipping(old, mirror):
                await until("they part", lambda: peer_status(old).state == "diverged")
                await until("the mirror says so", lambda: mirror_status(mirror).state == "diverged")
                theirs = mirror_status(mirror)
                assert "part after entry 0" in (peer_status(old).last_error or "")
                assert "from 1 on" in (theirs.last_error or "")
                assert mirror.volume.journal.head_seq > head_seq
    assert content(tmp_path / "mirror" / "state" / "journal") == before
    parting = load_parting(tmp_path / "mirror" / "state")
    assert parting is not None
    assert (parting.peer, parting.seq) == (node_name("old"), 0)


async def test_mirror_of_a_mirror(tmp_path: Path) -> None:
    with open_volume(tmp_path / "third", mirror=True) as third:
        third.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(third):
            with open_volume(tmp_path / "second", mirror=True) as second:
                peers = {"third": listens_at(third)}
                second.replicate(ReplicationConfig(peers=peers), "127.0.0.1:0")
                async with running(second):
                    with open_volume(tmp_path / "first") as first:
                        peers = {"second": listens_at(second)}
                        first.replicate(ReplicationConfig(peers=peers))
                        async with running(first):
                            for start in range(0, 60, 10):
                                first.work(10, start)
                                await trio.sleep(0.01)
                            await until("all are level", level(first, third))
                            assert content(third.journal_dir) == content(first.journal_dir)
                            assert tree_digest(third.backing) == tree_digest(first.backing)


async def test_fsync_waits_for_a_mirror(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path, mirrors=1, batch_age_seconds=60.0) as (primary, mirror):
        primary.work(2)
        with trio.fail_after(20):  # though batches may wait for a minute
            await primary.durability.wait(primary.volume.journal.head_seq)
        assert mirror.volume.journal.durable_seq == primary.volume.journal.head_seq


async def test_mirror_whose_next_entry_is_gone_needs_a_full_copy(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(10)
        await until("the mirror is level", level(primary, mirror))
    with open_volume(tmp_path / "primary") as primary:
        primary.work(300, start=100)
    bases = possible_bases(primary.journal_dir)
    base = give_base(
        tmp_path / "primary" / "state", bases[len(bases) // 2], primary.volume.journal.uuid
    )
    assert base.seq > 20
    before = content(tmp_path / "mirror" / "state" / "journal")
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        await until("the primary says so", lambda: peer_status(primary).state == "needs full copy")
        theirs = lambda: mirror_status(mirror)  # noqa: E731
        await until("the mirror says so", lambda: theirs().state == "needs full copy")
        assert "not in the journal any more" in (theirs().last_error or "")
    assert content(tmp_path / "mirror" / "state" / "journal") == before


async def test_segments_stay_plain_until_they_are_sent(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(100)
        await until("the mirror is level", level(primary, mirror))
        await until("the primary knows", lambda: peer_status(primary).lag_entries == 0)
        head_seq = primary.volume.journal.head_seq
        assert primary.durability.hooks.keep_uncompressed_from() == head_seq + 1
        await primary.durability.flush()
        sealed = primary.volume.journal.sealed.compressible(
            primary.durability.hooks.keep_uncompressed_from()
        )
        assert sealed == list_segments(primary.journal_dir)[:-1]
        assert primary.volume.journal.sealed.compressible(Seq(2)) == []
    assert primary.durability.hooks.keep_uncompressed_from() == END


# -- what the status says ------------------------------------------------------------------------


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
        assert primary.replication.degraded() == [f"peer east: refused: {error}"]


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
        (line,) = primary.replication.degraded()
        assert "peer east: out of reach for" in line
        assert str(error) in line


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
        assert primary.replication.degraded() == [
            "peer east: paused: 'fusejournal peer resume' lets east go on"
        ]
        monkeypatch.setattr(primary_record_module, "_SILENT_SECONDS", 0.05)
        await until("it is told", lambda: mirror.replication.degraded() != [])
        (line,) = mirror.replication.degraded()
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


@pytest.mark.parametrize("word", [FULL, FAILED])
async def test_a_mirror_in_trouble_is_no_health(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setattr(Receiving, "trouble", lambda _: (word, "trouble"))
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until(
            "it is told",
            lambda: primary.replication.degraded() == [f"peer east: mirror {word}: trouble"],
        )
        own = ["takes nothing more for now: trouble"] if word == FULL else []
        assert mirror.replication.degraded() == own


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


async def test_a_mirror_that_was_level_applies_all_without_a_new_entry(tmp_path: Path) -> None:
    """Its system crashed between the checkpoint's flush and the page's, which is older then: what
    the checkpoint tells of is on the disk, and to be applied, though no entry comes."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        head_seq = mirror.volume.journal.head_seq
    crash_system(tmp_path / "mirror" / "state", head_seq)
    page = WatermarkPage(tmp_path / "mirror" / "state" / "watermarks")
    page.write_durable(Seq(0))
    page.write_stopped(Seq(0))
    page.close()
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        assert mirror.opening.system_crash
        assert mirror.opening.page.durable_seq == mirror.volume.journal.durable_seq == head_seq


async def test_what_its_base_tells_the_applier_asks_too(tmp_path: Path) -> None:
    """A former primary's journal may begin after a version."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        assert mirror.applier._lookup().base is None
        base = JournalBase(uuid4(), Epoch(1), Seq(0), 1, 1, "", "", "", "", Fid(3), 0)
        reader = mirror.volume.journal.reader
        reader.begin_behind(base_tree(base))
        found = mirror.applier._lookup().base
        assert found is not None
        assert found.base == base
