"""Removing the segments that a base stands for: killed at any call, it is gone on with."""

import shutil
from dataclasses import replace
from pathlib import Path

from fusejournal.journal.drop import drop_segments
from fusejournal.journal.segment import first_seq_of, list_segments
from fusejournal.types import ROOT_FID, Fid, Seq
from tests.support.losses import Died, dying_at
from tests.support.workload import make_directory, make_file, workload_of


def test_killed_at_each_call(tmp_path: Path) -> None:
    """Some segments are compressed, some have an index, one is there in both forms."""
    files = [make_file(Fid(3 + number), Fid(2), b"file%d" % number) for number in range(60)]
    workload = workload_of(make_directory(Fid(2), ROOT_FID, b"d"), *files)
    whole, journal = tmp_path / "whole", tmp_path / "journal"
    replace(workload, segment_entries=10, care=b"\1\2\3").write(whole)
    first = list_segments(whole)[1]
    plain = tmp_path / "plain"
    replace(workload, segment_entries=10).write(plain)
    shutil.copy2(plain / f"{first.stem}.fj", whole)
    base_seq = Seq(first_seq_of(list_segments(whole)[4]) - 1)
    kept = {path.name for path in whole.iterdir() if int(path.name[:20]) > base_seq}
    deaths = 0
    while deaths < 100:
        shutil.copytree(whole, journal)
        try:
            with dying_at("journal.drop.", deaths + 1):
                drop_segments(journal, base_seq)
        except Died:
            deaths += 1
        else:
            break
        # The oldest go first, and what is there is whole.
        starts = [first_seq_of(path) for path in list_segments(whole)]
        left = [first_seq_of(path) for path in list_segments(journal)]
        assert starts[len(starts) - len(left) :] == left
        drop_segments(journal, base_seq)
        assert {path.name for path in journal.iterdir()} == kept
        assert drop_segments(journal, base_seq) == 0
        shutil.rmtree(journal)
    assert 4 < deaths < 100
