"""Root restores and replays below a directory that belongs to a user, who does there what he can at
every step of it: he sees nothing on its way, changes nothing of it, and nothing that root does
lands anywhere else."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from stat import S_IFREG, S_IMODE

import pytest

from fusejournal.disk import failpoints
from fusejournal.errors import FusejournalError, TargetError
from fusejournal.history.lookup import Lookup
from fusejournal.history.query import Criteria
from fusejournal.journal.reader import JournalReader
from fusejournal.operations import (
    Create,
    Kind,
    Mkdir,
    NewEpoch,
    Removexattr,
    Setattr,
    Setxattr,
    Write,
)
from fusejournal.replay.replay import Replay
from fusejournal.replay.restore import restore
from fusejournal.replay.target import Target
from fusejournal.types import ROOT_FID, Caller, Epoch, Fid, Seq
from tests.support.model import Model
from tests.support.users import SOMEBODY, acting
from tests.support.volumes import show_nothing
from tests.support.workload import Step, Workload

_SECRET = b"what others may not read"
_DIR, _OPEN_FILE = Fid(2), Fid(3)
_ACL = bytes.fromhex(
    # owner rwx, user 1000 rwx, group r-x, mask rwx, others ---
    "02000000" "01000700ffffffff" "02000700e8030000" "04000500ffffffff" "10000700ffffffff"
    "20000000ffffffff"
)  # fmt: skip
_HIDDEN = (
    ".back.fusejournal-replay",
    ".back.fusejournal-restore",
    "..back.fusejournal-restore.fusejournal-replay",
)


def _workload() -> Workload:
    """A tree whose root and files stand open to all for a while before they are closed."""
    workload = Workload(segment_entries=5000)
    model = Model()
    operations: list[tuple[object, bytes]] = [
        (NewEpoch(Epoch(1), "new"), b""),
        (Setattr(ROOT_FID, 0o777, SOMEBODY, SOMEBODY, None, 5), b""),
        (Mkdir(_DIR, ROOT_FID, b"d", 0o777, SOMEBODY, SOMEBODY, None, None), b""),
        (Create(_OPEN_FILE, _DIR, b"f", S_IFREG | 0o666, 0, 0, 0, None), b""),
        (Write(_OPEN_FILE, 0, None), _SECRET),
        (Setattr(_OPEN_FILE, 0o600, None, None, None, None), b""),
        (Setattr(_DIR, 0o700, 0, 0, None, None), b""),
        (Setattr(ROOT_FID, 0o755, 0, 0, None, None), b""),
        (NewEpoch(Epoch(2), "end"), b""),
    ]
    for number, (operation, data) in enumerate(operations, 1):
        step = Step(operation, Caller(0, 0, 0), number, data)  # type: ignore[arg-type]
        step.apply_to(model)
        workload.steps.append(step)
        workload.models.append(model)
    return workload


class _User:
    """SOMEBODY, at work in his home while root is."""

    def __init__(self, home: Path, victim: Path) -> None:
        self.home = home
        self.victim = victim
        self.reached: set[str] = set()
        self.moves: list[Callable[[], None]] = []
        """Done one after another, at a step each."""

    def __call__(self, label: str) -> None:
        if label == "target.syncfs":
            return  # it is all as it should be, and open to whom it is meant for
        with acting(SOMEBODY):
            for directory, directories, files in os.walk(self.home):
                for name in directories:
                    self._try_directory(os.path.join(directory, name))
                for name in files:
                    self._try_file(os.path.join(directory, name))
            if self.moves:
                with suppress(OSError):
                    self.moves.pop(0)()

    def _try_directory(self, path: str) -> None:
        if os.path.islink(path):
            return
        with suppress(OSError):
            os.listdir(path)
            self.reached.add(path)
        with suppress(OSError):
            os.symlink(self.victim, os.path.join(path, "planted"))
            self.reached.add(path)

    def _try_file(self, path: str) -> None:
        for flags in (os.O_RDONLY, os.O_WRONLY):
            with suppress(OSError):
                os.close(os.open(path, flags | os.O_NOFOLLOW))
                self.reached.add(path)

    def swap(self, name: str) -> None:
        """Put a symlink to what is not his in the place of *name*."""
        (self.home / name).rename(self.home / f"taken{len(os.listdir(self.home))}")
        (self.home / name).symlink_to(self.victim)


@pytest.fixture
def place() -> Iterator[Path]:
    """``home``, which is a user's, ``roots``, which is not, and ``journal``."""
    base = Path(tempfile.mkdtemp(prefix="fusejournal.", dir="/tmp"))
    try:
        base.chmod(0o755)
        (base / "home").mkdir()
        os.chown(base / "home", SOMEBODY, SOMEBODY)
        victim = base / "roots"
        victim.mkdir(mode=0o755)
        (victim / "file").write_bytes(_SECRET)
        (victim / "file").chmod(0o600)
        _workload().write(base / "journal")
        yield base
    finally:
        failpoints.listen(None)
        shutil.rmtree(base)


