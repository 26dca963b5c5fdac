"""The agent's directory, ``.agent`` in the root of volumes' states: no volume's name begins with a
dot.

::

    .agent/identity/       its key and certificate (wire/identity.py)
    .agent/consoles.json   the consoles that it is paired with
    .agent/control.sock    where ``fusejournal agent pair`` asks
    .agent/lock            locked by the agent that runs
    .agent/jobs/ID/        a job: what was asked, how far it is, who works on it
    .agent/restored/       the trees that jobs restored"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusejournal.disk.files import make_directories
from fusejournal.errors import FusejournalError, PrivilegeError
from fusejournal.node.registry import state_root


def agent_directory() -> Path:
    """Returns the directory of this machine's agent, which may not be there yet."""
    return state_root() / ".agent"


@contextmanager
def hold_agent() -> Iterator[Path]:
    """Holds the agent's directory, which is made, for the length of the block, and yields it.
    Raises FusejournalError where another agent has it, PrivilegeError, OSError."""
    if os.geteuid() != 0:
        raise PrivilegeError("the agent reads journals and undoes changes as root: try sudo")
    directory = agent_directory()
    make_directories("agent.directory.make", directory)
    os.chmod(directory, 0o700)
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise FusejournalError(f"an agent runs here already, with {directory}") from None
    try:
        yield directory
    finally:
        os.close(fd)
