"""The role of a running volume: its record, and the change that is due once that is closed."""

import errno
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from fusejournal.errors import JournalFullError
from fusejournal.node import running_role
from fusejournal.node.holding import hold_or_make_volume
from fusejournal.node.state_dir import change_role, load_state
from fusejournal.roles.role import Event, Role
from fusejournal.types import Epoch, Reign
from tests.unit.node.test_handoffs import opened, spec_of

pytestmark = pytest.mark.mount

_REIGN = Reign(Epoch(7), 0xFEED)


async def test_a_change_that_is_due_ends_the_taking_of_changes(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, None)
    with hold_or_make_volume(spec) as state:
        role, parts = opened(spec, state)
        ended = list[bool]()

        async def leave() -> None:
            await role.wait_until_due()
            ended.append(True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            await trio.testing.wait_all_tasks_blocked()
            assert not ended
            role.end_in(Event.DEMOTED, _REIGN)
            # At once, not when the node gets round to leaving.
            assert parts.startup.volume.write_errno == errno.EROFS
        assert ended
        assert role.next == (Event.DEMOTED, _REIGN)
        assert role.state.role is Role.PRIMARY
        role.stay()
        assert role.next is None
        parts.startup.close()


@pytest.mark.parametrize("is_there", [False, True])
async def test_a_promotion_that_failed_half_way_counts_where_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    spec = spec_of(tmp_path, None)
    with hold_or_make_volume(spec) as made:
        role, parts = opened(spec, made)
        mirror = role.state = change_role(made, Event.DEMOTED, Reign(Epoch(1), 1))

        def change(state: Any, event: Event, reign: Reign) -> None:
            if is_there:
                change_role(state, event, reign)
            raise JournalFullError("no space left")

        monkeypatch.setattr(running_role, "change_role", change)
        if is_there:
            role.become_primary(_REIGN)
        else:
            with pytest.raises(JournalFullError):
                role.become_primary(_REIGN)
        assert role.state == load_state(mirror.directory)
        assert role.state.role.takes_changes is is_there
        parts.startup.close()
