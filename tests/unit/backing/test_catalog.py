"""The catalog after entries: names, cookies, links, fids."""

import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import lmdb
import pytest

from fusejournal.backing.catalog import Catalog
from fusejournal.backing.catalog_file import DATA, CatalogSpoiltError, read_seal
from fusejournal.operations import (
    Create,
    Link,
    Mkdir,
    NewEpoch,
    Operation,
    Rename,
    Setattr,
    Unlink,
)
from fusejournal.types import Epoch, Fid, Seq


class Driver:
    """Records operations with growing seqs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.catalog = Catalog(directory)
        self.catalog.add_root(b"root", 99)
        self.seq = 0

    def record(self, operation: Operation) -> int:
        self.seq += 1
        self.catalog.record(operation, Seq(self.seq), self.seq * 1000, b"h%d" % self.seq, self.seq)  # type: ignore[arg-type]
        return self.seq

    def create(self, fid: int, parent: int, name: bytes) -> int:
        return self.record(Create(Fid(fid), Fid(parent), name, stat.S_IFREG, 0, 0, 0, None))

    def mkdir(self, fid: int, parent: int, name: bytes) -> int:
        return self.record(Mkdir(Fid(fid), Fid(parent), name, 0, 0, 0, None, None))

    def names(self, parent: int) -> list[bytes]:
        return [entry.name for entry in self.catalog.list(Fid(parent), 0)]


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    one = Driver(tmp_path / "catalog")
    yield one
    one.catalog.close()


def test_names_and_paths(driver: Driver) -> None:
    driver.mkdir(2, 1, b"d")
    driver.create(3, 2, b"f")
    catalog = driver.catalog
    assert catalog.lookup(Fid(2), b"f") == 3
    assert catalog.lookup(Fid(2), b"g") is None
    assert catalog.path(Fid(3)) == b"d/f"
    assert catalog.path(Fid(1)) == b""
    assert catalog.path(Fid(77)) is None
    assert not catalog.is_empty(Fid(2))
    driver.record(Unlink(Fid(3), Fid(2), b"f"))
    assert catalog.is_empty(Fid(2))
    assert catalog.node(Fid(3)) is None
    assert catalog.next_fid == 4


def test_each_name_of_a_linked_file_can_be_moved(driver: Driver) -> None:
    """Also one that is not the file's own place, within a directory and to another."""
    catalog = driver.catalog
    driver.mkdir(2, 1, b"d")
    driver.create(3, 1, b"a")
    driver.record(Link(Fid(3), Fid(1), b"b"))
    driver.record(Link(Fid(3), Fid(1), b"c"))
    cookies = {entry.name: entry.cookie for entry in catalog.list(Fid(1), 0)}
    for name in (b"a", b"b"):
        driver.record(Rename(Fid(3), Fid(1), name, Fid(1), name + b"2", 0, Fid(0)))
    assert {entry.name: entry.cookie for entry in catalog.list(Fid(1), 0)} == {
        b"d": cookies[b"d"],
        b"a2": cookies[b"a"],
        b"b2": cookies[b"b"],
        b"c": cookies[b"c"],
    }
    for name in (b"a2", b"b2"):
        driver.record(Rename(Fid(3), Fid(1), name, Fid(2), name, 0, Fid(0)))
    node = catalog.node(Fid(3))
    assert node is not None
    assert sorted(catalog.dentries(node)) == [(1, b"c"), (2, b"a2"), (2, b"b2")]
    for parent, name in ((2, b"a2"), (1, b"c"), (2, b"b2")):
        driver.record(Unlink(Fid(3), Fid(parent), name))
    assert catalog.node(Fid(3)) is None
    assert driver.names(2) == []


def test_links(driver: Driver) -> None:
    driver.create(2, 1, b"a")
    driver.record(Link(Fid(2), Fid(1), b"b"))
    driver.record(Link(Fid(2), Fid(1), b"c"))
    node = driver.catalog.node(Fid(2))
    assert node is not None
    assert sorted(name for _, name in driver.catalog.dentries(node)) == [b"a", b"b", b"c"]
    driver.record(Unlink(Fid(2), Fid(1), b"a"))
    assert driver.catalog.path(Fid(2)) in (b"b", b"c")
    driver.record(Unlink(Fid(2), Fid(1), b"b"))
    assert driver.catalog.path(Fid(2)) == b"c"
    driver.record(Unlink(Fid(2), Fid(1), b"c"))
    assert driver.catalog.node(Fid(2)) is None


