"""The lives of files that had one path, one after the other."""

from pathlib import Path

import pytest

from fusejournal.history.life import find_lives, read_life
from fusejournal.history.lookup import Lookup
from fusejournal.operations import Kind, Rename, Truncate, Write
from fusejournal.types import ROOT_FID, Fid, Seq
from tests.support.volumes import SOMEBODY, open_volume

pytestmark = pytest.mark.mount


def test_two_files_of_one_path(tmp_path: Path) -> None:
    with open_volume(tmp_path) as opened:
        commit = opened.volume.commit
        directory = opened.mkdir("d")
        first = opened.create("f", b"12345", directory)
        opened.unlink(first, "f", directory)
        second = opened.create("f", b"", directory)
        commit(Write(second, 10, None), SOMEBODY, b"abc")
        commit(Rename(directory, ROOT_FID, b"d", ROOT_FID, b"moved", 0, Fid(0)), SOMEBODY)
        commit(Truncate(second, 4, None), SOMEBODY)
        lookup = Lookup(opened.volume.journal.reader)
        lives = find_lives(lookup, b"d/f")
        steps = list(read_life(lookup, second))
        nothing = find_lives(lookup, b"d/g")
    assert [life.fid for life in lives] == [first, second]
    assert all(len(life.tenures) == 1 for life in lives)
    ((old,), (new,)) = (life.tenures for life in lives)
    assert old.to_seq <= new.from_seq < new.to_seq
    assert [(step.match.entry.operation.kind, step.size) for step in steps] == [
        (Kind.CREATE, 0),
        (Kind.WRITE, 13),
        (Kind.RENAME, 13),
        (Kind.TRUNCATE, 4),
    ]
    assert [step.match.path for step in steps] == [b"d/f", b"d/f", b"d/f", b"moved/f"]
    assert steps[2].match.new_path == b"moved/f"
    assert [step.match.entry.seq for step in steps] == sorted(
        Seq(step.match.entry.seq) for step in steps
    )
    assert nothing == []
