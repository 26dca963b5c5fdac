"""The hold that one process at a time has on a volume, and what a start that is refused leaves."""

import fcntl
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from fusejournal.config import Config, VolumeConfig
from fusejournal.errors import FusejournalError, UsageError, VolumeBusyError
from fusejournal.node.holding import hold_or_make_volume
from fusejournal.node.registry import all_volumes, find_volume
from fusejournal.node.spec import MountSpec
from fusejournal.node.state_dir import VolumeState, load_state
from fusejournal.roles.role import Role
from tests.support.state_dirs import spec, with_journal

pytestmark = pytest.mark.usefixtures("state_root")


def test_claim_is_exclusive_and_names_its_holder(tmp_path: Path) -> None:
    with hold_or_make_volume(spec(tmp_path)) as state:
        assert state.holder() is not None
        with (
            pytest.raises(VolumeBusyError, match=str(tmp_path / "mount")),
            hold_or_make_volume(spec(tmp_path)),
        ):
            pass
    assert state.holder() is None
    with hold_or_make_volume(spec(tmp_path)) as again:
        assert again == state


def test_a_used_name_is_not_to_be_unmounted_for_another_backing(tmp_path: Path) -> None:
    asked = spec(tmp_path)
    with hold_or_make_volume(asked):
        with (
            pytest.raises(VolumeBusyError, match=r"another --name$") as other,
            hold_or_make_volume(replace(asked, backing=tmp_path / "other")),
        ):
            pass
        assert f"with the backing {asked.backing}: " in str(other.value)
        assert "umount" not in str(other.value)
        with pytest.raises(VolumeBusyError, match="umount"), hold_or_make_volume(asked):
            pass


def test_state_of_another_volume(tmp_path: Path) -> None:
    with hold_or_make_volume(spec(tmp_path)):
        pass
    with pytest.raises(UsageError, match="one"), hold_or_make_volume(spec(tmp_path, "two")):
        pass


def test_who_only_looks_does_not_keep_a_layer_from_starting(tmp_path: Path) -> None:
    with hold_or_make_volume(spec(tmp_path)):
        pass
    with open(tmp_path / "states" / "one" / "lock") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        timer = threading.Timer(0.03, fcntl.flock, (looking, fcntl.LOCK_UN))
        timer.start()
        with hold_or_make_volume(spec(tmp_path)) as state:
            assert state.holder() is not None
        timer.join()


def test_journal_without_identity_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "states" / "one" / "journal").mkdir(parents=True)
    (tmp_path / "states" / "one" / "journal" / f"{1:020}.fj").touch()
    with (
        pytest.raises(FusejournalError, match=r"no volume\.json"),
        hold_or_make_volume(spec(tmp_path)),
    ):
        pass


def test_a_role_is_for_life_once_there_is_a_journal(tmp_path: Path) -> None:
    def claim(role: Literal["primary", "mirror"] | None) -> VolumeState:
        config = Config(volume=VolumeConfig(role=role))
        places = tmp_path / "backing", tmp_path / "mount"
        spec = MountSpec("one", tmp_path / "state", *places, config, False, frozenset())
        with hold_or_make_volume(spec) as state:
            return state

    assert claim(None).role is Role.PRIMARY
    assert claim("mirror").role is Role.UNINITIALIZED  # nothing had come of it
    assert claim(None).role is Role.PRIMARY  # nor of that
    assert claim("mirror").role is Role.UNINITIALIZED
    (tmp_path / "state" / "watermarks").touch()
    assert claim(None).role is Role.UNINITIALIZED  # it may have been live
    (tmp_path / "state" / "journal").mkdir()
    (tmp_path / "state" / "journal" / f"{1:020d}.fj").touch()
    assert claim("mirror").role_word == "mirror"
    with pytest.raises(UsageError, match="never changed"):
        claim("primary")


