"""The NFS clients that may take their locks back from a server that has restarted, or from another
that goes on in its place.

nfsd and lockd keep locks in memory. After a restart they give them back, in a grace period, to
those clients alone that stable storage knows to have had some: nfsdcld's database for NFSv4,
statd's list of hosts to be notified for NFSv3. Where a volume moves, both have to be there first.
So the primary keeps a copy of both in the volume, in a directory that is root's alone, and with the
journal that comes to each mirror.

The copy is of the server, not of the volume: it names clients of its other exports, too, which
harms nothing. What is read from it was written by root of a peer, or, where an export has
``no_root_squash``, by a client's root: names are checked, and nothing is followed. The same holds
in statd's directories, because statd, which answers the network, owns them and may rename in them.

Blocks; for the command line. Source: nfsdcld(8), rpc.statd(8), sm-notify(8), nfs-utils'
utils/nfsdcld/sqlite.c (schema 4: table ``grace`` has the epochs, ``rec-EPOCH`` their clients)."""

import json
import logging
import os
import re
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fusejournal.disk.boot import run_directory
from fusejournal.disk.files import UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.disk.json_records import checked, parse_object
from fusejournal.errors import ExportError
from fusejournal.nfs import nfsd
from fusejournal.nfs.connections import ClientConnection, checked_connections, established

log = logging.getLogger(__name__)

DIRECTORY = ".fusejournal-nfs"
"""The directory, in the volume's root; of root, 0700."""

_FILE = "clients"
_FORMAT = 1
_BYTES_MAX = 16 << 20
_LOCKED_SECONDS = 5.0
_HOST = re.compile(r"[0-9A-Za-z_][0-9A-Za-z._:%-]{0,254}")
_MONITORED = re.compile(r"[ -~]{1,2048}\n?")
_LINE_BYTES_MAX = 2049
_DATABASE = "main.sqlite"
_NAME_BYTES_MAX = 1024
"""The longest name of an NFSv4 client: NFS4_OPAQUE_LIMIT."""
_HASH_BYTES = 32
"""The length of the hash of a principal: SHA-256."""
_IN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


_Client = tuple[bytes, bytes | None]


class ClientRecords(NamedTuple):
    """The clients of a server, and the reign in which they were its."""

    reign: str
    v4: frozenset[_Client] = frozenset()
    """The name of each NFSv4 client, and the hash of its principal."""
    v3: tuple[tuple[str, str], ...] = ()
    """The hosts that statd is to notify of a restart, each with its line."""
    connections: tuple[ClientConnection, ...] = ()
    """The connections that clients have."""

    def to_bytes(self) -> bytes:
        """Returns their text."""
        v4 = [[name.hex(), hash_ and hash_.hex()] for name, hash_ in sorted(self.v4, key=repr)]
        told = {"format": _FORMAT, "reign": self.reign, "v4": v4, "v3": dict(sorted(self.v3))}
        if self.connections:
            told["connections"] = self.connections
        return json.dumps(told, indent=1).encode() + b"\n"

    def without(self, v4: frozenset[bytes]) -> "ClientRecords":
        """Returns these without NFSv4 clients of the names *v4*."""
        return self._replace(v4=frozenset(one for one in self.v4 if one[0] not in v4))


def _parse(content: bytes) -> ClientRecords:
    told = parse_object(content)
    if told["format"] != _FORMAT:
        raise ValueError(f"its format is {told['format']!r:.80}, not {_FORMAT}")
    v3 = tuple(sorted(told["v3"].items()))
    for host, line in v3:
        if not _HOST.fullmatch(host) or not _MONITORED.fullmatch(line):
            raise ValueError(f"{host!r} is no host")
    v4 = [
        (bytes.fromhex(name), None if hash_ is None else bytes.fromhex(hash_))
        for name, hash_ in told["v4"]
    ]
    connections = checked_connections(told.get("connections", ()))
    return checked(ClientRecords(told["reign"], _checked(v4), v3, connections))


def _checked(clients: Iterable[_Client]) -> frozenset[_Client]:
    """Returns those of *clients* that nfsdcld can have written; it reads them into buffers of a
    fixed length, and hands them to the kernel. Source: the kernel's include/uapi/linux/nfsd/cld.h,
    and CVE-2024-47692 on an empty name."""
    found = list(clients)
    good = [
        (name, hash_)
        for name, hash_ in found
        if 1 <= len(name) <= _NAME_BYTES_MAX and (hash_ is None or len(hash_) == _HASH_BYTES)
    ]
    if len(good) < len(found):
        log.warning(
            "%d NFSv4 clients are left out: a name has 1 to %d bytes, and a hash %d",
            *(len(found) - len(good), _NAME_BYTES_MAX, _HASH_BYTES),
        )
    return frozenset(good)


# -- those of the server ---------------------------------------------------------------------------


