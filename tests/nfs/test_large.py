"""Large things: a directory of 50,000 names, a file of more than the kernel lets wait dirty.

By default that is 384 MiB in a guest of 1 GiB; 1 GiB in one of two with FUSEJOURNAL_NFS_LARGE=1."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xxhash

from fusejournal.journal.reader import JournalReader
from fusejournal.node.state_dir import load_state
from fusejournal.operations import Create, Write
from fusejournal.types import Seq
from tests.support.guest.client import Person, nfsd_counts
from tests.support.guest.images import make_image
from tests.support.guest.server import NfsServer, drop_caches, sh, wait_until
from tests.support.guest.sites import Export, Site, exported_volume
from tests.support.layer import Layer
from tests.support.trees import rebuild
from tests.support.users import ANOTHER, SOMEBODY

_NAMES = 50_000
_FEWER = 1500
_PIECE = 1 << 20
_IS_LARGE = bool(os.environ.get("FUSEJOURNAL_NFS_LARGE"))
_PIECES = 1024 if _IS_LARGE else 384
_MEMORY_MIB = 2048 if _IS_LARGE else 1024
"""A writer has to wait at a fifth of it (vm.dirty_ratio)."""


# -- a large directory -----------------------------------------------------------------------------


def _fill(backing: Path) -> None:
    for name, size in (("large", _NAMES), ("few 3", _FEWER), ("few 4.2", _FEWER)):
        (backing / name).mkdir()
        fd = os.open(backing / name, os.O_RDONLY)
        for number in range(size):
            os.mknod(f"name {number}", 0o644, dir_fd=fd)
        os.close(fd)
        (backing / name).chmod(0o777)


def prepare(directory: Path) -> list[Path]:
    """A volume with large directories."""
    return [make_image(directory, "ext4", 1 << 10, _fill)]


pytestmark = pytest.mark.guest(prepare=prepare, early=True, memory_mib=_MEMORY_MIB)


@pytest.fixture(scope="module")
def filled() -> Iterator[Layer]:
    """That volume."""
    mountpoint = Path("/srv/filled")
    mountpoint.mkdir()
    sh("mount", "/dev/ubdd", mountpoint)
    with Layer(mountpoint / "volume") as layer:
        yield layer


@pytest.fixture
def filled_site(nfs: NfsServer, version: str, filled: Layer) -> Iterator[Site]:
    """It, exported and mounted."""
    with exported_volume(nfs, version, filled, Export()) as site:
        yield site


def _list(directory: Path) -> list[str]:
    """Its names in the order in which they come."""
    with os.scandir(directory) as found:
        return [entry.name for entry in found]


def _list_long(directory: Path) -> list[str]:
    """Lists as ls -l does: the client then asks for attributes along with names."""
    names = []
    with os.scandir(directory) as found:
        for entry in found:
            entry.stat(follow_symlinks=False)
            names.append(entry.name)
    return names


def _come_and_go(directory: Path, number: int) -> None:
    """One name more, and one less."""
    (directory / f"guest {number}").touch()
    if number >= 5:
        (directory / f"guest {number - 5}").unlink()


def test_large_directory(filled_site: Site) -> None:
    site = filled_site
    everything = {f"name {number}": 1 for number in range(_NAMES)}
    with Person(SOMEBODY) as one, Person(ANOTHER) as other:
        for directory, how in ((site.client, _list_long), (site.other, _list)):
            drop_caches()
            assert Counter(one.ask(how, directory / "large")) == everything
        drop_caches()
        # While names come and go, each of those that stay is told once. They do not for as long as
        # it takes: after each change an NFSv3 client asks for all the rest again.
        number = 0
        one.begin(_list, site.client / "large")
        while one.is_busy() and number < 50:
            other.ask(_come_and_go, site.other / "large", number)
            number += 1
        found = Counter(one.end())
        assert number > 10
        guests = {name: found.pop(name) for name in list(found) if name.startswith("guest")}
        assert found == everything
        assert set(guests.values()) <= {1}
        for left in range(max(0, number - 5), number):
            other.ask(os.unlink, site.other / "large" / f"guest {left}")


def _each(directory: Path, act: Callable[[Path], None]) -> list[str]:
    """Do something to each name as it comes."""
    seen = []
    with os.scandir(directory) as found:
        for entry in found:
            seen.append(entry.name)
            act(directory / entry.name)
    return seen


def _rename(path: Path) -> None:
    path.rename(path.with_name(path.name.replace("name", "renamed")))


def test_reader_that_changes_what_it_reads(filled_site: Site, version: str) -> None:
    directory = filled_site.client / f"few {version}"
    with Person(SOMEBODY) as somebody:
        for word, act in (("name", _rename), ("renamed", os.unlink)):
            seen = somebody.ask(_each, directory, act)
            assert Counter(seen) == {f"{word} {number}": 1 for number in range(_FEWER)}
        assert somebody.ask(os.listdir, directory) == []


# -- a large file ----------------------------------------------------------------------------------


def _write_large(path: Path) -> str:
    """Pieces of which no two are alike; the hash of them all."""
    hash = xxhash.xxh3_128()
    piece = bytearray(os.urandom(_PIECE))
    with open(path, "wb", buffering=0) as file:
        for number in range(_PIECES):
            for offset in range(0, _PIECE, 1 << 16):
                piece[offset : offset + 8] = (number << 20 | offset).to_bytes(8, "little")
            hash.update(piece)
            assert file.write(piece) == _PIECE
        os.fsync(file.fileno())
    return hash.hexdigest()


def _read_large(path: Path) -> str:
    hash = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            hash.update(piece)
    return hash.hexdigest()


def check_writes(volume: Layer, after_seq: int) -> int:
    """The entries, all by the same user, cover the file without gaps, and each has what the file
    has there: what comes twice is the same, because every byte was written once. Returns how many
    there are."""
    reader = JournalReader(volume.state / "journal", load_state(volume.state).uuid)
    found = reader.read(Seq(after_seq + 1), Seq(volume.head_seq() + 1))
    made = next(found)
    assert isinstance(made.operation, Create)
    places = []
    with open(volume.backing / "large", "rb") as file:
        for entry in found:
            assert isinstance(entry.operation, Write)
            assert (entry.operation.fid, entry.who.uid) == (made.operation.fid, SOMEBODY)
            offset = entry.operation.offset
            places.append((offset, offset + len(entry.data)))
            assert os.pread(file.fileno(), len(entry.data), offset) == bytes(entry.data)
    end = 0
    for start, stop in sorted(places):
        assert start <= end
        end = max(end, stop)
    assert end == _PIECE * _PIECES == os.stat(volume.backing / "large").st_size
    return len(places)


def test_large_file(volume: Layer, site: Site, version: str) -> None:
    after_seq = volume.head_seq()
    asked = nfsd_counts(version)["write"]
    with Person(SOMEBODY) as somebody, Person(ANOTHER) as another:
        somebody.begin(_write_large, site.client / "large")
        # The layer must not wait for pages of the client's, which wait for the layer.
        wait_until("a large file", lambda: not somebody.is_busy(), 120)
        written = somebody.end()
        drop_caches()
        assert another.ask(_read_large, site.other / "large") == written
    # A client whose connection broke asks again for what it has no answer to. So nfsd may be asked
    # twice (by a new call, which its cache of replies does not know), and then there are two.
    assert check_writes(volume, after_seq) <= nfsd_counts(version)["write"] - asked
    if version == "4.2":  # the journal is alike
        (volume.base / "rebuilt").mkdir()
        rebuild(volume.state, volume.base / "rebuilt", load_state(volume.state).uuid)
        assert _read_large(volume.base / "rebuilt" / "large") == written


def test_the_layer_does_not_wait_for_other_file_systems_pages(volume: Layer) -> None:
    """They may be those of an NFS client on this machine, which wait for the layer. (Here, for
    that needs a capability which a host may lack.)"""
    # A task's flags in the kernel: PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE (include/linux/sched.h).
    flusher = 0x0008_0000 | 0x0010_0000
    volume.start()
    fd = os.open(volume.mountpoint / "f", os.O_CREAT | os.O_WRONLY)
    os.fsync(fd)  # by a thread
    os.close(fd)
    threads = list(Path(f"/proc/{volume.pid}/task").iterdir())
    assert len(threads) > 1
    for thread in threads:
        flags = int((thread / "stat").read_text().rpartition(")")[2].split()[6])
        assert flags & flusher == flusher
    volume.stop()
