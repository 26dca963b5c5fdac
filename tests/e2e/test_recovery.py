"""A bad afternoon, and getting over it: a source tree, people who work in it, an ``rm -rf``, and
everything that can be had back from the journal."""

import json
import os
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusejournal.errors import ConflictError
from fusejournal.history.lookup import Lookup
from fusejournal.history.query import Criteria
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import list_segments
from fusejournal.replay.undo_plan import Undo
from fusejournal.types import Seq
from tests.support.layer import Layer
from tests.support.users import acting

pytestmark = pytest.mark.mount

_ANNA, _BEN = 1001, 1002
_SOURCE = Path(sysconfig.get_paths()["stdlib"])
_PACKAGES = ("json", "email", "http", "logging", "xml")


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[Layer]:
    # Small segments, so that the story is told by several of them.
    with Layer(tmp_path, config="[journal]\nsegment_entries = 256\n") as layer:
        layer.start()
        for directory in (tmp_path, *tmp_path.parents[:2]):
            directory.chmod(0o755)  # others work here, too
        yield layer


def digest(layer: Layer, what: Path | str, *more: str) -> str:
    """The digest that the command prints."""
    return layer.run("digest", str(what), *more).stdout.split()[0]


def log(layer: Layer, *arguments: str) -> list[dict[str, Any]]:
    """The log as JSON objects."""
    output = layer.run("log", "volume", "--json", *arguments).stdout
    return [json.loads(line) for line in output.splitlines()]


def as_user(uid: int, script: str, where: Path) -> None:
    """Let a user run a shell script in *where*."""
    subprocess.run(
        ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "sh", "-ec", script],
        cwd=where,
        check=True,
    )


