"""State directories: names, claims, finding."""

from pathlib import Path

import pytest

from fusejournal.config import Config
from fusejournal.errors import FusejournalError, UsageError, VolumeBusyError, VolumeNotFoundError
from fusejournal.mountspec import MountSpec
from fusejournal.state import check_name, claim_volume, default_name, find_volume, load_state


@pytest.fixture(autouse=True)
def _roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "states"))
    monkeypatch.setenv("FUSEJOURNAL_RUN_ROOT", str(tmp_path / "run"))


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
    with claim_volume(spec(tmp_path)) as state:
        assert state.holder() is not None
        with (
            pytest.raises(VolumeBusyError, match=str(tmp_path / "mount")),
            claim_volume(spec(tmp_path)),
        ):
            pass
    assert state.holder() is None
    with claim_volume(spec(tmp_path)) as again:
        assert again == state


def test_state_of_another_volume(tmp_path: Path) -> None:
    with claim_volume(spec(tmp_path)):
        pass
    with pytest.raises(UsageError, match="one"), claim_volume(spec(tmp_path, "two")):
        pass


@pytest.mark.parametrize("state", ["states/one", "elsewhere"])
def test_finding(tmp_path: Path, state: str) -> None:
    with claim_volume(spec(tmp_path, state=state)) as made:
        pass
    for text in ("one", str(tmp_path / "mount"), str(tmp_path / state)):
        assert find_volume(text) == made
    with pytest.raises(VolumeNotFoundError, match="two"):
        find_volume("two")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 9}', "\x00"])
def test_spoilt_state(tmp_path: Path, content: str) -> None:
    (tmp_path / "volume.json").write_text(content)
    with pytest.raises(FusejournalError, match=r"volume\.json"):
        load_state(tmp_path)


def test_journal_without_identity_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "states" / "one" / "journal").mkdir(parents=True)
    (tmp_path / "states" / "one" / "journal" / f"{1:020}.fj").touch()
    with pytest.raises(FusejournalError, match=r"no volume\.json"), claim_volume(spec(tmp_path)):
        pass
