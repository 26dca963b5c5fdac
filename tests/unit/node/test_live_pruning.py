"""The pruning of a running volume, beside a handoff that writes the state down, too."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from fusejournal.address import Address
from fusejournal.config import StoreConfig
from fusejournal.journal.base import JournalBase, load_base
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node.holding import hold_or_make_volume
from fusejournal.node.journal_limits import PruningRefusedError, install_base, journal_limits
from fusejournal.node.live_pruning import prune_running
from fusejournal.node.state_dir import VolumeState, load_state, note_offer
from fusejournal.objects.local import LocalStore
from fusejournal.objects.store import StoreError
from fusejournal.replication.peers import PeerBook
from fusejournal.roles.handoff import Stage
from fusejournal.types import ROOT_FID, Fid, Seq
from fusejournal.versions.base_tree import base_of
from fusejournal.versions.create import create_version
from fusejournal.versions.manifest import make_store
from fusejournal.versions.place import StorePlace, write_place
from tests.support.patience import PATIENCE_SECONDS
from tests.support.workload import make_directory, workload_of
from tests.unit.node.test_handoffs import OFFERED, handoffs_of, opened, spec_of

pytestmark = pytest.mark.mount


def _nothing(_: int, __: int | None) -> None:
    """No progress to be shown."""


def _base(state: VolumeState) -> JournalBase:
    """A base that a version in the volume's store stands for."""
    base = state.directory.parent
    kept, journal = base / "kept", base / "journal"
    workload_of(make_directory(Fid(2), ROOT_FID, b"d")).write(journal)
    store = LocalStore.make(kept)
    head = make_store(store)
    write_place(state.directory, StorePlace(str(kept), *head))
    made = create_version(store, JournalReader(journal), Seq(2), "", "node", 1, _nothing)
    return base_of(made.version, head.id)


def test_a_reign_that_is_offered_holds_the_journal(tmp_path: Path) -> None:
    with hold_or_make_volume(spec_of(tmp_path, None)) as state:
        offering = note_offer(state, OFFERED)
        page = WatermarkPage(state.watermarks, state.created_ns)
        with pytest.raises(PruningRefusedError, match=r"was offered to east"):
            install_base(offering, _base(state), page)
        page.close()
        assert load_base(state.directory) is None
        assert load_state(state.directory).offered == OFFERED


def test_what_a_peer_owes_it_does_not_have(tmp_path: Path) -> None:
    with hold_or_make_volume(spec_of(tmp_path, None)) as state:
        book = PeerBook(state.directory)
        book.add("east", Address("10.0.0.2", 7710))
        book.note_acked("east", Seq(90), Seq(80))
        book.save()
        assert _limits(state) == {"peer east has entries up to 90": 90}
        book.note_acked("east", Seq(90), Seq(5), Seq(5))
        book.save()
        assert _limits(state) == {"peer east has entries up to 5": 5}


def test_a_primary_of_before_holds_the_journal_until_it_is_shipped_to(tmp_path: Path) -> None:
    """It lacks what came since, and no peer has heard how much that is."""
    with hold_or_make_volume(spec_of(tmp_path, None)) as state:
        book = PeerBook(state.directory)
        book.add("guest", None)
        book.add("west", None)
        book.note_heard("west", Seq(100), 17.6e8)
        book.save()
        ((why, seq),) = _limits(state).items()
        assert seq == 0
        assert why.startswith("peer west was the primary before, and may lack anything since")
        book.add("west", Address("10.0.0.2", 7710))
        book.note_acked("west", Seq(90), Seq(90))
        book.save()
        assert _limits(state) == {"peer west has entries up to 90": 90}


def _limits(state: VolumeState) -> dict[str, int]:
    """The limits that peers are."""
    page = WatermarkPage(state.watermarks, state.created_ns)
    try:
        return {why: seq for seq, why in journal_limits(state, page) if "peer" in why}
    finally:
        page.close()


async def test_what_a_handoff_writes_down_meanwhile_is_seen(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    spec = spec_of(tmp_path, None)
    with hold_or_make_volume(spec) as state:
        role, parts = opened(spec, state)
        handoffs = handoffs_of(role, parts, nursery)
        running: Any = SimpleNamespace(peer=SimpleNamespace(name="east"), stage=Stage.UNDONE)
        handoffs._running = running
        base, tending, refused = _base(state), trio.Lock(), list[str]()

        async def prune() -> None:
            with pytest.raises(PruningRefusedError) as raised:
                await prune_running(role, handoffs, parts.startup, tending, [], base, StoreConfig())
            refused.append(str(raised.value))

        async with trio.open_nursery() as tasks, tending:
            tasks.start_soon(prune)
            with trio.fail_after(PATIENCE_SECONDS):
                while not tending.statistics().tasks_waiting:  # noqa: ASYNC110 -- it reads first
                    await trio.sleep(0.005)
            await handoffs._note(OFFERED.reign)
        assert "was offered to east" in refused[0]
        assert load_state(state.directory).offered == role.state.offered == OFFERED
        running.stage = Stage.NOTED
        await prune()
        assert "the role is changing" in refused[1]
        shutil.rmtree(state.directory.parent / "kept")
        with pytest.raises(StoreError):
            await prune_running(role, handoffs, parts.startup, tending, [], base, StoreConfig())
        assert load_base(state.directory) is None
        parts.startup.close()


async def test_a_handoff_waits_for_who_writes_the_state(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    spec = spec_of(tmp_path, None)
    with hold_or_make_volume(spec) as state:
        role, parts = opened(spec, state)
        handoffs = handoffs_of(role, parts, nursery)
        running: Any = SimpleNamespace(peer=SimpleNamespace(name="east"), stage=Stage.NOTED)
        handoffs._running = running
        async with trio.open_nursery() as tasks, role.saving:
            tasks.start_soon(handoffs._note, OFFERED.reign)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert role.state.offered is load_state(state.directory).offered is None
        assert load_state(state.directory).offered == role.state.offered == OFFERED
        await handoffs._note(None)
        assert load_state(state.directory).offered is role.state.offered is None
        parts.startup.close()
