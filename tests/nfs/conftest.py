"""Fixtures of the tests in the guest: disks, volumes, the NFS service and its clients."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guest.server import NfsServer, make_disk
from tests.support.layer import Layer

VERSIONS = ("3", "4.2")
DEVICES = {"ext4": "/dev/ubda", "xfs": "/dev/ubdb", "btrfs": "/dev/ubdc"}


@pytest.fixture(scope="session")
def nfs() -> Iterator[NfsServer]:
    """The running NFS service."""
    with NfsServer() as server:
        yield server


@pytest.fixture(params=VERSIONS, ids=lambda version: f"v{version}")
def version(request: pytest.FixtureRequest) -> str:
    """The NFS version that the clients speak."""
    return str(request.param)


@pytest.fixture(scope="session")
def disks() -> dict[str, Path]:
    """Where each kind's disk is mounted; made at first use."""
    return {}


@pytest.fixture
def filesystem() -> str:
    """The kind of file system under the volume; tests choose another by parametrizing it."""
    return "ext4"


@pytest.fixture
def disk(disks: dict[str, Path], filesystem: str) -> Path:
    """A mounted file system of the kind."""
    if filesystem not in disks:
        disks[filesystem] = Path("/srv") / filesystem
        make_disk(filesystem, Path(DEVICES[filesystem]), disks[filesystem])
    return disks[filesystem]


@pytest.fixture
def volume(disk: Path, tmp_path: Path) -> Iterator[Layer]:
    """A volume with backing, state and mountpoint on the disk; not started yet."""
    base = disk / tmp_path.name
    base.mkdir()
    with Layer(base) as layer:
        yield layer
    shutil.rmtree(base, ignore_errors=True)
