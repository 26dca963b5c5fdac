"""A start with any one file of the state directory missing, empty, cut, older or another volume's:
it is refused in words and nothing is changed, or what was on disk is there as it was, the journal
alone makes the same tree, and whatever is less than before is told. Also the whole directory, and
the backing as a copy."""

import os
import pickle
import shutil
import struct
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from fusejournal.errors import FusejournalError
from fusejournal.journal.segment import list_segments
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import Rename, Write
from fusejournal.types import ROOT_FID, Fid
from tests.support.filesystems import filesystem
from tests.support.losses import begin_another_boot
from tests.support.trees import Image, difference, image, rebuild
from tests.support.volumes import SOMEBODY, OpenVolume, open_volume

_OPTIONS = JournalOptions(segment_bytes=1 << 17, segment_entries=40)
_TAG = "trusted.fusejournal"
_LATER = (b".", b"later", b"ledger-later")
"""Files that are changed after all was on disk."""
_STOPS = ("orderly", "killed", "lost")
_HOWS = ("missing", "empty", "cut", "older", "foreign")
_WHOLE = Path()


@dataclass
class Found:
    """The result of an attempt to open."""

    refusal: str = ""
    trouble: str = ""
    """Output that no user should ever see."""
    head_seq: int = 0
    told: list[str] = field(default_factory=list)
    new_fid: int = 0
    tree: Image = field(default_factory=dict)
    strangers: list[str] = field(default_factory=list)
    """Names that the layer would serve another file for than the backing has there."""


def in_child(work: Callable[[], Any]) -> Any:
    """Does *work* in a process that ends without closing anything. Returns its result."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            result = (work(), "")
        except BaseException:
            result = (None, traceback.format_exc())
        with open(writing, "wb") as pipe:
            pickle.dump(result, pipe)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        done, trouble = pickle.load(pipe)
    os.waitpid(child, 0)
    assert not trouble, trouble
    return done


def _write(volume: OpenVolume, fid: Fid, data: bytes) -> None:
    volume.volume.commit(Write(fid, 0, None), SOMEBODY, data)


class Case:
    """A volume in *base* that was used, stopped, used again and left as *stop* says; beside it,
    what its state directory was after the first stop."""

    def __init__(self, base: Path, stop: str) -> None:
        self.base, self.stop = base, stop
        self.volume, self.old = base / "volume", base / "old"
        self.state, self.backing = self.volume / "state", self.volume / "backing"
        in_child(self._first_session)
        shutil.copytree(self.state, self.old)
        self.durable = in_child(self._second_session)
        self.tree = image(self.backing)
        if stop == "lost":
            self._crash_system()
        self.left = image(self.backing)
        """The tree of the backing, before anything is opened."""
        self.fids = {_fid(path) for path in _all(self.backing)}
        self.saved = base / "saved"
        shutil.copytree(self.state, self.saved)
        self.head_seq = self._head_seq()

    def _first_session(self) -> None:
        with open_volume(self.volume, options=_OPTIONS) as one:
            for name in ("ledger", "gone", "old-name", "ledger-later"):
                one.create(name, b"the first" * 50)
            one.mkdir("later")
            one.work(12)

    def _second_session(self) -> Image:
        is_orderly = self.stop == "orderly"
        with open_volume(self.volume, options=_OPTIONS, orderly=is_orderly) as one:
            names = one.volume.catalog.lookup
            root = ROOT_FID
            ledger, gone = names(root, b"ledger"), names(root, b"gone")
            moved = names(root, b"old-name")
            assert ledger
            assert gone
            assert moved
            one.work(12, 100)
            one.create("today", b"made today")
            one.unlink(gone, "gone")
            one.volume.commit(
                Rename(moved, root, b"old-name", root, b"new-name", 0, Fid(0)), SOMEBODY
            )
            for number in range(30):
                _write(one, ledger, b"version %d" % number * 50)
            one.make_checkpoint()
            one.volume.catalog.commit()
            durable = image(self.backing)
            later, other = names(root, b"later"), names(root, b"ledger-later")
            assert later
            assert other
            _write(one, other, b"the last" * 50)
            for number in range(3):
                one.create(f"l{number}", b"later", later)
        return durable

    def _crash_system(self) -> None:
        """Spoils what came after the checkpoint: it did not reach the backing's disk whole."""
        for state in (self.state, self.old):
            begin_another_boot(state)
        for number in range(3):
            os.truncate(self.backing / "later" / f"l{number}", 0)
        with open(self.backing / "ledger-later", "r+b") as file:
            file.write(b"the first" * 50)

    def _head_seq(self) -> int:
        from fusejournal.journal.reader import JournalReader

        return JournalReader(self.state / "journal").head()[0]

    def restore_state(self) -> None:
        shutil.rmtree(self.state)
        shutil.copytree(self.saved, self.state)

    def open(self) -> Found:
        """Try to open it."""
        return in_child(self._open)  # type: ignore[no-any-return]

    def _open(self) -> Found:
        found = Found()
        try:
            with open_volume(self.volume, options=_OPTIONS) as one:
                found.head_seq = one.volume.journal.head_seq
                found.told = [*one.opening.repairs, *map(str, one.opening.degraded)]
                found.tree = image(self.backing)
                found.strangers = unlike_names(one, self.backing)
                found.new_fid = one.create("new-after", b"new")
        except FusejournalError as error:
            found.refusal = str(error)
        except Exception:
            found.trouble = traceback.format_exc()
        return found


