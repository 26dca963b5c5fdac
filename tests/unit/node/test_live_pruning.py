"""The pruning of a running volume, beside a handoff that writes the state down, too."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import trio
import trio.testing

from fusejournal.address import Address
from fusejournal.journal.base import JournalBase, load_base
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node.handoffs import Handoffs
from fusejournal.node.holding import hold_or_make_volume
from fusejournal.node.hooks import RoleHooks
from fusejournal.node.journal_limits import PruningRefusedError, install_base, journal_limits
from fusejournal.node.live_pruning import prune_running
from fusejournal.node.state_dir import VolumeState, load_state, note_offer
from fusejournal.replication.peers import PeerBook
from fusejournal.roles.handoff import Stage
from fusejournal.types import Epoch, Fid, Seq
from tests.unit.node.test_handoffs import OFFERED, opened, spec_of

pytestmark = pytest.mark.mount


def _base(uuid: UUID) -> JournalBase:
    roots = "00" * 32
    return JournalBase(uuid, Epoch(1), Seq(1), 1, 1, "key", "id", roots, roots, Fid(2), 0)


def test_a_reign_that_is_offered_holds_the_journal(tmp_path: Path) -> None:
    with hold_or_make_volume(spec_of(tmp_path, None)) as state:
        offering = note_offer(state, OFFERED)
        page = WatermarkPage(state.watermarks, state.created_ns)
        with pytest.raises(PruningRefusedError, match=r"was offered to east"):
            install_base(offering, _base(state.uuid), page)
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


def _limits(state: VolumeState) -> dict[str, int]:
    """The limits that peers are."""
    page = WatermarkPage(state.watermarks, state.created_ns)
    try:
        return {why: seq for seq, why in journal_limits(state, page) if "peer" in why}
    finally:
        page.close()


async def test_what_a_handoff_writes_down_meanwhile_is_seen(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, None)
    with hold_or_make_volume(spec) as state:
        _, parts, node = opened(spec, state)
        owner: Any = node
        node.handoffs = handoffs = Handoffs(owner, parts.startup, RoleHooks(spec))
        running: Any = SimpleNamespace(peer=SimpleNamespace(name="east"), stage=Stage.UNDONE)
        handoffs._running = running
        tending, refused = trio.Lock(), list[str]()

        async def prune() -> None:
            with pytest.raises(PruningRefusedError) as raised:
                await prune_running(owner, parts.startup, tending, [], _base(state.uuid))
            refused.append(str(raised.value))

        async with trio.open_nursery() as nursery, tending:
            nursery.start_soon(prune)
            await trio.testing.wait_all_tasks_blocked()
            await handoffs._note(OFFERED.reign)
        assert "was offered to east" in refused[0]
        assert load_state(state.directory).offered == node.state.offered == OFFERED
        running.stage = Stage.NOTED
        await prune()
        assert "the role is changing" in refused[1]
        parts.startup.close()


async def test_a_handoff_waits_for_who_writes_the_state(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, None)
    with hold_or_make_volume(spec) as state:
        handoffs, parts, node = opened(spec, state)
        running: Any = SimpleNamespace(peer=SimpleNamespace(name="east"), stage=Stage.NOTED)
        handoffs._running = running
        async with trio.open_nursery() as nursery, node.saving:
            nursery.start_soon(handoffs._note, OFFERED.reign)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert node.state.offered is load_state(state.directory).offered is None
        assert load_state(state.directory).offered == node.state.offered == OFFERED
        await handoffs._note(None)
        assert load_state(state.directory).offered is node.state.offered is None
        parts.startup.close()
