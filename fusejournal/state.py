"""The state directory of a volume: who it is, where it lies, who holds it.

::

    STATE/volume.json    identity and places, written once and at each mount (atomically)
    STATE/lock           flock'ed by the running layer; holds its pid
    STATE/journal/       segments
    STATE/catalog/       the catalog, a cache
    STATE/control.sock   the running layer's control socket
    STATE/boot           the boot in which the volume was last begun
    STATE/log            what a layer in the background had to say

Volumes are found by name, mountpoint or state directory. Names lead to state directories below
/var/lib/fusejournal or, for others, by a symlink in /run/fusejournal. Nothing here ever touches a
mountpoint, which may be dead and hang or fail: the kernel's list of mounts is asked instead."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from fusejournal.errors import FusejournalError, UsageError, VolumeBusyError, VolumeNotFoundError

if TYPE_CHECKING:
    # Configuration takes its time to load, and only who mounts needs it.
    from fusejournal.mountspec import MountSpec

_FORMAT = 1
_NAME_MAX = 128
_HOLDER_BYTES = 512


def state_root() -> Path:
    """Where the state of volumes lies by default."""
    return Path(os.environ.get("FUSEJOURNAL_STATE_ROOT", "/var/lib/fusejournal"))


def run_root() -> Path:
    """Where names of volumes with a state directory elsewhere are kept."""
    return Path(os.environ.get("FUSEJOURNAL_RUN_ROOT", "/run/fusejournal"))


@dataclass(frozen=True)
class VolumeState:
    """What volume.json says, and where it was read."""

    directory: Path
    uuid: UUID
    name: str
    backing: Path
    mountpoint: Path
    created_ns: int
    role: str = "primary"

    @property
    def journal_dir(self) -> Path:
        """The directory of the segments."""
        return self.directory / "journal"

    def holder(self) -> dict[str, Any] | None:
        """Who holds the volume now: pid, name, mountpoint; None when nobody does."""
        try:
            fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read_holder(fd)
        else:
            return None
        finally:
            os.close(fd)


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
        or len(os.fsencode(name)) > _NAME_MAX
        or not name.isprintable()
    ):
        raise UsageError(
            f"{name!r} cannot be a volume's name: 1 to {_NAME_MAX} printable characters, "
            "no '/', no leading '.'"
        )
    return name


def load_state(directory: Path) -> VolumeState:
    """The volume in *directory*. Raises VolumeNotFoundError, FusejournalError when the file is
    spoilt."""
    path = directory / "volume.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.pop("format") != _FORMAT:
            raise FusejournalError(f"{path}: written by another version of fusejournal")
        return VolumeState(
            directory=directory,
            uuid=UUID(raw["uuid"]),
            name=str(raw["name"]),
            backing=Path(raw["backing"]),
            mountpoint=Path(raw["mountpoint"]),
            created_ns=int(raw["created_ns"]),
            role=str(raw["role"]),
        )
    except (FileNotFoundError, NotADirectoryError):
        raise VolumeNotFoundError(str(directory)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FusejournalError(f"{path}: cannot be read: {error}") from None


def _save_state(state: VolumeState) -> None:
    raw = {
        key: str(value) if isinstance(value, Path | UUID) else value
        for key, value in asdict(state).items()
    }
    del raw["directory"]
    temporary = state.directory / "volume.json.new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({"format": _FORMAT, **raw}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(state.directory / "volume.json")


@contextmanager
def claim_volume(spec: "MountSpec") -> Iterator[VolumeState]:
    """Hold the volume that *spec* names, made if it is new, until the end of the block. Raises
    VolumeBusyError naming the holder, UsageError when the state is another volume's."""
    directory = spec.state_dir
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(fd)
            raise VolumeBusyError(
                f"volume {spec.name} is held by process {holder.get('pid', '?')}, "
                f"mounted at {holder.get('mountpoint', '?')}"
            ) from None
        holding = {
            "pid": os.getpid(),
            "name": spec.name,
            "mountpoint": str(spec.mountpoint),
        }
        _write_holder(fd, json.dumps(holding))
        for left in directory.glob("undo.*"):
            shutil.rmtree(left, ignore_errors=True)  # an undo was killed at its work
        yield _load_or_make(spec)
        _write_holder(fd, "")
    finally:
        os.close(fd)


def _load_or_make(spec: "MountSpec") -> VolumeState:
    directory = spec.state_dir
    if (directory / "volume.json").exists():
        state = load_state(directory)
        if state.name != spec.name:
            raise UsageError(f"{directory} is the state of volume {state.name}, not of {spec.name}")
        moved = replace(state, backing=spec.backing, mountpoint=spec.mountpoint)
        if moved != state:
            state = moved
            _save_state(state)
    else:
        if any((directory / "journal").glob("*.fj*")):
            raise FusejournalError(
                f"{directory}: has a journal but no volume.json; restore that file, "
                "or use another --state"
            )
        state = VolumeState(
            directory, uuid4(), spec.name, spec.backing, spec.mountpoint, time.time_ns()
        )
        _save_state(state)
    if directory.parent != state_root():
        link = run_root() / spec.name
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            link.unlink()
        link.symlink_to(directory)
    return state


def _write_holder(fd: int, holder: str) -> None:
    # Never cut: on a full disk the old content's block is all there is.
    os.pwrite(fd, holder.encode().ljust(_HOLDER_BYTES), 0)


def _read_holder(fd: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(fd, 65536, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def all_volumes() -> list[VolumeState]:
    """Every volume that a name leads to, by name."""
    found: dict[str, VolumeState] = {}
    for root in (state_root(), run_root()):
        if root.is_dir():
            for entry in sorted(root.iterdir()):
                with suppress(FusejournalError):
                    state = load_state(entry.resolve())
                    found.setdefault(state.name, state)
    return [found[name] for name in sorted(found)]


def find_volume(text: str) -> VolumeState:
    """The volume that *text* means: a name, a mountpoint or a state directory. Raises
    VolumeNotFoundError."""
    volumes = all_volumes()
    for state in volumes:
        if state.name == text:
            return state
    # Not resolved by the kernel: a dead mount at the end of the path must not be touched.
    path = Path(os.path.abspath(text))
    resolved = path.parent.resolve() / path.name
    for state in volumes:
        if state.mountpoint in (path, resolved):
            return state
    if (path / "volume.json").exists():
        return load_state(path.resolve())
    raise VolumeNotFoundError(text)
