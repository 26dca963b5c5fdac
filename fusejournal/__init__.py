"""fusejournal: a journaled FUSE layer beneath an NFS-exported directory.

``ARCHITECTURE.md`` is the map: rooms and modules, what may import what, and the ways of a write, a
received batch, a restore and a start.
"""

import os
import sys
from hashlib import sha256
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from pathlib import Path

_PACKAGE = Path(__file__).parent


def _import_sources() -> None:
    """Has the modules imported from their sources, also where a compiled one lies beside it; but
    for what is written in C."""
    for directory, _, _ in os.walk(_PACKAGE):
        if directory != str(_PACKAGE / "native"):
            finder = FileFinder(directory, (SourceFileLoader, SOURCE_SUFFIXES))
            sys.path_importer_cache[directory] = finder


def _check_compiled(is_pure: bool) -> None:
    """Ends the process if a source has changed since it was compiled: what runs would not be what
    is read. (The build writes the manifest, scripts/build_backend.py.)"""
    try:
        manifest = (_PACKAGE / "compiled.sha256").read_text()
    except FileNotFoundError:
        sys.exit(f"fusejournal: {_PACKAGE} is not compiled: install it (pip install -e .)")
    for line in manifest.splitlines():
        digest, _, name = line.partition("  ")
        path = _PACKAGE.parent / name
        if is_pure and path.suffix == ".py":
            continue
        if not path.exists() or sha256(path.read_bytes()).hexdigest() != digest:
            can_run = path.suffix == ".py"
            way_out = ", or set FUSEJOURNAL_PURE=1 to run the sources" if can_run else ""
            sys.exit(
                f"fusejournal: {path} is not what was compiled: install fusejournal again"
                f" (pip install -e .){way_out}"
            )


_is_pure = os.environ.get("FUSEJOURNAL_PURE") == "1"
if _is_pure:
    _import_sources()
_check_compiled(_is_pure)
