"""Scrubs of what lies still: journal and versions, their record, and the pace."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from fusejournal.admin import scrub as module
from fusejournal.admin.scrub import Pace, Scrub
from fusejournal.admin.scrub_record import load_scrub, save_scrub
from fusejournal.admin.status import volume_status
from fusejournal.admin.versions import VolumeVersions
from fusejournal.cli import status as status_module
from fusejournal.cli.version import version
from fusejournal.config import parse_size
from fusejournal.errors import NotRunningError, UsageError
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import list_segments
from fusejournal.node.state_dir import VolumeState, load_state, save_state
from fusejournal.node.volume_status import ScrubStatus
from fusejournal.operations import Create
from fusejournal.roles.role import Role
from fusejournal.types import ROOT_FID, Fid, Seq
from fusejournal.versions.live_tree import TouchedSince
from fusejournal.versions.records import InodeRecord
from tests.support.volumes import show_nothing
from tests.support.workload import UUID_OF_WORKLOADS, make_directory, make_file, workload_of


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A volume with a store of versions, and one version, whose layer seems to run."""
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "root"))
    files = [make_file(Fid(3 + number), Fid(2), b"file%d" % number) for number in range(60)]
    workload = workload_of(make_directory(Fid(2), ROOT_FID, b"d"), *files)
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    places = Path("/nowhere/backing"), Path("/nowhere/mounted")
    save_state(VolumeState(state, UUID_OF_WORKLOADS, "v", *places, 1, Role.PRIMARY))
    replace(workload, segment_entries=15).write(state / "journal")
    store = ["store", "init", str(state), "--store", str(tmp_path / "kept"), "--no-encrypt"]
    for arguments in (store, ["create", str(state), "one"]):
        done = CliRunner().invoke(version, arguments)
        assert not done.exit_code, done.output
    monkeypatch.setattr(module, "live_status", lambda _: SimpleNamespace(role="primary"))
    return state


def _faults(state: Path) -> tuple[str, ...]:
    work = Scrub(str(state), show_nothing, anew=True)
    work._read_journal()
    work._read_versions()
    return work.status.faults


def test_spoilt_segments_and_packs_are_named(state: Path, tmp_path: Path) -> None:
    assert _faults(state) == ()
    segment = list_segments(state / "journal")[1]
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    for pack in (tmp_path / "kept/packs").iterdir():
        content = bytearray(pack.read_bytes())
        content[24 : len(content) // 2] = bytes(len(content) // 2 - 24)
        pack.write_bytes(content)
    stray = tmp_path / "kept/versions/stray"
    stray.write_bytes(b"")
    found = _faults(state)
    assert len(found) == 3
    for line, wanted in zip(found, (segment.name, "stray", "packs/"), strict=True):
        assert wanted in line


def test_a_version_that_is_deleted_meanwhile_is_no_damage(state: Path) -> None:
    versions = VolumeVersions(str(state))
    gone: list[int] = []

    def delete(done: int, total: int | None) -> None:
        if not gone:
            gone.append(done)
            versions.delete("one")
            assert versions.collect(show_nothing).removed_packs

    work = Scrub(str(state), delete, anew=True)
    work._read_versions()
    assert gone
    assert work.status.faults == ()


def test_a_scrub_goes_on_unless_it_is_done(state: Path) -> None:
    work = Scrub(str(state), show_nothing)
    work._read_journal()
    work._go_on("versions", "some")
    again = Scrub(str(state), show_nothing)
    assert (again.status.phase, again.status.position) == ("versions", "some")
    assert again.status.bytes > 0
    assert Scrub(str(state), show_nothing, anew=True).status.phase == "journal"
    again._go_on("done")
    assert again.status.finished is not None
    assert Scrub(str(state), show_nothing).status.phase == "journal"


def test_who_cannot_be_scrubbed_is_refused(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="is a copy"):
        Scrub(str(state / "journal"), show_nothing)
    monkeypatch.setattr(module, "live_status", lambda _: SimpleNamespace(role="reader"))
    with pytest.raises(UsageError, match="read-only"):
        Scrub(str(state), show_nothing, do_repair=True)
    monkeypatch.undo()
    with pytest.raises(NotRunningError):
        Scrub(str(state), show_nothing)


def test_status_shows_the_last_scrub(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume = load_state(state)
    assert volume_status(volume).scrub is None
    begun = ScrubStatus(started=1.0, phase="tree", files=3, bytes=5000)
    save_scrub(state, begun)
    assert load_scrub(state) == begun
    assert status_module._scrub(begun).endswith(
        "stopped at the tree: 3 files, 4.9 KiB; nothing wrong"
    )
    done = replace(begun, phase="done", finished=2.0, faults=("/a: x", "/b: y"), repaired=1)
    save_scrub(state, done)
    found = volume_status(volume)
    assert found.scrub == done
    assert [line for line in found.degraded if "scrub" in line] == [
        "the last scrub found: /a: x, and 1 more: see 'fusejournal scrub --repair'"
    ]
    status_module._show(found, ())
    assert "2 faults, 1 file repaired" in capsys.readouterr().out
    # One that cannot be read costs no more than a scrub from the beginning.
    (state / "scrub.json").write_text("{")
    assert load_scrub(state) is None


def test_reading_keeps_a_pace() -> None:
    pace = Pace(1 << 20, show_nothing)
    began = time.monotonic()
    for _ in range(4):
        pace.read(1 << 16)
    assert 0.2 < time.monotonic() - began < 2
    assert pace.bytes == 1 << 18
    Pace(0, show_nothing).read(1 << 40)


def test_what_entries_are_about_is_noted(state: Path) -> None:
    reader = JournalReader(state / "journal", UUID_OF_WORKLOADS)
    touched = TouchedSince(reader, Seq(30))
    touched.look()
    head_seq = reader.head()[0]
    (last,) = reader.read(Seq(head_seq), Seq(head_seq + 1))
    (early,) = reader.read(Seq(10), Seq(11))
    for entry, wanted in ((last, True), (early, False)):
        assert isinstance(entry.operation, Create)
        record = InodeRecord(entry.operation.fid, 0, 0, 0, 0, 0, 0, (), None, None, (), True)
        assert touched.has(record) == wanted
        # Whose name is in a directory that was changed may have lost it.
        assert touched.has(record._replace(links=((Fid(2), b"name"),)))


def test_sizes_are_read_as_people_say_them() -> None:
    assert (parse_size("64MiB"), parse_size("0"), parse_size("5 KiB")) == (64 << 20, 0, 5120)
    for text in ("", "x", "5 parsec", "-1"):
        with pytest.raises(UsageError):
            parse_size(text)
