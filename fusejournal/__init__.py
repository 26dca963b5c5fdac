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
    """Has the modules imported from their sources, also where a compiled one lies beside it."""
    for directory, _, _ in os.walk(_PACKAGE):
        finder = FileFinder(directory, (SourceFileLoader, SOURCE_SUFFIXES))
        sys.path_importer_cache[directory] = finder


def _check_compiled() -> None:
    """Ends the process if a source has changed since it was compiled: what runs would not be what
    is read. (The build writes the manifest, scripts/build_backend.py.)"""
    try:
        manifest = (_PACKAGE / "compiled.sha256").read_text()
    except FileNotFoundError:
        return
    for line in manifest.splitlines():
        digest, _, name = line.partition("  ")
        path = _PACKAGE.parent / name
        if not path.exists() or sha256(path.read_bytes()).hexdigest() != digest:
            sys.exit(
                f"fusejournal: {path} is not what was compiled: install fusejournal again"
                " (pip install -e .), or set FUSEJOURNAL_PURE=1 to run the sources"
            )


if os.environ.get("FUSEJOURNAL_PURE") == "1":
    _import_sources()
else:
    _check_compiled()
