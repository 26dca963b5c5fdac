"""Puts the parts of a running volume together, from the bottom up.

In three steps, because things happen between them: :class:`StartParts` are there before the volume
is open, :class:`ServingParts` stand on the open volume, and :class:`LayerParts` on its mount. Each
part gets what it needs in its constructor, and nothing of this module is kept anywhere: parts can
be made again in the same process, for the same volume after they were closed, or for another
one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from uuid import UUID

from fusejournal.config import JournalConfig, ReplicationConfig, StoreConfig
from fusejournal.journal.base import BaseTree, JournalBase
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.layer.access_times import AccessTimes
from fusejournal.layer.connection import KernelConnection
from fusejournal.layer.handlers import Handlers
from fusejournal.layer.handshake import Handshake
from fusejournal.layer.kernel_cache import KernelCache
from fusejournal.layer.open_files import OpenFiles
from fusejournal.layer.request_loop import RequestLoop
from fusejournal.nfs.delegations import Generations, Recaller
from fusejournal.node.export_watch import ExportWatch
from fusejournal.node.hooks import RoleHooks
from fusejournal.node.spec import MountSpec, Reporter
from fusejournal.node.state_dir import VolumeState
from fusejournal.node.status import StatusPage
from fusejournal.node.tree_copies import TreeCopies
from fusejournal.node.version_schedule import VersionSchedule
from fusejournal.replication.append_notifier import AppendNotifier
from fusejournal.replication.local_node import LocalNode, check_listens
from fusejournal.replication.supervisor import MakeTakeOver, Mirroring, Replication
from fusejournal.roles.role import Event, Role
from fusejournal.types import Fid, Seq
from fusejournal.volume.base import MakeTree
from fusejournal.volume.durability import Durability, FlushHooks
from fusejournal.volume.observer import VolumeObserver, Watcher
from fusejournal.volume.startup import VolumeStartup
from fusejournal.volume.wait_policy import WaitPolicy


class NodeObserver:
    """Reports to the volume how the layer uses it, and to the shippers what the volume has
    applied."""

    def __init__(
        self,
        files: OpenFiles,
        kernel_cache: KernelCache | None,
        append_notifier: AppendNotifier,
    ) -> None:
        self._files = files
        self._kernel_cache = kernel_cache
        self._append_notifier = append_notifier

    def entry_applied(self, applied_seq: Seq, appended_bytes: int) -> None:
        """Wake the shippers that wait for it."""
        self._append_notifier.entry_applied(applied_seq, appended_bytes)

    def is_in_use(self, fid: Fid) -> bool:
        """True if the kernel may know *fid*: on a primary, any."""
        return self._kernel_cache is None or fid in self._kernel_cache or fid in self._files

    def is_open(self, fid: Fid) -> bool:
        """True if the kernel has *fid* open."""
        return fid in self._files


@dataclass(frozen=True)
class StartParts:
    """The parts that are there before the volume is open. ``role`` is that of this run; ``local``
    is None for a reader, ``kernel_cache`` unless it takes batches."""

    role: Role
    page: WatermarkPage
    files: OpenFiles
    policy: WaitPolicy
    exports: ExportWatch
    kernel_cache: KernelCache | None
    local: LocalNode | None
    append_notifier: AppendNotifier
    startup: VolumeStartup
    hooks: RoleHooks


@dataclass(frozen=True)
class ServingParts:
    """The parts that stand on an open volume, beside the layer itself."""

    replication: Replication | None
    durability: Durability
    status: StatusPage
    versions: VersionSchedule


@dataclass(frozen=True)
class LayerParts:
    """The layer over an open volume, with a connection to the kernel."""

    handshake: Handshake
    loop: RequestLoop
    access_times: AccessTimes


def journal_options(config: JournalConfig) -> JournalOptions:
    """The journal's options as *config* has them."""
    return JournalOptions(
        segment_bytes=config.segment_bytes,
        segment_entries=config.segment_entries,
        compress=config.compress,
        compress_level=config.compress_level,
    )


