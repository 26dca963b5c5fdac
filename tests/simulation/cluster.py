"""A primary and its mirrors in a :class:`~tests.simulation.world.World`, what happens to them, and
what must hold whatever does."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from uuid import UUID

import trio

from fusejournal.address import node_name
from fusejournal.admin.rejoin import RejoinRequest
from fusejournal.config import ReplicationConfig
from fusejournal.errors import FusejournalError
from fusejournal.journal.branches import list_branches
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node import start
from fusejournal.node.state_dir import VolumeState
from fusejournal.operations import ControlOperation, NewEpoch, Rename, made_by
from fusejournal.replication.common_ancestor import first_error
from fusejournal.replication.fence import node_id_of
from fusejournal.replication.parting import PartingInquiry
from fusejournal.replication.peers import PeerBook
from fusejournal.roles.demote import Demotion
from fusejournal.roles.promote import Promotion
from fusejournal.roles.rejoin import RejoinError
from fusejournal.roles.role import Role
from fusejournal.types import ROOT_FID, Fid, Reign, Seq, reign_of_text
from fusejournal.volume.rollback import REJOIN_FILE
from fusejournal.wire.identity import load_or_make
from fusejournal.wire.session import HandshakeState
from tests.simulation.world import Died, Machine, World, current
from tests.support.losses import crash_system
from tests.support.pairs import running
from tests.support.trees import difference, image
from tests.support.volumes import SOMEBODY, OpenVolume, Quiet, content, open_volume

_LEVEL_SECONDS: Final = 1_500.0
"""The world's time that it may take: a mirror may go by an instance for ten minutes that is
gone."""
_ASKING_SECONDS: Final = 3.0
_POLL_SECONDS: Final = 0.25
_RETRY_SECONDS: Final = 30.0

log = logging.getLogger(__name__)


class Noting(Quiet):
    """Has what a start of *node* warns of in the world's trace, once."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._last = ""

    def ready(self, imported: int) -> None: ...

    def warning(self, message: str) -> None:
        if message != self._last:
            self._last = message
            self._node.cluster.world.note(f"{self._node.name}: {message}")


@contextmanager
def at(machine: Machine) -> Iterator[None]:
    """Does the block in a process of *machine*."""
    token = current.set(machine)
    try:
        yield
    finally:
        current.reset(token)