def work(layer: Layer) -> dict[str, int]:
    """The story: who did what; returns the seqs of its turns."""
    tree = layer.mountpoint / "src"
    tree.mkdir()
    for name in _PACKAGES:
        shutil.copytree(_SOURCE / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [tree, *tree.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    turns: dict[str, int] = {"copied": layer.head_seq()}
    as_user(
        _ANNA, "echo '# anna' >>json/decoder.py; mkdir -m 777 notes; echo one >notes/todo", tree
    )
    as_user(_BEN, "sed -i s/def/DEF/ email/utils.py; ln json/decoder.py notes/linked.py", tree)
    as_user(_ANNA, "mv notes memos; echo two >>memos/todo; setfattr -n user.by -v anna memos", tree)
    turns["before rm"] = layer.head_seq()
    as_user(_BEN, "rm -rf email http memos", tree)
    turns["after rm"] = layer.head_seq()
    as_user(_ANNA, "echo '# later' >>json/decoder.py; mkdir -p new/deep; echo x >new/deep/x", tree)
    return turns


@pytest.mark.from_first_entry
def test_the_story(layer: Layer, tmp_path: Path) -> None:
    marks = tmp_path / "image"
    turns = work(layer)
    end = layer.head_seq()
    removed = range(turns["before rm"] + 1, turns["after rm"] + 1)

    # Who was it?
    memos = str(layer.mountpoint / "src/memos")
    gone = log(layer, memos, "--op", "unlink,rmdir", "--since", "1 hour ago")
    assert {line["uid"] for line in gone} == {_BEN}
    assert [line["path"] for line in gone if line["op"] == "rmdir"] == ["src/memos"]
    assert all(line["seq"] in removed for line in gone)
    assert len(log(layer, "--uid", str(_BEN), "--op", "unlink,rmdir")) == len(
        [line for line in log(layer) if line["seq"] in removed]
    )

    # One file's life, through the rename of its directory, by the name it had first.
    life = layer.run("history", "volume", "src/notes/todo", "--json").stdout.splitlines()
    steps = [json.loads(line) for line in life]
    assert [step["op"] for step in steps] == ["create", "write", "rename", "write", "unlink"]
    assert [step["size"] for step in steps] == [0, 4, 4, 8, 8]
    assert steps[2]["new_path"] == steps[-1]["path"] == "src/memos/todo"
    assert [step["uid"] for step in steps] == [_ANNA] * 4 + [_BEN]

    # What changed since the copy.
    found = layer.run("diff", "volume", str(turns["copied"]), str(end), "--json").stdout
    changes = {
        line["new_path"] or line["old_path"]: line for line in map(json.loads, found.splitlines())
    }
    assert changes["src/json/decoder.py"]["content"]
    assert changes["src/email"]["removed"]
    assert changes["src/new/deep/x"]["added"]
    assert "src/notes/todo" not in changes
    assert "src/memos/todo" not in changes

    # One file as it was.
    layer.run(
        "restore", "volume", "src/memos/todo", "--before-seq", str(removed[0]),
        "--target", str(tmp_path / "one"),
    )  # fmt: skip
    assert (tmp_path / "one/todo").read_text() == "one\ntwo\n"
    assert (tmp_path / "one/todo").stat().st_uid == _ANNA

    # The tree as it was right before the rm, and from there on to now.
    before = tmp_path / "before"
    layer.run("restore", "volume", "--to-seq", str(turns["before rm"]), "--target", str(before))
    linked = before / "src/memos/linked.py"
    assert linked.stat().st_ino == (before / "src/json/decoder.py").stat().st_ino
    assert os.getxattr(before / "src/memos", "user.by") == b"anna"
    shutil.copytree(before, marks, symlinks=True)
    layer.run("restore", "volume", "src", "--to-seq", str(turns["before rm"]),
              "--target", str(tmp_path / "src"))  # fmt: skip
    assert digest(layer, before, "--path", "src") == digest(layer, tmp_path / "src")
    layer.run("replay", "volume", str(before), "--from-seq", str(removed[0]))
    assert digest(layer, before) == digest(layer, layer.mountpoint)

    # Everything but the rm.
    wanted = tmp_path / "wanted"
    without = f"{removed[0]}-{removed[-1]}"
    layer.run("replay", "volume", str(wanted), "--except", without)
    assert (wanted / "src/email/utils.py").read_text().count("DEF")
    assert (wanted / "src/new/deep/x").exists()

    # Only the rm is taken back; the later work stays, and that was journaled, too.
    unchanged = digest(layer, layer.mountpoint)
    layer.run("undo", "volume", without)
    assert digest(layer, layer.mountpoint) == unchanged
    layer.run("undo", "volume", without, "--apply")
    assert digest(layer, layer.mountpoint) == digest(layer, wanted)
    back = layer.mountpoint / "src/memos/linked.py"
    assert back.stat().st_ino == (layer.mountpoint / "src/json/decoder.py").stat().st_ino

    # And the undo is taken back in turn.
    layer.run("undo", "volume", f"{end + 1}-{layer.head_seq()}", "--apply")
    assert digest(layer, layer.mountpoint) == unchanged
    layer.run("replay", "volume", str(tmp_path / "all"))
    assert digest(layer, tmp_path / "all") == unchanged == digest(layer, layer.backing)


@pytest.mark.from_first_entry
def test_stopped_volumes_and_bare_copies_tell_the_same(layer: Layer, tmp_path: Path) -> None:
    turns = work(layer)
    live = log(layer, "src/memos")
    layer.stop()
    copy = tmp_path / "copy"
    copy.mkdir()
    for segment in (layer.state / "journal").glob("*.fj*"):
        if segment.suffix != ".fjx":
            shutil.copy(segment, copy)
    for source in ("volume", str(layer.state), str(copy)):
        output = layer.run("log", source, "src/memos", "--json").stdout
        assert [json.loads(line) for line in output.splitlines()] == live
    target = tmp_path / "target"
    layer.run("restore", str(copy), "--to-seq", str(turns["before rm"]), "--target", str(target))
    assert (target / "src/memos/todo").read_text() == "one\ntwo\n"
    # The first segment is lost: a file is still found by the paths that later ones tell.
    list_segments(copy)[0].unlink()
    life = layer.run("history", str(copy), "src/memos/todo", "--json").stdout.splitlines()
    assert [json.loads(line)["op"] for line in life][-2:] == ["write", "unlink"]
    failed = layer.run("replay", str(copy), str(tmp_path / "never"), check=False)
    assert failed.returncode == 16
    assert "the journal here has" in failed.stderr


def test_users_edits_are_taken_back_where_nobody_built_on_them(layer: Layer) -> None:
    directory = layer.mountpoint / "d"
    directory.mkdir()
    directory.chmod(0o777)
    for name in "abc":
        (directory / name).write_text("good " + name)
        (directory / name).chmod(0o666)
    good = digest(layer, layer.mountpoint)
    with acting(_ANNA):
        (directory / "a").write_text("bad, and much longer than it was")
        (directory / "b").write_text("bad")
        os.rename(directory / "c", directory / "moved")
        (directory / "mine").write_text("anna's")
    layer.run("undo", "volume", "--uid", str(_ANNA), "--apply")
    assert digest(layer, layer.mountpoint) == good

    first = layer.head_seq() + 1
    with acting(_ANNA):
        (directory / "shared").write_text("anna's")
        (directory / "shared").chmod(0o666)
    with acting(_BEN), open(directory / "shared", "a") as file:
        file.write(" and ben's")
    before = digest(layer, layer.mountpoint)
    chosen = (f"{first}-{layer.head_seq()}", "--uid", str(_ANNA))
    failed = layer.run("undo", "volume", *chosen, "--apply", check=False)
    assert failed.returncode == 22
    assert "in the way" in failed.stdout
    assert digest(layer, layer.mountpoint) == before
    done = layer.run("undo", "volume", *chosen, "--on-conflict", "skip", "--apply", "--json")
    assert json.loads(done.stdout)["kept"] == 1
    assert (directory / "shared").read_bytes() == bytes(6) + b" and ben's"


def test_log_follows(layer: Layer) -> None:
    process = subprocess.Popen(
        layer.command("log", "volume", "--follow", "--op", "mkdir", "--json"),
        env=layer.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for number in range(300):  # over more than one segment
            (layer.mountpoint / f"d{number}").mkdir()
        seen = [json.loads(process.stdout.readline())["path"] for _ in range(300)]
        assert seen == [f"d{number}" for number in range(300)]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    finally:
        process.kill()
        process.communicate()


def test_sealed_segments_get_their_index(layer: Layer) -> None:
    for number in range(300):
        (layer.mountpoint / f"d{number}").mkdir()
    journal = layer.state / "journal"
    deadline = time.monotonic() + 30
    while not list(journal.glob("*.fjx")):
        assert time.monotonic() < deadline, layer.words()
        time.sleep(0.2)
    assert json.loads(layer.run("journal", "verify", "volume", "--json").stdout)["damages"] == []


_BAD_INPUT: tuple[tuple[tuple[str, ...], int, str], ...] = (
    (("show", "volume", "9999"), 16, "no entry 9999"),
    (("restore", "volume", "--to-seq", "9999", "--target", "T"), 16, "no entry 9999"),
    (("diff", "volume", "1", "9999"), 16, "no entry 9999"),
    (("undo", "volume", "9999"), 16, "no entry 9999"),
    (("log", "volume", "--since", "soon"), 19, "neither a time"),
    (("restore", "volume", "--to-time", "2001-01-01", "--target", "T"), 19, "before the"),
    (("restore", "volume", "--to-mark", "there", "--target", "T"), 19, "no mark 'there'"),
    (("history", "volume", "never/was"), 17, "never was"),
    (("restore", "volume", "a", "--to-mark", "never", "--target", "T"), 19, "no mark"),
    (("restore", "volume", "x", "--to-mark", "here", "--target", "T"), 17, "was not there"),
    (("restore", "volume", "--target", "T"), 2, "give one of"),
    (("restore", "volume", "--to-seq", "5", "--target", "FULL"), 20, "is there already"),
    (("replay", "volume", "FULL"), 20, "is not empty"),
    (("replay", "volume", "T", "--from-seq", "5"), 20, "does not exist"),
    (("replay", "volume", "EMPTY", "--from-seq", "9"), 20, "does not hold the state"),
    (("replay", "volume", "T", "--only", "x"), 2, "no seq"),
    (("replay", "volume", "T", "--op", "eat"), 2, "there are: create"),
    (("replay", "volume", "T", "--from-seq", "7", "--to-seq", "5"), 2, "is before"),
    (("replay", "volume", "T", "--except", "3"), 22, "nothing was written"),
    (("undo", "volume"), 2, "say which"),
    (("log", "volume", "never"), 17, "never was"),
    (("undo", "volume", "--path", "never"), 17, "never was"),
    (("log", "volume", "--from-seq", "9999"), 16, "no entry 9999"),
    (("log", "volume", "[z-a]"), 2, "no pattern"),
    (("restore", "volume", "--to-time", "2199-01-01", "--target", "T"), 19, "yet to come"),
    (("log", "nothing"), 3, "no volume"),
    (("digest", "volume", "--path", "never"), 17, "never"),
)


@pytest.mark.from_first_entry
def test_bad_input_gets_one_clear_line(layer: Layer, tmp_path: Path) -> None:
    """Each with its own exit code, and the target as it was."""
    for name in "abc":
        (layer.mountpoint / name).write_text(name)
    layer.run("mark", "volume", "here")
    (layer.mountpoint / "a").unlink()
    targets = tmp_path / "targets"
    for name in ("EMPTY", "FULL"):
        (targets / name).mkdir(parents=True)
    (targets / "FULL/theirs").write_text("keep")
    for arguments, code, words in _BAD_INPUT:
        given = [str(targets / one) if one in ("T", "EMPTY", "FULL") else one for one in arguments]
        failed = layer.run(*given, check=False)
        assert failed.returncode == code, (arguments, failed.stderr)
        assert words in failed.stderr.splitlines()[-1], arguments
        assert "Traceback" not in failed.stderr
        paths = (path.relative_to(targets) for path in targets.rglob("*"))
        left = {path.name for path in paths if "fusejournal" not in str(path)}
        assert left == {"EMPTY", "FULL", "theirs"}, arguments


@pytest.mark.from_first_entry
def test_damage_in_the_middle(layer: Layer, tmp_path: Path) -> None:
    (layer.mountpoint / "b").write_text("b")
    for number in range(600):
        (layer.mountpoint / f"d{number}").mkdir()
    layer.stop()
    segment = list_segments(layer.state / "journal")[1]
    content = bytearray(segment.read_bytes())
    content[3000] ^= 4
    segment.write_bytes(content)
    first = int(segment.stem)
    for arguments in (
        ("restore", "volume", "--to-seq", "600", "--target", str(tmp_path / "T")),
        ("replay", "volume", str(tmp_path / "R")),
        ("log", "volume"),
        ("journal", "dump", "volume"),
        ("journal", "stats", "volume"),
    ):
        failed = layer.run(*arguments, check=False)
        assert failed.returncode == 11, (arguments, failed.stderr)
        assert segment.name in failed.stderr
        assert "damaged at byte" in failed.stderr
    assert not (tmp_path / "T").exists()
    # What lies before it is as good as ever.
    layer.run("restore", "volume", "--to-seq", str(first - 1), "--target", str(tmp_path / "T"))
    assert (tmp_path / "T/b").read_text() == "b"
    assert layer.run("journal", "verify", "volume", check=False).returncode == 11


def test_without_root(layer: Layer, tmp_path: Path) -> None:
    (tmp_path / "T").mkdir()
    for arguments in (("log", str(layer.state)), ("replay", "volume", str(tmp_path / "T"))):
        failed = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", *layer.command(*arguments)],
            env=layer.environment,
            capture_output=True,
            text=True,
        )
        assert failed.returncode == 8, failed.stderr
        assert len(failed.stderr.splitlines()) == 1


@pytest.mark.from_first_entry
def test_a_target_that_was_made_again_is_not_gone_on_with(layer: Layer, tmp_path: Path) -> None:
    for number in range(200):
        (layer.mountpoint / f"f{number}").touch()
    target = tmp_path / "target"
    layer.environment["FUSEJOURNAL_FAULT"] = "apply.create:100:kill"
    layer.run("replay", "volume", str(target), check=False)
    layer.environment["FUSEJOURNAL_FAULT"] = ""
    # In the same one it goes on to where it was to go, whatever was added since.
    end = layer.head_seq()
    (layer.mountpoint / "later").touch()
    layer.run("replay", "volume", str(target))
    layer.run("replay", "volume", str(target), "--from-seq", str(end + 1))
    assert digest(layer, target) == digest(layer, layer.mountpoint)

    shutil.rmtree(target)
    layer.environment["FUSEJOURNAL_FAULT"] = "apply.create:100:kill"
    layer.run("replay", "volume", str(target), check=False)
    layer.environment["FUSEJOURNAL_FAULT"] = ""
    shutil.rmtree(target)
    target.mkdir()
    failed = layer.run("replay", "volume", str(target), check=False)
    assert failed.returncode == 20
    assert "not the directory that was begun in" in failed.stderr
    shutil.rmtree(tmp_path / ".target.fusejournal-replay")
    layer.run("replay", "volume", str(target))
    assert digest(layer, target) == digest(layer, layer.mountpoint)


@pytest.mark.from_first_entry
def test_a_target_inherits_nothing(layer: Layer, tmp_path: Path) -> None:
    (layer.mountpoint / "d").mkdir()
    parent = tmp_path / "parent"
    parent.mkdir()
    subprocess.run(["setfacl", "-m", "u:1000:rwx,d:u:1000:rwx", parent], check=True)
    parent.chmod(0o2770)
    end = str(layer.head_seq())
    layer.run("replay", "volume", str(parent / "replayed"))
    layer.run("restore", "volume", "--to-seq", end, "--target", str(parent / "restored"))
    layer.run("restore", "volume", "d", "--to-seq", end, "--target", str(parent / "d"))
    wanted = digest(layer, layer.mountpoint)
    assert digest(layer, parent / "replayed") == digest(layer, parent / "restored") == wanted
    assert digest(layer, parent / "d") == digest(layer, layer.mountpoint / "d")


@pytest.mark.from_first_entry
def test_a_target_by_a_relative_path(layer: Layer, tmp_path: Path) -> None:
    (layer.mountpoint / "f").write_text("x")
    target = tmp_path / "target"
    target.mkdir()
    subprocess.run(
        layer.command("replay", "volume", "."), cwd=target, env=layer.environment, check=True
    )
    assert digest(layer, target) == digest(layer, layer.mountpoint)


def test_undo_leaves_alone_what_was_changed_since(layer: Layer) -> None:
    file, made = layer.mountpoint / "f", layer.mountpoint / "made"
    file.write_text("original")
    first = layer.head_seq() + 1
    file.write_text("bad")
    made.write_text("bad, too")
    lookup = Lookup(JournalReader(layer.state / "journal"))
    for changed in (file, made):
        undo = Undo(lookup, Criteria(from_seq=Seq(first)), Seq(layer.head_seq()))
        plan = undo.plan(lambda done, total: None)
        changed.write_text("important later work")
        with pytest.raises(ConflictError, match="another process changed it"):
            undo.carry_out(plan, layer.mountpoint, lambda done, total: None)
        assert changed.read_text() == "important later work"
        lookup = Lookup(JournalReader(layer.state / "journal"))


def test_the_import_stays(tmp_path: Path) -> None:
    (tmp_path / "backing").mkdir(mode=0o751)
    (tmp_path / "backing/old").write_text("old")
    with Layer(tmp_path) as layer:
        layer.start()
        before = digest(layer, layer.mountpoint)
        (layer.mountpoint / "new").write_text("new")
        layer.run("undo", "volume", "--until", "now", "--apply")
        assert digest(layer, layer.mountpoint) == before
        assert layer.mountpoint.stat().st_mode & 0o7777 == 0o751


def test_show_tells_a_writes_offset(layer: Layer) -> None:
    with open(layer.mountpoint / "f", "wb") as file:
        file.seek(1000)
        file.write(b"here")
    head_seq = str(layer.head_seq())
    shown = json.loads(layer.run("show", "volume", head_seq, "--data", "--json").stdout)
    assert (shown["op"], shown["offset"], bytes.fromhex(shown["data"])) == ("write", 1000, b"here")
    assert "000003e8  68 65 72 65" in layer.run("show", "volume", head_seq, "--data").stdout


def test_deep_trees_have_a_history(layer: Layer, tmp_path: Path) -> None:
    fd = os.open(layer.mountpoint, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    path = "d/" * 1500 + "f"
    assert '"create"' in layer.run("history", "volume", path, "--json").stdout
    layer.run("undo", "volume", str(layer.head_seq()), "--apply")
    layer.stop()
    subprocess.run(["rm", "-rf", layer.backing], check=True)
