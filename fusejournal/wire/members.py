"""The members of a volume: the nodes that count for acknowledgements and for votes, by one rule on
all of them, and what each is known to have acknowledged. Pure.

A primary that waits for N mirrors acknowledges by its own configuration. Were a promotion to count
by the promoted mirror's, the two might meet in no node. So the primary informs its mirrors of by
which rule it acknowledges (MEMBERS, from version 4 on), and each keeps that on its disk: a
promotion counts by the newest record among those who answer, never by a configuration.

A rule changes in two steps, as in Raft's joint consensus (Ongaro and Ousterhout 2014, section 6).
First a record has the new rule and the one before, and a promotion needs votes enough by both; the
primary acknowledges nothing meanwhile. Once so many have that record that no promotion by the old
rule alone finds votes enough, and mirrors enough by the new one hold everything, the next record
has the new rule alone.

A *witness* has no data: it counts as a node, and for no acknowledgement. So a reign needs the votes
of more than half of all, and of so many others that they meet each acknowledgement.

A record of a reign before the last that has begun covers nothing: a node that was promoted by
force acknowledges by a rule of its own, of which a node that was away need not know yet. Then the
votes of all are needed.

``held`` is what members are known to have acknowledged. One that has less was rolled back, or has
lost it, and does not count until it has that again. It belongs to the record's reign: a new one
counts no further than where it began.

On the wire a record is a flat list of numbers::

    epoch, reign node, version, 0 or 1 (a rule before follows),
    for each rule: N, 0 or 1 (it waits as long as it takes), count, that many node ids,
        count, that many node ids of witnesses,
    then pairs of a node id and a seq
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from fusejournal.errors import WireError
from fusejournal.types import EPOCH_MAX, Epoch, Reign, Seq

MEMBERS_MAX: Final = 65
"""A node and all peers that it may have."""
_VERSION_MAX: Final = 1 << 62


def votes_needed(nodes: int, mirrors: int, *, blocks: bool, has_lost: bool = False) -> int:
    """Returns of how many of *nodes*, the primary included, the vote is needed so that who reigns
    now, and waits for *mirrors*, can acknowledge nothing more, and that no two nodes get it for one
    epoch. *blocks*: it waits for as long as it takes. One that does not is stopped by no other
    node: the votes of all are needed, its own included. *has_lost*: the node that asks is one of
    those that had acknowledged entries, and has lost some, so that another is needed in its
    place."""
    if not (blocks and mirrors):
        return nodes
    return max(nodes // 2 + 1, nodes - mirrors + has_lost)


class VoteCount(NamedTuple):
    """The ``votes`` there are, so many of which are ``needed``, of so many ``nodes``."""

    votes: int
    needed: int
    nodes: int

    @property
    def lacking(self) -> int:
        """The votes that are lacking; below 1 where there are enough."""
        return self.needed - self.votes


class Rule(NamedTuple):
    """The rule by which a primary acknowledges: it waits for ``mirrors`` of ``nodes``, itself among
    them, for as long as it takes if it ``blocks``. Nodes are in order."""

    mirrors: int
    blocks: bool
    nodes: tuple[int, ...]
    witnesses: tuple[int, ...] = ()

    @property
    def everyone(self) -> set[int]:
        """All whose vote counts."""
        return {*self.nodes, *self.witnesses}

    @property
    def waits(self) -> bool:
        """True if nothing is acknowledged without mirrors, so that votes can cover a promotion."""
        return self.blocks and self.mirrors > 0

    def tally(self, given: Collection[int], *, has_lost: bool = False) -> VoteCount:
        """Returns how many votes a reign has, by those who have *given* theirs, and needs;
        *has_lost* as for :func:`votes_needed`."""
        total, votes = len(self.everyone), len(self.everyone & set(given))
        if not self.waits:
            return VoteCount(votes, total, total)
        holding = len(set(self.nodes) & set(given))
        lacking = len(self.nodes) - self.mirrors + has_lost - holding
        return VoteCount(votes, max(total // 2 + 1, votes + lacking), total)

    def tally_fenced(self, given: Collection[int]) -> VoteCount:
        """Returns how many votes a reign needs where a program has turned the primary off, of all
        nodes but that. It stands for the primary's vote alone, and never for a node that may have
        what is newest: those who *given* theirs still meet each acknowledgement. Where nothing is
        waited for, no number does, and all have to give theirs."""
        others, votes = len(self.everyone) - 1, len(self.everyone & set(given))
        if not self.waits:
            return VoteCount(votes, max(1, others), others)
        lacking = len(self.nodes) - self.mirrors - len(set(self.nodes) & set(given))
        return VoteCount(votes, max(others // 2 + 1, votes + lacking), others)

    def is_kept_from(self, who: int, nodes: Collection[int], *, fenced: bool) -> bool:
        """Returns True if no promotion by this rule, of another node than *who*, finds votes enough
        without one of *nodes*; *fenced*: also where a program has turned *who* off."""
        others = self.everyone - {who} - set(nodes)
        return (self.tally_fenced(others) if fenced else self.tally(others)).lacking > 0


class Members(NamedTuple):
    """A record: of the primary of ``reign``, its ``version`` of that reign, the ``rule`` and the
    one ``before``, as long as that counts, too. ``held``: up to where nodes are known to have
    acknowledged, by node id."""

    reign: Reign
    version: int
    rule: Rule
    before: Rule | None = None
    held: tuple[tuple[int, Seq], ...] = ()

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules that a promotion needs votes enough by."""
        return (self.rule,) if self.before is None else (self.rule, self.before)

    @property
    def order(self) -> tuple[int, int, int]:
        """Grows with each record of a volume."""
        return self.reign.epoch, self.reign.node_id, self.version

    def holding(self, held: Mapping[int, Seq]) -> "Members":
        """Returns it with *held*, of those who count by its rules: of others it tells nothing."""
        everyone = set[int]().union(*(rule.everyone for rule in self.rules))
        return self._replace(held=in_order({one: held[one] for one in held if one in everyone}))

    def is_outdated(self, begun_epoch: Epoch) -> bool:
        """Returns True if *begun_epoch*, in which a node has entries, is beyond its reign: the node
        that began it may acknowledge by another rule, as one does that is promoted by force, and
        this record covers nothing."""
        return self.reign.epoch < begun_epoch

    def to_wire(self) -> tuple[int, ...]:
        """Returns the numbers of a message."""
        numbers: list[int] = [*self.reign, self.version, self.before is not None]
        for rule in self.rules:
            numbers += rule.mirrors, rule.blocks, len(rule.nodes), *rule.nodes
            numbers += len(rule.witnesses), *rule.witnesses
        for pair in self.held:
            numbers += pair
        return tuple(int(number) for number in numbers)


