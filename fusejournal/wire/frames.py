"""Messages between two nodes: bytes to messages and back. Pure; nothing here does I/O.

A connection is one stream of messages in each direction. A message is a 16-byte header,
little-endian, then a body:

======  ====  ==================================================================================
offset  size  field
======  ====  ==================================================================================
0       4     body length in bytes: at most 64 KiB, of a BATCH at most ``BATCH_BYTES_MAX``
4       2     type
6       2     zero
8       8     xxh3-64 of bytes 0 to 7 and the body
16      ...   body: a msgpack array, the fields of the message's class below, in order
======  ====  ==================================================================================

The body of a BATCH, or of BLOCKS, is a 4-byte length, a msgpack array of that length (all fields
but the content), then the content, which in a BATCH is as the array's ``method`` says. Bytes are
checked in this order: type, length, checksum, msgpack, fields; the error names the first that is
wrong. Only of a message of an unknown type, which may be a newer version's, the checksum is checked
first. Nothing is kept that is longer than its type allows, so no sender costs more memory than
that.

The checksum finds what TLS would, too, and what a plain connection does not. New fields are only
ever added at the end, with a default, and a reader leaves out those that it does not know; new
types and meanings raise ``PROTOCOL_VERSION`` (versions.py).

Source: the xxHash and msgpack specifications."""

import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgpack
import xxhash

from fusejournal.errors import WireError as WireError
from fusejournal.types import Epoch, Seq
from fusejournal.wire.block_messages import AskBlocks, AskTree, Blocks, TreeReport

PROTOCOL_VERSION: Final = 4
"""The newest version that this program speaks."""
PROTOCOL_VERSION_OLDEST: Final = 1
"""The oldest version that this program speaks."""
CALLS_VERSION: Final = 1
"""The version of the calls between a console and an agent."""
ANSWER_BYTES_MAX: Final = 16 << 20
"""The most that the answer to a call has, but for a download."""
CONTROL_BYTES_MAX: Final = 64 << 10
BATCH_CONTENT_BYTES_MAX: Final = 36 << 20
"""The largest frame a journal can hold, and a segment header."""
BATCH_BYTES_MAX: Final = BATCH_CONTENT_BYTES_MAX + CONTROL_BYTES_MAX

_HEADER: Final = struct.Struct("<IHH")
_CHECKSUM: Final = struct.Struct("<Q")
_META: Final = struct.Struct("<I")
HEADER_BYTES: Final = 16
assert _HEADER.size + _CHECKSUM.size == HEADER_BYTES

_NUMBER_MAX: Final = 2**64 - 1
_TEXT_MAX: Final = 4096
_LIST_MAX: Final = 64
_MEMBERS_MAX: Final = 512


class Hello(NamedTuple):
    """The connector's greeting: who it is and what it has. ``purpose``: ``ship`` (batches
    will come), ``fetch`` (batches are wanted), from version 2 on ``vote`` (the listener's vote
    for a reign is wanted) or, from version 3 on, ``handoff`` (the listener is to begin a reign).
    ``epoch``, ``seq`` and ``chain`` are its position; ``epoch`` and ``reign_node`` the highest
    reign that it knows of, ``held_epoch`` is that of the entries that it holds.

    ``node_id`` is what its key makes it, ``instance`` a number that it made at this start, and
    ``before`` the one of the start before: two nodes with one key are two instances.

    ``version`` is the oldest version of the protocol that it speaks, ``newest_version`` the newest;
    it reads journals up to ``journal_format``, and entries up to the kind ``newest_kind``
    (versions.py). ``listen_port`` is where it listens itself, for when the roles turn;
    ``wanted_epoch`` the epoch that it, or of a handoff the listener, is to begin, where that is
    what it asks for. Each field with a default is 0 where it is not given."""

    version: int
    uuid: bytes
    node: str
    purpose: str
    epoch: Epoch
    seq: Seq
    chain: int
    reign_node: int = 0
    held_epoch: Epoch = Epoch(0)
    node_id: int = 0
    instance: int = 0
    before: int = 0
    newest_version: int = 0
    journal_format: int = 0
    newest_kind: int = 0
    listen_port: int = 0
    wanted_epoch: Epoch = Epoch(0)


