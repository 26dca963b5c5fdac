"""The way that a restore beside a volume takes: from a version, or by the journal alone."""

import os
from pathlib import Path

import pytest

from fusejournal.admin.restore_aside import AsideRestore
from fusejournal.admin.source import open_source
from fusejournal.admin.versions import VolumeVersions
from fusejournal.errors import TargetError
from fusejournal.node.state_dir import load_state
from fusejournal.replay.digest import digest_tree
from fusejournal.types import Seq
from tests.support.consoles import make_story
from tests.support.nodes import make_volume
from tests.support.volumes import open_volume

pytestmark = pytest.mark.mount


def test_a_version_is_used_while_its_store_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "volume"))
    monkeypatch.setenv("FUSEJOURNAL_CONFIG_ROOT", str(tmp_path))
    (tmp_path / "volume").mkdir()
    make_story(tmp_path / "volume")
    versions = VolumeVersions("data")
    versions.kept.init(str(tmp_path / "store"), encrypt=False)
    made = versions.create("first", lambda *_: None)
    source, warnings = open_source("data"), list[str]()
    end = Seq(source.head_seq + 1)

    def restored(name: str, *, from_journal: bool = False) -> str | None:
        work = AsideRestore("data", source, b"", end, from_journal=from_journal)
        work.run(tmp_path / name, lambda *_: None, warnings.append)
        return None if work.version is None else work.version.key

    assert restored("by version") == made.version.key
    assert restored("by journal", from_journal=True) is None
    assert warnings == []
    (tmp_path / "store").rename(tmp_path / "away")
    assert restored("by need") is None
    (warning,) = warnings
    assert warning.endswith("restoring from the journal alone")
    digests = {digest_tree(tmp_path / f"by {way}").digest for way in ("version", "journal", "need")}
    assert len(digests) == 1


@pytest.mark.parametrize("from_journal", [False, True])
@pytest.mark.parametrize("name", ["a.txt", "old.txt"])
def test_a_single_file_goes_into_a_directory_that_is_named_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, from_journal: bool
) -> None:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "volume"))
    monkeypatch.setenv("FUSEJOURNAL_CONFIG_ROOT", str(tmp_path))
    (tmp_path / "volume").mkdir()
    make_volume(tmp_path / "volume/state", "data")
    with open_volume(tmp_path / "volume", uuid=load_state(tmp_path / "volume/state").uuid) as made:
        made.create("a.txt")
        made.mkdir("b.txt")
    versions = VolumeVersions("data")
    versions.kept.init(str(tmp_path / "store"), encrypt=False)
    versions.create("first", lambda *_: None)
    source, aside = open_source("data"), tmp_path / "aside"
    aside.mkdir()
    end = Seq(source.head_seq + 1)

    def restore(path: bytes, target: str) -> Path:
        work = AsideRestore("data", source, path, end, from_journal=from_journal)
        done = work.run(aside / target, lambda *_: None, pytest.fail)
        assert (work.version is None) == from_journal
        return done.path

    with pytest.raises(TargetError, match=f"{name}: would be a directory, with the file a.txt in"):
        restore(b"a.txt", name)
    assert os.listdir(aside) == []
    assert restore(b"a.txt", "back") == aside / "back" / "a.txt"
    with pytest.raises(TargetError, match="is there already"):
        restore(b"a.txt", "back")
    assert restore(b"b.txt", "b.txt") == aside / "b.txt"
    assert sorted(os.listdir(aside)) == ["b.txt", "back"]
