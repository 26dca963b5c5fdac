"""The names of a server's NFS clients: read from nfsdcld's database and statd's list, kept in a
volume, added to those of another server. The database is as nfsdcld (schema 4) makes it."""

import json
import logging
import os
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusejournal.errors import ExportError
from fusejournal.nfs import client_records
from fusejournal.nfs.client_records import ClientRecords

pytestmark = pytest.mark.mount

ANNA, BEN, CARA = ((f"Linux NFSv4.2 {name}".encode(), None) for name in ("anna", "ben", "cara"))
WITH_PRINCIPAL = (b"\x00\xff'\"", bytes(range(32)))
MONITORED = "0100007f 000186b5 00000003 00000010 80c07139 10.77.0.3 guest"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a server that has no clients."""
    for part in ("nfsdcld", "sm", "sm.bak"):
        (tmp_path / "server/var/lib/nfs" / part).mkdir(parents=True)
    monkeypatch.setenv("FUSEJOURNAL_NFS_ROOT", str(tmp_path / "server"))
    make_database(tmp_path / "server", current=1, recovery=0)
    return tmp_path / "server"


def make_database(server: Path, current: int, recovery: int) -> None:
    path = server / "var/lib/nfs/nfsdcld/main.sqlite"
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE parameters (key TEXT PRIMARY KEY, value TEXT)")
        database.execute("INSERT INTO parameters VALUES ('version', '4')")
        database.execute("CREATE TABLE grace (current INTEGER , recovery INTEGER)")
        database.execute("INSERT INTO grace VALUES (?, ?)", (current, recovery))
        for epoch in filter(None, (current, recovery)):
            database.execute(
                f'CREATE TABLE "rec-{epoch:016x}" (id BLOB PRIMARY KEY, princhash BLOB)'
            )
    database.close()


def insert(server: Path, epoch: int, *rows: tuple[bytes, bytes | None]) -> None:
    with sqlite3.connect(server / "var/lib/nfs/nfsdcld/main.sqlite") as database:
        database.executemany(f'INSERT INTO "rec-{epoch:016x}" VALUES (?, ?)', rows)
    database.close()


def rows_of(server: Path, epoch: int) -> set[tuple[bytes, bytes | None]]:
    with sqlite3.connect(server / "var/lib/nfs/nfsdcld/main.sqlite") as database:
        found = set(database.execute(f'SELECT * FROM "rec-{epoch:016x}"'))
    database.close()
    return found


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system that is mounted."""
    path = tmp_path / "volume"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_the_clients_of_a_server(server: Path) -> None:
    assert client_records.of_server("1/a", "v") == ClientRecords("1/a")
    insert(server, 1, ANNA, WITH_PRINCIPAL)
    (server / "var/lib/nfs/sm/10.77.0.3").write_text(MONITORED)
    (server / "var/lib/nfs/sm/.half").write_text("x")
    found = client_records.of_server("1/a", "v")
    assert found.v4 == {ANNA, WITH_PRINCIPAL}
    assert found.v3 == (("10.77.0.3", MONITORED),)
    (server / "var/lib/nfs/nfsdcld/main.sqlite").unlink()
    assert not client_records.keeps_v4()
    assert not client_records.of_server("1/a", "v").v4


def test_in_a_grace_period_those_of_before_are_its_clients_too(server: Path) -> None:
    make_database(server, current=4, recovery=3)
    insert(server, 3, ANNA, BEN)
    insert(server, 4, ANNA)
    assert client_records.of_server("", "v").v4 == {ANNA, BEN}


def test_something_changes_when_a_client_comes(server: Path) -> None:
    before = client_records.stamp()
    assert client_records.stamp() == before
    path = server / "var/lib/nfs/nfsdcld/main.sqlite"
    os.utime(path, ns=(1, 1))
    assert client_records.stamp() != before


@pytest.mark.parametrize(("current", "recovery", "into"), [(2, 0, 2), (4, 3, 3)])
def test_they_are_added_where_nfsdcld_looks_at_its_start(
    server: Path, current: int, recovery: int, into: int
) -> None:
    """It makes the current epoch the one to recover; of a grace period that was not over it clears
    the current one, and recovers the one before."""
    make_database(server, current, recovery)
    insert(server, into, ANNA)
    records = ClientRecords("1/a", frozenset((ANNA, BEN, WITH_PRINCIPAL)))
    client_records.add_to_server(records, "v")
    client_records.add_to_server(records, "v")
    assert rows_of(server, into) == {ANNA, BEN, WITH_PRINCIPAL}
    if recovery:
        assert not rows_of(server, current)


