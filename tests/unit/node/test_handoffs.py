"""A start that finds the note of an offer: it goes on only where it is known what came of that."""

import os
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import trio

from fusejournal.address import parse_address
from fusejournal.config import Config
from fusejournal.errors import UsageError
from fusejournal.layer.open_files import new_table
from fusejournal.node.assemble import StartParts, assemble_start
from fusejournal.node.handoffs import Handoffs
from fusejournal.node.holding import hold_or_make_volume
from fusejournal.node.hooks import RoleHooks
from fusejournal.node.node import Node
from fusejournal.node.spec import MountSpec
from fusejournal.node.state_dir import Offered, VolumeState, load_state, note_offer
from fusejournal.types import Epoch, Reign
from tests.support.patience import PATIENCE_SECONDS
from tests.support.volumes import Quiet

pytestmark = pytest.mark.mount

OFFERED = Offered(Reign(Epoch(2), 0xFEED), "east")


class Silent(Quiet):
    """A reporter that is not read."""

    def ready(self, names: int) -> None: ...


def spec_of(base: Path, overrule: str | None) -> MountSpec:
    backing = base / "backing"
    backing.mkdir()
    replication = {"listen": "127.0.0.1:0", "insecure": True, "overrule": overrule}
    config = Config.of({"replication": replication})
    return MountSpec("vol", base / "state", backing, backing, config, False, frozenset())


def opened(spec: MountSpec, state: VolumeState) -> tuple[Handoffs, StartParts, SimpleNamespace]:
    root_fd = os.open(spec.backing, os.O_RDONLY | os.O_DIRECTORY)
    parts = assemble_start(
        spec, state, Silent(), RoleHooks(spec), root_fd, new_table(), is_taken_over=False
    )
    parts.startup.open(read_only=False)
    node = SimpleNamespace(state=state, saving=trio.Lock(), next_role=None)
    node.note_offered = MethodType(Node.note_offered, node)
    owner: Any = node
    return Handoffs(owner, parts.startup, RoleHooks(spec)), parts, node


async def test_it_waits_for_the_targets_answer(tmp_path: Path) -> None:
    spec, lines = spec_of(tmp_path, None), list[str]()
    with hold_or_make_volume(spec) as state:
        handoffs, parts, node = opened(spec, note_offer(state, OFFERED))
        assert parts.local is not None
        with trio.move_on_after(0.05) as waiting:
            await handoffs.learn_outcome(parts.local, lines.append)
        assert waiting.cancelled_caught
        assert "was offered to east" in lines[0]
        assert f'overrule = "{OFFERED.reign}"' in lines[0]
        assert load_state(state.directory).offered == node.state.offered == OFFERED
        assert not handoffs.goes_on()
        parts.startup.close()


async def test_a_person_may_say_that_the_reign_is_none(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, str(OFFERED.reign))
    with hold_or_make_volume(spec) as state:
        handoffs, parts, node = opened(spec, note_offer(state, OFFERED))
        assert parts.local is not None
        with trio.fail_after(PATIENCE_SECONDS):
            await handoffs.learn_outcome(parts.local, pytest.fail)
        assert load_state(state.directory).offered is node.state.offered is None
        parts.startup.close()


@pytest.mark.parametrize("seconds", [float("nan"), -1.0, float("inf"), 61, "10"])
async def test_no_handoff_begins_with_a_time_that_cannot_be(
    tmp_path: Path, nursery: trio.Nursery, seconds: object
) -> None:
    spec = spec_of(tmp_path, None)
    with hold_or_make_volume(spec) as state:
        handoffs, parts, node = opened(spec, state)
        node.listens_at = lambda: parse_address("127.0.0.1:7710")
        primary: Any = SimpleNamespace(receiver=None)  # nothing gets so far as to need more of it
        begin = handoffs.commands(primary, nursery)["handoff"]
        with pytest.raises(UsageError, match="timeout_seconds has to be seconds, 0 to 60"):
            await begin({"peer": "east", "timeout_seconds": seconds})
        assert not handoffs.is_under_way
        parts.startup.close()
