"""The way that a restore beside a volume takes: from a version, or by the journal alone."""

from pathlib import Path

import pytest

from fusejournal.admin.restore_aside import AsideRestore
from fusejournal.admin.source import open_source
from fusejournal.admin.versions import VolumeVersions
from fusejournal.replay.digest import digest_tree
from fusejournal.types import Seq
from tests.support.consoles import make_story

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
