"""A session without sockets: whatever happens to the stream of messages, the sink's journal is a
prefix of the source's, or an error with a name ends the session; and the last common entry of any
two histories is found."""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fusejournal.errors import FusejournalError, WireError
from fusejournal.journal.frame_range import FrameRangeReader, JournalEnd
from fusejournal.journal.journal import Journal
from fusejournal.journal.outcomes import with_outcomes
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.types import EPOCH_MAX, Epoch, Position, Reign, Seq
from fusejournal.wire.batches import batch_of, compress, frame_range_of
from fusejournal.wire.frames import (
    Ack,
    Batch,
    Begin,
    Decoder,
    Message,
    Ping,
    Refusal,
    encode,
)
from fusejournal.wire.session import (
    FAILED,
    FETCH,
    FULL,
    OK,
    SHIP,
    HandshakeState,
    RefusedError,
    Sink,
    Source,
    check_welcome,
    hello,
    position_of,
    reign_of,
    welcome,
)
from fusejournal.wire.session_states import SessionMachine, SessionState, Side
from fusejournal.wire.versions import OWN_VERSIONS, Versions, common_version, versions_of
from tests.support.mirrors import unlike_journals
from tests.support.random_workloads import workloads
from tests.support.workload import UUID_OF_WORKLOADS, Workload, workspace

_OPTIONS = JournalOptions(preallocate_bytes=1 << 12, reserve_bytes=1 << 12)
_EPOCH = Epoch(9)
_START = Position(Epoch(0), Seq(0), 0)


# -- a source and a sink -------------------------------------------------------------------------


def stream_of(directory: Path, dice: random.Random) -> list[Message]:
    """The messages of a source with the journal in *directory*, in batches of any size."""
    head_seq, chain = JournalReader(directory, UUID_OF_WORKLOADS).head()
    end = JournalEnd(Seq(head_seq + 1), 0, Position(_EPOCH, head_seq, chain))
    messages: list[Message] = [Begin(_EPOCH, Seq(0), 0, head_seq, Seq(0))]
    reader = FrameRangeReader(directory, UUID_OF_WORKLOADS)
    try:
        reader.seek(Seq(0))
        while frame_range := reader.next(end, head_seq, dice.choice((512, 3000, 20_000))):
            method, content = compress(frame_range.content, dice.choice((0, 1, 3)))
            messages.append(batch_of(frame_range, method, content, _EPOCH, head_seq, head_seq))
            if dice.random() < 0.2:
                messages.append(Ping(head_seq, head_seq))
    finally:
        reader.close()
    return messages


class Mirror:
    """A sink with a journal: takes messages as receiver.py does."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.journal = Journal(directory, UUID_OF_WORKLOADS, _OPTIONS)
        self.fence = Epoch(0)
        self.committed_seq = Seq(0)

    def session(self) -> Callable[[Message], None]:
        """A new one; gives what takes its messages, which raises FusejournalError."""
        sink = Sink(self.journal.head, self.fence)
        machine = SessionMachine(Side.SINK, SessionState.COMPARING)

        def take(message: Message) -> None:
            received: Begin | Batch | Ping = machine.received(message)
            if isinstance(received, Begin):
                sink.begin(received)
                return
            if isinstance(received, Batch) and sink.take(received):
                self.journal.receive(frame_range_of(received))
                sink.appended(received)
                self.committed_seq = max(self.committed_seq, sink.committed_seq)
            self.fence = sink.epoch

        return take

    def check_prefix(self, source: Path) -> None:
        """Checks that what is here is what the source has, as far as it goes, and may be
        applied."""
        head_seq = self.journal.head_seq
        assert self.committed_seq == head_seq
        if not head_seq:
            return
        ours = JournalReader(self.directory, UUID_OF_WORKLOADS).read(Seq(1), Seq(head_seq + 1))
        theirs = JournalReader(source, UUID_OF_WORKLOADS).read(Seq(1), Seq(head_seq + 1))
        last = Seq(0)
        for (entry, outcome), (other, other_outcome) in zip(
            with_outcomes(ours), with_outcomes(theirs), strict=True
        ):
            assert (entry, outcome) == (other, other_outcome)
            last = entry.seq if outcome.void is None else Seq(entry.seq + 1)
        assert last == head_seq, "an entry and its VOID were parted"


class Scene(NamedTuple):
    """A source's journal, what it sends, and a mirror that has nothing."""

    source: Path
    messages: list[Message]
    mirror: Mirror


