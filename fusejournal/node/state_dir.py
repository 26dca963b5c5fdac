"""The state directory of a volume: who it is, and where it lies.

::

    STATE/volume.json    identity and places, written once and at each mount (atomically)
    STATE/lock           flock'ed by the running layer; holds its pid
    STATE/journal/       segments
    STATE/catalog/       the catalog, a cache
    STATE/checkpoint     up to where the backing itself is known to be on disk
    STATE/watermarks     the node's page of watermarks
    STATE/signatures     what a mirror keeps to vouch for entries that it hands back
    STATE/peers.json     other nodes: names, addresses, certificates
    STATE/members.json   which nodes count, and what they are known to hold
    STATE/identity/      this node's key and certificate
    STATE/connection     who holds the kernel's connection to the mount
    STATE/parted.json    where a mirror's journal parts from its primary's
    STATE/rejoin.json    a rejoin that has begun
    STATE/level.json     a copy of the primary's tree that a mirror is to become
    STATE/journal.new/   the segment behind that tree, before it is the journal
    STATE/versions/      versions, where no other place was named for them
    STATE/branches/      what histories that lost had
    STATE/overwritten/   content that was newer than the journal after a system crash
    STATE/scrub.json     the last scrub: how far it is, what it found
    STATE/versions.json  what is known of the versions
    STATE/store.json     where versions are kept
    STATE/store.key      the key that they are encrypted with, as a recovery key
    STATE/base.json      the journal's base, where its beginning was pruned
    STATE/base.spare     a block for base.json on a full disk
    STATE/prune.lock     flock'ed by the command that prunes
    STATE/verified       what it has read back of the version that the base is
    STATE/control.sock   the running layer's control socket
    STATE/boot           the boot in which the volume was last begun
    STATE/log            what a layer in the background had to say

A state directory is root's (or the caller's), and no other user can write to it: one who can, has
root mount what he likes. Nothing here ever touches a mountpoint, which may be dead and hang or
fail. Where volumes are found is in registry.py, who has one in lock.py.

Until format 2 the page of watermarks was called ``marks``. An older version of the program would
not find it by its name of today: it would make an empty one, and so forget which reign it must not
fall behind. So the directory is first of the new format, which an older version refuses, durably;
then the page gets its new name (:func:`bring_up_to_date`). On a full disk, which has no room for
another volume.json, the one digit is written in place: it is there whole or not at all. So is all
of a new text there, which goes into one sector of the disk with the old one, and has its length. A
volume whose role a command has changed is of format 3, which has the reign that the role came with,
and, as long as it is not known what came of it, the one that was offered to another node. A version
that does not know it would go on in the old reign, and so refuses it. One whose journal has a base
is of format 4, with or without a reign: a version that knows of none would look for the journal's
first entry, and find a later one."""

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from uuid import UUID

from fusejournal.disk import calls
from fusejournal.disk.errnos import NO_SPACE
from fusejournal.disk.files import (
    UNREADABLE_JSON,
    Outlives,
    make_directories,
    write_atomically,
)
from fusejournal.disk.json_records import checked, parse_object
from fusejournal.errors import (
    FusejournalError,
    JournalError,
    JournalFullError,
    UntrustedStateError,
    UsageError,
    VolumeNotFoundError,
)
from fusejournal.node.lock import holder_of
from fusejournal.roles.role import NEW, Event, Role
from fusejournal.types import NOWHERE, Reign, reign_of_text

_FORMAT = 2
_FORMAT_WITH_REIGN = 3
_FORMAT_WITH_BASE = 4
_FORMATS = (1, _FORMAT, _FORMAT_WITH_REIGN, _FORMAT_WITH_BASE)
_PAGE = "watermarks"
_PAGE_BEFORE = "marks"
"""Its name in format 1."""
_TEXT_MAX = 1 << 16
"""More than a volume.json has, in characters."""
_SECTOR_BYTES = 512
"""A disk writes so much whole or not at all. A text is filled up to it, to be written in place."""
_FORMAT_DIGIT = re.compile(rb'"format"\s*:\s*(1)(?=\s*[,}])')
"""The format in a volume.json of format 1, as most programs write JSON."""


class Offered(NamedTuple):
    """A reign that this primary has offered to the node ``peer``: until that says what came of it,
    no change is taken here."""

    reign: Reign
    peer: str


