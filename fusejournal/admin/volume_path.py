"""Paths in a volume as people type them: from its root, or as they show where it is mounted."""

from fusejournal.errors import UsageError
from fusejournal.node.state_dir import VolumeState


def volume_path(state: VolumeState | None, text: str) -> bytes:
    """Returns the path from the root of the volume *state* that *text* means. None: there is no
    volume, and no place where it would be mounted. Raises UsageError."""
    path = _parse(text)
    if state is not None and text.startswith("/"):
        mountpoint = _parse(str(state.mountpoint))
        if path == mountpoint or path.startswith(mountpoint + b"/"):
            path = path[len(mountpoint) + 1 :]
    return path


def _parse(text: str) -> bytes:
    steps = [step for step in text.encode("utf-8", "surrogateescape").split(b"/") if step]
    if b".." in steps:
        raise UsageError(f"{text!r}: a path from the volume's root, without '..'")
    return b"/".join(step for step in steps if step != b".")
