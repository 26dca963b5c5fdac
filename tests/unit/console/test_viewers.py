"""A viewer sees names of extended attributes, and no value of one, whichever route of the API is
asked, and in whichever way."""

import base64
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from fusejournal.admin.versions import VolumeVersions
from fusejournal.console.viewer_sight import HIDDEN_FIELDS, seen_by_viewer
from fusejournal.node.state_dir import load_state
from fusejournal.operations import OPERATIONS, Create, Setxattr
from fusejournal.types import ROOT_FID, Caller
from tests.support.api_requests import requests_of
from tests.support.consoles import RunningConsole, running_console
from tests.support.nodes import make_volume
from tests.support.volumes import open_volume

pytestmark = pytest.mark.mount
_SECRET = b"anna's secret"
_OTHER = b"it was here first"
_USER = Caller(1001, 1001, 55)
_NOT_VALUES = frozenset(("name", "new_name", "target", "reason", "replaced_path"))
"""Fields of operations that are bytes and no values of extended attributes."""


def _make_volume(root: Path, store: Path) -> None:
    """Makes the volume "data" of entries with values: of an attribute that was set, of one that a
    file had which was there first, and of one that was set before a version."""
    backing = root / "backing"
    backing.mkdir()
    (backing / "first").write_text("")
    os.setxattr(backing / "first", "user.first", _OTHER)
    make_volume(root / "state", "data")
    with open_volume(root, uuid=load_state(root / "state").uuid):
        pass  # what is there is imported
    with open_volume(root, uuid=load_state(root / "state").uuid) as volume:
        fid = volume.volume.new_fid()
        volume.volume.commit(Create(fid, ROOT_FID, b"file", 0o100644, 1001, 1001, 0, None), _USER)
        volume.volume.commit(Setxattr(fid, b"user.secret", _SECRET), _USER)
    versions = VolumeVersions("data")
    versions.kept.init(str(store), encrypt=False)
    versions.create("old", lambda _, __: None)
    with open_volume(root, uuid=load_state(root / "state").uuid) as volume:
        volume.volume.commit(Setxattr(fid, b"user.secret", _SECRET[::-1]), _USER)
    VolumeVersions("data").create("new", lambda _, __: None)


@pytest.fixture
async def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningConsole]:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "volume"))
    (tmp_path / "volume").mkdir()
    _make_volume(tmp_path / "volume", tmp_path / "store")
    async with running_console(tmp_path) as console:
        yield console


def _forms(secret: bytes) -> Iterator[bytes]:
    """Yields what a value could be written as; within base64 it begins at any of three places."""
    for one in (secret, secret[::-1]):
        yield one
        yield one.hex().encode()
        for before in range(3):
            yield base64.b64encode(b"x" * before + one)[4:-4]


def _is_in(content: bytes) -> bool:
    return any(form in content for secret in (_SECRET, _OTHER) for form in _forms(secret))


async def test_no_route_has_a_value(console: RunningConsole) -> None:
    await console.log_in("operator")
    volume = "/api/agents/hall/volumes/data"
    page = await console.get(f"{volume}/entries", count=500)
    assert _is_in(str(page).encode())  # an operator sees it: so there is something to be hidden
    seqs = [str(one["seq"]) for one in page["entries"]]
    job = await console.post("/api/agents/hall/jobs", kind="undo", volume="data", uid=1001)
    for _ in range(600):
        if not (await console.get(f"/api/agents/hall/jobs/{job['id']}"))["is_running"]:
            break
        await trio.sleep(0.1)
    versions = [one["key"] for one in (await console.get(f"{volume}/versions"))["versions"]]
    values = {
        "agent": ["hall"], "volume": ["data"], "seq": seqs, "id": [job["id"]], "peer": ["east"],
        "version": versions, "path": ["file", "first", "", "*"], "new_path": ["file"],
        "from_seq": ["1"],
        "to_seq": seqs[:1], "at": seqs[:1], "old": versions[:1], "new": versions[1:],
        "op": ["setxattr", "import"], "since": ["2020-01-01"], "until": ["2100-01-01"],
        "uid": ["1001"],
        "time": ["2100-01-01"], "mark": ["none"], "format": ["tar", "zip"], "after": ["file"],
    }  # fmt: skip
    described = await console.get("/api/openapi.json")
    await console.log_in("viewer")
    seen, answered = b"", set[str]()
    for method, path, where in requests_of(described, values):
        answer = await console.client.request(
            method, where, headers={"x-csrf-token": console.csrf},
            json={} if method == "post" else None,
        )  # fmt: skip
        where_to = f"{method} {where}: {answer.text[:2000]}"
        assert answer.status_code in (200, 400, 403, 404), where_to
        assert not _is_in(answer.content), where_to
        if answer.status_code == 200:
            answered.add(f"{method} {path}")
        seen += answer.content
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            if "x-access" in operation:
                is_for_viewers = operation["x-access"] == "viewer"
                assert (f"{method} {path}" in answered) is is_for_viewers, path
    assert b"user.secret" in seen
    assert b"user.first" in seen


async def test_what_is_hidden_is_named(console: RunningConsole) -> None:
    await console.log_in("viewer")
    found = await console.get("/api/agents/hall/volumes/data/entries", op="setxattr")
    assert {(one["name"], one["value"]) for one in found["entries"]} == {("user.secret", None)}
    assert all(one["hidden"] == ["value"] for one in found["entries"])
    (first,) = (
        one
        for one in (await console.get("/api/agents/hall/volumes/data/entries", op="import"))[
            "entries"
        ]
        if one["xattrs"]
    )
    assert first["xattrs"] == [["user.first", None]]


def test_each_field_that_is_a_value_is_known() -> None:
    for kind, operation in OPERATIONS.items():
        for name, annotation in operation.__annotations__.items():
            if "bytes" in str(annotation) and name not in _NOT_VALUES:
                assert name in HIDDEN_FIELDS, (kind, name)


def test_answers_of_other_shapes() -> None:
    entry = {"op": "import", "xattrs": "not a list", "acl": None, "path": "a"}
    seen = seen_by_viewer({"jobs": [{"actions": [entry]}]})
    assert seen["jobs"][0]["actions"][0] == {**entry, "xattrs": [], "hidden": ["xattrs"]}
    assert seen_by_viewer({"value": "of no entry"}) == {"value": "of no entry"}