def of_server(reign: str, name: str) -> ClientRecords:
    """Returns the clients that the server has now; *name* is the volume's, some of whose clients
    may still have to be notified. Raises ExportError."""
    hosts: dict[str, str] = {}
    for directory in (_statd(), notified(name)):
        for part in ("sm.bak", "sm"):
            hosts |= _hosts(directory, part)
    return ClientRecords(reign, _clients(), tuple(sorted(hosts.items())), established())


def stamp() -> tuple[object, ...]:
    """Returns another value whenever the server's clients may have changed, but for their
    connections."""
    found: list[object] = []
    for path in (_database(), _database().with_name(f"{_DATABASE}-wal"), _statd() / "sm"):
        try:
            found.append(path.stat().st_mtime_ns)
        except OSError:
            found.append(0)
    return tuple(found)


def keeps_v4() -> bool:
    """Returns True if the server keeps the names of its NFSv4 clients in nfsdcld's database."""
    return _database().exists()


def _database() -> Path:
    directory = _directory_of(nfsd.root(), "nfsdcld", "storagedir", "var/lib/nfs/nfsdcld")
    return directory / _DATABASE


def _statd() -> Path:
    # An admin may have a link there; from here on none is followed.
    return _directory_of(nfsd.root(), "statd", "state-directory-path", "var/lib/nfs").resolve()


def remember_places() -> None:
    """Have what stands in nfs.conf(5) known before it is needed. Raises ExportError."""
    nfsd.remember(("nfsd", "scope"), ("nfsdcld", "storagedir"), ("statd", "state-directory-path"))


@cache  # because it takes a process, and is asked for twice a second
def _directory_of(root: Path, section: str, key: str, usual: str) -> Path:
    return root / (nfsd.configured(section, key) or usual).lstrip("/")


def notified(name: str) -> Path:
    """Returns the directory from which clients of the volume *name* are notified that another
    server goes on; laid out as statd's own."""
    return nfsd.root() / f"var/lib/nfs/fusejournal-{name}"


def _hosts(base: Path, part: str) -> dict[str, str]:
    """Returns the hosts in the directory *part* of *base*, which is laid out as statd's. Raises
    OSError."""
    found = {}
    with suppress(FileNotFoundError, NotADirectoryError), _opened(base, part) as directory_fd:
        for name in os.listdir(directory_fd):
            if not _HOST.fullmatch(name):
                continue
            with suppress(OSError, UnicodeDecodeError):
                content = _read(directory_fd, name, _LINE_BYTES_MAX + 1)
                line = content.decode("ascii") if content is not None else ""
                if _MONITORED.fullmatch(line):
                    found[name] = line
    return found


@contextmanager
def _opened(base: Path, part: str) -> Iterator[int]:
    """Yields a descriptor of the directory *part* of *base*. Raises OSError."""
    base_fd = os.open(base, _IN_DIRECTORY)
    try:
        fd = os.open(part, _IN_DIRECTORY, dir_fd=base_fd)
    finally:
        os.close(base_fd)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _open_database() -> Iterator[sqlite3.Connection]:
    path = _database()
    try:
        with closing(
            sqlite3.connect(f"{path.as_uri()}?mode=rw", timeout=_LOCKED_SECONDS, uri=True)
        ) as database:
            yield database
    except sqlite3.Error as error:
        raise ExportError(f"{path}: {error}: is this nfsdcld's database?") from None


def _epochs(database: sqlite3.Connection) -> tuple[int, int]:
    """Returns the current epoch, and that of the clients which may take locks back in a grace
    period that is not over, else 0."""
    rows = database.execute("SELECT current, recovery FROM grace").fetchall()
    if len(rows) != 1:
        raise ExportError(f"{_database()} has {len(rows)} epochs, where nfsdcld keeps one")
    current, recovery = rows[0]
    return int(current), int(recovery)


def _table(epoch: int) -> str:
    return f'"rec-{epoch:016x}"'


def _clients() -> frozenset[_Client]:
    if not keeps_v4():
        return frozenset()
    with _open_database() as database:
        epochs = [epoch for epoch in _epochs(database) if epoch]
        rows = [
            row
            for epoch in epochs
            for row in database.execute(f"SELECT id, princhash FROM {_table(epoch)}")
        ]
    return _checked((bytes(name), bytes(hash_) if hash_ else None) for name, hash_ in rows)


# -- those that come with a volume -----------------------------------------------------------------


def add_to_server(records: ClientRecords, name: str) -> None:
    """Have *records* among those that the server gives their locks back when it starts; those that
    it has stay. nfsd must be stopped; nfsdcld may run. Raises ExportError, OSError."""
    if records.v4 and keeps_v4():
        with _open_database() as database, database:
            current, recovery = _epochs(database)
            # Of a grace period that was not over, nfsdcld clears the current epoch, and goes on
            # with the one before.
            rows = sorted(records.v4, key=repr)
            database.executemany(
                f"INSERT OR IGNORE INTO {_table(recovery or current)} (id, princhash) "
                "VALUES (?, ?)",
                rows,
            )
    _stage(records, name)


