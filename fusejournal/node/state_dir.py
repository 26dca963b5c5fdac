"""The state directory of a volume: who it is, where it lies, who holds it.

::

    STATE/volume.json    identity and places, written once and at each mount (atomically)
    STATE/lock           flock'ed by the running layer; holds its pid
    STATE/journal/       segments
    STATE/catalog/       the catalog, a cache
    STATE/checkpoint     up to where the backing itself is known to be on disk
    STATE/marks          the node's page of watermarks
    STATE/signatures     what a mirror keeps to vouch for entries that it hands back
    STATE/peers.json     other nodes: names, addresses, certificates
    STATE/identity/      this node's key and certificate
    STATE/connection     who holds the kernel's connection to the mount
    STATE/diverged.*     what a mirror had and its primary had not
    STATE/overwritten/   content that was newer than the journal after the loss of a machine
    STATE/control.sock   the running layer's control socket
    STATE/boot           the boot in which the volume was last begun
    STATE/log            what a layer in the background had to say

Volumes are found by name, mountpoint or state directory. Names lead to state directories below
/var/lib/fusejournal or, for others, by a symlink in its directory ``.elsewhere``, which stays, so
that a name is enough to mount the volume again when the machine has started anew. A directory that
says it is a volume which the name does not lead to is a copy of its state: it is told, and never
taken for the volume.

A state directory is root's (or the caller's), and nobody else can write to it: whoever can, has
root mount what he likes. Nothing here ever touches a mountpoint, which may be dead and hang or
fail: the kernel's list of mounts is asked instead."""

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from uuid import UUID, uuid4

from fusejournal.disk import calls
from fusejournal.errors import (
    FusejournalError,
    UntrustedStateError,
    UsageError,
    VolumeBusyError,
    VolumeNotFoundError,
)
from fusejournal.types import NOWHERE

if TYPE_CHECKING:
    # Configuration takes its time to load, and only who mounts needs it.
    from fusejournal.node.spec import MountSpec

_FORMAT = 1
_NAME_MAX = 128
_HOLDER_BYTES = 512
_LOCK_ATTEMPTS = 10
_LOCK_PAUSE_SECONDS = 0.01
_LOCK_FD = "FUSEJOURNAL_LOCK_FD"
"""In the environment of a program that takes this one's place: where it finds the lock."""


def state_root() -> Path:
    """Where the state of volumes lies by default."""
    return Path(os.environ.get("FUSEJOURNAL_STATE_ROOT", "/var/lib/fusejournal"))


def links_root() -> Path:
    """Where names of volumes with a state directory elsewhere are kept. No volume's name begins
    with a dot."""
    return state_root() / ".elsewhere"


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
    is_uninitialized: bool = False
    """Whether a mirror has no journal yet: its UUID is to be its primary's."""
    listen: str | None = None
    """Where other nodes connect to, as a command line said last."""

    def listens_at(self, configured: str | None) -> str | None:
        """Where other nodes connect to: as *configured*, or else as remembered; None: nowhere."""
        listen = self.listen if configured is None else configured
        return None if listen == NOWHERE else listen

    @property
    def journal_dir(self) -> Path:
        """The directory of the segments."""
        return self.directory / "journal"

    @property
    def is_mirror(self) -> bool:
        """Whether its changes come from a primary, and from nobody else."""
        return self.role == "mirror"

    @property
    def marks(self) -> Path:
        """The node's page of watermarks."""
        return self.directory / "marks"

    def has_journal(self) -> bool:
        """Whether it ever had an entry."""
        return any(self.journal_dir.glob("*.fj*"))

    def is_copy_of(self, other: "VolumeState") -> bool:
        """Whether this and *other* were made as one. (A mirror's UUID is its primary's.)"""
        return self.directory != other.directory and (self.uuid, self.created_ns) == (
            other.uuid,
            other.created_ns,
        )

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