@pytest.mark.parametrize("state", ["states/one", "elsewhere"])
@pytest.mark.parametrize("was_there", [False, True])
def test_a_refused_first_start_leaves_nothing(tmp_path: Path, state: str, was_there: bool) -> None:
    directory = tmp_path / state
    if was_there:
        directory.mkdir(mode=0o700, parents=True)
        (directory / "log").touch()

    def start() -> None:
        with hold_or_make_volume(spec(tmp_path, state=state)) as made:
            (made.directory / "identity").mkdir()
            (made.directory / "watermarks").touch()
            raise UsageError("refused")

    with pytest.raises(UsageError, match="refused"):
        start()
    assert all_volumes() == []
    assert directory.exists() == was_there
    if was_there:
        assert os.listdir(directory) == ["log"]
    assert not (tmp_path / "states" / ".elsewhere" / "one").is_symlink()


@pytest.mark.parametrize("of", ["a start before", "a journal", "a mount", "a mark"])
def test_a_refused_start_leaves_what_came_of_it(tmp_path: Path, of: str) -> None:
    if of == "a start before":
        with hold_or_make_volume(spec(tmp_path)):
            pass

    def start() -> None:
        with hold_or_make_volume(spec(tmp_path), has_begun=lambda: of == "a mark") as made:
            if of == "a journal":
                with_journal(made)
            elif of == "a mount":
                (made.directory / "connection").touch()
            raise UsageError("refused")

    with pytest.raises(UsageError, match="refused"):
        start()
    assert [one.name for one in all_volumes()] == ["one"]


@pytest.mark.parametrize("role", ["primary", None])
def test_a_refused_first_start_that_is_killed_as_it_clears_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: Literal["primary"] | None
) -> None:
    """Identity goes last: what is left is a new volume, of whatever role the next start says."""

    def claim(role: Literal["primary", "mirror"] | None, refusal: str = "") -> VolumeState:
        config = Config(volume=VolumeConfig(role=role))
        places = tmp_path / "backing", tmp_path / "mount"
        with hold_or_make_volume(
            MountSpec("one", tmp_path / "state", *places, config, False, frozenset())
        ) as state:
            (state.directory / "watermarks").touch()
            if refusal:
                raise UsageError(refusal)
            return state

    def killed(label: str, path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("fusejournal.node.holding.remove", killed)
        with pytest.raises(KeyboardInterrupt):
            claim("mirror", "refused")
    assert sorted(os.listdir(tmp_path / "state")) == ["lock", "volume.json"]
    assert claim(role).role is Role.PRIMARY


def test_a_name_leads_where_it_led_before_a_refused_first_start(tmp_path: Path) -> None:
    with hold_or_make_volume(spec(tmp_path, state="elsewhere")) as made:
        pass
    with pytest.raises(UsageError), hold_or_make_volume(spec(tmp_path, state="other")):
        raise UsageError("refused")
    assert find_volume("one") == made


@pytest.mark.parametrize("is_live", [False, True])
def test_a_refused_start_at_another_place_is_not_remembered(tmp_path: Path, is_live: bool) -> None:
    """Nor does the name lead to another state directory for it."""
    with hold_or_make_volume(spec(tmp_path)) as made:
        with_journal(made)
    other = replace(spec(tmp_path), backing=tmp_path / "b", mountpoint=tmp_path / "m")

    def start(asked: MountSpec) -> None:
        with hold_or_make_volume(asked, has_begun=lambda: True, is_live=lambda: is_live) as state:
            assert find_volume(str(asked.mountpoint)) == state  # by now, for who would stop it
            raise UsageError("refused")

    with pytest.raises(UsageError, match="refused"):
        start(other)
    found = load_state(made.directory)
    if is_live:
        assert (found.backing, found.mountpoint) == (other.backing, other.mountpoint)
    else:
        assert found == made
    moved = tmp_path / "moved"
    made.directory.rename(moved)
    with pytest.raises(UsageError, match="refused"):
        start(replace(other, state_dir=moved))
    assert (tmp_path / "states" / ".elsewhere" / "one").is_symlink() == is_live


def test_a_new_volume_in_a_directory_of_another_user(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    os.chown(tmp_path / "elsewhere", 1000, 1000)
    with (
        pytest.raises(FusejournalError, match="another user's"),
        hold_or_make_volume(spec(tmp_path, state="elsewhere")),
    ):
        pass
    assert not list((tmp_path / "elsewhere").iterdir())
