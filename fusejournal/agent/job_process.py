"""The process that does one job (jobs.py): ``python -P -m fusejournal.agent.job_process DIR``.

It plans, or does, what DIR/request.json asks for, and keeps DIR/progress.json: at most a few times
a second, and at each change of state. Between two steps it looks whether it is to pause or to
stop. The work of each kind says what it has left when it is killed at any instruction."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusejournal.agent.disk_errors import disk_error_words
from fusejournal.agent.job_kinds import KINDS, check_request
from fusejournal.agent.job_progress import JobProgress, JobStoppedError
from fusejournal.agent.job_states import JobState
from fusejournal.errors import FusejournalError


class Job:
    """One job, held by this process."""

    def __init__(self, directory: Path) -> None:
        self._job = JobProgress(directory)

    def run(self) -> None:
        """Does what is ordered, and leaves the outcome in the progress. Raises OSError where no
        outcome can be kept."""
        try:
            check_request(self._job.request)
            # What the admin has not seen is planned first, whatever the order.
            can_do = self._job.has_plan_of_order or not KINDS[self._job.request["kind"]].plans
            self._work(do_it=can_do and self._job.order() != "plan")
        except (JobStoppedError, KeyboardInterrupt):
            self._job.end(JobState.STOPPED, "stopped as told: 'do' goes on with it")
        except FusejournalError as error:
            self._job.end(JobState.FAILED, str(error))
        except OSError as error:
            self._job.end(JobState.FAILED, disk_error_words(error))

    def _work(self, *, do_it: bool) -> None:
        # Only the work of its kind: a job should not wait for the others to load.
        job, kind = self._job, self._job.request["kind"]
        if kind in ("undo", "restore", "in-place"):
            from fusejournal.agent.recovery_work import recover

            recover(job, do_it=do_it)
        elif kind in ("version-create", "version-verify", "prune"):
            from fusejournal.agent.version_work import work_on_versions

            work_on_versions(job, do_it=do_it)
        else:
            from fusejournal.agent.role_work import change_role_of

            change_role_of(job, do_it=do_it)


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def main() -> None:
    """Does the job in the directory that the command line names."""
    directory = Path(sys.argv[1])
    with _held(directory):
        Job(directory).run()


if __name__ == "__main__":
    main()
