"""A volume journals what its backing is: after each operation the backing is the model's tree, and
in the end replay and mirror make the same tree, capabilities, ACLs and times included."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusejournal.disk import failpoints
from fusejournal.operations import (
    ControlOperation,
    Removexattr,
    Setattr,
    TreeOperation,
    Truncate,
    Write,
)
from fusejournal.types import ROOT_FID, Fid
from tests.support.model import Model, Refused
from tests.support.random_workloads import workloads
from tests.support.trees import Image, difference, image
from tests.support.volumes import SOMEBODY, OpenVolume, check_copies, open_volume
from tests.support.workload import Step, Workload, workspace
from tests.support.xattrs import CAPABILITIES, CAPABILITY, DEFAULT_ACL, make_acl

pytestmark = pytest.mark.mount


def timeless(tree: Image) -> Image:
    """Entries' times are the volume's own."""
    return {
        path: {key: value for key, value in item.items() if key != "mtime"}
        for path, item in tree.items()
    }


def commit(live: OpenVolume, model: Model, step: Step) -> None:
    """Commit the operation of *step*, and refuse it by a call that fails where the workload has it
    refused."""
    operation = step.operation
    assert not isinstance(operation, ControlOperation)
    planned = step.void is not None and step.void.errno == errno.ENOSPC
    after = model.copy()
    try:
        after.apply(operation, 0, step.data)
    except Refused:
        refused = True
    else:
        refused = planned
    before = image(live.backing)
    if planned:
        failpoints.listen(failpoints.PlannedFault("apply.*", 1, "ENOSPC"))
    try:
        live.volume.commit(operation, step.who, step.data)
    except OSError:
        assert refused, operation
        assert not difference(image(live.backing), before), operation
    else:
        assert not refused, operation
        model.become(after)
        found = timeless(image(live.backing))
        assert not difference(found, timeless(model.image())), operation
    finally:
        failpoints.listen(None)


@settings(max_examples=25)
@given(workload=workloads(max_size=60, imports=0))
def test_backing_replay_and_mirror_are_one_tree(workload: Workload) -> None:
    with workspace() as base, open_volume(base / "live") as live:
        model = Model()
        for step in workload.steps:
            if not isinstance(step.operation, ControlOperation):
                commit(live, model, step)
        check_copies(live.directory, live.volume.journal.uuid, base)


# -- what was there before the volume --------------------------------------------------------------


def _files(backing: Path) -> list[Path]:
    return [backing / name for name in ("program", "empty", "sparse", "d/program", "fifo")]


def _fill(backing: Path) -> None:
    """Files with capabilities and ACLs, as an administrator may have them."""
    (backing / "d").mkdir()
    os.setxattr(backing / "d", DEFAULT_ACL, make_acl(7, 6, 5, 4, 1))
    for number, path in enumerate(_files(backing)):
        if path.name == "fifo":
            os.mkfifo(path)
            continue
        path.write_bytes(b"" if path.name == "empty" else os.urandom(5000))
        if path.name == "sparse":
            os.truncate(path, 3 << 20)
        os.chown(path, 1000, 1000)
        path.chmod(0o6755)
        os.setxattr(path, CAPABILITY, CAPABILITIES[number % 2])


_CHANGES = st.lists(
    st.tuples(
        st.sampled_from(("d", "program", "empty", "sparse", "d/program", "fifo")),
        st.sampled_from(("write", "truncate", "chown", "chmod", "removexattr", "nothing")),
    ),
    max_size=8,
)


def _operation(fid: Fid, what: str) -> TreeOperation:
    match what:
        case "write":
            return Write(fid, 100, 0o755)
        case "truncate":
            return Truncate(fid, 10, 0o755)
        case "chown":
            return Setattr(fid, 0o755, 0, None, None, None)
        case "removexattr":
            return Removexattr(fid, CAPABILITY)
    return Setattr(fid, 0o700, None, None, None, None)


@settings(max_examples=15)
@given(changes=_CHANGES)
def test_imported_capabilities(changes: list[tuple[str, str]]) -> None:
    with workspace() as base:
        (base / "live" / "backing").mkdir(parents=True)
        _fill(base / "live" / "backing")
        before = image(base / "live" / "backing")
        with open_volume(base / "live") as live:
            assert not difference(image(live.backing), before)
            for path, what in changes:
                fid = _fid_at(live, path)
                if what in ("write", "truncate") and path in ("d", "fifo"):
                    continue
                live.volume.commit(_operation(fid, what), SOMEBODY, b"x" * (what == "write"))
            check_copies(live.directory, live.volume.journal.uuid, base)


def _fid_at(live: OpenVolume, path: str) -> Fid:
    fid = ROOT_FID
    for name in path.split("/"):
        found = live.volume.catalog.lookup(fid, name.encode())
        assert found is not None
        fid = found
    return fid
