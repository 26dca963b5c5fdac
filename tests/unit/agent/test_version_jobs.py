"""Versions for consoles: their list, tree, contents and differences; making, verifying and pruning
as jobs; and who may do what cannot be taken back."""

from pathlib import Path
from typing import Any

import pytest

from fusejournal.admin.versions import VolumeVersions
from fusejournal.agent import kept_versions
from fusejournal.agent.fields import Fields
from fusejournal.agent.job_kinds import KINDS, ROLES, ForbiddenJobError
from fusejournal.agent.job_process import Job
from fusejournal.agent.jobs import JobBook
from fusejournal.console.routes import ROUTES
from fusejournal.console.users import AccessRole
from fusejournal.errors import PathNotFoundError, UsageError
from fusejournal.versions.manifest import NoSuchVersionError
from tests.support.consoles import ODD_NAMES, make_story

pytestmark = pytest.mark.mount


class _HereBook(JobBook):
    """A book whose jobs a test does itself."""

    def _start(self, path: Path) -> None:
        pass


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "volume"))
    monkeypatch.setenv("FUSEJOURNAL_CONFIG_ROOT", str(tmp_path / "etc"))
    monkeypatch.setattr("os.nice", lambda _: 0)  # it would last for all tests after
    (tmp_path / "etc").mkdir()
    (tmp_path / "volume").mkdir()
    make_story(tmp_path / "volume")
    VolumeVersions("data").kept.init(str(tmp_path / "store"), encrypt=False)
    return tmp_path


def _ask(**fields: Any) -> Fields:
    return Fields({"volume": "data", **fields})


def _job(root: Path, **fields: Any) -> dict[str, Any]:
    book = _HereBook(root)
    job = book.create(_ask(access="admin", **fields))
    Job(root / "jobs" / job["id"]).run()
    return book.show(Fields({"id": job["id"]}))


def _do(root: Path, job: dict[str, Any], **fields: Any) -> dict[str, Any]:
    book = _HereBook(root)
    book.order(Fields({"id": job["id"], "order": "do", "access": "admin", **fields}))
    Job(root / "jobs" / job["id"]).run()
    return book.show(Fields({"id": job["id"]}))


def test_a_version_is_made_verified_and_looked_at(root: Path) -> None:
    assert kept_versions.versions(_ask())["versions"] == []
    made = _job(root, kind="version-create", name="first")
    assert (made["state"], made["is_new"]) == ("done", True), made["words"]
    assert made["command"] == "fusejournal version create data first"
    again = _job(root, kind="version-create", name="")
    assert (again["is_new"], "already: no entry came since" in again["words"]) == (False, True)
    found = kept_versions.versions(_ask())
    (one,) = found["versions"]
    assert (one["name"], one["protected"], one["history"]) == ("first", False, "this")
    assert found["store"]["objects"]["versions"] == 1
    tree = kept_versions.tree(_ask(version="first"))
    names = [each["name"] for each in tree["names"]]
    assert names == sorted(os_text(name) for name in ODD_NAMES)
    assert {each["type"] for each in tree["names"]} == {"file"}
    after = kept_versions.tree(_ask(version="first", after=names[1]))
    assert [each["name"] for each in after["names"]] == names[2:]
    data = b"".join(kept_versions.content(_ask(version=one["key"], path=names[-1])))
    assert data == b"odd"
    with pytest.raises(UsageError, match="restore it instead"):
        list(kept_versions.content(_ask(version="first", path="")))
    with pytest.raises(PathNotFoundError):
        kept_versions.tree(_ask(version="first", path="docs"))
    with pytest.raises(NoSuchVersionError):
        kept_versions.tree(_ask(version="second"))
    verified = _job(root, kind="version-verify", version="first", data=True)
    assert (verified["state"], verified["verified"]["files"]) == ("done", 5)
    aside = _job(root, kind="restore", path=names[-1], version="first")
    assert (aside["state"], aside["to_restore"]["content_bytes"]) == ("planned", 3)
    aside = _do(root, aside)
    assert (aside["state"], aside["names"]) == ("done", 1)
    assert "--to-version first --target" in aside["command"]