class Node:
    """One node, whose process may live or not."""

    def __init__(self, cluster: "Cluster", name: str, *, is_mirror: bool) -> None:
        self.cluster = cluster
        self.name = name
        self.is_mirror = is_mirror
        self.reign: Reign | None = None
        """The one that its role came with, which is one record with the role."""
        self._has_asked = False
        self.machine = cluster.world.machine(name)
        self.directory = cluster.base / name
        self.state_dir = self.directory / "state"
        self.state_dir.mkdir(parents=True)
        (self.directory / "mount").mkdir()
        self.machine.page = self.state_dir / "watermarks"
        self.side: OpenVolume | None = None
        """While it is up."""
        self.refusal = ""
        """Why its last start was refused."""
        self._scope: trio.CancelScope | None = None
        self._stopping = trio.Event()
        self._over = trio.Event()

    # -- a process ---------------------------------------------------------------------------------

    @property
    def is_alive(self) -> bool:
        """True while it has a process."""
        return self._scope is not None

    def start(self) -> None:
        """Begin a process, unless there is one."""
        if self._scope is None:
            self._scope, self._over = trio.CancelScope(), trio.Event()
            self._stopping = trio.Event()
            self.machine.boot()
            self.machine.scope = self._scope
            self.cluster.world.note(f"{self.name} starts")
            self.cluster.nursery.start_soon(self._live)

    async def _live(self) -> None:
        current.set(self.machine)
        assert self._scope is not None
        try:
            with self._scope:
                await self._serve()
        except* Died:
            pass
        except* (FusejournalError, OSError) as group:
            if not self.machine.is_dead:
                self.refusal = str(first_error(group))
                self.cluster.world.note(f"{self.name} is refused: {self.refusal}")
        finally:
            self.side = self._scope = self.machine.scope = None
            self._over.set()

    async def _serve(self) -> None:
        with open_volume(
            self.directory, mirror=self.is_mirror, orderly=False, begin=self.is_mirror
        ) as side:
            config = ReplicationConfig(
                mirrors=self.cluster.mirrors_wanted,
                on_timeout="block",
                take_back_seconds=_ASKING_SECONDS,
                without_peers="wait" if self.cluster.waits_for_peers else "new-epoch",
            )
            self._know_peers()
            side.replicate(config, str(self.machine.address), reign=self.reign)
            if not self.is_mirror:
                await self._begin(side)
            async with running(side):
                self.side, self.refusal = side, ""
                await self._stopping.wait()
                self.side = None
            side.orderly = True

    def _know_peers(self) -> None:
        book = PeerBook.load(self.state_dir)
        if book.list():
            return
        for other in self.cluster.nodes:
            if other is not self:
                key = load_or_make(other.state_dir / "identity", node_name(other.name))
                address = None if self.is_mirror else other.machine.address
                book.pair(other.name, address, key.certificate)
                book.note_return(other.name, other.machine.address)
        book.save()

    async def _begin(self, side: OpenVolume) -> None:
        """Begins as a primary's start does (node/start.py), and with that replication again."""
        opening, local = side.opening, side.replication.local
        parts: Any = SimpleNamespace(startup=opening, local=local, role=Role.PRIMARY)
        standing = await start._ask_peers(Noting(self), parts, has_asked=self._has_asked)
        self._has_asked = False
        opening.recover(read_only=False, held_seq=standing.held_seq)
        for _ in opening.start_epoch_and_import(read_only=False, standing=standing):
            pass
        side.replicate(local.config, str(self.machine.address), reign=self.reign)

    # -- roles -------------------------------------------------------------------------------------

    async def promote(self, *, force: bool = False) -> bool:
        """Make this mirror the primary, if nothing speaks against it, or by force. Returns whether
        it is."""
        side, world = self.side, self.cluster.world
        if side is None or not self.is_mirror or side.opening.is_uninitialized:
            return False
        promotion = Promotion(self.name, side.volume, side.replication, side.receiver)
        with at(self.machine):
            try:
                plan = await promotion.prepare(force=force)
                with trio.fail_after(100):
                    await promotion.apply_all()
                promotion.check_reign(reign_of_text(plan.reign))
            except (FusejournalError, OSError, Died, trio.TooSlowError) as error:
                world.note(f"{self.name} is not promoted: {error}")
                return False
        if self.side is not side:
            return False
        self.cluster.was_forced |= bool(plan.objections) or not plan.is_covered
        await self.stop()
        self.is_mirror, self.reign, self._has_asked = False, reign_of_text(plan.reign), True
        world.note(f"{self.name} is promoted to {self.reign.epoch}")
        self.start()
        return True

    async def demote(self) -> bool:
        """Make this primary a mirror, once its mirrors have everything, or where another reigns.
        Returns whether it is."""
        side = self.side
        if side is None or self.is_mirror:
            return False
        demotion = Demotion(side.volume, side.replication)
        with at(self.machine):
            try:
                reign = await demotion.prepare(force=False, timeout_seconds=5.0)
            except (FusejournalError, OSError, Died) as error:
                self.cluster.world.note(f"{self.name} is not demoted: {error}")
                return False
        if self.side is not side:
            return False
        side.becomes_mirror = True
        await self.stop()
        self.is_mirror, self.reign = True, reign
        self.cluster.world.note(f"{self.name} is demoted")
        self.start()
        return True

    async def ask_where_parted(self) -> None:
        """Have it noted where this node's journal parts from the present primary's."""
        page = WatermarkPage(self.state_dir / "watermarks")
        identity = load_or_make(self.state_dir / "identity", node_name(self.name))
        journal = RejoinRequest(self._state(), None, None, insecure=True)._look(page)
        me = HandshakeState(
            *(node_name(self.name), self._state().uuid, journal, page.fence.epoch, journal.seq),
            *(page.fence.node_id, node_id_of(identity.fingerprint), page.instance),
        )
        page.close()
        inquiry = PartingInquiry(me, self.state_dir / "journal", identity, insecure=True)
        book = PeerBook.load(self.state_dir)
        others = [node for node in self.cluster.nodes if node is not self and node.side is not None]
        for other in sorted(others, key=lambda node: node.is_mirror):
            with at(self.machine), suppress(FusejournalError, OSError, trio.TooSlowError):
                self.machine.boot()
                (await inquiry.ask(book.get(other.name))).keep(self.state_dir)
                return

    def _state(self) -> VolumeState:
        """The state that commands go by."""
        uuid = UUID((self.state_dir / "uuid").read_text())
        places = (self.directory / "backing").resolve(), self.directory / "mount"
        role = Role.MIRROR if self.is_mirror else Role.PRIMARY
        return VolumeState(self.state_dir, uuid, self.name, *places, 0, role, None, self.reign)

    async def stop(self) -> None:
        """An orderly stop."""
        self._stopping.set()
        with trio.move_on_after(600) as waiting:
            await self._over.wait()
        if waiting.cancelled_caught:
            await self.kill()

    async def kill(self) -> None:
        """Kills the process alone."""
        if self._scope is not None:
            self.machine.die()
            await self._over.wait()

    async def crash(self, older: int = 0) -> None:
        """Crashes the machine: what was not flushed is lost, from some entry on; *older*: and so
        many entries that were, as where an older copy takes its place."""
        dice = self.cluster.world.dice
        side = self.side
        span = None
        if side is not None and side.volume.journal.head_seq:
            journal = side.volume.journal
            span = journal.durable_seq, journal.head_seq
        await self.kill()
        if self.machine.synced_page and self.machine.page is not None:
            self.machine.page.write_bytes(self.machine.synced_page)
        if not (self.state_dir / "boot").exists():
            return
        reader = JournalReader(self.state_dir / "journal")
        if not reader.segments() or (self.state_dir / REJOIN_FILE).exists():
            return
        head_seq, _ = reader.head()
        if not head_seq:
            return
        first, last = span if span is not None else (head_seq, head_seq)
        kept_seq = Seq(min(head_seq, dice.randint(max(1, first), max(1, last))))
        if older:
            # (One from before its own reign is fenced for good: by its own page, or by its peers.)
            kept_seq = max(Seq(kept_seq - older), min(kept_seq, last_epoch_seq(reader)))
            self.cluster.put_back(self, kept_seq)
        self.cluster.world.note(f"{self.name} loses {kept_seq + 1} to {head_seq}")
        crash_system(self.state_dir, kept_seq)
        assert self.machine.page is not None
        self.machine.synced_page = self.machine.page.read_bytes()

    # -- rejoining ---------------------------------------------------------------------------------

    def rejoin(self, dies_in: int | None = None) -> None:
        """Bring it level while it is down; killed after so many calls of the disk."""
        before = chains(self.state_dir / "journal")
        had_begun = (self.state_dir / REJOIN_FILE).exists()
        self.machine.boot()
        self.machine.dies_in = dies_in
        with at(self.machine):
            try:
                request = RejoinRequest(self._state(), None, None, insecure=True)
                told = request.run(Noting(self), lambda: None)
                self.cluster.world.note(f"{self.name} rejoins at {told.parted}")
                self.is_mirror, self.reign = True, request._state.reign
            except Died:
                self.cluster.world.note(f"{self.name} dies as it rejoins")
        self.machine.boot()
        if not had_begun:
            kept = chains(self.state_dir / "journal")
            for branch in list_branches(self.state_dir):
                kept |= chains(branch.directory)
            assert before <= kept, "an entry that lost is in no branch"

    @property
    def is_gone_by(self) -> bool:
        """True of a primary whose system crashed and that no start makes a mirror, while another
        was promoted after it: it is refused, or waits for words that it does not get."""
        is_old = self is not self.cluster.newest or "fenced" in self.refusal
        return is_old and not self.is_mirror and self.side is None

    @property
    def held_seq(self) -> Seq:
        """The end of its journal; 0 where it is down."""
        return self.side.volume.journal.head_seq if self.side is not None else Seq(0)

    @property
    def has_parted(self) -> bool:
        """True if it is up and says so."""
        if self.side is None or not self.is_mirror:
            return False
        status = self.side.replication.status().mirror
        return status is not None and status.state == "diverged"


