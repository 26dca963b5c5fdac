"""Reigns: what a primary hears of another reign, what it believes, and what it keeps of that; and
what a mirror makes of two primaries, or of one that runs twice."""

import errno
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio

from fusejournal.address import parse_address
from fusejournal.config import ReplicationConfig
from fusejournal.disk import failpoints
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.operations import NewEpoch
from fusejournal.replication import fetch_lost as fetch_lost_module
from fusejournal.replication import receiver as receiver_module
from fusejournal.replication import ship_session as ship_session_module
from fusejournal.replication import shipper as shipper_module
from fusejournal.replication.common_ancestor import ChainFinder
from fusejournal.replication.fetch_lost import TakenBack
from fusejournal.replication.inquiry import ask_peers
from fusejournal.replication.mirror_applier import MirrorApplier
from fusejournal.replication.parting import load_parting
from fusejournal.replication.peer_record import PeerRecord
from fusejournal.replication.supervisor import Replication
from fusejournal.types import EPOCH_MAX, Epoch, Reign, Seq
from fusejournal.volume.standing import UNOPPOSED, Standing
from fusejournal.wire.connection import OPEN, READY, Connection, receive_exactly
from fusejournal.wire.frames import Ack, Begin, Diverged, Hello, Message, Refusal, Welcome
from fusejournal.wire.identity import load_or_make, node_id_of
from fusejournal.wire.plain import CONNECTS, LISTENS, PROOF_BYTES, prove
from fusejournal.wire.session import SHIP, RefusedError, hello
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
from tests.support.volumes import OpenVolume, content, open_volume

pytestmark = pytest.mark.mount


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipper_module, "_REFUSED_SECONDS", 0.2)
    monkeypatch.setattr(ship_session_module, "PING_SECONDS", 0.05)
    monkeypatch.setattr(receiver_module, "_SIGN_SECONDS", 0.4)


def reign_of(side: OpenVolume) -> Reign:
    """The reign that *side* has seen."""
    watermarks = WatermarkPage(side.directory / "state" / "watermarks")
    try:
        return watermarks.fence
    finally:
        watermarks.close()


def node_id(side: OpenVolume) -> int:
    return node_id_of(side.replication.local.identity.fingerprint)


def begin(side: OpenVolume, standing: Standing = UNOPPOSED) -> None:
    for _ in side.opening.start_epoch_and_import(read_only=False, standing=standing):
        pass


def degraded(side: OpenVolume) -> str:
    return "\n".join(side.replication.degraded())


async def follow(mirror: OpenVolume, primary: OpenVolume, epoch: int) -> None:
    """Have *mirror*, which runs, follow *primary*, which begins *epoch*."""
    primary.volume.note(NewEpoch(Epoch(epoch), "promoted"))
    primary.work(2)
    primary.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
    async with running(primary):
        await until("the mirror is level", level(primary, mirror))


# -- a higher reign ------------------------------------------------------------------------------


