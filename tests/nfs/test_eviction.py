"""More files than the kernel keeps inodes of: it drops by itself what clients still hold.

By default 300,000 in a guest of little memory; a million with FUSEJOURNAL_NFS_LARGE=1."""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.nfs.conftest import VERSIONS, Served
from tests.nfs.test_handles import check_all, holding
from tests.support.guest.images import make_image
from tests.support.guest.server import NfsServer, sh
from tests.support.layer import Layer

_IS_LARGE = bool(os.environ.get("FUSEJOURNAL_NFS_LARGE"))
_DIRECTORIES = 100
_FILES_EACH = 10_000 if _IS_LARGE else 3000
_MEMORY_MIB = 2048 if _IS_LARGE else 640
_BASE = Path("/srv/many")


def _fill(backing: Path) -> None:
    for number in range(_DIRECTORIES):
        (backing / f"d{number}").mkdir()
        fd = os.open(backing / f"d{number}", os.O_RDONLY)
        for name in range(_FILES_EACH):
            os.close(os.open(f"f{name}", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
        os.close(fd)


def prepare(directory: Path) -> list[Path]:
    """A volume of all these files."""
    return [make_image(directory, "xfs", 6 << 10, _fill)]


pytestmark = pytest.mark.guest(prepare=prepare, early=True, memory_mib=_MEMORY_MIB)


def inodes_in_memory() -> int:
    """The number of FUSE inodes that the kernel has now. Source: slabinfo(5)."""
    for line in Path("/proc/slabinfo").read_text().splitlines():
        name, active, *_ = line.split()
        if name == "fuse_inode":
            return int(active)
    raise AssertionError("no fuse_inode in /proc/slabinfo")


def test_handles_outlive_the_eviction_of_inodes(nfs: NfsServer) -> None:
    _BASE.mkdir()
    sh("mount", "/dev/ubdd", _BASE)
    with Layer(_BASE / "volume") as volume, ExitStack() as stack:
        volume.start()
        volume.run(
            "export", "volume", "127.0.0.1", "--no-root-squash", "--option", "insecure", "--write"
        )
        holders = []
        for version in VERSIONS:
            client = nfs.client(version, volume.mountpoint, Path(f"/nfs/many-{version}"))
            served = Served(volume, stack.enter_context(client))
            holders.append(stack.enter_context(holding(served, f"kept-{version}")))
        for holder in holders:
            check_all(holder, "before")
        # Every file is looked up, by who is not a client.
        found = sh("find", volume.mountpoint, "-size", "-1", "-name", "f*").count("\n")
        assert found >= _DIRECTORIES * _FILES_EACH
        assert inodes_in_memory() < _DIRECTORIES * _FILES_EACH
        for holder in holders:
            check_all(holder, "after")
