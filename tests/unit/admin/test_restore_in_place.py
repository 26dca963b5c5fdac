"""Restores in place, planned for a stopped volume, and what is said of them."""

import json
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fusejournal.admin.restore_in_place import Moment, planned_in_place
from fusejournal.cli.restore import restore_command
from fusejournal.cli.version import version
from fusejournal.errors import NotRunningError, UsageError
from fusejournal.node.state_dir import VolumeState, save_state
from fusejournal.operations import Rename, Setattr, Unlink
from fusejournal.roles.role import Role
from fusejournal.types import ROOT_FID, Fid
from tests.support.volumes import show_nothing
from tests.support.workload import UUID_OF_WORKLOADS, make_directory, make_file, workload_of


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A volume that is stopped: three files in a directory, each changed after seq 5."""
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "root"))
    workload = workload_of(
        make_directory(Fid(2), ROOT_FID, b"d"),
        *(make_file(Fid(3 + number), Fid(2), b"file%d" % number) for number in range(3)),
        make_file(Fid(6), ROOT_FID, b"beside"),
        Rename(Fid(3), Fid(2), b"file0", Fid(2), b"moved", 0, Fid(0)),
        Unlink(Fid(4), Fid(2), b"file1"),
        Setattr(Fid(5), 0o600, None, None, None, None),
        make_file(Fid(7), Fid(2), b"new"),
        Unlink(Fid(6), ROOT_FID, b"beside"),
        make_file(Fid(8), ROOT_FID, b"last"),
        make_file(Fid(9), ROOT_FID, b"unsettled"),
    )
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    places = Path("/nowhere/backing"), Path("/nowhere/mounted")
    save_state(VolumeState(state, UUID_OF_WORKLOADS, "v", *places, 1, Role.PRIMARY))
    workload.write(state / "journal")
    return state


def _restore(state: Path, *arguments: str) -> Result:
    return CliRunner().invoke(restore_command, [str(state), *arguments, "--in-place"])


def _seq(state: Path) -> str:
    """The last seq before the changes."""
    from fusejournal.admin.source import open_source

    reader = open_source(str(state)).reader
    (seq,) = [one.seq for one in reader.read(reader.first_seq, reader.head()[0])
              if getattr(one.operation, "name", b"") == b"beside"
              and not isinstance(one.operation, Unlink)]  # fmt: skip
    return str(seq)


@pytest.mark.parametrize("with_store", [False, True])
def test_a_plan_is_shown(state: Path, tmp_path: Path, with_store: bool) -> None:
    seq = _seq(state)
    if with_store:
        store = ["store", "init", str(state), "--store", str(tmp_path / "kept"), "--no-encrypt"]
        for arguments in (store, ["create", str(state), "now"]):
            done = CliRunner().invoke(version, arguments)
            assert not done.exit_code, done.output
    shown = _restore(state, "d", "--to-seq", seq).output.splitlines()
    assert sorted(line.split()[0] for line in shown[:4]) == [
        *("attributes", "create", "move", "remove"),
    ]
    assert "/d/moved -> /d/file0" in "".join(shown)
    assert shown[-1].startswith("nothing was written")
    assert f"as of seq {seq}" in shown[-2]
    told = json.loads(_restore(state, "d", "--to-seq", seq, "--json").output)
    assert told["applied"] is None
    assert {one["action"] for one in told["changes"]} == {"attributes", "create", "move", "remove"}
    whole = _restore(state, "--to-seq", seq).output
    assert "/beside" in whole
    if with_store:
        assert "all is as it was" in _restore(state, "d", "--to-version", "now").output


def test_what_makes_no_sense_is_refused(state: Path, tmp_path: Path) -> None:
    seq = _seq(state)
    for arguments in (
        ["--to-seq", seq, "--to-mark", "x"],
        ["--to-seq", seq, "--target", str(tmp_path / "x")],
        ["--to-version", "x"],
        [],
    ):
        assert isinstance(_restore(state, "d", *arguments).exception, UsageError), arguments
    with (
        planned_in_place(str(state), "d", Moment(to_seq=int(seq)), show_nothing) as planned,
        pytest.raises(NotRunningError),
    ):
        planned.carry_out(show_nothing)
    with pytest.raises(NotRunningError):
        planned.done()


def test_what_a_killed_restore_has_left_goes(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "fusejournal-work.left"
    (left / "work/pack").mkdir(parents=True, mode=0o700)
    left.chmod(0o700)
    (left / "lock").touch(0o600)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert _restore(state, "d", "--to-seq", _seq(state)).exit_code == 0
    assert list(tmp_path.glob("fusejournal*")) == []


def test_what_cannot_be_applied_is_refused_before_a_plan_is_shown(state: Path) -> None:
    refused = _restore(state, "d", "--to-seq", _seq(state), "--apply")
    assert isinstance(refused.exception, NotRunningError)
    assert refused.output == ""
