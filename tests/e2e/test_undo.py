"""Undo on a live volume as users meet it: names taken since, large files, journals without their
beginning."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fusejournal.errors import JournalError
from fusejournal.history.lookup import Lookup
from fusejournal.history.query import Criteria
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import list_segments
from fusejournal.replay.undo_plan import Undo
from fusejournal.types import Seq
from tests.support.layer import Layer
from tests.support.trees import difference, image, make_small_tree
from tests.support.volumes import show_nothing

pytestmark = pytest.mark.mount

_GIB = 1 << 30


# -- names that were taken since -------------------------------------------------------------------


def test_a_tree_comes_back_beside_its_name(live: Layer) -> None:
    tree = live.mountpoint / "project"
    make_small_tree(tree)
    was = image(tree)
    first = live.head_seq() + 1
    shutil.rmtree(tree)
    removed = live.head_seq()
    tree.mkdir()
    (tree / "new").write_text("somebody's")
    chosen = (f"{first}-{removed}",)
    unchanged = image(live.mountpoint)

    stopped = live.run("undo", "volume", *chosen, "--apply", check=False)
    assert stopped.returncode == 22
    assert "aside" in stopped.stderr
    skipped = live.run("undo", "volume", *chosen, "--on-conflict", "skip", "--apply", check=False)
    assert skipped.returncode == 22
    assert "nothing can be taken back" in skipped.stderr
    assert image(live.mountpoint) == unchanged

    planned = live.run("undo", "volume", *chosen, "--on-conflict", "aside").stdout
    assert f"/project.undone-{removed}/sub/g" in planned
    assert "/project is another file's by now" in planned
    done = live.run("undo", "volume", *chosen, "--on-conflict", "aside", "--apply", "--json")
    beside = live.mountpoint / f"project.undone-{removed}"
    assert difference(image(beside), was) == ""
    assert (tree / "new").read_text() == "somebody's"
    applied = json.loads(done.stdout)["applied"]
    live.run("undo", "volume", f"{applied['from_seq']}-{applied['to_seq']}", "--apply")
    assert image(live.mountpoint) == unchanged


def test_what_was_taken_back_already_is_said(live: Layer) -> None:
    file = live.mountpoint / "once"
    file.write_text("kept")
    file.unlink()
    seq = str(live.head_seq())
    done = json.loads(live.run("undo", "volume", seq, "--apply", "--json").stdout)["applied"]
    again = live.run("undo", "volume", seq, check=False)
    assert again.returncode == 22
    assert f"entries {done['from_seq']} to " in again.stderr
    assert "all was taken back already" in again.stderr
    assert "left out" not in again.stdout + again.stderr
    assert all(line.startswith("in the way") for line in again.stdout.splitlines())
    file.unlink()


def test_a_tree_comes_back_to_its_name_once_that_is_free_again(live: Layer) -> None:
    tree = live.mountpoint / "project"
    make_small_tree(tree)
    was = image(tree)
    first = live.head_seq() + 1
    shutil.rmtree(tree)
    chosen = f"{first}-{live.head_seq()}"
    tree.mkdir()
    (tree / "new").write_text("somebody's")
    tree.rename(live.mountpoint / "theirs")
    live.run("undo", "volume", chosen, "--apply")
    assert difference(image(tree), was) == ""
    assert (live.mountpoint / "theirs/new").read_text() == "somebody's"


def test_what_moved_away_goes_back_beside_a_taken_name(live: Layer) -> None:
    old, new = live.mountpoint / ("n" * 250), live.mountpoint / "moved"
    old.write_text("one")
    first = live.head_seq() + 1
    old.rename(new)
    old.write_text("another")
    other = live.mountpoint / "other"
    other.write_text("a third")
    os.replace(other, old)
    live.run("undo", "volume", str(first), "--on-conflict", "aside", "--apply")
    assert old.read_text() == "a third"
    assert not new.exists()
    suffix = f".undone-{first}"
    assert (live.mountpoint / ("n" * (255 - len(suffix)) + suffix)).read_text() == "one"


# -- cost and interruption -------------------------------------------------------------------------


def test_a_sparse_file_costs_what_was_changed(live: Layer) -> None:
    file = live.mountpoint / "disk"
    with open(file, "wb") as disk:
        disk.truncate(1024 * _GIB)
        os.pwrite(disk.fileno(), b"boot", 0)
        os.pwrite(disk.fileno(), b"good", 500 * _GIB)
        os.pwrite(disk.fileno(), b"end.", 1024 * _GIB - 4)
    was = file.stat()
    first = live.head_seq() + 1
    with open(file, "r+b") as disk:
        os.pwrite(disk.fileno(), b"bad!", 500 * _GIB)
        os.pwrite(disk.fileno(), b"where a hole was", 700 * _GIB)
    live.run("undo", "volume", f"{first}-{live.head_seq()}", "--apply")
    assert file.stat().st_size == was.st_size
    assert file.stat().st_mtime_ns == was.st_mtime_ns
    with open(file, "rb") as disk:
        assert os.pread(disk.fileno(), 4, 500 * _GIB) == b"good"
        assert os.pread(disk.fileno(), 16, 700 * _GIB) == bytes(16)
    first = live.head_seq() + 1
    os.truncate(file, 2)
    file.unlink()
    live.run("undo", "volume", f"{first}-{live.head_seq()}", "--apply")
    assert file.stat().st_size == was.st_size
    assert (live.backing / "disk").stat().st_blocks < 1000
    with open(file, "rb") as disk:
        found = [os.pread(disk.fileno(), 4, at * _GIB) for at in (0, 500, 700)]
    assert found == [b"boot", b"good", bytes(4)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_stopped_within_one_file(live: Layer, number: signal.Signals) -> None:
    file = live.mountpoint / "large"
    piece = os.urandom(1 << 20)
    with open(file, "wb") as large:
        for _ in range(64):
            large.write(piece)
    first = live.head_seq() + 1
    with open(file, "r+b") as large:
        large.write(bytes(64 << 20))
    last = live.head_seq()
    process = subprocess.Popen(
        live.command("undo", "volume", f"{first}-{last}", "--apply"),
        env=live.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while live.head_seq() < last + 3:
        assert process.poll() is None
    process.send_signal(number)
    _, words = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert "stopped half-way" in words
    assert live.head_seq() - last < last - first


# -- a journal without its beginning ---------------------------------------------------------------


def _pruned(tmp_path: Path) -> tuple[Layer, Path]:
    layer = Layer(tmp_path, config="[journal]\nsegment_entries = 256\ncompress = false\n")
    return layer, layer.state / "journal"


def test_it_does_not_answer_with_less_than_it_was_asked(tmp_path: Path) -> None:
    layer, journal = _pruned(tmp_path)
    with layer:
        layer.start()
        old = layer.mountpoint / "old"
        old.write_text("from before")
        for number in range(200):
            (layer.mountpoint / f"f{number}").write_text("x")
        first = layer.head_seq() + 1
        old.write_text("bad")
        rewritten = layer.head_seq()
        old.chmod(0o600)
        os.setxattr(old, "user.k", b"v")
        attributes = layer.head_seq()
        old.unlink()
        recent = layer.head_seq() + 1
        (layer.mountpoint / "recent").write_text("known")
        (layer.mountpoint / "recent").write_text("bad")
        last = layer.head_seq()
        copy = tmp_path / "copy"
        shutil.copytree(journal, copy)
        list_segments(copy)[0].unlink()
        lookup = Lookup(JournalReader(copy))
        assert not lookup.is_whole
        for from_seq, to_seq in (
            (first, rewritten), (rewritten + 1, attributes), (attributes + 1, attributes + 1),
        ):  # fmt: skip
            criteria = Criteria(from_seq=Seq(from_seq), to_seq=Seq(to_seq + 1))
            with pytest.raises(JournalError, match="was made before seq"):
                Undo(lookup, criteria, Seq(last)).plan(show_nothing)
        criteria = Criteria(from_seq=Seq(recent + 2), to_seq=Seq(last + 1))
        undo = Undo(lookup, criteria, Seq(last))
        undo.carry_out(undo.plan(show_nothing), layer.mountpoint, show_nothing)
        assert (layer.mountpoint / "recent").read_text() == "known"
        layer.stop()


# -- a layer that sees nobody's pid ----------------------------------------------------------------


@pytest.mark.from_first_entry
def test_what_root_does_is_taken_back_where_the_layer_knows_no_pids(tmp_path: Path) -> None:
    (tmp_path / "backing").mkdir(mode=0o751)
    os.setxattr(tmp_path / "backing", "user.was", b"there")
    (tmp_path / "backing/imported").write_text("was there first")
    with Layer(tmp_path) as layer:
        # As in a container: for it, processes of the machine have pid 0.
        layer.prefix = ("unshare", "--pid", "--fork")
        layer.start(wait=False)
        deadline = time.monotonic() + 60
        while not (layer.is_mounted() and (layer.mountpoint / "imported").exists()):
            assert time.monotonic() < deadline, layer.words()
            time.sleep(0.02)
        tree = layer.mountpoint
        was = image(tree)
        first = layer.head_seq() + 1
        os.chmod(tree, 0o700)
        os.setxattr(tree, "user.was", b"changed")
        os.utime(tree, ns=(5, 5))
        os.chown(tree, 12, 13)
        os.chmod(tree / "imported", 0o600)
        os.setxattr(tree / "imported", "user.k", b"v")
        assert {entry["pid"] for entry in layer.entries()[first - 1 :]} == {0}
        done = layer.run("undo", "volume", "--since", "1 hour ago", "--apply", "--json")
        assert json.loads(done.stdout)["chosen"] == 6
        assert difference(image(tree), was) == ""
        (pid,) = Path(f"/proc/{layer.pid}/task/{layer.pid}/children").read_text().split()
        os.kill(int(pid), signal.SIGTERM)
        assert layer.wait() == 0


def test_what_came_and_went_leaves_no_time_behind(live: Layer) -> None:
    directory = live.mountpoint / "d"
    directory.mkdir()
    os.utime(directory, ns=(5, 5))
    was = image(live.mountpoint)
    first = live.head_seq() + 1
    (directory / "f").write_text("for a moment")
    (directory / "f").unlink()
    live.run("undo", "volume", f"{first}-{live.head_seq()}", "--apply")
    assert difference(image(live.mountpoint), was) == ""
