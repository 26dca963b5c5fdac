"""The guest itself: the kernel's nfsd and client work on a plain file system, so that what fails
elsewhere is the layer's."""

from pathlib import Path

import pytest

from tests.support.guest.server import NfsServer, exported

pytestmark = pytest.mark.guest


def test_serves_a_plain_export(nfs: NfsServer, version: str, disk: Path) -> None:
    plain = disk / "plain"
    plain.mkdir(exist_ok=True)
    with exported(plain, "no_root_squash"), nfs.client(version, plain, Path("/nfs")) as client:
        (client / "made").write_text("by a client")
        (client / "made").rename(client / "moved")
        assert (plain / "moved").read_text() == "by a client"
        assert f" {client} nfs" in Path("/proc/mounts").read_text()
        assert f"vers={version}" in Path("/proc/mounts").read_text()
    (plain / "moved").unlink()
