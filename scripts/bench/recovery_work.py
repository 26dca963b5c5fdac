"""The journals that recovery is measured with: a source tree from the files of this machine, and a
journal of small entries, with a few that belong together spread over all of it."""

import os
import random
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import Any
from uuid import uuid4

from fusejournal.journal.index import has_index
from fusejournal.journal.index_making import write_index
from fusejournal.journal.journal import Journal
from fusejournal.journal.segment import list_segments
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import (
    Clean,
    Create,
    Mkdir,
    NewEpoch,
    Operation,
    Rename,
    Setattr,
    Unlink,
    Write,
)
from fusejournal.types import ROOT_FID, SYSTEM_CALLER, Caller, Epoch, Fid

_SOURCES = ("/usr/share", "/usr/include", "/usr/lib/python3", "/usr/lib")
_FILE_BYTES_MAX = 16 << 20


def make_source(target: Path, files_max: int, bytes_max: int) -> tuple[int, int]:
    """Copy files, directories and symlinks of this machine until there are so many; files and
    bytes."""
    files = size = 0
    made: list[tuple[str, Path]] = []
    for directory, names, directories in _walk():
        below = target / directory.lstrip("/")
        below.mkdir(parents=True, exist_ok=True)
        made.append((directory, below))
        for name in directories:
            names.append(name) if os.path.islink(f"{directory}/{name}") else None
        for name in names:
            info = os.lstat(f"{directory}/{name}")
            is_link = S_ISLNK(info.st_mode)
            if not is_link and not (S_ISREG(info.st_mode) and info.st_size <= _FILE_BYTES_MAX):
                continue
            if (below / name).is_symlink() or (below / name).exists():
                continue  # one source is part of another
            shutil.copy2(f"{directory}/{name}", below / name, follow_symlinks=False)
            os.lchown(below / name, info.st_uid, info.st_gid)
            files += 1
            size += 0 if is_link else info.st_size
        if files >= files_max or size >= bytes_max:
            break
    for directory, below in reversed(made):
        shutil.copystat(directory, below)
    return files, size


def _walk() -> Iterator[tuple[str, list[str], list[str]]]:
    for source in _SOURCES:
        for directory, directories, names in os.walk(source):
            assert S_ISDIR(os.lstat(directory).st_mode)
            directories.sort()
            yield directory, sorted(names), directories


_DIRECTORIES = 1000
_PIECE_BYTES = 128 << 10
PIECES = 80  # 10 MiB
LOG_ENTRIES = 200
BIG_PATH = "d0500/big"
LOG_PATH = "d0501/log"
_BIG, _LOG = Fid(2), Fid(3)
_FIRST_DIRECTORY = 10
_FIRST_FILE = _FIRST_DIRECTORY + _DIRECTORIES
_USER = Caller(1000, 1000, 4711)
LINE = b"forty bytes, as many as a short line has"
assert len(LINE) == 40


def big_piece(number: int) -> bytes:
    """The content of one piece of the large file."""
    return random.Random(number).randbytes(_PIECE_BYTES)


def _directory_of(number: int) -> Fid:
    return Fid(_FIRST_DIRECTORY + number % _DIRECTORIES)


def path_of(fid: Fid) -> bytes | None:
    """Returns where *fid* lies, where it is a file of the journal of small entries."""
    if fid == ROOT_FID:
        return b""
    if fid in (_BIG, _LOG):
        return (BIG_PATH if fid == _BIG else LOG_PATH).encode()
    if fid < _FIRST_FILE:
        return b"d%04d" % (fid - _FIRST_DIRECTORY)
    number = fid - _FIRST_FILE
    return b"d%04d/file-%08d" % (number % _DIRECTORIES, number)


def _small_entries() -> Iterator[tuple[Operation, bytes]]:
    """The lives of small files, one after the other, without end."""
    number = 0
    while True:
        fid, parent, name = Fid(_FIRST_FILE + number), _directory_of(number), b"file-%08d" % number
        yield Create(fid, parent, name, 0o100644, 1000, 1000, 0, None), b""
        yield Write(fid, 0, None), LINE
        yield Setattr(fid, 0o640, None, None, None, None), b""
        yield Setattr(fid, None, None, None, number * 10**9, number * 10**9), b""
        if number % 4 == 0:
            yield Unlink(fid, parent, name), b""
        elif number % 4 == 1:
            other = _directory_of(number + number % 3)
            yield Rename(fid, parent, name, other, b"renamed-%08d" % number, 0, Fid(0)), b""
        number += 1


def _all_entries(count: int) -> Iterator[tuple[Operation, bytes]]:
    """*count* entries and a few more: small ones, and between them, evenly, the pieces of the large
    file and the lines of the log."""
    yield NewEpoch(Epoch(1), "measured"), b""
    for number in range(_DIRECTORIES):
        yield (
            Mkdir(_directory_of(number), ROOT_FID, b"d%04d" % number, 0o755, 0, 0, None, None),
            b"",
        )
    for fid, path in ((_BIG, BIG_PATH), (_LOG, LOG_PATH)):
        directory, name = path.encode().split(b"/")
        parent = _directory_of(int(directory[1:]))
        yield Create(fid, parent, name, 0o100644, 1000, 1000, 0, None), b""
    small = _small_entries()
    spread = sorted(
        [(count * number // PIECES, _BIG, number) for number in range(PIECES)]
        + [(count * number // LOG_ENTRIES, _LOG, number) for number in range(LOG_ENTRIES)]
    )
    done = 0
    for at, fid, number in spread:
        yield from islice(small, at - done)
        done = at
        data = big_piece(number) if fid == _BIG else LINE
        yield Write(fid, number * len(data), None), data
    yield from islice(small, count - done)
    yield Clean(), b""


def make_journal(directory: str, count: int) -> int:
    """The journal in *directory*, which is made; its head."""
    os.mkdir(directory)
    journal = Journal.create(Path(directory), uuid4(), JournalOptions())
    time_ns = time.time_ns() - count * 10**6
    for operation, data in _all_entries(count):
        time_ns += 10**6
        who = _USER if operation.kind < 16 else SYSTEM_CALLER
        journal.append(operation, who, time_ns, path_of, data)
    journal.sync()
    journal.close()
    return journal.head_seq


def make_indexes(pool: Any, directory: Path) -> None:
    """The sidecars of all sealed segments, as the layer makes them in the background."""
    paths = list_segments(directory)[:-1]
    pool.map(write_index, [path for path in paths if not has_index(path)], chunksize=1)