async def test_a_fenced_primary_takes_no_change(tmp_path: Path) -> None:
    """While it runs, after a restart, and with no peer in reach; until an admin overrules it."""
    with (
        open_volume(tmp_path / "mirror", mirror=True) as mirror,
        open_volume(tmp_path / "next") as successor,
    ):
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror):
            await follow(mirror, successor, 2)
            uuid = successor.volume.journal.uuid
            with open_volume(tmp_path / "primary", uuid=uuid, orderly=False) as primary:
                config = ReplicationConfig(peers={"east": listens_at(mirror)}, mirrors=1)
                primary.replicate(config)
                caught: list[int | None] = []

                async def wait() -> None:
                    try:
                        primary.create("one")
                        await primary.durability.wait(head(primary))
                    except OSError as error:
                        caught.append(error.errno)

                async with running(primary), trio.open_nursery() as nursery:
                    nursery.start_soon(wait)
                    await until("it is fenced", lambda: primary.volume.write_errno is not None)
                assert caught == [errno.EROFS]
                with pytest.raises(OSError, match="Read-only") as refused:
                    primary.create("two")
                assert refused.value.errno == errno.EROFS
                assert "fenced: epoch 2 has begun" in (primary.volume.failure or "")
                assert "(reign 2/" in (primary.volume.failure or "")
                assert "fusejournal demote" in (primary.volume.failure or "")
                head_seq = primary.volume.journal.head_seq
    reign = Reign(Epoch(2), node_id(successor))
    assert reign_of(primary) == reign

    for system_crash in (False, True):  # and no peer is there
        if system_crash:
            crash_system(tmp_path / "primary" / "state", head_seq)
        with open_volume(tmp_path / "primary", begin=False, orderly=False) as primary:
            replication = primary.replicate(ReplicationConfig(peers={"east": "127.0.0.1:9"}))
            with pytest.raises(RefusedError, match="epoch 2") as error:
                await ask_peers(
                    replication.local,
                    primary.volume.journal,
                    lambda _: None,
                    system_crash=system_crash,
                )
            assert error.value.exit_code == 26
            if not system_crash:
                primary.opening.recover(read_only=False)
                begin(primary, Standing(fenced=str(error.value)))
                with pytest.raises(OSError, match="Read-only"):
                    primary.create("three")
            assert primary.volume.journal.head_seq == head_seq

    with open_volume(tmp_path / "primary", begin=False) as primary:
        replication = primary.replicate(
            ReplicationConfig(overrule=str(reign), take_back_seconds=0.1)
        )
        taken = await ask_peers(replication.local, primary.volume.journal, lambda _: None)
        assert "overruled" in (taken.new_epoch or "")
        primary.opening.recover(read_only=False)
        begin(primary, Standing(seen_epoch=replication.local.fence.highest_epoch))
        assert primary.volume.journal.epoch == 3
        primary.create("four")


async def test_a_reign_that_only_a_mirror_knows_can_be_overruled(tmp_path: Path) -> None:
    """Nothing proves it to the primary, which it does not fence; and the mirror takes nothing of a
    lower one, though no node reigns in it."""
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror):
            peers = {"east": listens_at(mirror)}
            with open_volume(tmp_path / "primary") as primary:
                primary.work(2)
                primary.replicate(ReplicationConfig(peers=peers))
                async with running(primary):
                    await until("the mirror is level", level(primary, mirror))
                    await greet(mirror, higher(mirror, "ship", 3))
                    await until("it is refused", lambda: peer_status(primary).state == "refused")
                    assert "overrule" in (peer_status(primary).advice or "")
                    assert str(reign_of(mirror)) in (peer_status(primary).last_error or "")
                    assert primary.volume.write_errno is None
            overruled = ReplicationConfig(peers=peers, overrule=str(reign_of(mirror)))
            for _ in range(2):  # it is left in the configuration
                with open_volume(tmp_path / "primary", begin=False) as primary:
                    replication = primary.replicate(overruled)
                    taken = await ask_peers(
                        replication.local,
                        primary.volume.journal,
                        lambda _: None,
                        system_crash=False,
                    )
                    assert taken.failures == []
                    primary.opening.recover(read_only=False)
                    highest = replication.local.fence.highest_epoch
                    begin(primary, Standing(seen_epoch=highest, new_epoch=taken.new_epoch))
                    assert primary.volume.journal.epoch == 8
                    async with running(primary):
                        primary.create(f"file{primary.volume.journal.head_seq}")
                        await until("the mirror is level", level(primary, mirror))
    assert reign_of(mirror) == Reign(Epoch(8), node_id(primary))


class Liar:
    """A peer that answers a greeting by *answer*, whichever node greets."""

    def __init__(self, answer: Message) -> None:
        self._answer = answer

    async def handle(self, stream: trio.SocketStream) -> None:
        assert await receive_exactly(stream, len(OPEN)) == OPEN
        expected = prove(CONNECTS, stream, is_listener=True)
        assert await receive_exactly(stream, PROOF_BYTES) == expected
        await stream.send_all(READY + prove(LISTENS, stream, is_listener=True))
        async with Connection(stream, "primary", None) as connection:
            await connection.receive()
            await connection.send(self._answer)
            with trio.move_on_after(0.2):
                while await connection.receive() is not None:
                    pass


def _welcome(epoch: int, held: int, seq: int, chain: int) -> Welcome:
    where = Epoch(epoch), Seq(seq), chain
    return Welcome(1, b"", "liar", *where, Seq(0), 77, Epoch(held))


