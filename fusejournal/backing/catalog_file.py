"""The file of a catalog, and its seal: what the file has to be when it is opened next.

LMDB has no checksums: of a page that has changed on its disk it serves other names, or none. So a
catalog that is closed in order is sealed with the checksum of its file; the seal is broken by the
next commit. A file that is not as it was sealed is damaged: no more than a cache, it is made anew.
Without a seal, as after a kill, the file is believed: the kernel had it all the time, and a start
after a system crash throws it away first.

``seal`` in the catalog's directory: JSON, ``format`` 1, ``bytes`` (the length of the pages, from
the beginning of ``data.mdb``), ``xxh3_128`` (their checksum, in hex)."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import lmdb
import xxhash

from fusejournal.disk import calls
from fusejournal.disk.files import UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.disk.json_records import checked, read_object
from fusejournal.errors import FusejournalError

DATA: Final = "data.mdb"
"""The name of LMDB's file."""
_SEAL: Final = "seal"
_FORMAT: Final = 1
_MAP_BYTES: Final = 1 << 37
"""Address space, not disk: enough for 400 million files. Some machines have 512 GiB of it, in which
a change of the role finds no second 256 GiB where the first were."""
_PAGE_BYTES: Final = 4096
_BEGIN_PAGES: Final = 32
_READ_BYTES: Final = 1 << 20


class CatalogSpoiltError(FusejournalError):
    """The catalog's file cannot be used. It is only a cache: delete it, and it is made anew."""


class Seal(NamedTuple):
    """The length of the file's pages, and their checksum."""

    bytes: int
    xxh3_128: str


def open_environment(directory: Path) -> lmdb.Environment:
    """Opens the catalog in *directory*, or makes it. Raises CatalogSpoiltError when what is there
    is no catalog, or not the one that was closed; OSError."""
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / DATA
    with open(path, "ab", buffering=0) as data:
        if not data.tell():  # LMDB would leave half of a new one on a full disk
            calls.fallocate("catalog.begin", data.fileno(), 0, _BEGIN_PAGES * _PAGE_BYTES)
    _check_seal(directory)
    with opening(directory):
        environment = lmdb.open(
            os.fsencode(directory),
            map_size=_MAP_BYTES,
            max_dbs=8,
            sync=False,
            metasync=False,
            lock=False,
            readahead=False,
            mode=0o600,
        )
    if path.stat().st_size < end_of_pages(environment):
        # Reading beyond the end of a mapped file would end the process.
        environment.close()
        raise CatalogSpoiltError(f"{directory}: shorter than it says")
    return environment


@contextmanager
def opening(directory: Path) -> Iterator[None]:
    """Has what LMDB finds at the opening be an OSError where the disk refuses, else a
    CatalogSpoiltError."""
    try:
        yield
    except (lmdb.DiskError, lmdb.MemoryError) as error:
        raise OSError(errno.EIO, str(error)) from error
    except lmdb.Error as error:
        raise CatalogSpoiltError(f"{directory}: {error}") from error


def end_of_pages(environment: lmdb.Environment) -> int:
    """Returns where the last page that was committed ends, in bytes."""
    last: int = environment.info()["last_pgno"]
    return (last + 1) * _PAGE_BYTES


# -- the seal --------------------------------------------------------------------------------------


def seal(directory: Path, environment: lmdb.Environment) -> None:
    """Seals what is committed, and on the disk. Raises OSError."""
    found = _digest(directory, end_of_pages(environment))
    content = json.dumps({"format": _FORMAT, **found._asdict()}).encode()
    write_atomically("catalog.seal", directory / _SEAL, content, Outlives.MACHINE)


def is_sealed(directory: Path) -> bool:
    """Returns True if there is a seal to break."""
    return (directory / _SEAL).exists()


def break_seal(directory: Path) -> None:
    """Removes the seal, before anything is committed. Raises OSError."""
    calls.unlink("catalog.unseal", directory / _SEAL)


def read_seal(directory: Path) -> Seal | None:
    """Returns the seal in *directory*; None where there is none. Raises CatalogSpoiltError for what
    is no seal, OSError."""
    try:
        raw = read_object(directory / _SEAL)
        if raw.pop("format") != _FORMAT:
            raise ValueError("of another format")
        return checked(Seal(**raw))
    except FileNotFoundError:
        return None
    except UNREADABLE_JSON as error:
        raise CatalogSpoiltError(f"{directory}: its seal is spoilt: {error}") from None


def _check_seal(directory: Path) -> None:
    """Raises CatalogSpoiltError where the file is not as it was sealed, OSError."""
    found = read_seal(directory)
    if found is not None and found != _digest(directory, found.bytes):
        raise CatalogSpoiltError(f"{directory}: not as it was when it was closed")


def _digest(directory: Path, length: int) -> Seal:
    """Returns the seal for the first *length* bytes of the file; fewer, if it has fewer."""
    hash = xxhash.xxh3_128()
    done = 0
    with open(directory / DATA, "rb", buffering=0) as data:
        with suppress(OSError):
            os.posix_fadvise(data.fileno(), 0, length, os.POSIX_FADV_SEQUENTIAL)
        while done < length and (piece := data.read(min(_READ_BYTES, length - done))):
            hash.update(piece)
            done += len(piece)
    return Seal(done, hash.hexdigest())
