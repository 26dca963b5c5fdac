"""Compiled modules are the sources that can be read: a change since is noticed at the import, and
the sources themselves can be run."""

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import fusejournal


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of two modules, with the manifest of a build."""
    directory = tmp_path / "fusejournal"
    (directory / "room").mkdir(parents=True)
    shutil.copy(Path(fusejournal.__file__), directory)
    (directory / "room" / "__init__.py").touch()
    source = directory / "room" / "module.py"
    source.write_text("value = 1\n")
    digest = sha256(source.read_bytes()).hexdigest()
    (directory / "compiled.sha256").write_text(f"{digest}  fusejournal/room/module.py\n")
    return directory


def _value(package: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "FUSEJOURNAL_PURE"}
    return subprocess.run(
        [sys.executable, "-c", "from fusejournal.room import module; print(module.value)"],
        cwd=package.parent,
        env={**kept, **environment},
        capture_output=True,
        text=True,
    )


def test_a_build_of_these_sources(package: Path) -> None:
    assert _value(package).stdout == "1\n"


def test_a_source_that_was_changed_since(package: Path) -> None:
    (package / "room" / "module.py").write_text("value = 2\n")
    done = _value(package)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "fusejournal/room/module.py is not what was compiled" in line
    assert _value(package, FUSEJOURNAL_PURE="1").stdout == "2\n"


def test_what_is_written_in_c_is_always_that_of_the_build(package: Path) -> None:
    source = package / "native" / "module.c"
    source.parent.mkdir()
    source.write_text("int value = 1;\n")
    with open(package / "compiled.sha256", "a") as manifest:
        digest = sha256(source.read_bytes()).hexdigest()
        manifest.write(f"{digest}  fusejournal/native/module.c\n")
    assert _value(package, FUSEJOURNAL_PURE="1").stdout == "1\n"
    source.write_text("int value = 2;\n")
    for environment in ({}, {"FUSEJOURNAL_PURE": "1"}):
        (line,) = _value(package, **environment).stderr.splitlines()
        assert line.endswith("install fusejournal again (pip install -e .)")


def test_nothing_was_built(package: Path) -> None:
    (package / "compiled.sha256").unlink()
    for environment in ({}, {"FUSEJOURNAL_PURE": "1"}):
        (line,) = _value(package, **environment).stderr.splitlines()
        assert line.endswith("is not compiled: install it (pip install -e .)")


def test_a_source_that_is_gone(package: Path) -> None:
    (package / "room" / "module.py").unlink()
    assert "is not what was compiled" in _value(package).stderr


def test_sources_are_run_where_compiled_modules_lie_beside_them(package: Path) -> None:
    (package / "room" / f"module{EXTENSION_SUFFIXES[0]}").write_bytes(b"no shared object")
    assert "ImportError" in _value(package).stderr
    assert _value(package, FUSEJOURNAL_PURE="1").stdout == "1\n"
