"""A source tree like those that people have, worked on as they do: unpacked, built, deleted."""

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

_LIBRARY = Path(json.__file__).parent.parent
_PACKAGES = ("asyncio", "email", "json", "logging", "unittest", "xml")
_MAKEFILE = """
objects = $(patsubst %.c,%.o,$(wildcard *.c))
all: program
program: $(objects)
\tgcc -o $@ $^
\tln -sf program latest
\tln -f program released
%.o: %.c
\tgcc -c -o $@ $<
"""
_MODULES = 6


def make_archive(path: Path) -> None:
    """Put the sources into the archive *path*: parts of Python's library, and a program in C."""
    program = path.with_name("program")
    program.mkdir()
    (program / "Makefile").write_text(_MAKEFILE)
    calls = "".join(f"int part{n}(void); " for n in range(_MODULES))
    total = "+".join(f"part{n}()" for n in range(_MODULES))
    (program / "main.c").write_text(f"{calls}\nint main(void) {{ return {total} != 15; }}\n")
    for n in range(_MODULES):
        (program / f"part{n}.c").write_text(f"int part{n}(void) {{ return {n}; }}\n")
    with tarfile.open(path, "w") as archive:
        for package in _PACKAGES:
            archive.add(_LIBRARY / package, package, filter=_sources_only)
        archive.add(program, "program")
    shutil.rmtree(program)


def _sources_only(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in member.name else member


def unpack(archive: Path, place: Path) -> None:
    """Unpack as root, with owners and times."""
    place.mkdir()
    subprocess.run(["tar", "xpf", str(archive), "-C", str(place)], check=True)


def build(place: Path) -> None:
    """Compile all of it, run what came out."""
    compiling = [sys.executable, "-m", "compileall", "-q", str(place)]
    subprocess.run(compiling, check=True, stdout=subprocess.DEVNULL)
    making = ["make", "-s", "-C", str(place / "program")]
    subprocess.run(making, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([str(place / "program" / "released")], check=True)


def clean(place: Path) -> None:
    """Delete it, as ``rm -rf`` does."""
    subprocess.run(["rm", "-rf", str(place)], check=True)
