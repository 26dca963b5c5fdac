"""Encrypted stores of versions, by the commands, on stopped volumes."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fusejournal.admin.promote import store_hint
from fusejournal.cli import version_store
from fusejournal.cli.restore import restore_command
from fusejournal.cli.version import version
from fusejournal.errors import FusejournalError
from fusejournal.node.state_dir import VolumeState, load_state, save_state
from fusejournal.objects.store import ObjectStore
from fusejournal.roles.role import Role
from fusejournal.types import ROOT_FID, Fid
from fusejournal.versions.manifest import StoreHead, make_store
from tests.support.workload import (
    UUID_OF_WORKLOADS,
    make_directory,
    make_file,
    workload_of,
)


def _volume(base: Path, name: str) -> Path:
    """The state directory of a volume with 30 files."""
    files = [make_file(Fid(3 + number), Fid(2), b"file%d" % number) for number in range(30)]
    state = base / name
    state.mkdir(mode=0o700)
    places = Path("/nowhere/backing"), Path("/nowhere/mounted")
    save_state(VolumeState(state, UUID_OF_WORKLOADS, name, *places, 1, Role.PRIMARY))
    workload_of(make_directory(Fid(2), ROOT_FID, b"d"), *files).write(state / "journal")
    return state


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("FUSEJOURNAL_CONFIG_ROOT", str(tmp_path / "config"))
    return _volume(tmp_path, "v")


def _run(*arguments: str | Path, answer: str | None = None) -> str:
    done = _try(*arguments, answer=answer)
    assert done.exit_code == 0, done
    return done.output


def _try(*arguments: str | Path, answer: str | None = None) -> Result:
    return CliRunner().invoke(version, [str(one) for one in arguments], input=answer)


def _fails(code: int, words: str, *arguments: str | Path, answer: str | None = None) -> None:
    error = _try(*arguments, answer=answer).exception
    assert isinstance(error, FusejournalError), error
    assert error.exit_code == code
    assert words in str(error)
    assert "\n" not in str(error)


def _init(state: Path, store: Path, *more: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(
        _run("store", "init", state, "--store", store, "--json", *more)
    )
    return found


def test_a_new_primary_without_a_store_is_told_so(state: Path, tmp_path: Path) -> None:
    known = load_state(state)
    assert f"'fusejournal version store init {known.name}'" in store_hint(known)
    _init(state, tmp_path / "store")
    assert store_hint(known) == ""
    (state / "store.json").write_text("spoilt")
    assert store_hint(known) == ""


def test_what_is_kept_is_encrypted_and_is_the_same(state: Path, tmp_path: Path) -> None:
    plain, sealed = tmp_path / "plain", tmp_path / "sealed"
    found = _init(state, plain)
    assert (found["key_id"], "recovery_key" in found) == ("", False)
    wanted = json.loads(_run("create", state, "one", "--json"))
    (state / "store.json").unlink()
    found = _init(state, sealed, "--encrypt")
    assert found["recovery_key"].startswith("FJK1-")
    made = json.loads(_run("create", state, "one", "--json"))
    assert made["root"] == wanted["root"]
    _run("verify", state, "one", "--data")
    _run("store", "check", state)
    assert _run("collect", state).startswith("removed 0")
    beneath = b"".join(path.read_bytes() for path in sealed.rglob("*") if path.is_file())
    for secret in (b"FJPACK", b"FJINDEX", made["root"].encode(), b"made_by"):
        assert secret not in beneath
    names = " ".join(str(path) for path in sealed.rglob("*"))
    assert UUID_OF_WORKLOADS.hex in " ".join(str(path) for path in plain.rglob("*"))
    assert UUID_OF_WORKLOADS.hex not in names
    # Once more at the same place: the same key, and nothing to show.
    assert "recovery_key" not in _init(state, sealed)
    assert found["key_id"] in _run("store", "show", state)
    _fails(2, "and is encrypted", "store", "init", state, "--store", sealed, "--no-encrypt")
    (state / "store.json").unlink()
    init = ("store", "init", state, "--store", plain)
    _fails(2, "is not encrypted", *init, "--encrypt")
    (tmp_path / "key").write_text(found["recovery_key"])
    _fails(2, "no key of it", *init, "--key-file", tmp_path / "key")


def test_the_key_goes_out_and_comes_back(state: Path, tmp_path: Path) -> None:
    _fails(48, "has no key", "key", "show", state)
    found = _init(state, tmp_path / "store", "--encrypt")
    _run("create", state, "one")
    assert found["key_id"] in _run("key", "show", state)
    assert json.loads(_run("key", "show", state, "--json")) == {"key_id": found["key_id"]}
    assert _run("key", "export", state).strip() == found["recovery_key"]
    _run("key", "export", state, "--output", tmp_path / "out")
    _fails(48, "there already", "key", "export", state, "--output", tmp_path / "out")
    (state / "store.key").unlink()
    _fails(48, "which is not here", "list", state)
    other = _volume(tmp_path, "other")
    _init(other, tmp_path / "another", "--encrypt")
    _fails(48, "and this is key", "key", "import", state, answer=_run("key", "export", other))
    _fails(48, "is no recovery key", "key", "import", state, answer="FJK1-nonsense")
    _run("key", "import", state, tmp_path / "out")
    _run("verify", state, "one", "--data")
    # One that is spoilt, or of another store, gives way to that of the store alone.
    (state / "store.key").write_text("spoilt")
    _fails(48, "no recovery key", "list", state)
    _run("key", "import", state, answer=found["recovery_key"])
    assert "one" in _run("list", state)
    (state / "store.json").unlink()
    _fails(48, "move store.key away", "key", "import", state, answer=_run("key", "export", other))


def test_volumes_share_a_store(state: Path, tmp_path: Path) -> None:
    found = _init(state, tmp_path / "store", "--encrypt")
    made = json.loads(_run("create", state, "one", "--json"))
    other = _volume(tmp_path, "other")
    init = ("store", "init", other, "--store", tmp_path / "store")
    _fails(48, "which is not here", *init)
    assert not (other / "store.json").exists()
    (tmp_path / "key").write_text(found["recovery_key"])
    _run(*init, "--key-file", tmp_path / "key")
    again = json.loads(_run("create", other, "one", "--json"))
    assert (again["root"], again["is_new"]) == (made["root"], False)


def test_a_key_is_kept_before_anything_is_made_with_it(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine may die while the store is made: it is made with the same key then."""

    def die(*_: object) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr("fusejournal.admin.version_store.make_store", die)
        assert _try("store", "init", state, "--store", tmp_path / "store", "--encrypt").exit_code
    key = (state / "store.key").read_text()
    assert _init(state, tmp_path / "store", "--encrypt")["recovery_key"] == key.strip()


