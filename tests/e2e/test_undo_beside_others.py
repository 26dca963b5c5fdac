"""Undo on a live volume that other processes change at the same time: what they do is kept, or
named; nothing of theirs is overwritten in silence."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fusejournal.errors import ConflictError
from fusejournal.history.lookup import Lookup
from fusejournal.history.query import Criteria
from fusejournal.journal.reader import JournalReader
from fusejournal.replay import undo_files
from fusejournal.replay.undo_plan import Undo, UndoPlan
from fusejournal.types import Seq
from tests.support.layer import Layer
from tests.support.trees import make_small_tree
from tests.support.volumes import show_nothing
from tests.support.xattrs import make_acl

pytestmark = pytest.mark.mount


def planned(layer: Layer, first: int) -> tuple[Undo, UndoPlan]:
    lookup = Lookup(JournalReader(layer.state / "journal"))
    undo = Undo(lookup, Criteria(from_seq=Seq(first)), layer.head_seq())
    return undo, undo.plan(show_nothing)


def elsewhere(deed: Callable[[], object]) -> None:
    """Do *deed* in another process."""
    pid = os.fork()
    if pid == 0:
        try:
            deed()
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def at_call(
    step: str,
    monkeypatch: pytest.MonkeyPatch,
    deed: Callable[[], object],
    then: Callable[[], object] | None = None,
) -> None:
    """Do *deed* in another process, once, when the undo is about to do *step*, and *then* here."""
    done = False

    def on_step(reached: str) -> None:
        nonlocal done
        if reached == step and not done:
            done = True
            elsewhere(deed)
            if then is not None:
                then()

    monkeypatch.setattr(undo_files, "on_step", on_step)


def test_another_file_under_the_name_is_not_touched(
    live: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = live.mountpoint / "f", live.mountpoint / "other"
    file.write_text("original")
    other.write_text("another's")
    first = live.head_seq() + 1
    file.write_text("bad")
    file.chmod(0o600)
    undo, plan = planned(live, first)
    before = other.stat()

    def put_another_there() -> None:
        os.rename(file, live.mountpoint / "away")
        os.rename(other, file)

    at_call("rewrite", monkeypatch, put_another_there)
    with pytest.raises(ConflictError, match="changed it"):
        undo.carry_out(plan, live.mountpoint, show_nothing)
    assert file.read_text() == "another's"
    assert (file.stat().st_mode, file.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_what_is_appended_meanwhile_is_not_cut_off(
    live: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = live.mountpoint / "f"
    file.write_text("short")
    first = live.head_seq() + 1
    file.write_text("bad, and longer")
    undo, plan = planned(live, first)

    def append() -> None:
        with open(file, "a") as appended:
            appended.write(" and a user's")

    at_call("change", monkeypatch, append)
    with pytest.raises(ConflictError, match="changed it"):
        undo.carry_out(plan, live.mountpoint, show_nothing)
    assert file.read_text() == "bad, and longer and a user's"


def test_what_comes_between_the_last_look_and_the_change_is_told(
    live: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = live.mountpoint / "f"
    file.write_text("short")
    first = live.head_seq() + 1
    file.write_text("bad, and longer")
    undo, plan = planned(live, first)

    def append() -> None:
        with open(file, "a") as appended:
            appended.write(" and a user's")

    at_call("between", monkeypatch, append)
    with pytest.raises(ConflictError, match="at the very moment"):
        undo.carry_out(plan, live.mountpoint, show_nothing)


def test_a_name_that_another_file_got_is_not_removed(
    live: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = live.head_seq() + 1
    made, other = live.mountpoint / "made", live.mountpoint / "other"
    made.write_text("bad")
    last = live.head_seq()
    other.write_text("another's")
    lookup = Lookup(JournalReader(live.state / "journal"))
    undo = Undo(lookup, Criteria(from_seq=Seq(first), to_seq=Seq(last + 1)), live.head_seq())
    plan = undo.plan(show_nothing)
    at_call("move away", monkeypatch, lambda: os.replace(other, made))
    with pytest.raises(ConflictError, match="changed it"):
        undo.carry_out(plan, live.mountpoint, show_nothing)
    assert made.read_text() == "another's"


def test_a_directory_that_somebody_put_something_into_stays(
    live: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = live.head_seq() + 1
    tree = live.mountpoint / "made"
    make_small_tree(tree)
    undo, plan = planned(live, first)
    at_call("move away", monkeypatch, lambda: (tree / "sub/theirs").write_text("theirs"))
    with pytest.raises(ConflictError, match="theirs"):
        undo.carry_out(plan, live.mountpoint, show_nothing)
    assert (tree / "f").read_text() == "precious"
    assert (tree / "sub/theirs").read_text() == "theirs"


def test_a_name_taken_since_the_plan_is_left(live: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    file = live.mountpoint / "f"
    file.write_text("precious")
    first = live.head_seq() + 1
    file.unlink()
    undo, plan = planned(live, first)
    at_call("put in place", monkeypatch, lambda: file.write_text("theirs"))
    with pytest.raises(ConflictError, match="took the name"):
        undo.carry_out(plan, live.mountpoint, show_nothing)
    assert file.read_text() == "theirs"
    (staging,) = live.mountpoint.glob(".fusejournal-undo.*")
    assert [one.read_text() for one in staging.iterdir()] == ["precious"]


# -- directories' attributes -----------------------------------------------------------------------

_DEFAULT_ACL = make_acl(7, 7, 5, 7, 5)


@pytest.mark.parametrize("step", ["rewrite", "change"])
@pytest.mark.parametrize(
    "deed",
    [
        lambda path: os.removexattr(path, "user.k"),
        lambda path: os.chmod(path, 0o701),
        lambda path: os.chown(path, 1, 1),
        lambda path: os.setxattr(path, "system.posix_acl_default", _DEFAULT_ACL),
    ],
    ids=["xattr", "mode", "owner", "acl"],
)
def test_what_another_gave_a_directory_is_left_to_it(
    live: Layer, monkeypatch: pytest.MonkeyPatch, step: str, deed: Callable[[Path], None]
) -> None:
    directory = live.mountpoint / "d"
    directory.mkdir()
    os.setxattr(directory, "user.k", b"good")
    first = live.head_seq() + 1
    os.setxattr(directory, "user.k", b"bad")
    directory.chmod(0o700)
    (directory / "f").write_text("to go")
    undo, plan = planned(live, first)
    theirs: list[object] = []

    def look() -> tuple[object, ...]:
        found = directory.stat()
        xattrs = {key: os.getxattr(directory, key) for key in os.listxattr(directory)}
        return found.st_mode, found.st_uid, found.st_gid, xattrs

    at_call(step, monkeypatch, lambda: deed(directory), lambda: theirs.append(look()))
    with pytest.raises(ConflictError, match="/d: another process changed it since"):
        undo.carry_out(plan, live.mountpoint, show_nothing)
    assert [look()] == theirs


def test_what_a_directory_got_at_the_last_moment_is_named(
    live: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = live.mountpoint / "d"
    directory.mkdir()
    os.setxattr(directory, "user.k", b"good")
    first = live.head_seq() + 1
    os.setxattr(directory, "user.k", b"bad")
    undo, plan = planned(live, first)
    at_call("between", monkeypatch, lambda: os.removexattr(directory, "user.k"))
    with pytest.raises(ConflictError, match=r"/d: .*at the very moment"):
        undo.carry_out(plan, live.mountpoint, show_nothing)


def test_a_directory_in_which_others_make_names_is_changed_all_the_same(
    live: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = live.mountpoint / "d"
    directory.mkdir()
    first = live.head_seq() + 1
    directory.chmod(0o700)
    undo, plan = planned(live, first)
    at_call("change", monkeypatch, lambda: (directory / "theirs").write_text("theirs"))
    undo.carry_out(plan, live.mountpoint, show_nothing)
    assert directory.stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("step", ["rewrite", "times", "set time"])
def test_a_directory_keeps_the_time_of_what_others_did_in_it(
    live: Layer, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    directory = live.mountpoint / "d"
    directory.mkdir()
    first = live.head_seq() + 1
    (directory / "f").write_text("to go")
    os.setxattr(directory, "user.k", b"to go")
    undo, plan = planned(live, first)
    theirs: list[int] = []
    at_call(
        step,
        monkeypatch,
        lambda: (directory / "theirs").write_text("theirs") and None,
        lambda: theirs.append(directory.stat().st_mtime_ns),
    )
    undo.carry_out(plan, live.mountpoint, show_nothing)
    assert os.listdir(directory) == ["theirs"]
    assert [directory.stat().st_mtime_ns] == theirs


def test_a_directory_that_came_back_keeps_the_time_of_what_others_did_in_it(
    live: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = live.mountpoint / "d"
    directory.mkdir()
    (directory / "alive").write_text("moves")
    first = live.head_seq() + 1
    (directory / "alive").rename(live.mountpoint / "alive")
    directory.rmdir()
    undo, plan = planned(live, first)
    theirs: list[int] = []

    def put() -> None:
        (directory / "theirs").write_text("theirs")

    at_call("times", monkeypatch, put, lambda: theirs.append(directory.stat().st_mtime_ns))
    undo.carry_out(plan, live.mountpoint, show_nothing)
    assert sorted(os.listdir(directory)) == ["alive", "theirs"]
    assert [directory.stat().st_mtime_ns] == theirs


# -- names -----------------------------------------------------------------------------------------


def test_a_hard_link_goes_and_its_file_is_rewritten(live: Layer) -> None:
    file = live.mountpoint / "f"
    file.write_text("good")
    first = live.head_seq() + 1
    os.link(file, live.mountpoint / "link")
    file.write_text("bad, and longer")
    undo, plan = planned(live, first)
    undo.carry_out(plan, live.mountpoint, show_nothing)
    assert os.listdir(live.mountpoint) == ["f"]
    assert file.read_text() == "good"


def test_hard_links_in_a_directory_that_goes(live: Layer) -> None:
    file = live.mountpoint / "f"
    file.write_text("good")
    first = live.head_seq() + 1
    made = live.mountpoint / "made"
    made.mkdir()
    for name in ("a", "b"):
        os.link(file, made / name)
    (made / "x").write_text("to go")
    os.link(made / "x", made / "y")
    file.write_text("bad, and longer")
    undo, plan = planned(live, first)
    undo.carry_out(plan, live.mountpoint, show_nothing)
    assert os.listdir(live.mountpoint) == ["f"]
    assert file.read_text() == "good"


def _made(layer: Layer) -> tuple[int, Undo, UndoPlan]:
    """A directory with a file, a descriptor of it as another process can have, and the undo of its
    making."""
    first = layer.head_seq() + 1
    made = layer.mountpoint / "made"
    made.mkdir()
    (made / "f").write_text("precious")
    undo, plan = planned(layer, first)
    return os.open(made, os.O_RDONLY | os.O_DIRECTORY), undo, plan


def test_what_takes_the_name_of_a_file_that_goes_is_named(
    live: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = live.mountpoint / "other"
    other.write_text("another's")
    opened, undo, plan = _made(live)
    at_call("unlink", monkeypatch, lambda: os.rename(other, "f", dst_dir_fd=opened))
    with pytest.raises(ConflictError, match=r"/made/f: .*at the very moment"):
        undo.carry_out(plan, live.mountpoint, show_nothing)
    os.close(opened)


def test_what_is_written_to_a_file_that_goes_is_named(
    live: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, undo, plan = _made(live)

    def write() -> None:
        file = os.open("f", os.O_WRONLY, dir_fd=opened)
        os.write(file, b"theirs")

    at_call("unlink", monkeypatch, write)
    with pytest.raises(ConflictError, match=r"/made/f: .*at the very moment"):
        undo.carry_out(plan, live.mountpoint, show_nothing)
    os.close(opened)


def test_a_further_name_for_a_file_that_goes_is_named(
    live: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, undo, plan = _made(live)
    kept = live.mountpoint / "kept"
    at_call("unlink", monkeypatch, lambda: os.link("f", kept, src_dir_fd=opened))
    with pytest.raises(ConflictError, match=r"/made/f: .*at the very moment"):
        undo.carry_out(plan, live.mountpoint, show_nothing)
    assert kept.read_text() == "precious"
    os.close(opened)


@pytest.mark.parametrize("step", ["unlink", "rmdir"])
def test_what_is_put_into_a_directory_that_goes_stays(
    live: Layer, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    opened, undo, plan = _made(live)

    def put() -> None:
        file = os.open("theirs", os.O_WRONLY | os.O_CREAT, dir_fd=opened)
        os.write(file, b"theirs")

    at_call(step, monkeypatch, put)
    with pytest.raises(ConflictError, match="/made: another process changed it") as told:
        undo.carry_out(plan, live.mountpoint, show_nothing)
    os.close(opened)
    (theirs,) = live.mountpoint.glob(".fusejournal-undo.*/*/theirs")
    assert theirs.read_text() == "theirs"
    assert theirs.parent.name in str(told.value)


def test_a_directory_that_is_gone_takes_nothing_back(
    live: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = live.mountpoint / "d"
    directory.mkdir()
    (directory / "f").write_text("precious")
    first = live.head_seq() + 1
    (directory / "f").unlink()
    undo, plan = planned(live, first)
    at_call("put in place", monkeypatch, directory.rmdir)
    with pytest.raises(ConflictError, match="/d"):
        undo.carry_out(plan, live.mountpoint, show_nothing)
    (staging,) = live.mountpoint.glob(".fusejournal-undo.*")
    assert [one.read_text() for one in staging.iterdir()] == ["precious"]


def test_a_directory_does_not_get_below_itself(
    live: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, place = live.mountpoint / "moved", live.mountpoint / "place"
    place.mkdir()
    (place / "d").mkdir()
    first = live.head_seq() + 1
    (place / "d").rename(moved)
    undo, plan = planned(live, first)
    at_call("move away", monkeypatch, lambda: os.rename(place, moved / "place"))
    with pytest.raises(ConflictError, match="place/d"):
        undo.carry_out(plan, live.mountpoint, show_nothing)
    (found,) = live.mountpoint.glob(".fusejournal-undo.*/*")
    assert os.listdir(found) == ["place"]


def test_what_cannot_go_back_to_its_name_is_named(
    live: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = live.head_seq() + 1
    made = live.mountpoint / "made"
    made.write_text("bad")
    undo, plan = planned(live, first)
    done: list[str] = []

    def on_step(reached: str) -> None:
        if reached == "move away" and not done:
            elsewhere(lambda: os.replace(other, made))
        elif reached == "move back" and not done:
            done.append(reached)
            elsewhere(lambda: made.write_text("a third's"))

    other = live.mountpoint / "other"
    other.write_text("another's")
    monkeypatch.setattr(undo_files, "on_step", on_step)
    with pytest.raises(ConflictError, match=r"/made: .*\.fusejournal-undo\."):
        undo.carry_out(plan, live.mountpoint, show_nothing)
    assert made.read_text() == "a third's"
    (found,) = live.mountpoint.glob(".fusejournal-undo.*/*")
    assert found.read_text() == "another's"


def test_a_file_that_lost_its_last_name_is_not_staged(
    live: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = live.mountpoint / "f"
    file.write_text("x")
    first = live.head_seq() + 1
    file.rename(live.mountpoint / "g")
    undo, plan = planned(live, first)
    at_call("stage link", monkeypatch, (live.mountpoint / "g").unlink)
    with pytest.raises(ConflictError, match="/g: another process changed it"):
        undo.carry_out(plan, live.mountpoint, show_nothing)
    assert os.listdir(live.mountpoint) == []