_UNREADABLE = (
    *(ValueError, KeyError, TypeError, AttributeError),
    *(OverflowError, RecursionError),  # of an infinite number, and of lists in lists
)
"""What JSON that is not as it was written ends in."""


def load_state(directory: Path) -> VolumeState:
    """The volume in *directory*. Raises VolumeNotFoundError, FusejournalError when the file is
    spoilt or not to be trusted."""
    path = directory / "volume.json"
    try:
        with _open_trusted(directory) as file:
            raw = json.load(file)
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
            is_uninitialized=bool(raw.get("is_uninitialized", False)),
            listen=raw.get("listen"),
        )
    except (FileNotFoundError, NotADirectoryError):
        raise VolumeNotFoundError(str(directory)) from None
    except _UNREADABLE as error:
        raise FusejournalError(f"{path}: cannot be read: {error}") from None


def _open_trusted(directory: Path) -> TextIO:
    """Its volume.json. Raises OSError, UntrustedStateError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_trusted(fd, directory)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = open(os.open("volume.json", flags, dir_fd=fd), encoding="utf-8")  # noqa: SIM115
    finally:
        os.close(fd)
    try:
        _check_trusted(file.fileno(), directory / "volume.json")
    except UntrustedStateError:
        file.close()
        raise
    return file


def _check_trusted(fd: int, path: Path) -> None:
    found = os.fstat(fd)
    if found.st_uid not in (0, os.geteuid()):
        raise UntrustedStateError(path, "is another user's, and cannot tell what a volume is")
    if found.st_mode & 0o022:
        raise UntrustedStateError(
            path,
            "others can write to it, and so it cannot tell what a volume is: 'chmod go-w', if it "
            "is as you left it",
        )


def make_directory(directory: Path) -> None:
    """Make the state directory, if it is not there. Raises OSError, UntrustedStateError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_trusted(fd, directory)
    finally:
        os.close(fd)


def join_volume(state: VolumeState, uuid: UUID) -> VolumeState:
    """Write down that the new mirror *state* is one of volume *uuid* from now on."""
    born = replace(state, uuid=uuid, is_uninitialized=False)
    _save_state(born)
    return born


def remember_listen(state: VolumeState, asked: str) -> VolumeState:
    """Write down what a command line *asked* for: where other nodes connect to, or nowhere. Raises
    OSError."""
    listen = None if asked == NOWHERE else asked
    if listen == state.listen:
        return state
    remembering = replace(state, listen=listen)
    _save_state(remembering)
    return remembering


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
    calls.fsync_directory("state.directory", state.directory)


_claims: dict[Path, int] = {}


@contextmanager
def claim_volume(
    spec: "MountSpec", check: Callable[[], None] = lambda: None
) -> Iterator[VolumeState]:
    """Hold the volume that *spec* names, made if it is new, until the end of the block; *check* is
    called when nobody else holds it, before anything is changed. Raises VolumeBusyError naming the
    holder, UsageError when the state is another volume's or the volume's is elsewhere, and what
    *check* raises."""
    directory = spec.state_dir
    make_directory(directory)
    with _hold(directory, spec.name, spec.mountpoint, check):
        _check_rightful(directory, spec.name)
        yield _load_or_make(spec)


@contextmanager
def hold_volume(state: VolumeState) -> Iterator[None]:
    """Hold a volume that no layer runs on, to change what its state directory says, until the end
    of the block. Raises VolumeBusyError naming the holder."""
    with _hold(state.directory, state.name, state.mountpoint, lambda: None):
        yield


@contextmanager
def _hold(
    directory: Path, name: str, mountpoint: Path, check: Callable[[], None]
) -> Iterator[None]:
    fd = _inherited_lock(directory)
    if fd is None:
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _lock(fd):
            holder = _read_holder(fd)
            raise VolumeBusyError(
                f"volume {name} is held by process {holder.get('pid', '?')}, "
                f"mounted at {holder.get('mountpoint', '?')}"
            )
        check()
        _claims[directory] = fd
        holding = {"pid": os.getpid(), "name": name, "mountpoint": str(mountpoint)}
        _write_holder(fd, json.dumps(holding))
        yield
        _write_holder(fd, "")
    finally:
        if _claims.get(directory) == fd:
            del _claims[directory]
        os.close(fd)


