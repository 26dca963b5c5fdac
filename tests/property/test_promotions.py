"""Promotions, losses and cuts in any order, by the product's own rules: no epoch is begun twice,
and nothing that was acknowledged while mirrors were waited for is missing where a reign begins.

A life follows from its seed, which is all that a failure needs to be seen again. Nodes are values
here: a journal is a tuple of entries, and what a node has seen of reigns is on its disk. One that
is not in reach answers nothing."""

import random
from dataclasses import dataclass, field

import pytest
import xxhash

from fusejournal.errors import WireError
from fusejournal.replication.canvass import PeerAnswer
from fusejournal.roles.promotion import Candidate, next_reign, plan_promotion
from fusejournal.types import Epoch, Position, Reign, Seq
from fusejournal.wire.members import Members, Rule, votes_needed
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import (
    FETCH,
    VOTE,
    HandshakeState,
    RefusedError,
    check_reign,
    hello,
    wanted_reign,
    welcome,
)
from tests.support.workload import UUID_OF_WORKLOADS

_EPOCH_1 = Reign(Epoch(1), 0)
_NODES_MAX = 5


@dataclass
class Node:
    """One node's disk. An entry is a number that is never given twice, and the epoch that it
    begins, or 0; ``acked`` is how much of its journal each mirror has acknowledged to it."""

    number: int
    is_primary: bool
    journal: tuple[tuple[int, int], ...] = ()
    fence: Reign = _EPOCH_1
    members: Members | None = None
    acked: dict[int, int] = field(default_factory=dict)
    is_off: bool = False
    is_lost: bool = False

    @property
    def epoch(self) -> Epoch:
        return Epoch(max([1, *(epoch for _, epoch in self.journal)]))

    @property
    def me(self) -> HandshakeState:
        chain = xxhash.xxh3_64_intdigest(repr(self.journal).encode()) if self.journal else 0
        position = Position(self.epoch, Seq(len(self.journal)), chain)
        return HandshakeState(
            f"node{self.number}",
            UUID_OF_WORKLOADS,
            position,
            self.fence.epoch,
            position.seq,
            self.fence.node_id,
            node_id=self.number + 1,
            role="primary" if self.is_primary else "mirror",
            members=self.members.to_wire() if self.members is not None else (),
        )

    @property
    def takes_changes(self) -> bool:
        is_fenced = self.fence.epoch > self.epoch
        return self.is_primary and not (is_fenced or self.is_off or self.is_lost)


