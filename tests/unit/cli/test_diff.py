"""What a diff calls a file of which only the inside changed, when directories above it moved."""

from pathlib import Path

import pytest

from fusejournal.admin.source import JournalSource
from fusejournal.cli.diff import compare
from fusejournal.operations import RENAME_EXCHANGE, Rename, Setattr
from fusejournal.types import ROOT_FID, Seq
from tests.support.volumes import SOMEBODY, open_volume

pytestmark = pytest.mark.mount


@pytest.mark.parametrize("name", ["left", "right"])
def test_directories_exchanged_above_a_file(tmp_path: Path, name: str) -> None:
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
        source = JournalSource("volume", opened.volume.journal.reader, None)
        to_seq = Seq(opened.volume.journal.head_seq + 1)
        (change,) = [one for one in compare(source, from_seq, to_seq) if one.fid == files[name]]
    other = {"left": "right", "right": "left"}[name]
    assert (change.old_path, change.new_path) == (f"{name}/file".encode(), f"{other}/file".encode())
