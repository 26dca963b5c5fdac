"""A primary and a mirror in one process, over real sockets on the loopback, without mounts."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from fusejournal.config import ReplicationConfig
from fusejournal.replication.status import MirrorStatus, PeerStatus
from tests.support.volumes import OpenVolume, applied, open_volume


@asynccontextmanager
async def running(*sides: OpenVolume) -> AsyncIterator[None]:
    """All *sides* flush and replicate until the block ends."""
    async with trio.open_nursery() as nursery:
        for side in sides:
            nursery.start_soon(side.durability.run)
            await nursery.start(side.replication.run)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def shipping(primary: OpenVolume, mirror: OpenVolume, **config: Any) -> AsyncIterator[None]:
    """*primary* ships to *mirror*, which it knows as east; both run until the block ends."""
    mirror.replicate(ReplicationConfig(), "127.0.0.1:0")
    async with running(mirror):
        primary.replicate(ReplicationConfig(peers={"east": listens_at(mirror)}, **config))
        async with running(primary):
            yield


@asynccontextmanager
async def mirror_and_primary(
    tmp_path: Path, **config: Any
) -> AsyncIterator[tuple[OpenVolume, OpenVolume]]:
    """A primary that ships to a mirror; both run."""
    with (
        open_volume(tmp_path / "mirror", mirror=True) as mirror,
        open_volume(tmp_path / "primary") as primary,
    ):
        async with shipping(primary, mirror, **config):
            yield primary, mirror


def listens_at(side: OpenVolume) -> str:
    """The address of a side that runs."""
    return str(side.replication.status().listen)


async def until(what: str, condition: Callable[[], bool]) -> None:
    """Return when *condition* holds. Raises trio.TooSlowError when it does not soon."""
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 -- what is waited for is in other tasks' hands
            await trio.sleep(0.005)
    assert condition(), what


def level(primary: OpenVolume, mirror: OpenVolume) -> Callable[[], bool]:
    """True if *mirror* has applied everything."""
    return lambda: applied(mirror) == primary.volume.journal.head_seq


def peer_status(volume: OpenVolume) -> PeerStatus:
    """The status of shipping to the one peer."""
    (status,) = volume.replication.status().peers
    return status


def mirror_status(volume: OpenVolume) -> MirrorStatus:
    """The status of receiving."""
    status = volume.replication.status().mirror
    assert status is not None
    return status
