"""A mirror hands back what it was given, and nothing else is taken from it."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio
import xxhash

from fusejournal.config import ReplicationConfig
from fusejournal.disk import failpoints
from fusejournal.errors import JournalDamagedError
from fusejournal.journal.format import FRAME_HEADER_BYTES
from fusejournal.journal.frame_range import FrameRange, FrameRangeReader, JournalEnd
from fusejournal.journal.handle_key import HandleKey
from fusejournal.journal.segment import list_segments
from fusejournal.journal.segment_header import SEGMENT_HEADER_BYTES
from fusejournal.operations import Create
from fusejournal.replication import fetch_lost as fetch_lost_module
from fusejournal.replication.inquiry import ask_peers
from fusejournal.replication.kept_signatures import _SLOT_BYTES, _SLOTS, Kept, KeptSignatures
from fusejournal.replication.peers import PeerBook
from fusejournal.types import ROOT_FID, Fid, Seq
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import Batch, Message
from fusejournal.wire.signatures import SegmentSigner
from tests.support.losses import crash_system
from tests.support.pairs import level, listens_at, peer_status, running, until
from tests.support.volumes import SOMEBODY, OpenVolume, content, open_volume

SIGNATURES = [bytes([number]) * 32 for number in range(256)]


# -- where they are kept ---------------------------------------------------------------------------


def test_those_of_a_killed_process_are_flushed(tmp_path: Path) -> None:
    """It may have left them in the kernel's pages alone, and the next flush of the journal makes
    durable what they vouch for."""
    kept, synced = KeptSignatures(tmp_path / "signatures"), list[str]()
    kept.keep(Seq(10), SIGNATURES[1])
    again = KeptSignatures(tmp_path / "signatures")
    failpoints.listen(synced.append)
    try:
        again.sync()
        again.sync()
    finally:
        failpoints.listen(None)
    assert synced == ["signatures.sync"]
    assert again.durable_seq == 0
    kept.close()
    again.close()


def test_they_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "signatures"
    kept = KeptSignatures(path)
    for number in range(1, 6):
        kept.keep(Seq(number * 10), SIGNATURES[number])
    assert kept.durable_seq == 0
    kept.sync()
    assert kept.durable_seq == 50
    kept.close()
    kept.sync()
    assert path.stat().st_mode & 0o777 == 0o600
    again = KeptSignatures(path)
    assert again.after(Seq(20)) == [Kept(Seq(n * 10), SIGNATURES[n]) for n in (3, 4, 5)]
    again.keep(Seq(30), SIGNATURES[9])  # another history from there
    again.close()
    once_more = KeptSignatures(path)
    assert once_more.after(Seq(20))[0] == (30, SIGNATURES[9])
    once_more.close()


def test_one_that_is_kept_anew_is_made_durable_anew(tmp_path: Path) -> None:
    """So it is where another primary ships the same entry, in another batch."""
    kept, synced = KeptSignatures(tmp_path / "signatures"), 0

    def note(label: str) -> None:
        nonlocal synced
        synced += label == "signatures.sync"

    failpoints.listen(note)
    try:
        for number, expected in ((1, 1), (1, 2), (2, 3), (2, 4)):
            kept.keep(Seq(number * 10), SIGNATURES[expected])
            kept.sync()
            kept.sync()
            assert synced == expected
            assert kept.durable_seq == number * 10
    finally:
        failpoints.listen(None)
    kept.close()


def test_a_flush_that_failed_is_not_made_good_by_the_next(tmp_path: Path) -> None:
    """The kernel reports a write error once, and then takes the pages for clean."""
    kept = KeptSignatures(tmp_path / "signatures")
    kept.keep(Seq(10), SIGNATURES[1])
    failpoints.listen(failpoints.PlannedFault("signatures.sync", 1, "EIO"))
    try:
        for _ in range(2):
            with pytest.raises(OSError, match=r"Input/output|earlier flush"):
                kept.sync()
            assert kept.durable_seq == 0
    finally:
        failpoints.listen(None)
    kept.close()


def test_a_torn_slot_is_none(tmp_path: Path) -> None:
    path = tmp_path / "signatures"
    kept = KeptSignatures(path)
    for number in (1, 2, 3):
        kept.keep(Seq(number), SIGNATURES[number])
    kept.close()
    with open(path, "r+b") as file:
        file.seek(2 * _SLOT_BYTES + 20)
        file.write(b"torn")
    again = KeptSignatures(path)
    assert [one.seq for one in again.after(Seq(0))] == [1, 3]
    again.close()


def test_the_oldest_are_written_over(tmp_path: Path) -> None:
    path = tmp_path / "signatures"
    kept = KeptSignatures(path)
    for number in range(1, _SLOTS + 101):
        kept.keep(Seq(number), SIGNATURES[number % 256])
    assert len(kept.after(Seq(0))) == _SLOTS
    kept.close()
    again = KeptSignatures(path)
    assert again.after(Seq(0)) == kept.after(Seq(0))
    assert [one.seq for one in again.after(Seq(_SLOTS + 98))] == [_SLOTS + 99, _SLOTS + 100]
    again.close()
    assert path.stat().st_size == _SLOTS * _SLOT_BYTES


# -- making them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
def test_a_segment_that_is_too_short_is_not_signed(tmp_path: Path, compressed: bool) -> None:
    """A signature without what comes before would vouch for nothing later."""
    directory = tmp_path / "state" / "journal"
    with open_volume(tmp_path) as opened:
        opened.work(60)
        uuid, journal = opened.volume.journal.uuid, opened.volume.journal
        if compressed:
            journal.sync()
            journal.sealed.compress(journal.sealed.compressible()[0])
        ranges = list(_ranges(directory, uuid, journal.end))
        first, second, third, *_ = ranges
        _, other, *_ = (one for one in ranges if one.segment_seq != first.segment_seq)
        signer, fresh = (SegmentSigner(b"key", uuid, directory) for _ in range(2))
        signatures = [signer.sign(one) for one in ranges]
        assert fresh.sign(second) == signatures[1]
        path = list_segments(directory)[0]
        if compressed:
            content = bytearray(path.read_bytes())
            content[40] ^= 1
            path.write_bytes(content)
        else:
            os.truncate(path, second.offset - 1)
        assert fresh.sign(third) == signatures[2]
        with pytest.raises(JournalDamagedError, match=str(second.segment_seq)) as caught:
            SegmentSigner(b"key", uuid, directory).sign(second)
        assert caught.value.segment.stem == path.stem
        # Nor does a refusal spoil what comes next.
        at = ranges.index(other)
        assert fresh.sign(other) == signatures[at]
        with pytest.raises(JournalDamagedError):
            fresh.sign(second)
        assert fresh.sign(ranges[at + 1]) == signatures[at + 1]


def _ranges(directory: Path, uuid: UUID, end: JournalEnd) -> Iterator[FrameRange]:
    reader = FrameRangeReader(directory, uuid)
    try:
        reader.seek(Seq(0))
        while (found := reader.next(end, end.position.seq, 4096)) is not None:
            yield found
    finally:
        reader.close()


# -- taking back -----------------------------------------------------------------------------------


@asynccontextmanager
async def _lost(
    tmp_path: Path, lost: int, **shipping: Any
) -> AsyncIterator[tuple[OpenVolume, Seq, dict[str, bytes]]]:
    """A mirror that is level, and whose primary has lost its last entries by a system crash; where
    the primary's journal ended, and what was in it."""
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        mirror.replicate(ReplicationConfig(**shipping), "127.0.0.1:0")
        async with running(mirror):
            with open_volume(tmp_path / "primary", orderly=False) as primary:
                primary.work(10)
                primary.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}, **shipping))
                async with running(primary):
                    for start in (30, 50, 70):
                        await until("the mirror is level", level(primary, mirror))
                        primary.work(5, start=start)
                    await until("the mirror is level", level(primary, mirror))
                head_seq = primary.volume.journal.head_seq
                before = content(primary.journal_dir)
            crash_system(tmp_path / "primary" / "state", head_seq - lost)
            yield mirror, head_seq, before