@contextmanager
def scene(workload: Workload, dice: random.Random) -> Iterator[Scene]:
    """Both in memory, gone afterwards."""
    with workspace() as base:
        source = base / "source"
        workload.write(source)
        mirror = Mirror(base / "mirror")
        try:
            yield Scene(source, stream_of(source, dice), mirror)
        finally:
            mirror.journal.close()


def offer(take: Callable[[Message], None], messages: Sequence[Message]) -> FusejournalError | None:
    """Give *messages*, until an error ends the session; that."""
    try:
        for message in messages:
            take(message)
    except FusejournalError as error:
        return error
    return None


_FEW = settings(max_examples=40)
_WORKLOADS = workloads(min_size=10, max_size=50)
_DICE = st.randoms(use_true_random=False)


@_FEW
@given(workload=_WORKLOADS, dice=_DICE)
def test_any_split_of_the_bytes_makes_the_same_journal(
    workload: Workload, dice: random.Random
) -> None:
    with scene(workload, dice) as (source, messages, mirror):
        whole = b"".join(map(encode, messages))
        take, decoder, at = mirror.session(), Decoder(), 0
        while at < len(whole):
            length = dice.choice((1, 7, 500, 100_000))
            for message in decoder.feed(whole[at : at + length]):
                take(message)
            at += length
        mirror.journal.close()
        assert unlike_journals(source, mirror.directory) == ""


@_FEW
@given(workload=_WORKLOADS, dice=_DICE)
def test_damaged_bytes(workload: Workload, dice: random.Random) -> None:
    """Flipped bits, lost, doubled and swapped ranges of bytes, an end anywhere."""
    with scene(workload, dice) as (source, messages, mirror):
        whole = bytearray(b"".join(map(encode, messages)))
        for _ in range(dice.choice((1, 1, 3))):
            at = dice.randrange(len(whole))
            length = dice.choice((1, 16, 1000))
            piece = whole[at : at + length]
            if (kind := dice.randrange(4)) == 0:
                whole[at] ^= 1 << dice.randrange(8)
            elif kind == 1:
                del whole[at : at + length]
            elif kind == 2:
                whole[at:at] = piece
            else:
                del whole[at:]
                whole += b"x"
        take, decoder = mirror.session(), Decoder()
        try:
            for message in decoder.feed(bytes(whole)):
                take(message)
        except WireError:
            pass
        mirror.check_prefix(source)


@_FEW
@given(workload=_WORKLOADS, dice=_DICE)
def test_messages_lost_doubled_and_out_of_order(workload: Workload, dice: random.Random) -> None:
    """And then a new session, from wherever the mirror is, ends with the same journal."""
    with scene(workload, dice) as (source, messages, mirror):
        sent = list(messages)
        for _ in range(dice.choice((1, 2, 5))):
            at, other = dice.randrange(len(sent)), dice.randrange(len(sent))
            if (kind := dice.randrange(3)) == 0 and len(sent) > 1:
                del sent[at]
            elif kind == 1:
                sent.insert(other, sent[at])
            else:
                sent[at], sent[other] = sent[other], sent[at]
        error = offer(mirror.session(), sent)
        assert error is None or isinstance(error, WireError)
        mirror.check_prefix(source)
        again = resumed(source, mirror.journal.head, dice)
        assert offer(mirror.session(), again) is None
        mirror.journal.close()
        assert unlike_journals(source, mirror.directory) == ""


def resumed(source: Path, position: Position, dice: random.Random) -> list[Message]:
    """The messages of a source to a sink at *position*, and first some that the sink has
    already."""
    batches = [message for message in stream_of(source, dice) if isinstance(message, Batch)]
    head_seq = batches[-1].head_seq
    reader = FrameRangeReader(source, UUID_OF_WORKLOADS)
    messages: list[Message] = [Begin(_EPOCH, position.seq, position.chain, head_seq, position.seq)]
    messages += [batch for batch in batches if batch.last_seq <= position.seq]
    try:
        assert reader.seek(position.seq) == position.chain
        end = JournalEnd(Seq(head_seq + 1), 0, Position(_EPOCH, head_seq, batches[-1].chain))
        while frame_range := reader.next(end, head_seq, 2000):
            messages.append(
                batch_of(frame_range, *compress(frame_range.content, 1), _EPOCH, head_seq, head_seq)
            )
    finally:
        reader.close()
    return messages


_NUMBERS = st.one_of(
    st.integers(0, 40), st.integers(0, 2**64 - 1), st.sampled_from((0, 1, 64, 1 << 25, 2**64 - 1))
)


