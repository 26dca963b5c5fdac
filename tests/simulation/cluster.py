"""A primary and its mirrors in a :class:`~tests.simulation.world.World`, what happens to them, and
what must hold whatever does."""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from fusejournal.errors import FusejournalError
from fusejournal.journal.branches import list_branches
from fusejournal.journal.reader import END, JournalReader
from fusejournal.operations import ControlOperation, NewEpoch, Rename, made_by
from fusejournal.replication.states import PeerState
from fusejournal.types import ROOT_FID, Fid, Seq
from tests.simulation.node import Node, chains
from tests.simulation.world import Died, World, at, current
from tests.support.trees import difference, image
from tests.support.volumes import SOMEBODY, OpenVolume, content

_LEVEL_SECONDS: Final = 1_500.0
"""The world's time that it may take: a mirror may go by an instance for ten minutes that is
gone."""
_REST_SECONDS: Final = 200.0
_POLL_SECONDS: Final = 0.25
_RETRY_SECONDS: Final = 30.0
_PATIENCE_SECONDS: Final = 300.0
"""The time after which an admin goes by what a start that waits for votes has advised."""


@dataclass
class Cluster:
    """A primary, mirrors, and what is known of what they have answered."""

    world: World
    base: Path
    nursery: trio.Nursery
    mirrors_wanted: int
    waits_for_peers: bool
    """True if a primary that has lost entries and reaches no peer waits for one."""
    answered: set[tuple[int, int]] = field(default_factory=set)
    """Entries, by seq and chain, that a caller was told are durable."""
    reigns: dict[int, str] = field(default_factory=dict)
    """The node that took changes, by epoch."""
    primary: Node = field(init=False)
    mirrors: list[Node] = field(default_factory=list)
    was_forced: bool = False
    """True once a node was promoted against what spoke against it: entries may be in branches
    alone."""
    _put_back: set[str] = field(default_factory=set)
    """The nodes that were put back since all were level."""
    _count: int = 0
    _healing_since: float = 0.0
    _retry_at: float = 0.0
    """A start that was refused is tried again then."""

    def build(self, mirrors: int) -> None:
        """Make the nodes."""
        self.primary = Node(self, "primary", is_mirror=False)
        self.mirrors = [Node(self, f"mirror{n}", is_mirror=True) for n in range(mirrors)]

    @property
    def nodes(self) -> list[Node]:
        """All of them."""
        return [self.primary, *self.mirrors]

    def can_be_put_back(self, node: Node) -> bool:
        """True if all that was answered is on other nodes, too, which have not been put back since
        all were level."""
        if node is not self.primary and not self.mirrors_wanted:
            return True
        return len(self._put_back | {node.name}) <= max(self.mirrors_wanted, 1)

    def put_back(self, node: Node, kept_seq: Seq) -> None:
        """*node* is as of an earlier time: what only it had is lost with it."""
        self._put_back.add(node.name)
        if node is self.primary and not self.mirrors_wanted:
            self.answered = {one for one in self.answered if one[0] <= kept_seq}

    # -- callers -----------------------------------------------------------------------------------

    def work(self, times: int, node: Node | None = None) -> None:
        """Callers of *node*, by default of the newest primary, change things, and wait until that
        is durable."""
        node = node or self.primary
        side = node.side
        if side is None or side.watermarks is not None or side.volume.write_errno is not None:
            return
        with at(node.machine):
            try:
                for _ in range(times):
                    self._change(side)
            except (Died, FusejournalError):
                return
        journal = side.volume.journal
        who = self.reigns.setdefault(journal.epoch, node.name)
        assert who == node.name, (journal.epoch, who, node.name, self.world.trace[-40:])
        self.nursery.start_soon(self._wait, node, side, journal.head_seq, journal.chain)

    def _change(self, side: OpenVolume) -> None:
        dice, volume = self.world.dice, side.volume
        self._count += 1
        known = [one for one in volume.catalog.list(ROOT_FID, 0)]
        what = dice.randrange(5)
        if what < 3 or not known:
            side.create(f"f{self._count}", dice.randbytes(dice.randrange(200)))
            return
        one = known[dice.randrange(len(known))]
        if what == 3:
            side.unlink(one.fid, one.name.decode())
        else:
            new = f"r{self._count}".encode()
            volume.commit(Rename(one.fid, ROOT_FID, one.name, ROOT_FID, new, 0, Fid(0)), SOMEBODY)

    async def _wait(self, node: Node, side: OpenVolume, seq: Seq, chain: int) -> None:
        current.set(node.machine)
        with suppress(OSError, FusejournalError, Died), trio.move_on_after(300):
            await side.durability.wait(seq)
            if node.side is side:
                self.answered.add((seq, chain))
                self.world.note(f"{seq} is durable")

    # -- the end -----------------------------------------------------------------------------------

    async def heal(self) -> None:
        """Everything works again, and all come level. Raises trio.TooSlowError."""
        self.world.note("heals")
        self._healing_since = trio.current_time()
        for link in self.world.links():
            link.mend()
        for node in self.nodes:
            node.machine.disk_seconds = 0.001
            node.machine.dies_in = None
        try:
            with trio.fail_after(_LEVEL_SECONDS):
                while not await self._is_level():  # noqa: ASYNC110 -- it does things, too
                    await trio.sleep(_POLL_SECONDS)
        except trio.TooSlowError:
            raise AssertionError(self._told()) from None
        self._put_back.clear()

    async def _is_level(self) -> bool:
        for node in self.nodes:
            if node.side is not None and node.side.replication.quorum.is_fenced:
                await node.demote()
            if node.has_parted:
                await node.stop()
                node.rejoin()
            elif node.is_gone_by and trio.current_time() > self._retry_at:
                await node.kill()  # (A start that waits heeds no other stop here.)
                await node.ask_where_parted()
                node.rejoin()  # (The new primary may not be up yet.)
            if not node.refusal or trio.current_time() > self._retry_at:
                node.start()
        if trio.current_time() > self._retry_at:
            self._retry_at = trio.current_time() + _RETRY_SECONDS
            await self._promote_where_needed()
            await self._begin_where_needed()
        self.look_for_primary()
        primary = self.primary.side
        if primary is None or primary.volume.write_errno is not None:
            return False
        head_seq = primary.volume.journal.head_seq
        return all(
            node.is_mirror
            and node.side is not None
            and node.side.volume.catalog.applied_seq == head_seq
            and node.side.volume.journal.head == primary.volume.journal.head
            for node in self.mirrors
        )

    async def _promote_where_needed(self) -> None:
        """Do as an admin does where no node is primary, or where mirrors have given their vote to
        one that was not promoted after all: promote one."""
        if not self._primaries():
            for mirror in sorted(self.nodes, key=lambda node: -node.held_seq):
                if await mirror.promote():
                    return
        for mirror in self.nodes:
            side = mirror.side
            if side is not None and mirror.is_mirror and not side.opening.is_uninitialized:
                seen, local = side.opening.page.fence, side.replication.local
                is_due = seen.node_id == local.node_id and seen.epoch > side.volume.journal.epoch
                if is_due and not side.receiver.session_peer and not await mirror.promote():
                    await self.newest.overrule()

    async def _begin_where_needed(self) -> None:
        """Do as an admin does whose primary waits for votes that are not to be had, as where a
        mirror was put back: none was promoted since, so it may begin alone; or for peers, each of
        which is a primary that waits, too."""
        node, waited = self.newest, trio.current_time() - self._healing_since
        if node.side is not None or waited < _PATIENCE_SECONDS:
            return
        if node.waits_for_peers and not any(one.is_mirror for one in self.nodes):
            await node.go_on_without_peers()
        elif node.could_begin:
            await node.begin_alone()

    def _primaries(self) -> list[Node]:
        """Those that are not known to be none any more."""
        return [node for node in self.nodes if not node.is_mirror and "fenced" not in node.refusal]

    @property
    def newest(self) -> Node:
        """The node that was promoted last, or that was the first primary."""
        primaries = self._primaries()
        return max(primaries or self.nodes, key=lambda node: node.reign.epoch if node.reign else 1)

    def look_for_primary(self) -> None:
        """The one of the highest reign is the primary, all others are mirrors, or are to be."""
        nodes = self.nodes
        self.primary = self.newest
        self.mirrors = [node for node in nodes if node is not self.primary]

    def _told(self) -> str:
        words = []
        for node in self.nodes:
            side = node.side
            words.append(f"{node.name}: {node.refusal}")
            if side is not None:
                words.append(str(side.replication.status()))
        return "\n".join([*words, *self.world.trace[-30:]])

    async def come_to_rest(self) -> None:
        """Callers change things and hear that they are durable, and no peer goes on to be refused:
        each mirror is fed by one node, which all others know. Raises AssertionError where that does
        not come."""
        assert self.primary.side is not None
        journal = self.primary.side.volume.journal
        self.work(5)
        last = journal.head_seq, journal.chain
        try:
            with trio.fail_after(_REST_SECONDS):
                while last not in self.answered or self._refused():  # noqa: ASYNC110
                    await trio.sleep(_POLL_SECONDS)
        except trio.TooSlowError:
            raise AssertionError(f"refused: {self._refused()}\n{self._told()}") from None

    def _refused(self) -> list[str]:
        """The peers that refuse who ships to them."""
        return [
            f"{node.name} by {peer.name}: {peer.last_error}"
            for node in self.nodes
            if node.side is not None
            for peer in node.side.replication.status().peers
            if peer.state is PeerState.REFUSED
        ]

    def check(self) -> None:
        """Checks what must hold once all are level."""
        primary = self.primary.side
        assert primary is not None
        kept = chains(primary.journal_dir)
        for node in self.nodes if self.was_forced else ():
            for branch in list_branches(node.state_dir):
                kept |= chains(branch.directory)
        assert self.answered <= kept, sorted(self.answered - kept)
        tree, segments = image(primary.backing), content(primary.journal_dir)
        for node in self.mirrors:
            assert node.side is not None
            assert not (found := difference(tree, image(node.side.backing))), (node.name, found)
            assert content(node.side.journal_dir) == segments, node.name
        self._check_fids()

    def _check_fids(self) -> None:
        """One never means two files, in no history."""
        made: dict[Fid, int] = {}
        for node in self.nodes:
            places = [node.state_dir / "journal"]
            places += [branch.directory for branch in list_branches(node.state_dir)]
            for place in places:
                for entry in JournalReader(place).read(Seq(1), END):
                    if isinstance(entry.operation, ControlOperation):
                        if isinstance(entry.operation, NewEpoch):
                            assert entry.operation.epoch >= 1
                        continue
                    if (making := made_by(entry.operation)) is not None:
                        assert made.setdefault(making.fid, entry.chain) == entry.chain


def remove(base: Path) -> None:
    """Removes what is left of a run, whose files may have odd modes."""
    for path in sorted(base.rglob("*"), reverse=True):
        os.rmdir(path) if path.is_dir() and not path.is_symlink() else os.unlink(path)