def assemble_start(
    spec: MountSpec,
    state: VolumeState,
    reporter: Reporter,
    hooks: RoleHooks,
    root_fd: int,
    table_fd: int,
    *,
    is_taken_over: bool,
) -> StartParts:
    """Make the parts that open the volume.

    Args:
        spec, state: what was asked for, and the volume's state.
        reporter: called with how far a long step is.
        hooks: the programs around a change of the role, which outlive these parts.
        root_fd: of the backing; the startup closes it.
        table_fd: of the table of open files, of this mount or of the process before.
        is_taken_over: the kernel may know any fid from that process.

    Raises FusejournalError: a state directory or configuration that cannot be.
    """
    if not spec.read_only:
        # Before the page: a state that has one keeps its role (holding.py).
        check_listens(state.is_mirror, state.listens_at(spec.config.replication.listen))
    page = WatermarkPage(state.watermarks, state.created_ns)
    files = OpenFiles(table_fd)
    policy = WaitPolicy()
    recaller = Recaller(spec.mountpoint, Generations(state.journal_dir).of)
    exports = ExportWatch(spec, policy, recaller)
    role = state.role.after(Event.OPENED_TO_READ) if spec.read_only else state.role
    kernel_cache = None
    if role.takes_batches:
        kernel_cache = KernelCache(exports.recall, everything=is_taken_over)
    local = None
    if role.replicates:
        local = assemble_local(state, spec.config.replication, page)
    append_notifier = AppendNotifier()
    startup = assemble_startup(
        replace(state, backing=spec.backing),
        root_fd,
        journal_options(spec.config.journal),
        reporter,
        page,
        partial(open_base, spec.state_dir, config=spec.config.store),
        adopt=spec.adopt,
        observer=NodeObserver(files, kernel_cache, append_notifier),
        policy=policy,
    )
    return StartParts(
        role, page, files, policy, exports, kernel_cache, local, append_notifier, startup, hooks
    )


def assemble_local(state: VolumeState, config: ReplicationConfig, page: WatermarkPage) -> LocalNode:
    """Make the node of the volume of *state* among its peers. Raises UsageError, ConfigError and
    other FusejournalErrors, OSError."""
    return LocalNode(
        state.directory,
        state.name,
        config,
        state.listens_at(config.listen),
        config.insecure,
        state.is_mirror,
        page,
        state.reign,
    )


def assemble_startup(
    state: VolumeState,
    root_fd: int,
    options: JournalOptions,
    watcher: Watcher,
    page: WatermarkPage,
    base_tree: MakeTree,
    *,
    adopt: bool = False,
    observer: VolumeObserver | None = None,
    policy: WaitPolicy | None = None,
) -> VolumeStartup:
    """Make what opens the volume of *state*, in its role. It opens nothing yet.

    Args:
        state: the volume's state, with its backing.
        root_fd, page: of the backing's root and of the watermarks; both are closed with the volume.
        options: how the journal is written.
        watcher: called with how far a long step is.
        base_tree: opens the tree at the journal's base.
        adopt, observer, policy: as of VolumeStartup."""
    return VolumeStartup(
        state.directory,
        state.uuid,
        state.backing,
        root_fd,
        options,
        watcher,
        page,
        is_mirror=state.is_mirror,
        is_uninitialized=state.role is Role.UNINITIALIZED,
        adopt=adopt,
        observer=observer,
        policy=policy,
        base_tree=base_tree,
    )


def open_base(state_dir: Path, base: JournalBase, config: StoreConfig) -> BaseTree:
    """Returns the tree at *base*, of the journal in *state_dir*, in a store that is dealt with as
    *config* says."""
    # Only here: where there is no base, nothing need load the libraries of versions.
    from fusejournal.versions.base_tree import open_base_tree

    return open_base_tree(state_dir, base, lambda: config)


