"""A backing that its users can reach around the layer: a new volume is not made of one, and one
that is there says so."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusejournal.disk.mounts import way_around
from tests.support.layer import Layer
from tests.support.users import SOMEBODY, acting

pytestmark = pytest.mark.mount


class _Plain(Layer):
    """Mounted as it is by hand."""

    def mount_arguments(self, *extra: str) -> list[str]:
        plain = [one for one in super().mount_arguments() if one != "--open-backing"]
        return [*plain, *extra]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may enter."""
    base = Path(tempfile.mkdtemp(prefix="fusejournal.", dir="/tmp"))
    try:
        base.chmod(0o755)
        yield base
    finally:
        shutil.rmtree(base)


def _degraded(layer: Layer) -> list[str]:
    return [line for line in layer.ask()["degraded"] if line.startswith("the backing is open")]


def _user_writes(path: Path) -> bool:
    with acting(SOMEBODY):
        try:
            path.write_text("around the layer")
        except PermissionError:
            return False
    return True


def test_a_new_volume(place: Path) -> None:
    disk = place / "disk"
    with _Plain(place, backing=disk / "tree") as layer:
        layer.backing.chmod(0o777)
        done = layer.run(*layer.mount_arguments(), check=False)
        assert done.returncode == 5
        assert f"reach it at {layer.backing}, around the layer" in done.stderr
        assert "--open-backing" in done.stderr
        assert not layer.is_mounted()
        assert _user_writes(layer.backing / "before")
        disk.chmod(0o700)
        layer.start()
        assert _degraded(layer) == []
        assert (layer.mountpoint / "before").read_text() == "around the layer"
        assert not _user_writes(layer.backing / "after")
        assert _user_writes(layer.mountpoint / "through")
        layer.stop()
        # One that is there goes on, and says so.
        disk.chmod(0o711)
        layer.start()
        assert str(layer.backing) in _degraded(layer)[0]


def test_taken_as_it_is(place: Path) -> None:
    with _Plain(place) as layer:
        layer.run(*layer.mount_arguments("--open-backing"))
        assert len(_degraded(layer)) == 1
        layer.run("umount", "volume")


@contextmanager
def _bound(source: Path, to: Path) -> Iterator[None]:
    to.mkdir()
    subprocess.run(["mount", "--bind", source, to], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", to], check=True)
        to.rmdir()


def test_in_place_and_by_another_mount(place: Path) -> None:
    """The layer covers its directory, but not the same one below another mount."""
    data = place / "srv" / "data"
    with _Plain(place, backing=data) as layer:
        layer.mountpoint = data
        layer.start()
        assert _degraded(layer) == []
        layer.stop()
        other = place / "other"
        with _bound(place / "srv", other):
            assert str(other / "data") in str(way_around(data, data))
            other.chmod(0o700)
            assert way_around(data, data) is None
            other.chmod(0o755)
            layer.start()
            assert str(other / "data") in _degraded(layer)[0]
            layer.stop()


@pytest.mark.parametrize(("mode", "uid", "closed"), [
    (0o700, 0, True), (0o744, 0, True), (0o701, 0, False), (0o710, 0, False), (0o700, 1000, False),
])  # fmt: skip
def test_what_closes_it(place: Path, mode: int, uid: int, closed: bool) -> None:
    above = place / "above"
    tree = above / "between" / "tree"
    tree.mkdir(parents=True)
    tree.chmod(0o700)  # its own mode is its users' matter
    assert way_around(tree, place / "mount") is not None
    above.chmod(mode)
    os.chown(above, uid, uid)
    assert (way_around(tree, place / "mount") is None) is closed
