"""Finds volumes: by name, mountpoint or state directory.

Names lead to state directories below /var/lib/fusejournal or, for others, by a symlink in its
directory ``.elsewhere``, which stays, so that a name is enough to mount the volume again when the
machine has started anew. A directory that says it is a volume which the name does not lead to is a
copy of its state: it is reported, and never taken for the volume.

Nothing here ever touches a mountpoint, which may be dead and hang or fail."""

import os
import re
from contextlib import suppress
from pathlib import Path

from fusejournal.errors import FusejournalError, UsageError, VolumeNotFoundError
from fusejournal.node.state_dir import VolumeState, load_state
from fusejournal.types import GIVEN_NAME_MAX, NAME_BYTES_MAX


def state_root() -> Path:
    """Returns the directory of volumes' states, by default."""
    return Path(os.environ.get("FUSEJOURNAL_STATE_ROOT", "/var/lib/fusejournal"))


def links_root() -> Path:
    """Returns the directory of the names of volumes with a state directory elsewhere. No volume's
    name begins with a dot."""
    return state_root() / ".elsewhere"


def default_name(mountpoint: Path) -> str:
    """A volume's name from its mountpoint, as ``systemd-escape --path`` makes one: /srv/data is
    srv-data."""
    return "-".join(part.replace("-", "\\x2d") for part in mountpoint.parts[1:]) or "-"


def check_name(name: str) -> str:
    """*name* if it can be a volume's. Raises UsageError."""
    if (
        not name
        or "/" in name
        or name.startswith(".")
        or not name.isprintable()
        or len(os.fsencode(name)) > GIVEN_NAME_MAX
    ):
        raise UsageError(
            f"{name!r} cannot be a volume's name: 1 to {GIVEN_NAME_MAX} printable characters, "
            "no '/', no leading '.'"
        )
    return name


def check_rightful(directory: Path, name: str) -> None:
    """Raise UsageError when the volume *name*, or the one in *directory*, is another directory's.
    (A symlink of that name may lead to another volume: it is made anew.)"""
    states = _known_states()
    own = next((state for state in states if state.directory == directory), None)
    for other in states:
        if other.directory == directory or not other.has_journal():
            continue  # (nothing came of the attempts there)
        is_copy = own is not None and other.is_copy_of(own)
        is_rightful = other in _rightful(other.name, states)
        is_called_so = other.directory == (state_root() / name).resolve()
        if (
            (is_copy and (other.holder() is not None or (is_rightful and other.name == name)))
            or (other.name == name and is_called_so)
            or (other.name == name and is_rightful and other.holder() is not None)
        ):
            raise UsageError(
                f"volume {name} is that of {other.directory}, not of {directory}: mount it "
                f"again by 'fusejournal mount {name}'; if it is not so any more, move the former "
                "away; a new volume needs another --name"
            )


def _known_states() -> list[VolumeState]:
    """Returns the states of all state directories that lie below the root of states or that a
    symlink there leads to, each once."""
    found: dict[Path, VolumeState] = {}
    for root in (state_root(), links_root()):
        if root.is_dir():
            for entry in sorted(root.iterdir()):
                directory = entry.resolve()
                with suppress(FusejournalError):
                    found[directory] = load_state(directory)
    return list(found.values())


def _rightful(name: str, states: list[VolumeState]) -> list[VolumeState]:
    """The states of volume *name*: those where the name leads, by being the directory's or the
    symlink's, or else all that say they are; of several, those that came to have a journal. More
    than one is a doubt."""
    named = [state for state in states if state.name == name]
    places = {(root / name).resolve() for root in (state_root(), links_root())}
    found = [state for state in named if state.directory in places] or named
    return [state for state in found if len(found) == 1 or state.has_journal()] or found


def all_volumes() -> list[VolumeState]:
    """Every volume that a name leads to, by name; more than one of a name where that is in
    doubt."""
    states = _known_states()
    return [
        state
        for name in sorted({state.name for state in states})
        for state in _rightful(name, states)
    ]