@settings(max_examples=80)
@given(workload=_WORKLOADS, dice=_DICE, data=st.data())
def test_a_sender_that_lies(workload: Workload, dice: random.Random, data: st.DataObject) -> None:
    """Any field of any message is something else, and the checksum is right."""
    with scene(workload, dice) as (source, messages, mirror):
        at = dice.randrange(len(messages))
        message = messages[at]
        field = dice.choice(message._fields)
        before = getattr(message, field)
        if field == "content":
            changed: Any = bytearray(before)
            changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
            changed = bytes(changed)
        elif field == "signature":
            changed = dice.randbytes(32)
        elif field == "method":
            changed = dice.choice(("raw", "zstd", "lzma", ""))
        elif dice.random() < 0.5:
            changed = max(0, before + dice.choice((-1, 1)))
        else:
            changed = data.draw(_NUMBERS)
        assume(changed != before)
        lying = [*messages[:at], message._replace(**{field: changed}), *messages[at + 1 :]]
        (heard,) = Decoder().feed(encode(lying[at]))
        assert heard == lying[at]
        offer(mirror.session(), lying)
        mirror.check_prefix(source)


@_FEW
@given(workload=_WORKLOADS, dice=_DICE, fence=st.integers(0, 20))
def test_a_lower_epoch_changes_nothing(workload: Workload, dice: random.Random, fence: int) -> None:
    with scene(workload, dice) as (source, messages, mirror):
        mirror.fence = Epoch(fence)
        error = offer(mirror.session(), messages)
        if fence > _EPOCH:
            assert isinstance(error, RefusedError)
            assert error.code == "fenced"
            assert mirror.journal.head_seq == 0
        else:
            assert error is None
            assert mirror.fence == _EPOCH
        mirror.check_prefix(source)


# -- greetings -----------------------------------------------------------------------------------

_UUIDS = st.sampled_from((None, UUID_OF_WORKLOADS, type(UUID_OF_WORKLOADS)(int=7)))
_VERSIONS = st.builds(
    lambda oldest, more, *reads: Versions(oldest, oldest + more, *reads),
    *(st.integers(1, 3), st.integers(0, 2), st.integers(1, 3), st.integers(19, 22)),
)
_MES = st.builds(
    HandshakeState,
    st.sampled_from(("east", "west")),
    _UUIDS,
    st.builds(Position, st.integers(0, 4), st.integers(0, 50), st.integers(0, 3)),
    st.integers(0, 4),
    st.integers(0, 50),
    versions=st.just(OWN_VERSIONS) | _VERSIONS,
)


@given(one=_MES, other=_MES, purpose=st.sampled_from((SHIP, FETCH)), is_mirror=st.booleans())
def test_greetings(
    one: HandshakeState, other: HandshakeState, purpose: str, is_mirror: bool
) -> None:
    """A peer that gets past them is of one volume and speaks a version of the other's, and no lower
    epoch ships to one that has seen a higher."""
    greeting = hello(one, purpose)
    refused = None
    try:
        answer = welcome(other, greeting, is_mirror=is_mirror)
        theirs = check_welcome(one, answer)
    except RefusedError as error:
        refused = error
    if refused is not None:
        assert refused.code in ("volume", "fenced", "role", "version")
        if refused.code == "version":
            assert common_version(one.versions, other.versions) is None
            assert refused.reason.endswith((f": upgrade {one.node}", f": upgrade {other.node}"))
        with pytest.raises(RefusedError, match=re.escape(refused.reason)):
            SessionMachine(Side.CONNECTOR, SessionState.ANSWERING).received(refused.message())
        return
    assert None in (one.uuid, other.uuid) or one.uuid == other.uuid
    assert common_version(one.versions, other.versions) is not None
    assert versions_of(greeting) == one.versions
    assert versions_of(theirs) == other.versions
    assert (position_of(greeting).seq, position_of(greeting).chain) == one.position[1:]
    assert (position_of(theirs).seq, position_of(theirs).chain) == other.position[1:]
    if purpose == SHIP:
        assert is_mirror
        mine = max(one.fence, one.position.epoch)
        assert mine >= max(other.fence, other.position.epoch)


_REIGNS = st.builds(
    Reign,
    st.one_of(st.integers(1, 4), st.integers(0, 2 * EPOCH_MAX)),
    st.sampled_from((0, 1, 2, 3)),
)


