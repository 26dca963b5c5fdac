"""State directories: names, claims, finding."""

import fcntl
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from fusejournal.config import Config, VolumeConfig
from fusejournal.disk import failpoints
from fusejournal.errors import (
    FusejournalError,
    JournalError,
    UsageError,
    VolumeBusyError,
    VolumeNotFoundError,
)
from fusejournal.journal.base import base_path
from fusejournal.node.holding import hold_or_make_volume
from fusejournal.node.registry import (
    all_volumes,
    check_name,
    copies_of,
    default_name,
    find_volume,
    unit_instance,
)
from fusejournal.node.spec import MountSpec
from fusejournal.node.state_dir import (
    Offered,
    VolumeState,
    bring_up_to_date,
    change_role,
    load_state,
    note_offer,
    save_state,
)
from fusejournal.roles.role import Event, Role
from fusejournal.types import Epoch, Reign


@pytest.fixture(autouse=True)
def _roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "states"))


def spec(tmp_path: Path, name: str = "one", state: str = "states/one") -> MountSpec:
    return MountSpec(
        name,
        tmp_path / state,
        tmp_path / "backing",
        tmp_path / "mount",
        Config(),
        False,
        frozenset(),
    )


def test_default_names() -> None:
    assert default_name(Path("/srv/data")) == "srv-data"
    assert default_name(Path("/srv/my-data")) == "srv-my\\x2ddata"


@pytest.mark.parametrize("name", ["", "a/b", ".x", "a\nb", "x" * 200])
def test_bad_names(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


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


def test_state_of_another_volume(tmp_path: Path) -> None:
    with hold_or_make_volume(spec(tmp_path)):
        pass
    with pytest.raises(UsageError, match="one"), hold_or_make_volume(spec(tmp_path, "two")):
        pass


@pytest.mark.parametrize("state", ["states/one", "elsewhere"])
def test_finding(tmp_path: Path, state: str) -> None:
    with hold_or_make_volume(spec(tmp_path, state=state)) as made:
        pass
    for text in ("one", str(tmp_path / "mount"), str(tmp_path / state)):
        assert find_volume(text) == made
    with pytest.raises(VolumeNotFoundError, match="two"):
        find_volume("two")


def test_a_name_outlives_the_machine(tmp_path: Path) -> None:
    """Nothing in /run is needed to find a volume whose state is elsewhere."""
    with hold_or_make_volume(spec(tmp_path, state="elsewhere")) as made:
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere", "states"]
    assert find_volume("one") == made
    for text in ("x" * 256, "/x" * 9 + "y" * 300, "one\0", "\ud800"):
        with pytest.raises(VolumeNotFoundError):
            find_volume(text)


def test_a_state_directory_that_went_away_is_named(tmp_path: Path) -> None:
    with hold_or_make_volume(spec(tmp_path, state="elsewhere")):
        pass
    (tmp_path / "elsewhere").rename(tmp_path / "unmounted")
    with pytest.raises(FusejournalError, match=r"elsewhere is not there") as caught:
        find_volume("one")
    assert not isinstance(caught.value, VolumeNotFoundError)
    with hold_or_make_volume(spec(tmp_path, state="moved")):
        pass
    assert find_volume("one").directory == tmp_path / "moved"


@pytest.mark.parametrize("state", ["states/one", "elsewhere"])
def test_a_spoilt_state_is_told_by_name_too(tmp_path: Path, state: str) -> None:
    with hold_or_make_volume(spec(tmp_path, state=state)):
        pass
    (tmp_path / state / "volume.json").write_text("{")
    with pytest.raises(FusejournalError, match=r"volume\.json: cannot be read"):
        find_volume("one")


@pytest.mark.parametrize(
    ("name", "instance"),
    [
        ("data", "data"),
        ("my-data", "my-data"),  # the name as it is comes first
        ("my-data", r"my\x2ddata"),
        (r"srv-my\x2ddata", r"srv-my\x2ddata"),
        ("my data", r"my\x20data"),
        ("50% $x", r"50\x25\x20\x24x"),
        ("gr\u00f6\u00dfe", r"gr\xc3\xb6\xc3\x9fe"),
    ],
)
def test_names_of_units(tmp_path: Path, name: str, instance: str) -> None:
    with hold_or_make_volume(spec(tmp_path, name)) as made:
        pass
    assert find_volume(instance) == made
    assert find_volume(unit_instance(name)) == made


def test_a_unit_called_after_the_mountpoint(tmp_path: Path) -> None:
    with hold_or_make_volume(spec(tmp_path)) as made:
        pass
    assert find_volume(default_name(made.mountpoint)) == made
    with hold_or_make_volume(spec(tmp_path, default_name(made.mountpoint), "states/two")) as other:
        pass
    assert find_volume(default_name(made.mountpoint)) == other  # a name comes first


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


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 9}', "\x00"])
def test_spoilt_state(tmp_path: Path, content: str) -> None:
    (tmp_path / "volume.json").write_text(content)
    with pytest.raises(FusejournalError, match=r"volume\.json"):
        load_state(tmp_path)


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