def _lookup(place: Path) -> Lookup:
    return Lookup(JournalReader(place / "journal"))


def _replay(place: Path, target: Path, from_seq: int = 1, to_seq: int = 8) -> None:
    criteria = Criteria(from_seq=Seq(from_seq), to_seq=Seq(to_seq + 1))
    work = Replay(_lookup(place), criteria)
    with Target(target, {"test": [from_seq, to_seq]}, from_seq=from_seq) as goal:
        work.check_target(goal, show_nothing)
        for _ in work.run(goal, show_nothing):
            pass
        goal.finish()


def _replay_rest(place: Path, target: Path) -> None:
    """On a target that an earlier replay left open to all."""
    failpoints.listen(None)
    _replay(place, target, to_seq=5)
    user = _User(target.parent, place / "roots")
    user("")
    assert user.reached >= {str(target), str(target / "d"), str(target / "d/f")}
    for planted in target.rglob("planted"):
        planted.unlink()


def _restore(path: bytes) -> Callable[[Path, Path], None]:
    return lambda place, target: _drop(restore(_lookup(place), path, Seq(9), target, show_nothing))


def _drop(_: object) -> None: ...


_WAYS = {
    "replay": _replay,
    "tree": _restore(b""),
    "directory": _restore(b"d"),
    "file": _restore(b"d/f"),
}


def _check_unharmed(place: Path) -> None:
    victim = place / "roots"
    assert os.listdir(victim) == ["file"]
    assert (victim.stat().st_uid, S_IMODE(victim.stat().st_mode)) == (0, 0o755)
    assert (victim / "file").read_bytes() == _SECRET
    assert S_IMODE((victim / "file").stat().st_mode) == 0o600


@pytest.mark.parametrize("way", _WAYS)
def test_nobody_sees_a_tree_on_its_way(place: Path, way: str) -> None:
    user = _User(place / "home", place / "roots")
    failpoints.listen(user)
    _WAYS[way](place, place / "home" / "back")
    failpoints.listen(None)
    assert user.reached == set()
    assert not list((place / "home").rglob("planted"))
    assert os.listdir(place / "home") == ["back"]
    _check_unharmed(place)


