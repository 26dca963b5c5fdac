"""Primaries, their clones and older copies, successors and liars, in any order: by the rules of a
session alone, without sockets, but with each node's own page of watermarks.

A journal is a tuple of entries here, and its chain a checksum of all of them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import xxhash
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fusejournal.election.static import PersonsWord
from fusejournal.errors import WireError
from fusejournal.journal.watermarks import Following, WatermarkPage
from fusejournal.replication.fence import Fence
from fusejournal.types import EPOCH_MAX, Epoch, Position, Reign, Seq
from fusejournal.wire.frames import Begin, Decoder, Message, Welcome, encode
from fusejournal.wire.instances import RIVAL_SECONDS, Instance, Instances, instance_of
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import (
    FETCH,
    SHIP,
    Claim,
    HandshakeState,
    RefusedError,
    Sink,
    check_welcome,
    hello,
    is_proven,
    reign_of,
    welcome,
)
from tests.support.workload import UUID_OF_WORKLOADS, workspace


class Entry(NamedTuple):
    """``epoch`` is that which it begins, or 0; no two that were ever made have one ``number``."""

    number: int
    epoch: int


Journal = tuple[Entry, ...]


def chain_of(journal: Journal) -> int:
    return xxhash.xxh3_64_intdigest(repr(journal).encode()) if journal else 0


def epoch_of(journal: Journal) -> Epoch:
    return Epoch(max((entry.epoch for entry in journal), default=0))


def common(one: Journal, other: Journal) -> int:
    same = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        same += 1
    return same


def wired(message: Message) -> Message:
    """*message*, as the other side hears it."""
    (heard,) = Decoder().feed(encode(message))
    return heard


class Primary:
    """One start of a primary: a state directory, and what it has in memory."""

    def __init__(self, path: Path, node_id: int, journal: Journal) -> None:
        self.path, self.node_id, self.journal = path, node_id, journal
        self._page = WatermarkPage(path)
        self.fence = Fence(self._page, node_id, PersonsWord(None))
        self.is_fenced = self.fence.refusal(epoch_of(journal)) is not None
        self.followed_by: set[int] = set()

    def close(self) -> None:
        self._page.close()

    @property
    def me(self) -> HandshakeState:
        epoch = epoch_of(self.journal)
        own, fence = self.fence.own(epoch), self.fence
        return HandshakeState(
            f"node{self.node_id}",
            UUID_OF_WORKLOADS,
            Position(epoch, Seq(len(self.journal)), chain_of(self.journal)),
            own.epoch,
            Seq(len(self.journal)),
            own.node_id,
            self.node_id,
            fence.instance,
            fence.before,
        )

    def hear(self, claim: Claim) -> None:
        """Hears of a reign, as replication does."""
        mine = self.fence.own(epoch_of(self.journal))
        chain = chain_of(self.journal[: claim.seq]) if claim.seq <= len(self.journal) else None
        if is_proven(claim, mine, chain):
            self.fence.note(claim.reign)
            self.is_fenced = True


class Mirror:
    """A mirror: what it keeps, and what it has in memory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.journal: Journal = ()
        self.fence = Reign(Epoch(0), 0)
        self.instances = Instances(Following(), 0.0)
        self.session: Primary | None = None

    @property
    def me(self) -> HandshakeState:
        epoch = epoch_of(self.journal)
        return HandshakeState(
            self.name,
            UUID_OF_WORKLOADS,
            Position(epoch, Seq(len(self.journal)), chain_of(self.journal)),
            self.fence.epoch,
            Seq(len(self.journal)),
            self.fence.node_id,
        )

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Checks what may never happen to it, whichever node calls."""
        journal, fence = self.journal, self.fence
        yield
        assert self.journal[: len(journal)] == journal, "something was given up"
        assert self.fence.epoch >= fence.epoch, "a fence was lowered"
        assert not self.fence.is_rival(fence), "two reigns of one epoch"


_INDEXES = st.integers(0, 1 << 16)
_NUMBERS = st.one_of(st.integers(0, 12), st.sampled_from((EPOCH_MAX, EPOCH_MAX + 1, 1 << 40)))


class Reigns(RuleBasedStateMachine):
    """The reigns of a primary and its mirrors."""

    @initialize()
    def begin(self) -> None:
        self._workspace = workspace()
        self.base = self._workspace.__enter__()
        self.now, self.made, self.states = 0.0, 0, 0
        self.mirrors = [Mirror("east"), Mirror("west")]
        self.copies: list[tuple[Path, int, Journal]] = []
        self.primaries: list[Primary] = []
        self._start(self.base / "state0", 1, (self._entry(epoch=1),))

    def teardown(self) -> None:
        if hasattr(self, "primaries"):
            for primary in self.primaries:
                primary.close()
            self._workspace.__exit__(None, None, None)

    def _entry(self, epoch: int = 0) -> Entry:
        self.made += 1
        return Entry(self.made, epoch)

    def _start(self, path: Path, node_id: int, journal: Journal) -> Primary:
        primary = Primary(path, node_id, journal)
        if not primary.is_fenced:
            primary.fence.reigns(epoch_of(journal))
        self.primaries.append(primary)
        return primary

    def _pick(self, index: int) -> Primary:
        return self.primaries[index % len(self.primaries)]

    def _new_path(self) -> Path:
        self.states += 1
        return self.base / f"state{self.states}"

    def _is_heard(self, primary: Primary | None) -> bool:
        return primary is not None and primary in self.primaries

    # -- what may happen -----------------------------------------------------------------------

    @rule(at=_INDEXES)
    def write(self, at: int) -> None:
        primary = self._pick(at)
        if not primary.is_fenced:
            primary.journal = (*primary.journal, self._entry())

    @rule(at=_INDEXES, kept=st.booleans())
    def copy(self, at: int, kept: bool) -> None:
        """A clone of the machine starts at once, or a snapshot is kept for later."""
        primary, path = self._pick(at), self._new_path()
        shutil.copyfile(primary.path, path)
        if kept or len(self.primaries) > 3:
            self.copies.append((path, primary.node_id, primary.journal))
        else:
            self._start(path, primary.node_id, primary.journal)

    @rule(at=_INDEXES)
    def restart(self, at: int) -> None:
        primary = self._pick(at)
        self._stop(primary)
        self._start(primary.path, primary.node_id, primary.journal)

    def _stop(self, primary: Primary) -> None:
        self.primaries.remove(primary)
        primary.close()
        for mirror in self.mirrors:
            if mirror.session is primary:
                mirror.session = None

    @precondition(lambda self: self.copies)
    @rule(at=_INDEXES, which=_INDEXES, boots=st.booleans(), reaches=st.sets(st.integers(0, 1)))
    def put_back(self, at: int, which: int, boots: bool, reaches: set[int]) -> None:
        """A primary is stopped, and an older copy of it, or of another, starts in its place. It
        asks those mirrors that it reaches; and it begins an epoch where one of them is ahead, or in
        another boot of the machine."""
        self._stop(self._pick(at))
        path, node_id, journal = self.copies[which % len(self.copies)]
        new = self._new_path()
        shutil.copyfile(path, new)
        primary = Primary(new, node_id, journal)
        self.primaries.append(primary)
        is_behind = False
        for mirror in (self.mirrors[n] for n in reaches):
            try:
                answer = wired(welcome(mirror.me, hello(primary.me, FETCH), is_mirror=True))
                theirs = check_welcome(primary.me, answer)  # type: ignore[arg-type]
                is_behind |= theirs.seq > len(journal) and theirs.held_epoch == epoch_of(journal)
            except RefusedError as error:
                if error.claim is not None:
                    primary.hear(error.claim)
            if epoch_of(mirror.journal) > epoch_of(journal) and mirror.me.reign.epoch == epoch_of(
                mirror.journal
            ):
                assert primary.is_fenced, "it has seen a higher reign, and goes on"
        if primary.is_fenced:
            return
        epoch = Epoch(max(epoch_of(journal), primary.fence.seen.epoch))
        if boots or is_behind:
            epoch = Epoch(epoch + 1)
            primary.journal = (*journal, self._entry(epoch=epoch))
        primary.fence.reigns(epoch)

    @rule(at=_INDEXES, node_id=st.integers(2, 4))
    def succeed(self, at: int, node_id: int) -> None:
        """Another node begins an epoch with what a mirror has: as a promotion will, or wrongly."""
        mirror = self.mirrors[at % 2]
        if not mirror.journal or len(self.primaries) > 3:
            return
        epoch = Epoch(max(epoch_of(mirror.journal), mirror.fence.epoch) + 1)
        journal = (*mirror.journal, self._entry(epoch=epoch))
        self._start(self._new_path(), node_id, journal).fence.reigns(epoch)

    @rule(seconds=st.sampled_from((1.0, 60.0, 2 * RIVAL_SECONDS)))
    def wait(self, seconds: float) -> None:
        """All who ship are heard meanwhile."""
        self.now += seconds
        for mirror in self.mirrors:
            if mirror.session is not None:
                mirror.instances.heard(self.now)

    @rule(at=_INDEXES)
    def mirror_restarts(self, at: int) -> None:
        mirror = self.mirrors[at % 2]
        before = mirror.instances
        mirror.instances, mirror.session = Instances(before.following, self.now), None
        assert mirror.instances.following == before.following
        for number in before.following.rivals:
            rival = Instance("", before.following.node_id, number, 0, "")
            assert mirror.instances.is_rival(rival, self.now)
            assert mirror.instances.is_rival(rival._replace(number=1, before=number), self.now)

    @rule(at=_INDEXES)
    def link_breaks(self, at: int) -> None:
        self.mirrors[at % 2].session = None

    @rule(at=_INDEXES, to=st.integers(0, 1))
    def ship(self, at: int, to: int) -> None:
        """A session, by the rules of both sides."""
        primary, mirror = self._pick(at), self.mirrors[to]
        if primary.is_fenced:
            return
        before = mirror.session
        with mirror.checked():
            try:
                self._session(primary, mirror)
            except RefusedError as error:
                if error.claim is not None:
                    primary.hear(error.claim)
                assert mirror.session is before, "who is refused took a place"
        if before is not None and before is not primary and before.node_id == primary.node_id:
            assert mirror.session is before, "an instance took the place of one that is heard"

    def _session(self, primary: Primary, mirror: Mirror) -> None:
        me, reign = primary.me, primary.me.reign
        greeting = wired(hello(me, SHIP))
        answer = wired(welcome(mirror.me, greeting, is_mirror=True))  # type: ignore[arg-type]
        newcomer = instance_of(greeting, primary.path.name)  # type: ignore[arg-type]
        if mirror.instances.is_other(newcomer) and (
            mirror.session is not None or mirror.instances.is_rival(newcomer, self.now)
        ):
            mirror.instances.met(newcomer, self.now)
            raise RefusedError(RefusalCode.INSTANCE, "runs twice")
        check_welcome(me, answer)  # type: ignore[arg-type]
        agreed = common(primary.journal, mirror.journal)
        if agreed < len(mirror.journal):
            return  # they have parted
        seq, chain = Seq(agreed), chain_of(primary.journal[:agreed])
        begin = wired(Begin(reign.epoch, seq, chain, me.position.seq, seq, reign.node_id))
        sink = Sink(mirror.me.position, *mirror.me.reign)
        sink.begin(begin)  # type: ignore[arg-type]
        assert reign_of(begin) == sink.reign or not reign.node_id  # type: ignore[arg-type]
        mirror.fence = sink.reign
        mirror.instances.follow(newcomer, self.now)
        mirror.session = primary
        mirror.journal = primary.journal

    @rule(at=_INDEXES, of=st.integers(0, 1), epoch=_NUMBERS, held=_NUMBERS, seq=st.integers(0, 12))
    def lie(self, at: int, of: int, epoch: int, held: int, seq: int) -> None:
        """A peer says anything of its reign, and of where its journal ends, which is a prefix of
        the primary's, or nothing that there is."""
        primary = self._pick(at)
        was_fenced, seen = primary.is_fenced, primary.fence.seen
        me = primary.me
        is_prefix = seq <= len(primary.journal)
        chain = chain_of(primary.journal[:seq]) if is_prefix else 7
        position = Epoch(epoch), Seq(seq), chain
        answer = Welcome(
            1, UUID_OF_WORKLOADS.bytes, "liar", *position, Seq(seq), 9, Epoch(held), 0, ""
        )
        try:
            check_welcome(me, wired(answer))  # type: ignore[arg-type]
        except RefusedError as error:
            if error.claim is not None:
                primary.hear(error.claim)
        except WireError:
            pass
        if epoch > EPOCH_MAX or held != epoch or is_prefix:
            assert (primary.is_fenced, primary.fence.seen) == (was_fenced, seen)

    # -- what must be true ---------------------------------------------------------------------

    @invariant()
    def whoever_is_fenced_stays_so(self) -> None:
        """By what its own page says."""
        for primary in getattr(self, "primaries", ()):
            words = primary.fence.refusal(epoch_of(primary.journal))
            assert primary.is_fenced == (words is not None)


def test_reigns() -> None:
    run_state_machine_as_test(
        Reigns, settings=settings(max_examples=300, stateful_step_count=40, deadline=None)
    )
