"""A backing, whatever a system crash leaves of it, is made what the journal says.

A backing as of some entry at or after the checkpoint, be it before or beyond the journal's end, is
then spoilt further: names moved, taken away and added, files cut short, grown and overwritten,
attributes changed, fids that had not come to the disk."""

import errno
import json
import os
import random
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from uuid import UUID

from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from fusejournal.backing.fid_tag import FID_XATTR, pack_tag
from fusejournal.disk.syscalls import handle_of
from fusejournal.journal.outcomes import Outcome
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.operations import (
    Clean,
    ControlOperation,
    ImportOperation,
    Operation,
    Rename,
    Rmdir,
    Whiteout,
    made_by,
)
from fusejournal.types import ROOT_FID, Fid, Seq
from tests.support.bases import give_base, possible_bases
from tests.support.losses import Died, crash_system, dying_at
from tests.support.model import Model
from tests.support.random_workloads import workloads
from tests.support.trees import difference, image, rebuild
from tests.support.volumes import open_volume
from tests.support.workload import UUID_OF_WORKLOADS, Workload, workspace

_NAMES = ("a", "b", "c", "stray")
_NO_ENDS = ImportOperation | Clean | Rmdir | Rename


def _may_be_the_last(operation: Operation) -> bool:
    if isinstance(operation, Whiteout) and operation.replaced:
        return False
    return not isinstance(operation, _NO_ENDS)


# -- what is left --------------------------------------------------------------------------------


def leave(
    volume: Path, workload: Workload, checkpoint: int, backing: int, end: int, base: int = 0
) -> None:
    """Leaves in *volume* a checkpoint and a backing as of these entries, and a journal that ends
    with entry *end*. It begins with the first entry; with *base*, with the first segment that does
    so after that entry."""
    (volume / "state").mkdir()
    (volume / "backing").mkdir()
    plain = bytes(care & 1 for care in workload.care)  # so that it can be cut anywhere
    replace(workload, care=plain).write(volume / "state" / "journal")
    tag_root(volume / "backing", UUID_OF_WORKLOADS)
    page = WatermarkPage(volume / "state" / "watermarks")
    page.confirm()
    page.close()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (volume / "state" / "boot").write_text(json.dumps({"boot_id": boot}))
    with open_volume(volume, mirror=True, uuid=UUID_OF_WORKLOADS, orderly=False) as opened:
        entries = opened.volume.journal.reader.read(Seq(1), Seq(backing + 1))
        for entry in entries:
            step = workload.steps[entry.seq - 1]
            if isinstance(entry.operation, ControlOperation):
                opened.volume.catalog.record_control(entry.operation, entry.seq)
            else:
                opened.volume.apply_received(entry, Outcome.of(step.void), redo=False)
            if entry.seq == checkpoint:
                opened.make_checkpoint()
    if not checkpoint:
        (volume / "state" / "checkpoint").unlink(missing_ok=True)
    (volume / "state" / "watermarks").unlink()
    if base:
        give_base(volume / "state", Seq(base), UUID_OF_WORKLOADS)
    crash_system(volume / "state", end)


def tag_root(backing: Path, uuid: UUID) -> None:
    """Make *backing* the volume's."""
    fd = os.open(backing, os.O_RDONLY)
    os.setxattr(fd, FID_XATTR, pack_tag(uuid, ROOT_FID, handle_of(fd)))
    os.close(fd)


# -- what else may have happened to it -----------------------------------------------------------


class Vandal:
    """Does to *backing* what operations may have done that the journal has lost."""

    def __init__(self, backing: Path, model: Model, young: set[Fid], seed: int) -> None:
        self._backing, self._dice, self._young = backing, random.Random(seed), young
        self._model = model

    def work(self, times: int) -> None:
        """Do *times* things."""
        ways = [self._unlink, self._rename, self._rename, self._rmdir, self._shorten, self._grow,
                self._overwrite, self._chmod, self._chown, self._setxattr, self._removexattr,
                self._utime, self._link, self._untag, self._mkdir, self._create]  # fmt: skip
        for _ in range(times):
            path = self._any()
            if path is not None:
                with suppress(OSError):
                    self._dice.choice(ways)(path)

    def _all(self) -> list[Path]:
        return sorted(self._backing.rglob("*"))

    def _any(self) -> Path | None:
        paths = self._all()
        return self._dice.choice(paths) if paths else None

    def _elsewhere(self) -> Path:
        directories = [self._backing, *(path for path in self._all() if S_ISDIR(mode_of(path)))]
        return self._dice.choice(directories) / self._dice.choice(_NAMES)

    def _unlink(self, path: Path) -> None:
        path.unlink()

    def _rename(self, path: Path) -> None:
        path.rename(self._elsewhere())

    def _rmdir(self, path: Path) -> None:
        path.rmdir()

    def _shorten(self, path: Path) -> None:
        if S_ISREG(mode_of(path)) and path.stat().st_size:
            os.truncate(path, self._dice.randrange(path.stat().st_size))

    def _grow(self, path: Path) -> None:
        if S_ISREG(mode_of(path)):
            with path.open("ab") as file:
                file.write(b"lost")

    def _overwrite(self, path: Path) -> None:
        if S_ISREG(mode_of(path)):
            with path.open("r+b") as file:
                file.seek(self._dice.randrange(max(1, path.stat().st_size)))
                file.write(b"lost")

    def _chmod(self, path: Path) -> None:
        path.chmod(self._dice.choice((0o600, 0o777, 0o4711)))

    def _chown(self, path: Path) -> None:
        os.chown(path, 4711, self._dice.randrange(3), follow_symlinks=False)

    def _setxattr(self, path: Path) -> None:
        name = self._dice.choice(("user.one", "user.lost", "trusted.lost"))
        os.setxattr(path, name, b"lost", follow_symlinks=False)

    def _removexattr(self, path: Path) -> None:
        os.removexattr(path, "user.one", follow_symlinks=False)

    def _utime(self, path: Path) -> None:
        os.utime(path, ns=(1, 2), follow_symlinks=False)

    def _link(self, path: Path) -> None:
        os.link(path, self._elsewhere(), follow_symlinks=False)

    def _untag(self, path: Path) -> None:
        """A file whose fid had not come to the disk. Such files are where they were made."""
        fid = fid_of(path)
        at = os.fsencode(path.relative_to(self._backing))
        if fid in self._young and self._model.at(at) == fid and path.lstat().st_nlink == 1:
            os.removexattr(path, FID_XATTR, follow_symlinks=False)

    def _mkdir(self, path: Path) -> None:
        self._elsewhere().mkdir()

    def _create(self, path: Path) -> None:
        with self._elsewhere().open("xb") as file:
            file.write(b"not journaled")


