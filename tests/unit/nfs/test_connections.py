"""The TCP connections of NFS clients: as the kernel tells them, as a peer does, and ended for
clients by the server that has the address now."""

import json
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from fusejournal.nfs.connections import (
    CONNECTIONS_MAX,
    ClientConnection,
    checked_connections,
    established,
    have_end,
    most_likely,
    segment,
)
from tests.support.network import Host, network

pytestmark = pytest.mark.mount

FLOATING = "10.77.0.100"
_CLIENT = f"""
import socket, sys
client = socket.create_connection(("{FLOATING}", 2049))
print("connected", flush=True)
client.settimeout(30)
try:
    print(client.recv(1))
except ConnectionResetError:
    print("reset")
"""
_SERVER = f"""
import socket, sys
listening = socket.create_server(("{FLOATING}", 2049))
print("listening", flush=True)
found = listening.accept()
print("accepted", flush=True)
sys.stdin.read()
"""
_LISTED = """
import json
from fusejournal.nfs.connections import established
print(json.dumps(established()))
"""
_END = f"""
import json, sys
from ipaddress import ip_address
from fusejournal.nfs.connections import checked_connections, have_end
told = checked_connections(json.load(sys.stdin))
print(len(have_end(told, ip_address("{FLOATING}"))))
"""


def python(host: Host, program: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*host.prefix, sys.executable, "-c", program],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def ip(host: Host, *words: str) -> None:
    subprocess.run([*host.prefix, "ip", *words], check=True)


def test_a_client_learns_at_once_that_its_server_is_another() -> None:
    """Though it has nothing to say, and waits for an answer: alone it would do so for ever."""
    with network() as net:
        old, new, far = net.host(), net.host(), net.host()
        ip(old, "addr", "add", f"{FLOATING}/24", "dev", "eth0")
        with python(old, _SERVER) as server:
            assert server.stdin
            assert server.stdout
            assert server.stdout.readline() == "listening\n"
            with python(far, _CLIENT) as client:
                try:
                    assert server.stdout.readline() == "accepted\n"
                    with python(old, _LISTED) as listing:
                        listed, _ = listing.communicate()
                    ip(old, "addr", "del", f"{FLOATING}/24", "dev", "eth0")
                    ip(new, "addr", "add", f"{FLOATING}/24", "dev", "eth0")
                    # As gratuitous ARP has it.
                    ip(far, "neigh", "flush", "all")
                    with python(new, _END) as ending:
                        ended, _ = ending.communicate(listed)
                    assert ended == "1\n"
                    assert client.communicate(timeout=30)[0] == "connected\nreset\n"
                finally:
                    client.kill()
                    server.kill()
    (one,) = checked_connections(json.loads(listed))
    assert one[:3] == (FLOATING, 2049, far.address)


_TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 64004D0A:0801 03004D0A:03E8 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0
   1: 64004D0A:0801 03004D0A:03E8 06 00000000:00000000 00:00000000 00000000     0        0 1 1 0
   2: 00000000:0801 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0
   3: 64004D0A:0016 03004D0A:C001 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0
   4: nonsense
"""
_TABLE_6 = """\
  sl  local_address                         remote_address                        st
   0: B80D0120000000000000000001000000:0801 B80D0120000000000000000002000000:02BC 01
"""


def test_those_of_nfsd_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEJOURNAL_NFS_ROOT", str(tmp_path))
    assert established() == ()
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/tcp").write_text(_TABLE)
    (tmp_path / "proc/net/tcp6").write_text(_TABLE_6)
    assert established() == (
        ClientConnection("10.77.0.100", 2049, "10.77.0.3", 1000),
        ClientConnection("2001:db8::1", 2049, "2001:db8::2", 700),
    )
    assert checked_connections(json.loads(json.dumps(established()))) == established()


@pytest.mark.parametrize(
    "told",
    [
        [["10.77.0.100", 2049, "10.77.0.3"]],
        [["10.77.0.100", 2049, "2001:db8::2", 700]],
        [["10.77.0.100", 22, "10.77.0.3", 700]],
        [["10.77.0.100", 2049, "10.77.0.3", 0]],
        [["10.77.0.100", 2049, "10.77.0.3", 65536]],
        [["somewhere", 2049, "10.77.0.3", 700]],
        [7],
        "nothing",
    ],
)
def test_what_a_peer_tells_is_checked(told: list[list[object]]) -> None:
    with pytest.raises((ValueError, TypeError)):
        checked_connections(told)


def test_the_segment_is_whole() -> None:
    """Its checksum, with the pseudo-header, makes all ones."""
    for one in (
        ClientConnection("10.77.0.100", 2049, "10.77.0.3", 1000),
        ClientConnection("2001:db8::1", 2049, "2001:db8::2", 700),
    ):
        made = segment(one)
        ends = ip_address(one.address).packed + ip_address(one.client).packed
        whole = ends + (6).to_bytes(2) + len(made).to_bytes(2) + made
        total = sum(int.from_bytes(whole[at : at + 2]) for at in range(0, len(whole), 2))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        assert total == 0xFFFF
        assert made[13] == 0x10


def test_a_stranger_with_many_connections_takes_no_clients_place() -> None:
    def number(host: int, port: int) -> ClientConnection:
        return ClientConnection("10.77.0.100", 2049, f"10.77.{host >> 8}.{host & 255}", port)

    strange = [number(1, port) for port in range(2048, 2048 + 2 * CONNECTIONS_MAX)]
    clients = [number(2 + host, 700) for host in range(300)]
    kept = most_likely([*strange, *clients])
    assert len(kept) == CONNECTIONS_MAX
    assert set(clients) <= set(kept)


def test_those_of_another_address_are_let_be() -> None:
    one = ClientConnection("192.0.2.7", 2049, "192.0.2.8", 700)
    assert have_end([one], ip_address("127.0.0.1")) == []
