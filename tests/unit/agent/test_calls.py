"""Calls about volumes: what is kept from one to the next is of one node alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from fusejournal.agent.calls import Calls
from fusejournal.agent.fields import Fields
from fusejournal.journal.journal import Journal
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.node.state_dir import load_state, save_state
from fusejournal.operations import Clean, Mkdir
from fusejournal.types import ROOT_FID, SYSTEM_CALLER, Fid
from tests.support.nodes import make_volume


def _make_node(directory: Path, name: str, uuid: UUID | None, made: int) -> UUID:
    """A node of the volume *uuid*, or of a new one, with so many directories."""
    make_volume(directory, name)
    if uuid is not None:
        save_state(replace(load_state(directory), uuid=uuid))
    state = load_state(directory)
    state.journal_dir.mkdir()
    journal = Journal.create(state.journal_dir, state.uuid, JournalOptions())
    for number in range(1, made + 1):
        mkdir = Mkdir(Fid(number + 1), ROOT_FID, b"d%d" % number, 0o755, 0, 0, None, None)
        journal.append(mkdir, SYSTEM_CALLER, number, lambda _: b"")
    journal.append(Clean(), SYSTEM_CALLER, made + 1, lambda _: None)
    journal.close()
    return state.uuid


async def test_the_chart_of_a_node_is_of_its_own_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine may have two nodes of one volume, of which one has gone on by itself."""
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))
    uuid = _make_node(tmp_path / "one", "one", None, 3)
    assert _make_node(tmp_path / "other", "other", uuid, 5) == uuid
    calls = Calls("hall", dict, {})

    async def directories(volume: str) -> int:
        chart: dict[str, Any] = await calls._value("histogram", Fields({"volume": volume}))
        return sum(bar.get("mkdir", 0) for bar in chart["by_op"])

    assert [await directories(name) for name in ("one", "other", "one")] == [3, 5, 3]
