"""Versions as they are used: made of a running volume's journal, on the primary and on a mirror,
looked at, compared, restored and deleted."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fusejournal.replay.digest import digest_tree
from tests.support.layer import Layer
from tests.support.mirrors import check_equal, started
from tests.support.trees import difference, image
from tests.support.xattrs import CAPABILITIES, make_acl

pytestmark = pytest.mark.mount

_ACL = make_acl(7, 7, 5, 7, 5)


@pytest.fixture
def volume(live: Layer, tmp_path: Path) -> Layer:
    """A live volume with a store of versions in ``kept``."""
    live.run("version", "store", "init", str(live.state), "--store", str(tmp_path / "kept"))
    return live


def _version(layer: Layer, *arguments: str) -> dict[str, Any]:
    command, *rest = arguments
    output = layer.run("version", command, str(layer.state), *rest, "--json").stdout
    found: dict[str, Any] = json.loads(output)
    return found


def _make_everything(root: Path) -> None:
    """A file of each kind, and what is easily lost."""
    (root / "d/deep").mkdir(parents=True)
    (root / "d/small").write_text("small")
    (root / "d/large").write_bytes(os.urandom(3 << 20))
    (root / "text").write_text("some lines of text\n" * 50_000)
    os.link(root / "text", root / "d/deep/linked")
    os.symlink("../nowhere", root / "d/symlink")
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "device", 0o600 | 0o020000, os.makedev(1, 7))
    with open(root / "sparse", "wb") as file:
        file.seek(5 << 20)
        file.write(b"island")
        file.truncate(64 << 20)
    os.setxattr(root / "d/small", "user.note", b"value" * 30)
    (root / "acl").mkdir()
    os.setxattr(root / "acl", "system.posix_acl_default", _ACL)
    (root / "acl/inherits").write_text("x")
    (root / "d/able").write_text("#!/bin/true")
    os.setxattr(root / "d/able", "security.capability", CAPABILITIES[0])
    os.chown(root / "d/small", 1000, 1001)
    os.chmod(root / "d/small", 0o4755)
    os.utime(root / "d/symlink", ns=(5, 1_234_567_890_123_456_789), follow_symlinks=False)
    (root / os.fsdecode(b"odd \xff\n name")).write_text("odd")
    os.chmod(root, 0o751)


def test_a_version_is_the_tree(volume: Layer, tmp_path: Path) -> None:
    root = volume.mountpoint
    _make_everything(root)
    opened = os.open(root / "gone", os.O_CREAT | os.O_RDWR)
    os.write(opened, b"open and removed")
    os.unlink(root / "gone")
    first = _version(volume, "create", "first")
    assert first["is_new"]
    before = digest_tree(root).digest
    volume.run(
        "restore", str(volume.state), "--to-version", "first", "--target", str(tmp_path / "1")
    )
    assert digest_tree(tmp_path / "1").digest == before
    assert os.stat(tmp_path / "1/sparse").st_blocks * 512 < 1 << 20
    os.close(opened)
    # What comes after costs what it changes.
    with open(root / "d/large", "r+b") as file:
        file.seek(1 << 20)
        file.write(b"changed")
    os.rename(root / "d", root / "e")
    os.unlink(root / "fifo")
    second = _version(volume, "create", "second")
    assert second["added_bytes"] < 1 << 20
    assert second["parent"] == json_key(first)
    for name, wanted in (("first", before), ("second", digest_tree(root).digest)):
        target = tmp_path / f"again-{name}"
        volume.run("restore", str(volume.state), "--to-version", name, "--target", str(target))
        assert digest_tree(target).digest == wanted
        volume.run("version", "verify", str(volume.state), name, "--data")
    volume.run(
        *("restore", str(volume.state), "e/deep", "--to-version", "second"),
        *("--target", str(tmp_path / "part")),
    )
    assert (tmp_path / "part/linked").read_text() == (root / "text").read_text()


def _make_chain(root: Path, first: str, depth: int) -> int:
    """Makes so many directories, each in the one before. Returns a descriptor of the last."""
    at = os.open(root, os.O_RDONLY)
    for name in (first, *("d",) * (depth - 1)):
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    return at


def test_a_file_with_names_far_below_different_directories(volume: Layer, tmp_path: Path) -> None:
    """More directories lie above them than a restore keeps open."""
    depth = 300
    ends = [_make_chain(volume.mountpoint, name, depth) for name in ("one", "two")]
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=ends[0]))
    os.link("f", "g", src_dir_fd=ends[0], dst_dir_fd=ends[1])
    for end in ends:
        os.close(end)
    _version(volume, "create", "deep")
    target = tmp_path / "restored"
    volume.run("restore", str(volume.state), "--to-version", "deep", "--target", str(target))
    below = "/".join(("d",) * (depth - 1))
    numbers = {
        (target / top / below / name).stat().st_ino for top, name in (("one", "f"), ("two", "g"))
    }
    assert len(numbers) == 1


def test_any_moment_is_restored_from_the_nearest_version(volume: Layer, tmp_path: Path) -> None:
    root = volume.mountpoint
    _make_everything(root)
    _version(volume, "create", "first")
    (root / "d/large").write_text("shorter now")
    os.rename(root / "text", root / "d/text")
    wanted, seq = digest_tree(root).digest, volume.head_seq()
    (root / "d/later").write_text("later")

    def restore(name: str, *arguments: str) -> str:
        target = ("--target", str(tmp_path / name))
        return volume.run("restore", str(volume.state), *arguments, *target).stdout

    said = restore("whole", "--to-seq", str(seq))
    assert "from version first and" in said
    assert digest_tree(tmp_path / "whole").digest == wanted
    said = restore("alone", "--to-seq", str(seq), "--from-journal")
    assert "from version" not in said
    assert digest_tree(tmp_path / "alone").digest == wanted
    told = json.loads(restore("part", "d/text", "--before-seq", str(seq + 1), "--json"))
    assert told["from_version"]
    assert (tmp_path / "part/text").read_text() == (root / "d/text").read_text()
    # Before the first version the journal alone tells.
    assert "from version" not in restore("early", "--to-seq", "5")
    os.rename(tmp_path / "kept", tmp_path / "away")
    gone = volume.run(
        *("restore", str(volume.state), "--to-seq", str(seq), "--target", str(tmp_path / "still"))
    )
    assert "from the journal alone" in gone.stderr
    assert digest_tree(tmp_path / "still").digest == wanted
    os.rename(tmp_path / "away", tmp_path / "kept")


def json_key(version: dict[str, Any]) -> str:
    """The key of a version that was made."""
    uuid = version["uuid"].replace("-", "")
    return f"{uuid}-{version['seq']:020d}-{version['chain']}"


def test_log_and_history_name_the_versions(volume: Layer, tmp_path: Path) -> None:
    path = volume.mountpoint / "file"
    path.write_text("one")
    for name in ("first", "second"):
        _version(volume, "create", name)
        path.write_text(name)
    os.unlink(path)
    (volume.mountpoint / "beside").write_text("x")
    _version(volume, "create", "third")
    state = str(volume.state)

    def kept(*command: str) -> list[list[str]]:
        lines = volume.run(*command, "--json").stdout.splitlines()
        return [one["versions"] for one in map(json.loads, lines) if "versions" in one]

    assert kept("history", state, "file") == [["first"], ["second"]]
    assert kept("log", state) == [["first"], ["second"], ["third"]]
    assert kept("log", state, "--reverse") == [["third"], ["second"], ["first"]]
    assert kept("log", state, "file") == [["first"], ["second"], ["third"]]
    seq = str(_version(volume, "show", "second")["seq"] - 1)
    assert kept("log", state, "--to-seq", seq) == [["first"]]
    shown = volume.run("log", state).stdout
    assert [line.strip() for line in shown.splitlines() if "kept in" in line] == [
        f"kept in version {name}" for name in ("first", "second", "third")
    ]
    assert "kept in version first" in volume.run("history", state, "file").stdout
    os.rename(tmp_path / "kept", tmp_path / "away")
    done = volume.run("log", state)
    assert ("kept in" in done.stdout, "versions are not shown" in done.stderr) == (False, True)
    os.rename(tmp_path / "away", tmp_path / "kept")


def test_what_differs_is_told(volume: Layer) -> None:
    root = volume.mountpoint
    _make_everything(root)
    _version(volume, "create", "before")
    os.rename(root / "d", root / "e")
    (root / "text").write_text("other")
    os.unlink(root / "fifo")
    (root / "new").write_text("new")
    os.chmod(root / "acl", 0o700)
    os.link(root / "new", root / "acl/further")
    _version(volume, "create", "after")
    lines = volume.run("version", "diff", str(volume.state), "before", "after").stdout.splitlines()
    found = sorted(" ".join(line.split()) for line in lines)
    assert found == sorted(
        ["A /new", "A /acl/further (hard link)", "D /fifo", "M /text", "P /acl", "R /d -> /e"]
    ) or found == sorted(
        ["A /acl/further", "A /new (hard link)", "D /fifo", "M /text", "P /acl", "R /d -> /e"]
    )
    below = volume.run("version", "diff", str(volume.state), "before", "after", "e").stdout
    assert below.split() == ["R", "/d", "->", "/e"]


def test_versions_are_listed_protected_and_deleted(volume: Layer) -> None:
    (volume.mountpoint / "a").write_text("a")
    made = _version(volume, "create", "one")
    again = _version(volume, "create")
    assert (again["is_new"], again["root"]) == (False, made["root"])
    taken = volume.run("version", "create", str(volume.state), "two", check=False)
    assert taken.returncode == 2
    assert "is version one already" in taken.stderr
    (volume.mountpoint / "b").write_text("b")
    _version(volume, "create")
    shown = volume.run("version", "list", str(volume.state)).stdout.splitlines()
    assert len(shown) == 2
    assert shown[0].endswith("one")
    volume.run("version", "protect", str(volume.state), "one")
    assert _version(volume, "show", "one")["protected"]
    assert "protected  yes" in volume.run("version", "show", str(volume.state), "one").stdout
    refused = volume.run("version", "delete", str(volume.state), "one", "--yes", check=False)
    assert refused.returncode == 2
    volume.run("version", "protect", str(volume.state), "one", "--off")
    volume.run("version", "delete", str(volume.state), "one", "--yes")
    missing = volume.run("version", "show", str(volume.state), "one", check=False)
    assert missing.returncode == 43
    assert len(volume.run("version", "list", str(volume.state)).stdout.splitlines()) == 1


def test_what_a_deleted_version_had_is_freed(volume: Layer, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (volume.mountpoint / "file").write_bytes(os.urandom(2 << 20))
        _version(volume, "create", name)
    volume.run("version", "delete", str(volume.state), "two", "--yes")
    before = _size(tmp_path / "kept")
    planned = volume.run("version", "collect", str(volume.state), "--dry-run").stdout
    assert "would remove" in planned
    assert _size(tmp_path / "kept") == before
    said = volume.run("version", "collect", str(volume.state)).stdout
    assert said.startswith("removed ")
    assert _size(tmp_path / "kept") < before - (2 << 20) + 100_000
    for name in ("one", "three"):
        volume.run("version", "verify", str(volume.state), name, "--data")
    assert _version(volume, "collect")["removed_packs"] == 0
    nobody = volume.run("version", "collect", str(volume.state), "--forget", "x", check=False)
    assert nobody.returncode == 2


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_a_store_is_named_and_another_is_not_taken_for_it(volume: Layer, tmp_path: Path) -> None:
    (volume.mountpoint / "a").write_text("a")
    _version(volume, "create")
    assert "1 versions" in volume.run("version", "store", "check", str(volume.state)).stdout
    below = volume.run(
        *("version", "store", "init", str(volume.state)),
        *("--store", str(volume.mountpoint / "x")),
        check=False,
    )
    assert below.returncode == 2
    # The disk of the store is not mounted: an empty directory, and then another store.
    os.rename(tmp_path / "kept", tmp_path / "away")
    os.mkdir(tmp_path / "kept", 0o700)
    empty = volume.run("version", "create", str(volume.state), check=False)
    assert empty.returncode == 40
    assert "holds no versions" in empty.stderr
    other = volume.run(
        *("version", "store", "init", str(volume.state), "--store", str(tmp_path / "other")),
        check=False,
    )
    assert other.returncode == 2
    os.rmdir(tmp_path / "kept")
    # It was moved, and is named by its new place.
    volume.run("version", "store", "init", str(volume.state), "--store", str(tmp_path / "away"))
    assert len(volume.run("version", "list", str(volume.state)).stdout.splitlines()) == 1


def test_a_spoilt_store_is_named(volume: Layer, tmp_path: Path) -> None:
    (volume.mountpoint / "a").write_bytes(os.urandom(100_000))
    _version(volume, "create")
    for pack in (tmp_path / "kept/packs").iterdir():
        content = bytearray(pack.read_bytes())
        content[50_000 % len(content)] ^= 1
        pack.write_bytes(content)
    wanted = digest_tree(volume.mountpoint).digest
    seq = volume.run("version", "list", str(volume.state)).stdout.split()[0]
    found = volume.run("version", "verify", str(volume.state), seq, "--data", check=False)
    assert found.returncode == 42
    assert found.stderr.count("\n") == 1
    # What the journal can do alone, it does.
    target = tmp_path / "restored"
    found = volume.run("restore", str(volume.state), "--to-seq", seq, "--target", str(target))
    assert "from the journal alone" in found.stderr
    assert digest_tree(target).digest == wanted


def test_a_spoilt_version_or_index_is_named_and_given_up(volume: Layer, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (volume.mountpoint / "file").write_bytes(os.urandom(100_000))
        _version(volume, "create", name)
    key = json_key(_version(volume, "show", "one"))
    path = tmp_path / "kept/versions" / key
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    state = str(volume.state)

    def run(*arguments: str) -> tuple[int, str, str]:
        done = volume.run("version", *arguments, check=False)
        return done.returncode, done.stdout, done.stderr

    code, shown, told = run("list", state)
    assert (code, len(shown.splitlines()), told.count("\n")) == (42, 1, 1)
    assert f"versions/{key}: " in told
    assert f"version delete {state} {key}'" in told
    lines = run("list", state, "--json")[1].splitlines()
    assert [json.loads(line)["key"] == key for line in lines] == [False, True]
    assert run("show", state, key)[0] == run("store", "check", state)[0] == 42
    (volume.mountpoint / "file").write_bytes(os.urandom(100_000))
    code, _, told = run("create", state, "three")
    assert (code, key in told) == (0, True)
    code, shown, told = run("collect", state)
    assert (code, key in told, "removed 0 packs" in shown) == (0, True, True)
    run("protect", state, key)
    assert run("delete", state, key, "--yes")[0] == 2
    run("protect", state, key, "--off")
    assert run("delete", state, key, "--yes")[0] == 0
    assert run("collect", state)[1].startswith("removed 2 packs with 97")
    for index in (tmp_path / "kept/index").iterdir():
        index.write_bytes(index.read_bytes()[:-1])
    code, _, told = run("store", "check", state)
    assert (code, "--repair'" in told) == (42, True)
    code, shown, _ = run("store", "check", state, "--repair")
    assert (code, shown.startswith("made ")) == (0, True)
    for name in ("two", "three"):
        assert run("verify", state, name, "--data")[0] == 0


def test_primary_and_mirror_make_the_same_version(tmp_path: Path) -> None:
    with started(tmp_path, None) as (primary, mirror):
        _make_everything(primary.mountpoint)
        check_equal(primary, mirror)
        for node in (primary, mirror):
            kept = str(tmp_path / f"kept-{node.name}")
            node.run("version", "store", "init", str(node.state), "--store", kept)
        _version(primary, "create", "early")
        for number in range(50):
            (primary.mountpoint / f"more{number}").write_text("more" * number)
        os.unlink(primary.mountpoint / "text")
        check_equal(primary, mirror)
        one, other = (_version(node, "create", "same") for node in (primary, mirror))
        assert one["seq"] == other["seq"]
        # The one was made of an earlier version, the other of the journal alone.
        assert (one["parent"] is None, other["parent"] is None) == (False, True)
        assert one["root"] == other["root"]
        for node in (primary, mirror):
            target = tmp_path / f"target-{node.name}"
            node.run(*("restore", str(node.state), "--to-version", "same", "--target", str(target)))
            assert not difference(image(target), image(primary.mountpoint))
        for node in (primary, mirror):
            node.stop()


def test_help_has_examples(volume: Layer) -> None:
    commands = ("create", "list", "show", "diff", "verify", "protect", "delete", "collect", "store")
    for command in commands:
        shown = volume.run("version", command, "--help").stdout
        assert "Examples:" in shown, command
