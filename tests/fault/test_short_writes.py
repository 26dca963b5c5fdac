"""A system call that writes may take less than it is given, and say nothing: as a disk does that is
nearly full. Nothing takes that for all."""

import ast
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import fusejournal
from fusejournal.disk import calls
from tests.support.filesystems import filesystem, fill
from tests.support.layer import Layer

_WRITING = frozenset({"write", "pwrite", "pwritev", "sendfile", "copy_file_range", "splice"})
_WHOLE_BY_NATURE = {
    "layer/connection.py": "the kernel takes an answer whole or refuses it",
    "layer/handshake.py": "the kernel takes an answer whole or refuses it",
    "nfs/delegations.py": "less than a pipe takes at once",
}
"""Calls whose result need not be looked at, and why."""


def _unlooked_at() -> Iterator[str]:
    root = Path(fusejournal.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
                continue
            called = node.value.func
            if isinstance(called, ast.Attribute) and called.attr in _WRITING:
                owner = called.value
                if isinstance(owner, ast.Name) and owner.id in ("os", "storage"):
                    yield str(path.relative_to(root))


def test_every_write_is_looked_at() -> None:
    assert set(_unlooked_at()) == set(_WHOLE_BY_NATURE)


def test_write_all_writes_all_or_raises(tmp_path: Path) -> None:
    with filesystem("tmpfs", tmp_path, "disk", 1) as disk:
        fill(disk / "filler", 100_000)
        fd = os.open(disk / "f", os.O_RDWR | os.O_CREAT)
        data = os.urandom(200_000)
        assert 0 < os.pwrite(fd, data, 0) < len(data)  # or this shows nothing
        with pytest.raises(OSError) as caught:  # noqa: PT011 -- the errno is looked at
            calls.write_all("test", fd, data, 0)
        assert caught.value.errno == errno.ENOSPC
        os.truncate(disk / "filler", 0)
        calls.write_all("test", fd, data, 0)
        assert os.pread(fd, len(data) + 1, 0) == data
        calls.write_all("test", fd, memoryview(data))
        assert os.lseek(fd, 0, os.SEEK_CUR) == len(data)
        os.close(fd)


@pytest.mark.mount
def test_undo_on_a_nearly_full_disk_brings_all_back_or_nothing(tmp_path: Path) -> None:
    with (
        filesystem("tmpfs", tmp_path, "disk", 16) as disk,
        Layer(tmp_path, backing=disk / "backing") as layer,
    ):
        layer.start()
        precious, rewritten = layer.mountpoint / "precious", layer.mountpoint / "rewritten"
        content = os.urandom(1 << 20)
        precious.write_bytes(content)
        rewritten.write_bytes(content)
        first = layer.head_seq() + 1
        precious.unlink()
        os.truncate(rewritten, 0)
        chosen = f"{first}-{layer.ask()['head_seq']}"
        fill(disk / "filler", 500_000)
        for _ in range(2):
            failed = layer.run("undo", "volume", chosen, "--apply", check=False)
            assert failed.returncode == 1
            assert "No space left" in failed.stderr
            assert not precious.exists()
            for staging in layer.mountpoint.glob(".fusejournal-undo.*"):
                for left in staging.iterdir():
                    left.unlink()
                staging.rmdir()
        (disk / "filler").unlink()
        layer.run("undo", "volume", chosen, "--apply")
        assert precious.read_bytes() == content
        assert rewritten.read_bytes() == content
        layer.stop()
