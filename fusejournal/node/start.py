"""The start of a node, on one page: :func:`serve` from the lock to the last flush, and the steps
between, in the order in which they come.

1. The lock and the state directory: no other process runs this volume; which one it is, in which
   role.
2. The places: the mount of a layer that has died is taken over, or the backing is opened before
   anything covers it.
3. The parts that open a volume (assemble.py).
4. The journal with its end, and the catalog; whether they and the backing go together.
5. The peers: whether this primary still reigns, and what only they have of its journal.
6. Recovery: catalog and backing become what the journal says.
7. An epoch where one is due; the import of what the journal does not know.
8. The parts that serve the open volume, the mount, and the layer over it.
9. Serving, until the volume is unmounted or asked to stop (node.py); then everything closes.

A change of role passes here, too: the volume is closed in order, the role is changed in one durable
write, unless a handoff has written it already, and the steps come again, with other parts. A new
primary goes on with step 2. For a new mirror the process begins anew by execv(2), because it gave
up a capability that a mirror needs; the lock and the backing go with it. What the kernel was
promised depends on the role, so that mount is a new one; the old is dead meanwhile, and stays
beneath the new: no caller gets at what they cover. One process runs one volume, because pyfuse3
mounts one file system a process. A process killed at any step leaves a state that the next start
goes on from. Signals reach the steps only through trio, as a cancellation, from step 4 on."""

import gc
import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import trio

from fusejournal.disk import calls, failpoints, mounts
from fusejournal.disk.process import python_module, shed_inheritance
from fusejournal.disk.syscalls import drop_resource_capability, mark_thread_as_io_flusher
from fusejournal.errors import (
    BackingError,
    FusejournalError,
    ImportPausedError,
    JournalFullError,
    cause_of,
)
from fusejournal.journal.reader import JournalReader
from fusejournal.layer.connection import check_held, release_kept, take_over
from fusejournal.layer.open_files import new_table
from fusejournal.node import lock
from fusejournal.node.assemble import (
    StartParts,
    assemble_layer,
    assemble_serving,
    assemble_start,
)
from fusejournal.node.handoffs import learn_outcome, make_take_over
from fusejournal.node.holding import hold_or_make_volume
from fusejournal.node.hooks import RoleHooks
from fusejournal.node.node import Node
from fusejournal.node.refusals import check_file_limit
from fusejournal.node.running_role import RunningRole
from fusejournal.node.spec import MountSpec, Reporter
from fusejournal.node.state_dir import VolumeState, change_role, load_state
from fusejournal.node.takeover import VolumeMount, connection_record
from fusejournal.replication.canvass import has_votes
from fusejournal.replication.fetch_lost import FetchedEntries
from fusejournal.replication.inquiry import ask_peers
from fusejournal.replication.local_node import LocalNode
from fusejournal.replication.member_record import MemberRecord
from fusejournal.roles.role import Event
from fusejournal.types import Epoch, Reign, Seq
from fusejournal.volume.standing import UNOPPOSED, Standing
from fusejournal.volume.trouble import Trouble, TroubleKind
from fusejournal.volume.unnamed_files import UnnamedFiles
from fusejournal.wire.session import RefusedError

_VOTE_SECONDS: Final = 1.0, 2.0
"""The bounds of the pause before peers are asked again for their vote. It is drawn, so that of two
nodes that have asked at once, and got half of the votes each, one comes first."""


class Stopped(FusejournalError):
    """A signal ended the process before the mount was live."""

    exit_code = 130