class Welcome(NamedTuple):
    """The listener's answer: what it has. ``uuid`` is empty where it has no journal yet and takes
    any volume's. ``detail`` is something that the greeter should know, in words. Versions are as in
    HELLO. ``limits`` are those of its backing's file system, in the order of the fields of
    ``BackingLimits`` (backing/limits.py), each 0 where it is not known. ``role`` is its own, in a
    word; empty where it is not given. ``members``: its record of members (members.py)."""

    version: int
    uuid: bytes
    node: str
    epoch: Epoch
    seq: Seq
    chain: int
    applied_seq: Seq
    reign_node: int = 0
    held_epoch: Epoch = Epoch(0)
    node_id: int = 0
    detail: str = ""
    newest_version: int = 0
    journal_format: int = 0
    newest_kind: int = 0
    limits: tuple[int, ...] = ()
    role: str = ""
    members: tuple[int, ...] = ()


class Refusal(NamedTuple):
    """The reason why a session goes no further: ``code`` for programs, ``reason`` for people. Where
    that is a higher reign, the rest says which, and what of it is held: the journal that ends with
    ``seq`` has ``held_epoch``'s beginning."""

    code: str
    reason: str
    epoch: Epoch = Epoch(0)
    reign_node: int = 0
    held_epoch: Epoch = Epoch(0)
    seq: Seq = Seq(0)
    chain: int = 0


class AskChains(NamedTuple):
    """The source's question for the sink's chain checksums at ``seqs``."""

    seqs: tuple[Seq, ...]


class Chains(NamedTuple):
    """The answer: the checksums in the same order; None where the sink's journal does not reach."""

    chains: tuple[int | None, ...]


class Begin(NamedTuple):
    """The source begins: the two journals agree up to ``seq``, whose chain is ``chain``, and
    batches follow from there.
    ``head_seq`` is where the sender's journal ends now. ``committed_seq`` is ``seq``, or one less
    where the sender's next entry says that entry ``seq`` was refused."""

    epoch: Epoch
    seq: Seq
    chain: int
    head_seq: Seq
    committed_seq: Seq
    reign_node: int = 0


class Diverged(NamedTuple):
    """The two journals agree up to ``seq`` and no further: the sender's chain there is ``chain``,
    and ``next_chain`` after the entry that follows. Both are 0 where they are not given, and the
    latter where the sender has no more."""

    seq: Seq
    head_seq: Seq
    chain: int = 0
    next_chain: int = 0


class Batch(NamedTuple):
    """Consecutive frames as they lie in the segment that begins with ``segment_seq``, from
    ``offset`` on (0: with the segment's header). ``first_seq`` to ``last_seq`` are in it, after
    ``chain_before``; ``epoch`` and ``reign_node`` are the sender's. It has applied up to
    ``applied_seq``, and its journal ends at ``head_seq``. ``method`` says how the content is stored
    (batches.py), ``content_bytes`` how long it is. ``signature`` is that of the node that shipped
    it first (signatures.py); empty where there is none."""

    epoch: Epoch
    first_seq: Seq
    last_seq: Seq
    chain_before: int
    chain: int
    segment_seq: Seq
    offset: int
    content_bytes: int
    method: str
    applied_seq: Seq
    head_seq: Seq
    content: bytes
    reign_node: int = 0
    signature: bytes = b""


class Ack(NamedTuple):
    """The sink's watermarks, which only grow, and its state: ``ok``, ``full`` (no space; it goes on
    by itself) or ``failed``; ``detail`` has it in words. Where all is well it is empty, or
    something that the sender should know. ``signed_seq``: of the batch that ends there the
    signature is kept, on the disk; 0 where none is. ``members_version``: of the record of members
    that is on the disk, of this reign; 0 where none is."""

    appended_seq: Seq
    durable_seq: Seq
    applied_seq: Seq
    state: str
    detail: str
    signed_seq: Seq = Seq(0)
    members_version: int = 0


class Ping(NamedTuple):
    """The source is alive, and its journal ends at ``head_seq``; an ACK answers it."""

    applied_seq: Seq
    head_seq: Seq


class End(NamedTuple):
    """The end of a fetch: all that was wanted has been sent. Up to ``seq`` it is known to have
    been applied; the last entry may be one that was refused, and its VOID lost."""

    seq: Seq


class Offer(NamedTuple):
    """The sender of a handoff, which takes no more changes, offers its reign: the listener may
    begin (``epoch``, ``reign_node``), if its journal ends at ``seq``, whose chain is ``chain``. A
    WELCOME of that reign says that it does; from version 3 on."""

    epoch: Epoch
    reign_node: int
    seq: Seq
    chain: int


