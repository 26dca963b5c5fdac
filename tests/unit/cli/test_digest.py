"""The command that tells the digest of a tree."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fusejournal.cli.digest import digest
from fusejournal.disk.mounts import FILESYSTEM_TYPE, MountInfo
from fusejournal.errors import NotRunningError, PathNotFoundError, UsageError, VolumeNotFoundError
from fusejournal.replay.digest import digest_tree
from tests.support.layer import Layer
from tests.unit.replay.test_digest import make


@pytest.fixture
def _roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "states"))


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(digest, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.usefixtures("_roots")
def test_command_on_a_directory(tmp_path: Path) -> None:
    root = make(tmp_path / "tree")
    found = digest_tree(root)
    assert run(root) == (f"{found.digest}  {root}: 13 names, 3 files, 3 directories, 3.0 MiB\n")
    assert json.loads(run(root, "--path", "/sub/link", "--json")) == {
        "digest": digest_tree(root / "sub" / "link").digest,
        "of": str(root),
        "path": "sub/link",
        "entries": 1,
        "files": 1,
        "directories": 0,
        "bytes": 7,
    }
    (tmp_path / "way").symlink_to(root)
    assert run(tmp_path / "way", "--path", "/") == run(root)
    # A symlink within the tree is not followed, neither at the end of the path nor on the way.
    assert run(root, "--path", "symlink").split()[0] == digest_tree(root / "symlink").digest
    (root / "out").symlink_to(tmp_path)
    for path in ("nothing", "file/x", "out/tree"):
        with pytest.raises(PathNotFoundError, match=f"^{path}: no such file in {root}$"):
            run(root, "--path", path)
    with pytest.raises(UsageError):
        run(root, "--path", "sub/../..")
    with pytest.raises(VolumeNotFoundError):
        run(tmp_path / "nothing")


@pytest.mark.mount
@pytest.mark.usefixtures("_roots")
def test_command_on_a_volume(layer: Layer) -> None:
    layer.start()
    make(layer.mountpoint)
    live = run("volume")
    assert live.split()[1] == "volume:"
    assert {run(layer.mountpoint), run(layer.state)} == {live}
    assert run("volume", "--path", "sub").split()[:3] == [
        digest_tree(layer.mountpoint / "sub").digest,
        "volume,",
        "/sub:",
    ]
    layer.stop()
    # The backing holds the same tree, with what marks the volume's files beside it.
    assert run("volume") == live
    assert digest_tree(layer.backing).digest == live.split()[0]
    (layer.backing / "file").write_bytes(b"other")
    assert run(layer.mountpoint) != live


@pytest.mark.mount
@pytest.mark.usefixtures("_roots")
def test_command_on_a_dead_mount(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    layer.start()
    make(layer.mountpoint)
    live = run("volume")
    layer.kill()
    assert run(layer.mountpoint) == live
    # Over the backing itself, a dead mount hides the tree.
    covers = MountInfo("0:1", "/", layer.backing, FILESYSTEM_TYPE, "volume")
    monkeypatch.setattr("fusejournal.disk.mounts.mounts", lambda: iter([covers]))
    with pytest.raises(NotRunningError, match="fusejournal umount volume"):
        run("volume")