def serve(spec: MountSpec, reporter: Reporter) -> None:
    """Mount the volume and serve it until it is unmounted or asked to stop.

    A restart on command ends without unmounting: this process begins again with the program as it
    is installed by then. Raises FusejournalError."""
    degraded = _check_process(spec, reporter)
    record = connection_record(spec.state_dir)

    def check() -> None:
        check_held(record, spec.name, spec.backing, spec.mountpoint)

    node: Node | None = None
    was_live = False
    """True if it was live in the role of before."""
    is_promoted = False
    """True if it was promoted between that and the present one."""

    def is_live() -> bool:
        return was_live or (node is not None and node.is_live)

    def has_begun() -> bool:
        return is_live() or (node is not None and parts.startup.root.was_marked)

    backing_fd = lock.inherited_backing()
    with (
        hold_or_make_volume(spec, check, has_begun, is_live) as state,  # step 1
        _hooks_of(spec) as hooks,
    ):
        while True:
            mount = _take_place(spec, reporter, backing_fd)  # step 2
            backing_fd = os.dup(mount.root_fd)
            parts = assemble_start(  # step 3
                spec,
                state,
                reporter,
                hooks,
                mount.root_fd,
                mount.table_fd,
                is_taken_over=mount.is_taken_over,
            )
            parts.startup.note_degraded(degraded + _check_ways_around(spec, state))
            listen = spec.config.replication.listen
            role = RunningRole(state, parts.startup, hooks, listen)
            node = Node(spec, role, reporter, mount, parts)
            try:
                trio.run(_run, spec, role, reporter, mount, parts, node, is_promoted)
            except BaseExceptionGroup as group:
                raise cause_of(group) from group
            if role.next is None:
                os.close(backing_fd)
                break
            was_live = is_live()
            mount.give_up()
            state = _change_role(role.state, *role.next, reporter)
            # (A change of the role that could not be written down is none.)
            is_promoted = role.next[0] is Event.PROMOTED and state.role.takes_changes
            if node.forgets_members and state.role.takes_changes:
                _forget_members(state, reporter)
            if not state.role.takes_changes:
                # A mirror has all capabilities, which this process gave up.
                node.begin_anew()
                lock.pass_backing_on(backing_fd)
                break
        if node.is_restarting:
            hooks.end(goes_on=True)
            lock.pass_on(state.directory)
            command = python_module("fusejournal", *sys.argv[1:])
            os.execv(command[0], command)


@contextmanager
def _hooks_of(spec: MountSpec) -> Iterator[RoleHooks]:
    """Yields the hooks of *spec*, and ends them while no other process can run the volume."""
    hooks = RoleHooks(spec)
    try:
        yield hooks
    finally:
        hooks.end(goes_on=False)


async def _run(
    spec: MountSpec,
    role: RunningRole,
    reporter: Reporter,
    mount: VolumeMount,
    parts: StartParts,
    node: Node,
    has_asked: bool,
) -> None:
    """Go through the steps from the opening of the journal on; *has_asked*: the peers were asked
    before the role changed. Raises Stopped where a signal came before the mount was made."""
    state = role.state
    _prepare_thread(state)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.watch_signals, signals, nursery.cancel_scope)
            taken = await _open_volume(spec, reporter, parts, role, has_asked)  # steps 4 to 7
            serving = assemble_serving(  # step 8
                spec,
                state,
                parts,
                fail=node.disk_failed,
                join_volume=node.join_volume,
                make_take_over=partial(make_take_over, role, parts.startup),
            )
            layer = assemble_layer(spec, state, parts, serving, mount.connect())
            _take_over(spec, state, mount, parts)
            await node.serve(layer, serving, taken)  # step 9
            nursery.cancel_scope.cancel()
    if not node.was_served:
        if mount.was_dead:
            mounts.clear_dead_mount(spec.mountpoint)
        raise Stopped("stopped before the mount was live; mounting again goes on from here")


# -- the process and its places --------------------------------------------------------------------


def _check_process(spec: MountSpec, reporter: Reporter) -> list[Trouble]:
    """Shed what the process has inherited, and return what of its limits stays narrow. Raises
    MountError where a journal is impossible."""
    limits = shed_inheritance()
    for line in limits:
        reporter.warning(line)
    check_file_limit(spec)
    return [Trouble(TroubleKind.LIMITS, line) for line in limits]


def _take_place(spec: MountSpec, reporter: Reporter, backing_fd: int | None) -> VolumeMount:
    """Take over the mount of a layer that has died, or check the places and open the backing, which
    nothing covers but a dead mount. *backing_fd*: it is open, because this process has served it in
    another role. Raises FusejournalError."""
    record = connection_record(spec.state_dir)
    taken = take_over(record, spec.mountpoint)
    if taken is not None:
        return VolumeMount(spec, taken.root_fd, taken.table_fd, taken, was_dead=False)
    release_kept(record)
    if backing_fd is not None:
        return VolumeMount(spec, backing_fd, new_table(), None, was_dead=True, stays_covered=True)
    # Only the layer may be there: the mount of a layer that was killed still is.
    with mounts.uncovered(spec.mountpoint, spec.name) as was_dead:
        if was_dead:
            reporter.warning(f"{spec.mountpoint}: took a dead mount away")
        mounts.check_places(spec.backing, spec.mountpoint, spec.state_dir)
        root_fd = mounts.open_backing(spec.backing)
    return VolumeMount(spec, root_fd, new_table(), None, was_dead)


