"""The machine's boot. Source: proc(5), /proc/sys/kernel/random/boot_id."""

import os
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Returns a name for this boot of the machine, which no other has had or will have. Raises
    OSError."""
    return _BOOT_ID.read_text().strip()


def run_directory() -> Path:
    """Returns the directory, root's alone, of what goes with a boot; tests set
    FUSEJOURNAL_RUN_ROOT."""
    return Path(os.environ.get("FUSEJOURNAL_RUN_ROOT", "/run/fusejournal"))