def assemble_durability(
    startup: VolumeStartup, config: JournalConfig, fail: Callable[[str], None], hooks: FlushHooks
) -> Durability:
    """Make the flushes of the volume that *startup* has opened, as often as *config* says. *fail*
    turns it read-only, with the reason in words; *hooks* are the part of replication."""
    return Durability(
        startup.volume.journal,
        startup.volume.catalog,
        startup.root,
        startup.checkpoint,
        config,
        fail,
        startup.page,
        startup.commit_due,
        hooks,
    )


@dataclass(frozen=True)
class MirrorSeams:
    """The parts of a mirror that replication calls. ``join_volume`` makes one without a journal a
    mirror of that volume; ``make_take_over`` makes what serves a primary that hands over to it."""

    kernel_cache: KernelCache
    join_volume: Callable[[UUID], None]
    make_take_over: MakeTakeOver


def assemble_replication(
    startup: VolumeStartup,
    config: JournalConfig,
    fail: Callable[[str], None],
    local: LocalNode,
    append_notifier: AppendNotifier,
    copies: TreeCopies,
    mirror: MirrorSeams | None,
) -> Replication:
    """Make the replication of an open volume, and with it the flushes.

    Args:
        startup, config, fail: as for :func:`assemble_durability`.
        local: the node among its peers.
        append_notifier: learns of each entry of the volume.
        copies: serves mirrors that copy the tree.
        mirror: None on a primary."""
    mirroring = None
    if mirror is not None:
        page = startup.page
        mirroring = Mirroring(
            page,
            mirror.kernel_cache,
            startup.is_uninitialized,
            page.applying_seq,
            mirror.join_volume,
            mirror.make_take_over,
        )
    make = partial(assemble_durability, startup, config, fail)
    return Replication(local, startup.volume, append_notifier, mirroring, make, copies)


def assemble_serving(
    spec: MountSpec,
    state: VolumeState,
    start: StartParts,
    *,
    fail: Callable[[str], None],
    join_volume: Callable[[UUID], None],
    make_take_over: MakeTakeOver,
) -> ServingParts:
    """Make the parts that stand on the volume, once it is open.

    Args:
        spec, state: what was asked for, and the volume's state.
        start: the parts that have opened it.
        fail: turns it read-only, with the reason in words.
        join_volume: makes a mirror without a journal one of that volume.
        make_take_over: makes what serves a primary that hands over to it."""
    startup, config = start.startup, spec.config.journal
    replication = None
    if start.local is None:
        durability = assemble_durability(startup, config, fail, FlushHooks())
    else:
        mirror = None
        if start.kernel_cache is not None:
            mirror = MirrorSeams(start.kernel_cache, join_volume, make_take_over)
        copies = TreeCopies(spec.state_dir, spec.config_file)
        replication = assemble_replication(
            startup, config, fail, start.local, start.append_notifier, copies, mirror
        )
        durability = replication.durability
    versions = VersionSchedule(spec, is_mirror=state.is_mirror, reads_only=spec.read_only)
    status = StatusPage(spec, state, start.role, startup, durability, replication, versions)
    return ServingParts(replication, durability, status, versions)


def assemble_layer(
    spec: MountSpec,
    state: VolumeState,
    start: StartParts,
    serving: ServingParts,
    connection: KernelConnection,
) -> LayerParts:
    """Make the layer that serves the volume over *connection*."""
    handshake = Handshake(connection, spec.mountpoint, changes_alone=not state.is_mirror)
    is_kept = spec.config.volume.access_times == "relatime" and "noatime" not in spec.mount_flags
    access_times = AccessTimes(start.startup.volume, spec.mount_flags)
    handlers = Handlers(
        start.startup.volume,
        serving.durability,
        start.startup.importer,
        start.files,
        start.policy,
        start.kernel_cache,
        access_times if is_kept else None,
    )
    return LayerParts(handshake, RequestLoop(handshake, handlers), access_times)
