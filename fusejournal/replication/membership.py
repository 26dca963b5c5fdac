"""The nodes that count, on a primary: keeps the record of members (wire/members.py) in step with
its configuration and book, has its mirrors told, and lets nothing be acknowledged while a promotion
might go by another rule than this node.

A mirror that never was told goes by no rule: it is not promoted without the vote of its primary, or
a person's. So what counts for an acknowledgement is what mirrors have that have the present record
on their disks: each promotion meets one of them, and goes by that or a later one. (Too old a
mirror, which can have none, is never promoted, and counts without.) A volume whose primary ships to
none has no record; one without TLS neither, as long as a peer has no certificate, by which to tell
it apart.

Used from the event loop's thread."""

import logging
from collections.abc import Callable, Collection
from typing import Final

import trio

from fusejournal.errors import FusejournalError
from fusejournal.replication.local_node import LocalNode
from fusejournal.replication.quorum import Quorum
from fusejournal.types import Reign, Seq
from fusejournal.volume.trouble import Trouble, TroubleKind
from fusejournal.wire.identity import fingerprint_of, node_id_of
from fusejournal.wire.members import Members, Rule, VoteCount
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import RefusedError

log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 1.0
_PUT_BACK_MAX: Final = 1024
"""A record that was put back from an older copy may be so many versions behind what peers have."""


