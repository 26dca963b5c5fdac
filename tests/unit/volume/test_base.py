"""A volume whose journal begins with a base: it starts after any end, and whatever does not go
together with the base is refused and left as it was."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from fusejournal.backing.root_mark import BackingRoot
from fusejournal.errors import FusejournalError, JournalError, RecoveryError
from fusejournal.journal.base import BaseNode, JournalBase, base_path, load_base, save_base
from fusejournal.journal.journal import Journal
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import first_seq_of, list_segments
from fusejournal.journal.window import prunable_segments
from fusejournal.objects.store import StoreError
from fusejournal.operations import Write
from fusejournal.types import ROOT_FID, Epoch, Fid, Position, Seq
from fusejournal.versions.base_tree import VersionBase
from fusejournal.volume import recovery
from fusejournal.volume.base import prepare_base
from tests.support import bases
from tests.support.bases import give_base, possible_bases
from tests.support.losses import Died, begin_another_boot
from tests.support.trees import difference, image
from tests.support.volumes import SMALL_SEGMENTS, SOMEBODY, OpenVolume, open_volume

pytestmark = pytest.mark.mount


def _fids(volume: OpenVolume) -> dict[bytes, Fid]:
    """All paths, with their fids."""
    found, todo = {}, [(b"", ROOT_FID)]
    for path, fid in todo:
        found[path] = fid
        todo += [(path + b"/" + one.name, one.fid) for one in volume.volume.catalog.list(fid, 0)]
    return found


@pytest.fixture
def based(tmp_path: Path) -> tuple[Path, JournalBase]:
    """A volume that was stopped in order, with a base in the middle of its journal."""
    with open_volume(tmp_path) as volume:
        volume.work(80)
        volume.make_checkpoint()
    seqs = possible_bases(tmp_path / "state/journal")
    base = give_base(tmp_path / "state", seqs[len(seqs) // 2])
    return tmp_path, base


def test_it_goes_on_in_order(based: tuple[Path, JournalBase]) -> None:
    directory, base = based
    before = image(directory / "backing")
    with open_volume(directory) as volume:
        assert volume.opening.repairs == []
        assert volume.volume.journal.reader.first_seq == base.seq + 1
        fids = _fids(volume)
        volume.work(5, start=80)
    with open_volume(directory) as volume:
        assert fids.items() <= _fids(volume).items()
    for path, item in image(directory / "backing").items():
        assert path == b"." or path not in before or before[path] == item


@pytest.mark.parametrize("end", ["lost catalog", "killed", "another boot"])
def test_after_any_end(based: tuple[Path, JournalBase], end: str) -> None:
    directory, base = based
    with open_volume(directory, orderly=end == "lost catalog") as volume:
        fid = volume.create("later", b"later")
        volume.unlink(fid, "later")
        volume.create("last", b"x" * 5000)
        fids, next_fid = _fids(volume), volume.volume.catalog.next_fid
        cookies = [one.cookie for one in volume.volume.catalog.list(ROOT_FID, 0)]
    before = image(directory / "backing")
    if end != "killed":
        shutil.rmtree(directory / "state/catalog")
    if end == "another boot":
        begin_another_boot(directory / "state")
        (directory / "backing/d3/a").unlink()
        (directory / "backing/last").write_bytes(b"lost")
    with open_volume(directory) as volume:
        assert volume.opening.system_crash == (end == "another boot")
        assert _fids(volume) == fids
        assert [one.cookie for one in volume.volume.catalog.list(ROOT_FID, 0)] == cookies
        assert volume.volume.catalog.next_fid >= next_fid
        assert volume.opening.degraded == []
    assert not (found := difference(image(directory / "backing"), before)), found
    assert base.seq > 1


def test_a_catalog_that_was_begun_is_begun_anew(
    based: tuple[Path, JournalBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = based
    with open_volume(directory) as volume:
        fids = _fids(volume)
    shutil.rmtree(directory / "state/catalog")
    monkeypatch.setattr(recovery, "COMMIT_CHANGES", 10)
    nodes = VersionBase.nodes

    def dying(self: VersionBase) -> Iterator[BaseNode]:
        for number, node in enumerate(nodes(self)):
            if number == 50:
                raise Died
            yield node

    with monkeypatch.context() as patched:
        patched.setattr(VersionBase, "nodes", dying)
        with pytest.raises(Died), open_volume(directory):
            pass
    with open_volume(directory) as volume:
        assert _fids(volume) == fids


def test_what_a_removal_left_is_removed(tmp_path: Path) -> None:
    with open_volume(tmp_path) as volume:
        volume.work(80)
        volume.make_checkpoint()
    journal, whole = tmp_path / "state/journal", tmp_path / "whole"
    shutil.copytree(journal, whole)
    base = give_base(tmp_path / "state", possible_bases(journal)[1])
    for path in list_segments(whole)[:2]:
        shutil.copy2(path, journal)
    with open_volume(tmp_path) as volume:
        first, *_ = left = list_segments(journal)
        assert first_seq_of(first) == base.seq + 1
        assert volume.volume.journal.segment_count == len(left)


def _refused(directory: Path, error: type[FusejournalError], words: str) -> None:
    before = image(directory / "backing")
    with pytest.raises(error, match=words), open_volume(directory):
        pass
    assert image(directory / "backing") == before


def test_what_does_not_go_together_is_refused(based: tuple[Path, JournalBase]) -> None:
    directory, base = based
    state = directory / "state"
    path = base_path(state)
    text = path.read_text()
    path.write_text(text.replace(f'"seq": {base.seq}', f'"seq": {base.seq - 1}'))
    _refused(directory, JournalError, "its check is .*, and .* of what is there")
    path.write_text(text.replace('"format": 1', '"format": 2'))
    _refused(directory, JournalError, "a newer version")
    path.write_text("{")
    _refused(directory, JournalError, "cannot be read")
    save_base(state, base_of(base, uuid=UUID(int=1)))
    _refused(directory, JournalError, "is of volume 00000000")
    save_base(state, base_of(base, chain=base.chain ^ 1))
    _refused(directory, JournalError, "does not follow the journal's base")
    save_base(state, base)
    first = list_segments(state / "journal")[0]
    first.rename(directory / "aside")
    _refused(directory, JournalError, f"no segment begins with entry {base.seq + 1}")
    (directory / "aside").rename(first)
    with open_volume(directory) as volume:
        assert volume.opening.degraded == []


@pytest.mark.parametrize("read_only", [False, True])
def test_a_record_that_was_lost_is_missed(based: tuple[Path, JournalBase], read_only: bool) -> None:
    directory, base = based
    base_path(directory / "state").unlink()
    begin_another_boot(directory / "state")
    with pytest.raises(JournalError, match=f"begins with entry {base.seq + 1}, and nothing tells"):
        prepare_base(directory / "state", base.uuid, read_only=read_only)
    _refused(directory, JournalError, "base.json, or the segments that are missing")
    assert (directory / "state/catalog").exists()


def base_of(base: JournalBase, **changes: object) -> JournalBase:
    """*base*, but for *changes*."""
    return JournalBase(**{**vars(base), **changes})


def test_an_older_backing_is_refused(based: tuple[Path, JournalBase]) -> None:
    directory, base = based
    with open_volume(directory) as volume:
        root: BackingRoot = volume.opening.root
        early = Position(Epoch(1), Seq(base.seq - 1), 1)
        assert root.try_mark(early)
        volume.opening.page.write_rooted(Seq(0))
        volume.orderly = False
    _refused(directory, RecoveryError, f"the journal begins after entry {base.seq}")


def test_a_store_that_is_away_is_missed_when_it_is_needed(based: tuple[Path, JournalBase]) -> None:
    directory, base = based
    store = bases.STORES.pop(base.store)

    class Away:
        where = "away"

        def __getattr__(self, _: str) -> object:
            raise StoreError("away", "is not mounted")

    bases.STORES[base.store] = Away()  # type: ignore[assignment]
    with open_volume(directory, orderly=False) as volume:
        volume.create("after", b"after")
    with open_volume(directory) as volume:  # the last entry is looked for, and nothing else
        assert volume.opening.degraded == []
        fid = volume.volume.catalog.lookup(ROOT_FID, b"after")
        assert fid is not None
        volume.volume.commit(Write(fid, 0, None), SOMEBODY, b"more")
    shutil.rmtree(directory / "state/catalog")
    _refused(directory, StoreError, "is not mounted")
    bases.STORES[base.store] = store
    with open_volume(directory) as volume:
        assert volume.volume.catalog.lookup(ROOT_FID, b"after") == fid


def test_a_time_of_the_root_that_only_the_store_tells(
    based: tuple[Path, JournalBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = based
    with open_volume(directory, orderly=False) as volume:
        fid = _fids(volume)[b"/d3/a"]
        volume.volume.commit(Write(fid, 0, None), SOMEBODY, b"more")

    def away(*_: object) -> dict[Fid, int]:
        raise StoreError("away", "is not mounted")

    os.utime(directory / "backing")
    with monkeypatch.context() as patched:
        patched.setattr(recovery, "mtimes_before", away)
        with open_volume(directory, orderly=False) as volume:
            (said,) = map(str, volume.opening.degraded)
            assert "the time of the root directory stays" in said
            assert "is not mounted" in said
    with open_volume(directory) as volume:
        assert volume.opening.degraded == []


def test_the_record_is_as_it_was_written(tmp_path: Path) -> None:
    base = JournalBase(
        UUID(int=5), Epoch(3), Seq(7), 1 << 63, 9, "key", "id", "aa" * 32, "bb" * 32, Fid(11), 12
    )
    assert load_base(tmp_path) is None
    save_base(tmp_path, base)
    assert load_base(tmp_path) == base
    assert json.loads(base_path(tmp_path).read_text())["chain"] == "8000000000000000"
    assert base.position == Position(Epoch(3), Seq(7), 1 << 63)


def test_times_grow_past_a_base_that_no_entry_follows(tmp_path: Path) -> None:
    """The machine may be lost right after a segment was begun."""
    with open_volume(tmp_path) as volume:
        volume.work(2)
        uuid = volume.volume.journal.uuid
    journal_dir = tmp_path / "state/journal"
    journal = Journal.open(journal_dir, uuid, SMALL_SEGMENTS, unclean_machine=False)
    seq = journal.head_seq
    assert journal._roll(may_stay=False)
    journal.close()
    assert prunable_segments(JournalReader(journal_dir, uuid)) == []
    base = give_base(tmp_path / "state", seq, uuid)
    ahead_ns = time.time_ns() + 10**10
    save_base(tmp_path / "state", base_of(base, time_ns=ahead_ns))
    with open_volume(tmp_path) as volume:
        volume.create("after")
        (entry,) = volume.volume.journal.reader.read(Seq(seq + 1), Seq(seq + 2))
        assert entry.time_ns > ahead_ns
    with open_volume(tmp_path) as volume:
        assert volume.volume.catalog.lookup(ROOT_FID, b"after") is not None