@pytest.mark.parametrize("system_crash", [False, True])
@pytest.mark.parametrize(
    "answer",
    [
        _welcome(1 << 40, 1 << 40, 10**6, 1),
        _welcome(EPOCH_MAX + 1, EPOCH_MAX + 1, 10**6, 1),
        _welcome(9, 3, 10**6, 1),  # it has heard of it
        _welcome(9, 9, 0, 0),  # of which its journal has nothing
        Refusal("fenced", "go away"),
        Refusal("fenced", "go away", Epoch(1 << 40), 77, Epoch(1 << 40), Seq(10**6), 1),
        Refusal("fenced", "go away", Epoch(9), 77, Epoch(8), Seq(10**6), 1),
    ],
)
async def test_a_word_that_nothing_proves_binds_nobody(
    tmp_path: Path, answer: Message, system_crash: bool
) -> None:
    with open_volume(tmp_path / "primary", orderly=not system_crash) as primary:
        primary.work(2)
        head_seq = primary.volume.journal.head_seq
    if system_crash:
        crash_system(tmp_path / "primary" / "state", head_seq)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    config = ReplicationConfig(peers={"east": address}, take_back_seconds=0.3)
    with open_volume(tmp_path / "primary", begin=False) as primary:
        replication = primary.replicate(config)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, Liar(answer).handle, listeners)
            await ask_peers(
                replication.local, primary.volume.journal, lambda _: None, system_crash=system_crash
            )
            primary.opening.recover(read_only=False)
            begin(primary)
            async with running(primary):
                await until("it was told", lambda: peer_status(primary).errors > 1)
            nursery.cancel_scope.cancel()
        primary.create("one")
        assert reign_of(primary).epoch == primary.volume.journal.epoch == 1 + system_crash


async def test_a_peer_that_has_begun_the_same_epoch(tmp_path: Path) -> None:
    """Neither gives in, because neither can know; nothing is shipped, and both say so."""
    with (
        open_volume(tmp_path / "mirror", mirror=True) as mirror,
        open_volume(tmp_path / "next") as successor,
        open_volume(tmp_path / "primary", uuid=successor.volume.journal.uuid) as primary,
    ):
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror):
            await follow(mirror, successor, 2)
            before = content(mirror.journal_dir)
            primary.volume.note(NewEpoch(Epoch(2), "crowned itself"))
            primary.work(9)
            primary.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
            async with running(primary):
                await until("it is refused", lambda: peer_status(primary).state == "refused")
                assert "two nodes have begun epoch 2" in (peer_status(primary).last_error or "")
                assert "two nodes have begun epoch 2" in degraded(mirror)
                primary.create("goes on")
            assert reign_of(mirror) == Reign(Epoch(2), node_id(successor))
            assert content(mirror.journal_dir) == before


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


async def greet(listener: OpenVolume, hello: Hello) -> Message | None:
    """Sends *hello* to *listener*, which runs. Returns the answer."""
    identity = load_or_make(listener.directory / "greeter", "greeter")
    address = parse_address(listens_at(listener))
    async with await connect(
        address, identity, None, insecure=True, timeout_seconds=10
    ) as connection:
        await connection.send(hello)
        return await connection.receive()


def higher(side: OpenVolume, purpose: str, seq: int) -> Hello:
    """The greeting of a node that *side* has not heard of, and that reigns in epoch 7."""
    uuid, epoch = side.volume.journal.uuid.bytes, Epoch(7)
    return Hello(1, uuid, "next", purpose, epoch, Seq(seq), 1, 77, epoch, 77, 5)


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

    async def start(primary: OpenVolume) -> str | None:
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
                    assert "did not answer: west;" in (await start(primary) or "")
                    with pytest.raises(OSError, match="Read-only"):
                        primary.create("one")
            for _ in range(2):
                with open_volume(tmp_path / "primary", begin=False) as primary:
                    primary.replicate(
                        ReplicationConfig(peers={"east": peers["east"]}, take_back_seconds=5)
                    ).local.book.remove("west")
                    assert await start(primary) is None
                    primary.create(f"file{head(primary)}")


