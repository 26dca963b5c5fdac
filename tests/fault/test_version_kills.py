"""A version whose making is killed, at every storage call, or meets a full or failing disk: all
versions are as they were, and the next attempt makes it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forked import run
from tests.support.layer import Layer

pytestmark = pytest.mark.mount

_CALLS_MAX = 200


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layer]:
    """A stopped volume with a version, and changes after it."""
    base = tmp_path_factory.mktemp("volume")
    with Layer(base) as layer:
        layer.start()
        layer.run("version", "store", "init", str(layer.state), "--store", str(base / "store"))
        (layer.mountpoint / "kept").write_bytes(bytes(range(256)) * 2000)
        layer.run("version", "create", str(layer.state), "before")
        (layer.mountpoint / "new").write_bytes(bytes(range(255, 0, -1)) * 3000)
        (layer.mountpoint / "kept").rename(layer.mountpoint / "renamed")
        layer.stop()
        shutil.copytree(base / "store", base / "as-it-was")
        yield layer


def _restart(volume: Layer) -> None:
    """Have the store be as it was."""
    shutil.rmtree(volume.base / "store")
    shutil.copytree(volume.base / "as-it-was", volume.base / "store")


def _create(volume: Layer, fault: str) -> tuple[int, str]:
    environment = {**volume.environment, "FUSEJOURNAL_FAULT": fault}
    done = run(
        ["version", "create", str(volume.state), "after"], environment, check=False, timeout=60
    )
    return done.returncode, done.stderr


def _names(volume: Layer) -> list[str]:
    lines = volume.run("version", "list", str(volume.state), "--json").stdout.splitlines()
    return [json.loads(line)["name"] for line in lines]


def _check_all(volume: Layer) -> None:
    for name in _names(volume):
        volume.run("version", "verify", str(volume.state), name, "--data")
    volume.run("version", "store", "check", str(volume.state))


def test_killed_at_every_call(volume: Layer) -> None:
    killed = 0
    for number in range(1, _CALLS_MAX):
        _restart(volume)
        code, words = _create(volume, f"object.*:{number}:kill")
        if code == 0:
            break
        killed += 1
        assert code == -9, words
        assert "before" in _names(volume)
        assert _create(volume, "")[0] == 0
        assert _names(volume) == ["before", "after"]
        if number % 3 == 0:
            _check_all(volume)
    assert 15 < killed < _CALLS_MAX - 1
    _check_all(volume)


@pytest.mark.parametrize(("action", "code"), [("ENOSPC+", 41), ("EIO+", 40)])
@pytest.mark.parametrize("label", ["object.write", "object.sync", "object.link"])
def test_a_disk_that_is_full_or_fails(volume: Layer, label: str, action: str, code: int) -> None:
    _restart(volume)
    ended, words = _create(volume, f"{label}:2:{action}")
    assert ended == code
    assert words.count("\n") == 1
    assert _names(volume) == ["before"]
    assert _create(volume, "")[0] == 0
    _check_all(volume)
    left = [path.name for path in (volume.base / "store").rglob(".*")]
    assert left == []


def test_a_killed_collection_is_gone_on_with(volume: Layer) -> None:
    _restart(volume)
    assert _create(volume, "")[0] == 0
    volume.run("version", "delete", str(volume.state), "before", "--yes")
    shutil.copytree(volume.base / "store", volume.base / "to-collect")
    killed = 0
    for number in range(1, _CALLS_MAX, 4):
        shutil.rmtree(volume.base / "store")
        shutil.copytree(volume.base / "to-collect", volume.base / "store")
        environment = {**volume.environment, "FUSEJOURNAL_FAULT": f"object.*:{number}:kill"}
        collect = ["version", "collect", str(volume.state)]
        done = run(collect, environment, check=False, timeout=60)
        if done.returncode == 0:
            break
        killed += 1
        assert done.returncode == -9
        _check_all(volume)
        assert "removed" in volume.run(*collect).stdout
        _check_all(volume)
    assert 5 < killed < _CALLS_MAX // 4 - 1


def test_a_killed_init_is_done_again(volume: Layer, tmp_path: Path) -> None:
    shutil.move(volume.state / "store.json", tmp_path / "store.json")
    try:
        for number in range(1, _CALLS_MAX):
            environment = {
                **volume.environment,
                "FUSEJOURNAL_FAULT": f"[ov][be][jr]*:{number}:kill",
            }
            arguments = ["version", "store", "init", str(volume.state), "--store"]
            done = run([*arguments, str(tmp_path / "other")], environment, check=False, timeout=60)
            if done.returncode == 0:
                break
            assert done.returncode == -9
        assert 10 < number < _CALLS_MAX - 1
        assert _names(volume) == []
    finally:
        shutil.move(tmp_path / "store.json", volume.state / "store.json")
