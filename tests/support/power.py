"""A disk whose power can be cut: what had been written to it at that moment stays, nothing else."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.filesystems import filesystem, make
from tests.support.layer import Layer
from tests.support.losses import begin_another_boot


class PowerDisk:
    """A file system of *kind* in a file, mounted at ``base/disk``. The file lies on a file system
    that can clone it at once, as it is at that moment, whatever goes on above."""

    def __init__(self, base: Path, store: Path, kind: str, size_mib: int) -> None:
        self._image, self._kept = store / "disk.img", store / "kept.img"
        self._kind = kind
        self.mountpoint = base / "disk"
        self.mountpoint.mkdir()
        make(kind, self._image, size_mib)
        self._mount()

    def _mount(self) -> None:
        # A process in a mount namespace of its own may hold what was mounted here before, and XFS
        # mounts no two with one UUID.
        options = "loop,nouuid" if self._kind == "xfs" else "loop"
        subprocess.run(["mount", "-o", options, str(self._image), str(self.mountpoint)], check=True)

    def sync(self) -> None:
        """Have on the disk all that is there by now: what a test has put there by itself, such as a
        configuration, is nothing that a cut may take."""
        subprocess.run(["sync", "--file-system", str(self.mountpoint)], check=True)

    def cut(self) -> None:
        """The power fails now; a process that uses the disk does not notice until
        :meth:`come_back`."""
        clone = ["cp", "--reflink=always", str(self._image), str(self._kept)]
        subprocess.run(clone, check=True)

    def come_back(self) -> None:
        """Be what there was when the power failed; no process may use the disk."""
        self.remove()
        self._kept.rename(self._image)
        self._mount()

    def remove(self) -> None:
        """Unmount it, once the children of a process that was killed have noticed."""
        unmount = ["umount", str(self.mountpoint)]
        for _ in range(100):
            if subprocess.run(unmount, stderr=subprocess.DEVNULL, check=False).returncode == 0:
                return
            time.sleep(0.1)
        subprocess.run(unmount, check=True)


@contextmanager
def power_disk(base: Path, kind: str = "ext4", size_mib: int = 2048) -> Iterator[PowerDisk]:
    """Such a disk."""
    with filesystem("btrfs", base, "store", 8192) as store:
        disk = PowerDisk(base, store, kind, size_mib)
        try:
            yield disk
        finally:
            disk.remove()


def crash_system(node: Layer, disk: PowerDisk) -> None:
    """The machine of *node*, which lies on *disk*, goes down, and comes back in another boot."""
    disk.cut()
    node.kill()
    node.detach()
    disk.come_back()
    begin_another_boot(node.state)
