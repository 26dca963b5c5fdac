"""Memory that is taken by what is kept of trees: bounded, whatever attributes files have."""

import tracemalloc
from pathlib import Path

from fusejournal.admin.source import open_source
from fusejournal.history.tree_cache import TreeCache
from fusejournal.journal.journal import Journal
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import Clean, Create, Setxattr
from fusejournal.types import ROOT_FID, SYSTEM_CALLER, Fid, Seq
from tests.support.entries import UUID_OF_TESTS

_FILES = 1200
_VALUE_BYTES = 60 << 10


def test_large_attributes_are_not_all_kept(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, UUID_OF_TESTS, JournalOptions(1 << 30, 500))
    seq = 0
    for number in range(_FILES):
        fid, name = Fid(number + 2), b"file%d" % number
        operations = (
            Create(fid, ROOT_FID, name, 0o100644, 0, 0, 0, None),
            Setxattr(fid, b"user.large", bytes([number % 256]) * _VALUE_BYTES),
        )
        for operation in operations:
            seq += 1
            journal.append(operation, SYSTEM_CALLER, seq, {fid: name}.get)
    journal.append(Clean(), SYSTEM_CALLER, seq + 1, lambda _: None)
    journal.close()
    lookup, trees = open_source(str(tmp_path)).lookup, TreeCache()
    tracemalloc.start()
    try:
        for first in range(0, _FILES, 200):
            fids = [Fid(number + 2) for number in range(first, first + 200)]
            states = trees.states(lookup, fids, Seq(seq + 1))
            assert {len(one.xattrs[b"user.large"]) for one in states.values()} == {_VALUE_BYTES}
        del states
        assert tracemalloc.get_traced_memory()[0] < 45 << 20
    finally:
        tracemalloc.stop()