def _change_role(state: VolumeState, event: Event, reign: Reign, reporter: Reporter) -> VolumeState:
    """Change the role of *state*, whose volume is closed; where that cannot be written down, it
    goes on as it was. Raises OSError where it is not known what the next start would find."""
    failpoints.reached("role.closed")
    if event is Event.PROMOTED and state.role.takes_changes:
        return state  # it was written down when it was taken over
    try:
        changed = change_role(state, event, reign)
        failpoints.reached("role.changed")
        return changed
    except (JournalFullError, OSError) as error:
        if load_state(state.directory) != state:
            raise
        reporter.warning(f"the role stays as it was: {error}")
        return state


def _forget_members(state: VolumeState, reporter: Reporter) -> None:
    """Have the primary that *state* became by force begin by its own rule. (A process that is
    killed before that, or a full disk, leaves the record of before: it then waits for mirrors by
    that, too, and its status says how to begin without them.)"""
    try:
        MemberRecord(state.directory).write(None)
    except FusejournalError as error:
        reporter.warning(str(error))


def _check_ways_around(spec: MountSpec, state: VolumeState) -> list[Trouble]:
    """Check if others than root reach the backing around the layer: an error for a new volume,
    unless it is asked for, and a trouble of others."""
    way = mounts.way_around(spec.backing, spec.mountpoint)
    if way is None:
        return []
    if not state.has_journal() and not spec.config.volume.open_backing:
        raise BackingError(spec.backing, f"{way}; or take it as it is: --open-backing")
    return [Trouble(TroubleKind.OPEN_BACKING, f"the backing is open: {way}")]


def _prepare_thread(state: VolumeState) -> None:
    """Give the thread of the event loop, and those that it starts, what a layer needs."""
    mark_thread_as_io_flusher()
    if not state.is_mirror:
        drop_resource_capability()  # (A mirror takes what its primary's quotas let in.)
    _, descriptors_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors_max, descriptors_max))
    calls.keep_reserve()


# -- the volume ------------------------------------------------------------------------------------


async def _open_volume(
    spec: MountSpec, reporter: Reporter, parts: StartParts, role: RunningRole, has_asked: bool
) -> Reign | None:
    """Bring the volume from what is on disk to where it can be mounted. Returns the reign that it
    had offered to another node, and that was taken over meanwhile. Cancelled, it leaves what it has
    done so far on disk. Raises FusejournalError, OSError."""
    startup, taken = parts.startup, None
    startup.open(spec.read_only)  # step 4
    try:
        await trio.lowlevel.checkpoint()
        if parts.local is not None and parts.role.takes_changes:
            report = _reporting(reporter, parts.local)
            taken = await learn_outcome(role, startup, parts.local, report)
        standing = await _ask_peers(reporter, parts, has_asked)  # step 5
        lock.note_wait(spec.state_dir, None)
        # Step 6, in a thread, so that signals are heeded; nothing else uses the volume meanwhile.
        await trio.to_thread.run_sync(
            startup.recover, spec.read_only, standing.held_seq, trio.from_thread.check_cancelled
        )
    except trio.Cancelled:
        startup.volume.journal.sync()
        raise
    try:
        for _ in startup.start_epoch_and_import(spec.read_only, standing):  # step 7
            await trio.lowlevel.checkpoint()
            if startup.importer.is_past(spec.import_bytes):
                startup.close()
                raise ImportPausedError(f"{spec.name}: a part of the import is done")
    except trio.Cancelled:
        startup.volume.journal.sync()
        startup.volume.catalog.commit()
        raise
    return taken


