"""The record of a volume in its state directory: its role, its reign, what it has been offered."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fusejournal.disk import failpoints
from fusejournal.errors import FusejournalError, JournalError
from fusejournal.journal.base import base_path
from fusejournal.node.holding import hold_or_make_volume
from fusejournal.node.state_dir import (
    Offered,
    bring_up_to_date,
    change_role,
    load_state,
    note_offer,
    save_state,
)
from fusejournal.roles.role import Event, Role
from fusejournal.types import Epoch, Reign
from tests.support.state_dirs import spec

pytestmark = pytest.mark.usefixtures("state_root")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 9}', "\x00"])
def test_spoilt_state(tmp_path: Path, content: str) -> None:
    (tmp_path / "volume.json").write_text(content)
    with pytest.raises(FusejournalError, match=r"volume\.json"):
        load_state(tmp_path)


def test_a_role_that_a_command_gave_is_no_mounts_to_say(tmp_path: Path) -> None:
    """The word of the first mount stays in units and configurations."""
    reign = Reign(Epoch(3), 0xFEED)
    with hold_or_make_volume(spec(tmp_path)) as state:
        mirror = replace(state, role=Role.MIRROR)
        promoted = change_role(mirror, Event.PROMOTED, reign)
        assert promoted == replace(mirror, role=Role.PRIMARY, reign=reign)
        assert load_state(state.directory) == promoted
        assert promoted.in_role("mirror") is promoted
    with hold_or_make_volume(spec(tmp_path)) as again:  # a mount writes nothing, or the whole of it
        assert again == promoted
        assert json.loads((again.directory / "volume.json").read_text())["format"] == 3
        with pytest.raises(KeyError):
            change_role(again, Event.PROMOTED, reign)
        demoted = change_role(again, Event.DEMOTED, Reign(Epoch(4), 0xBEEF))
    assert load_state(demoted.directory).role_word == "mirror"


def test_an_offer_is_kept_until_it_is_known_what_came_of_it(tmp_path: Path) -> None:
    """An older version, which does not ask, does not take the volume meanwhile."""
    offered = Offered(Reign(Epoch(3), 0xFEED), "east")
    with hold_or_make_volume(spec(tmp_path)) as state:
        path = state.directory / "volume.json"
        text = path.read_bytes()
        offering = note_offer(state, offered)
        assert load_state(state.directory) == offering == replace(state, offered=offered)
        assert json.loads(path.read_text())["format"] == 3
        assert note_offer(offering, None) == state
        assert path.read_bytes() == text
        note_offer(state, offered)
    with hold_or_make_volume(spec(tmp_path)) as again:
        assert again.offered == offered
        assert change_role(again, Event.DEMOTED, offered.reign).offered is None
        raw = json.loads(path.read_text())
        path.write_text(json.dumps({**raw, "offered": {"reign": "3"}}))
        with pytest.raises(FusejournalError, match=r"volume\.json"):
            load_state(state.directory)


@pytest.mark.parametrize("label", ["state.sync", "state.rename"])
def test_a_role_changes_wholly_or_not_at_all(tmp_path: Path, label: str) -> None:
    """A full disk is no reason not to: then it is written in place."""
    reign = Reign(Epoch(2), 0xBEEF)
    with hold_or_make_volume(spec(tmp_path)) as state:
        failpoints.listen(failpoints.PlannedFault(label, 1, "EIO"))
        try:
            with pytest.raises(OSError, match="Input/output"):
                change_role(state, Event.DEMOTED, reign)
            assert load_state(state.directory) == state
            failpoints.listen(failpoints.PlannedFault(label, 1, "ENOSPC"))
            assert change_role(state, Event.DEMOTED, reign) == load_state(state.directory)
        finally:
            failpoints.listen(None)


def test_a_reign_whose_node_is_not_known_is_read_again(tmp_path: Path) -> None:
    """By a peer that names only its epoch a primary may have been fenced."""
    with hold_or_make_volume(spec(tmp_path)) as state:
        demoted = change_role(state, Event.DEMOTED, Reign(Epoch(2), 0))
        assert load_state(state.directory) == demoted


@pytest.mark.parametrize("text", ["", "3", "x/1", "0/1", "3/-1", "-1/5", f"{1 << 60}/1", 7])
def test_what_is_no_reign_is_refused(tmp_path: Path, text: object) -> None:
    with hold_or_make_volume(spec(tmp_path)) as state:
        pass
    path = state.directory / "volume.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3, "reign": text}))
    with pytest.raises(FusejournalError, match=r"volume\.json"):
        load_state(state.directory)


@pytest.mark.parametrize(
    ("words", "role"),
    [
        ({"role": "primary", "is_uninitialized": False}, Role.PRIMARY),
        ({"role": "mirror", "is_uninitialized": True}, Role.UNINITIALIZED),
        ({"role": "mirror", "is_uninitialized": False}, Role.MIRROR),
        ({"role": "mirror"}, Role.MIRROR),  # of a version that did not say it
    ],
)
def test_a_role_is_written_in_two_words(
    tmp_path: Path, words: dict[str, object], role: Role
) -> None:
    with hold_or_make_volume(spec(tmp_path)) as state:
        path = state.directory / "volume.json"
    content = json.loads(path.read_text())
    del content["role"], content["is_uninitialized"]
    path.write_text(json.dumps({**content, **words}))
    found = load_state(state.directory)
    assert found.role is role
    save_state(found)
    saved = json.loads(path.read_text())
    assert {key: saved[key] for key in words} == words


@pytest.mark.parametrize("role", ["reader", "uninitialized", "", None, 7])
def test_what_is_no_role_is_refused(tmp_path: Path, role: object) -> None:
    with hold_or_make_volume(spec(tmp_path)) as state:
        path = state.directory / "volume.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "role": role}))
    with pytest.raises(FusejournalError, match="cannot be read"):
        load_state(state.directory)


def test_a_format_with_a_base_is_never_taken_back(tmp_path: Path) -> None:
    """An older version would begin in the midst of the journal, too."""
    with hold_or_make_volume(spec(tmp_path)) as state:
        pass
    base_path(state.directory).touch()
    save_state(state)
    base_path(state.directory).unlink()
    before = (state.directory / "volume.json").read_bytes()
    with pytest.raises(JournalError, match=r"base\.json: is missing"):
        bring_up_to_date(state, state)
    assert (state.directory / "volume.json").read_bytes() == before
