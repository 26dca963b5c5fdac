"""Connections that do not come about, or end otherwise than they should."""

import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from fusejournal.errors import (
    FusejournalError,
    ListenError,
    PeerLostError,
    WireError,
)
from fusejournal.wire.frames import (
    encode,
)
from fusejournal.wire.transport import Address, Connection, connect, serve
from tests.unit.wire.test_transport import (
    END,
    NEEDS_ROOT,
    Identities,
    batch,
    call,
    listening,
    never,
    run_in_namespace,
    warnings_of,
)


async def test_nobody_listens(identities: Identities) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = Address(*taken.getsockname())
        with pytest.raises(PeerLostError, match=f"^{address}: connection refused$"):
            await call(identities, address)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b"])
async def test_no_such_host(identities: Identities, host: str) -> None:
    with pytest.raises(PeerLostError, match="no such host"):
        await call(identities, Address(host, 1))


async def test_it_does_not_answer(
    identities: Identities, autojump_clock: trio.testing.MockClock
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(PeerLostError, match="no answer within 10 s"),
    ):
        await call(identities, Address(*silent.getsockname()))


async def serve_bytes(listeners: list[trio.SocketListener], answer: bytes) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)

    await trio.serve_listeners(handle, listeners)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", WireError, "^{address}: is no fusejournal"),
        (b"", PeerLostError, "the connection was cut$"),
    ],
    ids=["something else", "hangs up"],
)
@pytest.mark.parametrize("certificate", [True, False])
async def test_it_is_no_node(
    nursery: trio.Nursery,
    identities: Identities,
    certificate: bool,
    answer: bytes,
    error: type[FusejournalError],
    words: str,
) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = Address(*listeners[0].socket.getsockname())
    nursery.start_soon(serve_bytes, listeners, answer)
    known = identities["a"].certificate if certificate else None
    with pytest.raises(error, match=words.format(address=address)) as caught:
        await connect(address, identities["b"], known, insecure=True, timeout_seconds=10)
    assert str(caught.value).isprintable()
    assert not (words.startswith("^") and str(address) not in str(caught.value))


async def test_the_port_is_in_use(identities: Identities) -> None:
    async with listening(identities) as address:
        with pytest.raises(ListenError, match=f"cannot listen on {address}: something"):
            await serve(
                address,
                identities["b"],
                dict,
                insecure=False,
                on_connection=never,
                on_pairing=never,
            )


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
async def test_an_address_of_others(identities: Identities, host: str) -> None:
    with pytest.raises(ListenError, match="this is no address of this machine"):
        await serve(
            Address(host, 0),
            identities["b"],
            dict,
            insecure=False,
            on_connection=never,
            on_pairing=never,
        )


@pytest.mark.parametrize("bug", [True, False])
async def test_a_handler_that_fails(
    identities: Identities, caplog: pytest.LogCaptureFixture, bug: bool
) -> None:
    async def fail() -> None:
        raise ZeroDivisionError if bug else WireError("nonsense")

    async def handle(_: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)

    async with listening(identities, on_connection=handle) as address:
        for _ in range(2):
            async with await call(identities, address) as connection:
                assert await connection.receive() is None
        lines = warnings_of(caplog)
    assert len(lines) == 1
    assert ("bug" if bug else "nonsense") in lines[0]