def os_text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def test_deleting_is_confirmed_and_protection_holds(root: Path) -> None:
    _job(root, kind="version-create", name="first")
    (one,) = kept_versions.versions(_ask())["versions"]
    assert kept_versions.difference(_ask(old="first", new=one["key"]))["count"] == 0
    assert kept_versions.protect(_ask(version="first"))["protected"]
    with pytest.raises(UsageError, match="is protected"):
        kept_versions.delete(_ask(version="first", confirm="first"))
    kept_versions.protect(_ask(version="first", off=True))
    for confirm in ("", "second"):
        with pytest.raises(UsageError, match="confirm it"):
            kept_versions.delete(_ask(version=one["key"], confirm=confirm))
    deleted = kept_versions.delete(_ask(version=one["key"], confirm="first"))
    assert deleted["command"] == f"fusejournal version delete data {one['key']}"
    assert kept_versions.versions(_ask())["versions"] == []


def test_a_volume_without_a_store_says_how_to_get_one(root: Path) -> None:
    (root / "volume/state/store.json").unlink()
    found = kept_versions.versions(_ask())
    assert "fusejournal version store init data" in found["error"]
    assert _job(root, kind="version-create")["state"] == "failed"


def test_pruning_is_planned_and_confirmed(root: Path) -> None:
    (root / "etc/data.toml").write_text("[versions]\nkeep_last = 1\n")
    for name in ("", "second"):
        _job(root, kind="version-create", name=name)
    planned = _job(root, kind="prune")
    assert (planned["state"], planned["is_empty"]) == ("planned", True), planned["words"]
    assert planned["prune"]["versions"][0]["kept_as"]
    for confirm in ({}, {"confirm": "x"}):
        with pytest.raises(UsageError, match="confirm it by the volume's name"):
            _do(root, planned, **confirm)
    done = _do(root, planned, confirm="data")
    assert (done["state"], done["words"]) == ("done", "")


def test_roles_of_users(root: Path) -> None:
    book = _HereBook(root)
    for kind in ("prune", "handoff", "promote", "demote", "rejoin"):
        for given in ({}, {"access": "operator"}, {"access": "root"}):
            with pytest.raises(ForbiddenJobError, match="for the role admin"):
                book.create(_ask(kind=kind, peer="east", **given))
    with pytest.raises(ForbiddenJobError):
        book.create(_ask(kind="undo", access="viewer"))
    planned = _job(root, kind="prune")
    for order in ("do", "plan", "remove"):
        with pytest.raises(ForbiddenJobError):
            book.order(Fields({"id": planned["id"], "order": order, "access": "operator"}))
    # The two sides say it alike.
    assert tuple(one.label for one in AccessRole) == ROLES
    (route,) = (one for one in ROUTES if one.call == "job-create")
    assert set(KINDS) == set(route.parameters[0].values)


def test_roles_of_nodes_without_a_layer_are_refused_in_words(root: Path) -> None:
    for kind in ("handoff", "promote", "demote"):
        job = _job(root, kind=kind, peer="east")
        assert job["state"] == "failed"
        assert "fusejournal mount data" in job["words"]
    job = _job(root, kind="rejoin")
    assert (job["state"], "knows of no primary" in job["words"]) == ("failed", True)
    with pytest.raises(UsageError, match="no peer's name"):
        _job(root, kind="handoff", peer="--force")


def test_in_place_is_planned_first(root: Path) -> None:
    for moment in ({}, {"at": 12, "version": "first"}):
        with pytest.raises(UsageError, match="give one of at"):
            _job(root, kind="in-place", path="docs", **moment)
    job = _job(root, kind="in-place", path="docs", at=12)
    assert (job["state"], job["change_count"]) == ("planned", 6), job["words"]
    assert {one["action"] for one in job["changes"]} == {"create"}
    assert "--to-seq 12 --in-place --apply" in job["command"]
    failed = _do(root, job)
    assert (failed["state"], "is not mounted" in failed["words"]) == ("failed", True)
    same = _job(root, kind="in-place", path=os_text(ODD_NAMES[0]), at=23)
    assert (same["is_empty"], "there is nothing to do" in same["words"]) == (True, True)
