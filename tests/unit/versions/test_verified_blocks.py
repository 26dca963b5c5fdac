"""The record of chunks that were read back when a version was verified."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from fusejournal.journal.reader import JournalReader
from fusejournal.operations import Link, Rename, Unlink, Write
from fusejournal.types import ROOT_FID, Fid, Seq
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.create import create_version
from fusejournal.versions.manifest import Version
from fusejournal.versions.packs import StoreDamagedError
from fusejournal.versions.verified_blocks import VerifiedBlocks, forgetting
from fusejournal.versions.verify import VerifiedSeries, verify_version
from tests.support.objects import MemoryStore
from tests.support.workload import UUID_OF_WORKLOADS, make_directory, make_file, workload_of

_STORE = "00000000-0000-4000-8000-000000000001"
_OTHER = "00000000-0000-4000-8000-000000000002"
_A, _B, _PACK, _NEW_PACK = (bytes([number]) * 32 for number in range(4))
_TODAY = 20_000


def _of(path: Path, day: int = _TODAY, store: str = _STORE) -> VerifiedBlocks:
    return VerifiedBlocks(path, store, day)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A record of one chunk, of today."""
    path = tmp_path / "verified"
    record = _of(path)
    assert not record.knows(_A, _PACK)
    record.add(_A, _PACK)
    record.save()
    return path


def test_what_was_read_is_known(path: Path) -> None:
    record = _of(path)
    assert record.knows(_A, _PACK)
    assert not record.knows(_B, _PACK)
    assert not record.knows(_A, _NEW_PACK)
    assert not _of(path, store=_OTHER).knows(_A, _PACK)


def test_it_is_read_again_after_a_month_and_while_the_clock_is_behind(path: Path) -> None:
    assert _of(path, _TODAY + 29).knows(_A, _PACK)
    assert not _of(path, _TODAY + 30).knows(_A, _PACK)
    assert not _of(path, _TODAY - 1).knows(_A, _PACK)


def test_a_day_to_come_has_all_be_read_again(path: Path) -> None:
    """The clock was put back: nothing says how long ago anything was read."""
    record = _of(path, _TODAY + 20)
    assert record.knows(_A, _PACK)
    record.add(_B, _PACK)
    record.save()
    assert not _of(path, _TODAY + 19).knows(_A, _PACK)
    assert _of(path, _TODAY + 20).knows(_A, _PACK)


def test_a_clock_that_stands_still_is_not_trusted_for_ever(path: Path) -> None:
    trusted = 0
    while (record := _of(path)).knows(_A, _PACK):
        record.save()
        trusted += 1
        assert trusted < 256
    assert trusted > 100
    record.add(_A, _PACK)
    record.save()
    assert _of(path).knows(_A, _PACK)


@pytest.mark.parametrize("day", [-1, 1 << 16, 1 << 40])
def test_a_day_that_cannot_be_has_all_be_read(path: Path, day: int) -> None:
    before = path.read_bytes()
    record = _of(path, day)
    assert not record.knows(_A, _PACK)
    record.add(_A, _PACK)
    record.save()
    assert not _of(path, day).knows(_A, _PACK)
    assert path.read_bytes() == before
    last = _of(path, (1 << 16) - 1)
    last.add(_A, _PACK)
    last.save()
    assert _of(path, (1 << 16) - 1).knows(_A, _PACK)


def test_damage_has_all_be_read_again(path: Path) -> None:
    under_way = _of(path)
    with pytest.raises(StoreDamagedError), forgetting(path.parent):
        raise StoreDamagedError("store", "is spoilt")
    assert under_way.is_forgotten
    assert not _of(path).knows(_A, _PACK)
    assert not _of(path).is_forgotten
    with pytest.raises(StoreDamagedError), forgetting(path.parent):
        raise StoreDamagedError("store", "is spoilt")


def test_a_look_up_is_no_reading(path: Path) -> None:
    record = _of(path, _TODAY + 20)
    assert record.knows(_A, _PACK)
    record.add(_B, _PACK)
    record.save()
    later = _of(path, _TODAY + 40)
    assert not later.knows(_A, _PACK)
    assert later.knows(_B, _PACK)


def test_what_no_verification_asks_for_any_more_goes(path: Path) -> None:
    record = _of(path)
    record.add(_B, _PACK)
    record.save()
    assert not _of(path).knows(_A, _PACK)


def test_each_byte_that_is_spoilt_costs_a_reading(path: Path) -> None:
    whole = path.read_bytes()
    assert len(whole) == 51
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert not _of(path).knows(_A, _PACK), at
        path.write_bytes(whole[:at])
        assert not _of(path).knows(_A, _PACK), at
    path.unlink()
    assert not _of(path).knows(_A, _PACK)


class _Counting(MemoryStore):
    """A store that counts the bytes of ranges that are read of data."""

    def __init__(self) -> None:
        super().__init__()
        self.read_bytes = 0

    def get_range(self, name: str, start: int, length: int) -> bytes:
        found = super().get_range(name, start, length)
        if self.objects[name].startswith(b"FJPACK1D"):
            self.read_bytes += length
        return found


def _verify(store: _Counting, version: Version, path: Path, day: int = _TODAY) -> int:
    """Verifies *version* as a pruning does. Returns the bytes of data that it read."""
    store.read_bytes = 0
    known = _of(path, day)
    verify_version(BlockReader(store), version, _nothing, with_data=True, verified=known)
    known.save()
    return store.read_bytes


