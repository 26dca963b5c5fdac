"""Disk images that the host fills with a volume before a guest has them: importing many files takes
a guest long."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.support.layer import Layer

_START_SECONDS = 600.0


def make_image(directory: Path, kind: str, size_mib: int, fill: Callable[[Path], None]) -> Path:
    """A file system of *kind* in a new image below *directory*, with a volume in ``volume`` that
    has imported what *fill* put into its backing."""
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
    return image