def test_nfsv3_clients_are_laid_out_to_be_told(server: Path) -> None:
    (server / "var/lib/nfs/sm/10.0.0.1").write_text(MONITORED)
    for part in ("", "sm"):
        os.chown(server / "var/lib/nfs" / part, 901, 65534)
    records = ClientRecords("1/a", frozenset(), (("10.0.0.1", MONITORED), ("b.org", MONITORED)))
    client_records.add_to_server(records, "v")
    base = client_records.notified("v")
    assert [path.name for path in (base / "sm").iterdir()] == ["b.org"]
    assert (base / "sm" / "b.org").read_text() == MONITORED
    # sm-notify takes the directory's owner for its own.
    assert {path.stat().st_uid for path in (base, base / "sm", base / "sm" / "b.org")} == {901}
    found = client_records.of_server("2/b", "v")
    assert [host for host, _ in found.v3] == ["10.0.0.1", "b.org"]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of root's, in a directory of root's."""
    path = tmp_path / "etc" / "shadow"
    path.parent.mkdir()
    path.write_text("root's own")
    path.chmod(0o600)
    return path


def test_a_link_that_statd_plants_is_replaced(server: Path, victim: Path) -> None:
    for part in ("", "sm"):
        os.chown(server / "var/lib/nfs" / part, 901, 65534)
    records = ClientRecords("1/a", frozenset(), (("b.org", MONITORED),))
    client_records.add_to_server(records, "v")
    planted = client_records.notified("v") / "sm" / "b.org"
    planted.unlink()
    planted.symlink_to(victim)
    client_records.add_to_server(records, "v")
    assert not planted.is_symlink()
    assert planted.read_text() == MONITORED
    assert planted.stat().st_uid == 901
    assert victim.read_text() == "root's own"
    assert victim.stat().st_uid == 0


@pytest.mark.parametrize("way", ["linked base", "linked part", "renamed base", "renamed part"])
def test_no_directory_of_others_is_given_to_statd(server: Path, victim: Path, way: str) -> None:
    for part in ("", "sm"):
        os.chown(server / "var/lib/nfs" / part, 901, 65534)
    planted = client_records.notified("v")
    if way.endswith("part"):
        planted.mkdir()
        os.chown(planted, 901, 65534)
        planted /= "sm"
    if way.startswith("linked"):
        planted.symlink_to(victim.parent)
        theirs = victim.parent
    else:
        theirs = victim.parent.rename(planted)
    records = ClientRecords("1/a", frozenset(), (("b.org", MONITORED),))
    with pytest.raises((ExportError, NotADirectoryError)):
        client_records.add_to_server(records, "v")
    assert theirs.stat().st_uid == 0
    assert [path.name for path in theirs.iterdir()] == ["shadow"]


def test_no_file_but_statds_own_is_read(server: Path, victim: Path) -> None:
    """A FIFO would have the reader wait, and a link have a file of root's told to the peers."""
    directory = server / "var/lib/nfs/sm"
    (directory / "good.org").write_text(MONITORED)
    (directory / "large.org").write_text("x" * 2050)
    (directory / "linked.org").symlink_to(victim)
    (server / "var/lib/nfs/sm.bak").rmdir()
    (server / "var/lib/nfs/sm.bak").symlink_to(victim.parent)
    os.mkfifo(directory / "waits.org")
    fifo = os.open(directory / "waits.org", os.O_RDWR | os.O_NONBLOCK)
    os.write(fifo, MONITORED.encode())
    closing = threading.Timer(1.0, os.close, (fifo,))
    closing.start()
    try:
        found = client_records.of_server("1/a", "v")
    finally:
        closing.join()
    assert found.v3 == (("good.org", MONITORED),)