def test_cookies(driver: Driver) -> None:
    driver.mkdir(2, 1, b"d")
    for fid in (3, 4, 5):
        driver.create(fid, 1, b"f%d" % fid)
    cookies = {entry.name: entry.cookie for entry in driver.catalog.list(Fid(1), 0)}
    assert cookies == {b"d": 6, b"f3": 8, b"f4": 10, b"f5": 12}
    # Within a directory a rename keeps the place; to another one it is a new name.
    driver.record(Rename(Fid(4), Fid(1), b"f4", Fid(1), b"moved", 0, Fid(0)))
    assert driver.names(1) == [b"d", b"f3", b"moved", b"f5"]
    assert [entry.name for entry in driver.catalog.list(Fid(1), 8)] == [b"moved", b"f5"]
    seq = driver.record(Rename(Fid(3), Fid(1), b"f3", Fid(2), b"f3", 0, Fid(0)))
    (entry,) = driver.catalog.list(Fid(2), 0)
    assert entry.cookie == 4 + 2 * seq


def test_exchange_and_replacement(driver: Driver) -> None:
    driver.mkdir(2, 1, b"d")
    driver.create(3, 2, b"in")
    driver.create(4, 1, b"out")
    driver.record(Rename(Fid(4), Fid(1), b"out", Fid(2), b"in", 2, Fid(3)))
    assert driver.catalog.path(Fid(3)) == b"out"
    assert driver.catalog.path(Fid(4)) == b"d/in"
    driver.record(Rename(Fid(4), Fid(2), b"in", Fid(1), b"out", 0, Fid(3)))
    assert driver.catalog.node(Fid(3)) is None
    assert driver.names(1) == [b"d", b"out"]


def test_contradictions_are_found(driver: Driver) -> None:
    with pytest.raises(KeyError):
        driver.record(Setattr(Fid(9), 0, None, None, None, None))
    with pytest.raises(KeyError):
        driver.record(Unlink(Fid(1), Fid(1), b"nothing"))


def test_what_was_committed_is_there_again(driver: Driver) -> None:
    driver.mkdir(2, 1, b"d")
    driver.record(Setattr(Fid(2), 0o700, None, None, None, None))
    driver.catalog.commit()
    driver.create(3, 2, b"lost")
    driver.catalog.close()
    again = Catalog(driver.directory)
    assert again.applied_seq == 2
    node = again.node(Fid(2))
    assert node is not None
    assert (node.handle, node.ino, node.ctime_ns, node.last_seq) == (b"h1", 1, 2000, 2)
    assert again.lookup(Fid(2), b"lost") is None
    assert again.next_fid == 3
    driver.catalog = again


def test_epochs_have_fids_of_their_own(driver: Driver) -> None:
    driver.create(2, 1, b"a")
    driver.catalog.record_control(NewEpoch(Epoch(3), "lost"), Seq(2))
    assert driver.catalog.next_fid == (2 << 40) + 2


def test_fids_without_handle(driver: Driver) -> None:
    for fid in range(2, 9000):
        driver.create(fid, 1, b"f%d" % fid)
    for fid in (5, 4100, 8999):
        node = driver.catalog.node(Fid(fid))
        assert node is not None
        node.handle = b""
        driver.catalog.touch(node)
    assert list(driver.catalog.fids_without_handle()) == [5, 4100, 8999]


def test_nodes_changed_at_the_edge_of_the_cache_are_kept(driver: Driver) -> None:
    driver.mkdir(2, 1, b"live")
    driver.mkdir(3, 1, b"new")
    count = 34_000
    live = {}
    for number in range(count):
        driver.create(4 + number, 2, b"%d" % number)
        live[number] = 4 + number
    for number in range(count):
        fid = 4 + count + number
        driver.create(fid, 3, b"%d" % number)
        driver.record(
            Rename(Fid(fid), Fid(3), b"%d" % number, Fid(2), b"%d" % number, 0, Fid(live[number]))
        )
        live[number] = fid
        if number % 5000 == 0:
            driver.catalog.commit()
    driver.catalog.commit()
    driver.catalog.close()
    driver.catalog = Catalog(driver.directory)
    assert [n for n, fid in live.items() if driver.catalog.path(Fid(fid)) != b"live/%d" % n] == []


def test_a_path_without_end_is_not_told(driver: Driver) -> None:
    parent = 1
    for fid in range(2, 402):
        driver.mkdir(fid, parent, b"n" * 250)
        parent = fid
    assert driver.catalog.path(Fid(200)) is not None
    assert driver.catalog.path(Fid(401)) is None


