"""The target of a handoff: what it tells a primary that asks what came of its offer."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from fusejournal.address import parse_address
from fusejournal.roles.hand_over import ask_outcome
from fusejournal.roles.handoff import Move
from fusejournal.roles.take_over import TakeOver, TakeOverSeams
from fusejournal.types import Epoch, Reign
from fusejournal.wire.frames import Offer, Welcome
from fusejournal.wire.identity import node_id_of
from fusejournal.wire.session import HANDOFF, hello
from fusejournal.wire.session_connection import SessionConnection
from fusejournal.wire.session_states import Side
from fusejournal.wire.transport import connect
from tests.support.pairs import level, listens_at, mirror_and_primary, until
from tests.support.volumes import OpenVolume

pytestmark = pytest.mark.mount


class _Target:
    """A mirror whose role is on the disk once the test lets it be."""

    def __init__(self, primary: OpenVolume, mirror: OpenVolume) -> None:
        self._primary = primary
        self._mirror = mirror
        self.reign = Reign(Epoch(2), node_id_of(mirror.replication.local.identity.fingerprint))
        self.is_committing, self.may_commit = threading.Event(), threading.Event()
        self.taken: list[Reign] = []
        seams = TakeOverSeams(self._before, self._undone, self._commit, self.taken.append)
        target = TakeOver(mirror.volume, mirror.replication, mirror.receiver, seams)
        mirror.take_over = target.serve

    async def _before(self, *_: str) -> None: ...

    async def _undone(self) -> None: ...

    def _commit(self, _: Reign) -> None:
        self.is_committing.set()
        self.may_commit.wait(10)

    async def ask(self) -> Move:
        """Returns what it says."""
        local = self._primary.replication.local
        peer = local.book.get("east")
        return await ask_outcome(local, peer, self._primary.replication.me(), self.reign)

    @asynccontextmanager
    async def agreed(self) -> AsyncIterator[SessionConnection]:
        """A session in which it waits for the offer."""
        local = self._primary.replication.local
        where = parse_address(listens_at(self._mirror))
        async with await connect(
            where, local.identity, None, insecure=True, timeout_seconds=10
        ) as connection:
            me = self._primary.replication.me()
            session = SessionConnection(connection, Side.CONNECTOR)
            await session.send(hello(me, HANDOFF, self.reign.epoch))
            welcome: Welcome = await session.receive()
            assert welcome.role == "mirror"
            yield session


async def test_it_has_taken_over_once_that_is_on_its_disk(tmp_path: Path) -> None:
    """A question waits while it is written down; the process is still a mirror's then."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        target = _Target(primary, mirror)
        async with target.agreed() as session:
            await mirror.durability.flush()
            head, told = primary.volume.journal.head, list[Move]()
            await session.send(Offer(*target.reign, head.seq, head.chain))
            await until("it is written down", target.is_committing.is_set)

            async def ask() -> None:
                told.append(await target.ask())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await trio.sleep(0.2)
                assert not told
                target.may_commit.set()
            assert told == [Move.TAKEN]
            assert target.taken == [target.reign]


async def test_a_vote_that_it_has_given_itself_is_no_taking_over(tmp_path: Path) -> None:
    """It had been told to promote itself, while the primary was not to be reached, and got no other
    vote: as long as that counted as taken, no node was a primary any more."""
    async with mirror_and_primary(tmp_path) as (primary, mirror):
        primary.work(3)
        await until("the mirror is level", level(primary, mirror))
        target = _Target(primary, mirror)
        async with target.agreed():
            await mirror.receiver.give_vote(target.reign, "east")
            assert await target.ask() is Move.DECLINED
