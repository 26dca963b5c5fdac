"""A mirror that followed another history comes level with its primary, keeping what it had."""

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import pytest
import trio
from click.testing import CliRunner, Result

from fusejournal.address import node_name, parse_address
from fusejournal.admin.branch import BranchSource, drop
from fusejournal.admin.rejoin import RejoinRequest
from fusejournal.admin.status import volume_status
from fusejournal.cli.branch import branch
from fusejournal.cli.rejoin import rejoin
from fusejournal.config import ReplicationConfig
from fusejournal.errors import (
    FusejournalError,
    OtherHistoryError,
    UnknownPeerError,
    VolumeBusyError,
)
from fusejournal.journal.branches import list_branches
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node.holding import hold_volume
from fusejournal.node.state_dir import VolumeState, load_state, save_state
from fusejournal.operations import NewEpoch
from fusejournal.replication.common_ancestor import first_error
from fusejournal.replication.parting import load_parting
from fusejournal.replication.peers import PeerBook
from fusejournal.roles.rejoin import RejoinError
from fusejournal.roles.role import Role
from fusejournal.types import ROOT_FID, Epoch, Reign, Seq
from fusejournal.volume.rollback import REJOIN_FILE
from tests.support.losses import Died, crash_system, dying_at
from tests.support.pairs import level, listens_at, mirror_status, running, until
from tests.support.trees import difference, image
from tests.support.volumes import OpenVolume, Quiet, content, open_volume

pytestmark = pytest.mark.mount


class Silent(Quiet):
    """Wants to know nothing either."""

    def ready(self, imported: int) -> None: ...


class Places(NamedTuple):
    """A primary, and a mirror that another node's entries have parted from it."""

    primary: Path
    mirror: Path

    @property
    def state(self) -> VolumeState:
        """The mirror's."""
        return load_state(self.mirror / "state")


async def _ship(source: OpenVolume, sink: OpenVolume, *, parts: bool = False) -> None:
    """Ship until both are level, or known to part."""
    sink.replicate(ReplicationConfig(), "127.0.0.1:0")
    async with running(sink):
        source.replicate(ReplicationConfig(peers={"there": listens_at(sink)}), "127.0.0.1:0")
        async with running(source):
            if parts:
                await until("they part", lambda: mirror_status(sink).state == "diverged")
            else:
                await until("it is level", level(source, sink))


def _level(source: Path, sink: Path, *, parts: bool = False) -> None:
    with open_volume(sink, mirror=True) as mirror, open_volume(source) as primary:
        trio.run(lambda: _ship(primary, mirror, parts=parts))


@pytest.fixture
def parted(tmp_path: Path) -> Places:
    primary, mirror, other = (tmp_path / name for name in ("primary", "mirror", "other"))
    with open_volume(primary) as volume:
        volume.work(40)
        volume.create("large", b"common" * 1000)
        uuid = volume.volume.journal.uuid
    for sink in (mirror, other):
        _level(primary, sink)
    with open_volume(other, uuid=uuid) as volume:  # who has copied it is a primary, too
        volume.work(5, start=200)
        large = volume.volume.catalog.lookup(ROOT_FID, b"large")
        assert large is not None
        volume.unlink(large, "large")
        volume.create("kept", b"of a history that lost")
    _level(other, mirror)
    with open_volume(primary) as volume:
        volume.work(8, start=100)
    _level(primary, mirror, parts=True)
    make_state(mirror)
    return Places(primary, mirror)


def make_state(directory: Path, role: Role = Role.MIRROR) -> None:
    """Makes the state that tells a command of the volume in *directory*."""
    (directory / "mount").mkdir()
    uuid = UUID((directory / "state" / "uuid").read_text())
    places = (directory / "backing").resolve(), directory / "mount"
    save_state(VolumeState(directory / "state", uuid, "mirror", *places, 0, role))


def _request(places: Places, peer: str | None = None) -> RejoinRequest:
    return RejoinRequest(places.state, peer, None, insecure=True)


def _run(places: Places) -> None:
    _request(places).run(Silent(), lambda: None)