@settings(max_examples=300)
@given(mine=_REIGNS, theirs=_REIGNS, path=st.sampled_from(("hello", "fetch", "begin", "batch")))
def test_a_reign_is_judged_alike_on_every_path(mine: Reign, theirs: Reign, path: str) -> None:
    """A lower one is refused, one that cannot be is an error, and so is the same epoch of another
    node; who began an epoch, a node need not know."""
    assume(mine.epoch <= EPOCH_MAX)
    nothing = Position(Epoch(0), Seq(0), 0)
    here = HandshakeState("here", UUID_OF_WORKLOADS, nothing, mine.epoch, Seq(0), mine.node_id)
    there = HandshakeState(
        "there", UUID_OF_WORKLOADS, nothing, theirs.epoch, Seq(0), theirs.node_id
    )
    sink = Sink(nothing, *mine)
    begin = Begin(theirs.epoch, Seq(0), 0, Seq(1), Seq(0), theirs.node_id)
    batch = Batch(
        *(theirs.epoch, Seq(1), Seq(1), 0, 1, Seq(1), 0, 0, "raw", Seq(1), Seq(1), b""),
        reign_node=theirs.node_id,
    )
    error: WireError | None = None
    try:
        if path in ("hello", "fetch"):
            greeting = hello(there, SHIP if path == "hello" else FETCH)
            answer = welcome(here, greeting, is_mirror=True)
            assert reign_of(answer) == mine
        elif path == "begin":
            sink.begin(begin)
        else:
            assert sink.take(batch)
    except WireError as raised:
        error = raised
    rivals = 0 not in (mine.node_id, theirs.node_id) and mine.node_id != theirs.node_id
    if theirs.epoch > EPOCH_MAX:
        assert error is not None
        assert not isinstance(error, RefusedError)
    elif (theirs.epoch < mine.epoch and path != "fetch") or (theirs.epoch == mine.epoch and rivals):
        assert isinstance(error, RefusedError)
        assert error.code == "fenced"
        assert "epoch" in error.reason
    else:
        assert error is None
        if path in ("begin", "batch"):
            known = theirs.node_id or (mine.node_id if theirs.epoch == mine.epoch else 0)
            assert sink.reign == Reign(theirs.epoch, known)
    # And what it is answered, it judges alike.
    if mine.epoch > theirs.epoch or (mine.epoch == theirs.epoch and rivals):
        with pytest.raises(RefusedError) as refused:
            check_welcome(there, welcome(here, hello(here, FETCH), is_mirror=True))
        assert (refused.value.claim is not None) == (mine.epoch > theirs.epoch)


# -- acknowledgements ----------------------------------------------------------------------------

_SEQS = st.integers(0, 60)
_ACKS = st.builds(Ack, _SEQS, _SEQS, _SEQS, st.sampled_from((OK, FULL, FAILED, "?")), st.just(""))


@given(
    start=st.integers(0, 20),
    steps=st.lists(st.one_of(st.integers(1, 9), _ACKS), max_size=30),
    window=st.integers(1, 500),
)
def test_acknowledgements(start: int, steps: list[int | Ack], window: int) -> None:
    """Watermarks only grow, in order; what is in flight is what is sent and not acknowledged."""
    source = Source(Seq(start), window)
    sent: list[tuple[int, int]] = []
    for step in steps:
        before = source.applied_seq, source.acked_seq, source.appended_seq, source.shipped_seq
        if isinstance(step, int):
            source.sent(Seq(source.shipped_seq + step), 10 * step, 0.0)
            sent.append((source.shipped_seq, 10 * step))
        else:
            try:
                source.acked(step)
            except WireError:
                now = source.applied_seq, source.acked_seq, source.appended_seq
                assert now == before[:3]
                continue
        after = source.applied_seq, source.acked_seq, source.appended_seq, source.shipped_seq
        assert all(new >= old for new, old in zip(after, before, strict=True))
        assert source.applied_seq <= source.acked_seq <= source.shipped_seq
        flying = [size for last, size in sent if last > source.acked_seq]
        assert source.in_flight_bytes == sum(flying)
        assert source.batches_in_flight == len(flying)
        assert source.has_room == (source.state == OK and sum(flying) < window)


@given(message=st.sampled_from((None, Ping(Seq(1), Seq(2)), Refusal("busy", "later"))))
def test_what_may_not_be_said(message: Message | None) -> None:
    with pytest.raises(WireError):
        SessionMachine(Side.SINK, SessionState.FETCHING).received(message)
