"""kill -9 of the layer at random moments: what was answered is there, and the tree is what the
journal says.

Two threads do anything to a small tree, a third makes files and remembers which of them it was told
to be there. ``FUSEJOURNAL_TEST_KILLS`` says how many kills there are, ``FUSEJOURNAL_TEST_SEED``
which."""

import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusejournal.node.state_dir import load_state
from tests.support.layer import Layer
from tests.support.mischief import Busy, Mischief
from tests.support.trees import difference, fids, image, rebuild

pytestmark = pytest.mark.mount

KILLS = int(os.environ.get("FUSEJOURNAL_TEST_KILLS", "6"))
SEED = int(os.environ.get("FUSEJOURNAL_TEST_SEED", "1"))
_KILLS_A_VOLUME = 10
_CONFIG = """
[journal]
segment_bytes = "256KiB"
flush_interval_seconds = 0.1
checkpoint_interval_seconds = 0.3
"""


class Witness(Busy):
    """Makes files below *root* and remembers what was answered: number -> inode."""

    def __init__(self, root: Path) -> None:
        super().__init__(1, 0)
        self._root = root
        self.answered: dict[int, int] = {}
        self._next = 0

    def once(self, dice: random.Random) -> None:
        number, self._next = self._next, self._next + 1
        time.sleep(dice.uniform(0, 0.01))
        fd = os.open(self._root / str(number), os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
        try:
            os.write(fd, str(number).encode() * 100)
            self.answered[number] = os.fstat(fd).st_ino
        finally:
            os.close(fd)

    def check(self) -> None:
        """Everything that was answered is there."""
        for number, ino in self.answered.items():
            path = self._root / str(number)
            assert path.stat().st_ino == ino, number
            assert path.read_bytes() == str(number).encode() * 100, number


@contextmanager
def _started(base: Path) -> Iterator[Layer]:
    base.mkdir()
    with Layer(base, config=_CONFIG) as layer:
        layer.start()
        yield layer
        layer.stop()
    shutil.rmtree(base)


def test_random_kills(tmp_path: Path) -> None:
    dice = random.Random(SEED)
    for first in range(0, KILLS, _KILLS_A_VOLUME):
        with _started(tmp_path / f"from{first}") as layer:
            seen = layer.mountpoint / "seen"
            seen.mkdir()
            work = Mischief(layer.mountpoint, SEED + first, pause_seconds=0.001)
            with work, Witness(seen) as witness:
                for number in range(first, min(KILLS, first + _KILLS_A_VOLUME)):
                    time.sleep(dice.uniform(0, 0.3))
                    layer.kill()
                    layer.start()
                    time.sleep(dice.uniform(0, 0.1))
                    work.pause()
                    witness.pause()
                    print(f"kill {number}: {work.done}, {len(witness.answered)}")
                    _check(layer, witness)
                    work.go_on()
                    witness.go_on()


def _check(layer: Layer, witness: Witness) -> None:
    witness.check()
    known = fids(layer.mountpoint)
    assert len(set(known.values())) >= len(witness.answered)
    replayed = layer.base / "replayed"
    replayed.mkdir()
    rebuild(layer.state, replayed, load_state(layer.state).uuid)
    for root in (layer.mountpoint, layer.backing):
        assert not (found := difference(image(root), image(replayed))), found
    shutil.rmtree(replayed)