@dataclass(frozen=True)
class VolumeState:
    """The content of volume.json, and the place where it was read."""

    directory: Path
    uuid: UUID
    name: str
    backing: Path
    mountpoint: Path
    created_ns: int
    role: Role = NEW
    listen: str | None = None
    """The place where other nodes connect to, as a command line said last."""
    reign: Reign | None = None
    """The reign that a command gave its role with: the one that it is to begin, or has begun, as a
    primary, or that it follows as a mirror. None where its role is that of its first mount."""
    offered: Offered | None = None
    """A primary's, of whose handoff it is not known what came of it."""

    @property
    def format(self) -> int:
        """The format that it is written in."""
        if _base_path(self.directory).exists():
            return _FORMAT_WITH_BASE
        is_old = self.reign is None and self.offered is None
        return _FORMAT if is_old else _FORMAT_WITH_REIGN

    def listens_at(self, configured: str | None) -> str | None:
        """Returns the place where other nodes connect to: as *configured*, or else as remembered;
        None: nowhere."""
        listen = self.listen if configured is None else configured
        return None if listen == NOWHERE else listen

    @property
    def journal_dir(self) -> Path:
        """The directory of the segments."""
        return self.directory / "journal"

    @property
    def has_versions(self) -> bool:
        """True if it is said where its versions are kept."""
        return (self.directory / "store.json").exists()

    @property
    def is_mirror(self) -> bool:
        """True if its changes come from a primary alone."""
        return self.role.takes_batches

    @property
    def role_word(self) -> str:
        """The role as an admin knows it: primary or mirror."""
        return "mirror" if self.is_mirror else "primary"

    def called(self, word: str | None) -> "VolumeState":
        """The same as a person calls it, with *word* for a role, while it has no entry; None: no
        word was given."""
        if word is None:
            return self
        event = Event.CALLED_MIRROR if word == "mirror" else Event.CALLED_PRIMARY
        return replace(self, role=self.role.after(event))

    def in_role(self, word: str | None) -> "VolumeState":
        """The same where a mount asks for the role *word*; None: for whichever it has. Raises
        UsageError where it has another one already. Once a command has changed its role, the word
        is that of an earlier time, and counts no more."""
        if self.reign is not None:
            return self
        state = self
        if not state.has_journal():
            # Nothing came of the attempts before; of a start that opened nothing, not even a role.
            state = state.called(word if state.has_begun() else word or "primary")
        if word not in (None, state.role_word):
            raise UsageError(
                f"volume {state.name} is a {state.role_word}, and a role is never changed by "
                "mounting: leave --role out, or use another --state for another volume"
            )
        return state

    @property
    def watermarks(self) -> Path:
        """The node's page of watermarks; under its name of before where no layer of this version
        has been at work yet."""
        page, before = self.directory / _PAGE, self.directory / _PAGE_BEFORE
        return before if before.exists() and not page.exists() else page

    def has_begun(self) -> bool:
        """Returns True unless it is new, and every start ended before it had opened anything."""
        return (
            self.role is Role.MIRROR
            or self.listen is not None  # remembered once it was live
            or self.has_journal()
            or self.watermarks.exists()
            or (self.directory / "identity").exists()
        )

    def has_journal(self) -> bool:
        """Returns True if it ever had an entry."""
        return any(self.journal_dir.glob("*.fj*"))

    def is_copy_of(self, other: "VolumeState") -> bool:
        """Returns True if this and *other* were made as one. (A mirror's UUID is its primary's.)"""
        return self.directory != other.directory and (self.uuid, self.created_ns) == (
            other.uuid,
            other.created_ns,
        )

    def holder(self) -> dict[str, Any] | None:
        """Returns the holder of the volume: pid, name, mountpoint; None when there is none."""
        return holder_of(self.directory)


def _base_path(directory: Path) -> Path:
    # Only here: a command that asks what a volume is should not wait for a journal's libraries.
    from fusejournal.journal.base import base_path

    return base_path(directory)