class MembersReport(NamedTuple):
    """The source's record of members (members.py), at any time after BEGIN; from version 4 on."""

    members: tuple[int, ...]


class PairOffer(NamedTuple):
    """Pairing: a node's name, certificate (PEM), and a proof that it knows the code
    (pairing.py)."""

    node: str
    certificate: str
    nonce: bytes
    proof: bytes


class Call(NamedTuple):
    """A console's question to an agent, in ``version`` of their calls: ``what`` it asks for, with
    ``fields``, a JSON object as UTF-8."""

    version: int
    what: str
    fields: bytes


class CallPart(NamedTuple):
    """A part of an agent's answer to a CALL. ``state``: ``more`` (others follow), ``end`` (the
    last), or ``error``, whose content is a JSON object that says why."""

    state: str
    content: bytes


Message = (
    Hello
    | Welcome
    | Refusal
    | AskChains
    | Chains
    | Begin
    | Diverged
    | Batch
    | Ack
    | Ping
    | End
    | PairOffer
    | Call
    | CallPart
    | Offer
    | AskTree
    | TreeReport
    | AskBlocks
    | Blocks
    | MembersReport
)

_IN_ORDER: Final[tuple[type[Message], ...]] = (
    *(Hello, Welcome, Refusal, AskChains, Chains, Begin, Diverged, Batch, Ack, Ping, End),
    *(PairOffer, Call, CallPart, Offer, AskTree, TreeReport, AskBlocks, Blocks, MembersReport),
)
"""Messages by their numbers, from 1 on: new ones come last."""
_TYPES: Final[dict[int, type[Message]]] = dict(enumerate(_IN_ORDER, 1))
_NUMBERS: Final = {cls: number for number, cls in _TYPES.items()}
_CONTENT_AT: Final[dict[type[Message], int]] = {
    cls: cls._fields.index("content") for cls in (Batch, Blocks)
}
"""The place of the content among the fields of messages that may be large."""

_INTEGERS: Final = frozenset(
    {
        "version",
        "epoch",
        "seq",
        "chain",
        "head_seq",
        "first_seq",
        "last_seq",
        "chain_before",
        "segment_seq",
        "offset",
        "content_bytes",
        "applied_seq",
        "appended_seq",
        "durable_seq",
        "committed_seq",
        "reign_node",
        "held_epoch",
        "node_id",
        "instance",
        "before",
        "next_chain",
        "signed_seq",
        "newest_version",
        "journal_format",
        "newest_kind",
        "listen_port",
        "wanted_epoch",
        "make",
        "members_version",
    }
)
_BYTES: Final = frozenset({"uuid", "content", "nonce", "proof", "signature", "fields"})
_LENGTHS: Final = {"uuid": (0, 16), "signature": (0, 32)}
_NAMES_OF_LISTS: Final = ("seqs", "chains", "limits", "stored", "plain", "ids")
_LISTS: Final = dict.fromkeys(_NAMES_OF_LISTS, _LIST_MAX) | {"members": _MEMBERS_MAX}
_ID_BYTES: Final = 32

_pack = msgpack.Packer(use_bin_type=True).pack


def encode(message: Message) -> bytes:
    """Returns the bytes of *message*."""
    return b"".join(encode_parts(message))


def encode_parts(message: Message) -> tuple[bytes, ...]:
    """Returns the bytes of *message* in parts to be sent one after the other, so that a large
    content need not be copied."""
    number = _NUMBERS[type(message)]
    body: tuple[bytes, ...]
    if isinstance(message, Batch | Blocks):
        at = _CONTENT_AT[type(message)]
        meta = _pack(message[:at] + message[at + 1 :])
        body = (_META.pack(len(meta)) + meta, message.content)
    else:
        body = (_pack(tuple(message)),)
    head = _HEADER.pack(sum(map(len, body)), number, 0)
    digest = xxhash.xxh3_64(head)
    for part in body:
        digest.update(part)
    return (head + _CHECKSUM.pack(digest.intdigest()) + body[0], *body[1:])