_OPEN_TWICE = """
import resource, sys
from pathlib import Path
from fusejournal.backing.catalog import Catalog
from fusejournal.backing.catalog_file import DATA, CatalogSpoiltError, read_seal
resource.setrlimit(resource.RLIMIT_AS, (1 << 38, 1 << 38))
directory = Path(sys.argv[1])
for _ in range(2):
    catalog = Catalog(directory)
    catalog.commit()
    catalog.close()
"""


def test_it_fits_where_address_space_is_small(tmp_path: Path) -> None:
    """Some machines have 39 bits of it, in pieces once a process has changed its role."""
    program = [sys.executable, "-c", _OPEN_TWICE, str(tmp_path / "catalog")]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pages_that_came_and_went_are_no_cut(tmp_path: Path) -> None:
    """LMDB writes nothing of a page that a transaction takes at the end of the file and frees."""
    for seed in (19, 75, 178, 277):
        driver = Driver(tmp_path / f"catalog {seed}")
        random = Random(seed)
        names: list[tuple[bytes, int]] = []
        fid = 1
        for _ in range(5):
            for _ in range(random.choice([1, 5, 50, 500, 2000])):
                if names and random.random() < random.choice([0.2, 0.5, 0.8]):
                    name, gone = names.pop(random.randrange(len(names)))
                    driver.record(Unlink(Fid(gone), Fid(1), name))
                else:
                    fid += 1
                    name = b"%d" % random.randrange(1 << 40) + b"x" * random.randrange(100)
                    names.append((name, fid))
                    driver.create(fid, 1, name)
            driver.catalog.commit()
            left = driver.names(1)
            driver.catalog.close()
            driver.catalog = Catalog(driver.directory)
            assert driver.names(1) == left
        driver.catalog.close()


def _spoil(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_sealed_file_that_has_changed_is_damage(driver: Driver, tmp_path: Path) -> None:
    for number in range(500):
        driver.create(number + 2, 1, b"file %d" % number)
    driver.catalog.commit()
    driver.catalog.sync()
    driver.catalog.seal()
    driver.catalog.close()
    whole = tmp_path / "whole"
    shutil.copytree(driver.directory, whole)
    random = Random(7)
    found = read_seal(whole)
    assert found is not None
    sealed = found.bytes
    assert sealed > 100_000
    for at in [0, sealed - 1, *(random.randrange(sealed) for _ in range(20))]:
        spoilt = tmp_path / f"spoilt {at}"
        shutil.copytree(whole, spoilt)
        _spoil(spoilt / DATA, at)
        with pytest.raises(CatalogSpoiltError, match="not as it was when it was closed"):
            Catalog(spoilt)
    _spoil(whole / DATA, sealed)  # what is beyond is space for more
    driver.catalog = Catalog(whole)
    assert len(driver.names(1)) == 500


@pytest.mark.parametrize("seal", [b"", b"{}", b'{"format": 1, "bytes": "x", "xxh3_128": ""}'])
def test_a_seal_that_is_none(driver: Driver, seal: bytes) -> None:
    driver.catalog.commit()
    driver.catalog.close()
    (driver.directory / "seal").write_bytes(seal)
    with pytest.raises(CatalogSpoiltError, match="its seal is spoilt"):
        Catalog(driver.directory)
    (driver.directory / "seal").unlink()
    driver.catalog = Catalog(driver.directory)


def test_a_commit_breaks_the_seal(driver: Driver) -> None:
    """Until then the file is as it was: a process that only looks, or dies first, leaves it."""
    driver.create(2, 1, b"file")
    driver.catalog.commit()
    driver.catalog.seal()
    for _ in range(2):
        driver.catalog.close()
        driver.catalog = Catalog(driver.directory)
        driver.create(3, 1, b"another")
        assert read_seal(driver.directory) is not None
    driver.catalog.commit()
    assert read_seal(driver.directory) is None
    driver.catalog.close()
    driver.catalog = Catalog(driver.directory)
    assert driver.names(1) == [b"file", b"another"]


def test_a_database_that_is_none_is_damage(driver: Driver) -> None:
    """Found by LMDB itself, where there is no seal: nothing of the file stays open."""
    driver.catalog.commit()
    driver.catalog.close()
    with (
        lmdb.open(str(driver.directory), max_dbs=8, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.drop(environment.open_db(b"nodes", transaction))
        transaction.put(b"nodes", b"what is no database")
    with pytest.raises(CatalogSpoiltError, match=str(driver.directory)) as found:
        Catalog(driver.directory)
    assert found.value.__traceback__ is not None  # it may still hold the catalog
    mapped = Path("/proc/self/maps").read_text()
    assert str(driver.directory) not in mapped
    shutil.rmtree(driver.directory)
    driver.catalog = Catalog(driver.directory)
