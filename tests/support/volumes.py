"""Volumes without a mount: opened in the test's own process, on real directories."""

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

from fusejournal.config import JournalConfig, ReplicationConfig, StoreConfig
from fusejournal.journal.base import BaseTree, JournalBase
from fusejournal.journal.outcomes import with_outcomes
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.layer.kernel_cache import KernelCache
from fusejournal.node.assemble import (
    MirrorSeams,
    assemble_durability,
    assemble_local,
    assemble_replication,
    assemble_startup,
    open_base,
)
from fusejournal.node.state_dir import VolumeState
from fusejournal.node.tree_copies import TreeCopies
from fusejournal.operations import Create, Mkdir, Unlink, Write
from fusejournal.replication.append_notifier import AppendNotifier
from fusejournal.replication.mirror_applier import MirrorApplier
from fusejournal.replication.receiver import Receiver
from fusejournal.replication.supervisor import Replication
from fusejournal.roles.role import Role
from fusejournal.types import ROOT_FID, Caller, Fid, Reign, Seq
from fusejournal.volume.checkpoint import Checkpoint
from fusejournal.volume.durability import Durability, FlushHooks
from fusejournal.volume.observer import Unobserved
from fusejournal.volume.startup import VolumeStartup
from fusejournal.volume.volume import Volume
from fusejournal.volume.wait_policy import WaitPolicy
from fusejournal.wire.frames import Hello
from fusejournal.wire.session_connection import SessionConnection
from tests.support.bases import STORES, base_tree
from tests.support.trees import difference, image, rebuild

SOMEBODY = Caller(1000, 1000, 77)
_FLUSHING = JournalConfig(compress=False)
SMALL_SEGMENTS = JournalOptions(segment_bytes=1 << 17, segment_entries=300)


def show_nothing(*_: object) -> None:
    """Progress that is not looked at."""


class Quiet:
    """Wants to know nothing."""

    def progress(self, stage: str, done: int, total: int | None, unit: str) -> None: ...

    def warning(self, text: str) -> None: ...


@dataclass
class Usage(Unobserved):
    """The use of a volume, as a test has it; and what its entries set off."""

    everything_is_open: bool = False
    kernel_cache: KernelCache | None = None
    on_applied: list[Callable[[Seq, int], None]] = field(default_factory=list)

    def entry_applied(self, applied_seq: Seq, appended_bytes: int) -> None:
        for call in self.on_applied:
            call(applied_seq, appended_bytes)

    def is_in_use(self, fid: Fid) -> bool:
        return self.kernel_cache is None or fid in self.kernel_cache

    def is_open(self, fid: Fid) -> bool:
        return self.everything_is_open


@dataclass
class OpenVolume:
    """One open volume and what belongs to it."""

    directory: Path
    state: VolumeState
    """Its state as it was opened."""
    opening: VolumeStartup
    volume: Volume
    watermarks: WatermarkPage | None
    usage: Usage
    policy: WaitPolicy
    durability: Durability = field(init=False)
    _replication: Replication | None = None
    keep_orphans: bool = False
    """True if the hidden names of open files are left by a process crash."""
    orderly: bool = True
    """True if it ends by an orderly stop, not by a process crash."""
    becomes_mirror: bool = False
    """True if that stop is one of a primary that is to be a mirror."""
    take_over: Callable[[SessionConnection, Hello], Awaitable[None]] | None = None
    """A mirror's: serves who hands over to it."""

    @property
    def backing(self) -> Path:
        """Its real path, because the directory may have a link to it."""
        return (self.directory / "backing").resolve()

    @property
    def journal_dir(self) -> Path:
        return self.directory / "state" / "journal"

    @property
    def replication(self) -> Replication:
        """The replication that :meth:`replicate` has attached."""
        assert self._replication is not None
        return self._replication

    @property
    def applier(self) -> MirrorApplier:
        """A mirror's applier."""
        assert self.replication.applier is not None
        return self.replication.applier

    @property
    def receiver(self) -> Receiver:
        """A mirror's receiver."""
        assert self.replication.receiver is not None
        return self.replication.receiver

    def make_checkpoint(self) -> None:
        """All that is applied is on the disk."""
        self.volume.journal.sync()
        journal = self.volume.journal
        checkpoint = Checkpoint.begin(self.volume.catalog.applied_seq, journal.head)
        self.opening.page.write_durable(journal.durable_seq)
        self.opening.checkpoint.make(checkpoint, self.opening.root)

    def replicate(
        self,
        config: ReplicationConfig,
        listen: str | None = None,
        *,
        insecure: bool = True,
        reign: Reign | None = None,
    ) -> Replication:
        """Attach a replication that talks over the loopback, plainly if it may be *insecure*.
        *reign*: the one that its role came with."""
        config = config._replace(listen=listen, insecure=insecure)
        local = assemble_local(replace(self.state, reign=reign), config, self.opening.page)
        mirror = None
        if self.watermarks is not None:
            kernel_cache = self.usage.kernel_cache = KernelCache(lambda _: None, everything=False)
            mirror = MirrorSeams(kernel_cache, self.opening.join_volume, lambda *_: self._take_over)
        append_notifier = AppendNotifier()
        self.usage.on_applied.append(append_notifier.entry_applied)
        replication = self._replication = assemble_replication(
            self.opening,
            _FLUSHING,
            self.volume.fail,
            local,
            append_notifier,
            TreeCopies(self.directory / "state", None),
            mirror,
        )
        self.durability = replication.durability
        return replication

    async def _take_over(self, session: SessionConnection, greeting: Hello) -> None:
        assert self.take_over is not None
        await self.take_over(session, greeting)

    # -- changes -----------------------------------------------------------------------------------

    def create(self, name: str, data: bytes = b"", parent: Fid = ROOT_FID) -> Fid:
        fid = self.volume.new_fid()
        operation = Create(fid, parent, name.encode(), 0o100644, 0, 0, 0, None)
        self.volume.commit(operation, SOMEBODY)
        if data:
            self.volume.commit(Write(fid, 0, None), SOMEBODY, data)
        return fid

    def mkdir(self, name: str, parent: Fid = ROOT_FID) -> Fid:
        fid = self.volume.new_fid()
        operation = Mkdir(fid, parent, name.encode(), 0o755, 0, 0, None, None)
        self.volume.commit(operation, SOMEBODY)
        return fid

    def unlink(self, fid: Fid, name: str, parent: Fid = ROOT_FID) -> None:
        self.volume.commit(Unlink(fid, parent, name.encode()), SOMEBODY)

    def work(self, rounds: int, start: int = 0) -> None:
        """Some files in some directories; a third is removed again, and some are refused."""
        for number in range(start, start + rounds):
            directory = self.mkdir(f"d{number}")
            for name in "abc":
                fid = self.create(f"{name}", name.encode() * (number % 700), directory)
                if name == "b":
                    self.unlink(fid, name, directory)
            try:
                self.mkdir(f"d{number}")
            except FileExistsError:
                pass
            else:
                raise AssertionError("made twice")


