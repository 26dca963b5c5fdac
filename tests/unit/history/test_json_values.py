"""The values that scripts get of entries."""

import errno
import json
from pathlib import Path

from fusejournal.history.json_values import frame_to_json, match_to_json
from fusejournal.history.lookup import Lookup
from fusejournal.history.query import Criteria, find
from fusejournal.journal.journal import Journal
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import Import, Operation, Rename, Setattr, Void, Write
from fusejournal.types import ROOT_FID, Caller, Fid, Seq
from tests.support.entries import UUID_OF_TESTS

_WHO = Caller(1000, 100, 77)
_TIME_NS = 1_700_000_000_123_456_789
_PATHS = {ROOT_FID: b"", Fid(7): b"odd \xff"}


def _journal(path: Path) -> Journal:
    journal = Journal.create(path, UUID_OF_TESTS, JournalOptions())
    operations: list[Operation] = [
        Write(Fid(7), 5, None),
        Void(Seq(1), errno.ENOSPC, 3),
        Rename(Fid(7), ROOT_FID, b"odd \xff", ROOT_FID, b"new", 0, Fid(0)),
        Setattr(Fid(7), 0o644, 5, None, None, None),
    ]
    for number, operation in enumerate(operations):
        data = b"content" if isinstance(operation, Write) else b""
        journal.append(operation, _WHO, _TIME_NS + number, _PATHS.get, data)
    return journal


def test_entries_with_their_paths(tmp_path: Path) -> None:
    lookup = Lookup(_journal(tmp_path).reader)
    cut, rename, setattr_ = (match_to_json(one) for one in find(lookup, Criteria()))
    assert cut == {
        "seq": 1, "time": "2023-11-14T22:13:20.123456789+00:00", "time_ns": _TIME_NS,
        "op": "write", "uid": 1000, "gid": 100, "pid": 77, "fid": 7, "path": "odd \udcff",
        "offset": 5, "mode": None, "bytes": 7, "refused": "ENOSPC", "written": 3,
    }  # fmt: skip
    assert (rename["path"], rename["new_path"]) == ("odd \udcff", "new")
    # The caller's, and the file's.
    assert (setattr_["uid"], setattr_["new_uid"]) == (1000, 5)
    assert json.loads(json.dumps(cut)) == cut


def test_an_entry_as_it_lies_in_its_segment(tmp_path: Path) -> None:
    xattrs = ((b"user.a", b"\xff"),)
    import_ = Import(Fid(8), ROOT_FID, b"found", 0o100644, 5, 6, 0, 9, _TIME_NS, None, xattrs, True)
    journal = _journal(tmp_path)
    journal.append(import_, _WHO, _TIME_NS + 9, _PATHS.get)
    first, _, _, _, last = map(frame_to_json, journal.reader.read(Seq(1), Seq(6)))
    assert first["fields"] == {"fid": 7, "offset": 5, "mode": None}
    assert first["paths"] == {"7": "odd \udcff"}
    assert (first["op"], first["data_bytes"], last["op"]) == ("write", 7, "import")
    assert last["fields"]["xattrs"] == [["user.a", "\udcff"]]
    assert last["chain"] == f"{journal.chain:016x}"
    assert json.loads(json.dumps(last)) == last