async def test_a_primary_of_another_volume_ends_no_reign(tmp_path: Path) -> None:
    with (
        open_volume(tmp_path / "primary") as primary,
        open_volume(tmp_path / "other") as other,
    ):
        primary.replicate(ReplicationConfig(), "127.0.0.1:0")
        other.volume.note(NewEpoch(Epoch(9), "another boot of the machine"))
        async with running(primary):
            other.replicate(ReplicationConfig(peers={"wrong": listens_at(primary)}))
            async with running(other):
                await until("it is refused", lambda: peer_status(other).errors > 1)
        assert primary.volume.write_errno is None
    assert reign_of(primary).epoch == 1


async def test_a_mirror_hears_of_a_reign_from_its_own_mirror(tmp_path: Path) -> None:
    """That one follows the successor: the lower reign is nothing to either then."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(2)
        await until("the mirror is level", level(primary, mirror))
        uuid = primary.volume.journal.uuid
        with (
            open_volume(tmp_path / "below", mirror=True) as below,
            open_volume(tmp_path / "next", uuid=uuid) as successor,
        ):
            below.replicate(ReplicationConfig(), "127.0.0.1:0")
            async with running(below):
                await follow(below, successor, 2)
                replication = mirror.replication
                assert replication is not None
                replication.local.book.add("below", parse_address(listens_at(below)))
                replication._peers_changed()
                await until("it is refused", lambda: peer_status(mirror).state == "refused")
                await until("it has heard", lambda: reign_of(mirror).epoch == 2)
        await until("its own is refused", lambda: peer_status(primary).state == "refused")
        assert primary.volume.write_errno is None  # nothing proves it to the primary
    assert reign_of(mirror) == Reign(Epoch(2), node_id(successor))


@pytest.mark.parametrize("purpose", ["ship", "fetch"])
async def test_a_copy_of_the_followed_node_that_has_parted_ends_no_reign(
    tmp_path: Path, purpose: str
) -> None:
    """Another boot has a copy of a machine begin an epoch; the one that it was copied from is away
    for a moment just then."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(2)
        await until("the mirror is level", level(primary, mirror))
        await until("it streams", lambda: mirror_status(mirror).state == "streaming")
        primary.replication.local.book.pause("east")
        primary.replication._peers_changed()
        await until("it is away", lambda: mirror_status(mirror).address is None)
        hello = higher(mirror, purpose, 3)
        answer = await greet(
            mirror, hello._replace(reign_node=node_id(primary), node_id=node_id(primary))
        )
        assert isinstance(answer, Welcome)
        assert reign_of(mirror).epoch == 1
        primary.create("more")
        primary.replication.local.book.resume("east")
        primary.replication._peers_changed()
        await until("the mirror is level", level(primary, mirror))


# -- what was acknowledged -----------------------------------------------------------------------


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
                    taken = await ask_peers(
                        replication.local, primary.volume.journal, lambda _: None
                    )
                assert taken.failures == []
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


def head(side: OpenVolume) -> Seq:
    return side.volume.journal.head_seq


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


# -- one node that runs twice --------------------------------------------------------------------


def clone_identity(one: Path, other: Path) -> None:
    """*other* has the key of *one*, as a clone of its machine has."""
    (other / "state").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(other / "state" / "identity", ignore_errors=True)
    shutil.copytree(one / "state" / "identity", other / "state" / "identity")


def be_called_as(one: OpenVolume, replication: Replication) -> None:
    """*replication* has the name of *one*, as its certificate makes it."""
    replication.local.name = one.replication.local.name