def _check_level(places: Places) -> None:
    """It is a mirror again."""
    _level(places.primary, places.mirror)
    one, other = (places[n] / "backing" for n in (0, 1))
    assert not (found := difference(image(one), image(other))), found
    source, sink = (content(place / "state" / "journal") for place in places)
    assert source.keys() == sink.keys()
    # (The primary has stopped since: its last entry says so.)
    assert all(source[name].startswith(sink[name]) for name in sink)
    assert load_parting(places.mirror / "state") is None


def test_it_comes_level_and_keeps_what_it_had(parted: Places) -> None:
    before = image(parted.mirror / "backing")
    planned = _request(parted).plan()
    assert image(parted.mirror / "backing") == before
    assert (planned.rung, planned.source, planned.done) == (2, node_name("primary"), False)
    assert planned.own_entries > 20
    assert planned.contents > 5
    done = _request(parted).run(Silent(), lambda: None)
    (kept,) = list_branches(parted.mirror / "state")
    assert done == replace(planned, branch=kept.name, done=True)
    assert (kept.entries, kept.source) == (
        planned.own_entries - 6,
        planned.source,
    )
    # (The others are five VOIDs and a CLEAN.)
    _check_level(parted)

    # A second time there is nothing to do.
    with pytest.raises(RejoinError, match="knows of no primary"):
        _run(parted)
    assert list_branches(parted.mirror / "state") == [kept]


def test_what_was_half_made_when_its_process_died_goes_too(parted: Places) -> None:
    """It has its name, and no fid yet, so nothing but its place tells whose it is."""
    left = parted.mirror / "backing" / "kept"
    os.truncate(left, 0)
    for name in os.listxattr(left):
        os.removexattr(left, name)
    _run(parted)
    assert not left.exists()
    _check_level(parted)


def test_who_goes_by_a_lower_reign_than_was_seen_is_not_followed(parted: Places) -> None:
    page = WatermarkPage(parted.mirror / "state" / "watermarks")
    page.write_fence(Reign(Epoch(7), 0xFEED))
    page.close()
    before = image(parted.mirror / "backing")
    with pytest.raises(RejoinError, match="knows of no primary"):
        _run(parted)
    assert image(parted.mirror / "backing") == before


def test_a_branch_of_a_rejoin_that_is_not_at_its_end_is_not_dropped(parted: Places) -> None:
    with dying_at("journal.cut_back", 1), pytest.raises(Died):
        _run(parted)
    (kept,) = list_branches(parted.mirror / "state")
    with pytest.raises(FusejournalError, match="is of a rejoin that is not at its end"):
        drop(parted.state, kept.name)
    _run(parted)
    assert drop(parted.state, kept.name).name == kept.name


def test_killed_at_any_call_it_goes_on(parted: Places) -> None:
    death = 1
    while True:
        with dying_at("", death) as left:
            try:
                _run(parted)
            except Died:
                pass
            except RejoinError:  # it died when all was done
                left[0] = 1
        if left[0] > 0:
            break
        death += 7
        if (parted.mirror / "state" / REJOIN_FILE).exists():
            told = "\n".join(volume_status(parted.state).degraded)
            assert "a rejoin has begun" in told
            again = _request(parted).plan()
            assert (again.rung, again.source) == (2, node_name("primary"))
    assert death > 30
    assert len(list_branches(parted.mirror / "state")) == 1
    _check_level(parted)


@pytest.mark.parametrize("death", ["rejoin.root", "journal.cut_back"])
def test_the_next_opening_goes_on_with_it(parted: Places, death: str) -> None:
    with dying_at(death, 1), pytest.raises(Died):
        _run(parted)
    _check_level(parted)
    assert not (parted.mirror / "state" / REJOIN_FILE).exists()


# -- whom to ask ---------------------------------------------------------------------------------


async def _asked(places: Places, peer: str | None) -> tuple[int, int]:
    """Ask the primary itself, which listens, what a rejoin would do."""
    with open_volume(places.primary) as primary:
        primary.replicate(ReplicationConfig(), "127.0.0.1:0")
        async with running(primary):
            book = PeerBook(places.mirror / "state")
            book.add("primary", parse_address(listens_at(primary)))
            book.save()
            plan = await trio.to_thread.run_sync(lambda: _request(places, peer).plan())
            return plan.rung, plan.own_entries


