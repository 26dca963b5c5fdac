"""A restore of a version that is killed, at any of its calls, in any of its processes: nothing has
the target's name until all is there, and the same command goes on.

``FUSEJOURNAL_TEST_ALL_RESTORE_CALLS`` kills it at each time that it reaches a call."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from stat import S_IFIFO
from typing import NamedTuple

import pytest

from fusejournal.disk import failpoints
from fusejournal.errors import TargetFullError
from fusejournal.file_operations import LOCKING_FLAGS, SetFlags
from fusejournal.journal.reader import JournalReader
from fusejournal.objects.local import LocalStore
from fusejournal.operations import Create, Link, Setattr, Setxattr, Symlink, Truncate, Write
from fusejournal.types import ROOT_FID, Fid
from fusejournal.versions import by_processes, make_tree, selection, sorted_tree
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.create import create_version
from fusejournal.versions.manifest import Version
from fusejournal.versions.restore import restore_version
from tests.support.volumes import show_nothing
from tests.support.workload import (
    Workload,
    make_directory,
    make_file,
    unlike,
    workload_of,
    workspace,
)
from tests.support.xattrs import make_acl

_ALL = bool(os.environ.get("FUSEJOURNAL_TEST_ALL_RESTORE_CALLS"))


class Kept(NamedTuple):
    """A version in a store, and the journal that it is of."""

    workload: Workload
    store: Path
    version: Version

    def restore(self, target: Path, path: bytes = b"") -> int:
        """Restores *path*. Returns how many names there are."""
        blocks = BlockReader(LocalStore(self.store))
        return restore_version(blocks, self.version, path, target, show_nothing).names


def _operations() -> list[object]:
    made: list[object] = [
        Setattr(ROOT_FID, 0o751, 3, 4, None, 10**18),
        make_directory(Fid(2), ROOT_FID, b"d"),
        make_directory(Fid(3), Fid(2), b"deep"),
    ]
    for number in range(24):
        fid = Fid(10 + number)
        made.append(make_file(fid, Fid(2 + number % 2), b"file%d" % number))
        made.append(Write(fid, 200 + number, None))
        made.append(Setattr(fid, 0o640, 5, 6, None, 10**18 + number))
    made += [
        Link(Fid(10), ROOT_FID, b"linked"),
        Link(Fid(10), Fid(3), b"linked too"),
        Truncate(Fid(11), 1 << 20, None),
        Setxattr(Fid(12), b"user.k", b"v" * 100),
        Setxattr(Fid(3), b"system.posix_acl_default", make_acl(7, 7, 5, 7, 5)),
        Symlink(Fid(40), Fid(3), b"symlink", b"anywhere", 7, 8),
        Create(Fid(41), ROOT_FID, b"fifo", S_IFIFO | 0o604, 1, 2, 0, None),
        SetFlags(Fid(13), LOCKING_FLAGS),
    ]
    return made


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A directory in memory."""
    with workspace() as base:
        yield base


@pytest.fixture(scope="module")
def kept(base: Path) -> Kept:
    """A version with one of each kind of file."""
    workload = workload_of(*_operations())  # type: ignore[arg-type]
    workload.write(base / "journal")
    store = LocalStore.make(base / "store")
    reader = JournalReader(base / "journal")
    made = create_version(store, reader, workload.head_seq, "", "node", 1, show_nothing)
    return Kept(workload, base / "store", made.version)


@pytest.fixture(autouse=True)
def many_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of few files, so that several processes have something to do."""
    monkeypatch.setattr(selection, "_UNIT_FILES", 4)
    monkeypatch.setattr(make_tree, "_UNIT_DIRECTORIES", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # other tests' threads only wait


def _unlock(target: Path) -> None:
    os.system(f"chattr -R -ia {target} 2>/dev/null")


def _labels(kept: Kept, target: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the calls of a restore, in order, as one process makes them."""
    seen: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(by_processes, "_PROCESSES_MAX", 1)
        failpoints.listen(seen.append)
        try:
            kept.restore(target)
        finally:
            failpoints.listen(None)
    _unlock(target)
    return seen


def _in_child(kept: Kept, target: Path, label: str, count: int, action: str) -> int:
    """Restores in a process that is killed there. Returns its status."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            failpoints.listen(failpoints.PlannedFault(label, count, action))
            kept.restore(target)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_whatever_is_killed_goes_on(
    kept: Kept, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = _labels(kept, base / "first", monkeypatch)
    assert not unlike(base / "first", kept.workload.head)
    assert {"restore.create", "restore.link", "restore.mark", "restore.write"} < set(labels)
    killed = 0
    for label in sorted(set(labels)):
        times = labels.count(label)
        for count in range(1, times + 1) if _ALL else {1, (times + 1) // 2}:
            target = base / f"{label}{count}"
            status = _in_child(kept, target, label, count, "kill")
            killed += status != 0
            assert (status == 0) == target.exists() or label.startswith("scratch")
            if status:
                names = kept.restore(target) if not target.exists() else None
                assert names in (None, len(kept.workload.head.names))
            assert not unlike(target, kept.workload.head), (label, count)
            _unlock(target)
    assert killed > 15


def test_a_full_disk_is_said_and_gone_on_with(kept: Kept, base: Path) -> None:
    target = base / "full"
    failpoints.listen(failpoints.PlannedFault("restore.write", 3, "ENOSPC+"))
    try:
        with pytest.raises(TargetFullError):
            kept.restore(target)
    finally:
        failpoints.listen(None)
    assert not target.exists()
    kept.restore(target)
    assert not unlike(target, kept.workload.head)
    _unlock(target)


def test_a_part_has_the_names_in_it(kept: Kept, base: Path) -> None:
    target = base / "part"
    names = kept.restore(target, b"d")
    assert not unlike(target, kept.workload.head, Fid(2))
    assert names == sum(1 for _ in target.rglob("*"))
    assert os.stat(target / "deep/linked too").st_nlink == 2
    _unlock(target)
    seen: list[str] = []
    failpoints.listen(seen.append)
    try:
        assert kept.restore(base / "one", b"d/deep/linked too") == 1
    finally:
        failpoints.listen(None)
    assert seen.index("restore.attributes") < seen.index("restore.sync") < seen.index("target.sync")
    assert os.stat(base / "one/linked too").st_nlink == 1


def test_key_ranges_are_all_of_a_map(kept: Kept) -> None:
    blocks = BlockReader(LocalStore(kept.store))
    tree = sorted_tree.SortedTree(sorted_tree.Nodes(blocks), kept.version.inodes)
    keys = [key for key, _ in tree.items()]
    for least in (1, 3, 1000):
        found = list(tree.key_ranges(least))
        assert (found[0][0], found[-1][1]) == (b"", None)
        assert [one[1] for one in found[:-1]] == [one[0] for one in found[1:]]
        parted = [
            [key for key in keys if first <= key and (end is None or key < end)]
            for first, end in found
        ]
        assert [key for part in parted for key in part] == keys
        assert all(len(part) >= least for part in parted[:-1])
