"""Commands load what they need, and no more: a start is most of what a short one takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusejournal.admin.versions import VolumeVersions
from fusejournal.types import ROOT_FID, Fid
from tests.support.bases import stopped_volume
from tests.support.workload import make_directory, make_file, workload_of

_LOADED = """
import json, sys
from fusejournal.cli.main import main
sys.argv[0] = "fusejournal"
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)))
"""
_NEVER = {"cffi", "email", "hypercorn", "pydantic", "rich", "structlog", "tomllib", "trio"}
_READS_JOURNAL = {"fusejournal.journal.format", "fusejournal.operations", "fusejournal.history"}
_MAKES_FILES = {"lmdb", "multiprocessing", "fusejournal.replay.target"}
_MAKES_VERSIONS = {"pyfastcdc", "fusejournal.versions.builder"}


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stopped volume with a version of its only file."""
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("FUSEJOURNAL_CONFIG_ROOT", str(tmp_path / "config"))
    workload = workload_of(
        make_directory(Fid(2), ROOT_FID, b"d"), make_file(Fid(3), Fid(2), b"file")
    )
    return stopped_volume(tmp_path, workload, [workload.head_seq])


def _loaded(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", _LOADED, *arguments],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("command", "unneeded"),
    [
        ("version list STATE", _MAKES_FILES | _MAKES_VERSIONS | {"fusejournal.history.query"}),
        ("version show STATE VERSION", _MAKES_FILES | _MAKES_VERSIONS),
        ("version create STATE", {"multiprocessing", "fusejournal.replay.target"}),
        (
            "restore STATE d/file --to-version VERSION --target NEW",
            _MAKES_FILES
            | _MAKES_VERSIONS
            | _READS_JOURNAL
            | {"concurrent", "logging", "shutil", "socket", "ssl", "subprocess"},
        ),
        (
            "restore STATE d/file --to-version VERSION --target NEW --json",
            _MAKES_FILES | _MAKES_VERSIONS | _READS_JOURNAL,
        ),
        ("log STATE", _MAKES_FILES | {"logging", "socket", "ssl"}),
        (
            "status",
            _MAKES_VERSIONS | {"cryptography", "difflib", "ssl", "fusejournal.versions.blocks"},
        ),
    ],
)
def test_a_command_loads_what_it_needs(
    state: Path, tmp_path: Path, command: str, unneeded: set[str]
) -> None:
    (seq,) = (one.version.seq for one in VolumeVersions(f"{state}/").all().versions)
    words = {"VERSION": str(seq), "STATE": f"{state}/", "NEW": str(tmp_path / "new")}
    loaded = _loaded(*(words.get(word, word) for word in command.split()))
    assert "fusejournal.cli.main" in loaded
    assert sorted(loaded & (_NEVER | unneeded)) == []
