"""Pairing by a one-time code: who gets in, and what a relay in the middle gets."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from fusejournal.errors import FusejournalError, PairingError, PeerLostError, UsageError, WireError
from fusejournal.types import Seq
from fusejournal.wire import pairing
from fusejournal.wire.connection import Connection
from fusejournal.wire.frames import End, Message, PairOffer, Refusal
from fusejournal.wire.identity import Identity
from fusejournal.wire.pairing import (
    CODE_SECONDS,
    PAIRING_CONNECTS,
    PAIRING_LISTENS,
    TRIES_MAX,
    OpenCode,
    Paired,
    new_code,
    parse_code,
    proof_of,
)
from tests.support.certificates import bad_name, bad_version

CODE = "0123-4567-89AB-CDEF"
OTHER = "0123-4567-89AB-CDEG"


# -- codes -----------------------------------------------------------------------------------------


def test_codes_are_random_and_readable() -> None:
    codes = {new_code() for _ in range(200)}
    assert len(codes) == 200
    assert all(len(parse_code(code)) == 16 for code in codes)
    # Each character carries 5 bits.
    assert set("".join(codes)) == set("0123456789ABCDEFGHJKMNPQRSTVWXYZ-")


@pytest.mark.parametrize(
    "text",
    ["o1z3-4567-89ab-cdef", "OIZ3 4567 89AB CDEF", "0lz3456789ABCDEF", "-01Z3456789ABCDEF "],
)
def test_codes_are_read_as_people_write_them(text: str) -> None:
    assert parse_code(text) == "01Z3456789ABCDEF"


@given(st.text(max_size=20))
def test_other_texts_are_no_codes(text: str) -> None:
    with suppress(UsageError):
        assert len(parse_code(text)) == 16


@pytest.mark.parametrize("text", ["", "0123", CODE + "0", "U123456789ABCDEF", "é123456789ABCDEF"])
def test_what_is_no_code(text: str) -> None:
    with pytest.raises(UsageError, match="no pairing code") as caught:
        parse_code(text)
    assert text == "" or text not in str(caught.value)  # it may be a mistyped one


def offers() -> tuple[PairOffer, PairOffer]:
    return PairOffer("b", "cert b", b"b" * 32, b""), PairOffer("a", "cert a", b"a" * 32, b"")


def tried(code: OpenCode, text: str, now: float = 1.0, network: str = "192.0.2.1") -> bool:
    theirs, own = offers()
    proof = proof_of(parse_code(text), PAIRING_CONNECTS, theirs, own)
    return code.try_proof(theirs._replace(proof=proof), own, network, now)


def test_a_code_is_good_once() -> None:
    code = OpenCode(CODE, 0.0)
    assert code.state(1) == "waiting"
    assert tried(code, CODE)
    assert code.state(1) == "used"
    assert not tried(code, CODE)


def test_a_code_is_void_after_wrong_tries_for_who_made_them() -> None:
    code = OpenCode(CODE, 0.0)
    for number in range(TRIES_MAX):
        assert code.state(1) == "waiting"
        assert code.wrong_tries == number
        assert code.tries_left("192.0.2.1") == TRIES_MAX - number
        assert not tried(code, OTHER)
    assert code.tries_left("192.0.2.1") == 0
    assert not tried(code, CODE)
    assert code.state(1) == "waiting"
    assert tried(code, CODE, network="192.0.2.2")


def test_a_code_ends() -> None:
    code = OpenCode(CODE, 0.0)
    assert code.seconds_left(1) == CODE_SECONDS - 1
    assert code.state(CODE_SECONDS - 1) == "waiting"
    assert code.state(CODE_SECONDS) == "expired"
    assert not tried(code, CODE, CODE_SECONDS)
    closed = OpenCode(CODE, 0.0)
    closed.close()
    assert closed.state(1) == "closed"
    assert not tried(closed, CODE)


def test_a_proof_is_of_one_exchange_and_one_role() -> None:
    theirs, own = offers()
    key = parse_code(CODE)
    proofs = {
        proof_of(key, PAIRING_CONNECTS, theirs, own),
        proof_of(key, PAIRING_LISTENS, theirs, own),
    }
    proofs.add(proof_of(parse_code(OTHER), PAIRING_CONNECTS, theirs, own))
    proofs.add(proof_of(key, PAIRING_CONNECTS, own, theirs))
    others: tuple[dict[str, Any], ...] = (
        {"node": "x"},
        {"certificate": "x"},
        {"nonce": bytes(32)},
    )
    for other in others:
        proofs.add(proof_of(key, PAIRING_CONNECTS, theirs._replace(**other), own))
        proofs.add(proof_of(key, PAIRING_CONNECTS, theirs, own._replace(**other)))
    # The same bytes, cut otherwise.
    shifted = theirs._replace(node="bc", certificate="ert b")
    proofs.add(proof_of(key, PAIRING_CONNECTS, shifted, own))
    proofs.add(
        proof_of(key, PAIRING_CONNECTS, theirs._replace(node="bcert b", certificate=""), own)
    )
    assert len(proofs) == 12


# -- the two sides ---------------------------------------------------------------------------------


def connections() -> tuple[Connection, Connection]:
    one, two = trio.testing.memory_stream_pair()
    return Connection(one, "listener", None), Connection(two, "connector", None)


class Sides:
    """Both sides of a pairing, and what became of them."""

    def __init__(self, identities: dict[str, Identity], code: OpenCode | None) -> None:
        self.identities = identities
        self.code = code
        self.kept: list[Paired] = []
        self.refusal: FusejournalError | None = None
        self.listened: Exception | None = None

    async def keep(self, paired: Paired) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.kept.append(paired)

    async def listen(self, connection: Connection) -> None:
        async with connection:
            try:
                await pairing.answer(
                    connection, self.code, "a", self.identities["a"], lambda: 1.0, self.keep
                )
            except FusejournalError as error:
                self.listened = error

    async def run(self, connect: Callable[[Connection], Awaitable[Any]]) -> Any:
        ours, theirs = connections()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.listen, theirs)
            async with ours:
                try:
                    return await connect(ours)
                except FusejournalError as error:
                    return error

    async def pair(self, code: str, accept: Callable[[Paired], None] = lambda _: None) -> Any:
        return await self.run(
            lambda connection: pairing.ask(connection, code, "b", self.identities["b"], accept)
        )


async def test_two_nodes_pair(identities: dict[str, Identity]) -> None:
    sides = Sides(identities, OpenCode(CODE, 0.0))
    a, b = identities["a"], identities["b"]
    assert await sides.pair(CODE.lower()) == ("a", a.certificate, a.fingerprint)
    assert sides.kept == [("b", b.certificate, b.fingerprint)]
    assert sides.listened is None
    again = await sides.pair(CODE)
    assert isinstance(again, PairingError)
    assert "no pairing is open" in str(again)
    assert len(sides.kept) == 1


async def test_a_wrong_code(identities: dict[str, Identity]) -> None:
    sides = Sides(identities, OpenCode(CODE, 0.0))
    for number in range(TRIES_MAX):
        refused = await sides.pair(OTHER)
        assert isinstance(refused, PairingError)
        assert "the code is wrong" in str(refused)
        assert ("void" in str(refused)) == (number == TRIES_MAX - 1)
        assert "the code is wrong" in str(sides.listened)
    assert "no pairing is open" in str(await sides.pair(CODE))
    assert sides.kept == []


async def test_no_pairing_is_open(identities: dict[str, Identity]) -> None:
    sides = Sides(identities, None)
    told = str(await sides.pair(CODE))
    assert "no pairing is open" in told
    assert "'fusejournal pair VOLUME'" in told
    assert "left running" in told
    assert isinstance(sides.listened, PairingError)


async def test_either_side_may_object(identities: dict[str, Identity]) -> None:
    code = OpenCode(CODE, 0.0)
    sides = Sides(identities, code)

    def object_to(_: Paired) -> None:
        raise PairingError("the name is taken")

    assert str(await sides.pair(CODE, object_to)) == "the name is taken"
    assert "b ended the pairing: what is wrong is shown there" in str(sides.listened)
    assert code.state(1) == "waiting"  # it was not spent on that
    sides.refusal = PairingError("known by another name")
    assert "known by another name" in str(await sides.pair(CODE))
    assert code.state(1) == "used"


async def test_one_that_only_looks_is_no_error(identities: dict[str, Identity]) -> None:
    sides = Sides(identities, OpenCode(CODE, 0.0))

    async def nothing(_: Connection) -> None: ...

    await sides.run(nothing)
    assert sides.listened is None


def offer(identity: Identity, **fields: Any) -> PairOffer:
    return PairOffer("b", identity.certificate, bytes(32), b"")._replace(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"nonce": b""},
        {"nonce": bytes(33)},
        {"proof": b"x"},
        {"node": "a/b"},
        {"node": ""},
        {"certificate": ""},
        {"certificate": "nonsense"},
    ],
)
async def test_offers_that_cannot_be(identities: dict[str, Identity], fields: Any) -> None:
    sides = Sides(identities, OpenCode(CODE, 0.0))
    await sides.run(lambda connection: connection.send(offer(identities["b"], **fields)))
    assert isinstance(sides.listened, WireError)
    assert str(sides.listened).isprintable()


@pytest.mark.parametrize("forge", [bad_name, bad_version])
async def test_certificates_that_cannot_be(
    identities: dict[str, Identity], forge: Callable[[str], str]
) -> None:
    code = OpenCode(CODE, 0.0)
    sides = Sides(identities, code)
    forged = replace(identities["b"], certificate=forge(identities["b"].certificate))
    await sides.run(lambda connection: pairing.ask(connection, CODE, "b", forged, lambda _: None))
    assert isinstance(sides.listened, WireError)
    assert code.state(1) == "waiting"


async def test_nothing_is_parsed_while_no_pairing_is_open(identities: dict[str, Identity]) -> None:
    sides = Sides(identities, None)
    await sides.run(
        lambda connection: connection.send(offer(identities["b"], certificate="nonsense"))
    )
    assert "no pairing is open" in str(sides.listened)


@pytest.mark.parametrize("change", ["nonce", "node", "certificate", "proof", "type", "end"])
async def test_second_offers_that_are_not_as_the_first(
    identities: dict[str, Identity], change: str
) -> None:
    code = OpenCode(CODE, 0.0)
    sides = Sides(identities, code)

    async def connect(connection: Connection) -> None:
        own = offer(identities["b"])
        await connection.send(own)
        theirs = await connection.receive()
        assert isinstance(theirs, PairOffer)
        assert theirs.proof == b""  # nothing to guess from
        right = own._replace(proof=proof_of(parse_code(CODE), PAIRING_CONNECTS, own, theirs))
        if change == "end":
            return
        wrong: dict[str, Message] = {
            "type": End(Seq(1)),
            "nonce": right._replace(nonce=bytes(31) + b"1"),
            "node": right._replace(node="c"),
            "certificate": right._replace(certificate=identities["c"].certificate),
            "proof": right._replace(proof=b""),
        }
        await connection.send(wrong[change])

    await sides.run(connect)
    assert isinstance(sides.listened, WireError)
    assert sides.kept == []
    assert code.state(1) == "waiting"


@pytest.mark.parametrize("answered", ["own", "replayed", "nothing", "junk", "refusal", "other"])
async def test_a_listener_without_the_code(identities: dict[str, Identity], answered: str) -> None:
    """It learns nothing, whatever it makes of the proof that it got."""
    ours, theirs = connections()

    async def listen() -> None:
        async with theirs:
            first = await theirs.receive()
            assert isinstance(first, PairOffer)
            own = PairOffer("a", identities["c"].certificate, first.nonce, b"")
            await theirs.send(own)
            second = await theirs.receive()
            assert isinstance(second, PairOffer)
            if answered == "own":
                proof = proof_of(parse_code(OTHER), PAIRING_LISTENS, first, own)
                await theirs.send(own._replace(proof=proof))
            elif answered == "replayed":
                await theirs.send(own._replace(proof=second.proof))
            elif answered == "junk":
                await theirs.send(End(Seq(1)))
            elif answered == "refusal":
                await theirs.send(Refusal("x", "go away"))
            elif answered == "other":
                await theirs.send(second)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        async with ours:
            with pytest.raises((PairingError, WireError)) as caught:
                await pairing.ask(ours, CODE, "b", identities["b"], lambda _: None)
    assert str(caught.value).isprintable()
    if answered == "nothing":
        assert isinstance(caught.value, PeerLostError)


@pytest.mark.parametrize("changed", ["connects", "listens", None])
async def test_somebody_in_the_middle(identities: dict[str, Identity], changed: str | None) -> None:
    """Puts its own certificate in either's place; or passes everything on, and gets nothing."""
    sides = Sides(identities, OpenCode(CODE, 0.0))
    evil = identities["c"].certificate

    async def middle(far: Connection) -> Any:
        near, theirs = connections()

        async def relay(source: Connection, sink: Connection, change: bool) -> None:
            with suppress(FusejournalError):
                while (message := await source.receive()) is not None:
                    if change and isinstance(message, PairOffer):
                        message = message._replace(certificate=evil)
                    await sink.send(message)
            await sink.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, near, far, changed == "connects")
            nursery.start_soon(relay, far, near, changed == "listens")
            async with theirs:
                try:
                    return await pairing.ask(theirs, CODE, "b", identities["b"], lambda _: None)
                except FusejournalError as error:
                    return error

    result = await sides.run(middle)
    if changed is None:
        assert result.certificate == identities["a"].certificate
        assert [one.certificate for one in sides.kept] == [identities["b"].certificate]
    else:
        assert isinstance(result, PairingError)
        assert sides.kept == []


async def test_of_two_at_once_one_gets_in(identities: dict[str, Identity]) -> None:
    sides = Sides(identities, OpenCode(CODE, 0.0))
    results: list[Any] = []

    async def one() -> None:
        results.append(await sides.pair(CODE))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(one)
    assert sum(isinstance(result, Paired) for result in results) == 1
    assert len(sides.kept) == 1
