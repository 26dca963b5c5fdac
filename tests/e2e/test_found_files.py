"""Files that an admin puts into the backing of a running volume: journaled before anybody gets at
them, without a wait for others."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fusejournal.disk import syscalls
from fusejournal.operations import RENAME_WHITEOUT
from tests.support.layer import Layer

pytestmark = pytest.mark.mount

_MIB = 1 << 20
_LARGE = 300 * _MIB


def _check(layer: Layer, target: Path) -> None:
    """The journal gives the backing's tree."""
    layer.stop()
    layer.check_rebuilt(target)


class _Asking(threading.Thread):
    """Does *act* in the background; ``result`` is what came of it."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self._act = act
        self.result: object = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._act()
        except OSError as error:
            self.result = error.errno


def _make_large(path: Path) -> bytes:
    piece = os.urandom(_MIB)
    with open(path, "wb") as file:
        for _ in range(_LARGE // _MIB):
            file.write(piece)
    return piece


def test_others_are_served_while_a_large_file_is_imported(layer: Layer, tmp_path: Path) -> None:
    layer.start()
    root = layer.mountpoint
    (root / "there").mkdir()
    (root / "other").mkdir()  # in one directory, the kernel has a change wait for a look-up
    piece = _make_large(layer.backing / "large")

    def read_and_write() -> int:
        with open(root / "large", "r+b") as file:
            assert file.read(_MIB) == piece
            return file.write(b"changed")

    askers = [
        _Asking(lambda: os.stat(root / "large").st_size),
        _Asking(lambda: os.truncate(root / "large", _LARGE - 1)),
        _Asking(read_and_write),
        _Asking(lambda: os.rename(root / "there", root / "large")),
    ]
    served = 0
    while any(asker.is_alive() for asker in askers):
        (root / "other" / f"d{served}").mkdir()
        served += 1
    assert served > 20
    size, *others = [asker.result for asker in askers]
    assert size in (_LARGE, _LARGE - 1)
    assert others == [None, 7, errno.ENOTDIR]
    assert (root / "large").stat().st_size == _LARGE - 1
    # What others did comes after the last piece of the import.
    last = max(e["seq"] for e in layer.entries() if e["op"] == "import_data")
    of_large = [e["seq"] for e in layer.entries() if e["op"] in ("write", "truncate")]
    assert of_large
    assert min(of_large) > last
    _check(layer, tmp_path / "rebuilt")


@pytest.mark.parametrize("flags", [0, RENAME_WHITEOUT])
def test_what_a_rename_replaces_is_journaled_first(
    layer: Layer, tmp_path: Path, flags: int
) -> None:
    layer.start()
    root = layer.mountpoint
    (root / "new").write_bytes(b"new")
    assert not (root / "kept").exists()  # and so the kernel will not ask again at once
    (layer.backing / "kept").write_bytes(b"put there behind the layer")
    here, paths = syscalls.AT_FDCWD, (os.fsencode(root / "new"), os.fsencode(root / "kept"))
    syscalls.rename(here, paths[0], here, paths[1], flags)
    assert (root / "kept").read_bytes() == b"new"
    assert (root / "new").is_char_device() == bool(flags)
    operations = [entry["op"] for entry in layer.entries()]
    assert operations[-3:] == ["import", "import_data", "whiteout" if flags else "rename"]
    _check(layer, tmp_path / "rebuilt")


@pytest.mark.parametrize("flag", ["i", "a"])
def test_a_locked_file_that_was_found_is_refused_alone(layer: Layer, flag: str) -> None:
    layer.start()
    path = layer.backing / "locked"
    path.write_bytes(b"x")
    os.system(f"chattr +{flag} {path}")
    try:
        with pytest.raises(OSError, match="Input/output"):
            (layer.mountpoint / "locked").stat()
        (layer.mountpoint / "there").mkdir()
        assert "chattr -i -a" in layer.words()
        assert layer.ask()["state"] == "running"
    finally:
        os.system(f"chattr -{flag} {path}")
    assert (layer.mountpoint / "locked").read_bytes() == b"x"
