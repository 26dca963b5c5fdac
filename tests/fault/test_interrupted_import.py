"""Files found in the backing of a running volume: their content is in the journal in the end."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.layer import Layer

pytestmark = pytest.mark.mount


def _put_behind(layer: Layer) -> bytes:
    content = os.urandom(5 << 20)
    (layer.backing / "foreign").write_bytes(content)
    return content


def test_killed_in_the_middle(layer: Layer, tmp_path: Path) -> None:
    layer.start()
    layer.stop()
    layer.start(fault="journal.append:4:kill")
    content = _put_behind(layer)
    with suppress(OSError):  # ENOTCONN, ECONNABORTED: the layer is gone
        (layer.mountpoint / "foreign").read_bytes()
    assert layer.wait() == -signal.SIGKILL
    layer.start()
    assert (layer.mountpoint / "foreign").read_bytes() == content
    layer.stop()
    layer.check_rebuilt(tmp_path / "rebuilt")


@pytest.mark.parametrize("again", ["open", "mount"])
def test_journal_full_in_the_middle(layer: Layer, tmp_path: Path, again: str) -> None:
    layer.start()
    layer.stop()
    layer.start(fault="journal.append:4:ENOSPC")
    content = _put_behind(layer)
    with pytest.raises(OSError, match="No space"):
        (layer.mountpoint / "foreign").read_bytes()
    if again == "mount":
        layer.stop()
        layer.start()
    else:
        assert (layer.mountpoint / "foreign").read_bytes() == content
    layer.stop()
    layer.check_rebuilt(tmp_path / "rebuilt")