@pytest.mark.parametrize("text", ["", "3", "x/1", "0/1", "3/0", "-1/5", f"{1 << 60}/1", 7])
def test_what_is_no_reign_is_refused(tmp_path: Path, text: object) -> None:
    with hold_or_make_volume(spec(tmp_path)) as state:
        pass
    path = state.directory / "volume.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3, "reign": text}))
    with pytest.raises(FusejournalError, match=r"volume\.json"):
        load_state(state.directory)


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
                _with_journal(made)
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
        _with_journal(made)
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


# -- copies of a state directory -------------------------------------------------------------------


def _with_journal(made: VolumeState) -> VolumeState:
    made.journal_dir.mkdir(exist_ok=True)
    (made.journal_dir / "1.fj").touch()
    return made


def test_a_name_that_nothing_came_of_is_free(tmp_path: Path) -> None:
    with hold_or_make_volume(spec(tmp_path)):
        pass
    with hold_or_make_volume(spec(tmp_path, state="elsewhere")) as made:
        _with_journal(made)
    assert find_volume("one") == made
    _with_journal(load_state(tmp_path / "states" / "one"))
    with pytest.raises(UsageError, match="may mean"):
        find_volume("one")


def _copy(directory: Path, to: Path) -> Path:
    to.parent.mkdir(exist_ok=True)
    shutil.copytree(directory, to)
    to.chmod(0o700)
    return to


@pytest.mark.parametrize("state", ["states/one", "elsewhere"])
@pytest.mark.parametrize("copy", ["states/a-backup", "states/z-backup", "states/one.old"])
def test_a_copy_is_not_taken_for_the_volume(tmp_path: Path, state: str, copy: str) -> None:
    """Its name does not matter, nor where the volume's state is."""
    with hold_or_make_volume(spec(tmp_path, state=state)) as made:
        _with_journal(made)
    _copy(made.directory, tmp_path / copy)
    for text in ("one", str(made.mountpoint), default_name(made.mountpoint)):
        assert find_volume(text) == made
    assert all_volumes() == [made]
    assert copies_of(made) == [tmp_path / copy]
    with hold_or_make_volume(spec(tmp_path, state=state)) as again:
        assert again == made
    with (
        pytest.raises(UsageError, match="away; a new volume needs"),
        hold_or_make_volume(spec(tmp_path, state=copy)),
    ):
        pass
    assert find_volume(str(tmp_path / copy)).directory == tmp_path / copy  # to be read


