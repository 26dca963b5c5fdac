"""Strangers at the port, and what they cost: they are cut off, refused or made room beside."""

import errno
import os
import ssl
from contextlib import suppress

import pytest
import trio
import trio.testing

from fusejournal.errors import (
    FusejournalError,
    PeerLostError,
    PeerRefusedError,
)
from fusejournal.wire.connection import OPEN, PAIR, READY, TLS, tls_context
from fusejournal.wire.frames import (
    encode,
)
from fusejournal.wire.identity import trust
from fusejournal.wire.transport import connect_for_pairing, serve
from tests.unit.wire.test_transport import (
    END,
    LOOPBACK,
    Identities,
    call,
    echo,
    listening,
    never,
    warnings_of,
)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"FJ",
        b"GET / HTTP/1.1\r\n\r\n",
        TLS,
        TLS + b"GET / HTTP/1.1\r\n\r\n",
        TLS + b"\x16\x03\x01\xff\xff" + bytes(100),
        TLS + bytes(100_000),
        PAIR + os.urandom(3000),
        OPEN + b"\xff" * 100,
        OPEN + encode(END)[:-1],
    ],
    ids=lambda sent: repr(sent[:20]),
)
async def test_garbage_costs_one_line(
    identities: Identities, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    async with listening(identities, insecure=True) as address:
        for _ in range(3):
            stream = await trio.open_tcp_stream(*address)
            async with stream:
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(sent)
                    await stream.send_eof()
                    while await stream.receive_some():
                        pass
        (line,) = warnings_of(caplog)
        assert line.isprintable()
        async with await call(identities, address) as connection:
            await connection.send(END)
            assert await connection.receive() == END


@pytest.mark.parametrize("sent", [b"", b"FJ", TLS, TLS + b"\x16\x03\x01", PAIR])
async def test_slow_clients_are_cut_off(
    identities: Identities,
    caplog: pytest.LogCaptureFixture,
    mock_clock: trio.testing.MockClock,
    sent: bytes,
) -> None:
    async with listening(identities) as address:
        stream = await trio.open_tcp_stream(*address)
        async with stream:
            await stream.send_all(sent)
            await trio.testing.wait_all_tasks_blocked(0.05)
            mock_clock.jump(31)
            with suppress(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert "did not say who it is" in warnings_of(caplog)[0]
        async with await call(identities, address):
            pass


async def test_many_strangers_make_room_for_who_is_known(
    identities: Identities, caplog: pytest.LogCaptureFixture, mock_clock: trio.testing.MockClock
) -> None:
    async with listening(identities) as address:
        silent = [await trio.open_tcp_stream(*address) for _ in range(100)]
        async with await call(identities, address) as connection:
            await connection.send(END)
            assert await connection.receive() == END
        for stream in silent[:37]:
            with suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""
        for stream in silent:
            await stream.aclose()
    (line,) = warnings_of(caplog)
    assert "too many others are connecting" in line


async def test_one_host_takes_only_its_own_place(
    identities: Identities, caplog: pytest.LogCaptureFixture, mock_clock: trio.testing.MockClock
) -> None:
    """A known peer is slow, and a stranger connects as fast as can be."""
    context = tls_context(ssl.Purpose.SERVER_AUTH, identities["b"], is_verified=True)
    assert trust(context, identities["a"].certificate)
    async with listening(identities) as address:
        slow = await trio.open_tcp_stream(*address, local_address="127.0.0.2")
        silent = [await trio.open_tcp_stream(*address) for _ in range(200)]
        await trio.testing.wait_all_tasks_blocked(0.05)
        await slow.send_all(TLS)
        async with trio.SSLStream(slow, context) as tls:
            assert await tls.receive_some(len(READY)) == READY
        for stream in silent:
            await stream.aclose()
    (line,) = warnings_of(caplog)
    assert line.startswith("connection from 127.0.0.1:")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS])
async def test_no_descriptors_left(
    identities: Identities,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    number: int,
) -> None:
    accept, tries = trio.SocketListener.accept, 0

    async def failing(self: trio.SocketListener) -> trio.SocketStream:
        nonlocal tries
        tries += 1
        if tries <= 30:
            raise OSError(number, os.strerror(number))
        return await accept(self)

    monkeypatch.setattr(trio.SocketListener, "accept", failing)
    async with listening(identities) as address:
        start = trio.current_time()
        async with await call(identities, address):
            assert 2 < trio.current_time() - start < 5  # of the test's clock: paused, not spinning
    (line,) = warnings_of(caplog)
    assert os.strerror(number).lower() in line


