"""Samples of an agent's answers about its machine: the states, versions and jobs of its volumes,
and what it has a layer do. Those about a journal are in answers.py.

They are made over a volume with the golden journal. Of a layer they have what the samples of its
own answers say, because none runs here."""

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from fusejournal.admin.mark import MarkMade
from fusejournal.admin.pair import PairingCode
from fusejournal.admin.source import open_source
from fusejournal.admin.versions import VolumeVersions
from fusejournal.agent import calls, kept_versions, pairing_calls
from fusejournal.agent.fields import Fields
from fusejournal.agent.job_progress import JobProgress
from fusejournal.agent.jobs import JobBook
from fusejournal.agent.line_difference import line_difference
from fusejournal.agent.overview import Overview
from fusejournal.agent.standing import standing
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node.state_dir import VolumeState, save_state
from fusejournal.replication.peer_replies import (
    OpenedCode,
    PairedWith,
    PairingState,
    PeerChanged,
)
from fusejournal.replication.peers import PeerBook
from fusejournal.roles.role import Role
from fusejournal.types import Epoch, Reign
from tests.golden.controls import REPLIES
from tests.golden.files import NOW_NS, golden
from tests.golden.page_files import PROGRESS, REQUESTS
from tests.golden.state_files import PARTING
from tests.golden.statuses import STATUSES
from tests.golden.store_objects import STORE_ID
from tests.support.entries import SAMPLES, UUID_OF_TESTS, Sample, write_samples
from tests.support.patience import PATIENCE_SECONDS

CALLS: dict[str, dict[str, Any]] = {
    "overview": {},
    "standing": {},
    "line-difference": {"path": "old", "from_seq": 2, "to_seq": 3},
    "versions": {},
    "retention": {},
    "version-tree": {"version": "friday"},
    "version-difference": {"old": "thursday", "new": "friday"},
    "version-protect": {"version": "thursday", "off": False},
    "version-delete": {"version": "friday", "confirm": "friday"},
    "mark": {"name": "friday"},
    "peer-pause": {"peer": "east"},
    "peer-resume": {"peer": "east"},
    "pair-open": {},
    "pair-state": {"id": 1},
    "pair-close": {"id": 1},
    "pair-with": {"peer": "east", "address": "10.0.0.2:7710", "code": "7K3M-Q0ZV-9X2C-HT5A"},
    "job-create": {"kind": "undo", "user": "anna", "access": "operator", **REQUESTS["undo"]},
    "job-list": {},
    "job-show": {},
    "job-order": {"order": "remove", "plan": "0a1b", "access": "operator"},
}
"""The fields of each call, but for the volume and the job, in an order in which they can come."""
_OF_THURSDAY = 14
"""The number of entries that the earlier version has."""
_OF_THE_MACHINE = {"made_by": "NODE", "added_bytes": 0, "users": {"UID": "NAME"}}
"""Values that another machine, or another zstd, makes otherwise, and what stands for them."""


class _WaitingBook(JobBook):
    """Jobs whose process does not come to them."""

    def _start(self, path: Path) -> None:
        pass