def load_state(directory: Path) -> VolumeState:
    """The volume in *directory*. Raises VolumeNotFoundError, FusejournalError when the file is
    spoilt or not to be trusted."""
    path = directory / "volume.json"
    try:
        with _open_trusted(directory) as file:
            raw = parse_object(file.read(_TEXT_MAX))
        if raw.pop("format") not in _FORMATS:
            raise FusejournalError(f"{path}: written by another version of fusejournal")
        return checked(
            VolumeState(
                directory=directory,
                uuid=UUID(raw["uuid"]),
                name=raw["name"],
                backing=Path(raw["backing"]),
                mountpoint=Path(raw["mountpoint"]),
                created_ns=raw["created_ns"],
                role=_read_role(raw),
                listen=raw.get("listen"),
                reign=reign_of_text(raw["reign"]) if raw.get("reign") is not None else None,
                offered=_read_offered(raw.get("offered")),
            )
        )
    except (FileNotFoundError, NotADirectoryError):
        raise VolumeNotFoundError(str(directory)) from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise VolumeNotFoundError(str(directory)) from None
    except UNREADABLE_JSON as error:
        raise FusejournalError(f"{path}: cannot be read: {error}") from None


def _read_role(raw: dict[str, Any]) -> Role:
    """Raises KeyError, ValueError."""
    role = Role(raw["role"])
    if role not in (Role.PRIMARY, Role.MIRROR):
        raise ValueError(f"{role.value!r} is no role")
    # (0.1.0 had another word for it.)
    is_uninitialized = raw.get("is_uninitialized", raw.get("is_unborn", False))
    return Role.UNINITIALIZED if is_uninitialized else role


def _read_offered(raw: dict[str, Any] | None) -> Offered | None:
    """Raises KeyError, ValueError."""
    if raw is None:
        return None
    return Offered(reign_of_text(raw["reign"]), raw["peer"])


def _open_trusted(directory: Path, access: int = os.O_RDONLY) -> TextIO:
    """Its volume.json, for *access* by its descriptor. Raises OSError, UntrustedStateError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_trusted(fd, directory)
        flags = access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
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
    """Make the state directory, if it is not there; what is made in it is to be written in place.
    Raises OSError, UntrustedStateError."""
    make_directories("state.directory.make", directory)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_trusted(fd, directory)
    finally:
        os.close(fd)
    calls.overwrite_in_place(directory)


def join_volume(state: VolumeState, uuid: UUID) -> VolumeState:
    """Write down that the new mirror *state* is one of volume *uuid* from now on."""
    joined = replace(state, uuid=uuid, role=state.role.after(Event.JOINED))
    save_state(joined)
    return joined


def change_role(state: VolumeState, event: Event, reign: Reign) -> VolumeState:
    """Write down, in one step that a kill leaves whole, that *event* changes the role of *state*,
    with *reign*. Raises JournalFullError where the state's disk is full, OSError: all is as before
    then."""
    return _save_role(replace(state, role=state.role.after(event), reign=reign, offered=None))


def note_offer(state: VolumeState, offered: Offered | None) -> VolumeState:
    """Write down what the primary *state* has *offered*, before it does; None: nothing came of it.
    Raises as :func:`change_role`."""
    return _save_role(replace(state, offered=offered))


def _save_role(changed: VolumeState) -> VolumeState:
    try:
        save_state(changed)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise JournalFullError(
            f"{changed.directory / 'volume.json'}: no space to write down the role: make space"
        ) from None
    return changed


def remember_listen(state: VolumeState, asked: str) -> VolumeState:
    """Write down what a command line *asked* for: where other nodes connect to, or nowhere. Raises
    OSError."""
    listen = None if asked == NOWHERE else asked
    if listen == state.listen:
        return state
    remembering = replace(state, listen=listen)
    save_state(remembering)
    return remembering


def restore_places(directory: Path, known: VolumeState) -> None:
    """Write down the places of *known*, because nothing came of a start at others. Raises OSError,
    FusejournalError."""
    found = load_state(directory)
    restored = replace(found, backing=known.backing, mountpoint=known.mountpoint)
    if restored != found:
        save_state(restored)


def bring_up_to_date(state: VolumeState, known: VolumeState) -> None:
    """Have the state directory say *state*, where it said *known*, and all in it be as this version
    has it; only for the process that holds the volume. Killed at any step, it is done by the next
    call. Raises OSError, JournalError, JournalFullError."""
    directory = state.directory
    page, before = directory / _PAGE, directory / _PAGE_BEFORE
    if before.exists() and page.exists():
        raise JournalError(
            f"{before}: an older version of fusejournal was at work beside {page}: move away which "
            "of the two is not this state's, or both, and the next start looks the backing over"
        )
    if _format_of(directory) == _FORMAT_WITH_BASE != state.format:
        raise JournalError(
            f"{_base_path(directory)}: is missing, and nothing else tells the tree before the "
            "journal's first entry: restore it"
        )
    with _explain_full(state, known):
        if state != known or _format_of(directory) != state.format:
            _save_over(state, known)
        elif before.exists():
            # The call that wrote the format may have been killed before it was on the disk.
            with _open_trusted(directory) as file:
                calls.fdatasync("state.format.flush", file.fileno())
        if before.exists():
            calls.rename("state.watermarks.rename", before, page)
            calls.fsync_directory("state.watermarks.directory", directory)


@contextmanager
def _explain_full(state: VolumeState, known: VolumeState) -> Iterator[None]:
    """Raises JournalFullError where the block finds the state's disk full."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        path = state.directory / "volume.json"
        message = f"{path}: no space to write down what the volume is: make space"
        if state != known:
            message += f", or mount it as before: {known.backing} at {known.mountpoint}"
        raise JournalFullError(message) from None