def copies_of(state: VolumeState) -> list[Path]:
    """Other state directories that say they are *state*'s volume."""
    return [
        other.directory
        for other in _known_states()
        if other.directory != state.directory
        and (other.name == state.name or other.is_copy_of(state))
    ]


def find_volume(text: str) -> VolumeState:
    """The volume that *text* means: a name, a mountpoint or the path of a state directory (with a
    slash, so that a name never means what lies in the current directory); or else what
    systemd-escape makes of one of them, as units are called: fusejournal@srv-data is the volume
    srv-data or, where there is none, what is at /srv/data. Raises VolumeNotFoundError, UsageError
    where two are meant, and FusejournalError for a volume whose state cannot be had.

    Source: systemd.unit(5), "String Escaping for Inclusion in Unit Names"."""
    if not _can_be_path(text):
        raise VolumeNotFoundError(text)
    volumes = all_volumes()
    meant = _unescape(text)
    escaped = () if meant == text else (f"/{meant}",) if "/" in meant else (meant, f"/{meant}")
    for one in (text, *escaped):
        if named := [state for state in volumes if state.name == one]:
            return _the_one(one, named)
        # Not resolved by the kernel: a dead mount at the end of the path must not be touched.
        path = Path(os.path.abspath(one))
        resolved = path.parent.resolve() / path.name
        if there := [state for state in volumes if state.mountpoint in (path, resolved)]:
            return _the_one(one, [state for state in there if state.holder()] or there)
        if "/" in one and (path / "volume.json").exists():
            return load_state(path.resolve())
        _explain(one)
    raise VolumeNotFoundError(text)


def _can_be_path(text: str) -> bool:
    try:
        parts = os.fsencode(text).split(b"/")
    except UnicodeEncodeError:
        return False
    return all(len(part) <= NAME_BYTES_MAX and b"\0" not in part for part in parts)


def find_named(name: str) -> VolumeState:
    """The volume that is called *name*, and not one that this means otherwise: for callers that may
    ask for some volumes alone, by their names, or are to name no files. Raises VolumeNotFoundError,
    and what find_volume raises."""
    try:
        check_name(name)
    except UsageError:
        raise VolumeNotFoundError(name) from None
    found = find_volume(name)
    if found.name != name:
        raise VolumeNotFoundError(name)
    return found


def _the_one(text: str, states: list[VolumeState]) -> VolumeState:
    if len(states) > 1:
        told = " and ".join(f"{state.directory} (volume {state.name})" for state in states)
        raise UsageError(
            f"{text!r} may mean {told}: name the one by its state directory, or move the other away"
        )
    return states[0]


def _explain(name: str) -> None:
    """Raise FusejournalError if *name* is a volume's, but its state cannot be had."""
    if "/" in name or name.startswith("."):
        return
    directory = state_root() / name
    if (directory / "volume.json").exists():
        load_state(directory)
    link = links_root() / name
    if link.is_symlink():
        directory = link.readlink()
        if (directory / "volume.json").exists():
            load_state(directory)
        raise FusejournalError(
            f"volume {name}: its state directory {directory} is not there: is its disk mounted?"
        )


def _unescape(instance: str) -> str:
    return os.fsdecode(
        re.sub(
            rb"\\x([0-9a-f]{2})",
            lambda code: bytes([int(code[1], 16)]),
            os.fsencode(instance).replace(b"-", b"/"),
        )
    )


def unit_instance(name: str) -> str:
    """Returns the part between ``fusejournal@`` and ``.service`` for the volume *name*."""
    if re.fullmatch(r"[A-Za-z0-9:_.\\-]+", name):
        return name
    return "".join(
        chr(byte) if re.fullmatch(rb"[A-Za-z0-9:_.]", bytes((byte,))) else rf"\x{byte:02x}"
        for byte in os.fsencode(name)
    )
