"""Connections over the loopback, with real sockets and TLS: who is let in, what is refused, what
breaks."""

import logging
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from fusejournal.errors import (
    FusejournalError,
    PeerMistakenError,
    PeerRefusedError,
    WireError,
)
from fusejournal.types import Epoch, Seq
from fusejournal.wire import transport
from fusejournal.wire.connection import OPEN, READY, TLS
from fusejournal.wire.frames import (
    CONTROL_BYTES_MAX,
    Batch,
    End,
    Hello,
    Message,
    Ping,
    Refusal,
    Welcome,
    encode,
)
from fusejournal.wire.identity import Identity, node_id_of
from fusejournal.wire.log_limiter import WINDOW_SECONDS
from fusejournal.wire.plain import CONNECTS, LISTENS, prove
from fusejournal.wire.transport import Address, Connection, connect, connect_for_pairing, serve
from tests.support.certificates import bad_name

Identities = dict[str, Identity]
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
LOOPBACK = Address("127.0.0.1", 0)
END = End(Seq(1))


def batch(content: bytes) -> Message:
    """A batch that only its content matters of."""
    one = Seq(1)
    return Batch(Epoch(1), one, one, 0, 0, one, 0, len(content), "raw", one, one, content)


async def echo(connection: Connection) -> None:
    """Give back every message until the other ends."""
    connection.expect_batches()
    while (message := await connection.receive()) is not None:
        await connection.send(message)


async def never(connection: Connection) -> None:
    raise AssertionError(f"{connection.where} was let in")


@asynccontextmanager
async def listening(
    identities: Identities,
    *,
    insecure: bool = False,
    on_connection: Callable[[Connection], Awaitable[None]] = echo,
    on_pairing: Callable[[Connection], Awaitable[None]] = never,
    known: dict[str, str] | None = None,
    address: Address = LOOPBACK,
) -> AsyncIterator[Address]:
    """Node a, which knows b."""
    peers = {"b": identities["b"].certificate} if known is None else known
    async with trio.open_nursery() as nursery:
        yield await nursery.start(
            lambda task_status: serve(
                address,
                identities["a"],
                lambda: peers,
                insecure=insecure,
                on_connection=on_connection,
                on_pairing=on_pairing,
                task_status=task_status,
            )
        )
        nursery.cancel_scope.cancel()


async def call(identities: Identities, address: Address, who: str = "b") -> Connection:
    certificate = identities["a"].certificate
    return await connect(address, identities[who], certificate, insecure=False, timeout_seconds=10)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return found


async def test_a_node_greets_as_no_other_than_its_certificate_is_of(identities: Identities) -> None:
    """A vote, and what it holds, would count as that one's."""
    ids = {name: node_id_of(identity.fingerprint) for name, identity in identities.items()}
    uuid, nothing = bytes(16), (Epoch(1), Seq(1), 1)
    answers = [Welcome(1, uuid, "a", *nothing, Seq(1), node_id=one) for one in ids.values()]
    heard: list[int] = []

    async def answer(connection: Connection) -> None:
        with suppress(trio.BrokenResourceError):
            await connection.send(*answers)
        while (greeting := await connection.receive()) is not None:
            assert isinstance(greeting, Hello)
            heard.append(greeting.node_id)

    async with listening(identities, on_connection=answer) as address:
        async with await call(identities, address) as connection:
            assert await connection.receive() == answers[list(ids).index("a")]
            with pytest.raises(WireError, match=r"says that it is node .* it is broken, or lies"):
                await connection.receive()
        async with await call(identities, address) as connection:
            hellos = [Hello(1, uuid, "b", "word", *nothing, node_id=ids[one]) for one in "ba"]
            await connection.send(hellos[0]._replace(node_id=0), *hellos)
            await trio.testing.wait_all_tasks_blocked(0.05)
    assert heard == [0, ids["b"]]


# -- the good case ---------------------------------------------------------------------------------


async def test_messages_go_both_ways(identities: Identities) -> None:
    peers: list[str | None] = []

    async def note(connection: Connection) -> None:
        peers.append(connection.peer)
        await echo(connection)

    async with (
        listening(identities, on_connection=note) as address,
        await call(identities, address) as connection,
    ):
        assert (connection.peer, connection.where) == (None, str(address))
        connection.expect_batches()
        large = batch(os.urandom(5_000_000))
        sent: list[Message] = [Ping(Seq(1), Seq(2)), large, END, batch(b""), batch(bytes(70_000))]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.send, *sent)
            got = [await connection.receive() for _ in sent]
        assert got == sent
        total = sum(len(encode(message)) for message in sent)
        assert (connection.bytes_sent, connection.bytes_received) == (total, total)
        assert connection.send_blocked_seconds >= 0
    assert peers == ["b"]


async def test_many_senders_do_not_mix(identities: Identities) -> None:
    async with listening(identities) as address, await call(identities, address) as connection:
        connection.expect_batches()
        messages = [batch(bytes([number]) * 300_000) for number in range(8)]
        async with trio.open_nursery() as nursery:
            for message in messages:
                nursery.start_soon(connection.send, message, END)
            got = [await connection.receive() for _ in range(16)]
        assert got[1::2] == [END] * 8
        assert sorted(got[::2], key=repr) == sorted(messages, key=repr)