async def test_a_clone_does_not_disturb_the_one_that_is_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All three say what is the matter, and nothing fills anybody's disk."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        clone_identity(tmp_path / "primary", tmp_path / "clone")
        uuid = primary.volume.journal.uuid
        with open_volume(tmp_path / "clone", uuid=uuid) as clone:
            clone.volume.note(NewEpoch(Epoch(5), "another boot of the machine"))
            clone.work(9)
            peers = ReplicationConfig(peers={"east": listens_at(mirror)})
            be_called_as(primary, clone.replicate(peers))
            assert node_id(clone) == node_id(primary)
            async with running(clone):
                await until("it is refused", lambda: peer_status(clone).errors > 2)
                primary.work(3, start=20)
                await until("the mirror is level", level(primary, mirror))
                await until("it is told", lambda: "runs twice" in degraded(primary))
                assert "runs twice" in degraded(clone)
                assert "runs twice" in degraded(mirror)
                assert peer_status(primary).sessions == 1
                assert primary.volume.write_errno is None
                assert load_parting(tmp_path / "mirror" / "state") is None
                assert reign_of(mirror).epoch == 1

                # Nor does it when the one that is followed is away for a moment.
                primary.replication.local.book.pause("east")
                primary.replication._peers_changed()
                await until("it is away", lambda: mirror_status(mirror).address is None)
                errors = peer_status(clone).errors
                await until("it is refused", lambda: peer_status(clone).errors > errors + 1)
                assert "runs twice" in degraded(clone)
                primary.replication.local.book.resume("east")
                primary.replication._peers_changed()
                primary.work(1, start=30)
                await until("the mirror is level", level(primary, mirror))
    assert caplog.text.count("runs twice") < 12


async def test_a_restart_is_no_clone(tmp_path: Path) -> None:
    with open_volume(tmp_path / "mirror", mirror=True) as mirror:
        mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(mirror):
            for turn in range(3):
                with open_volume(tmp_path / "primary", orderly=turn != 1) as primary:
                    primary.work(1, start=turn * 10)
                    peers = {"east": listens_at(mirror)}
                    primary.replicate(ReplicationConfig(peers=peers))
                    async with running(primary):
                        await until("the mirror is level", level(primary, mirror))
                        assert degraded(primary) == degraded(mirror) == ""


async def test_a_mirror_knows_a_clone_again_after_a_restart(tmp_path: Path) -> None:
    """And the starts of the clone since; though the one that it followed is not there yet."""
    with open_volume(tmp_path / "primary") as primary:
        with open_volume(tmp_path / "mirror", mirror=True) as mirror:
            mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
            async with running(mirror):
                address = listens_at(mirror)
                peers = ReplicationConfig(peers={"east": address})
                primary.work(3)
                primary.replicate(peers)
                async with running(primary):
                    await until("the mirror is level", level(primary, mirror))
                    clone_identity(tmp_path / "primary", tmp_path / "clone")
                    uuid = primary.volume.journal.uuid
                    with open_volume(tmp_path / "clone", uuid=uuid) as clone:
                        clone.work(9)
                        be_called_as(primary, clone.replicate(peers))
                        async with running(clone):
                            refused = lambda: "runs twice" in degraded(clone)  # noqa: E731
                            await until("it is refused", refused)
        head_seq = primary.volume.journal.head_seq
        with (
            open_volume(tmp_path / "mirror", mirror=True) as mirror,
            open_volume(tmp_path / "clone") as clone,
        ):
            be_called_as(primary, clone.replicate(peers))
            mirror.replicate(ReplicationConfig(), address)
            async with running(mirror, clone):
                await until("it is refused", refused)
                assert "runs twice" in degraded(mirror)
                assert mirror.volume.journal.head_seq == head_seq
                primary.replicate(peers)
                async with running(primary):
                    primary.work(1, start=20)
                    await until("the mirror is level", level(primary, mirror))


async def test_a_mirror_knows_a_clone_again_that_only_asked(tmp_path: Path) -> None:
    """A clone that is killed while it starts does so: the start after that tells of that one
    alone."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        clone_identity(tmp_path / "primary", tmp_path / "clone")
        uuid, head_seq = primary.volume.journal.uuid, primary.volume.journal.head_seq
        peers = ReplicationConfig(peers={"east": listens_at(mirror)})
        with open_volume(tmp_path / "clone", uuid=uuid) as clone:
            clone.work(9)
            be_called_as(primary, clone.replicate(peers))
            async with running(clone):
                await until("it is refused", lambda: "runs twice" in degraded(clone))
            primary.replication.local.book.pause("east")
            primary.replication._peers_changed()
            await until("it is away", lambda: mirror_status(mirror).address is None)
            for _ in range(2):
                replication = clone.replicate(peers)
                taken = await ask_peers(replication.local, clone.volume.journal, lambda _: None)
                assert "runs twice" in "\n".join(taken.failures)
            be_called_as(primary, clone.replicate(peers))
            async with running(clone):
                await until("it is refused", lambda: "runs twice" in degraded(clone))
                assert mirror.volume.journal.head_seq == head_seq


async def test_a_clone_that_came_first_is_followed_and_named(tmp_path: Path) -> None:
    """No node can know then which of the two is meant; the other hears why it is not taken."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(1)
        await until("the mirror is level", level(primary, mirror))
        await until("it streams", lambda: mirror_status(mirror).state == "streaming")
        instances = mirror.receiver._instances
        followed = instances.followed
        assert followed is not None
        # Another of its starts is followed by now.
        instances.follow(followed._replace(number=followed.number ^ 1), trio.current_time())
        session_scope = primary.replication._shippers["east"][0]._session_scope
        assert session_scope is not None
        session_scope.cancel()
        instances.met(followed, trio.current_time())
        await until("it is told", lambda: "runs twice" in degraded(primary))


