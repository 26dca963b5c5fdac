"""Reading ahead of a restore: how much it holds."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from fusejournal.operations import Setattr
from fusejournal.replay.fold import Step
from fusejournal.types import ROOT_FID
from fusejournal.versions import restore
from fusejournal.versions.blocks import BlockReader
from tests.support.objects import MemoryStore

_STEPS = 100_000


def test_steps_without_data_are_not_read_ahead_without_end() -> None:
    planned: list[int] = []
    step = Step(Setattr(ROOT_FID, 0o700, None, None, None, None), 0)

    def plan() -> Iterator[tuple[Step, bytes | None, int]]:
        yield step, bytes(32), 1 << 20
        for number in range(_STEPS):
            planned.append(number)
            yield step, None, 0

    blocks = _Reader(MemoryStore())
    with ThreadPoolExecutor(1) as pool:
        steps = restore._with_data(blocks, plan(), pool)
        assert next(steps).data == b"content"
        assert 1000 < len(planned) < _STEPS // 2
        assert sum(1 for _ in steps) == _STEPS


class _Reader(BlockReader):
    """A reader of the block that is always there."""

    def read(self, id_: bytes) -> bytes:
        return b"content"
