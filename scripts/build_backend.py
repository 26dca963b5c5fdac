"""The build backend that pyproject.toml names: setuptools, with what is written in C, and with the
modules on the way of a change compiled by mypyc.

``[tool.fusejournal] compiled`` in pyproject.toml lists those modules. They are plain Python and
stay it: mypyc compiles what mypy has checked, and with ``FUSEJOURNAL_PURE=1`` in the environment
none of them is compiled. The C module is always: there is no other way to what it does. With
``FUSEJOURNAL_OPTIMIZE=0`` the C compiler takes less time, for what is not to be fast. The build
leaves ``fusejournal/compiled.sha256`` beside them, by which the package sees at its import that a
source has changed since.

Source: PEP 517; mypyc.readthedocs.io; setuptools/build_meta.py (``run_setup`` is what each of its
hooks calls in place of a setup.py).
"""

import os
import tomllib
from hashlib import sha256
from pathlib import Path
from typing import Any

import setuptools
from setuptools import build_meta

_MANIFEST = Path("fusejournal/compiled.sha256")
_GROUP = "fusejournal_compiled"
_KERNEL = "fusejournal/native/kernel.c"

_MYPY_OPTIONS = (
    "--config-file=",
    "--ignore-missing-imports",  # the build has an environment of its own, without the dependencies
    "--python-version=3.11",
)


class _Backend(build_meta._BuildMetaBackend):  # type: ignore[misc]
    """setuptools' own, which compiles where something is built and not only described."""

    def __init__(self) -> None:
        super().__init__()
        self._builds = False

    def build_wheel(self, *arguments: Any, **named: Any) -> str:
        self._builds = True
        return str(super().build_wheel(*arguments, **named))

    def build_editable(self, *arguments: Any, **named: Any) -> str:
        self._builds = True
        return str(super().build_editable(*arguments, **named))

    def run_setup(self, setup_script: str = "setup.py") -> None:
        # By their times alone, what an earlier build left in build/ could be taken for the newer.
        force = {name: {"force": True} for name in ("build_py", "build_ext")}
        setuptools.setup(ext_modules=_extensions() if self._builds else [], options=force)


def _extensions() -> list[Any]:
    """Removes what an earlier build left beside the sources, first: a pure build must not be hidden
    by it."""
    for path in (*Path().glob(f"{_GROUP}*.so"), *Path("fusejournal").rglob("*.so"), _MANIFEST):
        path.unlink(missing_ok=True)
    extensions: list[Any] = [setuptools.Extension("fusejournal.native.kernel", [_KERNEL])]
    sources = [_KERNEL]
    if os.environ.get("FUSEJOURNAL_PURE") != "1":
        from mypyc.build import mypycify

        project = tomllib.loads(Path("pyproject.toml").read_text())
        modules = [f"fusejournal/{name}.py" for name in project["tool"]["fusejournal"]["compiled"]]
        sources += modules
        level = os.environ.get("FUSEJOURNAL_OPTIMIZE", "2")
        extensions += mypycify(
            [*_MYPY_OPTIONS, *modules], opt_level=level, debug_level="0", group_name=_GROUP
        )
    _MANIFEST.write_text(
        "".join(f"{sha256(Path(name).read_bytes()).hexdigest()}  {name}\n" for name in sources)
    )
    return extensions


_backend = _Backend()
build_wheel = _backend.build_wheel
build_editable = _backend.build_editable
build_sdist = _backend.build_sdist
get_requires_for_build_wheel = _backend.get_requires_for_build_wheel
get_requires_for_build_editable = _backend.get_requires_for_build_editable
get_requires_for_build_sdist = _backend.get_requires_for_build_sdist
prepare_metadata_for_build_wheel = _backend.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = _backend.prepare_metadata_for_build_editable
