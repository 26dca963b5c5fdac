"""The page on which a node keeps the reigns that it has heard of: it is written first."""

import errno
from pathlib import Path
from uuid import UUID

import pytest

from fusejournal.address import parse_address
from fusejournal.config import ReplicationConfig
from fusejournal.disk import failpoints
from fusejournal.replication.common_ancestor import ChainFinder
from fusejournal.replication.inquiry import ask_peers
from fusejournal.types import EPOCH_MAX, Epoch, Reign, Seq
from fusejournal.volume.standing import Standing
from fusejournal.volume.trouble import Trouble, TroubleKind
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import Ack, Begin, Message, Refusal, Welcome
from fusejournal.wire.identity import load_or_make
from fusejournal.wire.transport import connect
from tests.support.losses import crash_system
from tests.support.pairs import (
    level,
    listens_at,
    mirror_and_primary,
    mirror_status,
    peer_status,
    running,
    until,
)
from tests.support.reigns import begin, follow, greet, head, higher, node_id, reign_of
from tests.support.volumes import OpenVolume, open_volume

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("quick_sessions")]


async def test_a_reign_is_on_the_disk_before_anything_of_it_is_taken(tmp_path: Path) -> None:
    order: list[str] = []
    receive_next = Connection.receive

    async def receive(connection: Connection) -> Message | None:
        message = await receive_next(connection)
        if isinstance(message, Begin | Ack):
            order.append(type(message).__name__)
        return message

    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(1)
        await until("the mirror is level", level(primary, mirror))
        with open_volume(tmp_path / "next", uuid=primary.volume.journal.uuid) as successor:
            assert reign_of(mirror) == Reign(Epoch(1), 0)
    with (
        open_volume(tmp_path / "mirror2", mirror=True) as mirror,
        open_volume(tmp_path / "next") as successor,
        pytest.MonkeyPatch.context() as patch,
    ):
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        patch.setattr(Connection, "receive", receive)
        failpoints.listen(lambda label: order.append(label) if label == "watermarks.sync" else None)
        try:
            async with running(mirror):
                await follow(mirror, successor, 7)
                assert reign_of(mirror) == Reign(Epoch(7), node_id(successor))
        finally:
            failpoints.listen(None)
    relevant = order[order.index("Begin") :]
    assert "watermarks.sync" in relevant[: relevant.index("Ack")]


@pytest.mark.parametrize("purpose", ["ship", "fetch"])
@pytest.mark.parametrize("is_busy", [False, True])
async def test_a_mirror_has_a_higher_reign_on_its_disk_before_it_answers(
    tmp_path: Path, purpose: str, is_busy: bool
) -> None:
    """This holds whatever the answer is, and though its journal parts from the greeter's."""
    reached: list[str] = []
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(2)
        await until("the mirror is level", level(primary, mirror))
        await until("it streams", lambda: peer_status(primary).state == "streaming")
        if not is_busy:
            primary.replication.local.book.pause("east")
            primary.replication._peers_changed()
            await until("it is away", lambda: mirror_status(mirror).address is None)
        hello = higher(mirror, purpose, 3)
        failpoints.listen(reached.append)
        try:
            for untrue in (  # nothing proves these
                hello._replace(held_epoch=Epoch(6)),
                hello._replace(epoch=Epoch(EPOCH_MAX + 1), held_epoch=Epoch(EPOCH_MAX + 1)),
                hello._replace(seq=Seq(0), chain=0),
                hello._replace(uuid=bytes(15) + b"1"),
                hello._replace(version=9),
            ):
                await greet(mirror, untrue)
                assert reign_of(mirror).epoch == 1
            reached.clear()
            answer = await greet(mirror, hello)
            assert "watermarks.sync" in reached
        finally:
            failpoints.listen(None)
        assert reign_of(mirror) == Reign(Epoch(7), 77)
        if purpose == "fetch" or not is_busy:
            assert isinstance(answer, Welcome)
        primary.create("more")
        primary.replication.local.book.resume("east")
        primary.replication._peers_changed()
        await until("it is refused", lambda: peer_status(primary).state == "refused")
        assert "of epoch 7 has come after it" in (peer_status(primary).last_error or "")
        assert peer_status(primary).acked_seq < primary.volume.journal.head_seq


