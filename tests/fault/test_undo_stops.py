"""An undo that is stopped, at any point: nothing is lost, what it has done can be taken back, and
it can be gone on with.

``FUSEJOURNAL_TEST_KILLS`` says how many kills there are, ``FUSEJOURNAL_TEST_SEED`` which."""

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from fusejournal.cli.main import main
from fusejournal.disk import calls, syscalls
from fusejournal.history.lookup import Lookup
from fusejournal.history.query import Criteria
from fusejournal.journal.reader import JournalReader
from fusejournal.operations import RENAME_EXCHANGE
from fusejournal.replay import attributes, undo_execute, undo_files, undo_make
from fusejournal.replay.undo_plan import Undo
from fusejournal.types import Seq
from tests.support.forked import Forked
from tests.support.layer import Layer
from tests.support.trees import difference, image
from tests.support.volumes import show_nothing
from tests.support.xattrs import make_acl

pytestmark = pytest.mark.mount

KILLS = int(os.environ.get("FUSEJOURNAL_TEST_KILLS", "12"))
SEED = int(os.environ.get("FUSEJOURNAL_TEST_SEED", "1"))
_MODULES = (undo_execute, undo_files, undo_make, attributes, syscalls, calls)
_DEFAULT_ACL = make_acl(7, 7, 5, 7, 5)


def _make(root: Path) -> None:
    """A tree with one of each."""
    for name in ("gone/sub", "moved", "goal", "x", "y/below", "plain"):
        (root / name).mkdir(parents=True)
    for name in ("gone/f", "gone/sub/g", "x/in", "y/below/in", "moved/m", "kept", "replaced"):
        (root / name).write_text(name * 100)
    os.link(root / "gone/f", root / "linked")
    (root / "gone/symlink").symlink_to("anywhere")
    os.mkfifo(root / "gone/fifo")
    os.setxattr(root / "gone/sub", "user.k", b"v")
    with (root / "sparse").open("wb") as sparse:
        sparse.truncate(5 << 20)
        os.pwrite(sparse.fileno(), b"x" * 5000, 3 << 20)
    os.utime(root / "gone/sub", ns=(5, 5))
    os.utime(root, ns=(7, 7))


def _spoil(root: Path) -> None:
    """Do to it what is then to be taken back."""
    here = syscalls.AT_FDCWD
    shutil.rmtree(root / "gone")
    (root / "moved").rename(root / "goal/moved")
    both = (os.fsencode(root / name) for name in ("x/in", "y/below"))
    syscalls.rename(here, next(both), here, next(both), RENAME_EXCHANGE)
    os.link(root / "kept", root / "kept again")
    (root / "kept").write_text("bad")
    os.truncate(root / "sparse", 100)
    with (root / "sparse").open("r+b") as sparse:
        os.pwrite(sparse.fileno(), b"bad", 7 << 20)
    os.setxattr(root / "plain", "system.posix_acl_default", _DEFAULT_ACL)
    os.setxattr(root / "plain", "user.k", b"bad")
    (root / "plain").chmod(0o2711)
    (root / "goal/made/below").mkdir(parents=True)
    (root / "goal/made/below/f").write_text("bad")
    (root / "goal/made/g").write_text("bad")
    (root / "goal/made/g").replace(root / "replaced")


def _undo(
    layer: Layer,
    criteria: Criteria,
    unfinished: tuple[Criteria, ...] = (),
    around: Callable[[Callable[[], None]], object] = lambda work: work(),
) -> None:
    undo = Undo(
        Lookup(JournalReader(layer.state / "journal")),
        criteria,
        layer.head_seq(),
        unfinished=unfinished,
    )
    plan = undo.plan(show_nothing)
    assert plan.conflicts == []
    around(lambda: undo.carry_out(plan, layer.mountpoint, show_nothing))


def _profiled(work: Callable[[], None], kill_at: int) -> int:
    """Do *work*, and kill this process at call number *kill_at* of those by which an undo changes
    files and names, or at the return from it; the number of them all."""
    reached = 0
    files = {module.__file__ for module in _MODULES}

    def note(frame: FrameType, _: str, __: object) -> None:
        nonlocal reached
        if frame.f_code.co_filename in files:
            reached += 1
            if reached == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return reached