def test_a_state_that_was_moved_by_copying(tmp_path: Path) -> None:
    """Only once the former is away."""
    with hold_or_make_volume(spec(tmp_path)) as made:
        _with_journal(made)
    new = _copy(made.directory, tmp_path / "new")
    with (
        pytest.raises(UsageError, match="states/one"),
        hold_or_make_volume(spec(tmp_path, state="new")),
    ):
        pass
    made.directory.rename(tmp_path / "former")
    with hold_or_make_volume(spec(tmp_path, state="new")):
        pass
    assert find_volume("one").directory == new
    # And back again.
    new.rename(made.directory)
    with hold_or_make_volume(spec(tmp_path)):
        pass
    assert find_volume("one") == made


def test_names_in_doubt_are_refused(tmp_path: Path) -> None:
    with hold_or_make_volume(spec(tmp_path)) as made:
        _with_journal(made)
    for name in ("copy1", "copy2"):
        _copy(made.directory, tmp_path / "states" / name)
    shutil.rmtree(made.directory)
    for text in ("one", str(made.mountpoint)):
        with pytest.raises(UsageError, match=r"copy1 \(volume one\) and .*copy2"):
            find_volume(text)
    assert len(all_volumes()) == 2
    shutil.rmtree(tmp_path / "states" / "copy2")
    assert find_volume("one").directory == tmp_path / "states" / "copy1"


def test_a_renamed_copy_is_not_used_beside_the_volume(tmp_path: Path) -> None:
    with hold_or_make_volume(spec(tmp_path)) as made:
        _with_journal(made)
        copy = _copy(made.directory, tmp_path / "states" / "two")
        known = json.loads((copy / "volume.json").read_text())
        (copy / "volume.json").write_text(json.dumps({**known, "name": "two"}))
        with (
            pytest.raises(UsageError, match="states/one"),
            hold_or_make_volume(spec(tmp_path, "two", "states/two")),
        ):
            pass
        assert copies_of(made) == [copy]
    assert find_volume("two").directory == copy


def test_a_mountpoint_that_two_volumes_had(tmp_path: Path) -> None:
    """The one that is there now is meant; none, where neither is."""
    with hold_or_make_volume(spec(tmp_path)) as one:
        pass
    with hold_or_make_volume(spec(tmp_path, "two", "states/two")) as two:
        assert find_volume(str(two.mountpoint)) == two
    with pytest.raises(UsageError, match="may mean"):
        find_volume(str(one.mountpoint))


# -- state directories that others made ------------------------------------------------------------


def test_a_name_is_not_looked_for_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold_or_make_volume(spec(tmp_path, state="here/one")) as made:
        _with_journal(made)
    (tmp_path / "states" / ".elsewhere" / "one").unlink()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(VolumeNotFoundError):
        find_volume("one")
    assert find_volume("./one") == made


@pytest.mark.parametrize("whose", ["directory", "volume.json"])
@pytest.mark.parametrize("mode", [None, 0o777, 0o770])
def test_a_state_directory_of_another_user(tmp_path: Path, whose: str, mode: int | None) -> None:
    """Neither by path nor by a name that leads there; nor is it mounted."""
    with hold_or_make_volume(spec(tmp_path, state="elsewhere")) as made:
        _with_journal(made)
    path = made.directory if whose == "directory" else made.directory / whose
    if mode is None:
        os.chown(path, 1000, 1000)
    else:
        path.chmod(mode)
    for text in ("one", str(made.directory), str(made.mountpoint)):
        with pytest.raises(FusejournalError, match=r"cannot tell|no volume"):
            find_volume(text)
    with (
        pytest.raises(FusejournalError, match="cannot tell"),
        hold_or_make_volume(spec(tmp_path, state="elsewhere")),
    ):
        pass


def test_a_new_volume_in_a_directory_of_another_user(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    os.chown(tmp_path / "elsewhere", 1000, 1000)
    with (
        pytest.raises(FusejournalError, match="another user's"),
        hold_or_make_volume(spec(tmp_path, state="elsewhere")),
    ):
        pass
    assert not list((tmp_path / "elsewhere").iterdir())


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
