"""Fixtures of the tests in the guest: disks, volumes, the NFS service and its clients."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.guest.server import NfsServer, make_disk
from tests.support.guest.sites import (
    FRESH,
    Export,
    Site,
    Sites,
    exported_twins,
    exported_volume,
)
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
    """The mountpoint of each kind's disk; made at first use."""
    return {}


@pytest.fixture
def filesystem() -> str:
    """The kind of file system under the volume; tests choose another by parametrizing it."""
    return "ext4"


def mounted(disks: dict[str, Path], filesystem: str) -> Path:
    """The mountpoint of the disk with *filesystem*."""
    if filesystem not in disks:
        disks[filesystem] = Path("/srv") / filesystem
        make_disk(filesystem, Path(DEVICES[filesystem]), disks[filesystem])
    return disks[filesystem]


@pytest.fixture
def disk(disks: dict[str, Path], filesystem: str) -> Path:
    """A mounted file system of the kind."""
    return mounted(disks, filesystem)


@pytest.fixture
def volume(disk: Path, tmp_path: Path) -> Iterator[Layer]:
    """A volume with backing, state and mountpoint on the disk; not started yet."""
    base = disk / tmp_path.name
    base.mkdir()
    with Layer(base) as layer:
        yield layer
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def plain(disks: dict[str, Path], tmp_path: Path) -> Iterator[Path]:
    """A plain directory of ext4."""
    directory = mounted(disks, "ext4") / f"plain-{tmp_path.name}"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def export() -> Export:
    """The export of both; tests choose another by parametrizing it."""
    return Export()


@pytest.fixture
def sites(
    nfs: NfsServer, version: str, volume: Layer, plain: Path, export: Export
) -> Iterator[Sites]:
    """The volume and the plain directory, exported and mounted."""
    with exported_twins(nfs, version, volume, plain, export) as both:
        yield both


@pytest.fixture
def fresh_sites(
    nfs: NfsServer, version: str, volume: Layer, plain: Path, export: Export
) -> Iterator[Sites]:
    """The same, and both clients of each see at once what the other does."""
    with exported_twins(nfs, version, volume, plain, export, FRESH) as both:
        yield both


@pytest.fixture
def site(nfs: NfsServer, version: str, volume: Layer) -> Iterator[Site]:
    """The volume alone, its clients seeing at once what the other does."""
    with exported_volume(nfs, version, volume, Export(), FRESH) as one:
        yield one


class Served(NamedTuple):
    """A running volume, exported as an admin would, and where a client has it mounted."""

    volume: Layer
    client: Path


@pytest.fixture
def served(nfs: NfsServer, version: str, volume: Layer) -> Iterator[Served]:
    """A volume under nfsd with a client, for tests that stop, kill and restart its layer."""
    volume.start()
    volume.run(
        "export", "volume", "127.0.0.1", "--no-root-squash", "--option", "insecure", "--write"
    )
    with nfs.client(version, volume.mountpoint, Path("/nfs") / volume.base.name) as client:
        yield Served(volume, client)
    volume.run("export", "volume", "--remove")
