"""The work of jobs that change who is primary: handoff, promotion, demotion, and rejoin.

The change itself is the layers' (roles/); a job asks for it and follows it. Killed, it leaves it to
them: a handoff comes to its end, or back, by itself, and what else was begun goes on when it is
asked for again."""

from fusejournal.admin.demote import demote_in_words
from fusejournal.admin.handoff import hand_over, wait_for_primary
from fusejournal.admin.live import live_status
from fusejournal.admin.peers import list_peers
from fusejournal.admin.promote import plan_promotion, promote, store_hint
from fusejournal.admin.rejoin import RejoinRequest
from fusejournal.agent.job_progress import JobProgress, essence_of
from fusejournal.agent.job_states import JobState
from fusejournal.errors import PromotionRefusedError, UnknownPeerError, UsageError
from fusejournal.node.registry import find_volume
from fusejournal.node.state_dir import VolumeState
from fusejournal.node.volume_status import VolumeStatus
from fusejournal.replication.states import PeerState
from fusejournal.replication.status import PeerStatus
from fusejournal.roles.plan import HandoffProgress

_HANDOFF_SECONDS = 10.0
_FOLLOW_SECONDS = 30.0
_ROLE_SECONDS = 600.0
_OTHER_PLAN = "it is another case by now: look at the new plan"


def change_role_of(job: JobProgress, *, do_it: bool) -> None:
    """Does the change of a role that is asked for. Raises FusejournalError, OSError,
    JobStoppedError, KeyboardInterrupt where it was stopped."""
    match job.request["kind"]:
        case "handoff":
            hand_over_to(job, do_it=do_it)
        case "promote":
            promote_here(job, do_it=do_it)
        case "demote":
            demote_here(job, do_it=do_it)
        case _:
            rejoin_here(job, do_it=do_it)


def hand_over_to(job: JobProgress, *, do_it: bool) -> None:
    """Reports how a peer stands, or hands over to it, if it stands as the admin has seen. Asked to
    stop before the peer reigns, all goes on here. Raises FusejournalError, KeyboardInterrupt where
    it was stopped."""
    state, peer = _begin(job), job.request["peer"]
    status = live_status(state)
    found = {one.name: one for one in _peers(status)}
    if status.role != "primary":
        raise UsageError(f"{state.name} is a {status.role} here: hand over where it is primary")
    if peer not in found:
        raise UnknownPeerError(peer, f": there is {', '.join(sorted(found)) or 'none'}")
    essence = essence_of([_reign(status), _standing(found[peer])])
    if not do_it or not job.is_approved(essence):
        rows = [*_own_rows(status), _peer_row(found[peer])]
        job.show_plan(essence, words=_OTHER_PLAN if do_it else "", rows=rows)
        return
    job.save(JobState.DOING, words="")

    def check() -> None:
        if job.order() == "stop":
            raise KeyboardInterrupt

    def progress(told: HandoffProgress) -> None:
        job.show(told.applied_seq, told.head_seq, stage=told.stage, held_seconds=told.held_seconds)

    told = hand_over(
        state, peer, timeout_seconds=_HANDOFF_SECONDS, check=check, progress=progress
    )  # fmt: skip
    follows = wait_for_primary(state, _FOLLOW_SECONDS)
    words = f"{peer} is the primary of {state.name}, in reign {told.reign}"
    if follows is None:
        words += f"; it does not ship to here yet: see 'fusejournal status {state.name}'"
    job.save(JobState.DONE, words=words)


def promote_here(job: JobProgress, *, do_it: bool) -> None:
    """Reports what a promotion of the mirror here would do and what may be lost, or promotes it, if
    that is what the admin has seen. Raises FusejournalError."""
    state, force = _begin(job), bool(job.request["force"])
    plan = plan_promotion(state)
    refusal = "" if force else plan.refusal
    roles = [[one.peer, one.role, one.held_seq] for one in plan.peers]
    case = [plan.reign, plan.missing, plan.primary, roles, bool(plan.refusal)]
    essence = essence_of(case)
    if not do_it or not job.is_approved(essence):
        job.show_plan(
            essence, words=_OTHER_PLAN if do_it else "", rows=plan.rows(), refusal=refusal,
            objection=plan.refusal,
        )  # fmt: skip
        return
    if refusal:
        raise PromotionRefusedError(f"not promoted: {refusal}")
    job.save(JobState.DOING, words="")
    promote(
        state, force=force, timeout_seconds=_ROLE_SECONDS,
        applying=lambda left: job.show(0, None, left_to_apply=left),
    )  # fmt: skip
    words = f"{state.name} is the primary, in reign {plan.reign}"
    for peer in list_peers(state).peers:
        if peer.paused:
            words += f"; {peer.name} is paused, and so does not follow: resume it"
    if hint := store_hint(state):
        words += f"; {hint}"
    job.save(JobState.DONE, words=words)