def unlike_names(one: OpenVolume, backing: Path) -> list[str]:
    """Names in *backing* for which *one* would serve another file than is there, in words."""
    catalog, tree = one.volume.catalog, one.volume.tree
    wrong = []
    for path in _all(backing):
        fid = ROOT_FID
        for name in path.relative_to(backing).parts:
            found = catalog.lookup(fid, os.fsencode(name))
            if found is None:
                wrong.append(f"{path.name}: not known")
                break
            fid = found
        else:
            try:
                if tree.stat(fid).st_ino != path.lstat().st_ino:
                    wrong.append(f"{path.name}: another file")
            except OSError as error:
                wrong.append(f"{path.name}: {error.strerror}")
    return wrong


def _all(root: Path) -> list[Path]:
    return [root, *root.rglob("*")]


def _fid(path: Path) -> int:
    value = os.getxattr(path, _TAG, follow_symlinks=False)
    return int(struct.unpack_from("<16sQ", value)[1])


def _contents(state: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes().rstrip(b"\0") for path in list_segments(state / "journal")}


def _durable_of(tree: Image) -> Image:
    return {
        path: item
        for path, item in tree.items()
        if path not in _LATER and not path.startswith(b"later/")
    }


def _files(case: Case) -> list[Path]:
    """The files that can be spoilt, relative to the state directory; of segments the first and the
    last."""
    segments = list_segments(case.state / "journal")
    chosen = {segments[0], segments[-1]}
    found = [path for path in case.state.rglob("*") if path.is_file() and path.name != "uuid"]
    found = [path for path in found if path.parent.name != "journal" or path in chosen]
    return [_WHOLE, *sorted(path.relative_to(case.state) for path in found)]