async def test_a_clean_end_is_no_error_and_cuts_nothing_off(identities: Identities) -> None:
    """The other has sent what was not read, and still gets the last word."""

    async def refuse(connection: Connection) -> None:
        await connection.send(Refusal("no", "because"))

    async with (
        listening(identities, on_connection=refuse) as address,
        await call(identities, address) as connection,
    ):
        await connection.send(batch(bytes(50_000)))
        assert await connection.receive() == Refusal("no", "because")
        assert await connection.receive() is None


async def test_a_receive_that_is_cancelled_loses_nothing(identities: Identities) -> None:
    async with listening(identities) as address, await call(identities, address) as connection:
        with trio.move_on_after(0):
            await connection.receive()
        await connection.send(END)
        assert await connection.receive() == END


async def test_a_peer_added_later_counts_at_once(identities: Identities) -> None:
    known: dict[str, str] = {}
    async with listening(identities, known=known) as address:
        with pytest.raises(PeerRefusedError):
            await call(identities, address)
        known["late"] = identities["b"].certificate
        async with await call(identities, address) as connection:
            await connection.send(END)
            assert await connection.receive() == END


async def test_a_certificate_that_tls_cannot_use_locks_nobody_out(
    identities: Identities, caplog: pytest.LogCaptureFixture
) -> None:
    forged = bad_name(identities["c"].certificate)
    known = {"evil": forged, "b": identities["b"].certificate}
    async with listening(identities, known=known) as address:
        for _ in range(3):
            async with await call(identities, address) as connection:
                await connection.send(END)
                assert await connection.receive() == END
        with pytest.raises(PeerRefusedError, match="pair anew"):
            await connect(address, identities["b"], forged, insecure=False, timeout_seconds=10)
    told = [line for line in warnings_of(caplog) if "evil" in line]
    assert told == ["peer evil: TLS cannot use its certificate: remove the peer and pair anew"]