async def test_many_addresses_do_not_push_a_peer_out(
    identities: Identities, caplog: pytest.LogCaptureFixture, mock_clock: trio.testing.MockClock
) -> None:
    """It was here before; then it is slow, while hundreds of others come one by one."""
    context = tls_context(ssl.Purpose.SERVER_AUTH, identities["b"], is_verified=True)
    assert trust(context, identities["a"].certificate)
    async with listening(identities) as address:
        for count in (0, 300):
            slow = await trio.open_tcp_stream(*address, local_address="127.0.0.2")
            others = [
                await trio.open_tcp_stream(
                    *address, local_address=f"127.0.{1 + number // 200}.{1 + number % 200}"
                )
                for number in range(count)
            ]
            await trio.testing.wait_all_tasks_blocked(0.05)
            await slow.send_all(TLS)
            async with trio.SSLStream(slow, context) as tls:
                assert await tls.receive_some(len(READY)) == READY
            for stream in others:
                await stream.aclose()
    caplog.clear()


async def test_connections_read_no_files_and_make_no_contexts(
    identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for who is known nor for strangers, but for the first."""
    known = {"b": identities["b"].certificate}
    async with listening(identities, known=known, on_pairing=echo) as address:
        await (await call(identities, address)).aclose()
        pairing = address, identities["c"]
        await (await connect_for_pairing(*pairing, timeout_seconds=10)).aclose()
        made = 0
        make = ssl.SSLContext.load_cert_chain

        def load(*arguments: object) -> None:
            nonlocal made
            made += 1
            make(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load)
        for _ in range(3):
            await (await call(identities, address)).aclose()
            await (await connect_for_pairing(*pairing, timeout_seconds=10)).aclose()
        assert made == 0
        # A peer that comes or goes makes a difference at once.
        known["c"] = identities["c"].certificate
        await (await call(identities, address, "c")).aclose()
        del known["b"]
        with pytest.raises(PeerRefusedError, match="does not know this node"):
            await call(identities, address)


async def test_handshakes_have_a_pace(
    identities: Identities, autojump_clock: trio.testing.MockClock
) -> None:
    handshakes = 0
    do_handshake = trio.SSLStream.do_handshake

    async def count(self: trio.SSLStream[trio.SocketStream]) -> None:
        nonlocal handshakes
        handshakes += self._ssl_object.server_side
        await do_handshake(self)

    async with listening(identities) as address:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trio.SSLStream, "do_handshake", count)
            began = trio.current_time()
            async with trio.open_nursery() as nursery:

                async def replay() -> None:
                    while trio.current_time() < began + 4:
                        async with await trio.open_tcp_stream(*address) as stream:
                            with suppress(trio.BrokenResourceError):
                                await stream.send_all(TLS + b"\x16\x03\x01\x00\x05hello")
                                await stream.receive_some()
                        await trio.sleep(0.02)

                for _ in range(8):
                    nursery.start_soon(replay)
        assert 20 <= handshakes <= 20 + 5 * 11


async def test_strangers_at_a_peers_address_do_not_keep_it_out(identities: Identities) -> None:
    """Other users of its machine, for one, who take all handshakes and places of that address."""
    async with listening(identities) as address, trio.open_nursery() as nursery:

        async def come_again() -> None:
            while True:
                with suppress(OSError, trio.BrokenResourceError):
                    async with await trio.open_tcp_stream(*address) as stream:
                        await stream.send_all(TLS + b"\x16\x03\x01\x00\x05hello")
                        await stream.receive_some()

        for _ in range(100):
            nursery.start_soon(come_again)
        await trio.sleep(1)
        for _ in range(5):
            with trio.fail_after(2):
                await (await call(identities, address)).aclose()
        with pytest.raises(PeerLostError):
            await call(identities, address, "c")
        nursery.cancel_scope.cancel()


async def test_pairing_is_refused_at_once_while_none_is_open(
    identities: Identities, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with trio.open_nursery() as nursery:
        address = await nursery.start(
            lambda task_status: serve(
                LOOPBACK,
                identities["a"],
                dict,
                insecure=False,
                on_connection=never,
                on_pairing=never,
                is_pairing_open=lambda: False,
                task_status=task_status,
            )
        )
        with pytest.raises(FusejournalError, match="no pairing is open") as caught:
            await connect_for_pairing(address, identities["c"], timeout_seconds=10)
        assert caught.value.exit_code == 27
        nursery.cancel_scope.cancel()
    (line,) = warnings_of(caplog)
    assert "no pairing is open" in line
