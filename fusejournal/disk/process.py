"""Processes: what this one has inherited and must not depend on, and how others are started.

A layer serves all users, whichever started it: the limits, the umask and the signals of the shell
that it was started from are not its users'. And nothing of ours is ever loaded out of the current
directory, which may be a user's while root is at work.

Source: setrlimit(2), umask(2), pthread_sigmask(3), signal(7); python(1) on -P.
"""

import os
import resource
import shutil
import signal
import sys
from math import inf

WORKING_DIRECTORY = "/"
"""The directory that processes are started in: the current one is the caller's to hold, and may
hold another user's program or module."""

_UMASK = 0o022
_NICE = 19
_LIMITS = {
    resource.RLIMIT_FSIZE: ("-f", "changes of files beyond {} bytes are refused (EFBIG)"),
    resource.RLIMIT_CPU: ("-t", "it will be ended after {} s of processor time"),
    resource.RLIMIT_AS: ("-v", "its memory is limited to {} bytes"),
    resource.RLIMIT_DATA: ("-d", "its memory is limited to {} bytes"),
}


def python_module(module: str, *arguments: str) -> list[str]:
    """Returns the command line that runs *module* as a program of its own, by this interpreter;
    start it in :data:`WORKING_DIRECTORY`."""
    # -P: what lies in the current directory is no module of ours.
    return [sys.executable, "-P", "-m", module, *arguments]


def shed_inheritance() -> list[str]:
    """Raises limits that are a shell's and not the layer's, and leaves its umask, its signals' mask
    and its directory. Returns what could not be raised and what that means, a line each."""
    os.chdir(WORKING_DIRECTORY)
    os.umask(_UMASK)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Ignored, the end of a child could not be waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    lines = []
    for limit, (option, meaning) in _LIMITS.items():
        left = _raise(limit)
        if left != resource.RLIM_INFINITY:
            lines.append(
                f"{meaning.format(f'{left:,}')}: a limit of the shell it was started from, which "
                f"could not be raised ('ulimit {option} unlimited', then mount again)"
            )
    return lines


def file_bytes_max(pid: int = 0) -> float:
    """Returns the size up to which process *pid* (0: this one) may write files, in bytes."""
    soft, _ = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    return inf if soft == resource.RLIM_INFINITY else soft


def lower_priority() -> None:
    """Has this process give way to all others in the use of the processors."""
    os.nice(_NICE)


def lower_disk_priority() -> None:
    """Has this process give way to all others in the use of disks, where ionice(1) is there and
    the disk's scheduler goes by it."""
    # Only here: most commands start no process, and should not wait for it to load.
    import subprocess

    if (program := shutil.which("ionice")) is not None:
        command = [program, "-c", "3", "-p", str(os.getpid())]
        subprocess.run(command, check=False, cwd=WORKING_DIRECTORY)


def files_open_max() -> int:
    """Returns how many descriptors may be kept as a cache: half of what the process may open,
    because the rest is for orphans, the journal and Python itself."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(64, min(soft // 2, 4096))


def _raise(limit: int) -> int:
    """Raises *limit* as far as it goes, and returns it."""
    soft, hard = resource.getrlimit(limit)
    for highest in (resource.RLIM_INFINITY, hard):
        if soft == resource.RLIM_INFINITY:
            break
        try:
            resource.setrlimit(limit, (highest, highest))
            soft = highest
        except (OSError, ValueError):
            continue
    return soft
