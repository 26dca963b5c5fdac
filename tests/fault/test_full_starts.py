"""A start on a disk that is full: what an orderly stop has kept lets it go through, and removals,
which make space, work."""

import json
from contextlib import suppress
from pathlib import Path

import pytest

from fusejournal.config import Config
from fusejournal.disk import calls
from fusejournal.errors import JournalFullError
from fusejournal.journal.journal import Journal
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node.holding import hold_or_make_volume
from fusejournal.node.spec import MountSpec
from fusejournal.node.state_dir import load_state
from fusejournal.operations import Clean, Operation, Unlink, Write
from fusejournal.types import ROOT_FID, SYSTEM_CALLER, Fid
from tests.support.entries import UUID_OF_TESTS
from tests.support.filesystems import filesystem, fill
from tests.support.losses import begin_another_boot
from tests.support.volumes import OpenVolume, open_volume
from tests.upgrade.releases import kept

pytestmark = pytest.mark.mount

_FILES = 60


def _append(journal: Journal, operation: Operation, data: bytes = b"") -> None:
    time_ns = journal.last_time_ns + 1
    journal.append(operation, SYSTEM_CALLER, time_ns, lambda _: b"file", data)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_the_reserve_is_there_after_an_orderly_stop(tmp_path: Path, kind: str) -> None:
    with filesystem(kind, tmp_path, "disk", 400) as disk:
        place = disk / "journal"
        place.mkdir()
        calls.overwrite_in_place(place)
        journal = Journal.create(place, UUID_OF_TESTS, JournalOptions())
        _append(journal, Write(Fid(7), 0, None), bytes(5000))
        journal.sync()
        journal.close()
        fill(disk / "filler")
        for _ in range(3):
            journal = Journal.open(place, UUID_OF_TESTS, JournalOptions(), unclean_machine=False)
            with suppress(JournalFullError):
                while True:
                    _append(journal, Write(Fid(7), 0, None), bytes(500_000))
            for _ in range(100):
                _append(journal, Unlink(Fid(7), ROOT_FID, b"file"))
            _append(journal, Clean())
            journal.sync()
            journal.close()
            with suppress(OSError):  # not even a name more
                fill(disk / "more")


def _fid(volume: OpenVolume, name: str) -> Fid:
    fid = volume.volume.catalog.lookup(ROOT_FID, name.encode())
    assert fid is not None
    return fid


def _remove_all(volume: OpenVolume) -> None:
    for number in range(_FILES):
        fid = _fid(volume, f"file{number}")
        volume.unlink(fid, f"file{number}")
        volume.volume.drop_orphan(fid)
    volume.orderly = False  # XFS takes its time to give back what was removed


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
@pytest.mark.parametrize("boot", ["none", "the same", "another"])
def test_removals_work(tmp_path: Path, kind: str, boot: str) -> None:
    with filesystem(kind, tmp_path, "disk", 400) as disk:
        with open_volume(disk, options=JournalOptions()) as volume:
            for number in range(_FILES):
                volume.create(f"file{number}", bytes(200_000))
            if boot == "none":
                fill(disk / "filler")
                _remove_all(volume)
                return
        fill(disk / "filler")
        if boot == "another":
            begin_another_boot(disk / "state")
        with open_volume(disk, options=JournalOptions()) as volume:
            with pytest.raises(OSError, match="space"):
                volume.create("new", bytes(2_000_000))
            _remove_all(volume)


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs"]
)  # btrfs takes other space for what it has not made
def test_the_state_of_an_earlier_version_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with filesystem(kind, tmp_path, "disk", 400) as disk:
        monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(disk))
        state = disk / "one"
        state.mkdir(mode=0o700)
        raw = json.loads("".join(kept("0.1.0")["mirror"]["state"]["volume.json"]["text"]))
        raw |= {"name": "one", "backing": "/backing", "mountpoint": "/mount"}
        (state / "volume.json").write_text(json.dumps(raw, indent=2))
        (state / "lock").write_text("{}".ljust(512))
        WatermarkPage(state / "marks", raw["created_ns"]).close()
        page = (state / "marks").read_bytes()
        fill(disk / "filler")
        with pytest.raises(OSError, match="space"):
            (state / "probe").write_bytes(b"x")
        places = state, Path("/backing"), Path("/mount")
        with hold_or_make_volume(MountSpec("one", *places, Config(), False, frozenset())):
            pass
        assert json.loads((state / "volume.json").read_text()) == {**raw, "format": 2}
        assert (state / "watermarks").read_bytes() == page
        assert not (state / "marks").exists()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_volume_is_mounted_at_another_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A place longer than the one before, too, as far as a sector goes."""
    with filesystem(kind, tmp_path, "disk", 400) as disk:
        monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(disk))
        places = [(Path("/b"), Path("/m")), (Path("/backing"), Path("/mount")), (Path("/b"),) * 2]
        for backing, mountpoint in places:
            spec = MountSpec("one", disk / "one", backing, mountpoint, Config(), False, frozenset())
            with hold_or_make_volume(spec) as state:
                pass
            assert load_state(disk / "one") == state
            assert (state.backing, state.mountpoint) == (backing, mountpoint)
            with suppress(OSError):
                fill(disk / "filler")
        far = Path("/", *("a" * 200,) * 3)
        spec = MountSpec("one", disk / "one", far, far, Config(), False, frozenset())
        with (
            pytest.raises(JournalFullError, match=r"mount it as before: /b at /b"),
            hold_or_make_volume(spec),
        ):
            pass
        assert load_state(disk / "one") == state
