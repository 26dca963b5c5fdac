"""Directories as archives, and differences line by line."""

import io
import shutil
import stat
import subprocess
import tarfile
import tracemalloc
import zipfile
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest

from fusejournal.admin.source import open_source
from fusejournal.admin.versions import VolumeVersions
from fusejournal.agent import browse, kept_versions
from fusejournal.agent.archives import Member
from fusejournal.agent.fields import Fields
from fusejournal.agent.line_difference import line_difference
from fusejournal.agent.zips import zip_of
from fusejournal.errors import PathNotFoundError, UsageError
from fusejournal.node.state_dir import load_state
from fusejournal.operations import Create, Link, Setattr, Symlink, Write
from tests.support.nodes import make_volume
from tests.support.volumes import SOMEBODY, OpenVolume, open_volume

pytestmark = pytest.mark.mount
_OLD = b"one\ntwo\nthree\n"
_NEW = b"one\n2\nthree\nfour\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))
    make_volume(tmp_path / "state", "data")
    with open_volume(tmp_path, uuid=load_state(tmp_path / "state").uuid) as volume:
        _fill(volume)
    VolumeVersions("data").kept.init(str(tmp_path / "store"), encrypt=False)
    VolumeVersions("data").create("kept", lambda _, __: None)
    return tmp_path


def _fill(opened: OpenVolume) -> None:
    commit = opened.volume.commit

    def file(parent: Any, name: bytes, *writes: tuple[int, bytes]) -> Any:
        fid = opened.volume.new_fid()
        commit(Create(fid, parent, name, 0o100640, 7, 8, 0, None), SOMEBODY)
        for offset, data in writes:
            commit(Write(fid, offset, None), SOMEBODY, data)
        return fid

    docs = opened.mkdir("docs")
    text = file(docs, b"text", (0, _OLD))
    file(docs, b"holes", (300_000, b"end"), (10, b"begin"))
    file(docs, b"bytes\xff", (0, b"\xff\x00"))
    file(docs, b"empty")
    deep = opened.mkdir("deep", docs)
    file(deep, b"x" * 250, (0, b"deep"))
    link = opened.volume.new_fid()
    commit(Symlink(link, docs, b"link", b"../to\xfe", 7, 8), SOMEBODY)
    commit(Link(text, docs, b"other"), SOMEBODY)
    commit(Setattr(text, 0o4751, None, None, None, 1_234_567_890_123_456_789), SOMEBODY)
    commit(Write(text, 0, None), SOMEBODY, _NEW)


