"""A console has two nodes paired: by a code that one gives out, and the other uses."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from fusejournal.agent import pairing_calls
from fusejournal.agent.calls import Calls
from fusejournal.agent.fields import Fields
from fusejournal.errors import FusejournalError, NotRunningError, UsageError
from tests.support.nodes import make_volume, running_node


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))


async def _ask(call: Callable[[Fields], dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return await trio.to_thread.run_sync(partial(call, Fields(fields)))


async def test_two_nodes_are_paired(tmp_path: Path) -> None:
    async with (
        running_node(tmp_path / "there", "there", role="mirror") as there,
        running_node(tmp_path / "here", "here", listens=False) as here,
    ):
        opened = await _ask(pairing_calls.open_code, volume="there")
        assert (opened["node"], opened["is_mirror"]) == ("there", True)
        assert opened["command"] == "fusejournal pair there"
        assert opened["use_command"].endswith(f"there={opened['listen']} {opened['code']}")
        waiting = await _ask(pairing_calls.code_state, volume="there", id=opened["id"])
        assert waiting["state"] == "waiting"
        asked = {"volume": "here", "peer": "cellar", "address": opened["listen"]}
        with pytest.raises(FusejournalError):
            await _ask(pairing_calls.use_code, **asked, code="0000-0000-0000-0000")
        paired = await _ask(pairing_calls.use_code, **asked, code=opened["code"])
        assert (paired["node"], paired["peer"]["name"]) == ("there", "cellar")
        assert paired["peer"]["fingerprint"] == there.identity.fingerprint
        assert paired["command"] == f"fusejournal pair here cellar={opened['listen']} CODE"
        assert here.book.get("cellar").certificate == there.identity.certificate
        state = await _ask(pairing_calls.code_state, volume="there", id=opened["id"])
        assert (state["state"], state["peer"]["name"]) == ("paired", "here")
        # The code is good once.
        with pytest.raises(FusejournalError):
            await _ask(pairing_calls.use_code, **{**asked, "peer": "again"}, code=opened["code"])


async def test_a_code_is_taken_back(tmp_path: Path) -> None:
    async with running_node(tmp_path / "there", "there", role="mirror"):
        first = await _ask(pairing_calls.open_code, volume="there")
        second = await _ask(pairing_calls.open_code, volume="there")
        old = await _ask(pairing_calls.code_state, volume="there", id=first["id"])
        closed = await _ask(pairing_calls.close_code, volume="there", id=second["id"])
        assert (old["state"], closed["state"]) == ("closed", "closed")


async def test_a_node_without_a_journal_has_a_standing(tmp_path: Path) -> None:
    """A mirror that is not paired yet is what pairs."""
    make_volume(tmp_path / "new", "new", "mirror")
    found = await Calls("hall", dict, {})._value("standing", Fields({"volume": "new"}))
    assert (found["role"], found["position"], found["peers"]) == ("mirror", None, [])


async def test_what_cannot_be(tmp_path: Path) -> None:
    make_volume(tmp_path / "away", "away")
    with pytest.raises(NotRunningError, match="fusejournal mount away"):
        await _ask(pairing_calls.open_code, volume="away")
    fields = {"volume": "away", "code": "7K3M-Q0ZV-9X2C-HT5A"}
    for wrong in ({"peer": "--force", "address": "h:1"}, {"peer": "a", "address": "h"}):
        with pytest.raises(UsageError):
            await _ask(pairing_calls.use_code, **fields, **wrong)
    async with running_node(tmp_path / "here", "here", listens=False):
        with pytest.raises(FusejournalError, match="does not listen"):
            await _ask(pairing_calls.open_code, volume="here")
