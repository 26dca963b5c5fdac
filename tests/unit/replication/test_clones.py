"""One node that runs twice: the clone is known again, named, and takes the place of none."""

import shutil
from pathlib import Path

import pytest
import trio

from fusejournal.config import ReplicationConfig
from fusejournal.operations import NewEpoch
from fusejournal.replication.inquiry import ask_peers
from fusejournal.replication.parting import load_parting
from fusejournal.replication.supervisor import Replication
from fusejournal.types import Epoch, Seq
from fusejournal.wire.frames import Diverged
from fusejournal.wire.session import SHIP, hello
from tests.support.pairs import (
    level,
    listens_at,
    mirror_and_primary,
    mirror_status,
    peer_status,
    running,
    until,
)
from tests.support.reigns import degraded, node_id, reign_of
from tests.support.volumes import OpenVolume, open_volume

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("quick_sessions")]


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
                assert "runs twice" in "\n".join(map(str, taken.failures))
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
                assert "runs twice" in "\n".join(map(str, taken.failures))


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