def test_another_node_that_is_first_keeps_its_key(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def second(store: ObjectStore, key_id: str) -> StoreHead:
        make_store(store, "00112233aabbccdd")
        return make_store(store, key_id)

    monkeypatch.setattr("fusejournal.admin.version_store.make_store", second)
    init = ("store", "init", state, "--store", tmp_path / "store", "--encrypt")
    _fails(48, "00112233aabbccdd", *init)
    assert not (state / "store.key").exists()


def test_it_is_asked(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version_store, "_somebody_is_there", lambda: True)
    said = _run("store", "init", state, "--store", tmp_path / "store", answer="y\n")
    assert "encrypt what is kept there? [y/N]" in said
    assert "recovery key: FJK1-" in said
    _run("store", "init", state, "--store", tmp_path / "store")


def test_a_machine_that_has_only_the_store_and_its_key(state: Path, tmp_path: Path) -> None:
    found = _init(state, tmp_path / "store", "--encrypt")
    made = json.loads(_run("create", state, "one", "--json"))
    shutil.rmtree(state)
    store, key = tmp_path / "store", tmp_path / "key"
    _fails(48, "which is not here", "list", store)
    key.write_text("FJK1-nonsense")
    _fails(48, "is no recovery key", "list", store, "--key-file", key)
    key.write_text(found["recovery_key"].lower())
    assert str(UUID_OF_WORKLOADS) in _run("list", store, "--key-file", key)
    shown = json.loads(_run("show", store, "one", "--key-file", key, "--json"))
    assert shown["root"] == made["root"]
    _run("verify", store, "one", "--data", "--key-file", key)
    _fails(43, "no version", "show", store, "two", "--key-file", key)
    arguments = [store, "d/file3", "--to-version", "one", "--key-file", key]
    target = ["--target", tmp_path / "target"]
    done = CliRunner().invoke(restore_command, [str(one) for one in (*arguments, *target)])
    assert done.exit_code == 0, done
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["file3"]
