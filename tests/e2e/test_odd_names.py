"""Every command, of a volume whose names would move the cursor, add lines or are no text at all:
what comes out is printable text, and an error is one line."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.forked import Forked
from tests.support.layer import Layer

pytestmark = pytest.mark.mount

NAMES = (
    b"\x1b[2J\x1b]0;pwn\x07",
    b"two\nfusejournal: all is well",
    b"no text \xff\xfe\x80",
    b"c1 \xc2\x9b31m",
    b"\xe2\x80\xae turned",
    b"'quoted\" $(x) `y` \\",
    b"\r\x08\x7f\ttabs",
)
_ODD = b"/".join(NAMES[:2])


def _check(out: bytes, what: object) -> None:
    shown = out.decode()  # UTF-8, all of it
    bad = [char for char in shown if not char.isprintable() and char != "\n"]
    assert not bad, (what, bad, shown)


class _Commands:
    """Runs commands as bytes, and looks at all that they say."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    def __call__(self, *arguments: str | bytes | Path, code: int = 0) -> str:
        with TemporaryDirectory() as directory:
            out, err = Path(directory, "out"), Path(directory, "err")
            words = [os.fsdecode(one) for one in arguments]
            ended = Forked(words, self._layer.environment, out=out, err=err).wait(60)
            said, told = out.read_bytes(), err.read_bytes()
        assert ended == code, (arguments, said, told)
        _check(said, arguments)
        _check(told, arguments)
        if code and not told.startswith(b"Usage: "):
            assert told.startswith(b"fusejournal: "), told
            assert told.count(b"\n") == 1, told
        return (said + told).decode()


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layer]:
    # (What is no text stays out of the mountpoint: other tests read the list of mounts.)
    with Layer(tmp_path_factory.mktemp("odd") / "\x1b[7mbase") as odd:
        odd.start()
        _work(os.fsencode(odd.mountpoint))
        yield odd


def _work(root: bytes) -> None:
    for name in NAMES:
        path = os.path.join(root, name)
        os.mkdir(path)
        for inner in NAMES:
            with open(os.path.join(path, inner), "wb") as file:
                file.write(inner)
        os.symlink(name, os.path.join(path, b"link"))
        os.setxattr(path, b"user." + name.replace(b"\0", b""), name)
        os.rename(os.path.join(path, NAMES[0]), os.path.join(path, b"moved" + NAMES[0]))
        os.unlink(os.path.join(path, NAMES[3]))


@pytest.fixture
def run(layer: Layer) -> _Commands:
    return _Commands(layer)


def test_reading_commands(run: _Commands) -> None:
    run("status")
    run("status", "volume")
    run("status", "volume", "--json")
    run("log", "volume", "-n", "1000")
    run("log", "volume", "--json")
    run("log", "volume", "--stat")
    run("log", "volume", _ODD)
    for name in NAMES:
        run("history", "volume", name)
    for seq in range(1, 40):
        run("show", "volume", str(seq), "--data")
    run("diff", "volume", "2", "70")
    run("undo", "volume", "5-30", code=22)
    run("undo", "volume", "5-30", "--on-conflict", "skip")
    run("digest", "volume")
    run("journal", "verify", "volume")
    run("journal", "dump", "volume")
    run("peer", "list", "volume")


def test_writing_commands(run: _Commands, layer: Layer) -> None:
    head = layer.head_seq()
    for number, name in enumerate(NAMES):
        target = layer.base / os.fsdecode(b"to %d " % number + name)
        run("restore", "volume", name, "--to-seq", str(head), "--target", target)
        run("restore", "volume", name, "--to-seq", str(head), "--target", target, code=20)
    target = layer.base / os.fsdecode(b"file" + NAMES[1])
    path = os.path.join(NAMES[0], NAMES[2])
    run("restore", "volume", path, "--to-seq", str(head), "--target", target)
    run("replay", "volume", layer.base / os.fsdecode(b"all" + NAMES[0]), "-v")
    run("replay", "volume", layer.base / "some", "--except", "4", "--on-conflict", "skip")


def test_errors(run: _Commands, layer: Layer) -> None:
    for name in NAMES:
        run("status", name, code=3)
        run("history", "volume", b"never" + name, code=17)
        run("restore", "volume", b"never" + name, "--to-seq", "9", "--target", "/tmp/n", code=17)
        run("restore", "volume", "--to-mark", name, "--target", "/tmp/n", code=19)
        run("restore", "volume", "--to-seq", "9", "--target", b"/nowhere" + name + b"/x", code=20)
        run("replay", b"/nowhere" + name, "/tmp/n", code=3)
        run("journal", "verify", b"/nowhere" + name, code=3)
        run("digest", b"/nowhere" + name, code=3)
        run("mount", b"/nowhere" + name, b"/nowhere" + name, "--name", "x", code=6)
        run("mount", "/nowhere", "/nowhere", "-o", name, code=2)
        run("log", "volume", "--op", name, code=2)
        run("log", "volume", "--since", name, code=19)
        run("peer", "add", "volume", name, code=2)
        run("umount", name, code=3)
        run("mark", "volume", name, code=0 if name == NAMES[5] else 2)


def test_the_names_of_processes(run: _Commands, layer: Layer) -> None:
    with _user_of(os.fsencode(layer.mountpoint)):
        assert "is in use by" in run("umount", "volume", code=4)


@contextmanager
def _user_of(directory: bytes) -> Iterator[None]:
    """A process with an odd name that has *directory* open."""
    program = (
        "import os, sys; os.chdir(sys.argv[1]); "
        r"open('/proc/self/comm', 'wb').write(b'\x1b[2J\nx\xff'); print(); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.stdin.close()


def test_a_layers_own_words(layer: Layer, run: _Commands, tmp_path: Path) -> None:
    """Its log, and what it says of a backing that it cannot take."""
    _check(layer.log.read_bytes(), "log")
    _check_lines(layer.log.read_text().splitlines())
    backing = tmp_path / os.fsdecode(NAMES[0])
    backing.mkdir()
    held = os.open(backing, os.O_RDONLY)
    mounting = ("mount", backing, backing, "--name", "other", "--state", tmp_path / "other")
    with _user_of(os.fsencode(backing)):
        assert "uses" in run(*mounting, code=4)
    os.close(held)


def _check_lines(lines: Sequence[str]) -> None:
    for line in lines:
        assert re.match(r"[0-9-]{10} |fusejournal: ", line), line