def _stage(records: ClientRecords, name: str) -> None:
    """Lay out what sm-notify(8) needs to notify the NFSv3 clients among *records*, but those that
    are clients of this server itself."""
    here = _hosts(_statd(), "sm")
    hosts = [(host, line) for host, line in records.v3 if host not in here]
    if not hosts:
        return
    owner = _statd().stat() if _statd().exists() else None
    base = notified(name)
    base.parent.mkdir(parents=True, exist_ok=True)
    with (
        _made(base, owner) as base_fd,
        _made(base / "sm", owner, base_fd) as directory_fd,
        _made(base / "sm.bak", owner, base_fd),
    ):
        for host, line in hosts:
            _make_file(directory_fd, host, line, owner)


@contextmanager
def _made(path: Path, owner: os.stat_result | None, parent_fd: int | None = None) -> Iterator[int]:
    """Makes the directory *path*, which *parent_fd* has, for *owner*, unless it is there, and
    yields its descriptor. Raises OSError; ExportError where it is another's."""
    name = path if parent_fd is None else path.name
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent_fd)
    fd = os.open(name, _IN_DIRECTORY, dir_fd=parent_fd)
    try:
        found = os.fstat(fd)
        if owner is not None and found.st_uid != owner.st_uid:
            # One that was just made is empty. Any other may have been renamed to be given away.
            if found.st_uid != 0 or os.listdir(fd):
                raise ExportError(f"{path} is not statd's: remove it, so that it is made anew")
            os.fchown(fd, owner.st_uid, owner.st_gid)
        yield fd
    finally:
        os.close(fd)


def _make_file(directory_fd: int, name: str, line: str, owner: os.stat_result | None) -> None:
    """Have *line* in the file *name*, a new one of *owner*. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory_fd)
    with open(os.open(name, _MAKE, 0o600, dir_fd=directory_fd), "wb") as file:
        file.write(line.encode("ascii"))
        if owner is not None:
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)


def save(mountpoint: Path, records: ClientRecords) -> bool:
    """Keep *records* in the volume at *mountpoint*, unless it has just these; returns whether it
    had not. Raises OSError; ExportError where a user has taken the directory's name."""
    content = records.to_bytes()
    with _directory(mountpoint, make=True) as fd:
        if _read(fd, _FILE, _BYTES_MAX) == content:
            return False
        write_atomically("nfs-clients", _FILE, content, Outlives.MACHINE, dir_fd=fd)
    return True


def put_aside(records: ClientRecords | None, name: str) -> None:
    """Keep *records*, with which the volume *name* has come, because those of this server take
    their place there, and the connections are needed later; None: forget what was kept. Raises
    OSError."""
    path = _aside(name)
    if records is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically("nfs-aside", path, records.to_bytes(), Outlives.PROCESS)


def load_aside(name: str) -> ClientRecords | None:
    """Returns what :func:`put_aside` has kept of the volume *name*; None: nothing. Raises OSError,
    ExportError."""
    path = _aside(name)
    try:
        return _parse(path.read_bytes())
    except FileNotFoundError:
        return None
    except UNREADABLE_JSON as error:
        raise ExportError(f"{path} is not as it was written ({error}): remove it") from None


def _aside(name: str) -> Path:
    return run_directory() / f"{name}.nfs-before"


def load(mountpoint: Path) -> ClientRecords | None:
    """Returns those that the volume at *mountpoint* has come with; None: it has none. Raises
    OSError, ExportError."""
    try:
        with _directory(mountpoint, make=False) as fd:
            content = _read(fd, _FILE, _BYTES_MAX)
    except FileNotFoundError:
        return None
    if content is None:
        return None
    try:
        return _parse(content)
    except UNREADABLE_JSON as error:
        raise ExportError(
            f"{mountpoint / DIRECTORY / _FILE} is not as it was written ({error}): remove it, and "
            "NFS clients begin anew"
        ) from None


@contextmanager
def _directory(mountpoint: Path, *, make: bool) -> Iterator[int]:
    if not os.path.ismount(mountpoint):
        raise ExportError(f"{mountpoint} is not mounted")
    root_fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if make:
            with suppress(FileExistsError):
                os.mkdir(DIRECTORY, 0o700, dir_fd=root_fd)
        fd = os.open(DIRECTORY, _IN_DIRECTORY, dir_fd=root_fd)
    finally:
        os.close(root_fd)
    try:
        found = os.fstat(fd)
        if found.st_uid != 0 or found.st_mode & 0o077:
            raise ExportError(
                f"{mountpoint / DIRECTORY} is not root's alone: remove it, so that it is made anew"
            )
        yield fd
    finally:
        os.close(fd)


def _read(directory_fd: int, name: str, bytes_max: int) -> bytes | None:
    """Returns up to *bytes_max* of the file *name*; None where it is missing, or no file. Raises
    OSError."""
    try:
        fd = os.open(name, _READ, dir_fd=directory_fd)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return None
        return file.read(bytes_max)