def spoil(case: Case, file: Path, how: str, foreign: Path) -> bool:
    """True if there was something to do."""
    path = case.state / file
    source = {"older": case.old, "foreign": foreign}.get(how)
    if file == _WHOLE:
        if how != "older":
            return False
        shutil.rmtree(path)
        shutil.copytree(case.old, path)
    elif source is not None:
        other = source / file
        if not other.exists() and file.parent.name == "journal":
            other = list_segments(source / "journal")[-1]
        if not other.exists() or other.read_bytes() == path.read_bytes():
            return False
        shutil.copy2(other, path)
    elif how == "missing":
        path.unlink()
    elif path.stat().st_size == 0:
        return False
    else:
        os.truncate(path, 0 if how == "empty" else path.stat().st_size // 2)
    return True


def judge(case: Case, found: Found, spare: Path, *, is_whole: bool) -> list[str]:
    """Returns what is wrong with what *found* says. *is_whole*: whether the journal can be replayed
    (its old segments are not read at a start: verify reads them)."""
    if found.trouble:
        return [f"not in words: {found.trouble.splitlines()[-1]}"]
    wrong = []
    if found.refusal:
        if "\n" in found.refusal:
            wrong.append("more than one line")
        if changed := difference(case.left, image(case.backing)):
            wrong.append(f"refused, but changed the backing: {changed}")
        return wrong
    if lost := difference(case.durable, {**_durable_of(found.tree)}):
        wrong.append(f"what was on disk is not as it was: {lost}")
    if found.strangers:
        wrong.append(f"{len(found.strangers)} names, the first {found.strangers[0]}")
    if found.head_seq >= case.head_seq:
        if unlike := difference(case.tree, found.tree):
            wrong.append(f"all entries are there, but the tree differs: {unlike}")
    elif not found.told:
        wrong.append(f"the head went from {case.head_seq} to {found.head_seq} without a word")
    if found.new_fid in case.fids:
        wrong.append(f"fid {found.new_fid} is given again")
    if not is_whole:
        return wrong
    spare.mkdir()
    uuid = UUID((case.state / "uuid").read_text())
    in_child(lambda: rebuild(case.state, spare, uuid))
    if unlike := difference(image(case.backing), image(spare)):
        wrong.append(f"the journal alone makes another tree: {unlike}")
    return wrong


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state directory of another volume."""
    return Case(tmp_path_factory.mktemp("foreign"), "orderly").state


@pytest.mark.parametrize("how", _HOWS)
@pytest.mark.parametrize("stop", _STOPS)
def test_any_file_of_the_state_directory(
    tmp_path: Path, foreign: Path, stop: str, how: str
) -> None:
    made = 0
    case = Case(tmp_path / "0", stop)
    case.durable = _durable_of(case.durable)
    wrong: list[str] = []
    for file in _files(case):
        if not spoil(case, file, how, foreign):
            continue
        segments = _contents(case.state)
        found = case.open()
        name = "/".join(file.parts) or "all"
        is_old = file.parent.name == "journal" and file.stem.endswith("0001")
        spare = tmp_path / f"spare{made}-{name.replace('/', '-')}"
        faults = judge(case, found, spare, is_whole=not is_old)
        if found.refusal and _contents(case.state) != segments:
            faults.append("refused, but changed the journal")
        wrong += [f"{name} {how}: {fault}" for fault in faults]
        print(f"{stop} {how} {name}: {found.refusal or found.told or 'opened'}")
        if found.refusal and not faults:
            case.restore_state()
            again = case.open() if made == 0 else None
            if again is None:
                continue
            if again.refusal or again.trouble:
                wrong.append(f"{name} {how}: put back, and still refused: {again.refusal}")
        made += 1
        case = Case(tmp_path / str(made), stop)
        case.durable = _durable_of(case.durable)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("stop", _STOPS)
def test_a_copy_of_the_backing(tmp_path: Path, stop: str) -> None:
    """Its handles are other files'; those of the original must not be reached by it."""
    case = Case(tmp_path / "0", stop)
    original = case.volume / "backing.original"
    case.backing.rename(original)
    in_child(lambda: os.system(f"cp -a {original} {case.backing}"))
    before = image(original)
    found = case.open()
    assert found.refusal
    assert difference(before, image(original)) == ""
    assert difference(before, image(case.backing)) == ""


def test_a_copy_of_the_backing_at_the_root_of_another_disk(tmp_path: Path) -> None:
    """So it is when data move to a new disk: the roots of two file systems of a kind have equal
    handles."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with (
        filesystem("ext4", tmp_path / "a", "one", 64) as one,
        filesystem("ext4", tmp_path / "b", "other", 64) as other,
    ):
        volume = tmp_path / "volume"
        volume.mkdir()
        (volume / "backing").symlink_to(one)

        def work() -> None:
            with open_volume(volume, options=_OPTIONS) as opened:
                opened.work(5)

        in_child(work)
        in_child(lambda: os.system(f"cp -a {one}/. {other}/"))
        (volume / "backing").unlink()
        (volume / "backing").symlink_to(other)

        def again() -> str:
            try:
                with open_volume(volume, options=_OPTIONS) as opened:
                    names = opened.volume.catalog.lookup
                    fid = names(ROOT_FID, b"d4")
                    assert fid
                    return f"opened, and d4 is {opened.volume.tree.stat(fid)}"
            except (FusejournalError, OSError) as error:
                return f"{type(error).__name__}: {error}"

        words = in_child(again)
        assert words.startswith("BackingError"), words
        assert "copy" in words
