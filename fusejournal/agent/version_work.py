"""The work of jobs on versions: making one, verifying one, and pruning by the policy."""

from typing import Any

from fusejournal.admin.prune import PrunePlan, Pruning
from fusejournal.admin.versions import VolumeVersions
from fusejournal.agent.job_progress import JobProgress, essence_of
from fusejournal.agent.job_states import JobState
from fusejournal.disk.process import lower_priority


def work_on_versions(job: JobProgress, *, do_it: bool) -> None:
    """Does the work on versions that is asked for. Raises FusejournalError, OSError,
    JobStoppedError."""
    match job.request["kind"]:
        case "version-create":
            create(job)
        case "version-verify":
            verify(job)
        case _:
            prune(job, do_it=do_it)


def create(job: JobProgress) -> None:
    """Makes a version of the tree as it is now. Killed, it leaves all versions as they were. Raises
    FusejournalError, OSError, JobStoppedError."""
    lower_priority()
    job.save(JobState.DOING, words="", done=0, total=None)
    versions = VolumeVersions(job.request["volume"], job.check)
    created = versions.create(job.request["name"], job.step)
    words = ""
    if not created.is_new:
        words = (
            f"version {created.version.shown_name} is of this entry already: no entry came since"
        )
    faults = [str(fault) for fault in created.faults]
    faults += [str(one.error) for one in created.unreadable]
    job.save(
        JobState.DONE, words=words, warnings=faults,
        version={**created.version.to_json(), "key": created.version.key},
        is_new=created.is_new, entries=created.entry_count,
    )  # fmt: skip


def verify(job: JobProgress) -> None:
    """Reads a version back. Changes nothing. Raises FusejournalError, OSError, JobStoppedError."""
    lower_priority()
    request = job.request
    job.save(JobState.DOING, words="", done=0, total=None)
    versions = VolumeVersions(request["volume"], job.check)
    found = versions.verify(request["version"], job.step, with_data=request["data"])
    words = f"version {request['version']} is whole"
    job.save(JobState.DONE, words=words, verified=found._asdict())


def prune(job: JobProgress, *, do_it: bool) -> None:
    """Plans what the policy does not keep, or lets it go, if that is what the admin has seen.
    Stopped at any point, it is gone on with by the next pruning. Raises FusejournalError, OSError,
    JobStoppedError."""
    lower_priority()
    job.save(JobState.PLANNING, words="", done=0, total=None)
    work = Pruning(job.request["volume"], None, job.check)
    plan = work.plan()
    essence = essence_of(_essence(plan))
    if not do_it or not job.is_approved(essence):
        found = plan.to_json(work.would_free(plan, job.step))
        words = "what would go is another by now: look at the new plan" if do_it else ""
        is_empty = not plan.going and not plan.journal.segments
        job.show_plan(
            essence,
            words=words,
            prune=found,
            remarks=work.remarks(plan),
            is_empty=is_empty,
        )
        return
    job.save(JobState.DOING, words="")
    collected = work.carry_out(plan, job.step)
    words = ""
    if collected.waiting_for:
        names = ", ".join(f"{one.node} (pid {one.pid})" for one in collected.waiting_for)
        words = f"what the versions alone had waits for {names}: prune again then"
    job.save(JobState.DONE, words=words, prune=plan.to_json(collected))


def _essence(plan: PrunePlan) -> list[Any]:
    return [[one.key for one in plan.going], int(plan.journal.base_seq), plan.journal.segments]