@contextmanager
def open_volume(
    directory: Path,
    *,
    mirror: bool = False,
    uuid: UUID | None = None,
    options: JournalOptions = SMALL_SEGMENTS,
    orderly: bool = True,
    begin: bool = True,
) -> Iterator[OpenVolume]:
    """The volume in *directory*, made if it is new (a mirror with a *uuid* is one that has joined
    that volume); not *orderly*: at the end it is left as a process crash leaves it; not *begin*:
    it is opened only up to where a primary would ask its peers."""
    backing, state = directory / "backing", directory / "state"
    backing.mkdir(parents=True, exist_ok=True)
    state.mkdir(exist_ok=True)
    known = state / "uuid"
    if uuid is None and known.exists():
        uuid = UUID(known.read_text())
    if uuid is None and not mirror:
        uuid = uuid4()
    if uuid is not None:
        _note_uuid(known, uuid)
    page = WatermarkPage(state / "watermarks")
    watermarks = page if mirror else None
    root_fd = os.open(backing, os.O_RDONLY | os.O_DIRECTORY)
    usage, policy = Usage(), WaitPolicy()
    role = Role.PRIMARY
    if mirror:
        role = Role.UNINITIALIZED if uuid is None else Role.MIRROR
    volume_state = VolumeState(
        state, uuid or uuid4(), directory.name, backing, backing, created_ns=0, role=role
    )
    opening = assemble_startup(
        volume_state,
        root_fd,
        options,
        Quiet(),
        page,
        partial(_base_tree, state),
        observer=usage,
        policy=policy,
    )
    opening.open(read_only=False)
    if begin:
        opening.recover(read_only=False)
        for _ in opening.start_epoch_and_import(read_only=False):
            pass
    volume = opening.volume
    opened = OpenVolume(
        directory, volume_state, opening, volume, watermarks, usage, policy, orderly=orderly
    )
    opened.durability = assemble_durability(opening, _FLUSHING, volume.fail, FlushHooks())
    try:
        yield opened
    finally:
        try:
            if not opening.is_uninitialized:
                _note_uuid(known, volume.journal.uuid)
        finally:
            if opened.orderly:
                opening.close(becomes_mirror=opened.becomes_mirror)
            else:
                with ExitStack() as stack:
                    stack.callback(page.close)
                    stack.callback(volume.journal.close)
                    stack.callback(volume.tree.close, keep_orphans=opened.keep_orphans)
                    stack.callback(volume.catalog.close)


def _base_tree(state: Path, base: JournalBase) -> BaseTree:
    """The tree at a base, in a store that a test has in memory, or in the volume's own."""
    return base_tree(base) if base.store in STORES else open_base(state, base, StoreConfig())


def _note_uuid(path: Path, uuid: UUID) -> None:
    """Write *uuid* to a file that the loss of a disk's cache leaves as it is."""
    if path.exists() and path.read_text() == str(uuid):
        return
    with open(path, "w") as file:
        file.write(str(uuid))
        file.flush()
        os.fsync(file.fileno())
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def content(directory: Path) -> dict[str, bytes]:
    """Every segment in *directory*, without the space ahead of its end."""
    return {path.name: path.read_bytes().rstrip(b"\0") for path in sorted(directory.glob("*.fj"))}


def applied(volume: OpenVolume) -> Seq:
    return volume.volume.catalog.applied_seq


def check_copies(volume: Path, uuid: UUID, base: Path) -> None:
    """Replay and a mirror come to the tree of the backing in *volume*; they are made in *base*."""
    wanted = image((volume / "backing").resolve())
    target = base / "replayed"
    target.mkdir()
    rebuild(volume / "state", target, uuid)
    assert not difference(image(target), wanted), "replay"
    reader = JournalReader(volume / "state" / "journal", uuid)
    head_seq, _ = reader.head()
    with open_volume(base / "mirror", mirror=True, uuid=uuid) as mirror:
        for entry, outcome in with_outcomes(reader.read(Seq(1), Seq(head_seq + 1))):
            mirror.volume.apply_received(entry, outcome, redo=False)
        assert not difference(image(mirror.backing), wanted), "mirror"
