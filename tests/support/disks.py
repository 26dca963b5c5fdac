"""Small disks of a test's own that can be full, or go away and come back: ext4 in a file, on a loop
device that stays the same.

Source: ext4(5); EXT4_IOC_SHUTDOWN in the kernel's fs/ext4/ext4.h: the file system does nothing
more, as when its disk is gone; without a flush of its log what it had not written is lost."""

import fcntl
import gc
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.filesystems import fill, make

_SHUT_DOWN = 0x8004587D
_WITHOUT_FLUSH = 2
_BALLAST = "ballast"
_BLOCK_BYTES = 4096


class SmallDisk:
    """An ext4 of *size_mib*, made with *options* in the file *image*, or as *image* has it already,
    to be mounted at *mountpoint*."""

    def __init__(self, image: Path, mountpoint: Path, size_mib: int, *options: str) -> None:
        self.mountpoint = mountpoint
        self.is_full = False
        """True if space was taken and not given back."""
        self._image = image
        mountpoint.mkdir()
        if not image.exists():
            make("ext4", image, size_mib, *options)
        self.device = _said("losetup", "--find", "--show", str(image)).strip()
        self.mount()
        self._number = os.stat(mountpoint).st_dev

    def mount(self, options: str = "rw") -> None:
        """Mount it."""
        _said("mount", "-o", options, self.device, str(self.mountpoint))

    def unmount(self, *, lazily: bool = False) -> None:
        """Unmount it; *lazily*: a process that has something of it open keeps that. Raises
        CalledProcessError."""
        _said("umount", *(["-l"] if lazily else []), str(self.mountpoint))

    def flush(self) -> None:
        """Have all that was written on the disk."""
        _said("sync", "--file-system", str(self.mountpoint))

    def lose(self) -> None:
        """The disk goes away, and with it what was not written to it yet."""
        fd = os.open(self.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUT_DOWN, struct.pack("I", _WITHOUT_FLUSH))
        finally:
            os.close(fd)

    def come_back(self) -> None:
        """It is mounted anew, and was not in use meanwhile."""
        self.unmount()
        self.mount()

    def clone(self, image: Path, mountpoint: Path) -> "SmallDisk":
        """Another one, with what is on this one now, as of a machine that is cloned while it
        runs: what was not written to it yet is lost to the clone."""
        _said("cp", "--sparse=always", str(self._image), str(image))
        return SmallDisk(image, mountpoint, 0)

    def remove(self) -> None:
        """It is gone for good."""
        with suppress(subprocess.CalledProcessError):
            self.unmount(lazily=True)
        _said("losetup", "--detach", self.device)
        self._image.unlink()

    # -- space -------------------------------------------------------------------------------------

    def fill(self, leave_bytes: int) -> None:
        """Take all the space but so much, that which is kept back for root too."""
        with self._ballast() as directory:
            fill(directory / "blocks", leave_bytes)

    def use_up_inodes(self, leave: int) -> None:
        """Take all the inodes but so many."""
        with self._ballast() as directory:
            for number in range(os.statvfs(directory).f_ffree - leave):
                (directory / f"{number}").touch()

    @contextmanager
    def _ballast(self) -> Iterator[Path]:
        """Takes the space; the block ends where there is no more."""
        self.is_full = True
        directory = self.mountpoint / _BALLAST
        with suppress(OSError):
            directory.mkdir(exist_ok=True)
            yield directory

    def make_space(self) -> None:
        """Give back what was taken."""
        _said("rm", "-rf", str(self.mountpoint / _BALLAST))
        self.is_full = False

    # -- who has it open ---------------------------------------------------------------------------

    def close_all(self) -> None:
        """Close what this process has open of it and belongs to nothing any more: as the kernel
        does when a process ends."""
        gc.collect()
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if os.fstat(int(name)).st_dev == self._number:
                    os.close(int(name))


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
