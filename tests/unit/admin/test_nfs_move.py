"""The steps in NFS around a change of the role. The NFS server's programs are scripts that do
what those would to the files that tell of it; the real ones are in tests/nfs."""

import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusejournal.admin.floating_address import parse_floating
from fusejournal.admin.nfs_move import RoleChange, follow, let_go, notify
from fusejournal.errors import ExportError
from fusejournal.nfs import client_records, client_watch, nfsd
from fusejournal.nfs.client_records import ClientRecords
from fusejournal.nfs.connections import ClientConnection
from tests.unit.nfs.test_client_records import (
    ANNA,
    BEN,
    MONITORED,
    insert,
    make_database,
    mounted,
    rows_of,
)
from tests.unit.nfs.test_exports import EXPORTFS

pytestmark = pytest.mark.mount

__all__ = ["mounted"]

_NFSD = f"""#!{sys.executable}
import pathlib, socket, sys
root = pathlib.Path(sys.argv[0]).parents[2]
threads = root / "proc/fs/nfsd/threads"
if (root / "broken").exists():
    sys.exit("rpc.nfsd: no port")
if (root / "stuck").exists():
    sys.exit()
with open(root / "calls", "a") as calls:
    print("nfsd", *sys.argv[1:], socket.gethostname(), file=calls)
threads.write_text(sys.argv[1] if sys.argv[1:] else "8")
"""
_NFSCONF = """#!/bin/sh
[ "$2 $3" = "nfsd scope" ] && echo files.example.org
"""
_NOTIFY = f"""#!{sys.executable}
import pathlib, sys
root = pathlib.Path(sys.argv[0]).parents[2]
with open(root / "calls", "a") as calls:
    print("sm-notify", *sys.argv[1:], file=calls)
if (root / "broken").exists():
    sys.exit("sm-notify: my_name '192.0.2.9' is unusable")
"""


