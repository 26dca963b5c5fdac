"""The tree, and the part of it, that is meant."""

import os
from pathlib import Path

import pytest

from fusejournal.admin.digest import TreePart, find_tree
from fusejournal.errors import PathNotFoundError, UsageError, VolumeNotFoundError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with a file, and a symlink that leads out of it."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "file").write_text("content")
    (root / "away").symlink_to(tmp_path)
    return root


def test_a_directory_and_what_is_in_it(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert find_tree(str(root), "") == TreePart(os.fsencode(root), root, b"")
    assert find_tree(str(tmp_path / "link"), "") == find_tree(str(root), "/")
    part = find_tree(str(root), "/sub//./file")
    assert part == TreePart(os.fsencode(root), root / "sub" / "file", b"sub/file")


@pytest.mark.parametrize("within", ["nothing", "away/root", "sub/file/below"])
def test_what_is_not_in_it(root: Path, within: str) -> None:
    with pytest.raises(PathNotFoundError, match="no such file"):
        find_tree(str(root), within)


def test_what_cannot_be_meant(root: Path) -> None:
    with pytest.raises(UsageError, match="leads out of the tree"):
        find_tree(str(root), "sub/../..")
    with pytest.raises(VolumeNotFoundError):
        find_tree(str(root / "nothing"), "")
