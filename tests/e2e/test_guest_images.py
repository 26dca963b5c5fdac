"""The images that a guest is given."""

import subprocess
from pathlib import Path

import pytest

from tests.support.guest.images import loop_devices, make_image
from tests.support.guest.server import wait_until

pytestmark = pytest.mark.mount


def test_an_image_is_not_given_away_while_another_namespace_has_it_mounted(tmp_path: Path) -> None:
    others = []

    def fill(backing: Path) -> None:
        (backing / "file").write_text("content")
        other = subprocess.Popen(["unshare", "--mount", "sleep", "8"])
        others.append(other)
        wait_until("another", lambda: Path(f"/proc/{other.pid}/comm").read_text() == "sleep\n")

    try:
        image = make_image(tmp_path, "ext4", 256, fill)
        assert loop_devices(image) == ""
    finally:
        for other in others:
            other.kill()
            other.wait()
