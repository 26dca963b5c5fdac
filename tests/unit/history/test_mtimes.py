"""The mtime that a file or directory had at a point of the journal is the one that the backing
had."""

import os
from pathlib import Path

import pytest

from fusejournal.history.lookup import Lookup
from fusejournal.history.mtimes import mtimes_before
from fusejournal.journal.reader import JournalReader
from fusejournal.operations import Link, Rename, Rmdir, Setattr, Truncate, Write
from fusejournal.types import ROOT_FID, Fid, Seq
from tests.support.volumes import SOMEBODY, open_volume

pytestmark = pytest.mark.mount


def test_every_change_of_a_directory(tmp_path: Path) -> None:
    backing = tmp_path / "backing"
    (backing / "there").mkdir(parents=True)
    (backing / "there" / "first").write_text("imported")
    os.utime(backing / "there", ns=(5, 7_000_000_001))
    with open_volume(tmp_path) as opened:
        volume, catalog = opened.volume, opened.volume.catalog
        there = catalog.lookup(ROOT_FID, b"there")
        assert there is not None
        made = opened.mkdir("made")
        moments: list[tuple[Seq, Fid, int]] = []
        files: list[Fid] = []

        def note() -> None:
            seq = Seq(volume.journal.head_seq + 1)
            fids = [ROOT_FID, there, made, *files]
            moments.extend((seq, fid, volume.tree.stat(fid).st_mtime_ns) for fid in fids)

        note()
        assert moments[1][2] == 7_000_000_001
        file = opened.create("file", b"data", there)
        files.append(file)
        note()
        volume.commit(Link(file, made, b"link"), SOMEBODY)
        note()
        volume.commit(Rename(file, there, b"file", made, b"moved", 0, Fid(0)), SOMEBODY)
        note()
        with pytest.raises(FileExistsError):
            opened.create("moved", b"", made)
        note()
        volume.commit(Setattr(made, None, None, None, None, 12345), SOMEBODY)
        note()
        inner = opened.mkdir("inner", there)
        note()
        volume.commit(Rmdir(inner, there, b"inner"), SOMEBODY)
        opened.unlink(file, "link", made)
        note()
        volume.commit(Write(file, 3, None), SOMEBODY, b"more")
        note()
        volume.commit(Truncate(file, 1, None), SOMEBODY)
        note()
        lookup = Lookup(JournalReader(opened.journal_dir))
        for seq, fid, mtime_ns in moments:
            assert mtimes_before(lookup, [fid], seq) == {fid: mtime_ns}, (seq, fid)
