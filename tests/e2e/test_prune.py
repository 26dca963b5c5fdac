"""Pruning of a journal as it is used: beside a running layer and without one, killed anywhere; and
what can be asked of the volume then."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusejournal.journal.base import load_base
from fusejournal.journal.segment import first_seq_of, list_segments
from fusejournal.replay.digest import digest_tree
from tests.support.forked import run
from tests.support.layer import Layer
from tests.support.losses import crash_system
from tests.support.mirrors import (
    PORT,
    Node,
    await_level,
    check_equal,
    know_each_other,
    nodes,
)
from tests.support.trees import fids

pytestmark = pytest.mark.mount

_CONFIG = """
[journal]
segment_entries = 256
checkpoint_interval_seconds = 0.05
keep_bytes = 0
[versions]
keep_last = 2
"""
_ALL_CALLS = bool(os.environ.get("FUSEJOURNAL_TEST_ALL_PRUNE_CALLS"))
"""True if pruning is to be killed at each call of it, and not only at some."""


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[Layer]:
    with Layer(tmp_path, config=_CONFIG) as layer:
        layer.start()
        layer.run("version", "store", "init", str(layer.state), "--store", str(tmp_path / "kept"))
        yield layer
        layer.stop()


def _work(root: Path, name: str, count: int = 90) -> None:
    """Some 600 entries."""
    directory = root / name
    directory.mkdir()
    for number in range(count):
        (directory / f"f{number}").write_bytes(b"content %d " % number * 20)
        os.utime(directory / f"f{number}", ns=(number, number))
        os.rename(directory / f"f{number}", directory / f"g{number}")
        if number % 3 == 0:
            (directory / f"g{number}").unlink()
    os.link(directory / "g1", directory / "linked")
    (directory / "large").write_bytes(os.urandom(300_000))


def _flushed(layer: Layer) -> int:
    """Waits until the backing is on its disk. Returns the head seq."""
    deadline = time.monotonic() + 30
    while (status := layer.ask())["checkpoint_seq"] != status["head_seq"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(status["head_seq"])


def _prune(layer: Layer, *arguments: str) -> dict[str, Any]:
    config = ("--config", str(layer.base / "config.toml"))
    output = layer.run("prune", str(layer.state), *config, *arguments, "--json").stdout
    found: dict[str, Any] = json.loads(output)
    return found


def _refused(layer: Layer, *arguments: str, code: int) -> str:
    done = layer.run(*arguments, check=False)
    assert done.returncode == code, done
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_the_beginning_goes_and_all_else_goes_on(layer: Layer, tmp_path: Path) -> None:
    root, state = layer.mountpoint, str(layer.state)
    _work(root, "early")
    early = layer.run("version", "create", state, "early").stdout
    assert "made version early" in early
    _work(root, "middle")
    _flushed(layer)
    before = len(list_segments(layer.state / "journal"))
    told = _prune(layer, "--dry-run")["journal"]
    assert told["segments"] == before - 1
    assert told["held_by"] == []
    assert len(list_segments(layer.state / "journal")) == before
    pruned = _prune(layer)["journal"]
    base = load_base(layer.state)
    assert base is not None
    assert pruned["up_to_seq"] == base.seq
    assert [first_seq_of(path) for path in list_segments(layer.state / "journal")] == [base.seq + 1]
    assert json.loads((layer.state / "volume.json").read_text())["format"] == 4
    assert layer.ask()["base_seq"] == base.seq
    # It serves on, and what is asked of it is answered from the base.
    _work(root, "late", 20)
    wanted, head_seq = digest_tree(root).digest, layer.ask()["head_seq"]
    for name, arguments in (("a", ()), ("b", ("--from-journal",))):
        target = ("--to-seq", str(head_seq), "--target", str(tmp_path / name), *arguments)
        layer.run("restore", state, *target)
        assert digest_tree(tmp_path / name).digest == wanted
    layer.run("restore", state, "--to-seq", str(base.seq), "--target", str(tmp_path / "base"))
    layer.run("restore", state, "early", "--to-version", "early", "--target", str(tmp_path / "e"))
    from_base = ("--from-seq", str(base.seq + 1), "--to-seq", str(head_seq))
    layer.run("replay", state, str(tmp_path / "base"), *from_base)
    assert digest_tree(tmp_path / "base").digest == wanted
    assert f"covers      seq {base.seq:,} (" in layer.run("status", state).stdout
    layer.run("undo", state, "--path", "late", "--apply")
    assert not (root / "late").exists()
    life = layer.run("history", state, "middle/large")
    assert "are not in the journal any more" in life.stderr
    said = _refused(layer, "restore", state, "--to-seq", "9", "--target", "/x", code=16)
    assert f"as of seq {base.seq} and later, and no version is of a seq before" in said
    said = _refused(
        layer, "restore", state, "--to-seq", str(base.seq - 1), "--target", "/x", code=16
    )
    assert "--to-version early" in said
    _refused(layer, "diff", state, "0", str(head_seq), code=16)
    _refused(layer, "replay", state, str(tmp_path / "new"), "--from-seq", "1", code=16)
    (tmp_path / "new").mkdir()
    layer.run("replay", state, str(tmp_path / "new"), "--to-seq", str(head_seq))
    assert digest_tree(tmp_path / "new").digest == wanted
    _refused(layer, "undo", state, "--since", "2001-01-01", code=19)
    assert "stands for" in _refused(
        layer, "version", "delete", state, str(base.seq), "--yes", code=2
    )
    assert "any more" in layer.run("log", state).stderr
    _kill_and_look(layer)
    # The next pruning has the base before go.
    _work(root, "more")
    _flushed(layer)
    assert _prune(layer)["journal"]["up_to_seq"] > base.seq
    layer.run("version", "delete", state, str(base.seq), "--yes")


def _kill_and_look(layer: Layer) -> None:
    """Kills the layer, then loses its catalog and its machine: the tree stays as it is."""
    wanted = digest_tree(layer.mountpoint).digest
    inodes = {path: path.lstat().st_ino for path in layer.mountpoint.rglob("*")}
    for lost in ((), ("catalog",), ("catalog", "boot")):
        layer.kill()
        for name in lost:
            path = layer.state / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        layer.start()
        assert digest_tree(layer.mountpoint).digest == wanted
        assert inodes == {path: path.lstat().st_ino for path in layer.mountpoint.rglob("*")}
        assert all("lost" in line for line in layer.ask()["degraded"])


def test_what_holds_it_back_is_told(layer: Layer) -> None:
    state = str(layer.state)
    _work(layer.mountpoint, "one")
    layer.run("mark", state, "kept")
    marked = layer.ask()["head_seq"]
    _work(layer.mountpoint, "two")
    layer.run("peer", "add", state, "far=127.0.0.1:1", check=False)
    _flushed(layer)
    told = _prune(layer, "--dry-run")["journal"]
    assert told["segments"] == 0
    assert told["held_by"] == ["peer far has entries up to 0"]
    layer.run("peer", "remove", state, "far")
    told = _prune(layer)["journal"]
    (held,) = told["held_by"]
    assert held.startswith(
        f"mark 'kept' is entry {marked}: 'fusejournal mark volume kept --remove'"
    )
    assert 0 < told["up_to_seq"] < marked
    layer.run("mark", state, "kept", "--remove")
    _flushed(layer)
    told = _prune(layer)["journal"]
    assert told["held_by"] == []
    assert told["up_to_seq"] > marked


def test_it_goes_by_the_policy_that_the_volume_is_mounted_with(layer: Layer) -> None:
    state = str(layer.state)
    _work(layer.mountpoint, "one")
    _flushed(layer)
    file = str(layer.base / "config.toml")
    assert layer.ask()["configuration"] == file
    assert f"configuration {file}\n" in layer.run("status", state).stdout
    told = json.loads(layer.run("prune", state, "--dry-run", "--json").stdout)
    assert told["journal"]["segments"] > 0
    assert "of the journal 1 segment" in layer.run("prune", state, "--dry-run").stdout
    layer.stop()
    told = layer.run("prune", state).stdout
    assert "set keep_bytes or keep_days under [journal]" in told
    layer.start()


def test_mirrors_go_on_and_new_ones_are_refused(tmp_path: Path) -> None:
    with nodes(tmp_path, None) as (primary, mirror):
        primary.reconfigure(_CONFIG)
        primary.start()
        mirror.start()
        kept = str(tmp_path / "kept")
        _work(primary.mountpoint, "one")
        check_equal(primary, mirror)
        primary.run("version", "store", "init", str(primary.state), "--store", kept)
        _flushed(primary)
        assert _prune(primary)["journal"]["segments"]
        _work(primary.mountpoint, "two", 20)
        await_level(primary, mirror)
        wanted = digest_tree(primary.mountpoint).digest
        assert digest_tree(mirror.mountpoint).digest == wanted
        # One that begins now would need what is gone.
        mirror.stop()
        mirror.begin_anew()
        mirror.start()
        status = primary.await_peer(mirror, "needs full copy")
        assert "needs full copy" in mirror.run("status", str(mirror.state)).stdout
        assert status["state"] == "needs full copy"
        assert list(mirror.mountpoint.iterdir()) == []
        mirror.stop()
        primary.stop()


def _check_level(source: Node, sink: Node) -> None:
    await_level(source, sink)
    assert digest_tree(sink.mountpoint).digest == digest_tree(source.mountpoint).digest
    assert fids(sink.mountpoint) == fids(source.mountpoint)


def test_a_mirror_prunes_its_own_journal(tmp_path: Path) -> None:
    with nodes(tmp_path, None) as (primary, mirror):
        for node in (primary, mirror):
            node.reconfigure(_CONFIG)
            node.start()
        _work(primary.mountpoint, "one")
        check_equal(primary, mirror)
        kept = str(tmp_path / "kept")
        mirror.run("version", "store", "init", str(mirror.state), "--store", kept)
        _work(primary.mountpoint, "two", 20)
        await_level(primary, mirror)
        head_seq = _flushed(mirror)
        told = _prune(mirror)["journal"]
        assert told["segments"] > 0
        for why in told["held_by"]:
            assert why.startswith(("its primary is known to have", "the backing is on its disk"))
        base = load_base(mirror.state)
        assert base is not None
        assert base.seq == told["up_to_seq"] < head_seq
        assert load_base(primary.state) is None
        # It goes on, also without its catalog, after the loss of its machine.
        mirror.kill()
        mirror.detach()
        shutil.rmtree(mirror.state / "catalog")
        (mirror.state / "boot").unlink()
        _work(primary.mountpoint, "after", 10)
        mirror.start()
        primary.resume(mirror)
        _check_level(primary, mirror)
        out = str(tmp_path / "out")
        mirror.run("restore", str(mirror.state), "--to-seq", str(base.seq), "--target", out)
        # As the primary, too, whose mirror has its journal whole.
        know_each_other(mirror, primary, primary.host.address, PORT)
        primary.run("handoff", str(primary.state), mirror.name)
        _work(mirror.mountpoint, "later", 10)
        _check_level(mirror, primary)
        assert load_base(primary.state) is None
        for node in (primary, mirror):
            node.stop()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layer]:
    """A stopped volume with versions, which can be pruned."""
    base = tmp_path_factory.mktemp("volume")
    with Layer(base, config=_CONFIG) as layer:
        layer.start()
        layer.run("version", "store", "init", str(layer.state), "--store", str(base / "kept"))
        _work(layer.mountpoint, "one", 40)
        layer.run("version", "create", str(layer.state), "one")
        _work(layer.mountpoint, "two", 60)
        layer.stop()
        for name in ("kept", "state"):
            shutil.copytree(base / name, base / "before" / name)
        yield layer


def _killed(stopped: Layer, fault: str) -> int:
    for name in ("kept", "state"):
        shutil.rmtree(stopped.base / name)
        shutil.copytree(stopped.base / "before" / name, stopped.base / name)
    environment = {**stopped.environment, "FUSEJOURNAL_FAULT": fault}
    config = str(stopped.base / "config.toml")
    arguments = ["prune", str(stopped.state), "--config", config]
    return run(arguments, environment, check=False, timeout=60).returncode


@pytest.mark.parametrize(("labels", "step"), [("journal.*", 2), ("state*", 2), ("object.*", 31)])
def test_killed_at_each_call(stopped: Layer, labels: str, step: int) -> None:
    """The volume is whole, whatever was done, and the next pruning comes to the same."""
    killed = 0
    for number in range(1, 400, 1 if _ALL_CALLS else step):
        code = _killed(stopped, f"{labels}:{number}:kill")
        if code == 0:
            break
        assert code == -9
        killed += 1
        head = stopped.run("log", str(stopped.state), "-n", "1", "--json").stdout
        seq = str(json.loads(head)["seq"])
        if number % 4 == 1:
            target = stopped.base / f"{labels[0]}{number}"
            stopped.run("restore", str(stopped.state), "--to-seq", seq, "--target", str(target))
            shutil.rmtree(target)
        assert _prune(stopped)["journal"]["held_by"] == []
        base = load_base(stopped.state)
        assert base is not None
        starts = [first_seq_of(path) for path in list_segments(stopped.state / "journal")]
        assert starts == [base.seq + 1]
    assert killed > 1


def test_a_full_or_failing_disk(stopped: Layer) -> None:
    """Nothing goes where a step before it fails."""
    for label, number, code in (
        ("journal.base.write", "EIO", 1),
        ("object.write", "ENOSPC", 41),
        ("journal.base.sync", "EIO", 1),
    ):
        assert _killed(stopped, f"{label}:1:{number}+") == code
        assert load_base(stopped.state) is None
        assert first_seq_of(list_segments(stopped.state / "journal")[0]) == 1
    # And it starts with what a pruning left that was killed in the midst of it.
    assert _killed(stopped, "journal.drop.unlink:1:kill") == -9
    stopped.start()
    base = load_base(stopped.state)
    assert base is not None
    assert first_seq_of(list_segments(stopped.state / "journal")[0]) == base.seq + 1
    assert stopped.ask()["degraded"] == []
    stopped.stop()


def test_restores_in_place_and_scrubs_need_no_beginning(layer: Layer) -> None:
    root, state = layer.mountpoint, str(layer.state)
    _work(root, "old")
    layer.run("version", "create", state, "early")
    early = digest_tree(root).digest
    _work(root, "more")
    _work(root, "most")
    layer.run("version", "create", state, "late")
    _flushed(layer)
    _prune(layer)
    assert load_base(layer.state) is not None
    assert load_base(layer.state) is not None
    shutil.rmtree(root / "old")
    (root / "more/g1").write_text("changed")
    told = layer.run("restore", state, "--to-version", "late", "--in-place", "--apply").stdout
    assert "to take it back: fusejournal undo" in told
    # To what was before the journal's base, and the versions that stand for it.
    layer.run("restore", state, "--to-version", "early", "--in-place", "--apply")
    assert digest_tree(root).digest == early
    assert json.loads(layer.run("scrub", state, "--json").stdout)["faults"] == []
    assert "kept in" not in layer.run("log", state, "-n", "3").stdout


def test_what_was_there_first_goes_right_after_its_import(tmp_path: Path) -> None:
    """Its content is in a verified version then, and need not be kept twice."""
    backing = tmp_path / "backing"
    backing.mkdir()
    for number in range(400):
        (backing / f"f{number}").write_bytes(os.urandom(10_000))
    os.link(backing / "f1", backing / "linked")
    with open(backing / "sparse", "wb") as file:
        file.truncate(1 << 20)
        os.pwrite(file.fileno(), b"x" * 5000, 300_000)
    with Layer(tmp_path, config=_CONFIG) as layer:
        layer.start()
        state = str(layer.state)
        layer.run("version", "store", "init", state, "--store", str(tmp_path / "kept"))
        wanted, seq = digest_tree(layer.mountpoint).digest, _flushed(layer)
        pruned = _prune(layer)["journal"]
        assert pruned["bytes"] > 3 << 20
        assert len(list_segments(layer.state / "journal")) == 1
        # A file of before is taken back, the machine and its catalog are lost, all is restored.
        (layer.mountpoint / "f7").write_bytes(b"spoilt")
        layer.run("undo", state, f"{seq + 1}-{layer.head_seq()}", "--apply")
        assert digest_tree(layer.mountpoint).digest == wanted
        head_seq = layer.head_seq()
        layer.kill()
        crash_system(layer.state, head_seq)
        shutil.rmtree(layer.state / "catalog")
        (backing / "f9").unlink()
        layer.start()
        assert digest_tree(layer.mountpoint).digest == wanted
        target = tmp_path / "restored"
        layer.run("restore", state, "--to-seq", str(seq), "--target", str(target))
        assert digest_tree(target).digest == wanted
        layer.stop()


def test_chunks_of_a_base_that_a_disk_spoils_are_stored_again(layer: Layer, tmp_path: Path) -> None:
    """No later version cuts them anew, so that pruning would be refused for good."""
    root, state = layer.mountpoint, str(layer.state)
    contents = [os.urandom(200_000) for _ in range(4)]
    for number, content in enumerate(contents):
        (root / f"large{number}").write_bytes(content)
    _work(root, "early")
    _flushed(layer)
    assert _prune(layer)["journal"]["segments"]
    pack = max((tmp_path / "kept/packs").iterdir(), key=lambda one: one.stat().st_size)
    spoilt = bytearray(pack.read_bytes())
    for at in (len(spoilt) // 4, len(spoilt) // 2):
        spoilt[at] ^= 1
    pack.write_bytes(spoilt)
    _work(root, "late")
    _flushed(layer)
    assert (
        "is not what was put there"
        in _refused(layer, "scrub", state, code=49)
        + layer.run("scrub", state, "--json", check=False).stdout
    )
    config = ("--config", str(layer.base / "config.toml"))
    layer.run("prune", state, *config, check=False)
    mended = layer.run("scrub", state, "--repair", "--anew").stdout
    assert "2 chunks of versions stored again" in mended
    assert "as it should be" in mended
    assert json.loads((layer.state / "scrub.json").read_text())["stored_again"] == 2
    base = load_base(layer.state)
    assert base is not None
    assert _prune(layer)["journal"]["up_to_seq"] > base.seq
    for line in layer.run("version", "list", state, "--json").stdout.splitlines():
        layer.run("version", "verify", state, json.loads(line)["key"], "--data")


def test_chunks_that_no_file_has_any_more_are_told(layer: Layer, tmp_path: Path) -> None:
    root, state = layer.mountpoint, str(layer.state)
    (root / "large").write_bytes(os.urandom(20_000))
    layer.run("version", "create", state, "first")
    pack = max((tmp_path / "kept/packs").iterdir(), key=lambda one: one.stat().st_size)
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.write_bytes(content)
    (root / "large").write_bytes(os.urandom(20_000))
    done = layer.run("scrub", state, "--repair", check=False)
    assert done.returncode == 49
    assert "version first: fid" in done.stdout
    assert "no file of the live tree has them" in done.stdout