def test_an_admin_may_keep_statds_directory_elsewhere(server: Path) -> None:
    (server / "var/lib/nfs").rename(server / "shared")
    (server / "var/lib/nfs").symlink_to(server / "shared")
    (server / "shared/sm/b.org").write_text(MONITORED)
    assert client_records.of_server("1/a", "v").v3 == (("b.org", MONITORED),)


ODD: list[tuple[bytes, bytes | None]] = [
    (b"", None),
    (b"x" * 1025, None),
    (b"long", b"h" * 33),
    (b"short", b"h" * 31),
]


def test_no_name_is_taken_that_nfsdcld_would_choke_on(
    server: Path, mounted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = frozenset((ANNA, WITH_PRINCIPAL, (b"x" * 1024, None), (b"y", b"h" * 32)))
    client_records.save(mounted, ClientRecords("1/a", good | set(ODD)))
    records = client_records.load(mounted)
    assert records == ClientRecords("1/a", good)
    assert "4 NFSv4 clients are left out" in caplog.text
    client_records.add_to_server(records, "v")
    assert rows_of(server, 1) == good
    # Nor are those of this server's own told to others.
    insert(server, 1, *ODD, (b"without", b""))
    with caplog.at_level(logging.CRITICAL):
        assert client_records.of_server("1/a", "v").v4 == good | {(b"without", None)}


def test_a_volume_keeps_them(server: Path, mounted: Path) -> None:
    assert client_records.load(mounted) is None
    records = ClientRecords("3/feed", frozenset((ANNA, WITH_PRINCIPAL)), (("b.org", MONITORED),))
    assert client_records.save(mounted, records)
    assert client_records.load(mounted) == records
    assert not client_records.save(mounted, records)
    assert client_records.save(mounted, records._replace(reign="4/feed"))
    directory = mounted / client_records.DIRECTORY
    assert directory.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in directory.iterdir()] == ["clients"]


def test_nothing_is_kept_below_a_mount_that_is_gone(server: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="not mounted"):
        client_records.save(tmp_path, ClientRecords("1/a"))
    assert client_records.DIRECTORY not in os.listdir(tmp_path)


@pytest.mark.parametrize("trick", ["owner", "mode", "link"])
def test_users_cannot_have_it_kept_in_theirs(server: Path, mounted: Path, trick: str) -> None:
    """The volume's root may be theirs to make names in."""
    theirs = mounted / client_records.DIRECTORY
    if trick == "link":
        (mounted / "elsewhere").mkdir(0o700)
        theirs.symlink_to("elsewhere")
    else:
        theirs.mkdir(0o700 if trick == "owner" else 0o707)
        theirs.chmod(0o700 if trick == "owner" else 0o707)
        if trick == "owner":
            os.chown(theirs, 1000, 1000)
    with pytest.raises((ExportError, OSError)):
        client_records.save(mounted, ClientRecords("1/a"))
    with pytest.raises((ExportError, OSError)):
        client_records.load(mounted)


GOOD = {"format": 1, "reign": "1/a", "v4": [["00ff", None]], "v3": {"b.org": MONITORED}}


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"v4": [["zz", None]]},
        {"v4": [["00"]]},
        {"v4": 3},
        {"v3": {"../../etc/cron.d/x": MONITORED}},
        {"v3": {".hidden": MONITORED}},
        {"v3": {"b.org": "two\nlines"}},
        {"v3": {"b.org": 5}},
        {"v3": None},
    ],
)
def test_what_is_not_as_it_was_written_is_refused(
    server: Path, mounted: Path, change: dict[str, object]
) -> None:
    client_records.save(mounted, ClientRecords("1/a"))
    path = mounted / client_records.DIRECTORY / "clients"
    path.write_text(json.dumps(GOOD))
    assert client_records.load(mounted) == ClientRecords(
        "1/a", frozenset(((b"\x00\xff", None),)), (("b.org", MONITORED),)
    )
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(ExportError, match="remove it"):
        client_records.load(mounted)


def test_another_database_is_named(server: Path) -> None:
    path = server / "var/lib/nfs/nfsdcld/main.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(ExportError, match=r"main\.sqlite: .* is this nfsdcld's"):
        client_records.of_server("1/a", "v")
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE grace (current INTEGER , recovery INTEGER)")
    database.close()
    with pytest.raises(ExportError, match="has 0 epochs"):
        client_records.of_server("1/a", "v")