def demote_here(job: JobProgress, *, do_it: bool) -> None:
    """Reports how the mirrors stand, or makes the primary here a mirror, if they stand as the admin
    has seen. Raises FusejournalError."""
    state = _begin(job)
    status = live_status(state)
    if status.role != "primary":
        raise UsageError(f"{state.name} is a {status.role} here already")
    essence = essence_of([_reign(status), *sorted(map(_standing, _peers(status)))])
    if not do_it or not job.is_approved(essence):
        rows = [*_own_rows(status), *map(_peer_row, _peers(status))]
        job.show_plan(essence, words=_OTHER_PLAN if do_it else "", rows=rows)
        return
    job.save(JobState.DOING, words="")
    _, words = demote_in_words(
        state, force=bool(job.request["force"]), drain_seconds=_HANDOFF_SECONDS,
        timeout_seconds=_HANDOFF_SECONDS + _ROLE_SECONDS,
    )  # fmt: skip
    job.save(JobState.DONE, words=words)


def rejoin_here(job: JobProgress, *, do_it: bool) -> None:
    """Reports what a rejoin of the volume here would undo, or does it, while nothing is mounted.
    Raises FusejournalError, OSError, JobStoppedError."""
    state = _begin(job)
    request = RejoinRequest(state, job.request["peer"], None, insecure=False)
    plan = request.plan().to_json()
    essence = essence_of([plan["source"], plan["parted"], plan["own_entries"]])
    # What was begun is not what was planned any more, and can only be gone on with.
    goes_on = bool(job.values.get("is_begun")) and request.is_begun
    if not do_it or not (goes_on or job.is_approved(essence)):
        job.show_plan(essence, words=_OTHER_PLAN if do_it else "", rejoin=plan)
        return
    job.save(JobState.DOING, words="", is_begun=True)
    told = request.run(_JobReporter(job), job.check)
    words = f"it is a mirror now: fusejournal mount {state.name}"
    job.save(JobState.DONE, words=words, rejoin=told.to_json())


class _JobReporter:
    """Keeps what a start reports as the job's progress."""

    def __init__(self, job: JobProgress) -> None:
        self._job = job

    def progress(self, stage: str, done: int, total: int | None, unit: str) -> None:
        """Keeps how far it is."""
        self._job.show(done, total, stage=f"{stage}, {unit}s")

    def warning(self, text: str) -> None:
        """Keeps a warning."""
        self._job.save(warnings=[*self._job.values.get("warnings", []), text])

    def ready(self, imported: int) -> None:
        """Does nothing: nothing is mounted."""


def _begin(job: JobProgress) -> VolumeState:
    job.save(JobState.PLANNING, words="", done=0, total=None)
    return find_volume(job.request["volume"])


def _peers(status: VolumeStatus) -> tuple[PeerStatus, ...]:
    return status.replication.peers if status.replication is not None else ()


def _reign(status: VolumeStatus) -> str | None:
    return str(status.replication.reign) if status.replication is not None else None


def _standing(peer: PeerStatus) -> list[str]:
    """Returns what an admin goes by of a peer. How far behind it is changes all the time: the
    change of the role waits for it."""
    follows = peer.state in (PeerState.STREAMING, PeerState.CATCHING_UP)
    return [peer.name, "follows" if follows else peer.state.value]


def _own_rows(status: VolumeStatus) -> list[tuple[str, str]]:
    reign = status.replication.reign if status.replication is not None else "-"
    return [("here", f"{status.role} in reign {reign}, up to entry {status.head_seq}")]


def _peer_row(peer: PeerStatus) -> tuple[str, str]:
    behind = "level"
    if peer.lag_entries:
        behind = f"behind by {peer.lag_entries:,} entries, {peer.lag_seconds:.1f} s"
    error = f": {peer.last_error}" if peer.last_error and peer.lag_entries else ""
    return f"peer {peer.name}", f"{peer.state}, {behind}{error}"
