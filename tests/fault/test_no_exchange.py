"""A file system that cannot exchange two names (RENAME_EXCHANGE), nor rename onto nothing alone
(RENAME_NOREPLACE), as NFS and older ones: a target or a mirror on it takes an exchange, and a
whiteout that replaces a file, all the same."""

import errno
import os
from contextlib import suppress
from itertools import product
from pathlib import Path
from stat import S_IFCHR
from uuid import UUID

import pytest

from fusejournal.disk import failpoints, syscalls
from fusejournal.history.name_changes import Dentry
from fusejournal.journal.outcomes import with_outcomes
from fusejournal.journal.reader import END
from fusejournal.native import kernel
from fusejournal.operations import RENAME_EXCHANGE, RENAME_WHITEOUT, Moving, Rename, Whiteout
from fusejournal.types import ROOT_FID, Fid, Seq
from tests.support.losses import Died, dying_at, rebuild_stopped
from tests.support.trees import difference, image, rebuild
from tests.support.volumes import SOMEBODY, OpenVolume, check_copies, open_volume

pytestmark = pytest.mark.mount

_FLAGS_UNKNOWN = RENAME_EXCHANGE | 1


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file system here is without these flags: the system call is as it is there."""
    rename = kernel.rename

    def refusing(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
        if flags & _FLAGS_UNKNOWN:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        rename(old_dir, old, new_dir, new, flags)

    for module in (kernel, syscalls):
        monkeypatch.setattr(module, "rename", refusing)


def _leave_whiteout(opened: OpenVolume, fid: Fid, old: bytes, new: bytes, replaced: Fid) -> None:
    moved = Rename(fid, ROOT_FID, old, ROOT_FID, new, RENAME_WHITEOUT, replaced)
    made = (opened.volume.new_fid(), S_IFCHR, 7, 8, None)
    opened.volume.commit(Whiteout(*moved, *made), SOMEBODY)


def _replacing(opened: OpenVolume) -> None:
    """A file and a directory, each in the place of another."""
    files = [opened.create(name, name.encode()) for name in ("one", "two")]
    directories = [opened.mkdir(name) for name in ("three", "four")]
    opened.create("inner", b"inner", directories[0])
    _leave_whiteout(opened, files[0], b"one", b"two", files[1])
    _leave_whiteout(opened, directories[0], b"three", b"four", directories[1])


def _exchange(opened: OpenVolume, fid: Fid, old: Dentry, other: Fid, new: Dentry) -> None:
    opened.volume.commit(Rename(fid, *old, *new, RENAME_EXCHANGE, other), SOMEBODY)


def _exchanging(opened: OpenVolume) -> None:
    """Two files of one directory, a file and a directory, and two directories of two others."""
    root = ROOT_FID
    files = [opened.create(name, name.encode()) for name in ("e", "f")]
    _exchange(opened, files[0], (root, b"e"), files[1], (root, b"f"))
    above, below = opened.mkdir("above"), opened.mkdir("g")
    inner = opened.mkdir("inner", above)
    opened.create("file", b"in it", inner)
    _exchange(opened, inner, (above, b"inner"), below, (root, b"g"))
    _exchange(opened, files[0], (root, b"f"), inner, (root, b"g"))


def _source(directory: Path) -> UUID:
    with open_volume(directory) as opened:
        _replacing(opened)
        _exchanging(opened)
        return opened.volume.journal.uuid


@pytest.mark.usefixtures("no_exchange")
def test_a_whiteout_that_replaces(tmp_path: Path) -> None:
    with open_volume(tmp_path) as opened:
        _replacing(opened)
        spare = opened.mkdir("spare")
        four = opened.volume.catalog.lookup(ROOT_FID, b"four")
        assert four is not None
        with pytest.raises(OSError, match="Directory not empty"):
            _leave_whiteout(opened, spare, b"spare", b"four", four)
        assert opened.volume.failure is None
        assert sorted(os.listdir(opened.backing)) == ["four", "one", "spare", "three", "two"]
        (tmp_path / "target").mkdir()
        rebuild(tmp_path / "state", tmp_path / "target", opened.volume.journal.uuid)
        assert not difference(image(tmp_path / "target"), image(opened.backing))


def test_a_target_is_killed_or_refused_at_each_step(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """It goes on where it was."""
    uuid = _source(tmp_path)
    request.getfixturevalue("no_exchange")
    rebuild_stopped(tmp_path, uuid, "apply.", 1)


def test_a_mirror_is_killed_at_each_step(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    uuid = _source(tmp_path / "primary")
    request.getfixturevalue("no_exchange")
    for death in range(1, 30):
        with open_volume(tmp_path / "primary") as primary:
            entries = list(with_outcomes(primary.volume.journal.reader.read(Seq(1), END)))
        copy = tmp_path / f"mirror{death}"
        with open_volume(copy, mirror=True, uuid=uuid) as mirror:
            for entry, outcome in entries:
                died = False
                is_by_steps = isinstance(entry.operation, Moving)
                if is_by_steps:
                    with dying_at("apply.", death):
                        try:
                            mirror.volume.apply_received(entry, outcome, redo=False)
                        except Died:
                            died = True
                    mirror.volume.write_errno = mirror.volume.failure = None
                if died or not is_by_steps:
                    mirror.volume.apply_received(entry, outcome, redo=died)
            assert not difference(image(mirror.backing), image(tmp_path / "primary" / "backing"))


@pytest.mark.usefixtures("no_exchange")
def test_an_exchange_is_refused_or_killed_at_each_step(tmp_path: Path) -> None:
    """On a primary: a refusal leaves nothing, and the next start goes on from a death."""
    with open_volume(tmp_path) as opened:
        one, other = (opened.create(name, name.encode()) for name in ("one", "other"))
        places = (ROOT_FID, b"one"), (ROOT_FID, b"other")
        before = image(opened.backing)
        for step in range(1, 4):
            failpoints.listen(failpoints.PlannedFault("apply.exchange.step", step, "ENOSPC"))
            try:
                with pytest.raises(OSError, match="space"):
                    _exchange(opened, one, places[0], other, places[1])
            finally:
                failpoints.listen(None)
            assert not difference(image(opened.backing), before)
        _exchange(opened, one, places[0], other, places[1])
        assert (opened.backing / "one").read_bytes() == b"other"
    for label, death in product(("apply.", "orphan."), range(1, 10)):
        with open_volume(tmp_path, orderly=False) as opened:
            opened.keep_orphans = True
            names = opened.volume.catalog.lookup(ROOT_FID, b"one"), places[0], places[1]
            held = opened.volume.catalog.lookup(ROOT_FID, b"other")
            assert names[0] is not None
            assert held is not None
            with suppress(Died), dying_at(label, death):
                _exchange(opened, names[0], names[1], held, names[2])
        with open_volume(tmp_path) as opened:
            opened.volume.tree.take_over_orphans(())
            assert opened.volume.catalog.lookup(ROOT_FID, b"one") == held
            assert sorted(os.listdir(opened.backing)) == ["one", "other"]
    with open_volume(tmp_path) as opened:
        check_copies(tmp_path, opened.volume.journal.uuid, tmp_path)


@pytest.mark.usefixtures("no_exchange")
def test_what_is_invalid_by_itself_is_refused(tmp_path: Path) -> None:
    """A directory for one that is in it. (The layer lets no user ask for it.)"""
    with open_volume(tmp_path) as opened:
        outer = opened.mkdir("outer")
        inner = opened.mkdir("inner", outer)
        before = image(opened.backing)
        with pytest.raises(OSError, match="Invalid argument"):
            _exchange(opened, outer, (ROOT_FID, b"outer"), inner, (outer, b"inner"))
        assert not difference(image(opened.backing), before)
        assert opened.volume.failure is None