def _reporting(reporter: Reporter, local: LocalNode) -> Callable[[str], None]:
    """Returns what has an admin know what the start waits for, also where 'status' is asked; a line
    that comes again and again is logged once."""
    last = ""

    def report(line: str) -> None:
        nonlocal last
        if line != last:
            last = line
            reporter.warning(line)
            lock.note_wait(local.state_dir, line)

    return report


async def _ask_peers(reporter: Reporter, parts: StartParts, has_asked: bool) -> Standing:
    """Ask its peers whether this primary reigns, and for what only they have of its journal; unless
    a promotion *has_asked* them. Raises RefusedError after the system crashed, because then it is
    not for this node to say what the backing should be."""
    startup, local = parts.startup, parts.local
    if local is None or not parts.role.takes_changes:
        return UNOPPOSED
    fence = local.fence
    if has_asked:
        epoch = startup.volume.journal.epoch
        fenced = fence.refusal(epoch)  # by what was seen since they were asked
        if fenced is not None:
            reporter.warning(fenced)
        trouble = Trouble(TroubleKind.FENCED, fenced) if fenced is not None else None
        return Standing(trouble, fence.highest_epoch, fence.new_epoch_reason(epoch))
    report = _reporting(reporter, local)
    given = [fence.highest_epoch]
    """Epochs that this one has to be beyond."""
    alone = local.may_begin
    if alone is not None and alone.node_id == local.node_id:
        # The start that named it knew of higher reigns that came to nothing. This one does not: it
        # would ask for a lower, and then, refused for its own votes of then, for one beyond it.
        given.append(Epoch(alone.epoch - 1))
    reported: set[str] = set()
    while True:
        try:
            fetched = await ask_peers(
                local,
                startup.volume.journal,
                report,
                system_crash=startup.system_crash,
                lost_page=startup.lost_page,
                reported=reported,
            )
        except RefusedError as error:
            if startup.system_crash:
                raise
            reporter.warning(str(error))
            return Standing(Trouble(TroubleKind.FENCED, str(error)))
        standing = Standing(fetched.fenced, max(given), fetched.new_epoch, fetched.held_seq)
        if await _has_votes(report, parts, standing, fetched, given.append):
            break
        await trio.sleep(random.uniform(*_VOTE_SECONDS))
    startup.note_degraded(fetched.failures)
    if fetched.fenced is not None:
        reporter.warning(fetched.fenced.text)
    return standing


async def _has_votes(
    report: Callable[[str], None],
    parts: StartParts,
    standing: Standing,
    fetched: FetchedEntries,
    given: Callable[[Epoch], None],
) -> bool:
    """Returns True if this primary may begin the epoch that is due, or none is: its peers have
    given their vote, which counts from those that *fetched* has heard. Cancelled, some may have
    been given."""
    startup, local = parts.startup, parts.local
    journal = startup.volume.journal
    due = startup.due_epoch(standing) if journal.head_seq else None
    if local is None or standing.fenced is not None or due is None:
        return True
    if local.fence.due(journal.epoch) is not None:
        return True  # which it was promoted to, with votes enough or by force
    own = local.fence.own(journal.epoch)
    me = local.greeting(journal.uuid, journal, own, journal.head_seq)
    return await has_votes(
        local,
        me,
        Reign(due.epoch, local.node_id),
        heard=fetched.heard,
        parted=fetched.parted,
        has_lost=startup.system_crash,
        report=report,
        given=given,
    )


# -- the mount -------------------------------------------------------------------------------------


def _take_over(spec: MountSpec, state: VolumeState, mount: VolumeMount, parts: StartParts) -> None:
    """Take over what the layer before this one has left: open files without a name, and a mount
    whose kernel may remember what is not so any more. Before the first request is read."""
    volume = parts.startup.volume
    if not spec.read_only:
        named = volume.tree.take_over_orphans(parts.files.fids())
        if volume.write_errno is None:
            for fid in named:
                UnnamedFiles(volume).finish(fid)
    parts.exports.follow()
    if mount.is_taken_over:
        mount.hold()  # from now on by this one, whatever happens
        mount.find_unanswered(
            JournalReader(state.journal_dir, state.uuid),
            volume.journal.durable_when_opened,
            Seq(volume.catalog.applied_seq + 1),
        )
    # What is there by now stays: to look through it again and again for garbage would hold up all
    # requests for some 50 ms each time.
    gc.collect()
    gc.freeze()
