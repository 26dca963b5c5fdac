"""Disk images that the host fills with a volume before a guest has them: importing many files takes
a guest long."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.layer import Layer

_START_SECONDS = 600.0
_RELEASE_SECONDS = 600.0


def make_image(directory: Path, kind: str, size_mib: int, fill: Callable[[Path], None]) -> Path:
    """A file system of *kind* in a new image below *directory*, with a volume in ``volume`` that
    has imported what *fill* put into its backing. Raises TimeoutError if it stays in use."""
    image, mountpoint = directory / "image", directory / "mount"
    with open(image, "wb") as file:
        file.truncate(size_mib << 20)
    force = "-F" if kind == "ext4" else "-f"
    subprocess.run([f"mkfs.{kind}", "-q", force, str(image)], check=True)
    mountpoint.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(mountpoint)], check=True)
    try:
        with Layer(mountpoint / "volume") as layer:
            fill(layer.backing)
            layer.start(seconds=_START_SECONDS)
            layer.stop()
    finally:
        subprocess.run(["umount", "-l", str(mountpoint)], check=True)
    _await_release(image)
    return image


def _await_release(image: Path) -> None:
    """Wait until no loop device has *image*. A process that made a mount namespace meanwhile keeps
    the file system in use, though it is unmounted here, and so keeps from the image what came last:
    a guest would find names in it whose files are not there."""
    deadline = time.monotonic() + _RELEASE_SECONDS
    while uses := loop_devices(image):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{image} is still in use: {uses}")
        time.sleep(0.1)


def loop_devices(image: Path) -> str:
    """The loop devices that have *image*, a line each."""
    command = ["losetup", "--associated", str(image)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