def test_a_peer_with_an_address_is_asked(parted: Places) -> None:
    known, parting = _request(parted).plan(), load_parting(parted.mirror / "state")
    assert parting is not None
    assert trio.run(_asked, parted, "primary") == (2, known.own_entries)
    (parted.mirror / "state" / "parted.json").unlink()
    assert trio.run(_asked, parted, None) == (2, known.own_entries)
    parting.keep(parted.mirror / "state")

    # Once it has come level, there is nothing to do.
    _run(parted)
    assert trio.run(_asked, parted, "primary") == (1, 0)


def test_a_primary_that_is_behind_is_asked_by_its_own_end(parted: Places) -> None:
    """It has fewer entries than this node, and all of them are here."""
    _run(parted)
    _check_level(parted)
    older = parted.primary.with_name("older")
    with open_volume(older, mirror=True) as volume, open_volume(parted.primary) as primary:
        trio.run(lambda: _ship(primary, volume))
        uuid = volume.volume.journal.uuid
        primary.work(3, start=300)
        head_seq = volume.volume.journal.head_seq
    _level(parted.primary, parted.mirror)
    with open_volume(parted.mirror, mirror=True) as mirror:
        own = mirror.volume.journal.head_seq - head_seq
    with open_volume(older, mirror=True, uuid=uuid):
        pass

    async def ask() -> int:
        with open_volume(older, mirror=True) as volume:
            volume.replicate(ReplicationConfig(), "127.0.0.1:0")
            async with running(volume):
                book = PeerBook(parted.mirror / "state")
                book.add("older", parse_address(listens_at(volume)))
                book.save()
                plan = await trio.to_thread.run_sync(lambda: _request(parted, "older").plan())
                assert plan.rung == 2
                return plan.own_entries

    assert trio.run(ask) == own


# -- a former primary ----------------------------------------------------------------------------


@pytest.mark.parametrize("own", [0, 4], ids=["a beginning", "with entries of its own"])
@pytest.mark.parametrize("death", [None, "state.rename", "rejoin.root"])
def test_a_former_primary_whose_system_crashed(tmp_path: Path, own: int, death: str | None) -> None:
    """Another was promoted meanwhile, and no start makes a mirror of this one."""
    old, new = tmp_path / "old", tmp_path / "new"
    with open_volume(old) as volume:
        volume.work(8)
    _level(old, new)
    with open_volume(old, orderly=False) as volume:
        if not own:  # its CLEAN, which no one else has
            trio.run(lambda: _ship_to(volume, new))
        volume.work(own, start=50)
        uuid, lost = volume.volume.journal.uuid, volume.volume.journal.head_seq - own
    crash_system(old / "state", lost)
    with open_volume(new, uuid=uuid) as volume:
        volume.volume.note(NewEpoch(Epoch(2), "promoted"))
        volume.work(5, start=100)
    make_state(old, Role.PRIMARY)
    places = Places(new, old)

    async def rejoin_from() -> None:
        with open_volume(new) as source:
            source.replicate(ReplicationConfig(), "127.0.0.1:0")
            async with running(source):
                book = PeerBook(old / "state")
                book.add("new", parse_address(listens_at(source)))
                book.save()
                await trio.to_thread.run_sync(lambda: _run(places))

    if death is not None:
        with dying_at(death, 1), pytest.raises(BaseExceptionGroup) as caught:
            trio.run(rejoin_from)
        assert isinstance(first_error(caught.value), Died)
        if places.state.role is Role.PRIMARY:
            with pytest.raises(FusejournalError, match="its role has yet to change"):
                open_volume(old).__enter__()
            _run(places)
    else:
        trio.run(rejoin_from)
    _level(new, old)
    assert places.state.role is Role.MIRROR
    assert places.state.reign is not None
    assert places.state.reign.epoch == 2
    assert not (found := difference(image(new / "backing"), image(old / "backing"))), found
    assert len(list_branches(old / "state")) == (1 if own else 0)


async def _ship_to(source: OpenVolume, sink: Path) -> None:
    with open_volume(sink, mirror=True) as mirror:
        await _ship(source, mirror)


# -- refusals ------------------------------------------------------------------------------------


