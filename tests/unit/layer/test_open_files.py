"""The table of open files, as one process leaves it to the next."""

import os
import random
from collections.abc import Iterator

import pytest

from fusejournal.layer.open_files import OpenFiles, new_table
from fusejournal.types import Caller, Fid


@pytest.fixture
def table() -> Iterator[int]:
    fd = new_table()
    yield fd
    os.close(fd)


def test_handles_outlive_the_process(table: int) -> None:
    files = OpenFiles(table)
    dice = random.Random(1)
    known: dict[int, tuple[Fid, Caller]] = {}
    for _ in range(20):
        for _ in range(dice.randrange(300)):
            if known and dice.random() < 0.45:
                handle = dice.choice(list(known))
                fid, _ = known.pop(handle)
                still = any(other == fid for other, _ in known.values())
                assert files.remove(handle) == (fid, still)
            else:
                opened = (
                    Fid(dice.choice([1, 2, 1 << 40, (1 << 63) + 5])),
                    Caller(dice.choice([0, 1000, (1 << 32) - 2]), 100, dice.choice([0, 4711])),
                )
                handle = files.add(*opened)
                assert handle not in known
                known[handle] = opened
                files.answered(handle)
        # Another process begins with the same table.
        files = OpenFiles(table)
        assert {handle: files[handle] for handle in known} == known
        assert all((fid in files) for fid, _ in known.values())


def test_unknown_handles_are_stale(table: int) -> None:
    files = OpenFiles(table)
    handle = files.add(Fid(5), Caller(1, 2, 3))
    assert Fid(5) in files
    files.remove(handle)
    assert Fid(5) not in files
    with pytest.raises(OSError, match="Stale"):
        files[handle]
    with pytest.raises(OSError, match="Stale"):
        files.remove(handle)
    assert files.add(Fid(6), Caller(1, 2, 3)) == handle  # and is given again


def test_a_handle_that_nobody_was_told_of_is_not_open(table: int) -> None:
    files = OpenFiles(table)
    told, lost = (files.add(Fid(number), Caller(1, 2, 3)) for number in (5, 6))
    files.answered(told)
    assert Fid(6) in files
    files = OpenFiles(table)
    assert Fid(5) in files
    assert Fid(6) not in files
    # It is not given again, because its answer may have gone out at the very last moment.
    assert files.add(Fid(7), Caller(1, 2, 3)) not in (told, lost)
    assert files[lost] == (Fid(6), Caller(1, 2, 3))
    assert Fid(6) in files
    assert Fid(6) in OpenFiles(table)
    assert files.remove(lost) == (Fid(6), False)
    files.answered(lost)  # late, and closed already
    assert Fid(6) not in OpenFiles(table)
