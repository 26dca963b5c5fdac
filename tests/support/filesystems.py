"""File systems in files, mounted by loop devices, for tests of backings and of full disks."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KINDS = ("ext4", "xfs", "btrfs", "tmpfs")
_MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}


@contextmanager
def filesystem(kind: str, base: Path, name: str, size_mib: int, *options: str) -> Iterator[Path]:
    """A new file system of *kind*, made with *options*, mounted at ``base/name``. What was on it
    stays, in ``base/NAME.img``, only where the block fails."""
    mountpoint = base / name
    mountpoint.mkdir()
    image = base / f"{name}.img"
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(mountpoint)]
    else:
        make(kind, image, size_mib, *options)
        command = ["mount", "-o", "loop", str(image), str(mountpoint)]
    subprocess.run(command, check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", "-l", str(mountpoint)], check=True)
    image.unlink(missing_ok=True)


def make(kind: str, image: Path, size_mib: int, *options: str) -> None:
    """Make *image* a file with an empty file system of *kind*, with *options*."""
    with open(image, "wb") as file:
        file.truncate(size_mib << 20)
    subprocess.run([*_MAKE[kind], *options, str(image)], check=True, capture_output=True)


def fill(path: Path, leave_bytes: int = 0) -> None:
    """Write to *path* until its file system is full, then give *leave_bytes* back."""
    with open(path, "wb", buffering=0) as file:
        for piece in (1 << 20, 4096, 512):
            try:
                while file.write(bytes(piece)) == piece:
                    pass
            except OSError:
                continue
        if leave_bytes:
            file.truncate(file.tell() - leave_bytes)