class Life:
    """One life of some nodes, by *seed*. ``begun`` is who began each epoch."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        nodes = self.random.randint(2, _NODES_MAX)
        self.mirrors = self.random.randint(1, nodes - 1)
        self.nodes = [Node(number, number == 0) for number in range(nodes)]
        rule = Rule(self.mirrors, True, tuple(range(1, nodes + 1)))
        self.nodes[0].members = Members(_EPOCH_1, 1, rule)
        self.numbers = self.promotions = 0
        self.begun: dict[int, int] = {1: 0}
        self.acknowledged: list[tuple[int, int]] = []

    def cut(self) -> set[int]:
        """Nodes that are not in reach for now."""
        return {node.number for node in self.nodes if self.random.random() < 0.2}

    def entry(self, epoch: int = 0) -> tuple[int, int]:
        self.numbers += 1
        return self.numbers, epoch

    def change(self) -> None:
        node = self.random.choice(self.nodes)
        if node.takes_changes:
            node.journal += (self.entry(),)

    def ship(self) -> None:
        """A session that brings all there is, and its acknowledgement."""
        source, sink = self.random.sample(self.nodes, 2)
        if not source.takes_changes or sink is source or sink.is_primary or sink.is_off:
            return
        try:
            check_reign(sink.me, source.me.reign, "source")
        except RefusedError:
            return
        if source.journal[: len(sink.journal)] != sink.journal:
            return  # diverged
        sink.journal, sink.fence = source.journal, source.me.reign
        sink.members = source.members
        source.acked[sink.number] = len(sink.journal)
        held = sorted(source.acked.values(), reverse=True)
        if len(held) >= self.mirrors:
            known = source.journal[: held[self.mirrors - 1]]
            self.acknowledged += [one for one in known if one not in self.acknowledged]

    def switch(self) -> None:
        node = self.random.choice(self.nodes)
        node.is_off = not node.is_off

    def answers(self, asker: Node, cut: set[int], wanted: Reign | None) -> list[PeerAnswer]:
        found = []
        purpose = FETCH if wanted is None else VOTE
        for node in self.nodes:
            if node is asker:
                continue
            name = f"node{node.number}"
            greeting = hello(asker.me, purpose, wanted.epoch if wanted is not None else Epoch(0))
            try:
                if node.is_off or node.number in cut:
                    raise WireError("no answer")
                if wanted is not None and node.is_primary:
                    raise RefusedError(RefusalCode.ROLE, "is a primary")
                if wanted is not None:
                    node.fence = wanted_reign(node.me, greeting)
                found.append(PeerAnswer(name, welcome(node.me, greeting, is_mirror=True)))
            except WireError as error:
                found.append(PeerAnswer(name, error=str(error)))
        return found

    def begins(self, node: Node, reign: Reign) -> None:
        assert self.begun.get(reign.epoch, node.number) == node.number, "one epoch, two nodes"
        assert reign.epoch not in self.begun, "one epoch, begun twice"
        self.begun[reign.epoch] = node.number
        node.journal += (self.entry(reign.epoch),)
        node.fence, node.is_primary = reign, True
        node.acked, node.is_lost = {}, False
        known = [one.members for one in self.nodes if one.members is not None]
        node.members = max(known, key=lambda one: one.order)._replace(reign=reign)
        missing = [one for one in self.acknowledged if one not in node.journal]
        assert not missing, f"{missing} were acknowledged, and are lost"

    def promote(self) -> None:
        node, cut = self.random.choice(self.nodes), self.cut()
        if node.is_primary or node.is_off or not node.journal:
            return

        def refusal(answers: list[PeerAnswer]) -> str:
            seq = Seq(len(node.journal))
            known = Candidate(node.me, seq, seq, None, Seq(0), None)
            return plan_promotion(known, answers, "vol").refusal

        answers = self.answers(node, cut, None)
        if refusal(answers):
            return
        reign = next_reign(node.me, answers, is_covered=True)
        node.fence = reign
        if not refusal(self.answers(node, cut, reign)):
            self.promotions += 1
            self.begins(node, reign)

    def crash_system(self) -> None:
        """A primary loses its machine, and entries with it; its start takes back what peers have,
        and begins an epoch with the votes of enough."""
        node, cut = self.random.choice(self.nodes), self.cut()
        lost = self.random.randint(0, 3)
        if not (node.takes_changes or node.is_lost) or not node.journal:
            return
        kept = node.journal[: max(1, len(node.journal) - lost)]
        if max(epoch for _, epoch in kept) == max(epoch for _, epoch in node.journal):
            node.journal = (
                kept  # (else an epoch's beginning, which is on the disk before it is told)
            )
        node.is_lost = True
        answers = self.answers(node, cut, None)
        if any(
            one.welcome is not None
            and one.welcome.epoch > node.epoch
            and one.welcome.held_epoch == one.welcome.epoch
            for one in answers
        ):
            return  # fenced
        for one in self.nodes:
            is_heard = any(a.peer == f"node{one.number}" and a.welcome for a in answers)
            if is_heard and one.journal[: len(node.journal)] == node.journal:
                node.journal = one.journal
        heard = [one.welcome.epoch for one in answers if one.welcome is not None]
        reign = Reign(Epoch(max([node.epoch, *heard]) + 1), node.number + 1)
        votes = [one for one in self.answers(node, cut, reign) if one.welcome is not None]
        needed = votes_needed(len(self.nodes), self.mirrors, blocks=True, has_lost=True)
        if 1 + len(votes) >= needed:
            self.begins(node, reign)

    def reigns_are_of_one_node(self) -> None:
        for node in self.nodes:
            for other in self.nodes:
                assert not (node.takes_changes and other.takes_changes) or (
                    node is other or node.epoch != other.epoch
                )

    def live(self, steps: int) -> None:
        deeds = [self.change, self.ship, self.promote, self.switch, self.crash_system]
        for _ in range(steps):
            self.random.choices(deeds, (4, 6, 2, 1, 1))[0]()
            self.reigns_are_of_one_node()


@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_lives(first: int) -> None:
    promoted = 0
    for seed in range(first, first + 250):
        life = Life(seed)
        try:
            life.live(100)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        promoted += life.promotions
    assert promoted > 10, "mirrors are promoted in these lives"
