"""Messages come out as they went in, however the bytes are cut; damage is a WireError or nothing
but the whole messages before it."""

import struct
from typing import Any

import msgpack
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from fusejournal.errors import WireError
from fusejournal.types import Seq
from fusejournal.wire import frames
from fusejournal.wire.block_messages import AskBlocks, AskTree, Blocks, TreeReport
from fusejournal.wire.frames import (
    BATCH_BYTES_MAX,
    CONTROL_BYTES_MAX,
    HEADER_BYTES,
    Ack,
    AskChains,
    Batch,
    Begin,
    Call,
    CallPart,
    Chains,
    Decoder,
    Diverged,
    End,
    Hello,
    MembersReport,
    Message,
    Offer,
    PairOffer,
    Ping,
    Refusal,
    Welcome,
    encode,
    encode_parts,
)

_NUMBERS = st.integers(0, 2**64 - 1)
_TEXTS = st.text(max_size=20).filter(str.isprintable)
_UUIDS = st.binary(min_size=16, max_size=16) | st.just(b"")
_BLOBS = st.binary(max_size=40)
_SEQS = st.lists(_NUMBERS, max_size=5).map(tuple)


def _fields(cls: type[Message]) -> st.SearchStrategy[Any]:
    by_name = {
        "uuid": _UUIDS,
        "content": st.binary(max_size=300),
        "nonce": _BLOBS,
        "signature": st.binary(min_size=32, max_size=32) | st.just(b""),
        "proof": _BLOBS,
        "seqs": _SEQS,
        "limits": _SEQS,
        "members": _SEQS,
        "chains": st.lists(st.none() | _NUMBERS, max_size=5).map(tuple),
        "certificate": st.text(max_size=60),
        "fields": _BLOBS,
        "ids": st.lists(st.binary(min_size=32, max_size=32), max_size=5).map(tuple),
        "stored": _SEQS,
        "plain": _SEQS,
    }
    texts = {"node", "purpose", "code", "reason", "method", "state", "detail", "role", "what"}
    return st.builds(
        cls,
        *(by_name.get(name, _TEXTS if name in texts else _NUMBERS) for name in cls._fields),
    )


_CLASSES = (
    *(Hello, Welcome, Refusal, AskChains, Chains, Begin, Diverged),
    *(Batch, Ack, Ping, End, PairOffer, Call, CallPart, Offer),
    *(AskTree, TreeReport, AskBlocks, Blocks, MembersReport),
)
_MESSAGES: st.SearchStrategy[Message] = st.one_of(*(_fields(cls) for cls in _CLASSES))
_SEQUENCES = st.lists(_MESSAGES, min_size=1, max_size=5)


def decoded(pieces: list[bytes]) -> tuple[list[Message], WireError | None, Decoder]:
    """Decodes bytes. Returns the messages, and what the decoder had to say in the end."""
    decoder, messages = Decoder(), []
    decoder.expect_batches()
    try:
        for piece in pieces:
            for message in decoder.feed(piece):
                messages.append(message)
                assert len(decoder._buffer) <= HEADER_BYTES + BATCH_BYTES_MAX
    except WireError as error:
        failure = error
    else:
        return messages, None, decoder
    assert decoder.is_between  # nothing is kept
    assert list(decoder.feed(encode(End(Seq(1))))) == []
    assert str(failure).isprintable()
    return messages, failure, decoder


def test_every_type_is_tried() -> None:
    assert set(_CLASSES) == set(frames._TYPES.values())


