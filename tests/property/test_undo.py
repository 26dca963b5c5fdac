"""Undoing chosen operations on a live volume gives the tree that a replay of all the others
gives, also where another process changes it meanwhile, unless that is told; and undoing that gives
back the tree that was."""

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fusejournal.disk import syscalls
from fusejournal.errors import ConflictError
from fusejournal.history.lookup import Lookup
from fusejournal.history.query import Criteria, SeqRange, find
from fusejournal.journal.reader import JournalReader
from fusejournal.operations import RENAME_WHITEOUT, Kind
from fusejournal.replay import undo_files
from fusejournal.replay.digest import digest_tree
from fusejournal.replay.replay import Replay
from fusejournal.replay.target import Target
from fusejournal.replay.undo_plan import OnUndoConflict, Undo, UndoPlan
from fusejournal.types import Seq
from tests.support.layer import Layer
from tests.support.trees import difference, image
from tests.support.volumes import show_nothing
from tests.support.xattrs import make_acl

pytestmark = pytest.mark.mount

_NAMES = ("a", "b", "c", "d", "bad\udcff")
_IMPORTED = frozenset({Kind.IMPORT, Kind.IMPORT_DATA, Kind.IMPORT_LINK})


class _Worker:
    """Does random things below a directory; what the file system refuses is no matter."""

    def __init__(self, root: Path, choose: random.Random) -> None:
        self._root = root
        self._choose = choose

    def path(self) -> str:
        """A path that may be there, or not."""
        depth = self._choose.randint(1, 3)
        return os.path.join(self._root, *(self._choose.choice(_NAMES) for _ in range(depth)))

    def work(self) -> None:
        """One thing."""
        kinds: list[Callable[[], object]] = [
            self._write, self._write, self._append, self._mkdir, self._mkdir, self._remove,
            self._rename, self._exchange, self._leave_whiteout, self._leave_whiteout,
            self._link, self._symlink, self._fifo, self._chmod,
            self._chown, self._set_xattr, self._remove_xattr, self._truncate, self._times,
            self._default_acl, self._default_acl, self._capability, self._sparse, self._sparse,
            self._remove_tree, self._take_name,
        ]  # fmt: skip
        with suppress(OSError):
            self._choose.choice(kinds)()

    def _bytes(self) -> bytes:
        return self._choose.randbytes(self._choose.choice((1, 5, 5000)))

    def _write(self) -> None:
        self._put(os.O_CREAT | os.O_TRUNC, 0)

    def _put(self, flags: int, offset: int) -> None:
        # A fifo without a reader must not hold the test up.
        fd = os.open(self.path(), os.O_WRONLY | os.O_NONBLOCK | flags, 0o644)
        try:
            os.pwrite(fd, self._bytes(), offset)
        finally:
            os.close(fd)

    def _append(self) -> None:
        self._put(0, self._choose.choice((0, 3, 9000)))

    def _mkdir(self) -> None:
        os.mkdir(self.path(), self._choose.choice((0o755, 0o2775)))

    def _remove(self) -> None:
        path = self.path()
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)
        else:
            os.unlink(path)

    def _rename(self) -> None:
        os.rename(self.path(), self.path())

    def _leave_whiteout(self) -> None:
        paths = os.fsencode(self.path()), os.fsencode(self.path())
        here = syscalls.AT_FDCWD
        syscalls.rename(here, paths[0], here, paths[1], RENAME_WHITEOUT)

    def _exchange(self) -> None:
        here = syscalls.AT_FDCWD
        syscalls.rename(here, os.fsencode(self.path()), here, os.fsencode(self.path()), 2)

    def _link(self) -> None:
        os.link(self.path(), self.path(), follow_symlinks=False)

    def _symlink(self) -> None:
        os.symlink(self._choose.choice(_NAMES), self.path())

    def _fifo(self) -> None:
        os.mkfifo(self.path())

    def _chmod(self) -> None:
        os.chmod(self.path(), self._choose.choice((0o600, 0o4755, 0o640)))

    def _chown(self) -> None:
        os.chown(self.path(), 1000, self._choose.choice((0, 1000)), follow_symlinks=False)

    def _set_xattr(self) -> None:
        os.setxattr(self.path(), "user.k", self._bytes()[:100])

    def _remove_xattr(self) -> None:
        os.removexattr(self.path(), "user.k")

    def _truncate(self) -> None:
        os.truncate(self.path(), self._choose.choice((0, 3, 20000)))

    def _times(self) -> None:
        os.utime(self.path(), ns=(5, self._choose.randrange(10**18)))

    def _capability(self) -> None:
        value = bytes.fromhex("0100000200200000000000000000000000000000")
        os.setxattr(self.path(), "security.capability", value)

    def _sparse(self) -> None:
        self._put(os.O_CREAT, self._choose.choice((0, 1 << 20, 5 << 20)))

    def _remove_tree(self) -> None:
        path = self.path()
        # A fifo would have rmtree wait for a writer.
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)

    def _take_name(self) -> None:
        """Remove something, and make something else of that name."""
        path = self.path()
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
        self._choose.choice((os.mkdir, os.mkfifo, lambda path: os.symlink("x", path)))(path)

    def _default_acl(self) -> None:
        acl = make_acl(7, 7, 5, 7, 5)
        name = self._choose.choice(("system.posix_acl_default", "system.posix_acl_access"))
        os.setxattr(self.path(), name, acl)


