"""Passes: whose they are, and that each is good once."""

import ssl
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from fusejournal.wire.identity import Identity
from fusejournal.wire.passes import PassCheck, make_pass, name_asked, name_in
from tests.support.patience import PATIENCE_SECONDS

Identities = dict[str, Identity]


def _known(identities: Identities, *names: str) -> dict[str, str]:
    return {name: identities[name].certificate for name in names}


def _pass(identities: Identities, who: str, whom: str) -> str:
    made = make_pass(identities[who], identities[whom].certificate)
    assert made is not None
    return made


def test_a_pass_is_its_makers_and_good_once(identities: Identities) -> None:
    check, known = PassCheck(identities["a"]), _known(identities, "b", "c")
    first, second = _pass(identities, "b", "a"), _pass(identities, "b", "a")
    assert check.peer_of(_pass(identities, "c", "a"), known) == "c"
    assert check.peer_of(second, known) == "b"
    assert check.peer_of(second, known) is None
    assert check.peer_of(first, known) is None, "an older one"
    assert check.peer_of(_pass(identities, "b", "a"), known) == "b"


def test_what_is_no_pass(identities: Identities) -> None:
    check, known = PassCheck(identities["a"]), _known(identities, "b")
    good = _pass(identities, "b", "a")
    connector, at, proof, end = good.split(".")
    others = (
        "",
        good.upper(),
        good + ".",
        f"{connector}.{int(at, 16) + 1:x}.{proof}.{end}",
        f"{connector}.{at}.{proof[::-1]}.{end}",
        _pass(identities, "c", "a"),  # not known
        _pass(identities, "b", "c"),  # for another
    )
    assert [check.peer_of(name, known) for name in others] == [None] * len(others)
    assert check.peer_of(good, known) == "b"


def test_a_key_of_another_kind_has_none(identities: Identities, tmp_path: Path) -> None:
    other = tmp_path / "key.pem"
    key = ed25519.Ed25519PrivateKey.generate()
    other.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    identity = Identity(identities["a"].certificate, "SHA256:00", other, other)
    assert make_pass(identity, identities["b"].certificate) is None


def _client_hello(name: str | None) -> bytes:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    connector = client.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connector.do_handshake()
    return outgoing.read()


def test_the_name_in_a_client_hello() -> None:
    hello = _client_hello("a.name")
    assert name_in(hello) == name_in(hello + b"more") == "a.name"
    assert name_in(_client_hello(None)) == ""
    assert {name_in(hello[:end]) for end in range(len(hello))} == {None}
    for at in range(len(hello)):
        for byte in (0, 1, 0x7F, 0xFF, hello[at] ^ 0x80):
            assert len(name_in(hello[:at] + bytes([byte]) + hello[at + 1 :]) or "") < len(hello)


@pytest.mark.parametrize("piece_bytes", [1 << 16, 100])
async def test_the_name_is_read_and_left(piece_bytes: int) -> None:
    hello = _client_hello("a.name")
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, trio.open_nursery() as nursery:
        sending = await trio.testing.open_stream_to_socket_listener(listener)
        stream = await listener.accept()

        async def send() -> None:
            for at in range(0, len(hello), piece_bytes):
                await sending.send_all(hello[at : at + piece_bytes])
                await trio.sleep(0.01)

        nursery.start_soon(send)
        async with sending, stream:
            assert await name_asked(stream) == "a.name"
            assert await stream.receive_some(1 << 16) == hello


async def test_who_ends_before_has_no_name() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        sending = await trio.testing.open_stream_to_socket_listener(listener)
        async with await listener.accept() as stream:
            await sending.send_all(_client_hello("a.name")[:50])
            await sending.aclose()
            with trio.fail_after(PATIENCE_SECONDS):
                assert await name_asked(stream) == ""