@pytest.fixture
def server(tmp_path: Path, mounted: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The root of a server that exports *mounted*."""
    root = tmp_path / "server"
    parts = ("etc/exports.d", "var/lib/nfs/nfsdcld", "var/lib/nfs/sm", "usr/sbin", "proc/fs/nfsd",
             "proc/fs/lockd")  # fmt: skip
    for part in parts:
        (root / part).mkdir(parents=True)
    programs = {
        "exportfs": EXPORTFS, "rpc.nfsd": _NFSD, "nfsconf": _NFSCONF, "sm-notify": _NOTIFY,
        "unshare": '#!/bin/sh\nexec /usr/bin/unshare "$@"\n',
    }  # fmt: skip
    for name, text in programs.items():
        (root / "usr/sbin" / name).write_text(text)
        (root / "usr/sbin" / name).chmod(0o755)
    (root / "etc/exports").write_text(f"{mounted} 192.0.2.0/24(rw,sync)\n")
    (root / "proc/fs/nfsd/threads").write_text("0\n")
    monkeypatch.setenv("FUSEJOURNAL_NFS_ROOT", str(root))
    monkeypatch.setenv("FUSEJOURNAL_RUN_ROOT", str(tmp_path / "run"))
    make_database(root, current=1, recovery=0)
    yield root
    client_watch.end("vol")


def change(when: str, role: str, mounted: Path, reign: str = "2/beef") -> RoleChange:
    return RoleChange(when, role, reign, "vol", mounted)


def calls(server: Path) -> list[str]:
    path = server / "calls"
    found = path.read_text().splitlines() if path.exists() else []
    path.write_text("")
    return found


def wait_for_record(mounted: Path, wanted: ClientRecords) -> None:
    deadline = time.monotonic() + 20
    while client_records.load(mounted) != wanted:
        assert time.monotonic() < deadline, client_records.load(mounted)
        time.sleep(0.05)


def test_a_primary_keeps_the_names_of_its_clients_as_they_come(server: Path, mounted: Path) -> None:
    assert follow(change("after", "primary", mounted)) == ["nfsd serves"]
    # By a scope that all servers have, not by the name of this one.
    assert "nfsd files.example.org" in calls(server)
    assert nfsd.threads() == 8
    wait_for_record(mounted, ClientRecords("2/beef"))
    insert(server, 1, ANNA)
    wait_for_record(mounted, ClientRecords("2/beef", frozenset((ANNA,))))


def test_nfsd_goes_on_where_the_layer_alone_was_started_again(server: Path, mounted: Path) -> None:
    client_records.save(mounted, ClientRecords("2/beef", frozenset((ANNA,))))
    (server / "proc/fs/nfsd/threads").write_text("3\n")
    assert follow(change("after", "primary", mounted)) == []
    assert not [call for call in calls(server) if call.startswith("nfsd")]
    assert rows_of(server, 1) == set()


def test_a_new_primary_takes_the_clients_over(server: Path, mounted: Path) -> None:
    records = ClientRecords("1/feed", frozenset((ANNA,)), (("b.org", MONITORED),))
    client_records.save(mounted, records)
    insert(server, 1, BEN)
    (server / "proc/fs/nfsd/threads").write_text("3\n")
    told = follow(change("after", "primary", mounted))
    assert told == ["1 NFSv4 and 1 NFSv3 clients came with the volume", "nfsd serves"]
    assert [call for call in calls(server) if call.startswith("nfsd")] == [
        f"nfsd 0 {socket.gethostname()}", "nfsd files.example.org",
    ]  # fmt: skip
    assert rows_of(server, 1) == {ANNA, BEN}
    # NFSv3 clients have the grace period to take theirs back.
    assert not (server / "proc/fs/lockd/nlm_end_grace").exists()
    both = ClientRecords("2/beef", frozenset((ANNA, BEN)), (("b.org", MONITORED),))
    wait_for_record(mounted, both)
    address = parse_floating("192.0.2.9/24")
    assert notify("vol", address) == ["NFSv3 clients are told"]
    assert calls(server) == [f"sm-notify -f -P {client_records.notified('vol')} -v 192.0.2.9"]
    (server / "broken").touch()
    with pytest.raises(ExportError, match=r"192\.0\.2\.9 needs a name"):
        notify("vol", address)


def test_lockd_waits_for_nobody_where_nobody_comes(server: Path, mounted: Path) -> None:
    client_records.save(mounted, ClientRecords("1/feed", frozenset((ANNA,))))
    follow(change("after", "primary", mounted))
    assert (server / "proc/fs/lockd/nlm_end_grace").read_text() == "Y\n"
    assert notify("vol", parse_floating("192.0.2.9/24")) == ["no NFSv3 client has to be told"]


def test_an_old_primary_gives_its_clients_along(server: Path, mounted: Path) -> None:
    follow(change("after", "primary", mounted))
    wait_for_record(mounted, ClientRecords("2/beef"))
    insert(server, 1, ANNA)
    told = follow(change("before", "mirror", mounted, "3/feed"))
    assert told == ["nfsd rests; 1 NFSv4 and 0 NFSv3 clients may take their locks back elsewhere"]
    assert nfsd.threads() == 0
    assert client_records.load(mounted) == ClientRecords("2/beef", frozenset((ANNA,)))
    # As a mirror it serves its own export; or, where it came to nothing, as before.
    assert follow(change("after", "mirror", mounted, "3/feed")) == ["nfsd serves"]
    assert follow(change("after", "mirror", mounted, "3/feed")) == []
    nfsd.stop()
    assert follow(change("after", "primary", mounted)) == ["nfsd serves"]


def test_a_mirror_that_is_served_rests_too(server: Path, mounted: Path) -> None:
    assert follow(change("before", "primary", mounted)) == ["nfsd does not run"]
    (server / "proc/fs/nfsd/threads").write_text("3\n")
    assert follow(change("before", "primary", mounted)) == [f"{mounted} is not served yet"]
    assert nfsd.threads() == 3
    follow(change("after", "mirror", mounted))
    assert follow(change("before", "primary", mounted)) == ["nfsd rests"]
    assert nfsd.threads() == 0


@pytest.mark.parametrize(
    ("missing", "words"),
    [("nfsconf", r"scope = NAME in /etc/nfs\.conf"), ("nfsdcld", "enable --now nfsdcld")],
)
def test_it_is_said_what_locks_lack(server: Path, mounted: Path, missing: str, words: str) -> None:
    if missing == "nfsconf":
        (server / "usr/sbin/nfsconf").unlink()
    else:
        (server / "var/lib/nfs/nfsdcld/main.sqlite").unlink()
    with pytest.raises(ExportError, match=words):
        follow(change("after", "primary", mounted))
    assert nfsd.threads() == 8


def test_an_nfsd_that_does_not_start_is_a_failure(server: Path, mounted: Path) -> None:
    (server / "broken").touch()
    with pytest.raises(ExportError, match=r"does not start .*no port.*: systemctl restart"):
        follow(change("after", "primary", mounted))


def test_one_that_does_not_stop_is_not_taken_for_one_that_has_begun_anew(
    server: Path, mounted: Path
) -> None:
    """It would give no client a lock back."""
    client_records.save(mounted, ClientRecords("1/feed", frozenset((ANNA,))))
    (server / "proc/fs/nfsd/threads").write_text("3\n")
    (server / "stuck").touch()
    with pytest.raises(ExportError, match="nfsd does not stop"):
        follow(change("after", "primary", mounted))
    assert rows_of(server, 1) == set()


def test_at_a_boot_all_that_belongs_to_it_is_started(server: Path, mounted: Path) -> None:
    (server / "run/systemd/system").mkdir(parents=True)
    systemctl = server / "usr/sbin/systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "$@" >>{server}/calls\n')
    systemctl.chmod(0o755)
    # It does nothing for a unit of which rpc.nfsd alone was stopped.
    assert follow(change("after", "mirror", mounted)) == ["nfsd serves"]
    assert calls(server)[-2:] == ["start nfs-server", "nfsd files.example.org"]
    nfsd.stop()
    systemctl.write_text(f"#!/bin/sh\necho 8 >{server}/proc/fs/nfsd/threads\n")
    calls(server)
    assert follow(change("after", "mirror", mounted)) == ["nfsd serves"]
    assert not [call for call in calls(server) if call.startswith("nfsd")]


@pytest.mark.parametrize("spoilt", ["record", "database"])
def test_clients_have_a_server_where_their_names_are_spoilt(
    server: Path, mounted: Path, spoilt: str
) -> None:
    client_records.save(mounted, ClientRecords("1/feed", frozenset((ANNA,))))
    if spoilt == "record":
        (mounted / client_records.DIRECTORY / "clients").write_text("{")
    else:
        (server / "var/lib/nfs/nfsdcld/main.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(ExportError, match=r"clients may have lost their locks: .*(remove|nfsdcld)"):
        follow(change("after", "primary", mounted))
    assert nfsd.threads() == 8


@pytest.mark.parametrize("spoilt", ["directory", "record", "database"])
def test_no_user_keeps_the_service_where_it_is(server: Path, mounted: Path, spoilt: str) -> None:
    """A volume's root may be theirs to make names in, and a hook that fails has a handoff and a
    demotion refused."""
    (server / "proc/fs/nfsd/threads").write_text("3\n")
    client_records.save(mounted, ClientRecords("2/beef"))
    insert(server, 1, ANNA)
    words = r"clients may lose their locks: .*"
    if spoilt == "directory":
        os.chown(mounted / client_records.DIRECTORY, 1000, 1000)
        words += "is not root's alone: remove it, so that it is made anew"
    elif spoilt == "record":
        (mounted / client_records.DIRECTORY / "clients").write_text("{")
        words = "1 NFSv4 and 0 NFSv3 clients may take their locks back elsewhere"
    else:
        (server / "var/lib/nfs/nfsdcld/main.sqlite").write_bytes(b"no database" * 100)
        words += r"nfsdcld's database\?"
    (told,) = follow(change("before", "mirror", mounted))
    assert re.fullmatch(f"nfsd rests; {words}", told)
    assert nfsd.threads() == 0


def hold(server: Path, number: int, name: str, states: str) -> None:
    """Have nfsd know an NFSv4 client, as it tells of it."""
    client = server / f"proc/fs/nfsd/clients/{number}"
    client.mkdir(parents=True)
    info = f'clientid: 0x1\naddress: "192.0.2.{number}:700"\nstatus: confirmed\nname: "{name}"\n'
    (client / "info").write_text(info)
    (client / "states").write_text(states)


@pytest.mark.parametrize("opens", [0, 1])
def test_clients_that_hold_nothing_are_not_waited_for(
    server: Path, mounted: Path, opens: int
) -> None:
    """By those that hold something the others would wait until the grace period is over, or until
    each has said something; which may be as long as a lease. But one that has opened a file just
    when that was looked at has something to take back."""
    (server / "proc/fs/nfsd/threads").write_text("8\n")
    odd = (b'odd \xff"name', None)
    never_seen = (b"Linux NFSv4.2 of before", None)
    insert(server, 1, ANNA, BEN, odd, never_seen)
    hold(server, 3, "Linux NFSv4.2 anna", "- 0x00: { type: open }\n")
    hold(server, 4, "Linux NFSv4.2 ben", "")
    hold(server, 5, r"odd \xff\x22name", "")
    statistics = server / "proc/net/rpc/nfsd"
    statistics.parent.mkdir(parents=True)
    counts = [0] * 72
    statistics.write_text(f"rc 0 1 2\nproc4ops {len(counts)} {' '.join(map(str, counts))}\n")
    counts[18] = opens
    late = f"proc4ops {len(counts)} {' '.join(map(str, counts))}"
    program = server / "usr/sbin/rpc.nfsd"
    program.write_text(
        f"{program.read_text()}\n(root / 'proc/net/rpc/nfsd').write_text('{late}')\n"
    )
    follow(change("before", "mirror", mounted))
    found = client_records.load(mounted)
    assert found is not None
    kept = {ANNA, never_seen} | ({BEN, odd} if opens else set())
    assert found.v4 == kept


def test_connections_are_known_after_nfsd_has_closed_them(server: Path, mounted: Path) -> None:
    """Their address goes first, and nfsd closes them by that."""
    (server / "proc/fs/nfsd/threads").write_text("8\n")
    gone = ClientConnection("192.0.2.9", 2049, "192.0.2.3", 700)
    there = ClientConnection("192.0.2.1", 2049, "192.0.2.4", 701)
    client_records.save(mounted, ClientRecords("2/beef", connections=(gone,)))
    (server / "proc/net").mkdir(parents=True)
    line = "0: 010200C0:0801 040200C0:02BD 01 00000000:00000000"
    (server / "proc/net/tcp").write_text(f"sl local_address rem_address st\n {line}\n")
    follow(change("before", "mirror", mounted))
    found = client_records.load(mounted)
    assert found is not None
    assert found.connections == (there, gone)
    # Only those to the address that moves are ended.
    assert follow(change("after", "primary", mounted)) == ["nfsd serves"]
    assert let_go("vol", parse_floating("127.0.0.1/8")) == []


HERE = ClientConnection("127.0.0.1", 2049, "127.0.0.1", 700)
LOOPBACK = parse_floating("127.0.0.1/8")


def test_a_new_primary_ends_the_connections_of_before_though_it_keeps_its_own(
    server: Path, mounted: Path
) -> None:
    """Those of its own, at first none, may replace them before the address is set."""
    client_records.save(mounted, ClientRecords("1/feed", connections=(HERE,)))
    follow(change("after", "primary", mounted))
    wait_for_record(mounted, ClientRecords("2/beef"))
    assert let_go("vol", LOOPBACK) == ["1 NFS connections are ended"]
    assert let_go("vol", LOOPBACK) == []


def test_a_start_in_the_same_reign_ends_no_connection(server: Path, mounted: Path) -> None:
    """nfsd goes on, and so do its clients."""
    client_records.save(mounted, ClientRecords("2/beef", connections=(HERE,)))
    (server / "proc/fs/nfsd/threads").write_text("3\n")
    follow(change("after", "primary", mounted))
    assert let_go("vol", LOOPBACK) == []


def test_a_handoff_that_came_to_nothing_ends_those_that_nfsd_has_closed(
    server: Path, mounted: Path
) -> None:
    client_records.save(mounted, ClientRecords("2/beef", connections=(HERE,)))
    (server / "proc/fs/nfsd/threads").write_text("3\n")
    follow(change("before", "mirror", mounted, "3/feed"))
    assert follow(change("after", "primary", mounted)) == ["nfsd serves"]
    assert let_go("vol", LOOPBACK) == ["1 NFS connections are ended"]