@pytest.fixture
def layer(tmp_path: Path) -> Layer:
    (tmp_path / "backing").mkdir()
    (tmp_path / "backing/imported").write_text("was there first")
    return Layer(tmp_path, config="[journal]\nsegment_entries = 300\n")


@settings(
    max_examples=20,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 2**32),
    steps=st.integers(5, 60),
    share=st.integers(2, 10),
    on_conflict=st.sampled_from(("skip", "aside")),
)
def _undo_some(
    layer: Layer, seed: int, steps: int, share: int, on_conflict: OnUndoConflict
) -> None:
    choose = random.Random(seed)
    chosen = _work_and_choose(layer, choose, steps, share)
    if chosen is None:
        return
    before = image(layer.mountpoint)
    undo, head = chosen
    plan = undo.plan(show_nothing, on_conflict=on_conflict)
    if plan.conflicts:
        assert on_conflict == "aside"
        return
    list(undo.actions(plan))
    wanted = _others(layer, plan, head, frozenset())
    undo.carry_out(plan, layer.mountpoint, show_nothing)
    if not plan.divergence.asides:  # or no replay can say what is wanted
        assert wanted is not None
        assert difference(image(layer.mountpoint), image(wanted)) == ""
        assert digest_tree(layer.mountpoint).digest == digest_tree(wanted).digest

    # Taken back in turn.
    after = layer.head_seq()
    lookup = Lookup(JournalReader(layer.state / "journal"))
    again = Undo(lookup, Criteria(from_seq=Seq(head + 1)), after)
    plan = again.plan(show_nothing)
    assert plan.conflicts == []
    again.carry_out(plan, layer.mountpoint, show_nothing)
    assert difference(image(layer.mountpoint), before) == ""


def _work_and_choose(
    layer: Layer, choose: random.Random, steps: int, share: int
) -> tuple[Undo, Seq] | None:
    """Do *steps* things and take some of their entries to be undone; the undo, and the head."""
    _clear(layer)
    worker = _Worker(layer.mountpoint, choose)
    first = layer.head_seq() + 1
    for _ in range(steps):
        worker.work()
    head = layer.head_seq()
    lookup = Lookup(JournalReader(layer.state / "journal"))
    seqs = [
        match.entry.seq
        for match in find(lookup, Criteria(from_seq=Seq(first), to_seq=Seq(head + 1)))
        if match.entry.operation.kind not in _IMPORTED and choose.randrange(share) == 0
    ]
    if not seqs:
        return None
    only = tuple(SeqRange(seq, Seq(seq + 1)) for seq in seqs)
    return Undo(lookup, Criteria(from_seq=Seq(first), only=only), head), head


def _clear(layer: Layer) -> None:
    """Remove what an example before has left, so that each can be done again by itself."""
    for left in layer.mountpoint.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        elif left.name != "imported":
            left.unlink()


def _others(layer: Layer, plan: UndoPlan, head: Seq, also: frozenset[Seq]) -> Path | None:
    """The tree that all entries up to *head* give but those that *plan* takes back and *also*;
    None where they cannot all be carried out."""
    without = tuple(SeqRange(seq, Seq(seq + 1)) for seq in sorted(plan.chosen | also))
    lookup = Lookup(JournalReader(layer.state / "journal"))
    others = Replay(lookup, Criteria(to_seq=Seq(head + 1), without=without))
    wanted = Path(tempfile.mkdtemp(dir=layer.base))
    with Target(wanted, {"test": head}) as goal:
        done = all(one.conflict is None for one in others.run(goal, show_nothing))
        goal.finish()
    return wanted if done else None


@settings(
    max_examples=25,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32), moment=st.integers(0, 40))
def _undo_beside_others(
    layer: Layer, monkeypatch: pytest.MonkeyPatch, seed: int, moment: int
) -> None:
    choose = random.Random(seed)
    chosen = _work_and_choose(layer, choose, 30, 3)
    if chosen is None:
        return
    undo, head = chosen
    plan = undo.plan(show_nothing, on_conflict="skip")
    steps = 0

    def meddle(_: str) -> None:
        nonlocal steps
        steps += 1
        if steps == moment:
            pid = os.fork()
            if pid == 0:
                with suppress(BaseException):
                    for _round in range(3):
                        _Worker(layer.mountpoint, choose).work()
                os._exit(0)
            os.waitpid(pid, 0)

    monkeypatch.setattr(undo_files, "on_step", meddle)
    told = False
    try:
        undo.carry_out(plan, layer.mountpoint, show_nothing)
    except ConflictError:
        told = True
    after = layer.head_seq()
    entries = JournalReader(layer.state / "journal").read(Seq(head + 1), Seq(after + 1))
    ours = frozenset(entry.seq for entry in entries if entry.who.pid == os.getpid())
    if not told and not plan.divergence.asides:
        wanted = _others(layer, plan, after, ours)
        if wanted is not None:
            assert difference(image(layer.mountpoint), image(wanted)) == ""
    for left in layer.mountpoint.glob(".fusejournal-undo.*"):
        assert told
        shutil.rmtree(left)


@pytest.mark.from_first_entry
def test_undo_is_replay_of_the_others(layer: Layer) -> None:
    with layer:
        layer.start()
        _undo_some(layer)
        layer.stop()


@pytest.mark.from_first_entry
def test_undo_beside_others_loses_nothing_untold(
    layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with layer:
        layer.start()
        _undo_beside_others(layer, monkeypatch)
        layer.stop()