@given(messages=_SEQUENCES, data=st.data())
def test_any_split_gives_the_same_messages(messages: list[Message], data: st.DataObject) -> None:
    whole = b"".join(map(encode, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert b"".join(pieces) == whole
    found, error, decoder = decoded(pieces)
    assert (found, error, decoder.is_between) == (messages, None, True)


@given(message=_MESSAGES)
def test_byte_by_byte(message: Message) -> None:
    whole = encode(message)
    assert b"".join(encode_parts(message)) == whole
    found, error, _ = decoded([whole[at : at + 1] for at in range(len(whole))])
    assert (found, error) == ([message], None)


def check_damaged(messages: list[Message], damaged: bytes, sound_bytes: int) -> None:
    """Damage after *sound_bytes* costs at most what comes after."""
    found, error, decoder = decoded([damaged])
    before, length = 0, 0
    for message in messages:
        length += len(encode(message))
        before += length <= sound_bytes
    assert found[:before] == messages[:before]
    # A longer length waits for bytes that do not come: harmless, too.
    assert found == messages[: len(found)]
    assert error is not None or not decoder.is_between or damaged == b"".join(map(encode, found))


@given(messages=_SEQUENCES, data=st.data())
@settings(max_examples=300)
def test_any_flipped_bit(messages: list[Message], data: st.DataObject) -> None:
    whole = bytearray(b"".join(map(encode, messages)))
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    check_damaged(messages, bytes(whole), bit // 8)


@given(message=_MESSAGES)
@settings(max_examples=20)
def test_every_flipped_bit_of_one_message(message: Message) -> None:
    whole = encode(message)
    for bit in range(min(len(whole), 120) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        found, error, decoder = decoded([bytes(damaged)])
        assert found == []
        assert error is not None or not decoder.is_between


@given(messages=_SEQUENCES, data=st.data())
def test_any_truncation(messages: list[Message], data: st.DataObject) -> None:
    whole = b"".join(map(encode, messages))
    length = data.draw(st.integers(0, len(whole)))
    found, error, decoder = decoded([whole[:length]])
    assert error is None
    assert found == messages[: len(found)]
    assert decoder.is_between == (b"".join(map(encode, found)) == whole[:length])


@given(messages=_SEQUENCES, data=st.data())
@settings(max_examples=300)
def test_any_removed_or_repeated_range(messages: list[Message], data: st.DataObject) -> None:
    """Messages that stay whole may still come out, as they were; the session knows the right
    order."""
    whole = b"".join(map(encode, messages))
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    repeat = data.draw(st.booleans())
    damaged = whole[:end] + whole[start:] if repeat else whole[:start] + whole[end:]
    found, _, _ = decoded([damaged])
    assert all(message in messages for message in found)
    sound = end if repeat else start
    before, length = 0, 0
    for message in messages:
        length += len(encode(message))
        before += length <= sound
    assert found[:before] == messages[:before]


@given(data=st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    decoded([data])


def forged(number: int, body: bytes, *, length: int | None = None, zero: int = 0) -> bytes:
    """A message whose checksum is right."""
    head = struct.pack("<IHH", len(body) if length is None else length, number, zero)
    return head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head + body)) + body


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | _NUMBERS | st.integers(-5, 0) | _BLOBS | st.text(),
    lambda inner: (
        st.lists(inner, max_size=15) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=30,
)


@given(number=st.integers(0, 14), value=_ANYTHING, loose=st.binary(max_size=30))
@settings(max_examples=500)
def test_well_formed_nonsense(number: int, value: Any, loose: bytes) -> None:
    packed = msgpack.packb(value)
    for body in (
        packed,
        loose,
        packed + loose,
        struct.pack("<I", len(packed)) + packed + loose,
        struct.pack("<I", 1 << 31) + packed,
    ):
        found, error, _ = decoded([forged(number, body)])
        assert len(found) + (error is not None) == 1


def test_a_type_that_is_not_known_is_a_newer_versions_where_the_message_is_whole() -> None:
    number = len(frames._TYPES) + 1
    whole = forged(number, b"body")
    found, error, _ = decoded([whole])
    assert found == []
    assert str(error).startswith(f"a message of type {number}, which only a newer version of ")
    assert decoded([whole[:-1]])[1] is None
    assert "wrong checksum" in str(decoded([whole[:-1] + b"x"])[1])
    for nonsense in (
        forged(number, b"", length=CONTROL_BYTES_MAX + 1),
        forged(number, b"body", zero=1),
        forged(0, b"body"),
    ):
        assert "of unknown type" in str(decoded([nonsense])[1])


@pytest.mark.parametrize("depth", [600, 60_000])
def test_deep_nesting(depth: int) -> None:
    found, error, _ = decoded([forged(1, b"\x91" * depth)])
    assert found == []
    assert error is not None


@pytest.mark.parametrize(("number", "limit"), [(1, CONTROL_BYTES_MAX), (8, BATCH_BYTES_MAX)])
def test_nothing_too_long_is_waited_for(number: int, limit: int) -> None:
    decoder = Decoder()
    decoder.expect_batches()
    assert list(decoder.feed(forged(number, b"", length=limit))) == []
    decoder = Decoder()
    decoder.expect_batches()
    with pytest.raises(WireError, match=f"{limit} are allowed"):
        list(decoder.feed(forged(number, b"", length=limit + 1)))
    with pytest.raises(WireError, match=f"{CONTROL_BYTES_MAX} are allowed"):
        list(Decoder().feed(forged(number, b"", length=CONTROL_BYTES_MAX + 1)))


def test_a_number_that_is_no_number() -> None:
    (good,) = Decoder().feed(encode(Ping(Seq(1), Seq(2))))
    assert good == Ping(Seq(1), Seq(2))
    for bad in (-1, True, 1.0, "1", None):
        found, error, _ = decoded([forged(10, msgpack.packb([1, bad]))])
        assert found == []
        assert error is not None