def mode_of(path: Path) -> int:
    """Its own, not its target's."""
    return path.lstat().st_mode


def fid_of(path: Path) -> Fid | None:
    """The fid that is kept with the file."""
    try:
        tag = os.getxattr(path, FID_XATTR, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise
    return Fid(int.from_bytes(tag[16:24], "little"))


# -- the test ------------------------------------------------------------------------------------


def reconcile(volume: Path, death: int = 0) -> bool:
    """Open and close it; True if it died on the way."""
    try:
        with (
            dying_at("reconcile.", death),
            open_volume(volume, uuid=UUID_OF_WORKLOADS) as opened,
        ):
            assert opened.opening.system_crash
            for told in map(str, opened.opening.degraded):
                assert "have another name now" in told, told
    except Died:
        return True
    return False


def take_away_others(backing: Path, known: set[bytes]) -> None:
    """Remove what the journal did not know at its end; it was imported."""
    for path in sorted(backing.rglob("*"), reverse=True):
        if os.fsencode(path.relative_to(backing)) not in known:
            before = path.parent.stat()
            path.rmdir() if S_ISDIR(mode_of(path)) else path.unlink()
            os.utime(path.parent, ns=(before.st_atime_ns, before.st_mtime_ns))


@settings(max_examples=60)
@given(
    workloads(min_size=25, max_size=100),
    st.tuples(*[st.integers(0, 1 << 16)] * 3),
    st.integers(0, 12),
    st.integers(0, 1 << 32),
    st.lists(st.integers(1, 60), max_size=2),
)
def test_any_backing_is_made_what_the_journal_says(
    workload: Workload, points: tuple[int, int, int], times: int, seed: int, deaths: list[int]
) -> None:
    # The second entry tells what the root is; an import that was the last thing is made VOID where
    # its file was lost, and so is the last removal of a directory that a vandal has put something
    # into; and after an orderly stop nothing is lost.
    whole = [
        seq
        for seq, step in enumerate(workload.steps, 1)
        if step.void is None and seq > 2 and _may_be_the_last(step.operation)
    ]
    checkpoint, backing, end = sorted(whole[point % len(whole)] for point in points)
    if seed & 1:
        backing, end = end, backing
    model = workload.models[end]
    young = {
        making.fid
        for step in workload.steps[checkpoint:end]
        if (making := made_by(step.operation)) is not None
    }
    with workspace() as volume:
        leave(volume, workload, checkpoint, backing, end)
        Vandal(volume / "backing", model, young, seed).work(times)
        for death in [*deaths, 0]:
            if not reconcile(volume, death):
                break
        target = volume / "replayed"
        target.mkdir()
        rebuild(volume / "state", target, UUID_OF_WORKLOADS)
        assert not (found := difference(image(volume / "backing"), image(target))), found
        take_away_others(volume / "backing", set(model.all_paths()))
        assert not (found := difference(image(volume / "backing"), model.image())), found
        shutil.rmtree(volume / "backing")


@settings(max_examples=40, phases=(Phase.generate,))
@given(
    workloads(min_size=25, max_size=100),
    st.tuples(*[st.integers(0, 1 << 16)] * 4),
    st.integers(0, 12),
    st.integers(0, 1 << 32),
    st.lists(st.integers(1, 60), max_size=1),
)
def test_so_it_is_by_a_journal_with_a_base(
    workload: Workload, points: tuple[int, ...], times: int, seed: int, deaths: list[int]
) -> None:
    workload = replace(workload, segment_entries=min(workload.segment_entries, 7))
    whole = [
        seq
        for seq, step in enumerate(workload.steps, 1)
        if step.void is None and seq > 14 and _may_be_the_last(step.operation)
    ]
    assume(whole)
    checkpoint, backing, end = sorted(whole[point % len(whole)] for point in points[:3])
    model = workload.models[end]
    young = {
        making.fid
        for step in workload.steps[checkpoint:end]
        if (making := made_by(step.operation)) is not None
    }
    with workspace() as volume:
        workload.write(volume / "journal")
        bases = [seq for seq in possible_bases(volume / "journal") if 2 <= seq <= checkpoint]
        base = bases[points[3] % len(bases)]
        leave(volume, workload, checkpoint, backing, end, base)
        Vandal(volume / "backing", model, young, seed).work(times)
        for death in [*deaths, 0]:
            if not reconcile(volume, death):
                break
        take_away_others(volume / "backing", set(model.all_paths()))
        assert not (found := difference(image(volume / "backing"), model.image())), found
        shutil.rmtree(volume / "backing")
