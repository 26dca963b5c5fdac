"""The table of the state directory's files, in the words of its module, is what a run writes."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from fusejournal.node import state_dir
from tests.support.mirrors import check_equal, nodes

pytestmark = pytest.mark.mount

_RARE = {
    *("log", "parted.json", "rejoin.json", "branches", "overwritten", "store.json", "store.key"),
    *("base.json", "members.json", "prune.lock", "scrub.json", "versions.json"),
    "verified",
    *("level.json", "journal.new", "versions"),
}
"""Files of a layer in the background, of a mirror that parted, after a system crash, of a
volume that waits for mirrors, has versions, whose journal was pruned, or that copies a tree."""


def _table() -> list[str]:
    rows = re.findall(r"^ +STATE/(\S+?)/? +\S", state_dir.__doc__ or "", re.MULTILINE)
    assert len(rows) > 8
    return [str(row) for row in rows]


def test_each_file_is_listed_once() -> None:
    assert len(set(_table())) == len(_table())


def test_what_a_run_writes_is_what_is_listed(tmp_path: Path) -> None:
    written: set[str] = set()
    with nodes(tmp_path, None) as (primary, mirror):
        primary.export_to_nobody()  # so that its connection is held
        primary.start()
        mirror.start()
        (primary.mountpoint / "file").write_text("content")
        check_equal(primary, mirror)
        for node in (primary, mirror):
            written |= {path.name for path in node.state.iterdir()}
        for node in (primary, mirror):
            node.stop()
            written |= {path.name for path in node.state.iterdir()}
    rows = _table()
    listed = {name for name in written if any(fnmatchcase(name, row) for row in rows)}
    assert written - listed == set()
    unwritten = {row for row in rows if not any(fnmatchcase(name, row) for name in written)}
    assert unwritten <= _RARE
