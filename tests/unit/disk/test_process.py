"""Processes: what a layer must not inherit, and how others are started."""

import ast
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fusejournal
from fusejournal.disk.process import WORKING_DIRECTORY, python_module, shed_inheritance
from fusejournal.disk.syscalls import drop_resource_capability
from fusejournal.journal.index import INDEX_SUFFIX
from tests.support.layer import Layer

_PACKAGE = Path(fusejournal.__file__).parent
_FILES_OF_1_MIB = (1 << 20, resource.RLIM_INFINITY)
_STARTERS = {"run", "Popen", "call", "check_call", "check_output", "run_process", "open_process"}
_OWNERS = {"subprocess", "trio", "lowlevel"}


def _calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(_PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                name = getattr(owner, "id", getattr(owner, "attr", ""))
                if name in _OWNERS and node.func.attr in _STARTERS:
                    if name == "trio" and node.func.attr == "run":
                        continue  # an event loop
                    yield f"{path.relative_to(_PACKAGE)}:{node.lineno}", node


def test_no_process_is_started_in_the_current_directory() -> None:
    """Every call says where; and Python is started in one way only."""
    calls = dict(_calls())
    assert len(calls) > 5
    for where, call in calls.items():
        (directory,) = (word.value for word in call.keywords if word.arg == "cwd")
        assert ast.unparse(directory) == "WORKING_DIRECTORY", where
    for path in sorted(_PACKAGE.rglob("*.py")):
        if path.name not in ("process.py", "install.py"):
            assert "sys.executable" not in path.read_text(), path


def test_a_module_is_never_taken_from_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "fusejournal").mkdir()
    (tmp_path / "fusejournal" / "__init__.py").write_text("raise SystemExit('a stranger')\n")
    command = python_module("fusejournal", "--version")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("fusejournal "), done
    assert WORKING_DIRECTORY == "/"


def _in_a_child(work: Callable[[], object]) -> str:
    """Does *work* in a child. Returns its result, as words."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, repr(work()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as words:
        told = words.read()
    os.waitpid(child, 0)
    return told


def test_what_a_shell_had_set_is_shed(tmp_path: Path) -> None:
    def work() -> object:
        os.chdir(tmp_path)
        os.umask(0o777)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        lines = shed_inheritance()
        return (
            lines,
            os.getcwd(),
            os.umask(0),
            signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
            resource.getrlimit(resource.RLIMIT_FSIZE),
        )

    told = _in_a_child(work)
    assert told == "([], '/', 18, set(), True, (-1, -1))"


def test_a_limit_that_stays_is_told() -> None:
    def work() -> object:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 21))
        drop_resource_capability()
        return shed_inheritance(), resource.getrlimit(resource.RLIMIT_FSIZE)

    told = _in_a_child(work)
    assert "changes of files beyond 2,097,152 bytes are refused (EFBIG)" in told
    assert "'ulimit -f unlimited'" in told
    assert told.endswith("(2097152, 2097152))")


@pytest.mark.mount
def test_a_layer_started_by_hand(tmp_path: Path) -> None:
    """In a directory with modules of a stranger, with a limit on the size of files: neither
    matters."""
    hostile = tmp_path / "hostile"
    (hostile / "fusejournal").mkdir(parents=True)
    marker = tmp_path / "marker"
    (hostile / "fusejournal" / "__init__.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = "[journal]\nsegment_entries = 256\n"
    with Layer(tmp_path / "volume", config=config) as layer:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fusejournal", *layer.mount_arguments("-f")],
            cwd=hostile,
            env=layer.environment,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, _FILES_OF_1_MIB),
        )
        try:
            _await(lambda: process.poll() is not None or layer.is_mounted())
            assert process.poll() is None
            for number in range(700):
                (layer.mountpoint / str(number)).touch()
            with open(layer.mountpoint / "large", "wb") as large:
                large.write(bytes(3 << 20))
            assert (layer.mountpoint / "large").stat().st_size == 3 << 20
            assert os.readlink(f"/proc/{process.pid}/cwd") == "/"
            _await(lambda: len(list((layer.state / "journal").glob(f"*{INDEX_SUFFIX}"))) > 1)
        finally:
            process.terminate()
            process.wait()
    assert not marker.exists()


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