async def _taken(
    tmp_path: Path, mirror: OpenVolume, **config: Any
) -> tuple[Seq, list[str], dict[str, bytes]]:
    """Returns where the primary's journal ends after it took entries back, what it could not, and
    what is in it."""
    with open_volume(tmp_path / "primary", begin=False, orderly=False) as primary:
        replication = primary.replicate(
            ReplicationConfig(peers={"east": listens_at(mirror)}, take_back_seconds=1.0, **config)
        )
        with trio.fail_after(60):
            taken = await ask_peers(replication.local, primary.volume.journal, lambda _: None)
        failures = [one.text for one in taken.failures]
        return primary.volume.journal.head_seq, failures, content(primary.journal_dir)


def _forge(mirror: OpenVolume, count: int = 2) -> None:
    """Forges entries, as a mirror's root may in its own journal."""
    journal = mirror.volume.journal
    shell = Create(Fid(10_000), ROOT_FID, b"rootshell", 0o104755, 0, 0, 0, None)
    for _ in range(count):
        journal.append(shell, SOMEBODY, journal.last_time_ns + 1, lambda _: b"")
    journal.sync()


@pytest.mark.mount
@pytest.mark.parametrize("lost", [1, 40, 150])
async def test_what_was_forged_is_not_taken(tmp_path: Path, lost: int) -> None:
    async with _lost(tmp_path, lost) as (mirror, head_seq, before):
        _forge(mirror)
        end, failures, now = await _taken(tmp_path, mirror)
        assert end == head_seq
        assert now == before
        (told,) = failures
        assert f"entries {head_seq + 1} to {head_seq + 2} are not what this node" in told


@pytest.mark.mount
async def test_nothing_lost_and_something_forged(tmp_path: Path) -> None:
    async with _lost(tmp_path, 0) as (mirror, head_seq, before):
        _forge(mirror)
        end, (told,), now = await _taken(tmp_path, mirror)
        assert (end, now) == (head_seq, before)
        assert "signed" in told