def test_refusals_say_what_to_do(parted: Places) -> None:
    with pytest.raises(UnknownPeerError, match=r"no peer 'west'.*there is "):
        _request(parted, "west").plan()
    step = r"is held by .*: 'fusejournal umount .*' first \(--dry-run works now\)"
    with hold_volume(parted.state), pytest.raises(VolumeBusyError, match=step):
        _run(parted)
    _request(parted).plan()  # which changes nothing
    state = parted.state
    save_state(replace(state, role=Role.PRIMARY))
    with pytest.raises(RejoinError, match="which has not come after it"):
        _run(parted)
    save_state(state)

    # Journals with nothing in common, or another than when they were compared.
    parting = load_parting(parted.mirror / "state")
    assert parting is not None
    replace(parting, seq=Seq(0), chain=0).keep(parted.mirror / "state")
    with pytest.raises(RejoinError, match=r"no entry in common.*--role mirror and a new --state"):
        _request(parted).plan()
    replace(parting, chain=1).keep(parted.mirror / "state")
    with pytest.raises(RejoinError, match="have it compared again"):
        _request(parted).plan()

    # A journal without its beginning.
    parting.keep(parted.mirror / "state")
    first, *_ = sorted((parted.mirror / "state" / "journal").glob("*.fj"))
    first.unlink()
    with pytest.raises(FusejournalError, match="the journal here begins with entry"):
        _request(parted).plan()


# -- the commands --------------------------------------------------------------------------------


def _invoke(places: Places, *arguments: str) -> Result:
    command = rejoin if arguments[0] == "rejoin" else branch
    words = [*arguments[1:]]
    return CliRunner().invoke(command, words, catch_exceptions=False)


def test_the_commands(parted: Places, tmp_path: Path) -> None:
    state = str(parted.mirror / "state")
    assert "has no branches" in _invoke(parted, "branch", "list", state).output
    dry = _invoke(parted, "rejoin", state, "--dry-run", "--insecure").output
    assert "would become a branch" in dry
    done = _invoke(parted, "rejoin", state, "--insecure").output
    assert "fusejournal mount mirror" in done
    (kept,) = list_branches(parted.mirror / "state")
    shown = _invoke(parted, "branch", "list", state).output.splitlines()
    assert kept.name in shown[1]
    assert len(shown) == 2
    for found, *asked in (
        (True, "--uid", "1000"),
        (False, "--uid", "4711"),
        (True, "--path", "kept"),
        (True, "--path", "d20*/**"),
        (False, "--path", "nowhere"),
        (True, "--since", "2000-01-01"),
        (False, "--until", "2000-01-01"),
    ):
        output = _invoke(parted, "branch", "list", state, *asked).output
        assert (kept.name in output) is found, (asked, output)
        assert found or "no such branch" in output
    log = _invoke(parted, "branch", "show", state, kept.name, "kept").output
    assert "create" in log
    target = tmp_path / "restored"
    told = _invoke(
        parted, "branch", "restore", state, kept.name, "kept", "--target", str(target)
    ).output
    assert f"of branch {kept.name}" in told
    assert (target / "kept").read_bytes() == b"of a history that lost"
    before = BranchSource(parted.state, kept).lookup.timeline(
        BranchSource(parted.state, kept).lookup.fid_at(b"large", kept.first_seq) or ROOT_FID
    )[-1][0]
    target = tmp_path / "before"
    _invoke(
        *(parted, "branch", "restore", state, kept.name, "large", "--before-seq", str(before)),
        *("--target", str(target), "--json"),
    )
    assert (target / "large").read_bytes() == b"common" * 1000
    target = tmp_path / "parted"
    to_parted = ("branch", "restore", state, kept.name, "--target", str(target), "--to-seq")
    _invoke(parted, *to_parted, str(kept.parted))
    assert (target / "large").read_bytes() == b"common" * 1000
    other = kept.parted._replace(chain=kept.parted.chain ^ 1)
    refused = CliRunner().invoke(branch, [*to_parted[1:], str(other)])
    assert isinstance(refused.exception, OtherHistoryError)
    dropped = _invoke(parted, "branch", "drop", state, kept.name).output
    assert "dropped" in dropped
    assert list_branches(parted.mirror / "state") == []
