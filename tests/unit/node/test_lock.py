"""The lock's record, while a start waits."""

import os
from pathlib import Path

from fusejournal.node.lock import hold, holder_of, note_wait


def test_a_mountpoint_of_other_bytes(tmp_path: Path) -> None:
    """A name that is no UTF-8 is a place as any other."""
    mountpoint = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    with hold(tmp_path, "volume", mountpoint, lambda: None):
        note_wait(tmp_path, "the votes of others")
        holder = holder_of(tmp_path)
        assert holder is not None
        assert holder["waits_for"] == "the votes of others"
        assert holder["mountpoint"] == str(mountpoint)
        note_wait(tmp_path, None)
