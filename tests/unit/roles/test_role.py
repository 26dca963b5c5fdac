"""The table of roles: what its page says, and what must hold of any table."""

import re

import pytest

from fusejournal.roles import role as role_module
from fusejournal.roles.role import NEW, ROLE_TRANSITIONS, Event, Role


def _tables() -> list[list[list[str]]]:
    """The rows of each table in the module's docstring, without the heads."""
    tables: list[list[list[str]]] = []
    for part in re.split(r"\n\n", role_module.__doc__ or ""):
        if part.startswith("="):
            rows = [re.split(r"\s{2,}", line.strip()) for line in part.split("\n")]
            tables.append([row for row in rows[3:-1] if len(row) > 1])
    return tables


def test_the_page_shows_the_table() -> None:
    meanings, transitions = _tables()
    yes = {"yes": True, "no": False}
    assert {(Role(row[0]), yes[row[1]], yes[row[2]]) for row in meanings} == {
        (role, role.takes_changes, role.takes_batches) for role in Role
    }
    assert {(Role(before), Event(event)): Role(after) for before, event, after in transitions} == (
        ROLE_TRANSITIONS
    )


def test_every_role_can_be_reached_and_every_event_can_come() -> None:
    reached = {NEW}
    while (
        more := {ROLE_TRANSITIONS[one] for one in ROLE_TRANSITIONS if one[0] in reached} - reached
    ):
        reached |= more
    assert reached == set(Role)
    assert {event for _, event in ROLE_TRANSITIONS} == set(Event)


def test_a_journal_has_one_source() -> None:
    for role in Role:
        assert not (role.takes_changes and role.takes_batches)
        assert role.replicates or not (role.takes_changes or role.takes_batches)


def test_a_mirror_joins_once_and_a_primary_never() -> None:
    mirror = NEW.after(Event.CALLED_MIRROR).after(Event.JOINED)
    assert mirror is Role.MIRROR
    for role in set(Role) - {Role.UNINITIALIZED}:
        with pytest.raises(KeyError):
            role.after(Event.JOINED)


def test_a_reader_stays_one() -> None:
    assert not any(before is Role.READER for before, _ in ROLE_TRANSITIONS)
