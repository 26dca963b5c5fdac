"""Versions of a running volume in a store at a service."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusejournal.replay.digest import digest_tree
from tests.support import bad_proxy
from tests.support.bad_proxy import BadProxy
from tests.support.configured import ConfiguredVolume
from tests.support.seaweed import SECRET, SeaweedFS

pytestmark = pytest.mark.mount


@pytest.fixture(scope="module")
def proxy(seaweed: SeaweedFS) -> Iterator[BadProxy]:
    with BadProxy(seaweed.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def volume(
    seaweed: SeaweedFS, proxy: BadProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ConfiguredVolume]:
    with ConfiguredVolume(tmp_path_factory.mktemp("volume")) as volume:
        volume.configure(seaweed.options(proxy.port))
        volume.start()
        where = ("--store", seaweed.address(), "--json")
        made = volume.run("version", "store", "init", str(volume.state), *where).stdout
        volume.made = json.loads(made)
        (volume.mountpoint / "d").mkdir()
        (volume.mountpoint / "d/file").write_bytes(os.urandom(3 << 20))
        (volume.mountpoint / "text").write_text("lines of text\n" * 10_000)
        os.link(volume.mountpoint / "text", volume.mountpoint / "d/linked")
        volume.run("version", "create", str(volume.state), "first")
        yield volume
        volume.stop()


def test_a_version_is_made_and_looked_at(volume: ConfiguredVolume) -> None:
    listed = json.loads(volume.run("version", "list", str(volume.state), "--json").stdout)
    assert listed["name"] == "first"
    shown = volume.run("version", "show", str(volume.state), "first").stdout
    assert listed["root"] in shown
    volume.run("version", "verify", str(volume.state), "first", "--data")
    kept = volume.run("version", "store", "check", str(volume.state)).stdout
    assert kept.startswith("s3://versions/tests/")
    assert SECRET not in kept


def test_it_is_restored(volume: ConfiguredVolume, tmp_path: Path) -> None:
    target = tmp_path / "restored"
    restore = ("restore", str(volume.state), "--to-version", "first", "--target")
    volume.run(*restore, str(target))
    assert digest_tree(target).digest == digest_tree(volume.mountpoint).digest


def test_it_is_restored_where_there_is_nothing_but_the_recovery_key(
    volume: ConfiguredVolume, tmp_path: Path
) -> None:
    assert volume.made["key_id"], "a bucket is encrypted if nothing else is said"
    bare = ConfiguredVolume(tmp_path)
    bare.environment |= {"FUSEJOURNAL_CONFIG_ROOT": str(tmp_path / "none")}
    config = volume.base / "config/volume.toml"
    restore = ["restore", volume.made["store"], "d", "--to-version", "first", "--config"]
    restore += [str(config), "--target", str(tmp_path / "restored")]
    missing = bare.run(*restore, check=False)
    assert (missing.returncode, missing.stderr.count("\n")) == (48, 1)
    (tmp_path / "key").write_text(volume.made["recovery_key"])
    bare.run(*restore, "--key-file", str(tmp_path / "key"))
    for name in ("file", "linked"):
        found = (tmp_path / "restored" / name).read_bytes()
        assert found == (volume.mountpoint / "d" / name).read_bytes()


def test_what_a_deleted_one_had_is_freed(volume: ConfiguredVolume) -> None:
    (volume.mountpoint / "more").write_bytes(os.urandom(2 << 20))
    volume.run("version", "create", str(volume.state), "second")
    (volume.mountpoint / "more").unlink()
    volume.run("version", "delete", str(volume.state), "second", "--yes")
    assert volume.run("version", "collect", str(volume.state)).stdout.startswith("removed ")
    volume.run("version", "verify", str(volume.state), "first", "--data")


def test_answers_that_are_lost_make_no_second_version(
    volume: ConfiguredVolume, proxy: BadProxy
) -> None:
    (volume.mountpoint / "later").write_bytes(os.urandom(200_000))
    proxy.matches = lambda exchange: exchange.method == "PUT"
    proxy.behaviours = [bad_proxy.lose_answer, bad_proxy.busy, bad_proxy.twice] * 2
    volume.run("version", "create", str(volume.state), "third")
    proxy.behaviours = []
    volume.run("version", "verify", str(volume.state), "third", "--data")


def test_spoilt_bytes_are_found(volume: ConfiguredVolume, proxy: BadProxy) -> None:
    proxy.matches = lambda exchange: exchange.method == "GET" and "/packs/" in exchange.path
    proxy.behaviours = [bad_proxy.flip] * 2
    found = volume.run("version", "verify", str(volume.state), "first", "--data", check=False)
    proxy.behaviours = []
    assert found.returncode == 42
    assert found.stderr.count("\n") == 1


def test_one_that_is_away_harms_nothing(
    volume: ConfiguredVolume, seaweed: SeaweedFS, proxy: BadProxy
) -> None:
    volume.configure(seaweed.options(1), retry_seconds=0.3)
    (volume.mountpoint / "text").write_text("changed")
    away = volume.run("version", "create", str(volume.state), "away", check=False)
    assert away.returncode == 47
    assert away.stderr.count("\n") == 1
    assert "is away" in away.stderr
    volume.configure(seaweed.options(proxy.port))
    volume.run("version", "create", str(volume.state), "back")
    names = volume.run("version", "list", str(volume.state), "--json").stdout.splitlines()
    assert [json.loads(name)["name"] for name in names].count("away") == 0
    volume.run("version", "verify", str(volume.state), "back", "--data")


def test_keys_that_others_can_read_are_not_used(
    volume: ConfiguredVolume, seaweed: SeaweedFS, proxy: BadProxy
) -> None:
    volume.configure(seaweed.options(proxy.port), mode=0o644)
    refused = volume.run("version", "list", str(volume.state), check=False)
    assert refused.returncode == 2
    assert "chmod 600" in refused.stderr
    volume.configure(seaweed.options(proxy.port))
