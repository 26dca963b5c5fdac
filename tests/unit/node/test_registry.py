"""Finding a volume by its name, its mountpoint or its state directory, beside copies of it."""

import json
import os
import shutil
from pathlib import Path

import pytest

from fusejournal.errors import FusejournalError, UsageError, VolumeNotFoundError
from fusejournal.node.holding import hold_or_make_volume
from fusejournal.node.registry import (
    all_volumes,
    check_name,
    copies_of,
    default_name,
    find_volume,
    unit_instance,
)
from fusejournal.node.state_dir import load_state
from tests.support.state_dirs import spec, with_journal

pytestmark = pytest.mark.usefixtures("state_root")


def test_default_names() -> None:
    assert default_name(Path("/srv/data")) == "srv-data"
    assert default_name(Path("/srv/my-data")) == "srv-my\\x2ddata"


@pytest.mark.parametrize("name", ["", "a/b", ".x", "a\nb", "x" * 200])
def test_bad_names(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


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


# -- copies of a state directory -------------------------------------------------------------------


def test_a_name_that_nothing_came_of_is_free(tmp_path: Path) -> None:
    with hold_or_make_volume(spec(tmp_path)):
        pass
    with hold_or_make_volume(spec(tmp_path, state="elsewhere")) as made:
        with_journal(made)
    assert find_volume("one") == made
    with_journal(load_state(tmp_path / "states" / "one"))
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
        with_journal(made)
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
        with_journal(made)
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
        with_journal(made)
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
        with_journal(made)
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
        with_journal(made)
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
        with_journal(made)
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