def _killed(layer: Layer, criteria: Criteria, at: int) -> int:
    """Undo in a process that is killed at call number *at*; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            _undo(layer, criteria, around=lambda work: _profiled(work, at))
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    return pid


def test_a_killed_undo_can_be_taken_back_and_gone_on_with(live: Layer) -> None:
    root = live.mountpoint
    _make(root)
    wanted = image(root)
    first = Seq(live.head_seq() + 1)
    _spoil(root)
    spoilt, after = image(root), Seq(live.head_seq() + 1)
    counted: list[int] = []
    _undo(live, Criteria(from_seq=first), around=lambda work: counted.append(_profiled(work, -1)))
    assert difference(image(root), wanted) == ""
    dice = random.Random(SEED)
    for number in range(KILLS):
        if image(root) != spoilt:
            _undo(live, Criteria(from_seq=after))
            assert difference(image(root), spoilt) == ""
        head, at = live.head_seq(), dice.randint(1, counted[0])
        begun = Criteria(from_seq=Seq(head + 1), pid=_killed(live, Criteria(from_seq=first), at))
        if number % 2:
            _undo(live, begun)
            assert difference(image(root), spoilt) == "", f"killed at {at}"
        else:
            _undo(live, Criteria(from_seq=first, to_seq=Seq(head + 1)), (begun,))
            assert difference(image(root), wanted) == "", f"killed at {at}"


def die_in_undo() -> None:
    """The program, whose undo is killed when its files are to get their names."""

    def on_step(reached: str) -> None:
        if reached == "put in place":
            os.kill(os.getpid(), signal.SIGKILL)

    undo_files.on_step = on_step
    main()


def test_the_command_goes_on_with_what_was_killed(live: Layer) -> None:
    root = live.mountpoint
    _make(root)
    wanted = image(root)
    first = live.head_seq() + 1
    _spoil(root)
    chosen = f"{first}-{live.head_seq()}"
    begun = ["undo", "volume", chosen, "--apply"]
    pids: list[int] = []
    for _ in range(2):
        resumed = [word for pid in pids for word in ("--resume", str(pid))]
        command = Forked([*begun, *resumed], live.environment, program=f"{__name__}:die_in_undo")
        assert command.wait(60) == -signal.SIGKILL
        pids.append(command.pid)
        (root / f"theirs {len(pids)}").write_text("meanwhile")
    in_the_way = live.run(*begun, check=False)
    assert in_the_way.returncode == 22
    named = " ".join(f"--resume {pid}" for pid in sorted(pids))
    assert named in in_the_way.stderr
    resumed = [word for pid in pids for word in ("--resume", str(pid))]
    live.run(*begun, *resumed)
    for number in (1, 2):
        (root / f"theirs {number}").unlink()
    os.utime(root, ns=(7, 7))
    assert difference(image(root), wanted) == ""
    unknown = live.run(*begun, "--resume", "1", check=False)
    assert unknown.returncode == 2
    assert "process 1" in unknown.stderr


def test_an_interrupted_undo_tells_how_to_go_on(live: Layer, tmp_path: Path) -> None:
    file = live.mountpoint / "f"
    file.write_text("good")
    first = live.head_seq() + 1
    file.write_text("bad, and longer")
    chosen = f"{first}-{live.head_seq()}"
    command = Forked(
        ["undo", "volume", chosen, "--apply"],
        live.environment,
        err=tmp_path / "err",
        program=f"{__name__}:interrupt_in_undo",
    )
    assert command.wait(60) == 130
    words = (tmp_path / "err").read_text()
    assert f"fusejournal undo volume {chosen} --apply --resume {command.pid}" in words
    live.run("undo", "volume", chosen, "--apply", "--resume", str(command.pid))
    assert file.read_text() == "good"
    assert os.listdir(live.mountpoint) == ["f"]


def interrupt_in_undo() -> None:
    """The program, whose undo gets Ctrl-C at its second change."""
    left = 2

    def on_step(reached: str) -> None:
        nonlocal left
        left -= reached == "change"
        if not left:
            os.kill(os.getpid(), signal.SIGINT)

    undo_files.on_step = on_step
    main()