@pytest.mark.mount
@pytest.mark.parametrize(("take_back", "more"), [("any", 2), ("never", -40)])
async def test_as_configured(tmp_path: Path, take_back: str, more: int) -> None:
    async with _lost(tmp_path, 40) as (mirror, head_seq, _):
        _forge(mirror)
        end, failures, _ = await _taken(tmp_path, mirror, take_back=take_back)
        assert end == head_seq + more
        assert len(failures) == (take_back == "never")


@pytest.mark.mount
@pytest.mark.parametrize("batch_bytes", [4096, 1 << 20])
async def test_what_was_changed_in_the_midst_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int
) -> None:
    """The mirror makes the chain fit, and hands the true signatures back."""
    receive = Connection.receive

    async def lie(self: Connection) -> Message | None:
        message = await receive(self)
        if isinstance(message, Batch) and message.signature:
            forged = bytearray(message.content)
            forged[-1] ^= 1
            return message._replace(content=bytes(forged))
        return message

    async with _lost(tmp_path, 40, batch_bytes=batch_bytes) as (mirror, head_seq, _):
        monkeypatch.setattr(Connection, "receive", lie)
        monkeypatch.setattr(fetch_lost_module, "_readable", _unchecked)
        end, failures, _ = await _taken(tmp_path, mirror)
        assert end == head_seq - 40
        assert len(failures) == 1


def _unchecked(batch: Batch, _handle_key: HandleKey) -> FrameRange:
    return FrameRange(
        batch.segment_seq,
        batch.offset,
        batch.first_seq,
        batch.last_seq,
        batch.chain_before,
        batch.chain,
        batch.content,
    )


@pytest.mark.mount
async def test_a_mirror_of_the_version_before_is_believed_until_it_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _lost(tmp_path, 40) as (mirror, head_seq, _):
        monkeypatch.setattr(KeptSignatures, "after", lambda *_: [])  # as one that keeps none
        end, failures, _ = await _taken(tmp_path, mirror)
        assert end == head_seq - 40
        assert len(failures) == 1
        book = PeerBook.load(tmp_path / "primary" / "state")
        assert book.get("east").keeps_signatures
        book.remove("east")
        book.save()
        end, failures, _ = await _taken(tmp_path, mirror)
        assert (end, failures) == (head_seq, [])


@pytest.mark.mount
async def test_what_cannot_be_read_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames are good, and an entry in them is of no kind that there is."""
    receive = Connection.receive

    async def lie(self: Connection) -> Message | None:
        message = await receive(self)
        if isinstance(message, Batch) and message.first_seq > head_seq:
            return _of_no_kind(message)
        return message

    async with _lost(tmp_path, 5) as (mirror, head_seq, before):
        _forge(mirror, 1)
        monkeypatch.setattr(Connection, "receive", lie)
        end, (told,), now = await _taken(tmp_path, mirror, take_back="any")
        assert (end, now) == (head_seq, before)
        assert "kind 99" in told


def _of_no_kind(batch: Batch) -> Batch:
    """A batch of one entry, whose kind is something else, and whose checksum is right."""
    at = SEGMENT_HEADER_BYTES if batch.offset == 0 else 0
    frame = bytearray(batch.content[at:])
    frame[FRAME_HEADER_BYTES + 1] = 99  # the first of a list of at most 15
    digest = xxhash.xxh3_64(frame[:24], seed=batch.chain_before)
    digest.update(frame[FRAME_HEADER_BYTES:])
    frame[24:32] = digest.intdigest().to_bytes(8, "little")
    return batch._replace(content=batch.content[:at] + bytes(frame), chain=digest.intdigest())


# -- durable before it is acknowledged -------------------------------------------------------------


@pytest.mark.mount
async def test_nothing_is_acknowledged_without_its_signature(tmp_path: Path) -> None:
    reached: list[str] = []

    def note(label: str) -> None:
        if label in ("signatures.write", "signatures.sync", "journal.sync"):
            reached.append(label)

    with (
        open_volume(tmp_path / "mirror", mirror=True) as mirror,
        open_volume(tmp_path / "primary") as primary,
    ):
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror):
            primary.work(3)
            primary.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
            failpoints.listen(note)
            try:
                async with running(primary):
                    await until("the mirror is level", level(primary, mirror))
                    acked_seq = primary.volume.journal.head_seq
                    status = lambda: peer_status(primary)  # noqa: E731
                    await until("it is acked", lambda: status().acked_seq == acked_seq)
                    failpoints.listen(failpoints.PlannedFault("signatures.sync", 1, "EIO"))
                    primary.work(3, start=10)
                    await until("it has failed", lambda: mirror.volume.failure is not None)
                    assert status().acked_seq == acked_seq
                    assert mirror.durability.durable_seq == acked_seq
            finally:
                failpoints.listen(None)
    first_written = reached.index("signatures.write")
    later = reached[first_written:]
    assert later.index("signatures.sync") < later.index("journal.sync")
