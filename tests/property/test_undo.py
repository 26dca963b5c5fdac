"""Undoing chosen operations on a live volume gives the tree that a replay of all the others
gives; and undoing that gives back the tree that was."""

import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fusejournal.backing import syscalls
from fusejournal.journal.criteria import Criteria, SeqRange, find
from fusejournal.journal.lookup import Lookup
from fusejournal.journal.reader import JournalReader
from fusejournal.operations import Kind
from fusejournal.replay.digest import digest_tree
from fusejournal.replay.replay import Replay
from fusejournal.replay.target import Target
from fusejournal.replay.undo import Undo
from fusejournal.types import Seq
from tests.support.layer import Layer
from tests.support.trees import difference, image

pytestmark = pytest.mark.mount

_NAMES = ("a", "b", "c", "d", "bad\udcff")
_IMPORTED = frozenset({Kind.IMPORT, Kind.IMPORT_DATA, Kind.IMPORT_LINK})


def _nothing(*_: object) -> None:
    pass


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
            self._rename, self._exchange, self._link, self._symlink, self._fifo, self._chmod,
            self._chown, self._set_xattr, self._remove_xattr, self._truncate, self._times,
            self._default_acl,
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

    def _default_acl(self) -> None:
        acl = (
            b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x07\0\xe8\x03\0\0"
            b"\x04\0\x05\0\xff\xff\xff\xff\x10\0\x07\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff"
        )
        name = self._choose.choice(("system.posix_acl_default", "system.posix_acl_access"))
        os.setxattr(self.path(), name, acl)


@pytest.fixture
def layer(tmp_path: Path) -> Layer:
    (tmp_path / "backing").mkdir()
    (tmp_path / "backing/imported").write_text("was there first")
    return Layer(tmp_path, config="[journal]\nsegment_entries = 300\n")


@settings(
    max_examples=15,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32), steps=st.integers(5, 60), share=st.integers(2, 10))
def _undo_some(layer: Layer, seed: int, steps: int, share: int) -> None:
    choose = random.Random(seed)
    worker = _Worker(layer.mountpoint, choose)
    first = layer.ask()["head_seq"] + 1
    for _ in range(steps):
        worker.work()
    head = Seq(layer.ask()["head_seq"])
    before = image(layer.mountpoint)
    reader = JournalReader(layer.state / "journal")
    lookup = Lookup(reader)
    seqs = [
        match.entry.seq
        for match in find(lookup, Criteria(from_seq=Seq(first), to_seq=Seq(head + 1)))
        if match.entry.operation.kind not in _IMPORTED and choose.randrange(share) == 0
    ]
    if not seqs:
        return
    only = tuple(SeqRange(seq, Seq(seq + 1)) for seq in seqs)
    undo = Undo(lookup, Criteria(from_seq=Seq(first), only=only), head)
    plan = undo.plan(_nothing, on_conflict="skip")
    list(undo.actions(plan))
    without = tuple(SeqRange(seq, Seq(seq + 1)) for seq in sorted(plan.chosen))
    others = Replay(lookup, Criteria(to_seq=Seq(head + 1), without=without))
    wanted = layer.base / f"wanted.{head}"
    wanted.mkdir()
    with Target(wanted, {"test": seed}) as goal:
        assert [one for one in others.run(goal, _nothing) if one.conflict] == []
        goal.finish()
    undo.carry_out(plan, layer.mountpoint, _nothing)
    assert difference(image(layer.mountpoint), image(wanted)) == ""
    assert digest_tree(layer.mountpoint).digest == digest_tree(wanted).digest

    # Taken back in turn.
    after = Seq(layer.ask()["head_seq"])
    again = Undo(Lookup(reader), Criteria(from_seq=Seq(head + 1)), after)
    plan = again.plan(_nothing)
    assert plan.conflicts == []
    again.carry_out(plan, layer.mountpoint, _nothing)
    assert difference(image(layer.mountpoint), before) == ""


def test_undo_is_replay_of_the_others(layer: Layer) -> None:
    with layer:
        layer.start()
        _undo_some(layer)
        layer.stop()
