"""A start that finds the note of an offer: it goes on only where it is known what came of that."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from fusejournal.config import Config
from fusejournal.errors import UsageError
from fusejournal.layer.open_files import new_table
from fusejournal.node.assemble import StartParts, assemble_start
from fusejournal.node.handoffs import Handoffs, learn_outcome
from fusejournal.node.holding import hold_or_make_volume
from fusejournal.node.hooks import RoleHooks
from fusejournal.node.running_role import RunningRole
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


def opened(spec: MountSpec, state: VolumeState) -> tuple[RunningRole, StartParts]:
    root_fd = os.open(spec.backing, os.O_RDONLY | os.O_DIRECTORY)
    parts = assemble_start(
        spec, state, Silent(), RoleHooks(spec), root_fd, new_table(), is_taken_over=False
    )
    parts.startup.open(read_only=False)
    listen = spec.config.replication.listen
    return RunningRole(state, parts.startup, RoleHooks(spec), listen), parts


def handoffs_of(role: RunningRole, parts: StartParts, tasks: trio.Nursery) -> Handoffs:
    """Those of a primary, of which nothing gets so far as to need more."""
    replication: Any = SimpleNamespace(receiver=None)
    return Handoffs(role, parts.startup, replication, lambda: None, tasks)


async def test_it_waits_for_the_targets_answer(tmp_path: Path) -> None:
    spec, lines = spec_of(tmp_path, None), list[str]()
    with hold_or_make_volume(spec) as state:
        role, parts = opened(spec, note_offer(state, OFFERED))
        assert parts.local is not None
        with trio.move_on_after(0.05) as waiting:
            await learn_outcome(role, parts.startup, parts.local, lines.append)
        assert waiting.cancelled_caught
        assert "was offered to east" in lines[0]
        assert f'overrule = "{OFFERED.reign}"' in lines[0]
        assert load_state(state.directory).offered == role.state.offered == OFFERED
        parts.startup.close()


async def test_a_person_may_say_that_the_reign_is_none(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, str(OFFERED.reign))
    with hold_or_make_volume(spec) as state:
        role, parts = opened(spec, note_offer(state, OFFERED))
        assert parts.local is not None
        with trio.fail_after(PATIENCE_SECONDS):
            taken = await learn_outcome(role, parts.startup, parts.local, pytest.fail)
        assert taken is None
        assert load_state(state.directory).offered is role.state.offered is None
        parts.startup.close()


@pytest.mark.parametrize("seconds", [float("nan"), -1.0, float("inf"), 61, "10"])
async def test_no_handoff_begins_with_a_time_that_cannot_be(
    tmp_path: Path, nursery: trio.Nursery, seconds: object
) -> None:
    spec = spec_of(tmp_path, None)
    with hold_or_make_volume(spec) as state:
        role, parts = opened(spec, state)
        handoffs = handoffs_of(role, parts, nursery)
        begin = handoffs.commands()["handoff"]
        with pytest.raises(UsageError, match="timeout_seconds has to be seconds, 0 to 60"):
            await begin({"peer": "east", "timeout_seconds": seconds})
        assert not handoffs.is_under_way
        parts.startup.close()