async def test_what_a_sender_says_of_a_parting_is_looked_at(tmp_path: Path) -> None:
    """A mirror keeps nothing aside for one whose word does not fit its own journal."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(2)
        await until("the mirror is level", level(primary, mirror))
        receiver, greeting = mirror.receiver, hello(primary.replication.me(), SHIP)
        at = [frame.checksum for _, frame in primary.volume.journal.reader.frames(Seq(1), Seq(9))]
        for message, match in (
            (Diverged(Seq(5), Seq(9), at[3], 1), "another entry there"),
            (Diverged(Seq(5), Seq(9), at[4], at[5]), "the same entry after it"),
            (Diverged(Seq(10**6), Seq(9)), "ends with"),
        ):
            with pytest.raises(Exception, match=match):
                await receiver._diverged(message, "primary", greeting)
        assert load_parting(tmp_path / "mirror" / "state") is None


# -- older copies --------------------------------------------------------------------------------


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
    answer = _welcome(1, 1, head_seq + 100, 1)._replace(reign_node=0)
    for begun in (True, False):  # the second time it has
        with open_volume(tmp_path / "primary", begin=False) as primary:
            fid = primary.volume.new_fid()
            replication = primary.replicate(ReplicationConfig(peers={"east": address}))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, Liar(answer).handle, list(listeners))
                taken = await ask_peers(
                    replication.local, primary.volume.journal, lambda _: None, system_crash=False
                )
                nursery.cancel_scope.cancel()
            (told,) = taken.failures
            assert "put back from an older copy" in told
            assert (taken.new_epoch is not None) == begun
            primary.opening.recover(read_only=False)
            begin(primary, Standing(new_epoch=taken.new_epoch))
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
                taken = await ask_peers(
                    replication.local, primary.volume.journal, lambda _: None, system_crash=False
                )
            assert taken == TakenBack([], Seq(0))
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


async def test_a_clone_hears_at_its_start_that_it_is_one(tmp_path: Path) -> None:
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        clone_identity(tmp_path / "primary", tmp_path / "clone")
        uuid = primary.volume.journal.uuid
        with open_volume(tmp_path / "clone", uuid=uuid) as clone:
            replication = clone.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
            await until("it streams", lambda: mirror_status(mirror).state == "streaming")
            for system_crash in (False, True):
                taken = await ask_peers(
                    replication.local,
                    clone.volume.journal,
                    lambda _: None,
                    system_crash=system_crash,
                )
                assert "runs twice" in "\n".join(taken.failures)


async def test_who_has_parted_takes_nobodys_place(tmp_path: Path) -> None:
    """Even one that does not say which instance it is, as a node of the version before: it is
    compared beside the session that works."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        uuid = primary.volume.journal.uuid
        with open_volume(tmp_path / "other", uuid=uuid) as other:
            other.work(9)
            other.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}))
            other.replication.local.name = primary.replication.local.name
            other.replication.local.fence.instance = 0
            async with running(other):
                await until("it has parted", lambda: peer_status(other).errors > 2)
                assert peer_status(other).state == "diverged"
                primary.work(3, start=20)
                await until("the mirror is level", level(primary, mirror))
            assert peer_status(primary).sessions == 1
            assert mirror_status(mirror).state == "streaming"
            assert load_parting(tmp_path / "mirror" / "state") is None