def pass_claim_on(state: VolumeState) -> None:
    """Let the claim of *state* go to the program that is about to take this one's place by
    execv(2): its :func:`claim_volume` finds it, and nobody gets in between."""
    fd = _claims[state.directory]
    os.set_inheritable(fd, True)
    os.environ[_LOCK_FD] = str(fd)


def _inherited_lock(directory: Path) -> int | None:
    """The lock that :func:`pass_claim_on` left, if it is this directory's."""
    try:
        fd = int(os.environ.pop(_LOCK_FD, ""))
        os.set_inheritable(fd, False)
        if os.path.samestat(os.fstat(fd), os.stat(directory / "lock")):
            return fd
    except (ValueError, OSError):
        pass
    return None


def _lock(fd: int) -> bool:
    """Whether *fd* could be locked. Who only looks (:meth:`VolumeState.holder`) has the lock for a
    moment, too."""
    for attempt in range(_LOCK_ATTEMPTS):
        if attempt:
            time.sleep(_LOCK_PAUSE_SECONDS)
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def _load_or_make(spec: "MountSpec") -> VolumeState:
    directory = spec.state_dir
    if (directory / "volume.json").exists():
        state = known = load_state(directory)
        if state.name != spec.name:
            raise UsageError(f"{directory} is the state of volume {state.name}, not of {spec.name}")
        if spec.role is not None and not state.has_journal():
            # Nothing came of the attempts before.
            state = replace(state, role=spec.role, is_uninitialized=spec.role == "mirror")
        if spec.role not in (None, state.role):
            raise UsageError(
                f"volume {state.name} is a {state.role}, and a role is never changed by mounting: "
                "leave --role out, or use another --state for another volume"
            )
        state = replace(
            state,
            backing=spec.backing,
            mountpoint=spec.mountpoint,
        )
        if state != known:
            _save_state(state)
    else:
        if any((directory / "journal").glob("*.fj*")):
            raise FusejournalError(
                f"{directory}: has a journal but no volume.json; restore that file, "
                "or use another --state"
            )
        state = VolumeState(
            directory,
            uuid4(),
            spec.name,
            spec.backing,
            spec.mountpoint,
            time.time_ns(),
            role=spec.role or "primary",
            is_uninitialized=spec.role == "mirror",
        )
        _save_state(state)
    link = links_root() / spec.name
    if directory == state_root() / spec.name:
        link.unlink(missing_ok=True)
    else:
        link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not link.is_symlink() or link.readlink() != directory:
            link.unlink(missing_ok=True)
            link.symlink_to(directory)
    return state


def _write_holder(fd: int, holder: str) -> None:
    # Never cut: on a full disk the old content's block is all there is.
    calls.write_all("state.holder", fd, holder.encode().ljust(_HOLDER_BYTES), 0)


def _read_holder(fd: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(fd, 65536, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _check_rightful(directory: Path, name: str) -> None:
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
                f"volume {name} is that of {other.directory}, not of {directory}: if it is not so "
                "any more, move the former away; a new volume needs another --name"
            )


def _known_states() -> list[VolumeState]:
    """What every state directory says that lies below the root of states or that a symlink there
    leads to, each once."""
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
    claims = [state for state in states if state.name == name]
    places = {(root / name).resolve() for root in (state_root(), links_root())}
    found = [state for state in claims if state.directory in places] or claims
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
    """What comes between ``fusejournal@`` and ``.service`` for the volume *name*."""
    if re.fullmatch(r"[A-Za-z0-9:_.\\-]+", name):
        return name
    return "".join(
        chr(byte) if re.fullmatch(rb"[A-Za-z0-9:_.]", bytes((byte,))) else rf"\x{byte:02x}"
        for byte in os.fsencode(name)
    )
