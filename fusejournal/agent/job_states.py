"""The states of a job (jobs.py), as its process keeps them and its agent reports them."""

from typing import Final

from fusejournal.control.reply import ReportedState


class JobState(ReportedState):
    """The state of a job."""

    PLANNING = "planning"
    """Finds out what is to be done, and what is in the way."""
    PLANNED = "planned"
    """Waits for the admin to have it done."""
    DOING = "doing"
    """Working, or, where ``paused`` says so, waiting between two steps."""
    DONE = "done"
    STOPPED = "stopped"
    """Stopped by an order, or because its process died; ``do`` goes on with it."""
    FAILED = "failed"
    """Impossible for now, for the reason in ``words``; ``do`` tries again."""
    REMOVED = "removed"
    """Gone: only the answer to that order has it."""


WORKING: Final = frozenset({JobState.PLANNING, JobState.DOING})
"""The states in which a process has to be there."""
RESTING: Final = frozenset({JobState.PLANNED, JobState.STOPPED, JobState.FAILED})
"""The states from which it can be begun, or planned, again."""
