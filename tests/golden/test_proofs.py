"""Proofs of one release are taken by another: an input of a proof that is changed cuts off all the
peers that do not know of it."""

from pathlib import Path

import pytest
import trio
import trio.testing

from fusejournal.wire.pairing import OpenCode
from fusejournal.wire.passes import PassCheck
from fusejournal.wire.plain import CONNECTS, LISTENS, _local_key, proof_of_ends, prove
from tests.golden.files import golden
from tests.golden.proofs import CODE, OFFERS, east, node


def test_a_pass_is_taken(tmp_path: Path) -> None:
    found = golden("proofs-v1")["pass"]
    one, other = node(tmp_path / "node"), east(tmp_path / "east")
    taken = PassCheck(one).peer_of(found["east to node"], {"east": other.certificate})
    assert taken == "east"
    assert PassCheck(other).peer_of(found["node to east"], {"node": one.certificate}) == "node"
    assert PassCheck(one).peer_of(found["node to east"], {"east": other.certificate}) is None


def test_the_proofs_of_a_pairing_are_taken() -> None:
    found = golden("proofs-v1")["pairing"]
    connects, listens = OFFERS
    proved = connects._replace(proof=bytes.fromhex(found["connects"]))
    assert OpenCode(CODE, now=0.0).try_proof(proved, listens, "192.0.2.0/24", now=1.0)
    assert OpenCode(CODE, now=0.0).prove(proved, listens).hex() == found["listens"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_both_ends_without_tls_make_the_proofs_of_their_addresses(
    host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FUSEJOURNAL_RUN_ROOT", str(tmp_path / "run"))
    (listening,) = await trio.open_tcp_listeners(0, host=host)
    async with listening:
        connects = await trio.testing.open_stream_to_socket_listener(listening)
        async with connects, await listening.accept() as listens:
            ends = connects.socket.getsockname(), listens.socket.getsockname()
            for role in (CONNECTS, LISTENS):
                expected = proof_of_ends(_local_key(), role, *ends)
                assert prove(role, connects, is_listener=False) == expected
                assert prove(role, listens, is_listener=True) == expected
