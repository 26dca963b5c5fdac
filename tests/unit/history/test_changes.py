"""Changes between two moments that random journals seldom hold."""

from pathlib import Path

import pytest

from fusejournal.history.changes import find_changes
from fusejournal.history.lookup import Lookup
from fusejournal.operations import RENAME_EXCHANGE, Rename, Setattr
from fusejournal.types import ROOT_FID, Fid, Seq
from tests.support.volumes import SOMEBODY, open_volume

pytestmark = pytest.mark.mount


@pytest.mark.parametrize("name", ["left", "right"])
def test_directories_exchanged_above_a_file(tmp_path: Path, name: str) -> None:
    """Only what is inside them has changed."""
    with open_volume(tmp_path) as opened:
        fids = {one: opened.mkdir(one) for one in ("left", "right")}
        files = {one: opened.create("file", b"", fid) for one, fid in fids.items()}
        from_seq = Seq(opened.volume.journal.head_seq + 1)
        opened.volume.commit(
            Rename(
                fids["left"], ROOT_FID, b"left", ROOT_FID, b"right", RENAME_EXCHANGE, fids["right"]
            ),
            SOMEBODY,
        )
        opened.volume.commit(Setattr(files[name], 0o600, None, None, None, None), SOMEBODY)
        lookup = Lookup(opened.volume.journal.reader)
        to_seq = Seq(opened.volume.journal.head_seq + 1)
        changes = find_changes(lookup, from_seq, to_seq)
    (change,) = [one for one in changes if one.fid == files[name]]
    other = {"left": "right", "right": "left"}[name]
    assert (change.old_path, change.new_path) == (f"{name}/file".encode(), f"{other}/file".encode())


def test_only_changes_below_a_path(tmp_path: Path) -> None:
    """By the old name or the new one; a name that only begins alike is not below."""
    with open_volume(tmp_path) as opened:
        fids = {one: opened.mkdir(one) for one in ("in", "inside", "out")}
        files = {one: opened.create(one, b"", fid) for one, fid in fids.items()}
        from_seq = Seq(opened.volume.journal.head_seq + 1)
        for one in ("inside", "in"):
            old, new = one.encode(), one.encode() * 2
            rename = Rename(files[one], fids[one], old, fids["out"], new, 0, Fid(0))
            opened.volume.commit(rename, SOMEBODY)
        lookup = Lookup(opened.volume.journal.reader)
        to_seq = Seq(opened.volume.journal.head_seq + 1)
        everything = find_changes(lookup, from_seq, to_seq)
        below = find_changes(lookup, from_seq, to_seq, b"in")
    paths = [(one.old_path, one.new_path) for one in everything if "R" in one.letters()]
    assert paths == [(b"in/in", b"out/inin"), (b"inside/inside", b"out/insideinside")]
    assert [(one.old_path, one.new_path) for one in below if "R" in one.letters()] == paths[:1]