def members_of(numbers: Sequence[int]) -> Members | None:
    """Returns the record that *numbers* are; None where there are none. Raises WireError."""
    if not numbers:
        return None
    rest = iter(numbers)
    try:
        reign, version = Reign(Epoch(next(rest)), next(rest)), next(rest)
        has_before = _flag(next(rest))
        rule = _rule_of(rest)
        before = _rule_of(rest) if has_before else None
    except StopIteration:
        raise _impossible(numbers) from None
    pairs = list(rest)
    if len(pairs) % 2 or not 0 < reign.epoch <= EPOCH_MAX or not 0 < version <= _VERSION_MAX:
        raise _impossible(numbers)
    held = tuple(zip(pairs[::2], map(Seq, pairs[1::2]), strict=True))
    if len(dict(held)) != len(held) or len(held) > 2 * MEMBERS_MAX:
        raise _impossible(numbers)
    return Members(reign, version, rule, before, held)


def newest(records: Sequence[Members | None]) -> Members | None:
    """Returns the record of *records* that counts, with what any of the same reign knows of what
    members hold; None where there is none."""
    known = [one for one in records if one is not None]
    if not known:
        return None
    last = max(known, key=lambda one: one.order)
    held: dict[int, Seq] = {}
    for one in known:
        if one.reign == last.reign:
            for node_id, seq in one.held:
                held[node_id] = max(seq, held.get(node_id, Seq(0)))
    return last.holding(held)


def in_order(held: Mapping[int, Seq]) -> tuple[tuple[int, Seq], ...]:
    """Returns *held* as a record has it."""
    return tuple(sorted(held.items()))


def _rule_of(rest: Iterator[int]) -> Rule:
    mirrors, blocks, count = next(rest), _flag(next(rest)), next(rest)
    if not 0 < count <= MEMBERS_MAX or mirrors > MEMBERS_MAX:
        raise WireError(f"a rule of {count} members, of which {mirrors} are waited for")
    nodes = _nodes_of(rest, count)
    witnesses = _nodes_of(rest, next(rest))
    if set(nodes) & set(witnesses):
        raise WireError("members that are witnesses, too")
    return Rule(mirrors, blocks, nodes, witnesses)


def _nodes_of(rest: Iterator[int], count: int) -> tuple[int, ...]:
    if count > MEMBERS_MAX:
        raise WireError(f"{count} members")
    # (No generator, in which the end of the numbers would be an error of another kind.)
    nodes = [next(rest) for _ in range(count)]
    if nodes != sorted(set(nodes)) or 0 in nodes:
        raise WireError("members that are not in order")
    return tuple(nodes)


def _flag(number: int) -> bool:
    if number not in (0, 1):
        raise WireError(f"a flag of {number}")
    return bool(number)


def _impossible(numbers: Sequence[int]) -> WireError:
    return WireError(f"members cannot be {list(numbers)!r:.80}")