async def test_a_handler_that_fails_as_it_is_stopped(
    identities: Identities, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(connection: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await connection.receive()
            except trio.Cancelled:
                raise WireError("too late") from None

    async with listening(identities, on_connection=handle) as address:
        connection = await call(identities, address)
        await trio.testing.wait_all_tasks_blocked()
    await connection.aclose()
    (line,) = warnings_of(caplog)
    assert "too late" in line


async def test_an_identity_that_is_gone(
    identities: Identities, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(identities, on_connection=never) as address:
        identities["b"].key_path.unlink()
        with pytest.raises(FusejournalError, match="this node's key cannot be read"):
            await call(identities, address)
        identities["a"].key_path.unlink()
        with pytest.raises(PeerLostError):
            await call(identities | {"b": identities["c"]}, address)
    assert len(warnings_of(caplog)) == 1


async def test_a_peer_may_have_only_so_many(
    identities: Identities, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(identities) as address:
        connections = [await call(identities, address) for _ in range(17)]
        assert await connections[-1].receive() is None
        await connections[0].send(END)
        assert await connections[0].receive() == END
        for connection in connections:
            await connection.aclose()
    (line,) = warnings_of(caplog)
    assert "16 connections" in line


@pytest.mark.parametrize("insecure", [True, False])
async def test_a_peer_that_is_cut_off(identities: Identities, insecure: bool) -> None:
    """Neither waiting for it nor closing blocks, and half a message is an error."""
    reached = trio.Event()

    async def cut(connection: Connection) -> None:
        await connection.receive()
        await connection._stream.send_all(encode(END)[:-1])
        stream = connection._stream
        if isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        stream._stream.socket.close()  # type: ignore[attr-defined] # without a word
        reached.set()

    async with listening(identities, insecure=insecure, on_connection=cut) as address:
        known = None if insecure else identities["a"].certificate
        connection = await connect(
            address, identities["b"], known, insecure=insecure, timeout_seconds=10
        )
        async with connection:
            await connection.send(END)
            await reached.wait()
            with pytest.raises(PeerLostError, match=f"^{address}: ") as caught:
                await connection.receive()
            assert str(caught.value).isprintable()
            with pytest.raises(PeerLostError):
                await connection.receive()
            with pytest.raises(PeerLostError):
                await connection.send(*[batch(bytes(100_000))] * 100)


@pytest.mark.parametrize("insecure", [True, False])
async def test_a_peer_that_reads_nothing(
    identities: Identities, insecure: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """Sending waits, says how long, and neither cancelling nor closing has to wait for it."""
    done = trio.Event()

    async def ignore(_: Connection) -> None:
        await done.wait()

    async with listening(identities, insecure=insecure, on_connection=ignore) as address:
        known = None if insecure else identities["a"].certificate
        connection = await connect(
            address, identities["b"], known, insecure=insecure, timeout_seconds=10
        )
        with trio.move_on_after(5):
            await connection.send(*[batch(bytes(1_000_000))] * 100)
        assert connection.send_blocked_seconds == 5
        with pytest.raises(PeerLostError, match="could not be sent"):
            await connection.send(END)
        await connection.aclose()
        with pytest.raises(PeerLostError):
            await connection.receive()
        done.set()


async def test_closing_beside_a_blocked_sender(
    identities: Identities, autojump_clock: trio.testing.MockClock
) -> None:
    done = trio.Event()

    async def ignore(_: Connection) -> None:
        await done.wait()

    async with listening(identities, on_connection=ignore) as address:
        connection = await call(identities, address)

        async def send() -> None:
            with pytest.raises(PeerLostError):
                await connection.send(*[batch(bytes(1_000_000))] * 100)

        async def receive() -> None:
            with pytest.raises(PeerLostError):
                await connection.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await connection.aclose()
        done.set()


async def test_a_damaged_message_ends_it(
    identities: Identities, caplog: pytest.LogCaptureFixture
) -> None:
    async def damage(connection: Connection) -> None:
        await connection._stream.send_all(encode(END) + encode(END)[:-1] + b"\xff")
        await connection.receive()

    async with (
        listening(identities, on_connection=damage) as address,
        await call(identities, address) as connection,
    ):
        assert await connection.receive() == END
        with pytest.raises(WireError, match=f"^{address}: a message with a wrong checksum$"):
            await connection.receive()


GONE = """
import subprocess
import trio
from pathlib import Path
from fusejournal.errors import PeerLostError
from fusejournal.types import Seq
from fusejournal.wire import connection
from fusejournal.wire.frames import End
from fusejournal.wire.identity import load_or_make
from fusejournal.wire.plain import CONNECTS, LISTENS, prove
from fusejournal.wire.transport import Address, connect, serve

connection._LOST_SECONDS = 1

async def hear(connection):
    await connection.receive()
    subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
    try:
        await connection.send(End(Seq(1)))
        await connection.receive()
    except PeerLostError as error:
        print(error)

async def main():
    one = load_or_make(Path("{directory}"), "one")
    async with trio.open_nursery() as nursery:
        address = await nursery.start(lambda task_status: serve(
            Address("10.99.1.1", 0), one, lambda: {"one": one.certificate}, insecure=False,
            on_connection=hear, on_pairing=hear, task_status=task_status,
        ))
        async with await connect(
            address, one, one.certificate, insecure=False, timeout_seconds=10
        ) as caller:
            await caller.send(End(Seq(1)))
            try:
                while True:
                    await trio.sleep(0.5)
                    await caller.send(End(Seq(2)))
            except PeerLostError as error:
                print(error)
        nursery.cancel_scope.cancel()

trio.run(main)
"""


@NEEDS_ROOT
def test_a_peer_that_is_gone_without_a_word(tmp_path: Path) -> None:
    """Its network ends; both sides notice by themselves."""
    done = run_in_namespace(tmp_path, GONE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("connection timed out\n") == 2
    assert "Traceback" not in done.stderr