def _without_machine(value: Any, directory: Path) -> Any:
    if isinstance(value, dict):
        return {
            key: _OF_THE_MACHINE.get(key, _without_machine(one, directory))
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [_without_machine(one, directory) for one in value]
    return value.replace(str(directory), "ROOT") if isinstance(value, str) else value


def _make_journal(state: VolumeState, samples: tuple[Sample, ...]) -> None:
    state.journal_dir.mkdir(exist_ok=True)
    for path in state.journal_dir.iterdir():
        path.unlink()
    write_samples(state.journal_dir, samples).close()


def _make_volume(root: Path) -> VolumeState:
    """Makes the volume "data", which has parted from its primary, with two versions."""
    directory = root / "data"
    directory.mkdir(mode=0o700)
    (directory / "uuid").write_text(str(UUID_OF_TESTS))
    places = Path("/srv/backing"), Path("/srv/data")
    state = VolumeState(directory, UUID_OF_TESTS, "data", *places, NOW_NS, Role.PRIMARY)
    state = replace(state, reign=Reign(Epoch(2), 0xAB))
    save_state(state)
    page = WatermarkPage(state.watermarks, NOW_NS)
    page.confirm()
    page.write_fence(Reign(Epoch(7), 0xFEED))
    page.close()
    PARTING.keep(directory)
    PeerBook(directory).path.write_text(json.dumps(golden("peers-v1")))
    _make_journal(state, SAMPLES[:_OF_THURSDAY])
    VolumeVersions("data").kept.init(str(root / "store"), encrypt=False)
    VolumeVersions("data").create("thursday", lambda _, __: None)
    _make_journal(state, SAMPLES)
    VolumeVersions("data").create("friday", lambda _, __: None)
    return state


def _fixed(root: Path) -> ExitStack:
    """Returns a context in which the volumes are those in *root*, and it is always the same
    time."""
    stack = ExitStack()
    roots = {"FUSEJOURNAL_STATE_ROOT": str(root), "FUSEJOURNAL_CONFIG_ROOT": str(root / "etc")}
    (made,) = (one for one in REPLIES if isinstance(one, MarkMade))
    (changed,) = (one for one in REPLIES if isinstance(one, PeerChanged))
    opened = next(one for one in REPLIES if type(one) is OpenedCode)
    paired = next(one for one in REPLIES if isinstance(one, PairedWith))
    states = [one for one in REPLIES if isinstance(one, PairingState)]
    code = PairingCode(**vars(opened), command="fusejournal pair VOLUME cellar=10.0.0.1:7710 CODE")
    for patch in (
        mock.patch.dict(os.environ, roots),
        mock.patch("time.time_ns", return_value=NOW_NS),
        mock.patch("fusejournal.journal.clock.now_ns", return_value=NOW_NS),
        mock.patch("fusejournal.versions.manifest.uuid4", return_value=STORE_ID),
        mock.patch("secrets.token_hex", return_value="0123abcd"),
        mock.patch("fusejournal.agent.overview.volume_status", return_value=STATUSES["primary"]),
        mock.patch("fusejournal.agent.standing.volume_status", return_value=STATUSES["primary"]),
        mock.patch("fusejournal.agent.overview.nearly_full", return_value=[]),
        mock.patch("fusejournal.agent.newest_versions._WAIT_SECONDS", PATIENCE_SECONDS),
        mock.patch("fusejournal.agent.calls.set_mark", return_value=made),
        mock.patch("fusejournal.agent.calls.pause_peer", return_value=changed),
        mock.patch("fusejournal.agent.calls.resume_peer", return_value=changed),
        mock.patch("fusejournal.agent.pairing_calls.open_pairing", return_value=code),
        mock.patch("fusejournal.agent.pairing_calls.pairing_state", return_value=states[0]),
        mock.patch("fusejournal.agent.pairing_calls.close_pairing", return_value=states[-1]),
        mock.patch("fusejournal.agent.pairing_calls.pair_with", return_value=paired),
    ):
        stack.enter_context(patch)
    return stack


def make_agent_answers(root: Path) -> object:
    """Return the answer to each of these calls."""
    with _fixed(root):
        state = _make_volume(root)
        book = _WaitingBook(root / ".agent")
        source = open_source("data")
        asked: dict[str, Callable[[Fields], object]] = {
            "overview": lambda _: {"node": "cellar", "volumes": Overview().volumes()},
            "standing": partial(standing, source),
            "line-difference": partial(line_difference, source),
            "versions": kept_versions.versions,
            "retention": kept_versions.retention,
            "version-tree": kept_versions.tree,
            "version-difference": kept_versions.difference,
            "version-protect": kept_versions.protect,
            "version-delete": kept_versions.delete,
            "mark": calls._mark,
            "peer-pause": partial(calls._pause, True),
            "peer-resume": partial(calls._pause, False),
            "pair-open": pairing_calls.open_code,
            "pair-state": pairing_calls.code_state,
            "pair-close": pairing_calls.close_code,
            "pair-with": pairing_calls.use_code,
            "job-create": book.create,
            "job-list": book.list_all,
            "job-show": book.show,
            "job-order": book.order,
        }
        found: dict[str, object] = {}
        job: dict[str, Any] = {}
        for name, fields in CALLS.items():
            answer = asked[name](Fields({"volume": state.name, **job, **fields}))
            found[name] = _without_machine(answer, root)
            if name == "job-create":
                job = {"id": found[name]["id"]}  # type: ignore[index]
                JobProgress(root / ".agent" / "jobs" / job["id"]).save(**PROGRESS)
    return found