def _check(raw: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        found = {one.name: one for one in archive.getmembers()}
        assert set(found) == {
            "text", "holes", "bytes\udcff", "empty", "deep", f"deep/{'x' * 250}", "link", "other",
        }  # fmt: skip

        def content(name: str) -> bytes:
            file = archive.extractfile(found[name])
            assert file is not None
            return file.read()

        assert content("text") == content("other") == _NEW
        whole = content("holes")
        assert (len(whole), whole[10:15], whole[-3:]) == (300_003, b"begin", b"end")
        assert not whole[20:-3].strip(b"\0")
        assert content("bytes\udcff") == b"\xff\x00"
        assert content(f"deep/{'x' * 250}") == b"deep"
    assert (found["link"].type, found["link"].linkname) == (tarfile.SYMTYPE, "../to\udcfe")
    assert (found["deep"].isdir(), found["empty"].size) == (True, 0)
    assert (found["text"].uid, found["text"].gid) == (7, 8)
    assert found["holes"].mode == 0o640


def test_an_archive_of_a_moment_and_of_a_version(root: Path) -> None:
    source = open_source("data")
    _check(b"".join(browse.archive(source, Fields({"path": "docs"}))))
    of_version = Fields({"volume": "data", "version": "kept", "path": "docs"})
    _check(b"".join(kept_versions.archive(of_version)))
    for path, error in (("docs/text", UsageError), ("none", PathNotFoundError)):
        with pytest.raises(error):
            list(browse.archive(source, Fields({"path": path})))
        with pytest.raises(error):
            list(kept_versions.archive(Fields({**of_version._raw, "path": path})))
    whole = b"".join(browse.archive(source, Fields({"path": ""})))
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        assert {"docs", "docs/text"} <= set(archive.getnames())


def _check_zip(raw: bytes, path: Path) -> None:
    path.write_bytes(raw)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        found = {one.orig_filename: one for one in archive.infolist()}
        odd = b"bytes\xff".decode("cp437")  # as it takes what is not said to be UTF-8
        assert set(found) == {
            "text", "holes", odd, "empty", "deep/", f"deep/{'x' * 250}", "link", "other",
        }  # fmt: skip
        assert archive.read("text") == archive.read("other") == _NEW
        whole = archive.read("holes")
        assert (len(whole), whole[10:15], whole[-3:]) == (300_003, b"begin", b"end")
        assert (archive.read(odd), archive.read("empty")) == (b"\xff\x00", b"")
        assert archive.read("link") == b"../to\xfe"
        modes = {name: one.external_attr >> 16 for name, one in found.items()}
        assert modes["holes"] == stat.S_IFREG | 0o640
        assert (stat.S_ISDIR(modes["deep/"]), stat.S_ISLNK(modes["link"])) == (True, True)
    if (unzip := shutil.which("unzip")) is not None:  # another's reader, where there is one
        subprocess.run([unzip, "-tq", str(path)], check=True, stdout=subprocess.DEVNULL)


def test_a_zip_archive_of_a_moment_and_of_a_version(root: Path) -> None:
    source = open_source("data")
    fields = {"volume": "data", "version": "kept", "path": "docs", "format": "zip"}
    _check_zip(b"".join(browse.archive(source, Fields(fields))), root / "moment.zip")
    _check_zip(b"".join(kept_versions.archive(Fields(fields))), root / "version.zip")
    with pytest.raises(UsageError, match="'rar'"):
        browse.archive(source, Fields({"path": "docs", "format": "rar"}))


def test_a_zip_archive_of_more_files_than_16_bits_count(tmp_path: Path) -> None:
    """Sizes and places have 64 bits in any archive."""
    members = (
        Member(b"%d" % number, stat.S_IFREG, 0o644, 0, 0, 2, 1 << 62, b"", iter((b"ab", b"more")))
        for number in range(66_000)
    )
    path = tmp_path / "large.zip"
    path.write_bytes(b"".join(zip_of(members)))
    with zipfile.ZipFile(path) as archive:
        assert len(archive.infolist()) == 66_000
        assert archive.read("65999") == b"ab"


def test_lines(root: Path) -> None:
    source = open_source("data")
    last = int(source.head_seq)
    text = next(
        int(seq)
        for seq in range(last, 0, -1)
        if isinstance(source.entry(seq).entry.operation, Setattr)
    )
    found = line_difference(source, Fields({"path": "docs/text", "from_seq": text}))
    assert found["lines"] == [
        "@@ -1,4 +1,5 @@", " one", "-two", "+2", " three", "+four", " ",
    ]  # fmt: skip
    assert found["command"] == f"fusejournal diff data {text} {last} docs/text"
    same = line_difference(source, Fields({"path": "docs/text", "from_seq": last}))
    assert same["lines"] == []
    other = Fields({"path": "docs/text", "new_path": "docs/other", "from_seq": text})
    assert line_difference(source, other)["lines"] == found["lines"]
    for path, words in (("docs/bytes\udcff", "no text"), ("docs/none", "was not there")):
        with pytest.raises((UsageError, PathNotFoundError), match=words):
            line_difference(source, Fields({"path": path, "from_seq": text}))


def test_names_in_a_zip_lead_nowhere_else_on_any_system(tmp_path: Path) -> None:
    """A name may have a backslash, or be like a drive's: another system's tool would follow it."""
    paths = (b"..\\..\\evil", b"C:\\evil", b"c:", b"plain/a:b", b"a%5Cb", b"dir\\x/file")
    members = (Member(path, stat.S_IFREG, 0o644, 0, 0, 0, 0, b"", iter(())) for path in paths)
    path = tmp_path / "names.zip"
    path.write_bytes(b"".join(zip_of(members)))
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    assert names == ["..%5C..%5Cevil", "C%3A%5Cevil", "c%3A", "plain/a:b", "a%5Cb", "dir%5Cx/file"]
    for name in names:
        windows = PureWindowsPath(name)
        assert (windows.drive, ".." in windows.parts, len(windows.parts)) == (
            "", False, name.count("/") + 1,
        )  # fmt: skip


def test_a_path_that_a_zip_cannot_have() -> None:
    """Users make such paths, directory by directory; the error says what can have them."""
    path = b"/".join([b"x" * 255] * 260)
    member = Member(path, stat.S_IFREG, 0o644, 0, 0, 0, 0, b"", iter(()))
    with pytest.raises(UsageError, match="too long for a zip: download the directory as tar"):
        list(zip_of(iter([member])))


def test_a_large_file_comes_part_by_part(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its beginning comes before the rest is read, and no more is ever kept of it, neither in
    memory nor on a disk."""
    pieces = [(at << 20, bytes([at]) * (1 << 20)) for at in (*range(40, 20, -1), *range(20))]
    pieces += [((30 << 20) - 7, b"over two parts"), (100, b"over the first")]
    with open_volume(root, uuid=load_state(root / "state").uuid) as volume:
        large = volume.create("large")
        for offset, data in pieces:
            volume.volume.commit(Write(large, offset, None), SOMEBODY, data)
    whole = bytearray(41 << 20)
    for offset, data in pieces:
        whole[offset : offset + len(data)] = data
    monkeypatch.setattr("tempfile.tempdir", str(root / "no such directory"))
    tracemalloc.start()
    try:
        came = 0
        for piece in browse.content(open_source("data"), Fields({"path": "large"})):
            assert piece == whole[came : came + len(piece)]
            came += len(piece)
            if came <= 256 << 10:
                assert tracemalloc.get_traced_memory()[1] < 8 << 20
        assert came == len(whole)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