async def test_a_higher_reign_waits_for_no_lower_one_that_is_compared(tmp_path: Path) -> None:
    """That one may take its time to answer."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(2)
        await until("the mirror is level", level(primary, mirror))
        assert primary.replication is not None
        primary.replication.local.book.pause("east")
        primary.replication._peers_changed()
        await until("it is away", lambda: mirror_status(mirror).address is None)
        hello = higher(mirror, "ship", 3)
        lower = hello._replace(node="slow", epoch=Epoch(1), held_epoch=Epoch(1), reign_node=0)
        identity = load_or_make(tmp_path / "slow", "slow")
        address = parse_address(listens_at(mirror))
        async with await connect(
            address, identity, None, insecure=True, timeout_seconds=10
        ) as connection:
            await connection.send(lower)
            assert isinstance(await connection.receive(), Welcome)
            answers = [await greet(mirror, hello) for _ in range(2)]  # it is cut off by the first
            assert isinstance(answers[1], Welcome)
            assert await connection.receive() is None
        assert reign_of(mirror) == Reign(Epoch(7), 77)


@pytest.mark.parametrize("purpose", ["ship", "fetch"])
async def test_a_primary_has_a_higher_reign_on_its_disk_before_it_answers(
    tmp_path: Path, purpose: str
) -> None:
    reached: list[str] = []
    with open_volume(tmp_path / "primary") as primary:
        primary.work(2)
        primary.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(primary):
            hello = higher(primary, purpose, 3)
            await greet(primary, hello._replace(uuid=bytes(15) + b"1"))
            await greet(primary, hello._replace(version=9))
            assert primary.volume.write_errno is None
            failpoints.listen(reached.append)
            try:
                await greet(primary, hello)
                assert "watermarks.sync" in reached
            finally:
                failpoints.listen(None)
            assert primary.volume.write_errno == errno.EROFS
    assert reign_of(primary) == Reign(Epoch(7), 77)


async def test_a_fenced_primary_writes_a_still_higher_reign_down(tmp_path: Path) -> None:
    """A peer that asks it then hears of no other, and a restart goes by it."""
    reached: list[str] = []
    with open_volume(tmp_path / "primary") as primary:
        primary.work(2)
        primary.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(primary):
            hello = higher(primary, "fetch", 3)
            await greet(primary, hello)
            assert primary.volume.write_errno == errno.EROFS
            failpoints.listen(reached.append)
            try:
                await greet(
                    primary, hello._replace(epoch=Epoch(9), held_epoch=Epoch(9), reign_node=99)
                )
                assert "watermarks.sync" in reached
            finally:
                failpoints.listen(None)
    assert reign_of(primary) == Reign(Epoch(9), 99)


@pytest.mark.parametrize("role", ["primary", "mirror"])
async def test_a_journal_that_cannot_be_read_just_now_proves_nothing(
    tmp_path: Path, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that claims a reign is not answered, and is heard when it comes again."""
    with open_volume(tmp_path / role, mirror=role == "mirror", uuid=UUID(int=7)) as side:
        if role == "primary":
            side.work(2)
        side.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(side):
            hello = higher(side, "fetch", 3)
            with monkeypatch.context() as patch:

                def look(*_: object) -> None:
                    raise OSError(errno.EMFILE, "no descriptor is left")

                patch.setattr(ChainFinder, "_look", look)
                assert await greet(side, hello) is None
            assert side.volume.failure is None
            assert not side.replication.quorum.is_fenced
            await greet(side, hello)
            assert reign_of(side).epoch == 7
            assert side.replication.quorum.is_fenced == (role == "primary")


@pytest.mark.parametrize("purpose", ["ship", "fetch"])
@pytest.mark.parametrize("role", ["primary", "mirror"])
async def test_a_page_that_cannot_be_flushed_ends_the_volume(
    tmp_path: Path, role: str, purpose: str
) -> None:
    """All that was raised in it may be lost with the machine, and no later flush tells: so no
    caller gets an answer that goes by it, the second time neither."""
    left = [1]

    def fail_once(label: str) -> None:
        if label == "watermarks.sync" and left:
            left.pop()
            raise OSError(errno.EIO, "planned")

    with open_volume(tmp_path / role, mirror=role == "mirror", uuid=UUID(int=7)) as side:
        if role == "primary":
            side.work(2)
        side.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(side):
            hello = higher(side, purpose, 3)
            failpoints.listen(fail_once)
            try:
                answers = [await greet(side, hello) for _ in range(2)]
            finally:
                failpoints.listen(None)
            assert not left
            for answer in answers:
                assert isinstance(answer, Refusal)
                assert answer.code == "failed"
            assert side.volume.failure is not None
            assert side.volume.write_errno == errno.EROFS


@pytest.mark.parametrize("system_crash", [False, True])
async def test_a_primary_that_lost_its_page_asks_all_peers_first(
    tmp_path: Path, system_crash: bool
) -> None:
    """All that it knew of another reign may be gone: until all have answered, it takes no
    change."""

    async def start(primary: OpenVolume) -> Trouble | None:
        opening = primary.opening
        taken = await ask_peers(
            primary.replication.local,
            primary.volume.journal,
            lambda _: None,
            system_crash=opening.system_crash,
            lost_page=opening.lost_page,
        )
        opening.recover(read_only=False)
        begin(primary, Standing(fenced=taken.fenced))
        return taken.fenced

    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror):
            peers = {"east": listens_at(mirror), "west": "127.0.0.1:9"}
            with open_volume(tmp_path / "primary", orderly=not system_crash) as primary:
                primary.work(2)
                primary.replicate(ReplicationConfig(peers=peers))
                async with running(primary):
                    await until("the mirror is level", level(primary, mirror))
                head_seq = head(primary)
            if system_crash:
                crash_system(tmp_path / "primary" / "state", head_seq)
            (tmp_path / "primary" / "state" / "watermarks").unlink()
            for _ in range(2):
                with open_volume(tmp_path / "primary", begin=False) as primary:
                    primary.replicate(ReplicationConfig(peers=peers, take_back_seconds=0.3))
                    trouble = await start(primary)
                    assert trouble is not None
                    assert trouble.kind is TroubleKind.LOST_PAGE
                    assert "did not answer: west;" in trouble.text
                    with pytest.raises(OSError, match="Read-only"):
                        primary.create("one")
            for _ in range(2):
                with open_volume(tmp_path / "primary", begin=False) as primary:
                    primary.replicate(
                        ReplicationConfig(peers={"east": peers["east"]}, take_back_seconds=5)
                    ).local.book.remove("west")
                    assert await start(primary) is None
                    primary.create(f"file{head(primary)}")
