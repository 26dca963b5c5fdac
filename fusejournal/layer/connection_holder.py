"""The holder's own process: holds a connection for a layer that may die (see connection.py).

``python -m fusejournal.layer.connection_holder FUSE_FD LIFE_FD SECONDS``, with further descriptors
inherited that are to be held, too. *LIFE_FD* is the reading end of a pipe that the layer alone has
the other end of. A byte from there means: all is in order, go.
Its end means that the layer died; another one has *SECONDS* to come and take the descriptors."""

import os
import select
import sys
import time


def keep(fuse_fd: int, life_fd: int, hold_seconds: float) -> None:
    """Return when the connection is not to be held any longer."""
    if os.read(life_fd, 1):
        return
    # Only now: every request would wake us otherwise.
    poll = select.poll()
    poll.register(fuse_fd, 0)
    deadline = time.monotonic() + hold_seconds
    while (left := deadline - time.monotonic()) > 0:
        if any(event & select.POLLERR for _, event in poll.poll(left * 1000)):
            return  # the admin unmounted it


if __name__ == "__main__":
    keep(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