def test_an_empty_directory_of_a_user_is_closed_meanwhile(place: Path) -> None:
    target = place / "home" / "back"
    with acting(SOMEBODY):
        target.mkdir(mode=0o777)
    held = os.open(target, os.O_RDONLY)  # as he may have it open from before
    user = _User(place / "home", place / "roots")

    def act(label: str) -> None:
        if label.startswith("scratch."):
            return  # the replay has not begun
        user(label)
        with acting(SOMEBODY), suppress(PermissionError):
            os.symlink(place / "roots", "planted", dir_fd=held)
            user.reached.add("by his descriptor")

    failpoints.listen(act)
    _replay(place, target)
    os.close(held)
    assert user.reached == set()
    assert (target.stat().st_uid, S_IMODE(target.stat().st_mode)) == (0, 0o755)


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_name_made_just_before_it_is_closed_is_seen(
    place: Path, monkeypatch: pytest.MonkeyPatch, is_stopped: bool
) -> None:
    """Also by a replay that goes on with one that was stopped between the two."""
    target = place / "home" / "back"
    with acting(SOMEBODY):
        target.mkdir(mode=0o755)

    def act(label: str) -> None:
        if label.startswith("scratch.") and not (target / "planted").is_symlink():
            with acting(SOMEBODY):
                os.symlink(place / "roots", target / "planted")

    failpoints.listen(act)
    if is_stopped:
        with monkeypatch.context() as patch:
            patch.setattr(Target, "_check_still_empty", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                _replay(place, target)
    with pytest.raises(TargetError, match="is not empty"):
        _replay(place, target)
    assert os.listdir(place / "home") == ["back"]
    assert os.listdir(target) == ["planted"]
    assert (target.stat().st_uid, S_IMODE(target.stat().st_mode)) == (SOMEBODY, 0o755)
    _check_unharmed(place)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_replay_that_goes_on_closes_what_is_there(place: Path) -> None:
    target = place / "home" / "back"
    _replay_rest(place, target)
    user = _User(place / "home", place / "roots")

    def act(label: str) -> None:
        if not label.startswith("scratch."):  # before, it is open to him, as it was left
            user(label)

    failpoints.listen(act)
    _replay(place, target, from_seq=6)
    assert user.reached == set()
    assert S_IMODE((target / "d").stat().st_mode) == 0o700


def test_another_file_under_a_name_is_not_touched(place: Path) -> None:
    """He has a directory open from before: a file that he links in is not made what the journal
    says of another."""
    target = place / "home" / "back"
    _replay_rest(place, target)
    with acting(SOMEBODY):
        held = os.open(target / "d", os.O_RDONLY)
        (place / "home" / "his").write_bytes(b"his")
        (place / "home" / "his").chmod(0o644)

    def act(label: str) -> None:
        if label == "apply.setattr":
            with acting(SOMEBODY), suppress(FileNotFoundError):
                os.rename(place / "home" / "his", "f", dst_dir_fd=held)

    criteria = Criteria(from_seq=Seq(5), to_seq=Seq(9))
    work = Replay(_lookup(place), criteria)
    with Target(target, {"test": "rest"}) as goal:
        work.check_target(goal, show_nothing)
        goal.tree.forget_descriptor(_OPEN_FILE)
        failpoints.listen(act)
        os.rename(place / "home" / "his", "f", dst_dir_fd=held)
        with pytest.raises(FusejournalError, match="not as the journal had it"):
            list(work.run(goal, show_nothing))
    os.close(held)
    assert (target / "d" / "f").read_bytes() == b"his"
    assert (target / "d" / "f").stat().st_uid == SOMEBODY


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("turn", range(8))
def test_names_that_are_taken_meanwhile(place: Path, way: str, turn: int) -> None:
    """He moves target and scratch directory away at any moment, and puts symlinks there."""
    home = place / "home"
    user = _User(home, place / "roots")
    user.moves = [lambda: None] * turn + [
        lambda name=name: user.swap(name)  # type: ignore[misc]
        for name in ("back", *_HIDDEN)
    ]
    failpoints.listen(user)
    with suppress(FusejournalError, OSError):
        _WAYS[way](place, home / "back")
    failpoints.listen(None)
    assert user.reached == set()
    _check_unharmed(place)


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("name", _HIDDEN)
def test_scratch_directories_that_he_made(place: Path, way: str, name: str) -> None:
    """With symlinks under every name that is used in one: refused, or left alone."""
    with acting(SOMEBODY):
        made = place / "home" / name
        made.mkdir()
        for inner in ("progress", "lock", "purpose.json", "purpose.json.new", "root.json", "tree"):
            (made / inner).symlink_to(place / "roots" / "file")
        (made / "catalog").symlink_to(place / "roots")
    with suppress(TargetError):
        _WAYS[way](place, place / "home" / "back")
    _check_unharmed(place)
    assert made.stat().st_uid == SOMEBODY
    assert len(os.listdir(made)) == 7


@pytest.mark.parametrize("way", _WAYS)
def test_a_directory_of_roots_is_not_taken_for_a_scratch_directory(place: Path, way: str) -> None:
    """In his home he can give one of root's a name of ours."""
    for name in _HIDDEN:
        (place / "home" / name).mkdir(mode=0o700)
        (place / "home" / name / "file").write_bytes(_SECRET)
    with pytest.raises(TargetError, match="look at it, and delete it"):
        _WAYS[way](place, place / "home" / "back")
    for name in _HIDDEN:
        assert (place / "home" / name / "file").read_bytes() == _SECRET


@pytest.mark.parametrize("way", _WAYS)
def test_symlinks_on_the_way(place: Path, way: str) -> None:
    """His are not followed, those of root in root's own directories are."""
    with acting(SOMEBODY):
        (place / "home" / "down").symlink_to(place / "roots")
    with pytest.raises(TargetError, match="is a symlink where others"):
        _WAYS[way](place, place / "home" / "down" / "back")
    _check_unharmed(place)
    (place / "data").mkdir()
    (place / "way").symlink_to("data/../data")
    _WAYS[way](place, place / "way" / "back")
    assert (place / "data" / "back").is_dir()


def test_a_symlink_in_a_sticky_directory(place: Path) -> None:
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "roots").symlink_to(place / "data")
    (place / "data").mkdir()
    with acting(SOMEBODY):
        (shared / "his").symlink_to(place / "roots")
    _replay(place, shared / "roots" / "back")
    assert (place / "data" / "back").is_dir()
    with pytest.raises(TargetError, match="is a symlink where others"):
        _replay(place, shared / "his" / "back")
    _check_unharmed(place)