class Decoder:
    """Takes bytes as they come and gives whole messages. After an error it gives no more."""

    def __init__(self) -> None:
        self._bytes_max = CONTROL_BYTES_MAX
        """A longer message is an error."""
        self._buffer = bytearray()
        self._failed = False

    def expect_batches(self) -> None:
        """Let messages be as long as a batch: no other sender is trusted with as much."""
        self._bytes_max = BATCH_BYTES_MAX

    def feed(self, data: bytes | bytearray) -> Iterator[Message]:
        """Gives the messages that are whole with *data*. Raises WireError."""
        if self._failed:
            return
        self._buffer += data
        while True:
            try:
                message = self._next()
            except WireError:
                self._failed = True
                # Not cleared: the error's traceback looks into it.
                self._buffer = bytearray()
                raise
            if message is None:
                return
            yield message

    @property
    def is_between(self) -> bool:
        """True if what was fed ends with a whole message."""
        return not self._buffer

    def _next(self) -> Message | None:
        buffer = self._buffer
        if len(buffer) < HEADER_BYTES:
            return None
        length, number, zero = _HEADER.unpack_from(buffer)
        cls = _TYPES.get(number)
        if zero or not number or (cls is None and length > CONTROL_BYTES_MAX):
            raise WireError(f"a message of unknown type {number}")
        is_large = cls is not None and cls in _CONTENT_AT
        limit = min(BATCH_BYTES_MAX if is_large else CONTROL_BYTES_MAX, self._bytes_max)
        if length > limit:
            raise WireError(f"a message of {length} bytes, {limit} are allowed")
        end = HEADER_BYTES + length
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view:
            (checksum,) = _CHECKSUM.unpack_from(view, _HEADER.size)
            digest = xxhash.xxh3_64(view[: _HEADER.size])
            digest.update(view[HEADER_BYTES:end])
            if digest.intdigest() != checksum:
                raise WireError("a message with a wrong checksum")
            if cls is None:
                raise WireError(
                    f"a message of type {number}, which only a newer version of fusejournal knows: "
                    "upgrade this node"
                )
            message = _decode(cls, view[HEADER_BYTES:end])
        del buffer[:end]
        return message


def _decode(cls: type[Message], body: memoryview) -> Message:
    content: tuple[bytes, ...] = ()
    if (at := _CONTENT_AT.get(cls)) is not None:
        meta_end = _META.size + (_META.unpack_from(body)[0] if len(body) >= _META.size else 0)
        if meta_end > len(body):
            raise WireError(f"{cls.__name__} without a description")
        content = (bytes(body[meta_end:]),)
        body = body[_META.size : meta_end]
    try:
        fields = msgpack.unpackb(
            body,
            use_list=False,
            raw=False,
            max_array_len=_MEMBERS_MAX,
            max_map_len=0,
            max_ext_len=0,
            max_str_len=CONTROL_BYTES_MAX,
            max_bin_len=CONTROL_BYTES_MAX,
        )
        if type(fields) is not tuple:
            raise WireError(f"{cls.__name__}: not a list of fields")
        fields = fields[:at] + content + fields[at:] if content else fields
        message: Any = cls(*fields[: len(cls._fields)])
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise WireError(f"{cls.__name__}: {error}") from None
    for name, value in zip(cls._fields, message, strict=True):
        _check(cls.__name__, name, value)
    return message  # type: ignore[no-any-return]


def _is_list(name: str, value: tuple[object, ...]) -> bool:
    if name == "ids":
        good = all(type(one) is bytes and len(one) == _ID_BYTES for one in value)
    else:
        numbers = [one for one in value if one is not None or name != "chains"]
        good = all(type(one) is int and 0 <= one <= _NUMBER_MAX for one in numbers)
    return good and len(value) <= _LISTS[name]


def _check(where: str, name: str, value: object) -> None:
    if name in _INTEGERS:
        good = type(value) is int and 0 <= value <= _NUMBER_MAX
    elif name in _BYTES:
        good = type(value) is bytes and len(value) in _LENGTHS.get(name, (len(value),))
    elif name in _LISTS:
        good = type(value) is tuple and _is_list(name, value)
    elif name == "certificate":
        good = type(value) is str
    else:
        good = type(value) is str and len(value) <= _TEXT_MAX and value.isprintable()
    if not good:
        raise WireError(f"{where}.{name} cannot be {value!r:.80}")


def uuid_of(data: bytes) -> UUID | None:
    """Returns the UUID in a message's field, None for an empty one."""
    return UUID(bytes=data) if data else None