def _save_over(state: VolumeState, known: VolumeState) -> None:
    """:func:`save_state`; on a full disk in place, too, if *known* and the format of before are to
    be replaced by no more than the format of today. Raises OSError."""
    try:
        save_state(state)
    except OSError as error:
        is_same = error.errno in NO_SPACE and state == known
        if not is_same or not _raise_format_in_place(state.directory):
            raise


def _raise_format_in_place(directory: Path) -> bool:
    """Make its volume.json one of today's format by a single byte, durably. Returns False, with
    nothing written, if its text does not allow that. Raises OSError: it is as before then."""
    with _open_trusted(directory, os.O_RDWR) as file:
        text = file.buffer.read()
        found = _FORMAT_DIGIT.search(text)
        if found is None:
            return False
        at, digit = found.start(1), str(_FORMAT).encode()
        raised = text[:at] + digit + text[at + 1 :]
        if json.loads(raised) != {**json.loads(text), "format": _FORMAT}:
            return False  # another "format", deeper in it
        _replace_in_place("state.format", file.fileno(), at, found[1], digit)
    return True


def _save_in_place(directory: Path, content: bytes) -> bool:
    """Write *content* over its volume.json, durably. Returns False, with nothing written, unless
    both are of one sector. Raises OSError: it is as before then."""
    if len(content) != _SECTOR_BYTES or not (directory / "volume.json").exists():
        return False
    with _open_trusted(directory, os.O_RDWR) as file:
        text = file.buffer.read()
        if len(text) != len(content):
            return False
        _replace_in_place("state.text", file.fileno(), 0, text, content)
    return True


def _replace_in_place(label: str, fd: int, at: int, old: bytes, new: bytes) -> None:
    """Write *new* where *old* stands, at offset *at*, durably. Failpoints: LABEL.write, LABEL.sync,
    LABEL.undo. Raises OSError: *old* stands there then."""
    try:
        calls.write_all(f"{label}.write", fd, new, at)
        calls.fdatasync(f"{label}.sync", fd)
    except OSError:
        # The next start must not take for written what only the page cache has.
        with suppress(OSError):
            calls.write_all(f"{label}.undo", fd, old, at)
        raise


def _format_of(directory: Path) -> int:
    with _open_trusted(directory) as file:
        return int(json.load(file)["format"])


def save_state(state: VolumeState) -> None:
    """Write *state* down, atomically and durably; on a full disk in place, where that is atomic,
    too. Raises OSError."""
    raw = {
        key: str(value) if isinstance(value, Path | UUID) else value
        for key, value in asdict(state).items()
    }
    del raw["directory"], raw["reign"], raw["offered"]
    if state.reign is not None:
        raw["reign"] = str(state.reign)
    if state.offered is not None:
        raw["offered"] = {"reign": str(state.offered.reign), "peer": state.offered.peer}
    raw["role"] = state.role_word
    raw["is_uninitialized"] = state.role is Role.UNINITIALIZED
    content = json.dumps({"format": state.format, **raw}, indent=2).encode().ljust(_SECTOR_BYTES)
    try:
        write_atomically("state", state.directory / "volume.json", content, Outlives.MACHINE)
    except OSError as error:
        if error.errno not in NO_SPACE or not _save_in_place(state.directory, content):
            raise