@pytest.mark.parametrize("moment", range(4))
async def test_a_peer_removed_at_any_moment(identities: Identities, moment: int) -> None:
    """Whenever the book is asked, it is gone the next time."""
    asked = let_in = 0

    def known() -> dict[str, str]:
        nonlocal asked
        asked += 1
        return {"b": identities["b"].certificate} if asked <= moment else {}

    async def note(_: Connection) -> None:
        nonlocal let_in
        let_in += 1

    async with trio.open_nursery() as nursery:
        address = await nursery.start(
            lambda task_status: serve(
                LOOPBACK,
                identities["a"],
                known,
                insecure=False,
                on_connection=note,
                on_pairing=never,
                task_status=task_status,
            )
        )
        with suppress(FusejournalError):
            async with await call(identities, address) as connection:
                await connection.receive()
        nursery.cancel_scope.cancel()
    assert (asked, let_in) == (min(moment + 1, 3), moment // 3)


@pytest.mark.parametrize("host", ["::1", "", "localhost"])
async def test_other_addresses(identities: Identities, host: str) -> None:
    async with listening(identities, address=Address(host, 0)) as address:
        assert address.port
        to = Address(host or "127.0.0.1", address.port)
        async with await call(identities, to):
            pass


# -- who is let in ---------------------------------------------------------------------------------


async def test_an_unknown_peer_is_refused_and_logged_once(
    identities: Identities, caplog: pytest.LogCaptureFixture, mock_clock: trio.testing.MockClock
) -> None:
    async with listening(identities, on_connection=never) as address:
        for _ in range(3):
            with pytest.raises(PeerRefusedError, match=identities["c"].fingerprint):
                await call(identities, address, "c")
        (line,) = warnings_of(caplog)
        assert "127.0.0.1" in line
        assert "no peer has its certificate" in line
        mock_clock.jump(WINDOW_SECONDS)
        await trio.testing.wait_all_tasks_blocked()
        (line,) = warnings_of(caplog)
        assert "2 more" in line


async def test_another_certificate_is_named(identities: Identities) -> None:
    async with listening(identities, on_pairing=echo) as address:
        with pytest.raises(PeerMistakenError) as caught:
            await connect(
                address,
                identities["b"],
                identities["c"].certificate,
                insecure=False,
                timeout_seconds=10,
            )
        assert caught.value.expected == identities["c"].fingerprint
        assert caught.value.found == identities["a"].fingerprint
        assert caught.value.exit_code == 26
        assert "\n" not in str(caught.value)


async def test_without_a_certificate(identities: Identities) -> None:
    with pytest.raises(PeerRefusedError, match="pair"):
        await connect(
            Address("127.0.0.1", 1), identities["b"], None, insecure=False, timeout_seconds=10
        )


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_no_older_tls_and_no_anonymous_one(
    identities: Identities, version: ssl.TLSVersion, caplog: pytest.LogCaptureFixture
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = version
    async with listening(identities, on_connection=never) as address:
        stream = await trio.open_tcp_stream(*address)
        await stream.send_all(TLS)
        async with trio.SSLStream(stream, context) as tls:
            with pytest.raises(trio.BrokenResourceError):
                await tls.receive_some()  # after the handshake
    assert len(warnings_of(caplog)) == 1


# -- plain -----------------------------------------------------------------------------------------


async def test_plain_on_the_loopback(identities: Identities) -> None:
    async with listening(identities, insecure=True) as address:
        to = (address, identities["b"], None)
        async with await connect(*to, insecure=True, timeout_seconds=10) as connection:
            connection.expect_batches()
            await connection.send(batch(bytes(1_000_000)))
            assert await connection.receive() == batch(bytes(1_000_000))
        async with await call(identities, address) as connection:
            await connection.send(END)
            assert await connection.receive() == END


async def test_plain_must_be_allowed(
    identities: Identities, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(identities, on_connection=never) as address:
        with pytest.raises(PeerRefusedError, match="--insecure"):
            await connect(address, identities["b"], None, insecure=True, timeout_seconds=10)
    (line,) = warnings_of(caplog)
    assert "without encryption" in line


OFF_LOOPBACK = """
import trio
from pathlib import Path
from fusejournal.errors import PeerRefusedError
from fusejournal.wire.connection import CLOSED, OPEN
from fusejournal.wire.identity import load_or_make
from fusejournal.wire.plain import CONNECTS, LISTENS, prove
from fusejournal.wire.transport import Address, connect, serve

async def never(connection):
    raise AssertionError

async def main():
    one = load_or_make(Path("{directory}"), "one")
    async with trio.open_nursery() as nursery:
        port = (await nursery.start(lambda task_status: serve(
            Address("", 0), one, dict, insecure=True, on_connection=never, on_pairing=never,
            task_status=task_status,
        ))).port
        address = Address("10.99.1.1", port)
        try:
            await connect(address, one, None, insecure=True, timeout_seconds=10)
        except PeerRefusedError as error:
            print(error)
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(OPEN)
            assert await stream.receive_some(100) == CLOSED
            assert await stream.receive_some(100) == b""
        far = await trio.open_tcp_stream("127.0.0.1", port, local_address="10.99.1.1")
        async with far as stream:
            await stream.send_all(OPEN)
            assert await stream.receive_some(100) == CLOSED
        nursery.cancel_scope.cancel()

trio.run(main)
"""


def run_in_namespace(directory: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run *script* in a network namespace of its own, which goes with the process; it has 10.99.1.1
    on its loopback."""
    path = directory / "script.py"
    path.write_text(script.replace("{directory}", str(directory / "one")))
    setup = "ip link set lo up && ip addr add 10.99.1.1/32 dev lo && exec"
    return subprocess.run(
        ["unshare", "--net", "sh", "-c", f'{setup} "$@"', "sh", sys.executable, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(transport.__file__).parents[2])},
    )


@NEEDS_ROOT
def test_nothing_plain_off_the_loopback(tmp_path: Path) -> None:
    done = run_in_namespace(tmp_path, OFF_LOOPBACK)
    assert done.returncode == 0, done.stderr
    assert "both ends must be on the loopback" in done.stdout
    assert "Traceback" not in done.stderr


# -- pairing's connections -------------------------------------------------------------------------


async def test_for_pairing_nobody_has_to_be_known(
    identities: Identities, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(identities, on_connection=never, on_pairing=echo) as address:
        to = address, identities["c"]
        async with await connect_for_pairing(*to, timeout_seconds=10) as connection:
            await connection.send(END)
            assert await connection.receive() == END
    assert warnings_of(caplog) == []


async def test_nothing_large_is_taken_from_whom_no_batches_are_expected(
    identities: Identities, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither of who is known nor of who wants to pair, and on neither side."""
    large = batch(bytes(CONTROL_BYTES_MAX))

    async def hear(connection: Connection) -> None:
        await connection.send(large)
        await connection.receive()

    async with listening(identities, on_connection=hear, on_pairing=hear) as address:
        for connecting in (
            call(identities, address),
            connect_for_pairing(address, identities["c"], timeout_seconds=10),
        ):
            async with await connecting as connection:
                with pytest.raises(WireError, match="are allowed"):
                    await connection.receive()
                await connection.send(large)
        await trio.testing.wait_all_tasks_blocked(0.05)
    lines = warnings_of(caplog)
    assert len(lines) == 2
    assert all("65536 are allowed" in line for line in lines)


async def test_the_listener_speaks_last(identities: Identities) -> None:
    """The bytes as they are written down."""
    async with (
        listening(identities, insecure=True) as address,
        await trio.open_tcp_stream(*address) as stream,
    ):
        await stream.send_all(OPEN + prove(CONNECTS, stream, is_listener=False) + encode(END))
        expected = READY + prove(LISTENS, stream, is_listener=False) + encode(END)
        got = b""
        while len(got) < len(expected):
            got += await stream.receive_some()
        assert got == expected