def test_a_version_is_read_but_for_what_was_read_before(tmp_path: Path) -> None:
    store, path = _Counting(), tmp_path / "verified"
    workload = workload_of(
        make_directory(Fid(2), ROOT_FID, b"d"),
        make_file(Fid(3), Fid(2), b"first"),
        Write(Fid(3), 0, None),
        make_file(Fid(4), Fid(2), b"second"),
        Write(Fid(4), 0, None),
    )
    random = Random(1)
    workload.steps = [
        step._replace(data=random.randbytes(3000)) if step.data else step for step in workload.steps
    ]
    workload.write(tmp_path / "journal")
    reader = JournalReader(tmp_path / "journal", UUID_OF_WORKLOADS)
    head_seq = reader.head()[0]
    early, late = (
        create_version(store, reader, Seq(seq), "", "node", 1, _nothing).version
        for seq in (head_seq - 2, head_seq)
    )
    assert _verify(store, early, path) == 3000
    assert _verify(store, late, path) == 3000
    assert _verify(store, late, path) == 0
    assert _verify(store, late, path, _TODAY + 30) == 6000
    # What is gone is missed, whenever it was read.
    name = next(name for name in store.names("packs/") if store.objects[name][7:8] == b"D")
    whole = store.objects.pop(name)
    with pytest.raises(StoreDamagedError, match="is missing with its pack"):
        _verify(store, late, path, _TODAY + 30)
    store.objects[name] = whole
    assert _verify(store, late, path, _TODAY + 30) == 0


def _versions(store: MemoryStore, directory: Path) -> list[Version]:
    """Versions after each entry of a history with links, renames, removals and contents."""
    workload = workload_of(
        make_directory(Fid(2), ROOT_FID, b"d"),
        make_file(Fid(3), Fid(2), b"first"),
        Write(Fid(3), 0, None),
        Link(Fid(3), ROOT_FID, b"linked"),
        make_file(Fid(4), Fid(2), b"second"),
        Write(Fid(4), 0, None),
        Rename(Fid(4), Fid(2), b"second", ROOT_FID, b"moved", 0, Fid(0)),
        Write(Fid(3), 500, None),
        Unlink(Fid(3), Fid(2), b"first"),
        Unlink(Fid(4), ROOT_FID, b"moved"),
        make_file(Fid(5), ROOT_FID, b"moved"),
        Write(Fid(5), 0, None),
    )
    random = Random(1)
    workload.steps = [
        step._replace(data=random.randbytes(3000)) if step.data else step for step in workload.steps
    ]
    workload.write(directory)
    reader = JournalReader(directory, UUID_OF_WORKLOADS)
    seqs = range(1, reader.head()[0] + 1)
    return [create_version(store, reader, Seq(q), "", "node", 1, _nothing).version for q in seqs]


def test_of_versions_in_a_row_only_the_differences_are_verified(tmp_path: Path) -> None:
    store = _Counting()
    versions = _versions(store, tmp_path / "journal")
    series, known = VerifiedSeries(), _of(tmp_path / "verified")
    plain = MemoryStore()
    plain.objects = store.objects
    store.read_bytes = 0
    for one in versions:
        blocks = BlockReader(store)
        found = series.verify(blocks, one, _nothing, known)
        whole = verify_version(BlockReader(plain), one, _nothing, with_data=True)
        assert found[:2] == whole[:2] == (one.file_count, one.name_count)
    assert store.read_bytes == 4 * 3000 + 500
    before = store.read_bytes
    assert series.verify(BlockReader(store), versions[-1], _nothing, known).bytes == 0
    assert store.read_bytes == before


def test_a_row_of_versions_misses_no_damage(tmp_path: Path) -> None:
    store = MemoryStore()
    versions = _versions(store, tmp_path / "journal")
    for before, after in pairwise(versions):
        series, known = VerifiedSeries(), _of(tmp_path / "none")
        series.verify(BlockReader(store), before, _nothing, known)
        if after.names != before.names:
            # Names and files that are not of the same moment, whatever the numbers say.
            for spoilt in (
                replace(after, names=before.names, name_count=before.name_count),
                replace(after, inodes=before.inodes, file_count=before.file_count),
            ):
                with pytest.raises(StoreDamagedError):
                    series.verify(BlockReader(store), spoilt, _nothing, known)
                series.verify(BlockReader(store), before, _nothing, known)
        series.verify(BlockReader(store), after, _nothing, known)
    # What was verified has to be there yet.
    lost = {
        one: store.objects[one] for one in store.names("packs/") if store.objects[one][7:8] == b"D"
    }
    series, known = VerifiedSeries(), _of(tmp_path / "none")
    series.verify(BlockReader(store), versions[-1], _nothing, known)
    for name in lost:
        del store.objects[name]
    for _ in range(2):
        with pytest.raises(StoreDamagedError, match="is missing with its pack"):
            series.verify(BlockReader(store), versions[-1], _nothing, known)
    store.objects.update(lost)
    series.verify(BlockReader(store), versions[-1], _nothing, known)


def test_the_record_is_written_once_it_has_grown(tmp_path: Path) -> None:
    path = tmp_path / "verified"
    known = _of(path)
    written = []
    for number in range(64):
        known.add(bytes([number]) * 32, _PACK)
        known.save_grown()
        written.append(path.stat().st_size)
    assert len(set(written)) == 7
    known.save()
    assert _of(path).knows(bytes([63]) * 32, _PACK)
    path.unlink()
    assert known.is_forgotten


def _nothing(_: int, __: int | None) -> None:
    """No progress to be shown."""