def last_epoch_seq(reader: JournalReader) -> Seq:
    """Returns the entry with which the newest epoch in *reader*'s journal begins."""
    entries = reader.read(Seq(1), END)
    return max(entry.seq for entry in entries if isinstance(entry.operation, NewEpoch))


def chains(directory: Path) -> set[tuple[int, int]]:
    """Each entry of the segments in *directory* by its seq and chain."""
    reader = JournalReader(directory)
    if not reader.segments():
        return set()
    return {(frame.seq, frame.checksum) for _, frame in reader.frames(Seq(1), END)}


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
    _count: int = 0
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

    def put_back(self, node: Node, kept_seq: Seq) -> None:
        """*node* is as of an earlier time: what only it had is lost with it."""
        if node is self.primary and not self.mirrors_wanted:
            self.answered = {one for one in self.answered if one[0] <= kept_seq}

    # -- callers -----------------------------------------------------------------------------------

    def work(self, times: int, node: Node | None = None) -> None:
        """Callers of *node*, by default of the newest primary, change things, and wait until that
        is durable."""
        node = node or self.primary
        side = node.side if not node.is_mirror else None
        if side is None or side.volume.write_errno is not None:
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

    async def _is_level(self) -> bool:
        for node in self.nodes:
            if node.side is not None and node.side.replication.quorum.is_fenced:
                await node.demote()
            if node.has_parted:
                await node.stop()
                node.rejoin()
            elif node.is_gone_by and trio.current_time() > self._retry_at:
                await node.stop()
                await node.ask_where_parted()
                with suppress(RejoinError):  # the new primary may not be up yet
                    node.rejoin()
            if not node.refusal or trio.current_time() > self._retry_at:
                node.start()
        if trio.current_time() > self._retry_at:
            self._retry_at = trio.current_time() + _RETRY_SECONDS
            await self._promote_where_needed()
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
        """Do as an admin does where no node is primary, or where mirrors have given their word to
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
                if is_due and not side.receiver.session_peer:
                    await mirror.promote()

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