class Membership:
    """The members of the volume whose primary *local* is. *head_seq* returns where its journal
    ends."""

    def __init__(self, local: LocalNode, quorum: Quorum, head_seq: Callable[[], Seq]) -> None:
        self._local = local
        self._record = local.members
        self._quorum = quorum
        self._head_seq = head_seq
        self._ids: dict[str, int] = {}
        """The nodes that peers are, by their names."""
        self._stored: dict[int, int] = {}
        """The versions that nodes have acknowledged to have on their disks, in this run."""
        self._old: set[int] = set()
        """Nodes that are too old to keep a record."""
        self._begun_version = 0
        """The version of this reign's record when this run began."""
        self._desired: Rule | None = None
        self._since_seq = Seq(0)
        """The end of the journal when the rule began to change."""
        self._reign: Reign | None = None
        self._wakeup = trio.Event()
        self._failure = ""

    # -- what others say ---------------------------------------------------------------------------

    def look_again(self) -> None:
        """Look at the configuration and the book again. What they make of the members counts at
        once where it is stricter: a peer that is new counts for nothing yet."""
        self._ids, self._desired = {}, None
        config = self._local.config
        shipped_to = [peer for peer in self._local.book.list() if peer.address is not None]
        certified = {peer.name: peer.certificate for peer in shipped_to if peer.certificate}
        # (A peer that is not paired yet is shipped to without TLS only, and is told apart by none.)
        known = not self._local.insecure or len(certified) == len(shipped_to)
        shipped_to = [peer for peer in shipped_to if known and peer.name in certified]
        for peer in shipped_to:
            self._ids[peer.name] = node_id_of(fingerprint_of(certified[peer.name]))
        witnesses = {self._ids[peer.name] for peer in shipped_to if peer.is_witness}
        nodes = {self._local.node_id, *self._ids.values()} - witnesses
        blocks = config.on_timeout == "block"
        rule = Rule(config.mirrors, blocks, tuple(sorted(nodes)), tuple(sorted(witnesses)))
        current = self._record.current
        if known and (rule.waits or shipped_to or current is not None):
            self._desired = rule
        self._hold()
        self._wake()

    def acked(self, peer: str, acked_seq: Seq, version: int | None) -> None:
        """*peer* has everything up to *acked_seq* on its disk, and the record's *version*; None: it
        is too old to keep one. Raises RefusedError for a version that was never sent to it."""
        node_id = self._ids.get(peer)
        if node_id is None:
            return
        before = self._stored.get(node_id), node_id in self._old
        if version is None:
            self._stored.pop(node_id, None)
            self._old.add(node_id)
        else:
            self._check_version(peer, version)
            self._stored[node_id] = version
            self._old.discard(node_id)
        if before != (self._stored.get(node_id), node_id in self._old):
            self._hold()
        # (What it holds itself, a peer is told when a session begins.)
        if acked_seq and len(self._ids) > 1:
            self._record.note_held({node_id: acked_seq})
        current = self._record.current
        if current is not None and (
            current.before is not None
            or self._desired != current.rule
            or self._seen_version() > current.version
        ):
            self._wake()

    def _check_version(self, peer: str, version: int) -> None:
        """Raises RefusedError if *peer* cannot have *version*, also where the record here was put
        back from an older copy: this one would be counted on from there."""
        current = self._record.current
        told = current.version if current is not None else 0
        if version > max(told, self._begun_version + _PUT_BACK_MAX):
            raise RefusedError(
                RefusalCode.MEMBERS,
                f"peer {peer} acknowledges version {version} of the record of who counts, and was "
                f"told {told} at most: it is broken, or lies",
            )

    def has_record(self, peer: str) -> bool:
        """Returns True if *peer* has the present record on its disk; also where there is none."""
        current, node_id = self._record.current, self._ids.get(peer)
        return current is None or self._stored.get(node_id or 0, 0) >= current.version

    def tally(self, peers: Collection[str]) -> VoteCount | None:
        """Returns how many of those who count this node and *peers* are, and how many a promotion
        needs, by the rule by which most is lacking; None where no votes cover one."""
        current = self._record.current
        if current is None or not any(rule.waits for rule in current.rules):
            return None
        there = {self._local.node_id, *(self._ids[one] for one in peers if one in self._ids)}
        return max((rule.tally(there) for rule in current.rules), key=lambda one: one.lacking)

    # -- changes -----------------------------------------------------------------------------------

    async def begin(self, reign: Reign) -> None:
        """Begin by *reign*: what mirrors know of an earlier one counts no more once they are told.
        Cancelled, the record may be on the disk alone. A full disk is logged, and tried again."""
        self._reign = reign
        current = self._record.current
        is_of_reign = current is not None and current.reign == reign
        self._begun_version = current.version if current is not None and is_of_reign else 0
        self._since_seq = self._head_seq()  # (A rule may have begun to change in another run.)
        self.look_again()
        await self._advance()

    async def run(self) -> None:
        """Keep the record, until cancelled."""
        while True:
            with trio.move_on_after(_RETRY_SECONDS if self._failure else float("inf")):
                await self._wakeup.wait()
            self._wakeup = trio.Event()
            await self._advance()

    async def _advance(self) -> None:
        while (following := self._following()) is not None:
            try:
                await self._record.change(following)
            except FusejournalError as error:  # as a full disk is
                if not self._failure:
                    log.warning("%s", error)
                self._failure = str(error)
                break
            self._failure = ""
            if following.before is not None:
                self._since_seq = self._head_seq()
        self._hold()

    def _following(self) -> Members | None:
        """Returns the record that is to come after the present one; None where that may stay."""
        current, reign, desired = self._record.current, self._reign, self._desired
        if reign is None or desired is None:
            return None
        if current is None:
            return Members(reign, 1, desired)
        version = max(current.version, self._seen_version())
        if current.reign != reign:
            head_seq = self._head_seq()
            held = {one: min(seq, head_seq) for one, seq in current.held}
            return current._replace(reign=reign, version=1).holding(held)
        if version > current.version:  # this one was put back from an older copy
            return current._replace(version=version + 1)
        if current.before is not None and self._has_come(current):
            changed = current._replace(version=version + 1, before=None)
            return changed.holding(dict(current.held))
        if current.before is None and current.rule != desired:
            before = current.rule if current.rule.waits or desired.waits else None
            changed = current._replace(version=version + 1, rule=desired, before=before)
            return changed.holding(dict(current.held))
        return None

    def _seen_version(self) -> int:
        return max(self._stored.values(), default=0)

    def _has_come(self, current: Members) -> bool:
        """Returns True if no promotion goes by the rule before alone any more, and mirrors enough
        by the new one hold all that was acknowledged by that."""
        stored = [one for one, version in self._stored.items() if version >= current.version]
        assert current.before is not None
        # (What is acknowledged without mirrors goes with a primary that is turned off, anyway.)
        waits, me = current.rule.waits, self._local.node_id
        if not current.before.is_kept_from(me, stored, fenced=waits):
            return False
        return not waits or self._quorum.seq >= self._since_seq

    def _hold(self) -> None:
        """Have nothing acknowledged while it is not known by which rule a promotion goes, nor by
        peers that do not count."""
        current, desired = self._record.current, self._desired
        if current is None:
            self._quorum.hold(desired is not None and desired.waits)
            return
        waits = current.rule.waits or (desired is not None and desired.waits)
        is_other = waits and desired is not None and current.rule != desired
        counted = {
            name
            for name, node_id in self._ids.items()
            if node_id in current.rule.nodes
            and (not current.rule.waits or self._knows(node_id, current))
        }
        self._quorum.count_only(counted if desired is not None else None)
        self._quorum.hold(current.before is not None or is_other)

    def _knows(self, node_id: int, current: Members) -> bool:
        """Returns True if no promotion of *node_id*, or with its vote, goes by less than
        *current*."""
        return node_id in self._old or self._stored.get(node_id, 0) >= current.version

    def _wake(self) -> None:
        self._wakeup.set()

    # -- status ------------------------------------------------------------------------------------

    def trouble(self) -> Trouble | None:
        """Returns that the members cannot be changed for now, and what to do; None where they
        can."""
        words = self._blocked()
        if words is None:
            return None
        return Trouble(TroubleKind.MEMBERS, f"what waits for a flush is blocked: {words}")

    def _blocked(self) -> str | None:
        current = self._record.current
        if self._quorum.is_held and self._failure:
            return self._failure
        if current is None:
            return None
        if not self._quorum.is_held:
            return self._unknowing(current)
        before = current.before or current.rule
        stored = {one for one, version in self._stored.items() if version >= current.version}
        lacking = set(before.nodes) - stored - {self._local.node_id}
        old = ", ".join(self._names(lacking & self._old))
        upgrade = f"upgrade {old}, which cannot know of it; " if old else ""
        return (
            "who counts has changed, and too few of the mirrors that counted before know of it "
            "yet, or have everything: "
            f"{', '.join(self._names(lacking))}; {upgrade}"
            "have them run, or, where they are gone for good, 'fusejournal demote --force' and "
            "'fusejournal promote --force' here begin with the nodes that there are"
        )

    def _unknowing(self, current: Members) -> str | None:
        """Returns which mirrors do not count because they have not the record, in words."""
        nodes = {one for one in self._stored if one in current.rule.nodes}
        lacking = {one for one in nodes if not self._knows(one, current)}
        if not (lacking and current.rule.waits and len(nodes - lacking) < current.rule.mirrors):
            return None
        return (
            f"{', '.join(self._names(lacking))} cannot write down which nodes count, and so does "
            "not count: see its own status and log"
        )

    def _names(self, nodes: set[int]) -> list[str]:
        return sorted(
            name
            for name, certificate in self._local.book.certificates().items()
            if node_id_of(fingerprint_of(certificate)) in nodes
        )