def test_one_at_a_time(place: Path) -> None:
    target = place / "home" / "back"
    criteria = Criteria(from_seq=Seq(1), to_seq=Seq(9))
    with Target(target, {"test": 1}, from_seq=1) as goal:
        steps = Replay(_lookup(place), criteria).run(goal, show_nothing)
        next(steps)
        with pytest.raises(TargetError, match="another process is at work"):
            _replay(place, target)
        list(steps)
        goal.finish()
    assert os.listdir(place / "home") == ["back"]


def test_what_an_earlier_version_has_left(place: Path) -> None:
    """It kept nothing of the root directory."""
    target = place / "home" / "back"
    with Target(target, {"test": 1}, from_seq=1):
        pass
    (place / "home" / ".back.fusejournal-replay" / "root.json").unlink()
    with pytest.raises(TargetError, match="begun by another version: delete"):
        Target(target, {"test": 1}, from_seq=1)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"acl": 5}', '{"acl": "x"}', "[" * 99_999])
def test_a_spoilt_file_beside_the_target(place: Path, text: str) -> None:
    target = place / "home" / "back"
    with Target(target, {"test": 1}, from_seq=1):
        pass
    (place / "home" / ".back.fusejournal-replay" / "root.json").write_text(text)
    with pytest.raises(TargetError, match="begun by another version: delete"):
        Target(target, {"test": 1}, from_seq=1)


@pytest.mark.parametrize("content", [b"", bytes(40)])
def test_a_page_of_progress_that_was_cut_off(place: Path, content: bytes) -> None:
    target = place / "home" / "back"
    with Target(target, {"test": 1}, from_seq=1):
        pass
    (place / "home" / ".back.fusejournal-replay" / "progress").write_bytes(content)
    with pytest.raises(TargetError, match="is spoilt; delete both"):
        Target(target, {"test": 1}, from_seq=1)


# -- what the root directory is to have at the end -------------------------------------------------

_CHANGES: list[list[object]] = [
    [],
    [Setattr(ROOT_FID, 0o1751, 7, 8, None, None)],
    [Setattr(ROOT_FID, 0o750, None, 8, None, 77), Setattr(ROOT_FID, None, 9, None, 66, None)],
    [Setxattr(ROOT_FID, b"system.posix_acl_access", _ACL)],
    [
        Setxattr(ROOT_FID, b"system.posix_acl_access", _ACL),
        Setattr(ROOT_FID, 0o2741, None, None, None, None),
    ],
    [
        Setattr(ROOT_FID, 0o1705, 5, 6, None, None),
        Setxattr(ROOT_FID, b"system.posix_acl_access", _ACL),
        Removexattr(ROOT_FID, b"system.posix_acl_access"),
        Setxattr(ROOT_FID, b"user.test", b"value"),
    ],
]


@pytest.mark.parametrize("number", range(len(_CHANGES)))
def test_the_root_ends_as_if_it_had_been_changed_at_once(place: Path, number: int) -> None:
    plain, target = place / "plain", place / "target"
    for directory in (plain, target):
        directory.mkdir(mode=0o755)
        os.chown(directory, 3, 4)
    with Target(target, {"test": number}) as goal:
        for seq, operation in enumerate(_CHANGES[number], 1):
            goal.apply(operation, Seq(seq), 0, b"")  # type: ignore[arg-type]
            _apply_plainly(plain, operation)
        assert S_IMODE(target.stat().st_mode) == 0o700
        goal.finish()
    for name in ("st_mode", "st_uid", "st_gid"):
        assert getattr(plain.stat(), name) == getattr(target.stat(), name), name
    assert set(os.listxattr(plain)) == set(os.listxattr(target))
    for attribute in os.listxattr(plain):
        assert os.getxattr(plain, attribute) == os.getxattr(target, attribute)


def _apply_plainly(path: Path, operation: object) -> None:
    if isinstance(operation, Setxattr):
        os.setxattr(path, operation.name, operation.value)
    elif isinstance(operation, Removexattr):
        os.removexattr(path, operation.name)
    else:
        assert isinstance(operation, Setattr)
        assert operation.kind == Kind.SETATTR
        os.chown(
            path,
            -1 if operation.uid is None else operation.uid,
            -1 if operation.gid is None else operation.gid,
        )
        if operation.mode is not None:
            path.chmod(operation.mode)
