"""``fusejournal hook``: what it must be told, and by whom it may be called."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from fusejournal.cli.hook import hook
from fusejournal.errors import UsageError


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment, in which nothing stands that a volume tells its hooks."""
    for name in ("WHEN", "ROLE", "REIGN", "VOLUME", "MOUNTPOINT", "PEER"):
        monkeypatch.delenv(f"FUSEJOURNAL_{name}", raising=False)
    return monkeypatch


def call(*arguments: str) -> str:
    return CliRunner().invoke(hook, arguments, catch_exceptions=False).output


@pytest.mark.parametrize(
    "arguments", [("address", "192.0.2.9/24", "lo"), ("exportfs",), ("notify", "192.0.2.9/24")]
)
def test_it_is_for_volumes(told: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"not all set: this is called by a volume, as \[hooks\]"):
        call(*arguments)
    told.setenv("FUSEJOURNAL_WHEN", "fence")
    told.setenv("FUSEJOURNAL_ROLE", "primary")
    with pytest.raises(UsageError, match="is before or after here"):
        call(*arguments)


def test_exportfs_needs_to_know_the_volume(told: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told.setenv("FUSEJOURNAL_NFS_ROOT", str(tmp_path))
    told.setenv("FUSEJOURNAL_RUN_ROOT", str(tmp_path / "run"))
    told.setenv("FUSEJOURNAL_WHEN", "before")
    told.setenv("FUSEJOURNAL_ROLE", "mirror")
    with pytest.raises(UsageError, match="REIGN and FUSEJOURNAL_VOLUME and FUSEJOURNAL_MOUNTPOINT"):
        call("exportfs")
    told.setenv("FUSEJOURNAL_REIGN", "2/beef")
    told.setenv("FUSEJOURNAL_VOLUME", "vol")
    told.setenv("FUSEJOURNAL_MOUNTPOINT", str(tmp_path))
    assert call("exportfs") == "nfsd does not run\n"


def test_notify_is_for_new_primaries(told: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told.setenv("FUSEJOURNAL_NFS_ROOT", str(tmp_path))
    told.setenv("FUSEJOURNAL_VOLUME", "vol")
    told.setenv("FUSEJOURNAL_WHEN", "after")
    told.setenv("FUSEJOURNAL_ROLE", "mirror")
    assert call("notify", "192.0.2.9/24") == ""
    told.setenv("FUSEJOURNAL_ROLE", "primary")
    assert call("notify", "192.0.2.9/24") == "no NFSv3 client has to be told\n"
